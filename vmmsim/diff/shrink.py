"""Make a case that differs as small as it goes, so that a person can read it.

Each step is kept if the smaller case still differs in the same way, by `same`: first units are
dropped, then registers, memory and the x87 state become plain, at last operands and prefixes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import msgspec

from ..cpu.state import GPR_NAMES, FpuState
from .case import STACK, Case, Unit, base_state, disassemble
from .encodings import unit_of

__all__ = ["shorten", "shrink"]

#: How many runs a shrink may take.
MOST_RUNS = 400


def shrink(case: Case, same: Callable[[Case], bool], most: int = MOST_RUNS) -> Case:
    """The smallest case found for which `same` is true, as it is for `case`. At most `most` calls."""
    return _shrink(case, same, lambda case: itertools.chain(_shorter(case), _plainer(case)), most)


def shorten(case: Case, same: Callable[[Case], bool]) -> Case:
    """The case with the fewest units for which `same` is true, its registers and memory as they are."""
    return _shrink(case, same, _shorter, MOST_RUNS)


def _shrink(
    case: Case, same: Callable[[Case], bool], steps: Callable[[Case], Iterable[Case]], most: int
) -> Case:
    left = most
    moved = True
    while moved and left:
        moved = False
        for smaller in steps(case):
            if not left:
                break
            left -= 1
            if same(smaller):
                case = smaller
                moved = True
                break
    return case


def _shorter(case: Case) -> Iterator[Case]:
    replace = msgspec.structs.replace
    units = case.units
    if len(units) > 1:
        half = len(units) // 2
        if half > 1:
            yield replace(case, units=units[:half])
            yield replace(case, units=units[half:])
        for at in range(len(units)):
            yield replace(case, units=units[:at] + units[at + 1 :])


def _plainer(case: Case) -> Iterator[Case]:
    replace = msgspec.structs.replace
    units = case.units
    if case.memory:
        yield replace(case, memory=())
        if len(case.memory) > 1:
            for at in range(len(case.memory)):
                yield replace(case, memory=case.memory[:at] + case.memory[at + 1 :])
    if case.fpu is not None:
        plain = base_state(case.mode).fpu
        if case.fpu != plain:
            yield replace(case, fpu=plain)
            for name in ("xmm", "st", "mxcsr", "fcw"):
                if getattr(case.fpu, name) != getattr(plain, name):
                    yield replace(case, fpu=_with_fpu(case.fpu, **{name: getattr(plain, name)}))
            for name in ("xmm", "st"):
                values = getattr(case.fpu, name)
                for at, value in enumerate(values):
                    if value:
                        yield replace(
                            case, fpu=_with_fpu(case.fpu, **{name: [*values[:at], 0, *values[at + 1 :]]})
                        )
    yield from _plainer_registers(case)
    for at, unit in enumerate(units):
        for code in _plainer_codes(unit.code):
            plainer = unit_of(code, case.mode)
            if plainer is not None and _mnemonics(case.mode, plainer) == _mnemonics(case.mode, unit):
                yield replace(case, units=(*units[:at], plainer, *units[at + 1 :]))


def _mnemonics(mode: str, unit: Unit) -> list[str]:
    return [text.partition(" ")[0] for _, text in disassemble(mode, (unit,))]


def _with_fpu(fpu: FpuState, **values: object) -> FpuState:
    return msgspec.structs.replace(fpu, **values)


def _plainer_registers(case: Case) -> Iterator[Case]:
    regs = case.regs
    names = [n for n in GPR_NAMES if getattr(regs, n) not in (0, 1)]
    plain = {n: STACK if n == "rsp" else 0 for n in GPR_NAMES}
    if any(getattr(regs, n) != plain[n] for n in GPR_NAMES):
        yield _with(case, **plain)
    for name in names:
        if getattr(regs, name) != plain[name]:
            yield _with(case, **{name: plain[name]})
    if regs.rflags != 2:
        yield _with(case, rflags=2)
        for bit in range(12):
            if regs.rflags >> bit & 1 and bit != 1:
                yield _with(case, rflags=regs.rflags & ~(1 << bit))
    for name in names:
        value = getattr(regs, name)
        if name != "rsp" and value > 0xFF:
            for mask in (0xFF, 0xFFFF, 0xFFFFFFFF):
                if value & ~mask:
                    yield _with(case, **{name: value & mask})


def _with(case: Case, **values: int) -> Case:
    return msgspec.structs.replace(case, regs=msgspec.structs.replace(case.regs, **values))


def _plainer_codes(code: bytes) -> Iterator[bytes]:
    """Operands made 0, from the end; and prefixes taken away."""
    for at in range(len(code) - 1, 0, -1):
        if code[at] not in (0, 0xC0) and at >= 2:
            yield code[:at] + b"\0" + code[at + 1 :]
    if len(code) > 1 and code[0] in (0x66, 0x67, 0xF0, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65):
        yield code[1:]
