"""A line for each instruction of a run: where, its bytes, what it is, and which registers it changed.

    1 0000000000007c00 b8 00 01           mov ax, 0x100                    rax=100

An instruction is run at a time, so this needs a backend that counts them. An element of a REP is a
line; an interrupt is taken before the first instruction of its handler, whose line has its changes.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, TextIO

from ..budget import Budget, insns
from ..cpu.state import GPR_NAMES, CpuState
from ..disasm import CodeReader
from ..errors import NotSupported
from ..exits import BudgetSpent, Exit

if TYPE_CHECKING:
    from ..machine import Machine

__all__ = ["InsnTracer"]

_SHOWN = (*GPR_NAMES, "rflags")


class InsnTracer:
    """Writes to `file`; `count` is how many instructions were written."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.count = 0

    def run(self, machine: Machine, last: int | None, budget: Budget | None) -> Exit:
        """Run to the end, at most to that of the `last`-th exit, or until `budget` (seconds) is spent. Raises
        NotSupported."""
        if not machine.backend.capabilities.insn_budget:
            raise NotSupported(
                f"{machine.backend.provenance} cannot count instructions", hint="use --backend unicorn"
            )
        reader = CodeReader(machine.memory)
        made = 0
        ends = time.perf_counter() + budget.amount if budget is not None else math.inf

        def observe(*access: object) -> None:
            nonlocal made
            made += 1

        forget = machine.observe(observe)
        try:
            before = machine.vcpu.state()
            while True:
                text = self._instruction(reader, before)
                exit = machine.run(budget=insns(1))
                after = machine.vcpu.state()
                self._write(before, after, text)
                before = after
                if not isinstance(exit, BudgetSpent) or (last is not None and made >= last):
                    return exit
                if budget is not None and time.perf_counter() >= ends:
                    return BudgetSpent(budget.unit, budget.amount)
        finally:
            forget()

    @staticmethod
    def _instruction(reader: CodeReader, state: CpuState) -> tuple[str, str]:
        found = reader.decode(state, state.linear_rip)
        if not found:
            return reader.read(state, state.linear_rip, 8).hex(" "), "?"
        return found[0].code.hex(" "), found[0].text

    def _write(self, before: CpuState, after: CpuState, text: tuple[str, str]) -> None:
        self.count += 1
        changed = " ".join(
            f"{name}={getattr(after, name):x}"
            for name in _SHOWN
            if getattr(after, name) != getattr(before, name)
        )
        code, insn = text
        self._file.write(
            f"{self.count} {before.linear_rip:016x} {code:<23} {insn:<32} {changed}".rstrip() + "\n"
        )
