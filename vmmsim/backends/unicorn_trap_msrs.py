"""The MSRs that are the CPU's own, by the words of its structure, and what its machine answers.

Checks are those of WRMSR (SDM vol. 2, and vol. 4 for each MSR): what they refuse is #GP(0).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from ..cpu import msrs
from ..cpu.cpuid import cpuid
from ..cpu.validate import is_canonical
from .unicorn_trap_cpu import FS, GS

if TYPE_CHECKING:
    from .unicorn_traps import TrapUnit

__all__ = ["Msrs", "Platform"]

_LOW = 0xFFFFFFFF
_PG = 1 << 31
_TSC, _MISC_ENABLE, _TSC_AUX = 0x10, 0x1A0, 0xC0000103
_LME, _LMA = 1 << 8, 1 << 10
#: SCE, LME, LMA, NXE.
_EFER_DEFINED = 0xD01
#: Fast strings; no branch trace store, no PEBS.
_MISC_ENABLE_VALUE = 0x1801
_PAT_TYPES = frozenset({0, 1, 4, 5, 6, 7})
_ADDRESSES = frozenset({msrs.LSTAR, msrs.CSTAR, msrs.KERNEL_GS_BASE, msrs.SYSENTER_ESP, msrs.SYSENTER_EIP})


class Platform(msgspec.Struct):
    """What the machine around the CPU answers; each has a default that needs nothing.

    `cpuid(leaf, subleaf)` gives EAX, EBX, ECX, EDX. `tsc()` is the counter of 64 bits, `set_tsc`
    sets it. `read_msr(index)` is None, and `write_msr(index, value)` False, for an MSR that the
    platform lacks (or a value it refuses): #GP. `cr8()` and `set_cr8` are the APIC's task
    priority, 0 to 15; without them it is the engine's own.
    """

    cpuid: Callable[[int, int], tuple[int, int, int, int]] = cpuid
    tsc: Callable[[], int] = lambda: 0
    set_tsc: Callable[[int], None] = lambda value: None
    read_msr: Callable[[int], int | None] = lambda index: None
    write_msr: Callable[[int, int], bool] = lambda index, value: False
    cr8: Callable[[], int] | None = None
    set_cr8: Callable[[int], None] | None = None


class Msrs:
    """Reads and writes the words of a `TrapUnit` that has just saved them. `tsc_aux` is the word of
    IA32_TSC_AUX."""

    def __init__(self, unit: TrapUnit, platform: Platform) -> None:
        cpu = self._cpu = unit.cpu
        self._platform = platform
        self._msr = {index: at >> 3 for index, at in cpu.codec.layout.msr.items()}
        self.tsc_aux = (cpu.codec.layout.xcr0 >> 3) - 1

    def read(self, index: int) -> int | None:
        """An MSR of the words; None when it is not the CPU's."""
        words, cpu = self._cpu.words, self._cpu
        at = self._msr.get(index)
        if at is not None:
            return words[at] & _LOW if index == msrs.SYSENTER_CS else words[at]
        if index == msrs.EFER:
            return words[cpu.efer]
        if index in (msrs.FS_BASE, msrs.GS_BASE):
            return words[cpu.segments + 3 * (FS if index == msrs.FS_BASE else GS) + 1]
        if index == _TSC:
            return self._platform.tsc() & (1 << 64) - 1
        if index == _TSC_AUX:
            return words[self.tsc_aux] & _LOW
        return _MISC_ENABLE_VALUE if index == _MISC_ENABLE else None

    def write(self, index: int, value: int) -> bool | None:
        """Whether the CPU takes it; None when the MSR is not the CPU's."""
        words, cpu = self._cpu.words, self._cpu
        at = self._msr.get(index)
        if at is not None:
            if index in _ADDRESSES and not is_canonical(value):
                return False
            if index == msrs.PAT and not _PAT_TYPES.issuperset(value.to_bytes(8, "little")):
                return False
            words[at] = words[at] & ~_LOW | value & _LOW if index == msrs.SYSENTER_CS else value
            return True
        if index == msrs.EFER:
            return self._write_efer(value)
        if index in (msrs.FS_BASE, msrs.GS_BASE):
            if not is_canonical(value):
                return False
            words[cpu.segments + 3 * (FS if index == msrs.FS_BASE else GS) + 1] = value
            return True
        if index == _TSC:
            self._platform.set_tsc(value)
            return True
        if index == _TSC_AUX:
            if value >> 32:
                return False
            words[self.tsc_aux] = value
            return True
        return True if index == _MISC_ENABLE else None  # what it switches is not there: nothing happens

    def _write_efer(self, value: int) -> bool:
        """SDM vol. 3, 2.2.1: LMA follows CR0.PG, and LME stays while paging is on."""
        words, cpu = self._cpu.words, self._cpu
        old = words[cpu.efer]
        if value & ~_EFER_DEFINED or (words[cpu.cr] & _PG and (value ^ old) & _LME):
            return False
        words[cpu.efer] = value & ~_LMA | old & _LMA
        return True
