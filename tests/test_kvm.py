"""What is KVM's own in the KVM backend: its faults, its pending I/O, its signals.

What both backends promise is tested by the conformance suite.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import kvm_host
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmmsim.backends import availability
from vmmsim.cpu import CpuState, FpuState, Segment, modes
from vmmsim.cpu.cpuid import TABLE, cpuid
from vmmsim.cpu.validate import validate
from vmmsim.errors import BackendUnavailable, NotSupported, UsageError
from vmmsim.exits import (
    Access,
    Cancelled,
    Exit,
    FetchUnmapped,
    GuestExit,
    Halt,
    MmioRead,
    MmioWrite,
    PortRead,
    PortWrite,
    Refused,
    Shutdown,
)
from vmmsim.memory import GuestMemory

if sys.platform != "linux":
    pytest.skip("KVM is a part of Linux", allow_module_level=True)

from vmmsim.backends import kvm, kvm_kick, kvm_state
from vmmsim.backends.base import VmOptions
from vmmsim.testing.slow import time_limit

pvm = pytest.mark.skipif(kvm.provenance() != "kvm/pvm", reason="only kvm_pvm lacks this")

CODE = 0x8000
HOLE = 0x5000000


class Bench:
    """A VM with 64 MiB and one vCPU."""

    def __init__(self, backend: kvm.KvmBackend, watchdog: float | None = 5.0) -> None:
        self.memory = GuestMemory()
        self.memory.add(0, 64 << 20)
        self.vm = backend.create_vm(VmOptions(watchdog_seconds=watchdog))
        self.memory.attach(self.vm, self._settle)
        self.vcpu = self.vm.create_vcpu()

    def _settle(self) -> None:
        self.vcpu.settle()

    def start(self, mode: str, code: str, **registers: int) -> None:
        """Put `code` (hex) and a HLT where the mode's preset starts."""
        setup = modes.real(0, CODE) if mode == "real" else modes.MODES[mode](CODE)
        for gpa, data in setup.writes:
            self.memory.write(gpa, data)
        for name, value in registers.items():
            setattr(setup.state, name, value)
        self.vcpu.set_state(setup.state)
        self.memory.write(setup.state.linear_rip, bytes.fromhex(code) + b"\xf4")

    def close(self) -> None:
        self.vm.close()
        self.memory.close()


@pytest.fixture(scope="module")
def backend() -> Iterator[kvm.KvmBackend]:
    opened = kvm.KvmBackend()
    yield opened
    opened.close()


@pytest.fixture
def bench(backend: kvm.KvmBackend) -> Iterator[Bench]:
    made = Bench(backend)
    yield made
    made.close()


class Recorder:
    """A handler that notes each access and answers reads with its number, cut to the size."""

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []
        self.then = lambda: None

    def _note(self, *access: object) -> int:
        self.log.append(access)
        self.then()
        return len(self.log)

    def port_read(self, port: int, size: int, /) -> int:
        return self._note("in", port, size) & (1 << 8 * size) - 1

    def port_write(self, port: int, size: int, value: int, /) -> None:
        self._note("out", port, size, value)

    def mmio_read(self, gpa: int, size: int, /) -> int:
        return self._note("load", gpa, size) & (1 << 8 * size) - 1

    def mmio_write(self, gpa: int, size: int, value: int, /) -> None:
        self._note("store", gpa, size, value)


# -- whether it is usable


@kvm_host
def test_a_missing_device_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VMMSIM_KVM_DEVICE", str(tmp_path / "kvm"))
    found = availability("kvm")
    assert not found.usable
    assert "is missing" in found.reason
    assert found.fix


@kvm_host
def test_a_device_that_is_no_kvm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMSIM_KVM_DEVICE", "/dev/null")
    assert availability("kvm").reason == "/dev/null is not a KVM device"
    with pytest.raises(BackendUnavailable) as caught:
        kvm.KvmBackend()
    assert caught.value.exit_code == 126


