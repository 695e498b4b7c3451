"""KVM_RUN comes back for a signal, by either way of calling it: `fcntl.ioctl`, and the C library's ioctl.

Each Python uses one of them (see vmmsim/backends/kvm_run.py). The second holds on all, and is forced here;
the first only up to 3.13.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("KVM is a part of Linux", allow_module_level=True)

from vmmsim import Machine, budget
from vmmsim.backends import kvm, kvm_probe, kvm_run
from vmmsim.cpu.modes import setup
from vmmsim.exits import BudgetSpent, Cancelled, PortWrite
from vmmsim.testing import CHECKS, Check, NotApplicable

WAYS = ["libc"] if kvm_run.FCNTL_RETRIES else ["fcntl", "libc"]
SPIN = bytes.fromhex("ebfe")
CODE = 0x4000


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(kvm_run, "FCNTL_RETRIES", request.param == "libc")
    return str(request.param)


@pytest.fixture
def backend(way: str) -> Iterator[kvm.KvmBackend]:
    opened = kvm.KvmBackend()
    yield opened
    opened.close()


@pytest.fixture
def spinning(way: str) -> Iterator[Machine]:
    with Machine(backend="kvm", memory=1 << 20) as machine:
        machine.memory.write(CODE, SPIN)
        machine.vcpu.set_state(setup("real", CODE, 1 << 20).state)
        yield machine


@pytest.mark.parametrize("way", ["libc"], indirect=True)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
@pytest.mark.kvm
def test_the_contract_holds_by_the_c_library_s_ioctl(backend: kvm.KvmBackend, check: Check) -> None:
    try:
        check.run(backend)
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_this_python_s_way_is_the_one_that_a_signal_ends() -> None:
    assert (sys.version_info >= (3, 14)) == kvm_run.FCNTL_RETRIES


def test_a_failure_has_its_errno(way: str) -> None:
    def enter() -> int:
        result = kvm_run.entry(1 << 20)()  # no such descriptor
        if result:
            raise kvm_run.failure()
        return result

    with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as caught:
        enter()
    assert caught.value.errno == errno.EBADF


@pytest.mark.kvm
@pytest.mark.timeout(60)
def test_ctrl_c_ends_a_spinning_guest(spinning: Machine) -> None:
    for _ in range(5):
        timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            spinning.run()
        timer.join()
    assert spinning.cpu.rip == CODE


@pytest.mark.kvm
@pytest.mark.timeout(60)
def test_a_handler_of_python_runs_and_the_guest_goes_on(spinning: Machine) -> None:
    """A signal that raises nothing is handled, again and again, in the thread that is in KVM_RUN."""
    count = 0

    def handler(*_: object) -> None:
        nonlocal count
        count += 1
        if count == 20:
            spinning.cancel()

    before: Any = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        assert spinning.run() == Cancelled()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert count >= 20


@pytest.mark.kvm
@pytest.mark.timeout(60)
def test_a_budget_of_seconds_ends_a_spinning_guest(spinning: Machine) -> None:
    for _ in range(3):
        assert spinning.run(budget=budget.seconds(0.05)) == BudgetSpent("seconds", 0.05)


@pytest.mark.kvm
@pytest.mark.timeout(60)
def test_looking_at_a_guest_in_an_access_finishes_the_instruction(way: str) -> None:
    """KVM_RUN with immediate_exit: EINTR is its answer, and asking again would be for ever."""
    with Machine(backend="kvm", memory=1 << 20, without=("char-out",)) as machine:
        machine.memory.write(CODE, bytes.fromhex("e680ebfc"))  # l: out 0x80, al; jmp l
        machine.vcpu.set_state(setup("real", CODE, 1 << 20).state)
        for _ in range(3):
            assert isinstance(machine.vcpu.run(), PortWrite)
            assert machine.vcpu.registers().rip == CODE + 2
            assert machine.vcpu.state().rip == CODE + 2


@pytest.mark.kvm
@pytest.mark.timeout(60)
def test_the_probes_of_doctor_end(backend: kvm.KvmBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its INT 80h never ends in kvm_pvm's emulator: a cancel or the watchdog gets out of it."""
    monkeypatch.setattr(kvm_probe, "_found", {})
    assert dict(kvm_probe.report(backend))["kvm executes on"] == backend.provenance
