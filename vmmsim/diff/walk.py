"""A machine that goes forward by single instructions."""

from __future__ import annotations

from typing import Any

from ..budget import exits, insns
from ..cpu.state import CpuState
from ..disasm import CodeReader
from ..errors import DeviceError, NotSupported
from ..exits import BudgetSpent, Exit, Refused
from ..machine import Machine
from .divergences import ignored_bits

__all__ = ["Walker", "masked"]

_REP = frozenset(b"\xf2\xf3")
_STRING = frozenset(b"\x6c\x6d\x6e\x6f\xa4\xa5\xa6\xa7\xaa\xab\xac\xad\xae\xaf")
_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")


class Walker:
    """A side that goes forward an instruction at a time."""

    def __init__(self, machine: Machine, equal: int) -> None:
        self.machine = machine
        #: Exits so far; `equal` of them were the same on both sides.
        self.count = 0
        self.equal = equal
        self.end: Exit | DeviceError | None = None
        self.reader = CodeReader(machine.memory)
        machine.observe(self._count)
        #: Whether it counts instructions; else it is stepped.
        self.counts = machine.backend.capabilities.insn_budget

    @property
    def deaf(self) -> bool:
        """Whether its steps take no interrupts, though the machine has an interrupt controller."""
        return not self.counts and any(item.board is not None for item in self.machine.processors)

    def _count(self, *access: Any) -> None:
        self.count += 1

    @property
    def over(self) -> bool:
        """Whether it has made the exit that differs, or has ended."""
        return self.end is not None or self.count > self.equal

    def run_to(self, target: int) -> None:
        if target > 0:
            self.run(exits(target))

    def run(self, budget: Any) -> None:
        try:
            exit: Exit | DeviceError = self.machine.run(budget=budget)
        except DeviceError as error:
            exit = error
        if not isinstance(exit, BudgetSpent):
            self.end = exit

    def state(self) -> CpuState:
        machine = self.machine
        return machine.processors.items[machine.processors.current].vcpu.state()

    def step(self) -> None:
        """One instruction, with all its repetitions; nothing when it is over."""
        if self.over:
            return
        rip = self.state().rip if self._repeats() else None
        self._one()
        while rip is not None and not self.over and self.state().rip == rip:
            self._one()

    def _one(self) -> None:
        if self.counts:
            self.run(insns(1))
            return
        try:
            exit: Exit | DeviceError = self.machine.step(self.machine.processors.current)
        except DeviceError as error:
            exit = error
        except NotSupported as error:
            exit = Refused(error.message)
        if not isinstance(exit, BudgetSpent):
            self.end = exit

    def _repeats(self) -> bool:
        state = self.state()
        code = self.reader.read(state, state.linear_rip, 15)
        at, repeated = 0, False
        while at < len(code) and code[at] in _PREFIXES:
            repeated |= code[at] in _REP
            at += 1
        at += state.mode == "l64" and at < len(code) and code[at] & 0xF0 == 0x40
        return repeated and at < len(code) and code[at] in _STRING

    def code(self, state: CpuState | None = None) -> str:
        state = state or self.state()
        for insn in self.reader.decode(state, state.linear_rip):
            return f"{insn.address:#x}  {insn.code.hex(' ')}  {insn.text}"
        return (
            f"{state.linear_rip:#x}  {self.reader.read(state, state.linear_rip, 8).hex(' ') or 'no memory'}"
        )

    def how(self, number: int) -> str:
        way = "a budget of instructions" if self.counts else "single-stepped"
        return f"walked, {number} instructions, {way}"


def masked(state: CpuState) -> CpuState:
    """The state without the bits that divergences.toml leaves out of comparisons."""
    for name, mask in ignored_bits().items():
        if "." not in name and mask != -1 and isinstance(getattr(state, name, None), int):
            setattr(state, name, getattr(state, name) & ~mask)
    return state