@kvm_host
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "not permitted"),
        (errno.EPERM, "not permitted"),
        (errno.EBUSY, "busy"),
        (errno.ENODEV, "missing"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_why_it_does_not_open_is_told(monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    """root may open anything, so the refusal is played."""

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(kvm.os, "open", refuse)
    found = availability("kvm")
    assert not found.usable
    assert words in found.reason
    assert found.fix


@kvm_host
def test_a_busy_cpu_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """KVM_CREATE_VM is EBUSY while another hypervisor holds VMX."""
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setenv("VMMSIM_KVM_DEVICE", str(device))

    def ioctl(_fd: int, request: int, _argument: int) -> int:
        if request == kvm.abi.CREATE_VM:
            raise OSError(errno.EBUSY, "busy")
        return 12

    monkeypatch.setattr(kvm.fcntl, "ioctl", ioctl)
    assert "busy" in availability("kvm").reason


@pytest.mark.kvm
def test_a_signal_while_a_vm_is_made_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = kvm.KvmBackend()
    real = kvm.fcntl.ioctl
    signals = [1, 2]

    def ioctl(fd: int, request: int, *rest: object) -> object:
        if request == kvm.abi.CREATE_VM and signals:
            signals.pop()
            raise InterruptedError(errno.EINTR, "interrupted")
        return real(fd, request, *rest)

    monkeypatch.setattr(kvm.fcntl, "ioctl", ioctl)
    backend.create_vm().close()
    backend.close()
    assert not signals


@kvm_host
def test_another_api_version_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setenv("VMMSIM_KVM_DEVICE", str(tmp_path / "kvm"))
    monkeypatch.setattr(kvm.fcntl, "ioctl", lambda *_: 11)
    assert "version 11" in availability("kvm").reason


def test_another_architecture_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm.platform, "machine", lambda: "aarch64")
    assert "aarch64" in availability("kvm").reason


# -- converters, without a CPU

_u64 = st.integers(0, 2**64 - 1)
_fpu = st.builds(
    FpuState,
    fcw=st.integers(0, 0xFFFF),
    fsw=st.integers(0, 0xFFFF),
    ftw=st.integers(0, 0xFF),
    fop=st.integers(0, 0x7FF),
    fip=_u64,
    fdp=_u64,
    mxcsr=st.integers(0, 0xFFFF),
    st=st.lists(st.integers(0, 2**80 - 1), min_size=8, max_size=8),
    xmm=st.lists(st.integers(0, 2**128 - 1), min_size=16, max_size=16),
    ymmh=st.lists(st.integers(0, 2**128 - 1), min_size=16, max_size=16),
)


@given(_fpu)
def test_the_xsave_image_is_a_round_trip(fpu: FpuState) -> None:
    assert kvm_state.fpu_from(kvm_state.fpu_to(fpu, 576), 576) == fpu


def test_components_left_out_of_xstate_bv_are_in_their_reset_state() -> None:
    image = kvm_state.fpu_to(FpuState(fcw=0x40, mxcsr=0, xmm=[7] * 16), 0)
    image[512:520] = bytes(8)
    assert kvm_state.fpu_from(image, 0) == FpuState()


def test_the_legacy_area_is_fxsaves() -> None:
    """SDM vol. 1, table 10-2: FCW at 0, MXCSR at 24, ST0 at 32, XMM0 at 160."""
    image = kvm_state.fpu_to(FpuState(fcw=0x37F, mxcsr=0x1F80, st=[5] * 8, xmm=[9] * 16), 0)
    assert (image[0:2], image[24:28], image[32], image[160]) == (b"\x7f\x03", b"\x80\x1f\0\0", 5, 9)


# -- state on the vCPU


@pytest.mark.kvm
def test_a_new_vcpu_is_as_after_reset(bench: Bench) -> None:
    assert bench.vcpu.state().diff(CpuState()) == []


@pytest.mark.kvm
@pytest.mark.parametrize("mode", ["real", "p16", "p32", "l64", "l64u"])
def test_state_is_a_round_trip(bench: Bench, mode: str) -> None:
    registers = st.fixed_dictionaries(dict.fromkeys(("rax", "rsp", "r8", "r15", "cr2"), _u64))
    drs = st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4)

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(registers, _fpu, drs, st.integers(0, 15))
    def check(values: dict[str, int], fpu: FpuState, dr: list[int], cr8: int) -> None:
        setup = modes.real(0, CODE) if mode == "real" else modes.MODES[mode](CODE)
        state = setup.state
        for name, value in values.items():
            setattr(state, name, value)
        # The CPU keeps bit 6 of FCW set, its upper bits clear, and derives FSW's B and ES.
        fpu.fcw, fpu.fsw, fpu.ymmh = fpu.fcw & 0x1F3F | 0x40, fpu.fsw & 0x7F00, [0] * 16
        state.fpu, state.dr, state.cr8 = fpu, dr, cr8
        bench.vcpu.set_state(state)
        held = bench.vcpu.state()
        held.fpu.fip, held.fpu.fdp, held.fpu.fop = fpu.fip, fpu.fdp, fpu.fop
        assert held.diff(state) == []

    check()


