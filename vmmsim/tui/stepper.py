"""What `vmmsim step` can do with a machine: forward by exits and instructions, back, and answers by hand.

It shows nothing and knows no terminal. Commands run in the thread that calls them, one at a time,
and return what there is to say; `cancel` is for any thread.

To stop *before* an access is answered the machine goes from exit to exit (`Machine.step_exit`), a
thousand a second. A long way goes faster: the devices answer inline, an observer says when the place
was passed, and the history goes back to it (`vmmsim.snapshot.history`). That needs a machine that
runs the same way twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ..budget import exits
from ..cpu.state import CpuState
from ..debug.control import Controller
from ..debug.reverse import Reverse, reverse_for
from ..disasm import ExitLocator
from ..errors import DeviceError, NotSupported, UsageError, VmmsimError
from ..exit_text import owner
from ..exits import Access, Breakpoint, BudgetSpent, Cancelled, Exit, GuestExit, Halt, ReadAccess
from ..outcome import outcome
from ..stops import made
from .keyboard import Console, Keyboard, Starved
from .points import Point
from .records import Record, Records

if TYPE_CHECKING:
    from ..machine import Machine

__all__ = ["Stepper"]

#: Accesses between two snapshots of the history, and how many are kept.
_EVERY, _KEEP = 2_000, 64
_WAITS = "the guest waits for a character"


class Stepper:
    """Steps `machine`, which has just been loaded. `console` is its sink; `keyboard` its source, None
    when the input comes from elsewhere; `symbols` are names of linear addresses."""

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
        self._at_exit = False
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
            keyboard.now = lambda: self.history.exits
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
        code = outcome(self.ended).code
        return self.ended.describe() if isinstance(self.ended, GuestExit) else (
            f"the guest has ended: {self.ended.describe()} (exit code {code})"
        )  # fmt: skip

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

    def go(self, until: int | None = None) -> str:
        """On, until a point, exit number `until`, the end, a wait for input, or `cancel`."""
        self._begin()
        if until is not None and until <= self.records.count:
            raise UsageError(f"exit {until} lies behind", hint=f"there have been {self.records.count}")
        if not self._finish():
            stopped = self._at_point(until)
            if stopped or self.ended is not None:
                return stopped or self._standing()
        elif self._code_point() is not None:
            try:
                self._advance(single=True)
            except NotSupported:  # no step off the breakpoint: without it to the next exit
                self._control.disarm()
                self._advance()
        if self.pending is None and self.repeats and not self._slow and self.ended is None:
            return self._go_fast(until)
        return self._go_slowly(until)

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
        self._at_exit = False

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
        self._at_exit = False
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
        self._record(
            exit, self.history.exits, within=within, rip=state.linear_rip, insn=insn.text if insn else ""
        )
        self._at_exit = True
        if isinstance(exit, Halt) and self.machine.processors.items[self.current].board is not None:
            self._halted = True
        elif not isinstance(exit, Access):
            self._over(exit, told=True)

    def _record(
        self, exit: Exit, before: int, *, within: bool = False, rip: int | None = None, insn: str = ""
    ) -> None:
        device = owner(self.machine, type(exit), exit.address) if isinstance(exit, Access) else ""
        insns = self.machine.processors.insns() if self.machine.vcpu.insns is not None else None
        self.records.add(
            Record(
                self.records.count + 1,
                exit,
                device,
                before,
                len(self.console.data),
                rip,
                insn,
                insns if rip is not None else None,
                within,
            )
        )

    def _over(self, exit: Exit, *, told: bool = False) -> None:
        """The guest has ended. Ends that a device made are records, too, unless `told`."""
        self.ended = exit
        self._halted = False
        if not told and not isinstance(exit, Halt):
            self._record(exit, self.history.exits, rip=self.state().linear_rip)
            self._at_exit = True

    def _standing(self) -> str:
        """What there is to say of where the machine stands."""
        if self.ended is not None:
            return self.verdict()
        if self._cancelled:
            return f"stopped at {self.state().linear_rip:#x}, behind exit {self.records.count}"
        if self.waits:
            return f"{_WAITS}: type it with t" + (", or answer by hand with a" if self.pending else "")
        return ""

    # -- points

    def add_point(self, point: Point) -> str:
        """Stop there from now on. UsageError for one that there is."""
        if point in self.points:
            raise UsageError(f"there is a point at {point} already", hint="remove it with B")
        self.points.append(point)
        if point.kind == "code":
            self._control.add_breakpoint(0, point.address)
        return f"stops at {point}" + (" (in single steps)" if self._slow else "")

    def remove_point(self, point: Point) -> str:
        """No longer."""
        self.points.remove(point)
        if point.kind == "code":
            self._control.remove_breakpoint(0, point.address)
        return f"no stop at {point} any more"

    @property
    def _watched(self) -> list[Point]:
        return [point for point in self.points if point.kind == "ram"]

    @property
    def _slow(self) -> bool:
        """Whether points are looked for between single steps."""
        return bool(self._watched) or self._control.slow

    def _code_point(self) -> Point | None:
        points = [point for point in self.points if point.kind == "code"]
        rip = self.state().linear_rip if points and self.machine.whole() else None
        return next((point for point in points if point.address == rip), None)

    def _hit(self, exit: Access) -> Point | None:
        """The port or MMIO point at which an access is."""
        for point in self.points:
            if point.kind == exit.space and (
                point.address < exit.address + exit.size and exit.address < point.address + point.size
            ):
                return point
        return None

    def _at_point(self, until: int | None) -> str:
        """Why the run stops at the pending access; "": it does not."""
        assert self.pending is not None or self.ended is not None
        if self.pending is None:
            return ""
        point = self._hit(self.pending)
        if point is not None:
            return f"point {point}"
        return self._standing() if self.waits or self.records.count == until else ""

    def _values(self) -> list[bytes]:
        return [self.machine.memory.read(point.address, point.size) for point in self._watched]

    # -- a long way

    def _go_slowly(self, until: int | None) -> str:
        values = self._values()
        self._control.arm()
        try:
            while self.ended is None and not self._cancelled:
                if self.pending is not None:
                    reason = self._at_point(until)
                    if reason or self.records.count == until:
                        return reason
                    self._finish()
                else:
                    exit = self._advance(single=self._slow)
                    if isinstance(exit, (Breakpoint, Cancelled)):
                        break
                    if self.records.count == until and self.pending is None and not self._slow:
                        return self._standing()
                for point, old, new in zip(self._watched, values, self._values(), strict=True):
                    if old != new:
                        return f"point {point}: {old.hex(' ')} is now {new.hex(' ')}"
                if self._slow and self.pending is None and self._code_point() is not None:
                    break
        finally:
            self._control.disarm()
        return self._stopped_at_code()

    def _stopped_at_code(self) -> str:
        point = self._code_point() if self.ended is None else None
        return f"breakpoint {point}" if point is not None else self._standing()

    def _go_fast(self, until: int | None) -> str:
        machine = self.machine
        if self._odd:
            self._odd = False
            self.history.mark()
        if self._halted and self.waits:
            return self._standing()
        self._hold, self._halts, self._printed = None, machine.halts, len(self.console.data)
        self._at_exit = False
        forget = machine.observe(lambda *access: self._passed(until, *access))
        exit: Exit | None = None
        self._control.arm()
        try:
            exit = machine.run()
        except DeviceError as error:
            if not isinstance(error.__cause__, Starved):
                raise
            self._hold = self.history.exits
        finally:
            forget()
            self._control.disarm()
        if self._hold is not None:
            self._fetch(self._hold)
            return self._at_point(until)
        self._pass_halts(machine.halts)
        assert exit is not None
        self._halted = isinstance(exit, Halt) and machine.processors.items[self.current].can_wake()
        if self._halted and self.waits:
            return self._standing()
        if not exit.resumable or not isinstance(exit, (Breakpoint, Cancelled)):
            if not isinstance(exit, Halt):
                self._record(exit, self.history.exits, rip=self.state().linear_rip)
            self._at_exit = True
            self._over(exit, told=True)
        return self._stopped_at_code()

    def _passed(self, until: int | None, cls: type[Access], address: int, size: int, value: int) -> None:
        """An observer of a run: takes the access down, and has the run end behind where it is to stop."""
        if self._hold is not None:
            return
        before = self.history.exits - 1
        self._pass_halts(self.machine.halts)
        self._record(made(cls, address, size, value), before)
        last = self.records.last
        assert last is not None
        # What it has just printed lies behind it.
        last.printed, self._printed = self._printed, last.printed
        if self.records.count == until or (self.points and self._hit(last.exit) is not None):  # type: ignore[arg-type]
            self._hold = before
            self.machine.request_stop(Cancelled())

    def _pass_halts(self, halts: int) -> None:
        for _ in range(halts - self._halts):
            self._record(Halt(), self.history.exits - 1)
        self._halts = halts

    def _fetch(self, before: int) -> None:
        """The run has passed the access behind `before` others: go back to where it waits for its answer."""
        for record in reversed(self.records.tail(64)):
            if record.before < before or not isinstance(record.exit, Access):
                break
            self.console.back_to(record.printed)
            self.records.cut(record.number)
        exit, within = self._reach(before)
        assert exit is not None
        self._take(exit, within=within)

    # -- back

    def back_exit(self) -> str:
        """To the exit before, which waits for its answer again; from the first, to the beginning."""
        last = self.records.last
        if last is None:
            return self.back_to(0)
        return self.back_to(last.number - self._at_exit)

    def back_to(self, number: int) -> str:
        """To exit `number`, as it was before it was answered; 0 is the beginning. UsageError where that is
        not to be had; NotSupported with several vCPUs."""
        self._fresh()
        if len(self.machine.processors.items) > 1:
            raise NotSupported("several vCPUs do not run the same way twice", hint="go back with --cpus 1")
        record = self.records.get(number) if number else None
        before = record.before if record is not None else 0
        first = self.history.places("exits")[0]
        if before < first or (record is None and self.records.count and self._strange(1)):
            raise UsageError(
                f"exit {number} lies before what is kept",
                hint=f"the first {max(first, 0)} accesses are forgotten",
            )
        halts = None
        if record is not None and not isinstance(record.exit, Access):
            halts = self.records.halts_before(record) + 1
        exit, within = self._reach(before, halts, nothing=record is None)
        gone = self.records.cut(number) if record is not None else self.records.cut(1)
        if gone:
            self.console.back_to(gone[0].printed)
        if exit is not None:
            self._take(exit, within=within)
        if record is not None and exit is not None and not record.same(exit):
            return f"this is not the exit {number} that it was: {record.exit.describe()}"
        return self._standing()

    def _strange(self, number: int) -> bool:
        with contextlib.suppress(UsageError):
            return self.records.get(number).before < 0
        return True

    def back_step(self) -> str:
        """To before the last instruction. UsageError, with the reason, where that is not to be had."""
        self._fresh()
        if self.reverse is None:
            raise UsageError(self.no_reverse)
        with self._again():
            while self.pending is not None and (self.pending.is_write or self._is_within):
                # Half an instruction back is its beginning.
                self._answer_again(self.pending)
                self.pending = None
                if not self.machine.whole():
                    exit = self.machine.step_exit()
                    self.pending = exit if isinstance(exit, Access) else None
        self._control.ended = None
        stop = self.reverse.step()
        self._forget_place()
        self._cut_ahead()
        return "this is the beginning" if stop.why.startswith("replaylog") else ""

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
        self._at_exit = self._halted = self._odd = False

    @contextlib.contextmanager
    def _again(self) -> Iterator[None]:
        """Within, answers are as they were the first time, and nothing is printed."""
        with self.machine.unheard():
            yield

    def _answer_again(self, exit: Access) -> None:
        answers, done = self.history.answers, self.history.exits
        with self._again():
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

    # -- what the person changes

    def set_register(self, name: str, value: int) -> str:
        """Of the current vCPU. Begins a new history. UsageError for a name or value that cannot be."""
        self._check_whole()
        vcpu = self.machine.processors.items[self.current].vcpu
        state = vcpu.state()
        if not isinstance(getattr(state, name, None), int) or isinstance(getattr(state, name), bool):
            raise UsageError(
                f"there is no register '{name}' to set", hint="general registers, rip, rflags, cr0..."
            )
        setattr(state, name, value)
        vcpu.set_state(state)
        return self._changed(f"{name} is {value:#x}")

    def set_memory(self, gpa: int, data: bytes) -> str:
        """RAM or ROM, guest-physical. Begins a new history. UsageError where there is no memory."""
        self._check_whole()
        self.machine.memory.write(gpa, data)
        return self._changed(f"{len(data)} bytes at gpa {gpa:#x}")

    def _check_whole(self) -> None:
        if self.pending is not None:
            raise UsageError("an access waits for its answer", hint="finish the instruction first: i, d or a")

    def _changed(self, what: str) -> str:
        self._begin_history()
        self.records.estrange()
        return f"{what}; from here on it goes back to here at most"


def problem(error: VmmsimError) -> str:
    """An error in a line."""
    return f"{error.message} ({error.hint})" if error.hint else error.message
