"""Single-stepping a guest to the first boundary where it can be interrupted.

For KVMs that notice an open window late (see kvm_pins): KVM_SET_GUEST_DEBUG makes an exit
behind each instruction. Some boundaries are not left to it. HLT's own exit would give place to
the step's, so there is none at HLT. The delivery of an interrupt pushes the step's TF for the
guest to see, and kvm_pvm makes IRET in long mode without the exit: a breakpoint at the handler,
or at IRET's target, stands in. In 64-bit code at CPL 3, which kvm_pvm runs natively, a step
would be a #DB in the guest; but there KVM looks for an open window whenever it enters that code.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ..cpu.prefixes import LEGACY_PREFIXES
from ..cpu.state import Events
from . import kvm_abi as abi
from .kvm_exits import code_at

if TYPE_CHECKING:
    from .kvm import KvmVm
    from .kvm_fd import VcpuFd

__all__ = ["Stepper"]

_HLT, _IRET = b"\xf4", b"\xcf"
_LMA = 1 << 10
_NMI = 2
#: In the page's registers, u64.
_RSP, _RIP = abi.Run.s.offset // 8 + 6, abi.Run.s.offset // 8 + 16
_STEP = abi.GUESTDBG_ENABLE | abi.GUESTDBG_SINGLESTEP
_BREAK = abi.GUESTDBG_ENABLE | abi.GUESTDBG_USE_HW_BP
#: DR7: breakpoint 0 is on, for execution (SDM vol. 3, 17.2.4).
_ON_EXECUTION = 0x402


def _delivered(events: Events) -> int | None:
    """The vector that KVM delivers before the next instruction."""
    if events.exception is not None:
        return events.exception
    if events.nmi_pending and not events.nmi_masked:
        return _NMI
    return events.interrupt


class Stepper:
    """Turns the steps of one vCPU on and off."""

    def __init__(self, cpu: VcpuFd, vm: KvmVm) -> None:
        self._cpu = cpu
        self._vm = vm
        self._control = 0

    def plainly(self) -> None:
        """On a CPU that steps whatever it is."""
        self._set(_STEP)

    def step(self, events: Events | None) -> bool:
        """Come out of KVM_RUN behind the next instruction, or at the first of the handler if KVM is
        going to deliver one of `events`. Whether that can be had; HLT comes out by itself."""
        sregs = self._cpu.sregs()
        vector = None if events is None else _delivered(events)
        if vector is not None:
            self._set(_BREAK, self._handler(sregs, vector))
            return True
        long = sregs.efer & _LMA
        wide = long and sregs.cs.l
        if wide and sregs.ss.dpl == 3:
            self.stop()
            return False
        rip = self._cpu.u64[_RIP]
        code = self._code(rip if wide else rip + sregs.cs.base & 0xFFFF_FFFF)
        at = next((at for at, byte in enumerate(code) if byte not in LEGACY_PREFIXES), 0)
        rex = code[at] if wide and code[at : at + 1] and code[at] & 0xF0 == 0x40 else 0
        opcode = code[at + bool(rex) : at + bool(rex) + 1]
        if opcode == _HLT:
            self.stop()
        elif long and opcode == _IRET:
            return self._break_behind_iret(8 if rex & 8 else 4)
        else:
            self._set(_STEP)
        return True

    def _break_behind_iret(self, size: int) -> bool:
        """Break at what is on top of the stack (SS has base 0), unless it is user code."""
        frame = self._code(self._cpu.u64[_RSP], 2 * size)
        if len(frame) < 2 * size or frame[size] & 3 == 3:
            self.stop()
            return False
        self._set(_BREAK, int.from_bytes(frame[:size], "little"))
        return True

    def _code(self, linear: int, size: int = 15) -> bytes:
        return code_at(linear, self._cpu, self._vm, size)

    def _handler(self, sregs: abi.Sregs, vector: int) -> int:
        """The linear address of the handler of `vector`, if its code segment begins at 0 where
        there are gates (SDM vol. 3, 6.11 and 6.14; real mode: 20.1.4)."""
        size = 4 if not sregs.cr0 & 1 else 16 if sregs.efer & _LMA else 8
        gate = self._code(sregs.idt.base + size * vector, size).ljust(16, b"\0")
        low, segment, _, middle, high, _ = struct.unpack("<HHHHII", gate)
        return segment * 16 + low if size == 4 else low | middle << 16 | high << 32

    def stop(self) -> None:
        """No more steps."""
        if self._control:
            self._set(0)

    def leave(self) -> None:
        """No more steps, and breakpoints as they are now."""
        self._set(0)

    @property
    def on(self) -> bool:
        """Whether KVM steps now."""
        return bool(self._control)

    def _set(self, control: int, breakpoint: int = 0) -> None:
        if control == self._control == _STEP:
            return
        native = abi.GuestDebug(control=control)
        if control == _BREAK:
            native.arch[0], native.arch[7] = breakpoint, _ON_EXECUTION
        self._cpu.guest_debug(native)
        self._control = control
