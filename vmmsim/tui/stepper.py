"""What `vmmsim step` can do with a machine: forward by exits and instructions, back, and answers by hand.

It shows nothing and knows no terminal. Commands run in the thread that calls them, one at a time,
and return what there is to say; `cancel` is for any thread.

To stop *before* an access is answered the machine goes from exit to exit, some thousand a second. A
long way goes faster: the devices answer inline, an observer says when the place was passed, and the
history goes back to it. That needs a machine that runs the same way twice.
"""

from __future__ import annotations

from ..errors import DeviceError, NotSupported, UsageError
from ..exits import Access, Breakpoint, Cancelled, Exit, Halt
from ..stops import made
from .back import Back
from .keyboard import Starved
from .points import Point

__all__ = ["Stepper"]


class Stepper(Back):
    """See `Place` for what it is made of."""

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

    def run_out(self) -> str:
        """To the end: on over all points."""
        points, self.points = self.points, []
        self._control.clear()
        try:
            return self.go()
        finally:
            self.points = points
            for point in points:
                if point.kind == "code":
                    self._control.add_breakpoint(0, point.address)

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
        self.at_exit = False
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
            if until is not None and self.records.count > until:
                return self.back_to(until)
            return self._at_point(until)
        self._pass_halts(self.history.exits)
        assert exit is not None
        self._halted = isinstance(exit, Halt) and machine.processors.items[self.current].can_wake()
        if self._halted and self.waits:
            return self._standing()
        if not exit.resumable or not isinstance(exit, (Breakpoint, Cancelled)):
            if not isinstance(exit, Halt):
                self._record(exit, self.history.exits, rip=self.state().linear_rip)
            self.at_exit = True
            self._over(exit, told=True)
        return self._stopped_at_code()

    def _passed(self, until: int | None, cls: type[Access], address: int, size: int, value: int) -> None:
        """An observer of a run: takes the access down, and has the run end behind where it is to stop."""
        if self._hold is not None:
            return
        before = self.history.exits - 1
        self._pass_halts(before)
        self._record(made(cls, address, size, value), before)
        last = self.records.last
        assert last is not None
        # What it has just printed lies behind it.
        last.printed, self._printed = self._printed, last.printed
        passed = until is not None and self.records.count >= until  # it may have been a halt
        if passed or (self.points and self._hit(last.exit) is not None):  # type: ignore[arg-type]
            self._hold = before
            self.machine.request_stop(Cancelled())

    def _pass_halts(self, before: int) -> None:
        """Take down the halts since the last access; `before` accesses were done."""
        halts = self.machine.halts
        for _ in range(halts - self._halts):
            self._record(Halt(), before)
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
