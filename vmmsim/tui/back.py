"""Going back by exits and instructions.

Nothing runs backwards: `vmmsim.snapshot.history` restores a snapshot from before and runs forward
again, with the input that was typed and the answers that were given by hand. An exit is then waiting
for its answer as it did the first time.
"""

from __future__ import annotations

import contextlib

from ..debug.control import Stop
from ..debug.reverse import Reverse
from ..errors import NotSupported, UsageError, VmmsimError
from ..exits import Access, Cancelled, Exit, Halt
from .place import Place

__all__ = ["Back"]


class Back(Place):
    """The way back."""

    def back_exit(self) -> str:
        """To the exit before, which waits for its answer again; from the first, to the beginning."""
        last = self.records.last
        if last is None:
            return self.back_to(0)
        return self.back_to(last.number - self.at_exit)

    def back_to(self, number: int) -> str:
        """To exit `number`, as it was before it was answered; 0 is the beginning, or where something was
        changed by hand. UsageError where that is not to be had; NotSupported with several vCPUs."""
        self._fresh()
        if len(self.machine.processors.items) > 1:
            raise NotSupported("several vCPUs do not run the same way twice", hint="go back with --cpus 1")
        record = self.records.get(number) if number else None
        before = record.before if record is not None else 0
        first = self.history.places("exits")[0]
        if before < 0:
            raise UsageError(f"exit {number} lies before a change by hand", hint="g 0 goes back to that")
        if before < first:
            raise UsageError(
                f"exit {number} lies before what is kept", hint=f"the first {first} accesses are forgotten"
            )
        halts = None
        if record is not None and not isinstance(record.exit, Access):
            halts = self.records.halts_before(record) + 1
        exit, within = self._reach(before, halts, nothing=record is None)
        gone = self.records.cut(number or self.records.own())
        if gone:
            self.console.back_to(gone[0].printed)
        if exit is not None:
            self._take(exit, within=within)
        if record is not None and exit is not None and not record.same(exit):
            return f"this is not the exit {number} that it was: {record.exit.describe()}"
        return self._standing()

    def back_step(self) -> str:
        """To before the last instruction. UsageError or NotSupported, with the reason, where that is not to
        be had; it stands at its last exit then, which waits for its answer."""
        self._fresh()
        if self.reverse is None:
            raise UsageError(self.no_reverse)
        try:
            stop = self._back_step(self.reverse)
        except VmmsimError:
            with contextlib.suppress(UsageError):
                self.back_to(self.records.count)
            raise
        self._forget_place()
        self._cut_ahead()
        return "this is the beginning" if stop.why.startswith("replaylog") else ""

    def _back_step(self, reverse: Reverse) -> Stop:
        while self.pending is not None and (self.pending.is_write or self._is_within):
            # Half an instruction back is its beginning: finish it, and go back by one.
            self._answer_again(self.pending)
            self.pending = None
            if not self.machine.whole():
                exit = self.machine.step_exit()
                self.pending = exit if isinstance(exit, Access) else None
        self._control.ended = None
        return reverse.step()

    @property
    def _is_within(self) -> bool:
        return self.records.last is not None and self.records.last.within

    def _cut_ahead(self) -> None:
        """Forget what lies ahead of here."""
        done = self.history.exits
        insns = self.machine.processors.insns() if self.machine.vcpu.insns is not None else None
        for record in self.records:
            if isinstance(record.exit, Access):
                ahead = record.before >= done
            elif insns is not None and record.insns is not None:
                ahead = record.insns > insns
            else:
                ahead = record.before >= done
            if ahead:
                self.records.cut(record.number)
                self.console.back_to(record.printed)
                return

    def _forget_place(self) -> None:
        self.pending = self.ended = None
        self.at_exit = self._halted = self._odd = False

    def _answer_again(self, exit: Access) -> None:
        """As it was answered the first time; nothing is printed twice."""
        answers, done = self.history.answers, self.history.exits
        with self.machine.unheard():
            if done in answers:
                self.machine.answer_by_hand(exit, answers[done])
            else:
                self.machine.answer(exit)

    def _reach(
        self, before: int, halts: int | None = None, *, nothing: bool = False
    ) -> tuple[Exit | None, bool]:
        """Go back to the access behind `before` others, or to halt number `halts` there, or to the moment
        itself (`nothing`). The exit, and whether its instruction has made others first."""
        machine, history = self.machine, self.history
        goal = before
        self._control.disarm()
        while True:
            machine.back(history.exits - goal, "exits")
            if history.exits <= goal:
                break
            goal -= 1  # in the middle of an instruction that makes several
        self._forget_place()
        within = False
        while not nothing:
            with machine.unheard():
                exit = machine.step_exit() if within else self._proceed()
            if isinstance(exit, Halt) and halts != 1:
                self._halted = self.machine.processors.items[self.current].board is not None
                halts = halts - 1 if halts is not None else None
                if self._halted:
                    continue
            if not isinstance(exit, Access) or history.exits == before:
                if isinstance(exit, Cancelled):
                    raise UsageError("stopped on the way back", hint="the guest is somewhere before")
                return exit, within
            self._answer_again(exit)
            within = not machine.whole()
        return None, False
