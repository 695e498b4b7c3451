"""Where a stepped machine stands: the access that waits, the exits so far; and the next step forward.

An access is held before it is answered: `Machine.step_exit` returns it, and what the person does next
answers it, through its device or by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..budget import exits
from ..cpu.state import CpuState
from ..debug.control import Controller
from ..debug.reverse import Reverse, reverse_for
from ..disasm import ExitLocator, Insn
from ..errors import UsageError
from ..exit_text import owner
from ..exits import Access, Breakpoint, BudgetSpent, Cancelled, Exit, GuestExit, Halt, ReadAccess
from .keyboard import Console, Keyboard
from .points import Point
from .records import Record, Records

if TYPE_CHECKING:
    from ..machine import Machine

__all__ = ["Place"]

#: Accesses between two snapshots of the history, and how many are kept.
_EVERY, _KEEP = 2_000, 64
_WAITS = "the guest waits for a character"


class Place:
    """`machine` has just been loaded. `console` is its sink; `keyboard` its source, None when the input
    comes from elsewhere; `symbols` are names of linear addresses."""

    def __init__(
        self,
        machine: Machine,
        console: Console,
        keyboard: Keyboard | None = None,
        symbols: Mapping[str, int] | None = None,
    ) -> None:
        self.machine = machine
        self.console = console
        self.keyboard = keyboard
        self.symbols = dict(symbols or {})
        self.records = Records()
        self.points: list[Point] = []
        #: The access that waits for its answer; how the guest has ended.
        self.pending: Access | None = None
        self.ended: Exit | None = None
        self._locator = ExitLocator(machine.memory)
        self._locator.learn(machine.vcpu.state().linear_rip)
        #: The machine stands at the last record's exit: it waits for its answer, or has halted there.
        self.at_exit = False
        self._halted = False
        self._cancelled = False
        #: KVM has stepped without interrupts: a free run would not have gone that way.
        self._odd = False
        self._hold: int | None = None
        self._halts = self._printed = 0
        self._control = Controller(machine, lambda: self._cancelled)
        self.reverse: Reverse | None = None
        #: Why there is no going back by an instruction; and whether a way forward is the same twice.
        self.no_reverse = ""
        self.repeats = len(machine.processors.items) == 1 and machine.clock.deterministic
        self._begin_history()
        if keyboard is not None:
            keyboard.now = lambda: self.history.moment
            keyboard.again = lambda: machine.muted

    def _begin_history(self) -> None:
        try:
            self.reverse = reverse_for(self.machine, self._control)
        except UsageError as error:
            self.no_reverse = f"{error.message}; {error.hint}"
            self.history = self.machine.history(exits(_EVERY), keep=_KEEP)
        else:
            self.history = self.reverse.history

    # -- what there is to see

    @property
    def current(self) -> int:
        """The vCPU that ran last."""
        return self.machine.processors.current

    def state(self) -> CpuState:
        """Its registers; before an answered read, those before the instruction."""
        return self.machine.processors.items[self.current].vcpu.state()

    @property
    def waits(self) -> bool:
        """Whether the guest waits for a character that nobody has typed."""
        keyboard = self.keyboard
        if keyboard is None or keyboard.ready() or keyboard.ended:
            return False
        if isinstance(self.pending, ReadAccess):
            return owner(self.machine, type(self.pending), self.pending.address) == "char-in"
        item = self.machine.processors.items[self.current]
        return self._halted and item.can_wake() and self.machine.clock.deadline is None

    @property
    def halted(self) -> bool:
        return self._halted

    def verdict(self) -> str:
        """How the guest has ended, with the exit code that `vmmsim run` would give."""
        if self.ended is None:
            return ""
        if isinstance(self.ended, GuestExit):
            return self.ended.describe()
        verdict = self.machine.outcome(self.ended)
        return f"the guest has ended: {verdict.panicked or self.ended.describe()} (exit code {verdict.code})"

    # -- forward

    def next_exit(self) -> str:
        """To the next exit. Devices answer the one at hand."""
        self._begin()
        if self._finish():
            self._advance()
        return self._standing()

    def step(self) -> str:
        """One instruction, or what is left of the one at hand; to the exit that it makes, if any.
        NotSupported where the CPU cannot."""
        self._begin()
        if self.pending is not None:
            self._finish()
        else:
            self._advance(single=True)
        return self._standing()

    def let(self) -> str:
        """Let the device answer, and finish the instruction."""
        self._begin()
        if self.pending is None:
            raise UsageError("no access waits for an answer", hint="go to the next exit with s")
        self._finish()
        return self._standing()

    def answer(self, value: int | None = None) -> str:
        """Answer by hand, in the place of the device, and finish the instruction. A read needs a `value`;
        a write is kept from its device."""
        self._begin()
        pending, record = self.pending, self.records.last
        if pending is None or record is None:
            raise UsageError("no access waits for an answer", hint="go to the next exit with s")
        if isinstance(pending, ReadAccess) and value is None:
            raise UsageError(
                "a read is answered with a value", hint=f"of {pending.size} bytes: 0x41, 65 or 'A'"
            )
        self.machine.answer_by_hand(pending, value)
        record.by_hand = True
        self._answered()
        if self._rest() and pending.is_write:
            return "the write was kept from the device"
        return self._standing()

    def cancel(self) -> None:
        """From any thread: stop the command that runs, between two instructions."""
        self._cancelled = True
        self.machine.cancel()

    def _begin(self) -> None:
        if self.ended is not None:
            raise UsageError(self.verdict(), hint="go back with u, or quit with q")
        self._fresh()

    def _fresh(self) -> None:
        self._cancelled = False
        self.machine.processors.uncancel()

    def _finish(self) -> bool:
        """Let the device answer what is pending. False: the instruction's next access waits, or the guest
        has ended."""
        if self.pending is None:
            return True
        if self.waits:
            raise UsageError(_WAITS, hint="type it (t), or answer by hand (a)")
        try:
            stop = self.machine.answer(self.pending)
        finally:
            self._answered()
        if stop is not None:
            self._over(stop)
            return False
        return self._rest()

    def _answered(self) -> None:
        self.pending = None
        self.at_exit = False

    def _rest(self) -> bool:
        """Finish the instruction at hand. False: it has made another access."""
        if self.machine.whole():
            return True
        self._take(self.machine.step_exit(), within=True)
        return False

    def _advance(self, *, single: bool = False) -> Exit:
        """To the next exit, or by one instruction, and take it down."""
        if self._odd and not single:
            self._odd = False
            self.history.mark()
        board = any(item.board is not None for item in self.machine.processors)
        exit = self._proceed(single=single)
        self._odd |= single and board and self.machine.vcpu.insns is None
        self._take(exit)
        return exit

    def _proceed(self, *, single: bool = False) -> Exit:
        processors = self.machine.processors
        with self.machine.watched():
            if self._halted and not processors.goes_on(Halt()):
                if self.waits:
                    raise UsageError(_WAITS, hint="type it with t")
                return Halt()  # for good
            woken, self._halted = self._halted, False
            exit = self.machine.step_exit(single=single)
        if isinstance(exit, Cancelled) and woken:
            self._halted = processors.items[self.current].status == "halted"
        return exit

    def _take(self, exit: Exit, *, within: bool = False) -> None:
        self.at_exit = False
        if isinstance(exit, (BudgetSpent, Breakpoint, Cancelled)):
            return
        if isinstance(exit, Halt) and self._halted:
            self._over(exit)
            return
        state = self.state()
        if isinstance(exit, Access):
            insn = self._locator.instruction(state, exit)
            self.pending = exit
        else:
            insn = self._locator.halted(state) if isinstance(exit, Halt) else None
        self._record(exit, self.history.exits, within=within, rip=state.linear_rip, insn=insn)
        self.at_exit = True
        if isinstance(exit, Halt) and self.machine.processors.items[self.current].board is not None:
            self._halted = True
        elif not isinstance(exit, Access):
            self._over(exit, told=True)

    def _record(
        self,
        exit: Exit,
        before: int,
        *,
        within: bool = False,
        rip: int | None = None,
        insn: Insn | None = None,
    ) -> None:
        device = owner(self.machine, type(exit), exit.address) if isinstance(exit, Access) else ""
        record = Record(self.records.count + 1, exit, device, before, len(self.console.data), rip, insn)
        if rip is not None:
            record.within = within
            record.insns = self.machine.processors.insns() if self.machine.vcpu.insns is not None else None
        self.records.add(record)

    def _over(self, exit: Exit, *, told: bool = False) -> None:
        """The guest has ended. Ends that a device made are records, too, unless `told`."""
        self.ended = exit
        self._halted = False
        if not told and not isinstance(exit, Halt):
            self._record(exit, self.history.exits, rip=self.state().linear_rip)
            self.at_exit = True

    def _standing(self) -> str:
        """What there is to say of where the machine stands."""
        if self.ended is not None:
            return self.verdict()
        if self._cancelled:
            return f"stopped at {self.state().linear_rip:#x}, behind exit {self.records.count}"
        if self.waits:
            return f"{_WAITS}: type it with t" + (", or answer by hand with a" if self.pending else "")
        return ""