@pytest.mark.kvm
def test_avx_state_is_kept_where_it_is_promised(bench: Bench, backend: kvm.KvmBackend) -> None:
    if not backend.capabilities.xcr0 & 4:
        pytest.skip("this host's KVM keeps no AVX state")
    state = CpuState(xcr0=7)
    state.fpu.ymmh = list(range(1, 17))
    bench.vcpu.set_state(state)
    assert bench.vcpu.state().diff(state) == []


@pytest.mark.kvm
@pvm
def test_paging_without_long_mode_is_not_supported_and_changes_nothing(bench: Bench) -> None:
    bench.start("p32", "90", rbx=77)
    before = bench.vcpu.state()
    wanted = before.copy()
    wanted.cr0 |= 1 << 31
    wanted.rbx = 78
    with pytest.raises(NotSupported, match=r"CR0\.PG"):
        bench.vcpu.set_state(wanted)
    assert bench.vcpu.state().diff(before) == []
    assert bench.vcpu.run() == Halt()


@pytest.mark.kvm
@pvm
def test_virtual_8086_is_not_supported_and_changes_nothing(bench: Bench) -> None:
    bench.start("p32", "90")
    registers = bench.vcpu.registers()
    registers.rflags |= 1 << 17
    with pytest.raises(NotSupported, match="virtual-8086"):
        bench.vcpu.set_registers(registers)
    assert bench.vcpu.run() == Halt()


@pytest.mark.kvm
def test_an_msr_that_kvm_lacks_is_not_supported(bench: Bench) -> None:
    with pytest.raises(NotSupported, match="0x12345"):
        bench.vcpu.read_msr(0x12345)
    bench.vcpu.write_msr(0x174, 0x10)
    assert bench.vcpu.read_msr(0x174) == 0x10


# -- pending I/O


@pytest.mark.kvm
def test_registers_after_an_answered_in_are_after_it(bench: Bench) -> None:
    bench.start("p32", "e410", rax=0)
    exit = bench.vcpu.run()
    assert isinstance(exit, PortRead)
    assert bench.vcpu.registers().rip == CODE
    exit.reply(0x42)
    registers = bench.vcpu.registers()
    assert (registers.rip, registers.rax) == (CODE + 2, 0x42)


@pytest.mark.kvm
def test_registers_set_after_an_in_are_not_overwritten_by_it(bench: Bench) -> None:
    """KVM completes an IN at the next KVM_RUN, on top of what was set meanwhile."""
    bench.start("p32", "e410 90 90", rax=0)
    exit = bench.vcpu.run()
    assert isinstance(exit, PortRead)
    exit.reply(0x42)
    registers = bench.vcpu.registers()
    registers.rip, registers.rax = CODE + 3, 0x99
    bench.vcpu.set_registers(registers)
    assert bench.vcpu.run() == Halt()
    registers = bench.vcpu.registers()
    assert (registers.rip, registers.rax) == (CODE + 5, 0x99)


@pytest.mark.kvm
def test_an_unanswered_read_holds_the_vcpu(bench: Bench) -> None:
    bench.start("p32", "e410")
    bench.vcpu.run()
    assert bench.vcpu.state().rip == CODE
    with pytest.raises(UsageError, match="in the middle"):
        bench.vcpu.set_registers(bench.vcpu.registers())
    with pytest.raises(UsageError, match="not answered"):
        bench.vcpu.run()


@pytest.mark.kvm
@pytest.mark.parametrize("look", [False, True], ids=["unseen", "looked-at"])
def test_a_read_modify_write_over_a_page_is_four_exits(bench: Bench, look: bool) -> None:
    """INC QWORD [HOLE + 0xffc]: that state is looked at between them must not show."""
    bench.start("l64", "48ff0425fc0f0005")
    exits: list[Exit] = []
    while not exits or isinstance(exits[-1], Access):
        exits.append(bench.vcpu.run())
        last = exits[-1]
        if isinstance(last, MmioRead):
            last.reply(0xFFFFFFFF if len(exits) == 1 else 0)
        if look:
            bench.vcpu.state()
    kinds = [(type(e), e.address, e.size, e.value) for e in exits if isinstance(e, MmioRead | MmioWrite)]
    assert kinds == [
        (MmioRead, HOLE + 0xFFC, 4, 0xFFFFFFFF),
        (MmioRead, HOLE + 0x1000, 4, 0),
        (MmioWrite, HOLE + 0xFFC, 4, 0),
        (MmioWrite, HOLE + 0x1000, 4, 1),
    ]
    assert exits[-1] == Halt()


