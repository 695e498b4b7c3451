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

from .errors import UsageError

__all__ = ["CLOCKS", "SECOND", "Clock", "ExitClock", "HostClock", "InsnClock", "Timer"]

#: Nanoseconds in a second.
SECOND = 1_000_000_000
#: A callback that arms its timer for a time that has passed already is called again at the
#: next `run_due`: so much work is done at once and no more.
_MOST_AT_ONCE = 64


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


class HostClock(Clock):
    """Real time, while the machine runs or not."""

    kind = "host"
    deterministic = False

    def __init__(self) -> None:
        super().__init__()
        self._began = time.perf_counter_ns()

    def now(self) -> int:
        return time.perf_counter_ns() - self._began

    def set_now(self, now: int) -> None:
        self._began = time.perf_counter_ns() - now


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
