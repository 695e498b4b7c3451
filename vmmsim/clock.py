"""The time that devices see, and what is to happen at a certain time.

A device is given a clock and never reads host time. Times are integers: nanoseconds since
the machine began. There are three clocks:

    host   real time, for people at a terminal
    insns  retired instructions, each worth a fixed time: a run repeats to the instruction
    exits  a fixed step at each exit; a halted machine jumps to the next timer. It is the same
           on every CPU, so runs with interrupts can be compared exit by exit

Whoever runs the machine calls `run_due()` between two instructions; it calls the timers
whose time has come, in the thread that runs the vCPU. See `vmmsim.board`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from .errors import UsageError

__all__ = [
    "CATCH_UP",
    "CLOCKS",
    "CLOSE",
    "HOLD",
    "MOST_BEHIND",
    "SECOND",
    "Clock",
    "ExitClock",
    "HostClock",
    "HostTime",
    "InsnClock",
    "Timer",
]

#: Nanoseconds in a second.
SECOND = 1_000_000_000
#: A callback that arms its timer for a time that has passed already is called again at the
#: next `run_due`: so much work is done at once and no more.
_MOST_AT_ONCE = 64
#: How fast the host's clock makes good what it is behind, as a multiple of the host's own pace.
CATCH_UP = 2
#: Nanoseconds that it makes good, at most; and where the guest sees the host's time as well.
MOST_BEHIND, CLOSE = SECOND, SECOND // 20
#: Nanoseconds for which an interrupt that waits holds up the next deadline, at most.
HOLD = SECOND // 10
#: So many deadlines in a row that were late by a quarter of a period are an overload; so many more have a
#: space between them.
_OVERLOAD, _SPACED = 8, 32


class Timer:
    """One thing that happens at `deadline` (ns; None: never). Made by `Clock.timer`.

    The callback is called once, and finds the timer disarmed; a periodic device arms it
    again, at a time after `clock.now()` (periods that were missed are its own to count).
    """

    __slots__ = ("_clock", "callback", "deadline", "name")

    def __init__(self, clock: Clock, callback: Callable[[], None], name: str) -> None:
        self._clock = clock
        self.callback = callback
        self.deadline: int | None = None
        self.name = name

    def set(self, deadline: int) -> None:
        """Call back at `deadline`, and no longer at an earlier setting."""
        if deadline != self.deadline:
            self.deadline = deadline
            self._clock._rearmed()

    def clear(self) -> None:
        """Do not call back."""
        if self.deadline is not None:
            self.deadline = None
            self._clock._rearmed()


class Clock(ABC):
    """Base of the clocks. `changed`, if set, is called when the next deadline is another."""

    kind: str
    #: Whether its time depends on what the guest does alone, so that runs repeat.
    deterministic = True

    def __init__(self) -> None:
        self._timers: list[Timer] = []
        #: The earliest deadline of all timers, None when none is armed.
        self.deadline: int | None = None
        self.changed: Callable[[], None] | None = None

    @abstractmethod
    def now(self) -> int:
        """Nanoseconds since the machine began. Never goes back."""

    @abstractmethod
    def set_now(self, now: int) -> None:
        """Go on from `now`: for a machine that is restored."""

    def timer(self, callback: Callable[[], None], name: str = "") -> Timer:
        """A timer, not armed. There is no way to give one back: devices live with their machine."""
        timer = Timer(self, callback, name)
        self._timers.append(timer)
        return timer

    def forget(self, timer: Timer) -> None:
        """Take a timer away, with its device."""
        if timer in self._timers:
            self._timers.remove(timer)
            self._rearmed()

    def _rearmed(self) -> None:
        earliest: int | None = None
        for timer in self._timers:
            at = timer.deadline
            if at is not None and (earliest is None or at < earliest):
                earliest = at
        if earliest != self.deadline:
            self.deadline = earliest
            if self.changed is not None:
                self.changed()

    def run_due(self) -> None:
        """Call the timers whose deadline has come: the earliest first, then in the order in
        which they were made."""
        for _ in range(_MOST_AT_ONCE):
            if self.deadline is None or self.deadline > self.now():
                return
            first = min((t for t in self._timers if t.deadline is not None), key=lambda t: t.deadline or 0)
            first.clear()
            first.callback()


class HostTime:
    """Where `HostClock` has its time from: the host's, which counts while the process is stopped."""

    def now_ns(self) -> int:
        """Nanoseconds since some moment; never goes back."""
        return time.perf_counter_ns()  # on Windows monotonic_ns moves in steps of 15.6 ms before Python 3.13

    def seconds(self, ns: int) -> float:
        """`ns` of this time as seconds to sleep."""
        return ns / SECOND


