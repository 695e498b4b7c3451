"""What this host's KVM cannot do, found out by running tiny guests.

Only who asks pays: `doctor` and `Capabilities.refuses`. The answers are kept for the life
of the process, by device. A guest that hangs is cut off after `_PATIENCE` seconds and
counts as refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from ..cpu import modes
from ..cpu.descriptors import ATTR_CODE16, ATTR_DATA16
from ..cpu.msrs import LSTAR, STAR
from ..cpu.state import CpuState, Segment, Table
from ..errors import HostError
from ..exits import Exit, Halt, Refused
from ..memory import GuestMemory
from . import host_cpu
from .base import VmOptions

if TYPE_CHECKING:
    from .kvm import KvmBackend, KvmVm
    from .kvm_vcpu import KvmVcpu

__all__ = ["refusals", "report", "xcr0"]

_PATIENCE = 1.0
_WATCHDOG = 0.1
_MEMORY = 16 << 20
_CODE = 0x10000
_HANDLER = 0x11000
_IDT = 0x12000
_PE, _PG, _PAE, _SCE, _VM = 1, 1 << 31, 1 << 5, 1, 1 << 17
#: A 64-bit interrupt gate that ring 3 may use: present, DPL 3, type 14 (SDM vol. 3, 6.14.1).
_GATE64 = 0xEE00


class _Bench:
    """A VM with one vCPU for all probes."""

    def __init__(self, backend: KvmBackend) -> None:
        self.memory = GuestMemory()
        self.memory.add(0, _MEMORY)
        self.vm: KvmVm = backend.create_vm(VmOptions(watchdog_seconds=_WATCHDOG))
        try:
            self.memory.attach(self.vm, lambda: None)
            self.vcpu: KvmVcpu = self.vm.create_vcpu()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.vm.close()
        self.memory.close()

    def start(self, mode: str) -> CpuState:
        """The preset's state, with its tables in memory and the code to come at `_CODE`."""
        setup = modes.MODES[mode](_CODE) if mode != "real" else modes.real(0, 0x1000)
        for gpa, data in setup.writes:
            self.memory.write(gpa, data)
        return setup.state

    def run(self, state: CpuState, code: bytes) -> Exit:
        """The exit of `code` from `state` on; it should end with HLT."""
        self.memory.write(state.rip, code)
        self.vcpu.set_state(state)
        timer = threading.Timer(_PATIENCE, self.vcpu.cancel)
        timer.daemon = True
        timer.start()
        try:
            return self.vcpu.run()
        finally:
            timer.cancel()
            self.vcpu.uncancel()

    def holds(self, state: CpuState) -> bool:
        """Whether KVM takes `state`."""
        try:
            self.vcpu.set_state(state)
        except HostError:
            return False
        return True


_Probe = Callable[[_Bench], bool]


def _ring0(mode: str, code: str) -> _Probe:
    """Works unless `code` (hex), then HLT, ends as Refused: an exception is an answer too."""

    def probe(bench: _Bench) -> bool:
        return not isinstance(bench.run(bench.start(mode), bytes.fromhex(code) + b"\xf4"), Refused)

    return probe


def _paging(cr4: int) -> _Probe:
    def probe(bench: _Bench) -> bool:
        state = bench.start("p32")
        state.cr0 |= _PG
        state.cr4 |= cr4
        state.cr3 = 0x20000
        return bench.holds(state)

    return probe


def _v86(bench: _Bench) -> bool:
    state = bench.start("p32")
    state.rflags |= _VM
    data = Segment(0, 0, 0xFFFF, ATTR_DATA16 | 0x60)
    state.cs = Segment(0, 0, 0xFFFF, ATTR_CODE16 & ~0xF | 3 | 0x60)
    state.ds = state.es = state.fs = state.gs = state.ss = data
    return bench.holds(state)


def _real_int80(bench: _Bench) -> bool:
    state = bench.start("real")
    bench.memory.write(0x80 * 4, b"\x00\x20\x00\x00")
    bench.memory.write(0x2000, b"\xf4")
    return isinstance(bench.run(state, b"\xcd\x80"), Halt)


def _syscall(bench: _Bench) -> bool:
    """SYSCALL must arrive at CPL 0: HLT is #GP elsewhere, and there is no IDT."""
    state = bench.start("l64u")
    state.efer |= _SCE
    state.msrs[STAR] = modes.CODE64 << 32
    state.msrs[LSTAR] = _HANDLER
    bench.memory.write(_HANDLER, b"\xf4")
    return isinstance(bench.run(state, b"\x0f\x05"), Halt)


