"""Back in time under a debugger: reverse-step and reverse-continue over a machine's history.

Nothing runs backwards. To go back is to restore a snapshot from before and to run forward again,
muted, to the place that is wanted (`vmmsim.snapshot.history`). Where instructions are counted a
place is a count. Elsewhere, on KVM, it is a count of exits, and of single steps behind the last.

That is exact while the way forward is the same each time: one vCPU, time that is counted, input
that is recorded. Who changes a register or memory begins a new history.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from ..budget import Budget, exits, insns
from ..errors import UsageError, VmmsimError
from ..exits import Breakpoint, BudgetSpent, Exit
from .control import SIGTRAP, Controller, Stop

if TYPE_CHECKING:
    from ..machine import Machine
    from ..snapshot.history import History

__all__ = ["Reverse", "reverse_for"]

#: Instructions or exits between two snapshots, and how many are kept.
_EVERY_INSNS, _EVERY_EXITS, _KEEP = 2_000_000, 2_000, 64
#: So many single steps behind an exit a place is looked for on KVM: some seconds.
_STEPS_MAX = 50_000


def reverse_for(machine: Machine, control: Controller) -> Reverse:
    """UsageError for a machine that does not run the same way twice."""
    if len(machine.processors.items) > 1:
        raise UsageError(
            "several vCPUs do not run the same way twice under a debugger",
            hint="go back with one vCPU: --cpus 1",
        )
    if not machine.clock.deterministic:
        raise UsageError(
            "with the host's clock a guest does not run the same way twice",
            hint="--clock insns, or on KVM --clock exits",
        )
    if machine.vcpu.insns is not None:
        return _ByInsns(machine, control)
    if any(item.board is not None for item in machine.processors):
        raise UsageError(
            "steps of KVM take no interrupts, so a machine with an interrupt controller does not run the "
            "same way twice under a debugger",
            hint="go back with backend unicorn, or with the machine bare",
        )
    return _ByExits(machine, control)


class Reverse(ABC):
    """`step` and `go` go back by an instruction, or to the last breakpoint before."""

    every: Budget

    def __init__(self, machine: Machine, control: Controller) -> None:
        self.machine = machine
        self._control = control
        self.begin_anew()

    def begin_anew(self) -> None:
        """There is no way back to before this moment any more."""
        self._history = self.machine.history(self.every, keep=_KEEP)

    @property
    def history(self) -> History:
        """Where it goes back in."""
        return self._history

    def step(self) -> Stop:
        """Raises UsageError where the way back is not found."""
        control = self._control
        control.disarm()
        control.forget()
        found = self._step()
        control.ended = None if found else control.ended
        return Stop(SIGTRAP) if found else self._at_beginning()

    def go(self) -> Stop:
        """Raises UsageError as `step`."""
        control = self._control
        control.forget()
        with self.machine.unheard():
            stop = self._go()
        control.disarm()
        control.forget()
        control.ended = None
        return stop or self._at_beginning()

    @abstractmethod
    def _step(self) -> bool:
        """False at the beginning."""

    @abstractmethod
    def _go(self) -> Stop | None:
        """None, and at the beginning, if there is nothing to stop at."""

    @staticmethod
    def _at_beginning() -> Stop:
        return Stop(SIGTRAP, "replaylog:begin;")

    @staticmethod
    def _lost(exit: Exit) -> UsageError:
        return UsageError(
            f"on its way forward the guest came to another end: {exit.describe()}",
            hint="what it does depends on something that was not recorded",
        )


class _ByInsns(Reverse):
    every = insns(_EVERY_INSNS)

    @property
    def _now(self) -> int:
        return self.machine.processors.insns()

    def _step(self) -> bool:
        if self._now <= self._history.places("insns")[0]:
            return False
        self._to(self._now - 1)
        return True

    def _to(self, goal: int) -> None:
        self._control.disarm()
        if goal <= self._now:
            self.machine.back(self._now - goal, "insns")
            return
        with self.machine.unheard():
            exit = self.machine.run(budget=insns(goal - self._now))
        if not isinstance(exit, BudgetSpent):
            raise self._lost(exit)

    def _go(self) -> Stop | None:
        bound = self._now
        places = self._history.places("insns")
        for start in reversed([place for place in places if place < bound] or places[:1]):
            self._to(start)
            found = self._scan(bound)
            if found is not None:
                self._to(found[0])
                return found[1]
            bound = start
        self._to(places[0])
        return None

    def _scan(self, bound: int) -> tuple[int, Stop] | None:
        """Forward to `bound`: the last place before it where something stops, and the stop."""
        control, machine = self._control, self.machine
        if control.slow:
            return self._scan_slowly(bound)
        found = None
        control.arm()
        while self._now < bound:
            exit = machine.run(budget=insns(bound - self._now))
            if isinstance(exit, Breakpoint):
                found = self._now, control.stopped(exit)
                exit = machine.step()
            if not isinstance(exit, BudgetSpent) and self._now < bound:
                raise self._lost(exit)
        return found

    def _scan_slowly(self, bound: int) -> tuple[int, Stop] | None:
        control, machine = self._control, self.machine
        found = None
        control.begin_looking()
        while self._now < bound:
            at = self._now
            hit = control.point_at(0)
            exit = machine.step()
            stop = control.changed() or hit
            if stop is not None:
                found = at, stop
            if not isinstance(exit, BudgetSpent) and self._now < bound:
                raise self._lost(exit)
            if control.heed():
                raise UsageError("stopped on the way back", hint="the guest is somewhere before")
        return found


class _ByExits(Reverse):
    """A place is (exits, steps behind). What a step of KVM is may be more than one iteration."""

    every = exits(_EVERY_EXITS)

    def _to(self, goal: int, steps: int = 0) -> None:
        self._control.disarm()
        if goal < self._history.exits or (steps, goal) == (0, self._history.exits):
            self.machine.back(self._history.exits - goal, "exits")
        elif goal > self._history.exits:
            with self.machine.unheard():
                exit = self.machine.run(budget=exits(goal - self._history.exits))
            if not isinstance(exit, BudgetSpent):
                raise self._lost(exit)
        else:
            self.machine.back(0, "exits")
        for _ in range(steps):
            self._one()

    def _one(self) -> None:
        with self.machine.unheard():
            exit = self.machine.step()
        if not exit.resumable:
            raise self._lost(exit)

    def _key(self) -> object:
        return self._history.exits, self.machine.vcpu.registers()

    def _steps_to(self, key: object, visit: list[int] | None = None) -> int:
        """How many steps it is from here to `key`; the places among them where a breakpoint is go
        to `visit`."""
        control = self._control
        for count in range(_STEPS_MAX):
            if self._key() == key:
                return count
            if visit is not None and control.point_at(0) is not None:
                visit.append(count)
            self._one()
            if control.heed():
                break
        raise UsageError(
            "the way back was not found", hint="on KVM it is looked for in single steps, without interrupts"
        )

    def _step(self) -> bool:
        machine = self.machine
        key, at = self._key(), self._history.exits
        here = machine.snapshot() if machine.whole() else None  # a read waits for its answer
        exits_here = at
        try:
            first = self._history.places("exits")[0]
            while True:
                self._to(at)
                count = self._steps_to(key)
                if count:
                    self._to(at, count - 1)
                    return True
                if at <= first:
                    return False
                at -= 1
        except VmmsimError:
            if here is None:
                self._to(exits_here)
            else:
                machine.restore(here)
                self._history.exits = exits_here
            raise

    def _go(self) -> Stop | None:
        control, machine = self._control, self.machine
        if control.slow:
            raise UsageError(
                "watchpoints, and so many breakpoints, are not looked for backwards on KVM",
                hint="use backend unicorn",
            )
        key, end = self._key(), self._history.exits
        here = machine.snapshot()
        try:
            self._to(end)
            visit: list[int] = []
            self._steps_to(key, visit)
            if visit:
                self._to(end, visit[-1])
                return control.point_at(0)
            bound = end
            places = self._history.places("exits")
            for start in reversed([place for place in places if place < bound]):
                self._to(start)
                hits = self._hits(bound, None)
                if hits:
                    self._to(start)
                    self._hits(bound, hits)
                    return control.point_at(0)
                bound = start
            self._to(places[0])
        except VmmsimError:
            machine.restore(here)
            self._history.exits = end
            raise
        return None

    def _hits(self, bound: int, most: int | None) -> int:
        """How often a breakpoint is met on the way to exit `bound`; stops at number `most`."""
        hits = 0
        self._control.arm()
        while self._history.exits < bound:
            exit = self.machine.run(budget=exits(bound - self._history.exits))
            if isinstance(exit, Breakpoint):
                hits += 1
                if hits == most:
                    break
                self._one()
            elif not isinstance(exit, BudgetSpent):
                raise self._lost(exit)
        return hits