@pytest.mark.kvm
def test_rep_ins_is_an_exit_for_each_element(bench: Bench) -> None:
    bench.start("p32", "f36c", rcx=3, rdx=0x20, rdi=0x20000)
    for value in b"abc":
        exit = bench.vcpu.run()
        assert isinstance(exit, PortRead)
        assert (exit.address, exit.size) == (0x20, 1)
        exit.reply(value)
    assert bench.vcpu.run() == Halt()
    assert bench.memory[0x20000:0x20004] == b"abc\0"


@pytest.mark.kvm
def test_rep_ins_into_mmio_stores_element_by_element(bench: Bench) -> None:
    bench.start("p32", "f36d", rcx=3, rdx=0x20, rdi=HOLE)
    recorder = Recorder()
    assert bench.vcpu.run_inline(recorder) == Halt()
    stores = [entry for entry in recorder.log if entry[0] == "store"]
    assert stores == [("store", HOLE + 4 * i, 4, i + 1) for i in range(3)]


@pytest.mark.kvm
def test_rep_outs_is_an_exit_for_each_element(bench: Bench) -> None:
    bench.memory.write(0x20000, b"abcd")
    bench.start("p32", "f36f", rcx=1, rdx=0x20, rsi=0x20000)
    exit = bench.vcpu.run()
    assert exit == PortWrite(0x20, 4, int.from_bytes(b"abcd", "little"))


@pytest.mark.kvm
def test_stop_here_ends_behind_the_whole_instruction(bench: Bench) -> None:
    bench.start("l64", "48ff0425fc0f0005 e610")
    recorder = Recorder()
    recorder.then = lambda: bench.vcpu.stop_here(GuestExit(3)) if len(recorder.log) == 1 else None
    assert bench.vcpu.run_inline(recorder) == GuestExit(3)
    assert [entry[0] for entry in recorder.log] == ["load", "load", "store", "store"]
    assert bench.vcpu.registers().rip == CODE + 8
    assert bench.vcpu.run_inline(recorder) == Halt()


@pytest.mark.kvm
def test_a_handler_that_raises_leaves_the_vcpu_behind_the_instruction(bench: Bench) -> None:
    bench.start("p32", "e410 e611", rax=0)

    def fail() -> None:
        raise RuntimeError("broken device")

    recorder = Recorder()
    recorder.then = fail
    with pytest.raises(RuntimeError, match="broken device"):
        bench.vcpu.run_inline(recorder)
    registers = bench.vcpu.registers()
    assert (registers.rip, registers.rax) == (CODE + 2, 0xFF)
    with pytest.raises(RuntimeError, match="broken device"):
        bench.vcpu.run_inline(recorder)
    assert bench.vcpu.registers().rip == CODE + 4
    assert recorder.log == [("in", 0x10, 1), ("out", 0x11, 1, 0xFF)]


@pytest.mark.kvm
def test_a_handler_may_look_at_the_registers(bench: Bench) -> None:
    bench.start("p32", "e410")
    seen: list[int] = []
    recorder = Recorder()
    recorder.then = lambda: seen.append(bench.vcpu.registers().rip)
    assert bench.vcpu.run_inline(recorder) == Halt()
    assert seen == [CODE]
    assert recorder.log == [("in", 0x10, 1)]


# -- what the host refuses


@pytest.mark.kvm
@pvm
def test_an_instruction_that_kvm_cannot_emulate_is_refused_with_its_bytes(bench: Bench) -> None:
    bench.start("p32", "cf")
    exit = bench.vcpu.run()
    assert isinstance(exit, Refused)
    assert exit.insn.startswith(b"\xcf\xf4")
    assert "iretd" in exit.reason
    assert bench.vcpu.registers().rip == CODE


@pytest.mark.kvm
def test_a_jump_into_nothing_is_an_unmapped_fetch(bench: Bench) -> None:
    bench.start("p32", "b800000005 ffe0")  # mov eax, HOLE; jmp eax
    assert bench.vcpu.run() == FetchUnmapped(HOLE)


