"""The native engine runs free where the guest makes no accesses; nobody but the clock can tell."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

pytest.importorskip("unicorn")

from vmmsim.backends.unicorn_native.trial import in_a_child
from vmmsim.backends.unicorn_native.vcpu import native_usable
from vmmsim.budget import insns, seconds
from vmmsim.cpu.modes import setup
from vmmsim.exits import BudgetSpent, Cancelled, Halt
from vmmsim.machine import Machine
from vmmsim.testing.slow import time_limit

pytestmark = [
    pytest.mark.unicorn,
    pytest.mark.skipif(not native_usable()[0], reason=f"no native engine: {native_usable()[1]}"),
]


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMSIM_UNICORN", "native")


def _machine(code: str) -> Machine:
    machine = Machine(backend="unicorn", memory=1 << 20, extra_devices=("scratch",))
    machine.memory.write(0x4000, bytes.fromhex(code))
    machine.vcpu.set_state(setup("real", 0x4000, 1 << 20).state)
    return machine


def test_phases_change_and_the_guest_sees_nothing(native: None) -> None:
    # mov bx, 3; outer: mov ecx, 3000000; l: inc dword [0x8000]; dec ecx; jnz l; out 0x80, al;
    # dec bx; jnz outer; hlt
    with _machine("bb0300 66b9c0c62d00 66ff060080 6649 75f7 e680 4b 75ec f4") as machine:
        watched = set()
        machine.observe(lambda *access: watched.add(machine.vcpu._watched))  # type: ignore[attr-defined]
        assert not machine.vcpu._watched  # type: ignore[attr-defined]

        exit = machine.run(budget=seconds(time_limit(60)))

        assert exit == Halt()
        assert watched == {False}, "a few accesses to ports are made by free code"
        assert machine.accesses.total == 3
        assert machine.memory.read_int(0x8000, 4) == 3 * 3000000


def test_many_accesses_have_the_code_watched(native: None) -> None:
    # mov cx, 200; l: out 0x80, al; inc ax; loop l; hlt
    with _machine("b9c800 e680 40 e2fb f4") as machine:
        seen = []
        machine.observe(lambda *access: seen.append((access[3], machine.vcpu._watched)))  # type: ignore[attr-defined]

        assert machine.run(budget=seconds(time_limit(60))) == Halt()

        assert [value for value, _ in seen] == list(range(200))
        assert not seen[0][1]
        assert seen[-1][1]


def test_a_string_instruction_is_not_for_free_code(native: None) -> None:
    # mov di, 0x8000; mov cx, 5; mov dx, 0x80; rep insb; hlt
    with _machine("bf0080 b90500 ba8000 f36c f4") as machine:
        watched = set()
        machine.observe(lambda *access: watched.add(machine.vcpu._watched))  # type: ignore[attr-defined]

        assert machine.run(budget=seconds(time_limit(60))) == Halt()

        assert watched == {True}
        assert machine.accesses.total == 5
        assert (machine.cpu.rdi & 0xFFFF, machine.cpu.rcx & 0xFFFF) == (0x8005, 0)


def test_steps_and_runs_take_turns_without_end(native: None) -> None:
    # l: inc ax; out 0x80, al; jmp l
    with _machine("40 e680 ebfb") as machine:
        machine.observe(lambda *access: machine.cancel())
        for turn in range(1, 100):
            assert machine.step() == BudgetSpent("insns", 1)  # from here on instructions are counted
            assert machine.run(budget=seconds(60)) == Cancelled()  # and from here on no more
            assert machine.accesses.total == turn
            assert machine.step() == BudgetSpent("insns", 1)


def test_a_cancel_in_an_access_of_free_code_ends_the_run_at_the_next_block(native: None) -> None:
    # in al, 0x80; inc bx; jmp next; next: hlt
    with _machine("e480 43 eb00 f4") as machine:
        machine.observe(lambda *access: machine.cancel())

        assert machine.run(budget=seconds(time_limit(60))) == Cancelled()

        assert machine.accesses.total == 1
        assert machine.cpu.rip == 0x4005
        assert machine.run(budget=seconds(time_limit(60))) == Halt()
        assert machine.accesses.total == 1
        assert (machine.cpu.rip, machine.cpu.rbx) == (0x4006, 1)


def test_cancels_at_any_moment_make_no_access_of_free_code_twice(native: None) -> None:
    # xor ax, ax; outer: mov ecx, 40000; l: dec ecx; jnz l; out 0x80, ax; inc ax; cmp ax, 600; jb outer; hlt
    with _machine("31c0 66b9409c0000 6649 75fc e780 40 3d5802 72ee f4") as machine:
        seen: list[int] = []
        free = 0

        def observe(*access: Any) -> None:
            nonlocal free
            seen.append(access[3])
            free += not machine.vcpu._watched  # type: ignore[attr-defined]

        machine.observe(observe)
        over = threading.Event()

        def cancel() -> None:
            pause = random.Random(3)
            while not over.wait(pause.random() / 2000):
                machine.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            deadline = time.monotonic() + time_limit(60)
            while (exit := machine.run(budget=seconds(time_limit(30)))) != Halt():
                assert exit == Cancelled()
                machine.vcpu._watch(False)  # type: ignore[attr-defined]
                assert time.monotonic() < deadline
        finally:
            over.set()
            thread.join()
        assert seen == list(range(600))
        assert free > 100, "or this tests nothing"


def test_a_halt_in_free_code_is_a_halt(native: None) -> None:
    with _machine("4040f440f4") as machine:  # inc ax; inc ax; hlt; inc ax; hlt
        assert machine.run() == Halt()
        assert machine.cpu.rip == 0x4003
        assert machine.run() == Halt()
        assert (machine.cpu.rip, machine.cpu.rax) == (0x4005, 3)


def test_a_load_that_leaves_ram_in_free_code_has_its_true_size(native: None) -> None:
    # mov eax, [0xcfffe]: two bytes of RAM, then two of the scratch device
    with _machine("6766a1feff0c00 f4") as machine:
        machine.memory.write(0xCFFFE, b"\x11\x22")
        machine.devices["scratch"].write(0, 2, 0x4433)
        seen = []
        machine.observe(lambda cls, address, size, value: seen.append((cls.kind, address, size)))

        assert machine.run(budget=seconds(time_limit(10))) == Halt()

        assert seen == [("mmio_read", 0xD0000, 2)]
        assert machine.cpu.rax == 0x44332211


def test_counting_is_exact_after_a_free_run(native: None) -> None:
    with _machine("4040ebfc") as machine:  # l: inc ax; inc ax; jmp l
        assert isinstance(machine.run(budget=seconds(0.02)), BudgetSpent)
        machine.cpu.rip, machine.cpu.rax = 0x4000, 0

        assert machine.run(budget=insns(3000)) == BudgetSpent("insns", 3000)

        assert machine.cpu.rax == 2000


_DENIED = """
import errno, mmap

