"""Code around an address, with some instructions before it."""

from __future__ import annotations

from bisect import bisect_left, insort

from ..cpu.state import CpuState
from ..disasm import CodeReader, Insn
from ..memory import GuestMemory

__all__ = ["Listing"]

#: How far below, in bytes, a beginning is looked for, and how many are kept.
_REACH, _KEPT = 96, 20_000


class Listing:
    """x86 cannot be decoded backwards: what stands before an address is decoded forward from
    where an instruction has been seen to begin."""

    def __init__(self, memory: GuestMemory) -> None:
        self._code = CodeReader(memory)
        self._begin: list[int] = []

    def learn(self, linear: int) -> None:
        """An instruction begins there."""
        at = bisect_left(self._begin, linear)
        if self._begin[at : at + 1] != [linear]:
            insort(self._begin, linear)
            if len(self._begin) > _KEPT:
                self._begin = [linear]

    def around(self, state: CpuState, before: int, after: int) -> list[Insn]:
        """Up to `before` instructions before the next one, it, and `after` behind it."""
        here = state.linear_rip
        self.learn(here)
        found = self._code.decode(state, here, size=15 * (after + 1), count=after + 1)
        for insn in found[:1]:
            self.learn(insn.end)
        return self._before(state, here)[-before:] + found if before else found

    def _before(self, state: CpuState, here: int) -> list[Insn]:
        first = bisect_left(self._begin, here - _REACH)
        for start in self._begin[first : bisect_left(self._begin, here)]:
            insns = self._code.decode(state, start, size=here - start, count=0)
            if insns and insns[-1].end == here:
                return insns
        return []

    def bytes_at(self, state: CpuState, linear: int, size: int = 8) -> bytes:
        """Where nothing can be decoded."""
        return self._code.read(state, linear, size)
