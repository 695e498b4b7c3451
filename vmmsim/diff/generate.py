"""From a seed to a case: a program of a few instructions, registers, and memory.

The same seed is the same case, for ever: a finding is told by its seed. An instruction that
reads flags which the ones before it left undefined is not put there, so that what may differ
does not spread.
"""

from __future__ import annotations

import random

from ..cpu.state import FpuState, Registers
from .case import DATA, DATA_SIZE, SLOT, STACK, Case, Unit
from .encodings import encode, rows

__all__ = ["generate"]

_EDGES = (
    0, 1, 2, 3, 4, 7, 8, 0x0F, 0x10, 0x1F, 0x20, 0x3F, 0x40, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF,
    0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF,
)  # fmt: skip
_MOST_UNITS = 6

#: Numbers that the x87 and SSE have opinions on, as singles, doubles and extended doubles.
_SINGLES = (0, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7FA00001, 1,
            0x00800000, 0x7F7FFFFF, 0x40490FDB, 0x4F000000, 0xCF000000)  # fmt: skip
_DOUBLES = (0, 1 << 63, 0x3FF0000000000000, 0xBFF0000000000000, 0x7FF0000000000000, 0xFFF0000000000000,
            0x7FF8000000000000, 0x7FF4000000000001, 1, 0x0010000000000000, 0x7FEFFFFFFFFFFFFF,
            0x41E0000000000000, 0x400921FB54442D18)  # fmt: skip


def _number(chance: random.Random) -> int:
    """A value for a general register."""
    pick = chance.random()
    if pick < 0.45:
        return chance.choice(_EDGES)
    if pick < 0.6:
        return chance.getrandbits(8)
    return chance.getrandbits(chance.choice((16, 32, 64)))


def _xmm(chance: random.Random) -> int:
    pick = chance.random()
    if pick < 0.35:
        return sum(chance.choice(_SINGLES) << 32 * i for i in range(4))
    if pick < 0.65:
        return sum(chance.choice(_DOUBLES) << 64 * i for i in range(2))
    return chance.getrandbits(128)


def _st(chance: random.Random) -> int:
    exponent = chance.choice((0x3FFF, 0x4000, 0x3FFE, 0x4003, 0x3FF0, 0x401E))
    mantissa = 1 << 63 | (chance.getrandbits(63) if chance.random() < 0.5 else chance.getrandbits(8) << 55)
    return chance.getrandbits(1) << 79 | exponent << 64 | mantissa


def _fpu(chance: random.Random) -> FpuState:
    count = chance.randrange(1, 7)
    top = 8 - count
    tags = sum(1 << i for i in range(top, 8))
    return FpuState(
        fcw=0x37F | chance.choice((0, 0, 0, 0x400, 0x800, 0xC00)),
        fsw=(top & 7) << 11,
        ftw=tags,
        mxcsr=0x1F80 | chance.choice((0, 0, 0, 0x2000, 0x4000, 0x6000)),
        st=[_st(chance) if i < count else 0 for i in range(8)],
        xmm=[_xmm(chance) if i < 8 else 0 for i in range(16)],
    )


def generate(mode: str, seed: int) -> Case:
    """The case of `seed` in `mode`, one of `MODE_NAMES`."""
    chance = random.Random(seed * 4 + ("16", "32", "64", "64u").index(mode))
    table = rows(mode)
    count = 1 if chance.random() < 0.3 else chance.randrange(2, _MOST_UNITS + 1)
    units: list[Unit] = []
    mask = size = 0
    while len(units) < count:
        row = chance.choice(table)
        if row.reads[mode] & mask:
            continue
        unit = encode(row, mode, chance)
        size += len(unit.code)
        if size > SLOT - 4:
            break
        units.append(unit)
        mask = mask & ~unit.defines | unit.undefined
    top = (1 << (64 if mode in ("64", "64u") else 32)) - 1
    values = [_number(chance) & top for _ in range(16)]
    if mode not in ("64", "64u"):
        values[8:] = [0] * 8
    align = -16 if mode == "64u" else -1
    for at in (1, 4, 5, 7, 13, 14):  # RBX, RSI, RDI, RBP, R13, R14 in the order of Registers
        if at < 8 or top >> 32:
            values[at] = DATA + 0x200 + (chance.randrange(0, DATA_SIZE - 0x400) & align)
    values[6] = STACK - 8 * chance.randrange(8)
    rflags = 2 | chance.getrandbits(12) & 0x8D5 | (0x400 if chance.random() < 0.1 else 0)
    regs = Registers(*values[:16], rip=0, rflags=rflags)  # type: ignore[misc]
    memory: list[tuple[int, bytes]] = []
    for at in (1, 4, 5, 7):
        if chance.random() < 0.2:
            data = b"".join(chance.choice(_DOUBLES).to_bytes(8, "little") for _ in range(4))
            memory.append((values[at] & ~15, data))
    fpu = _fpu(chance) if mode == "64u" else None
    return Case(mode=mode, units=tuple(units), regs=regs, fpu=fpu, memory=tuple(memory), seed=seed)
