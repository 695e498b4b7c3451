"""The local APIC's timer (Intel SDM, volume 3, 10.5.4): one-shot, periodic, TSC-deadline.

The bus clock that it counts is 1 GHz, so a tick of the undivided counter is 1 ns of the
machine's clock. The divider slows it down by 1 to 128.

A periodic timer keeps its phase and its counter is exact, but it interrupts at most once
in `SHORTEST_PERIOD`: a guest that asks for an interrupt each nanosecond gets time to run.

Two points where the SDM and CPUs differ, and we do as KVM and CPUs do: a write to LVT that
turns one-shot into periodic, or back, lets the count run on (10.5.4.1 has it disarmed); only
to and from TSC-deadline mode is it disarmed. A new divider slows or speeds the count that
is under way.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..clock import SECOND, Clock
from ..errors import UsageError

__all__ = ["ONE_SHOT", "PERIODIC", "SHORTEST_PERIOD", "TSC_DEADLINE", "ApicTimer", "ApicTimerState"]

# LVT timer, bits 18:17. 3 is reserved and counts nothing.
ONE_SHOT, PERIODIC, TSC_DEADLINE, RESERVED_MODE = 0, 1, 2, 3

#: Nanoseconds between two interrupts of a periodic timer, at least.
SHORTEST_PERIOD = 20_000
#: A TSC that lags behind the clock is looked at again no sooner, in ns.
_LOOK_AGAIN = 1_000
#: Later than any clock gets (292 years), and a number that JSON readers take.
_NEVER = (1 << 63) - 1
_DIVIDE_BITS = 0xB


class ApicTimerState(msgspec.Struct, frozen=True):
    """The timer's registers, at power-on by default.

    `initial` and `divide` are the initial count and the divide configuration register;
    `expires` is when the count under way reaches 0 (clock ns), None when none is;
    `tsc_deadline` is IA32_TSC_DEADLINE, 0 when disarmed.
    """

    initial: int = 0
    divide: int = 0
    expires: int | None = None
    tsc_deadline: int = 0


def _divider(divide: int) -> int:
    """The divide configuration register, figure 10-10: bits 3, 1 and 0; 111 is 1."""
    return 1 << ((divide & 3 | divide >> 1 & 4) + 1 & 7)


def _check(state: ApicTimerState, mode: int) -> None:
    for field, limit in (("initial", 0xFFFF_FFFF), ("tsc_deadline", (1 << 64) - 1)):
        if not 0 <= getattr(state, field) <= limit:
            raise UsageError(
                f"local APIC timer: {field} = {getattr(state, field):#x} in the state",
                hint=f"at most {limit:#x} fits",
            )
    if state.divide & ~_DIVIDE_BITS:
        raise UsageError(
            f"local APIC timer: divide = {state.divide:#x} in the state",
            hint="only the bits 0xb exist",
        )
    if state.expires is not None and not 0 <= state.expires <= _NEVER:
        raise UsageError(
            f"local APIC timer: expires = {state.expires} in the state", hint="give nanoseconds, from 0"
        )
    counts = {TSC_DEADLINE: state.tsc_deadline, RESERVED_MODE: 0}.get(mode, state.initial)
    if state.expires is not None and not counts:
        raise UsageError(
            f"local APIC timer: a count is under way in the state, and mode {mode} has nothing to count",
            hint="set initial or tsc_deadline, or leave expires out",
        )


class ApicTimer:
    """Counts, and calls `fire` at 0. `mode` is the one of the LVT entry, bits 18:17.

    `tsc` reads the guest's time-stamp counter, which advances `tsc_hz` a second. Without it
    there is no TSC-deadline mode.
    """

    def __init__(
        self,
        clock: Clock,
        fire: Callable[[], None],
        *,
        name: str,
        tsc: Callable[[], int] | None,
        tsc_hz: int,
        mode: int,
        state: ApicTimerState,
    ) -> None:
        """Raises UsageError for a `state` that the timer cannot be in."""
        _check(state, mode)
        if tsc_hz <= 0:
            raise UsageError(f"a TSC of {tsc_hz} Hz", hint="give a number greater than 0")
        self._clock = clock
        self._fire = fire
        self._tsc = tsc
        self._tsc_hz = tsc_hz
        self.mode = mode
        self.initial = state.initial
        self.divide = state.divide
        self._expires = state.expires
        self._tsc_deadline = state.tsc_deadline
        self._timer = clock.timer(self._expired, name)
        self._arm(state.expires)

    def state(self) -> ApicTimerState:
        return ApicTimerState(self.initial, self.divide, self._expires, self._tsc_deadline)

    def reset(self) -> None:
        """As after power-on; `mode` too."""
        self.mode = ONE_SHOT
        self.divide = 0
        self._stop()

    def _stop(self) -> None:
        self.initial = 0
        self._tsc_deadline = 0
        self._arm(None)

    def _arm(self, expires: int | None) -> None:
        self._expires = expires
        if expires is None:
            self._timer.clear()
        else:
            self._timer.set(expires)

    def settle(self) -> None:
        """Fire now if the count has reached 0 and the clock's callback is still to come."""
        if self._expires is not None and self._expires <= self._clock.now():
            self._expired()

    # What the guest sees.

    def set_mode(self, mode: int) -> None:
        """LVT was written. The caller has called `settle` before."""
        if mode != self.mode:
            if mode >= TSC_DEADLINE or self.mode >= TSC_DEADLINE:
                self._stop()
            self.mode = mode

    def set_initial(self, count: int) -> None:
        """Start counting down from `count`; 0 stops. Ignored in TSC-deadline mode."""
        if self.mode == TSC_DEADLINE:
            return
        self.settle()
        self.initial = count
        running = count and self.mode != RESERVED_MODE
        self._arm(self._clock.now() + count * _divider(self.divide) if running else None)

    def set_divide(self, value: int) -> None:
        self.settle()
        count = self.current()
        self.divide = value & _DIVIDE_BITS
        if count:
            self._arm(self._clock.now() + count * _divider(self.divide))

    def current(self) -> int:
        """The current count register; 0 in TSC-deadline mode."""
        if self._expires is None or self.mode == TSC_DEADLINE:
            return 0
        divider = _divider(self.divide)
        left = self._expires - self._clock.now()
        if self.mode == PERIODIC:
            # `expires` may lie several periods ahead, or behind when the callback is late.
            left = (left - 1) % (self.initial * divider) + 1
        return -(-max(left, 0) // divider)

    @property
    def tsc_deadline(self) -> int:
        """IA32_TSC_DEADLINE: 0 when disarmed."""
        return self._tsc_deadline

    def set_tsc_deadline(self, deadline: int) -> None:
        """Fire when the TSC is at `deadline` or beyond; 0 disarms. Ignored in other modes."""
        if self.mode == TSC_DEADLINE:
            self._tsc_deadline = deadline
            self.tsc_changed()

    def tsc_changed(self) -> None:
        """The guest's TSC was written: look how far the deadline is now."""
        if self.mode != TSC_DEADLINE:
            return
        if not self._tsc_deadline:
            self._arm(None)
        else:
            self._look_at_tsc(0)

    def _look_at_tsc(self, soonest: int) -> None:
        left = self._tsc_deadline - (self._tsc() if self._tsc is not None else 0)
        if left > 0:
            ahead = max(-(-left * SECOND // self._tsc_hz), soonest)
            self._arm(min(self._clock.now() + ahead, _NEVER))
        else:
            self._tsc_deadline = 0
            self._arm(None)
            self._fire()

    def _expired(self) -> None:
        if self.mode == TSC_DEADLINE:
            # The TSC may run slower than the clock, or the guest has set it back.
            self._look_at_tsc(_LOOK_AGAIN)
            return
        if self.mode == PERIODIC and self._expires is not None:
            # However many periods have passed, one interrupt tells of them all.
            period = self.initial * _divider(self.divide)
            after = self._clock.now() + (SHORTEST_PERIOD if period < SHORTEST_PERIOD else 1)
            periods = max(1, -((self._expires - after) // period))
            self._arm(self._expires + periods * period)
        else:
            self._arm(None)
        self._fire()
