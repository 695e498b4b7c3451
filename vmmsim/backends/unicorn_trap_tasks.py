"""The task switch of a task gate (SDM vol. 3, 7.3), with 16- and 32-bit TSSs.

All of the new task's segments are checked before the switch, so a fault is one of the old
task; the CPU takes some of them in the new one. The trap on a task switch (the T bit of a
TSS) is not raised. Way back: IRET with NT set is the engine's own.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from .unicorn_trap_cpu import CS, DS, ES, FS, GS, LDT, SS, TR
from .unicorn_trap_gates import base_of, limit_of
from .unicorn_trap_memory import GuestFault

if TYPE_CHECKING:
    from .unicorn_traps import TrapUnit

__all__ = ["switch_task"]

_TS, _NP, _SS, _GP = 10, 11, 12, 13
_NT, _RF, _VM = 1 << 14, 1 << 16, 1 << 17
_CR0_TS, _CR0_PG = 1 << 3, 1 << 31
_BUSY = 2
_V86_ATTRIBUTES = 0xF300


class _Image(NamedTuple):
    """What a TSS holds of a task. `registers` are in encoding order, `segments` ES CS SS DS FS GS."""

    cr3: int | None
    ip: int
    flags: int
    registers: tuple[int, ...]
    segments: tuple[int, ...]
    ldt: int


_WIDE = struct.Struct("<10I6I")
_NARROW = struct.Struct("<10H4H")


def switch_task(unit: TrapUnit, selector: int, error: int | None, kind: str, rip: int, rflags: int) -> None:
    """Switch to the task of `selector`, nested in the present one, and push `error` on its stack.

    Changes the words of `unit.cpu`. Raises GuestFault.
    """
    cpu, memory, words = unit.cpu, unit.memory, unit.cpu.words
    ext = 0 if kind == "soft" else 1
    code = selector & 0xFFFC | ext
    if selector & 4 or not selector & 0xFFFC:
        raise GuestFault(_GP, code)
    at, descriptor = unit.gates.descriptor(selector, _GP)
    if descriptor >> 40 & 31 not in (1, 9):  # an available TSS
        raise GuestFault(_GP, code)
    if not descriptor >> 47 & 1:
        raise GuestFault(_NP, code)
    wide = bool(descriptor >> 43 & 1)
    base, limit = base_of(descriptor), limit_of(descriptor)
    if limit < (0x67 if wide else 0x2B):
        raise GuestFault(_TS, code)
    old_selector, old_base, _, old_attributes = cpu.segment(TR)
    new = _load(unit, base, wide)
    new_flags = new.flags | 2 | _NT
    loads, cpl = _segments(unit, new, new_flags, ext)
    saved_at, saved = _saved(unit, old_base, bool(old_attributes >> 11 & 1), rip, rflags)
    pieces = memory.prepare(saved_at, len(saved), implicit=True)
    link = memory.prepare(base, 2, implicit=True)
    busy = memory.prepare(at + 5, 1, implicit=True)
    # From here on nothing can fail.
    memory.commit(pieces, saved)
    memory.commit(link, old_selector.to_bytes(2, "little"))
    memory.commit(busy, bytes([descriptor >> 40 & 0xFF | _BUSY]))
    words[cpu.cr] |= _CR0_TS
    words[cpu.hidden] |= 1 << 11  # HF_TS, which follows it
    if new.cr3 is not None and words[cpu.cr] & _CR0_PG:
        words[cpu.cr + 3] = new.cr3
    # In the engine's TR the TSS is an available one: QEMU marks it busy in memory alone, and its
    # own delivery refuses another.
    cpu.set_segment(TR, selector & 0xFFFC, base, limit, descriptor >> 32)
    for number, load in loads.items():
        cpu.set_segment(number, *load)
    for number, value in enumerate(new.registers):
        words[cpu.registers + number] = value
    words[cpu.rip] = new.ip
    cpu.set_rflags(new_flags)
    cpu.settle(cpl)
    cpu.restore()
    cpu.codec.flush_tlb()
    cpu.save()
    unit.use_memory(new_flags)
    if error is not None:
        unit.gates.push_error(error, wide)


def _load(unit: TrapUnit, base: int, wide: bool) -> _Image:
    if wide:
        values = _WIDE.unpack(unit.memory.read(base + 0x20, _WIDE.size))
        cr3 = unit.memory.read_int(base + 0x1C, 4)
        ldt = unit.memory.read_int(base + 0x60, 2)
        segments = tuple(value & 0xFFFF for value in values[10:16])
        return _Image(cr3, values[0], values[1], values[2:10], segments, ldt)
    values = _NARROW.unpack(unit.memory.read(base + 0x0E, _NARROW.size))
    ldt = unit.memory.read_int(base + 0x2A, 2)
    # The upper halves of the registers are not defined after a switch to a 16-bit task.
    return _Image(None, values[0], values[1], values[2:10], (*values[10:14], 0, 0), ldt)


def _saved(unit: TrapUnit, base: int, wide: bool, rip: int, rflags: int) -> tuple[int, bytes]:
    """Where the old task's registers go, and the bytes."""
    cpu, words = unit.cpu, unit.cpu.words
    registers = words[cpu.registers : cpu.registers + 8].tolist()
    segments = [cpu.segment(number)[0] for number in (ES, CS, SS, DS, FS, GS)]
    if wide:
        values = [rip, rflags, *registers, *segments]
        return base + 0x20, _WIDE.pack(*(value & 0xFFFFFFFF for value in values))
    values = [rip, rflags, *registers, *segments[:4]]
    return base + 0x0E, _NARROW.pack(*(value & 0xFFFF for value in values))


