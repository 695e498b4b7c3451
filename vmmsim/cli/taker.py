"""`vmmsim run --snapshot-on WHEN -o FILE`: one snapshot of a run, in a file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from ..budget import Budget
from ..errors import UsageError
from ..exits import BudgetSpent, Cancelled, Exit
from ..outcome import Outcome
from .output import end_line, say

if TYPE_CHECKING:
    from ..errors import DeviceError
    from ..machine import Machine
    from ..snapshot.triggers import Trigger
    from ..snapshot.values import Snapshot

__all__ = ["Taker"]


class Taker:
    """Takes the snapshot that the options ask for; without a trigger it only runs the machine."""

    def __init__(self, trigger: Trigger | None = None, file: str = "", *, stop: bool = False) -> None:
        self._trigger = trigger
        self._file = file
        self._stop = stop
        self._machine: Machine | None = None
        self.taken = False

    @classmethod
    def of(cls, when: str | None, file: str | None, then: str) -> Taker:
        """From the options. Raises UsageError."""
        if when is None:
            if file is not None or then != "run":
                raise UsageError("-o and --then without --snapshot-on", hint="add --snapshot-on guest")
            return cls()
        if file is None:
            raise UsageError("--snapshot-on without a file", hint="add -o FILE")
        from ..snapshot.triggers import parse_trigger

        return cls(parse_trigger(when), file, stop=then == "stop")

    @property
    def insns(self) -> int:
        """The instruction behind which it is, 0 for another trigger."""
        return self._trigger.count if self._trigger is not None and self._trigger.kind == "insns" else 0

    def arm(self, machine: Machine) -> None:
        self._machine = machine
        if self._trigger is not None and not self.insns:
            from ..snapshot.triggers import arm

            arm(machine, self._trigger, self._take)

    def _take(self, snapshot: Snapshot) -> None:
        from ..snapshot.container import save

        ident = save(snapshot, self._file)
        self.taken = True
        if self._machine is not None:
            end_line(self._machine.output)
        say(f"snapshot {ident[:16]} in {self._file}")
        if self._stop and self._machine is not None:
            self._machine.cancel()

    def run(self, machine: Machine, limits: tuple[Budget, ...]) -> Exit:
        """As `machine.run`, with the snapshot on the way."""
        if not self.insns:
            return machine.run(budget=limits)
        began, exits = time.perf_counter(), machine.accesses.total
        least = min((int(b.amount) for b in limits if b.unit == "insns"), default=self.insns)
        others = tuple(b for b in limits if b.unit != "insns")
        end = machine.run(budget=(*others, Budget("insns", min(least, self.insns))))
        if not isinstance(end, BudgetSpent) or end.unit != "insns" or least < self.insns:
            return end
        self._take(machine.snapshot(comment=f"behind {self.insns} instructions"))
        if self._stop:
            return Cancelled()
        spent = {
            "insns": self.insns,
            "exits": machine.accesses.total - exits,
            "seconds": time.perf_counter() - began,
        }
        rest = [msgspec.structs.replace(b, amount=b.amount - spent[b.unit]) for b in limits]
        for budget, whole in zip(rest, limits, strict=True):
            if budget.amount <= 0:
                return BudgetSpent(whole.unit, whole.amount)
        return machine.run(budget=tuple(rest))

    def judge(self, end: Exit | DeviceError) -> Outcome | None:
        """0 for a run that ended with its snapshot, as --then stop says; None for all others."""
        return Outcome(0) if self._stop and self.taken and isinstance(end, Cancelled) else None

    def say_missing(self) -> None:
        if self._trigger is not None and not self.taken:
            say(f"no snapshot was taken: the run ended before {self._file} could be")
