"""SYSCALL and SYSENTER. Unicorn does not execute them but calls a hook (SDM vol. 2, both).

The hook runs inside the instruction's helper, which adds the instruction's length to RIP
when the hook returns: RIP is left that much short. The ways back (SYSRET, SYSEXIT) are
executed by the engine itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cpu.msrs import FMASK, LSTAR, STAR, SYSENTER_CS, SYSENTER_EIP, SYSENTER_ESP
from .unicorn_trap_cpu import CS, SS

if TYPE_CHECKING:
    from .unicorn_traps import TrapUnit

__all__ = ["Calls"]

_UD, _GP = 6, 13
_IF, _RF, _VM = 1 << 9, 1 << 16, 1 << 17
_STATUS, _DIRECTION = 0x8D5, 0x400
_EFER_SCE = 1
_LMA, _CODE64 = 1 << 14, 1 << 15
_FOLLOWS = 3 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 15
_SET64 = 1 << 4 | 1 << 5 | 1 << 15
_ALL = (1 << 64) - 1
#: Limit and attributes of the flat segments that both instructions load, DPL 0, as the CPU has
#: them: no descriptor is read.
_FLAT = 0xFFFFFFFF
_FLAT_CODE64 = _FLAT | 0xA09B00 << 32
_FLAT_DATA = _FLAT | 0xC09300 << 32


class Calls:
    """Works on the words of a `TrapUnit` that has just saved them."""

    def __init__(self, unit: TrapUnit) -> None:
        self._unit = unit
        cpu = self._cpu = unit.cpu
        msr = {index: at >> 3 for index, at in cpu.codec.layout.msr.items()}
        self._star, self._lstar, self._fmask = msr[STAR], msr[LSTAR], msr[FMASK]
        self._sysenter = msr[SYSENTER_CS], msr[SYSENTER_ESP], msr[SYSENTER_EIP]
        self._rcx, self._r11 = cpu.registers + 1, cpu.registers + 11
        self._cs, self._ss = cpu.segments + 3 * CS, cpu.segments + 3 * SS

    def syscall(self) -> str | None:
        cpu, words = self._cpu, self._cpu.words
        hidden, rip = words[cpu.hidden], words[cpu.rip]
        length = self._syscall_length(hidden, rip)
        if not hidden & _CODE64 or not words[cpu.efer] & _EFER_SCE:
            return self._fault(_UD, None, length)
        # RF ends with the instruction before, but the engine may still have it.
        rflags = cpu.rflags() & ~_RF
        words[self._rcx] = rip + length & _ALL
        words[self._r11] = rflags
        rflags &= ~words[self._fmask]
        flags = cpu.flags
        words[flags] = rflags & ~(_STATUS | _DIRECTION) | 2
        words[flags + 2] = rflags & _STATUS
        words[flags + 4] = 0xFFFFFFFF_00000001 if rflags & _DIRECTION else 0x1_00000001
        star = words[self._star] >> 32
        cs, ss = self._cs, self._ss
        words[cs] = star & 0xFFFC
        words[cs + 1] = 0
        words[cs + 2] = _FLAT_CODE64
        words[ss] = (star & 0xFFFF) + 8 & 0xFFFF
        words[ss + 1] = 0
        words[ss + 2] = _FLAT_DATA
        words[cpu.hidden] = hidden & ~_FOLLOWS | _SET64
        words[cpu.rip] = words[self._lstar] - length & _ALL
        cpu.restore()
        return None

    def _syscall_length(self, hidden: int, rip: int) -> int:
        """2, unless the instruction has prefixes, which do nothing but count."""
        if hidden & _CODE64 and rip & 0xFFF < 0xFFF:
            memory, cpu = self._unit.memory, self._cpu
            words = cpu.words
            space = memory.space(words[cpu.cr + 3], words[cpu.cr + 4], words[cpu.efer])
            page = memory.find(space, rip, 0)
            if page is not None:
                at = page[14] + (rip & 0xFFF)
                if page[12][at] == 0x0F:
                    return 2
        code = self._unit.code()
        at = code.find(b"\x0f\x05")
        return at + 2 if at >= 0 else 2

    def sysenter(self) -> str | None:
        cpu, words = self._cpu, self._cpu.words
        cs_msr, esp_msr, eip_msr = self._sysenter
        selector = words[cs_msr] & 0xFFFC
        if not selector:
            return self._fault(_GP, 0, 2)
        words[cpu.flags] &= ~(_IF | _RF | _VM)
        long = words[cpu.hidden] & _LMA
        mask = _ALL if long else _FLAT
        cpu.set_segment(CS, selector, 0, _FLAT, 0xA09B00 if long else 0xC09B00)
        cpu.set_segment(SS, selector + 8 & 0xFFFF, 0, _FLAT, 0xC09300)
        words[cpu.rsp] = words[esp_msr] & mask
        words[cpu.rip] = (words[eip_msr] & mask) - 2 & _ALL
        cpu.settle(0)
        cpu.restore()
        return None

    def _fault(self, vector: int, error: int | None, length: int) -> str | None:
        """Raise an exception in the hook of an instruction of `length` bytes."""
        cpu, words = self._cpu, self._cpu.words
        result = self._unit.deliver_fully(vector, error, "fault", restore=False)
        words[cpu.rip] = words[cpu.rip] - length & _ALL
        cpu.restore()
        return result