def _segments(
    unit: TrapUnit, new: _Image, flags: int, ext: int
) -> tuple[dict[int, tuple[int, int, int, int]], int]:
    """What each segment register of the new task will hold, and its CPL."""
    loads: dict[int, tuple[int, int, int, int]] = {}
    if not new.ldt & 0xFFFC:
        loads[LDT] = (new.ldt, 0, 0, 0)
    else:
        if new.ldt & 4:
            raise GuestFault(_TS, new.ldt & 0xFFFC | ext)
        _, descriptor = unit.gates.descriptor(new.ldt, _TS)
        if descriptor >> 40 & 0x9F != 0x82:
            raise GuestFault(_TS, new.ldt & 0xFFFC | ext)
        loads[LDT] = _hidden(new.ldt, descriptor)
    if flags & _VM:
        for number, selector in zip((ES, CS, SS, DS, FS, GS), new.segments, strict=True):
            loads[number] = (selector, selector << 4, 0xFFFF, _V86_ATTRIBUTES)
        return loads, 3
    old_ldt = unit.cpu.segment(LDT)
    unit.cpu.set_segment(LDT, *loads[LDT])  # selectors with TI set are the new task's
    try:
        for number, selector in zip((ES, CS, SS, DS, FS, GS), new.segments, strict=True):
            loads[number] = _segment(unit, number, selector, new.segments[1] & 3, ext)
    finally:
        unit.cpu.set_segment(LDT, *old_ldt)
    return loads, new.segments[1] & 3


def _segment(unit: TrapUnit, number: int, selector: int, cpl: int, ext: int) -> tuple[int, int, int, int]:
    code = selector & 0xFFFC | ext
    if not selector & 0xFFFC:
        if number in (CS, SS):
            raise GuestFault(_TS, code)
        return selector, 0, 0, 0
    _, descriptor = unit.gates.descriptor(selector, _TS)
    kind, dpl, rpl = descriptor >> 40 & 31, descriptor >> 45 & 3, selector & 3
    if number == CS:
        good = kind & 0x18 == 0x18 and (dpl <= rpl if kind & 4 else dpl == rpl)
    elif number == SS:
        good = kind & 0x1A == 0x12 and rpl == cpl == dpl
    else:
        readable = kind & 0x10 and (not kind & 8 or kind & 2)
        good = bool(readable) and (kind & 0xC == 0xC or dpl >= max(cpl, rpl))
    if not good:
        raise GuestFault(_TS, code)
    if not descriptor >> 47 & 1:
        raise GuestFault(_SS if number == SS else _NP, code)
    return _hidden(selector, descriptor)


def _hidden(selector: int, descriptor: int) -> tuple[int, int, int, int]:
    return selector, base_of(descriptor), limit_of(descriptor), descriptor >> 32