@pytest.mark.kvm
def test_an_instruction_cut_off_by_the_end_of_memory_is_an_unmapped_fetch(bench: Bench) -> None:
    end = 64 << 20
    bench.start("p32", "90", rip=end - 2)
    bench.memory.write(end - 2, b"\xb8\x00")  # the first two bytes of MOV EAX, imm32
    assert bench.vcpu.run() == FetchUnmapped(end)


@pytest.mark.kvm
def test_vmcall_is_an_exception_and_is_not_patched(bench: Bench) -> None:
    """Without DISABLE_QUIRKS2 kvm_pvm writes VMMCALL over it, for ever."""
    bench.start("p32", "0f01c1")
    assert bench.vcpu.run() == Shutdown()  # #UD, and there is no IDT
    assert bench.memory.read(CODE, 3) == b"\x0f\x01\xc1"


@pytest.mark.kvm
def test_doctor_names_what_is_refused(backend: kvm.KvmBackend) -> None:
    lines = dict(backend.doctor())
    assert lines["kvm executes on"] == backend.provenance
    for word in backend.capabilities.refuses:
        assert word in lines["kvm cannot"]
    if backend.provenance == "kvm/pvm":
        assert {"32-bit paging", "PAE paging", "IRET in protected mode"} <= set(backend.capabilities.refuses)


# -- the watchdog


@pytest.mark.kvm
@pvm
@pytest.mark.timeout(20)
def test_a_livelock_of_kvm_is_refused(backend: kvm.KvmBackend) -> None:
    bench = Bench(backend, watchdog=0.2)
    bench.start("real", "cd80")
    exit = bench.vcpu.run()
    assert isinstance(exit, Refused)
    assert exit.insn[:2] == b"\xcd\x80"
    bench.start("real", "90")
    assert bench.vcpu.run() == Halt()
    bench.close()


@pytest.mark.kvm
@pytest.mark.timeout(20)
def test_a_guest_that_spins_is_no_livelock(backend: kvm.KvmBackend) -> None:
    bench = Bench(backend, watchdog=0.1)
    bench.start("real", "ebfe")
    timer = threading.Timer(0.6, bench.vcpu.cancel)
    timer.start()
    assert bench.vcpu.run() == Cancelled()
    timer.join()
    bench.close()


@pytest.mark.parametrize(
    ("code", "real", "patched", "known"),
    [
        ("cd80", True, False, True),
        ("2e67cdff", True, False, True),
        ("cd7f", True, False, False),
        ("cd80", False, False, False),
        ("0f01c1", False, True, True),
        ("0f01d9", False, True, True),
        ("0f01c1", False, False, False),
        ("480fae0425", False, False, True),
        ("0fae08", False, False, False),
        ("ebfe", True, True, False),
        ("", True, True, False),
        ("6666", True, True, False),
    ],
)
def test_which_instructions_are_livelocks(code: str, real: bool, patched: bool, known: bool) -> None:
    reason = kvm_kick.livelock(
        bytes.fromhex(code), real_mode=real, long_mode=not real, hypercalls_patched=patched
    )
    assert bool(reason) is known


# -- stopping


@pytest.mark.kvm
@pytest.mark.timeout(30)
def test_cancel_from_a_thread_fifty_times(bench: Bench) -> None:
    bench.start("p32", "ebfe")
    for _ in range(50):
        timer = threading.Timer(0.002, bench.vcpu.cancel)
        timer.start()
        assert bench.vcpu.run() == Cancelled()
        timer.join()
        bench.vcpu.uncancel()
    assert bench.vcpu.registers().rip == CODE


@pytest.mark.kvm
@pytest.mark.timeout(30)
def test_cancel_of_a_vcpu_in_another_thread(backend: kvm.KvmBackend) -> None:
    """The kick signal works though Python installs handlers in the main thread only."""
    exits: list[Exit] = []

    def body() -> None:
        bench = Bench(backend)
        bench.start("p32", "ebfe")
        made.append(bench.vcpu)
        ready.set()
        exits.append(bench.vcpu.run())
        bench.close()

    made: list[object] = []
    ready = threading.Event()
    thread = threading.Thread(target=body)
    thread.start()
    ready.wait()
    time.sleep(0.05)
    made[0].cancel()  # type: ignore[attr-defined]
    thread.join(timeout=time_limit(10))
    assert exits == [Cancelled()]