class HostClock(Clock):
    """Real time, as far as the guest can follow.

    On a host that keeps up it is real time. Elsewhere four rules hold it back, so that a guest finds
    what it would find on a slower machine, and no time that it did not get (docs/time.md):

    * It stands 1 ns before a deadline until `run_due` has called the timers there. No period is missed.
    * It stands there, too, while an interrupt waits to be taken, which another would be one with. After
      `HOLD` of the host's time it does not: a guest may keep interrupts off for as long as it likes.
    * What it is behind by then it makes good at `CATCH_UP` times the host's pace: as much of the host's
      time as half a period is the guest's between two ticks. More than `MOST_BEHIND` it does not make good.
    * Where deadline after deadline is late even so, all that the host does may be ticks. Then each is given
      twice the time that one has taken, of which the guest has the second half.

    `idle` ends all three: a guest that waits finds the host's time as fast as it takes its ticks.
    """

    kind = "host"
    deterministic = False
    #: For all clocks that are made after it is set.
    source: ClassVar[HostTime] = HostTime()

    def __init__(self) -> None:
        super().__init__()
        self._host = self.source.now_ns
        #: The host's time when this one was 0, but for what the guest has lost since.
        self._began = self._host()
        #: The latest time that was told.
        self._last = 0
        #: The time while timers are called.
        self._held: int | None = None
        #: While it is behind: it was `_from` at the host's time `_since`.
        self._behind = False
        self._from = self._since = 0
        #: How many deadlines in a row were late, since when (host ns); the space after a deadline (host
        #: ns), for how many more there is one, and the host's time until which the last one lasts.
        self._late = self._late_since = self._space = self._spaced = self._opens = 0
        #: Since when an interrupt that waits holds up a deadline (host ns), and whether that took too long.
        self._held_up: int | None = None
        self._gave_up = False
        #: When the machine was stopped, and for how long it stood of late.
        self._stopped: int | None = None
        self._stood = 0
        #: The deadline that a read has come to and that `reached` was told of.
        self._told: int | None = None
        #: How far the host's time may be ahead in ns, and whether what is more is lost or passes at once.
        self._most_behind, self._loses = MOST_BEHIND, True
        #: Has a vCPU call `run_due` at its next boundary, from any thread. None: nobody calls the timers,
        #: and this is the host's time.
        self.reached: Callable[[], None] | None = None
        #: Whether an interrupt waits for a vCPU to take it.
        self.waits: Callable[[], bool] = lambda: False

    def now(self) -> int:
        if self._held is not None:
            return self._held
        host = self._host()
        now = self._free(host)
        deadline = self.deadline
        if deadline is not None and now >= deadline and self.reached is not None:
            if deadline != self._told and host >= self._opens:
                self._told = deadline
                self.reached()
            now = deadline - 1  # a device that is asked at it would begin its next period by itself
        if now < self._last:  # a timer was set to what is over
            return self._last
        self._last = now
        return now

    def _free(self, host: int) -> int:
        """The time when no timer is due."""
        now = host - self._began
        if self._behind:
            slow = self._from + CATCH_UP * (host - self._since)
            if slow < now:
                return slow
            self._behind = False
        return now

    def set_now(self, now: int) -> None:
        self._began = self._host() - now
        self._last = now
        self._stopped, self._stood = None, 0
        self.idle()

    def due_in(self) -> int | None:
        """The host's time until `run_due` has something to do, in ns; None: no timer is armed."""
        deadline = self.deadline
        if deadline is None:
            return None
        return self._due_at(deadline) - self._host()

    def _due_at(self, deadline: int) -> int:
        """The host's time at which `deadline` comes."""
        at = max(self._began + deadline, self._opens)
        return max(at, self._since - (self._from - deadline) // CATCH_UP) if self._behind else at

    def run_due(self) -> None:
        deadline = self.deadline
        if deadline is None:
            return
        host = self._host()
        late = host - self._due_at(deadline)
        if late < 0:
            return
        at = max(deadline, self._last)
        behind = host - self._began - at
        if self._is_held_up(host, self._loses or behind <= self._most_behind):
            return
        self._pace(host, 4 * late >= deadline - self._from)
        if self._stood:
            passed, self._stood = min(behind, self._stood), 0
            at += passed
            behind -= passed
        if behind > self._most_behind:
            if self._loses:
                self._began += behind - self._most_behind
            else:
                at += behind
        self._held = self._last = at
        self._told = None
        try:
            super().run_due()
        finally:
            self._held = None
            self._from, self._since = at, host
            self._behind = host - self._began > at

    def _is_held_up(self, host: int, may: bool) -> bool:
        """Whether an interrupt that waits holds up the deadline that has come; `may`: if it may."""
        waits = self.waits()
        if waits and may and not self._gave_up:
            if self._held_up is None:
                self._held_up = host
            if host - self._held_up < HOLD:
                return True
        self._held_up, self._gave_up = None, waits
        return False

    def _pace(self, host: int, late: bool) -> None:
        """At a deadline: when the next may come at the earliest."""
        if self._spaced:
            self._spaced -= 1
            self._opens = host + self._space
        elif not late:
            self._late = 0
        elif self._late < _OVERLOAD:
            if not self._late:
                self._late_since = host
            self._late += 1
        else:
            self._space = min(2 * (host - self._late_since) // _OVERLOAD, MOST_BEHIND)
            self._spaced, self._late = _SPACED, 0
            self._opens = host + self._space

    # What the machine tells.

    def stay_close(self) -> None:
        """The guest can read the host's time too (KVM's TSC), from which this is not to differ for long."""
        self._most_behind, self._loses = CLOSE, False

    def taken(self) -> None:
        """A vCPU has taken an interrupt: one that still waits may hold up the next deadline anew. Else one of
        a low priority, once it was given up, would find the timer's before it for ever."""
        self._held_up, self._gave_up = None, False

    def idle(self) -> None:
        """No vCPU executes: the host's time is the guest's, deadline by deadline."""
        self._behind = False
        self._held_up = None
        self._opens = self._spaced = self._late = 0

    def stop(self) -> None:
        """The machine does not run until `go_on`. Its time passes."""
        self._stopped = self._host()

    def go_on(self) -> None:
        """The machine runs again. If it stood for long, that has passed at once, and not tick by tick."""
        if self._stopped is not None:
            stood = self._host() - self._stopped
            self._stopped = None
            if stood > self._most_behind:
                self._stood += stood


class _SteppedClock(Clock):
    """A clock that only the machine moves; `skip_to` is for a machine that is halted."""

    def __init__(self) -> None:
        super().__init__()
        self._base = 0

    def skip_to(self, at: int) -> None:
        """Jump forward to `at`, if it lies ahead."""
        ahead = at - self.now()
        if ahead > 0:
            self._base += ahead

    def set_now(self, now: int) -> None:
        self._base += now - self.now()


class ExitClock(_SteppedClock):
    """`step` nanoseconds pass at each exit."""

    kind = "exits"

    def __init__(self, step: int = 1000) -> None:
        super().__init__()
        self.step = step

    def now(self) -> int:
        return self._base

    def tick(self) -> None:
        """An exit was made."""
        self._base += self.step


class InsnClock(_SteppedClock):
    """Each retired instruction takes `1 / rate` seconds. `insns` tells how many there were.

    `rate` is in instructions a second and divides neither the second nor anything else
    evenly; `insn_at(t)` is the first instruction count at which `now()` is at least t.
    """

    kind = "insns"

    def __init__(self, rate: int = 50_000_000, insns: Callable[[], int] = lambda: 0) -> None:
        super().__init__()
        if rate <= 0:
            raise UsageError(f"a clock of {rate} instructions a second", hint="give a number greater than 0")
        self.rate = rate
        self.insns = insns

    def now(self) -> int:
        return self._base + self.insns() * SECOND // self.rate

    def insn_at(self, at: int) -> int:
        """How many instructions must have retired for `now()` to be `at` or later."""
        return max(0, -(-(at - self._base) * self.rate // SECOND))


#: name -> the clock's class.
CLOCKS: dict[str, type[Clock]] = {cls.kind: cls for cls in (HostClock, InsnClock, ExitClock)}
