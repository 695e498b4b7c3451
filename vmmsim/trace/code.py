"""The code around an exit, read when the exit is made: later it may be other code.

An instruction is looked up again when its bytes are no longer the same, as those of code that changes
itself. What is the same code twice is one `Code` record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..disasm import ExitLocator, Insn
from .records import Code, CodeLine

if TYPE_CHECKING:
    from ..cpu.state import CpuState
    from ..exits import Access
    from ..memory import GuestMemory

__all__ = ["CodeWindows"]

#: Instructions before and behind the exit's own, and bytes that are compared.
_BEFORE, _BEHIND = 5, 6
_COMPARED = 32


class CodeWindows:
    """All windows of a trace. `records` are those not taken yet."""

    def __init__(self, memory: GuestMemory) -> None:
        self._locator = ExitLocator(memory)
        self._ids: dict[tuple[int, tuple[CodeLine, ...]], int] = {}
        #: The bytes that a window was made of, by who asked.
        self._bytes: dict[tuple[object, int], tuple[bytes, int]] = {}
        #: By id: bytes from the window's own instruction to the next.
        self.steps: list[int] = [0]
        self.records: list[Code] = []

    def begin(self, state: CpuState) -> None:
        self._locator.learn(state.linear_rip)

    def of_access(self, state: CpuState, exit: Access, *, at: bool) -> int:
        """The id of the window around the instruction that makes `exit`, 0 if it is not found. `at`: RIP
        is at it, as `state` has it; else as an exit shows it."""
        here = state.linear_rip
        key = (type(exit), here)
        code = self._locator.code.read(state, here, _COMPARED)
        if not at or exit.is_write:
            code = self._locator.code.read(state, here - 15, 15) + code
        kept = self._bytes.get(key)
        if kept is not None and kept[0] == code:
            return kept[1]
        if at:
            self._locator.learn(here)
            insn = next(iter(self._locator.code.decode(state, here)), None)
            if insn is not None and not insn.may_make(exit):
                insn = None
        else:
            insn = self._locator.instruction(state, exit)
        return self._keep(key, code, state, insn)

    def of_halt(self, state: CpuState) -> int:
        """That of the HLT behind which the vCPU stands."""
        return self._window(state, self._locator.halted(state))

    def of_place(self, state: CpuState) -> int:
        """That around the instruction at RIP."""
        insn = next(iter(self._locator.code.decode(state, state.linear_rip)), None)
        return self._window(state, insn)

    def _keep(self, key: tuple[object, int], code: bytes, state: CpuState, insn: Insn | None) -> int:
        ident = self._window(state, insn)
        self._bytes[key] = (code, ident)
        return ident

    def _window(self, state: CpuState, insn: Insn | None) -> int:
        if insn is None:
            return 0
        behind = self._locator.code.decode(state, insn.end, size=_BEHIND * 15, count=_BEHIND)
        found = (*self._locator.lead(state, insn.address, _BEFORE), insn, *behind)
        lines = tuple(CodeLine(one.address, one.code.hex(), one.text) for one in found)
        key = (insn.address, lines)
        ident = self._ids.get(key)
        if ident is None:
            ident = self._ids[key] = len(self.steps)
            self.steps.append(0 if insn.repeats else len(insn.code))
            self.records.append(Code(ident, insn.address, lines))
        return ident

    def take(self) -> list[Code]:
        """The records since the last call."""
        taken, self.records = self.records, []
        return taken