from vmmsim import Machine
from vmmsim.backends.unicorn_native import host

def denied(address, size, protection):
    assert protection & mmap.PROT_EXEC
    return errno.EACCES

host.protect = denied

with Machine.for_guest("lwn", backend="unicorn") as machine:
    print(machine.run(), machine.output.data, machine.backend.engine, machine.backend.engine_reason)
"""


def test_a_host_without_executable_memory_gets_the_portable_engine() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "VMMSIM_UNICORN"}
    command = [sys.executable, "-c", _DENIED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=time_limit(50), env=environment)

    assert done.stdout.startswith("Halt() b'4\\n' portable "), done.stdout + done.stderr
    assert "no executable memory: Permission denied" in done.stdout


_CRASHING = """
from vmmsim import Machine
from vmmsim.backends.unicorn_native import host, vcpu

vcpu.seen_on_hardware = lambda: False
host.assembly().code["in"] = b"\\x0f\\x0b"  # UD2
with Machine.for_guest("lwn", backend="unicorn") as machine:
    print(machine.run(), machine.output.data, machine.backend.engine, machine.backend.engine_reason)
"""


def test_thunks_that_crash_on_unknown_hardware_are_not_used() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "VMMSIM_UNICORN"}
    command = [sys.executable, "-X", "faulthandler", "-c", _CRASHING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, env=environment)

    assert done.stdout.startswith("Halt() b'4\\n' portable "), done.stdout + done.stderr
    assert "ended with SIGILL" in done.stdout
    assert not done.stderr, "the child that crashed says nothing"


@pytest.mark.parametrize(
    ("prove", "told"),
    [
        (lambda: (True, "all is well"), (True, "all is well")),
        (lambda: (False, "it is not"), (False, "it is not")),
        (lambda: 1 // 0, (False, "ended with 1")),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), (False, "ended with SIGSEGV")),
        (lambda: threading.Event().wait(), (False, "did not end in 1 s")),
    ],
)
def test_a_trial_in_a_child(prove: Any, told: tuple[bool, str], monkeypatch: pytest.MonkeyPatch) -> None:
    children = []

    def fork(real: Any = os.fork) -> int:
        children.append(real())
        return children[-1]

    monkeypatch.setattr(os, "fork", fork)
    before = len(os.listdir("/dev/fd"))

    passed, why = in_a_child(prove, seconds=1)

    assert passed == told[0]
    assert why.endswith(told[1])
    assert len(os.listdir("/dev/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(children[0], os.WNOHANG)