@pytest.mark.kvm
def test_a_cancel_waits_for_the_next_run_and_only_that(bench: Bench) -> None:
    bench.start("p32", "90")
    bench.vcpu.cancel()
    assert bench.vcpu.run() == Cancelled()
    assert bench.vcpu.registers().rip == CODE
    bench.vcpu.cancel()
    bench.vcpu.uncancel()
    assert bench.vcpu.run() == Halt()


@pytest.mark.kvm
def test_a_cancel_does_not_split_an_instruction(bench: Bench) -> None:
    bench.start("l64", "48ff0425fc0f0005")
    exit = bench.vcpu.run()
    bench.vcpu.cancel()
    for _ in range(2):
        assert isinstance(exit, MmioRead)
        exit.reply(0)
        exit = bench.vcpu.run()
    assert isinstance(exit, MmioWrite)
    assert isinstance(bench.vcpu.run(), MmioWrite)
    assert bench.vcpu.run() == Cancelled()
    assert bench.vcpu.run() == Halt()


@pytest.mark.kvm
@pytest.mark.timeout(30)
def test_a_thousand_cancels_lose_no_access_and_make_none_twice(bench: Bench) -> None:
    """IN AL; INC DWORD over a page end; OUT EAX of the loop count; between signals all the time."""
    count = 2000
    bench.start("p32", "e410 ff05fe0f0005 89c8 e711 49 75f1", rcx=count)
    recorder = Recorder()
    before = signal.signal(signal.SIGALRM, lambda *_: bench.vcpu.cancel())
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    cancelled = 0
    try:
        while bench.vcpu.run_inline(recorder) != Halt():
            cancelled += 1
            bench.vcpu.state()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    kinds = [entry[0] for entry in recorder.log]
    assert kinds == ["in", "load", "load", "store", "store", "out"] * count
    assert [entry[3] for entry in recorder.log if entry[0] == "out"] == list(range(count, 0, -1))
    assert cancelled > 10


@pytest.mark.kvm
def test_a_vcpu_runs_in_one_thread_at_a_time(bench: Bench) -> None:
    bench.start("p32", "e410")
    recorder = Recorder()
    caught: list[str] = []

    def run_again() -> None:
        for call in (bench.vcpu.run, lambda: bench.vcpu.set_state(CpuState()), bench.vm.close):
            with pytest.raises(UsageError) as error:
                call()
            caught.append(error.value.message)

    recorder.then = run_again
    assert bench.vcpu.run_inline(recorder) == Halt()
    assert caught[0] == "the vCPU is running"
    assert "in the middle" in caught[1]
    assert caught[2] == "a vCPU of this VM is running"


@pytest.mark.kvm
@pytest.mark.timeout(20)
def test_ctrl_c_leaves_the_vcpu_intact(bench: Bench) -> None:
    bench.start("p32", "40 ebfd", rax=0)  # inc eax; jmp back
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident or 0
    timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            bench.vcpu.run()
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    counted = bench.vcpu.registers().rax
    assert counted > 0
    threading.Timer(0.02, bench.vcpu.cancel).start()
    assert bench.vcpu.run() == Cancelled()
    assert bench.vcpu.registers().rax > counted


@pytest.mark.kvm
@pytest.mark.timeout(20)
def test_other_signals_do_not_end_a_run(bench: Bench) -> None:
    bench.start("p32", "ebfe")
    count = 0

    def note(*_: object) -> None:
        nonlocal count
        count += 1
        if count == 5:
            bench.vcpu.cancel()

    before = signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        assert bench.vcpu.run() == Cancelled()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert count == 5


# -- memory and resources


@pytest.mark.kvm
def test_memory_taken_away_is_mmio_and_its_slot_is_used_again(bench: Bench) -> None:
    for value in (1, 2, 3):
        region = bench.memory.add(0x6000000, 0x1000)
        bench.memory.write_int(0x6000000, 4, value)
        bench.start("p32", "a100000006", rax=0)
        assert bench.vcpu.run() == Halt()
        assert bench.vcpu.registers().rax == value
        bench.memory.remove(region)
        region.buffer.close()
        bench.start("p32", "a100000006")
        exit = bench.vcpu.run()
        assert isinstance(exit, MmioRead)
        exit.reply(0)
        assert bench.vcpu.run() == Halt()


