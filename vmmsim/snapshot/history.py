"""Going back in time: a ring of snapshots, and the way from one of them forward again.

To go back n exits, or n instructions, is to restore the latest snapshot from before that moment
and to run on to it. That is exact where the way forward is the same each time: with the clock
`exits` or `insns`, and input that was recorded, as it is from `Machine.history` on. With the
host's clock, timers come when they come; on KVM RDTSC reads the host's counter.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ..budget import Budget, exits, insns
from ..errors import NotSupported, UsageError
from ..exits import Access, BudgetSpent, Exit

if TYPE_CHECKING:
    from ..travel import TimeTravel
    from .values import Snapshot

__all__ = ["History", "Returned"]

_UNITS = ("exits", "insns")


class _Moment(NamedTuple):
    exits: int
    insns: int
    snapshot: Snapshot

    def at(self, unit: str) -> int:
        return self.exits if unit == "exits" else self.insns


class Returned(msgspec.Struct, frozen=True):
    """Where `Machine.back` has led. `exits` and `insns` are the counts there (insns: None where nobody
    counts), `exact` whether the way was the same as the first time, and if not `reason` says why."""

    exits: int
    insns: int | None
    exact: bool
    reason: str = ""


class History:
    """Made by `Machine.history`. Takes a snapshot now, and each `every` from here on, of which the
    last `keep` are kept."""

    def __init__(self, machine: TimeTravel, every: Budget, keep: int) -> None:
        if every.unit not in _UNITS:
            raise UsageError(f"a history every {every.amount} {every.unit}", hint="use exits(n) or insns(n)")
        if keep < 1:
            raise UsageError(f"a history of {keep} snapshots", hint="keep at least one")
        if every.unit == "insns" and machine.vcpu.insns is None:
            raise NotSupported(
                "this machine does not count instructions",
                hint="use exits(n); or backend unicorn with count_insns=True",
            )
        self._machine = machine
        self._every = every
        self._ring: deque[_Moment] = deque(maxlen=keep)
        #: Accesses since the history began.
        self.exits = 0
        #: Accesses that were answered by hand (`Machine.answer_by_hand`), by the number of those before;
        #: None is a write that no device saw.
        self.answers: dict[int, int | None] = {}
        self._halts = machine.halts
        self._next = 0
        self._waiting = False
        if hasattr(machine.source, "record"):
            machine.source.record()
        self._take()
        self._stop = machine.observe(self._count)

    def stop(self) -> None:
        """Take no more snapshots, and forget those that there are."""
        self._stop()
        self._ring.clear()

    def _now(self) -> int:
        return self.exits if self._every.unit == "exits" else self._machine.processors.insns()

    def _count(self, cls: type[Access], address: int, size: int, value: int) -> None:
        self.exits += 1
        self._halts = self._machine.halts
        if not self._waiting and self._now() >= self._next:
            self._waiting = True
            self._machine.between(self._take)

    def _take(self) -> None:
        self._waiting = False
        self._ring.append(_Moment(self.exits, self._machine.processors.insns(), self._machine.snapshot()))
        self._next = self._now() + int(self._every.amount)

    @property
    def moment(self) -> tuple[int, int]:
        """Accesses since the history began, and halts since the last of them. The same again on the way
        forward."""
        return self.exits, self._machine.halts - self._halts

    def forget_answers(self) -> None:
        """Those given by hand from here on."""
        if self.answers and max(self.answers) >= self.exits:
            self.answers = {number: value for number, value in self.answers.items() if number < self.exits}

    def mark(self) -> None:
        """Take a snapshot now, where a way forward from an earlier one might not lead."""
        self._take()

    def places(self, unit: str) -> list[int]:
        """The counts of `unit` at the snapshots that there are, the oldest first."""
        return [moment.at(unit) for moment in self._ring]

    def back(self, count: int, unit: str) -> Returned:
        """See `Machine.back`."""
        if unit not in _UNITS:
            raise UsageError(f"back {count} {unit}", hint="the units are exits and insns")
        if count < 0:
            raise UsageError(f"back {count} {unit}", hint="give a number from 0 on")
        now = self.exits if unit == "exits" else self._machine.processors.insns()
        if unit == "insns" and self._machine.vcpu.insns is None:
            raise NotSupported("this machine does not count instructions", hint="go back by exits")
        goal = now - count
        while self._ring[-1].at(unit) > goal:
            if len(self._ring) == 1:
                first = self._ring[0].at(unit)
                raise UsageError(
                    f"{count} {unit} back is before the first snapshot that is kept",
                    hint=f"at most {now - first} {unit} back; keep more, or take them less often",
                )
            self._ring.pop()
        moment = self._ring[-1]
        self._machine.restore(moment.snapshot)
        self.exits = moment.exits
        self._halts = self._machine.halts
        self._next = self._now() + int(self._every.amount)
        self._run_to(goal - moment.at(unit), unit)
        return self._returned()

    def _run_to(self, left: int, unit: str) -> None:
        if not left:
            return
        machine = self._machine
        with machine.unheard():
            exit: Exit = machine.run(budget=exits(left) if unit == "exits" else insns(left))
        if not isinstance(exit, BudgetSpent):
            raise UsageError(
                f"on its way forward the guest came to another end: {exit.describe()}",
                hint="its time is not its own: use the clock exits or insns",
            )

    def _returned(self) -> Returned:
        machine = self._machine
        reason = ""
        if not machine.clock.deterministic:
            reason = "the clock is the host's: timers did not come at the same places"
        elif not hasattr(machine.source, "record"):
            reason = "the input was not recorded"
        counted = machine.processors.insns() if machine.vcpu.insns is not None else None
        return Returned(self.exits, counted, not reason, reason)
