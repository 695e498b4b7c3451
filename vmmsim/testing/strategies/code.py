"""Instructions and short programs.

An instruction is drawn from the table of encodings (vmmsim.diff.encodings) by a row and a seed:
it shrinks to the first row, and a program to fewer instructions. What is drawn is a case of the
fuzzer, so `vmmsim.diff.runner` runs it, `findings.listing` prints it as assembly, and
`case.encode_case` saves it for `vmmsim fuzz --replay`.
"""

from __future__ import annotations

import random

from hypothesis import strategies as st

from ...cpu.state import FpuState, Registers
from ...diff.case import DATA, DATA_SIZE, SLOT, Case, Unit
from ...diff.encodings import encode, rows
from .cpu import fpu_states, registers

__all__ = ["instructions", "programs"]


def instructions(mode: str) -> st.SearchStrategy[Unit]:
    """One instruction that is valid in `mode`, with operands and memory forms by chance."""
    table = rows(mode)
    return st.builds(
        lambda row, seed: encode(table[row], mode, random.Random(seed)),
        st.integers(0, len(table) - 1),
        st.integers(0, 0xFFFF),
    )


def programs(mode: str, *, most: int = 6) -> st.SearchStrategy[Case]:
    """A program of 1 to `most` instructions from registers, memory and (64u) x87 and SSE state.

    Instructions that read flags which one before left undefined are taken out.
    """
    table = rows(mode)
    draws = st.lists(
        st.tuples(st.integers(0, len(table) - 1), st.integers(0, 0xFFFF)), min_size=1, max_size=most
    )
    patch = st.tuples(st.integers(DATA, DATA + DATA_SIZE - 16), st.binary(min_size=1, max_size=16))
    fpu = fpu_states() if mode == "64u" else st.none()

    def build(
        drawn: list[tuple[int, int]],
        general: Registers,
        state: FpuState | None,
        memory: list[tuple[int, bytes]],
    ) -> Case:
        units: list[Unit] = []
        mask = size = 0
        for number, seed in drawn:
            row = table[number]
            unit = encode(row, mode, random.Random(seed))
            if row.reads[mode] & mask or size + len(unit.code) > SLOT - 4:
                continue
            size += len(unit.code)
            units.append(unit)
            mask = mask & ~unit.defines | unit.undefined
        return Case(mode=mode, units=tuple(units), regs=general, fpu=state, memory=tuple(memory), seed=0)

    return st.builds(build, draws, registers(mode), fpu, st.lists(patch, max_size=2))