@pytest.mark.kvm
def test_more_vcpus_than_kvm_has_is_a_usage_error(backend: kvm.KvmBackend) -> None:
    vm = backend.create_vm()
    vm._max_vcpus = 2
    vm.create_vcpu()
    vm.create_vcpu()
    with pytest.raises(UsageError, match="at most 2"):
        vm.create_vcpu()
    vm.close()


@pytest.mark.kvm
def test_a_closed_machine_says_so_and_leaks_nothing(backend: kvm.KvmBackend) -> None:
    Bench(backend).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        bench = Bench(backend)
        bench.start("p32", "90")
        bench.vcpu.run()
        bench.close()
        bench.vm.close()
        with pytest.raises(UsageError, match="closed"):
            bench.vcpu.run()
        with pytest.raises(UsageError, match="closed"):
            bench.vm.create_vcpu()
        bench.vcpu.cancel()
    assert len(os.listdir("/proc/self/fd")) == before


# -- CPUID


@pytest.mark.kvm
@pytest.mark.parametrize("leaf", [0, 0x40000000, 0x80000000, 0x80000002, 0x80000003, 0x80000004])
def test_the_guest_sees_the_table(bench: Bench, leaf: int) -> None:
    bench.start("p32", "0fa2", rax=leaf, rcx=0)
    assert bench.vcpu.run() == Halt()
    r = bench.vcpu.registers()
    assert (r.rax, r.rbx, r.rcx, r.rdx) == TABLE[leaf, 0]


def test_a_leaf_beyond_the_last_answers_as_the_last_basic_one() -> None:
    assert cpuid(0x1234) == cpuid(1) == TABLE[1, 0]
    assert cpuid(0x80000005) == (0, 0, 0, 0)


# -- which states there are


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rax", 1 << 64),
        ("rflags", 0),
        ("rflags", 2 | 1 << 3),
        ("rip", 1 << 32),
        ("cr0", 0x80000010),
        ("cr0", 0x10 | 1 << 29),
        ("cr0", 0),
        ("cr4", 1 << 15),
        ("cr8", 16),
        ("efer", 1 << 10),
        ("xcr0", 0),
        ("xcr0", 5),
        ("dr", [0, 0, 0]),
        ("dr7", 1 << 32),
        ("msrs", {0x10: 0}),
        ("msrs", {0x277: 2}),
        ("cr3", 1 << 40),
    ],
)
def test_a_state_that_no_cpu_can_be_in_is_a_usage_error(field: str, value: object) -> None:
    state = CpuState()
    setattr(state, field, value)
    with pytest.raises(UsageError, match=field.rstrip("s")):
        validate(state)


def test_the_presets_are_states_that_exist() -> None:
    for mode in ("p16", "p32", "l64", "l64u"):
        validate(modes.MODES[mode](CODE).state)
    validate(CpuState())


@pytest.mark.parametrize(
    ("field", "segment"),
    [
        ("cs.limit", Segment(0, 0, 0xFFFFF000, 0x809B)),
        ("ds.limit", Segment(0, 0, 0xFFFFFFFF, 0x93)),
        ("ss.attr", Segment(0, 0, 0xFFFF, 0x193)),
        ("es.selector", Segment(0x10000, 0, 0xFFFF, 0x93)),
        ("fs.base", Segment(0, 1 << 32, 0xFFFF, 0x93)),
    ],
)
def test_a_segment_that_no_cpu_can_hold_is_a_usage_error(field: str, segment: Segment) -> None:
    """SDM vol. 3, 24.3.1.2: G says what the limit may be; bases have 32 bits outside long mode."""
    state = CpuState()
    setattr(state, field.partition(".")[0], segment)
    with pytest.raises(UsageError, match=field):
        validate(state)


def test_long_mode_needs_a_canonical_rip_and_pae() -> None:
    state = modes.MODES["l64"](CODE).state
    state.rip = 1 << 47
    with pytest.raises(UsageError, match="rip"):
        validate(state)
    state.rip = 0xFFFF800000000000
    validate(state)
    state.cr4 &= ~0x20
    with pytest.raises(UsageError, match="PAE"):
        validate(state)


# -- cost


def test_finding_the_backend_loads_no_probe() -> None:
    """Opening and running must not pay for what only doctor asks."""
    code = (
        "import sys; from vmmsim.backends import availability; availability('kvm');"
        "print(sorted(m for m in sys.modules if m.startswith('vmmsim.backends.kvm')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=time_limit(60)
    )
    assert done.stdout.strip() == "['vmmsim.backends.kvm', 'vmmsim.backends.kvm_abi']"