def _user_int(bench: _Bench) -> bool:
    state = bench.start("l64u")
    gate = _HANDLER & 0xFFFF | modes.CODE64 << 16 | _GATE64 << 32 | (_HANDLER >> 16) << 48
    bench.memory.write(_IDT + 16 * 0x30, gate.to_bytes(16, "little"))
    bench.memory.write(_HANDLER, b"\xf4")
    state.idt = Table(_IDT, 0xFFF)
    return isinstance(bench.run(state, b"\xcd\x30"), Halt)


_IRET = "IRET in protected mode"
#: What is asked, in words, and how.
_PROBES: dict[str, _Probe] = {
    "32-bit paging": _paging(0),
    "PAE paging": _paging(_PAE),
    "virtual-8086 mode": _v86,
    # PUSHFD; PUSH CS; CALL to push EIP; ADD [ESP], 5 to come back after the IRETD
    _IRET: _ring0("p32", "9c 0e e800000000 83042405 cf"),
    "INT n in protected mode": _ring0("p32", "cd 30"),
    "INT 80h to FFh in real mode": _real_int80,
    "LAR, LSL, VERR and VERW": _ring0("p32", "0f02c1"),
    "BOUND": _ring0("p32", "6204 24"),
    "x87 at ring 0": _ring0("l64", "d9e8"),
    "SSE at ring 0": _ring0("l64", "0f57c0"),
    "x87 and SSE outside long mode": _ring0("p32", "d9e8"),
    "SYSCALL from ring 3": _syscall,
    "INT n from 64-bit ring 3": _user_int,
}


class _Findings(msgspec.Struct, frozen=True):
    refuses: tuple[str, ...]
    xcr0: int


_found: dict[str, _Findings] = {}
_lock = threading.Lock()


def _findings(backend: KvmBackend) -> _Findings:
    from .kvm import device_path

    with _lock:
        path = device_path()
        if path not in _found:
            bench = _Bench(backend)
            try:
                refuses = tuple(word for word, works in _PROBES.items() if not works(bench))
                _found[path] = _Findings(refuses, _largest_xcr0(bench))
            finally:
                bench.close()
        return _found[path]


def _largest_xcr0(bench: _Bench) -> int:
    for value in (7, 3):
        state = CpuState(xcr0=value)
        if value & 4:
            state.fpu.ymmh[0] = 1
        if bench.holds(state):
            return value
    # XCR0 is the guest's switch: x87 and SSE state is kept without it.
    return 3


def refusals(backend: KvmBackend) -> tuple[str, ...]:
    """What was probed and found missing, in words."""
    return _findings(backend).refuses


def xcr0(backend: KvmBackend) -> int:
    """The state components that KVM keeps for a guest: 3, or 7 with AVX."""
    return _findings(backend).xcr0


def report(backend: KvmBackend) -> list[tuple[str, str]]:
    """The lines of `vmmsim doctor`."""
    from .kvm import device_path

    findings = _findings(backend)
    names = [name for bit, name in ((1, "x87"), (2, "SSE"), (4, "AVX")) if findings.xcr0 & bit]
    works = [word for word in _PROBES if word not in findings.refuses]
    return [
        ("kvm device", device_path()),
        ("kvm executes on", backend.provenance),
        ("kvm CPU", _cpu()),
        ("kvm physical address", f"{backend.gpa_bits} bits"),
        ("kvm vCPUs", f"up to {backend.max_vcpus}"),
        ("kvm keeps", ", ".join(names)),
        ("kvm cannot", ", ".join(findings.refuses) or "nothing of what was probed"),
        *([("kvm can", ", ".join(works))] if works else []),
        ("kvm interrupts", _interrupts(backend, findings.refuses)),
        ("kvm MSRs", "can be the machine's" if backend.gives_msrs else "are all KVM's: Linux 5.10 has this"),
    ]


def _cpu() -> str:
    """The host's, by which entries of divergences.toml go."""
    family = host_cpu.chip().replace(" ", " family ")
    return f"{family or 'unknown'} ({host_cpu.model_name() or 'the host does not say'})"


def _interrupts(backend: KvmBackend, refuses: tuple[str, ...]) -> str:
    parts = ["injected by vmmsim"]
    if backend.late_windows:
        parts.append("this KVM sees late that one can be taken: exact ones cost single steps while they wait")
    if _IRET in refuses:
        parts.append("a handler in 16- or 32-bit protected mode cannot end: its IRET is refused")
    return "; ".join(parts)
