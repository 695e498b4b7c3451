"""The timer of a PC: an Intel 8254 with a clock of 1,193,182 Hz on all three counters.

Names in quotes are sections of the 8254 data sheet (order 231164-005, September 1993).

A counter is not run tick by tick: it keeps what it was at some tick and works out what it is
now. CLK pulse t falls at ceil(t * 10**9 / 1193182) ns of the machine's clock, so that nothing
drifts. A count is loaded by the pulse after it was written, as in the chip: the guest sees the
old count, and "null count" in the status, until then.

Counter 0 drives IRQ0, and is the one that calls back. What is given up there:

* In modes 2 and 3 the line shows the rising edges of OUT, each as a pulse (low, then high). It is
  brought to OUT's low level only when the guest touches counter 0 in that time. OUT as the status
  and `out2` show it is exact.
* In modes 2 and 3 a pulse comes no sooner than `PULSE_SPACING` after the last: a guest that
  programs a period of some microseconds gets fewer interrupts, and its period's phase stays.
* Pulses that were missed because the callback came late are one pulse.

What the data sheet leaves open: at power-on each counter is in mode 0 with OUT low, no count, both
bytes to be written. A count of 1 in modes 2 and 3 ("illegal") holds OUT high. Digits above
9 in a BCD count are worth what they are, modulo 10000.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ..clock import SECOND, Clock
from ..errors import UsageError
from .base import Irq

__all__ = ["FREQUENCY", "I8254", "PULSE_SPACING", "CounterState", "I8254State"]

#: Ticks a second: the 14.31818 MHz crystal of a PC divided by 12.
FREQUENCY = 1_193_182
#: Nanoseconds between two pulses on IRQ0 in a periodic mode, at least: 25,000 a second.
PULSE_SPACING = 40_000

CONTROL = 3  # offset of the control word register
FLOATING = 0xFF  # nobody drives the bus on a read of it

READ_BACK = 3  # the counter number that makes a control word the read-back command
NOT_COUNT = 0x20
NOT_STATUS = 0x10

LSB, MSB, BOTH = 1, 2, 3  # bits RW of the control word; 0 is the counter latch command

STATUS_OUT = 0x80
STATUS_NULL = 0x40


class CounterState(msgspec.Struct, frozen=True):
    """A counter as it was at CLK pulse `tick`, at power-on by default.

    `control` is the control word, bits 5-0. `count` is the count register as a number
    (1 to 65536 or 10000; None: not written since the control word), `low` its first byte
    while the second is awaited. `element` is the counting element; `period` the count that the
    running period of mode 2, or half period of mode 3, was loaded with. `load_at` is the pulse
    that is going to load the count; `armed` says that OUT is going to move at zero (modes
    0, 1, 4, 5), `low_until` when the strobe of modes 4 and 5 ends.
    """

    tick: int = 0
    control: int = BOTH << 4
    gate: bool = True
    out: bool = False
    count: int | None = None
    null: bool = True
    low: int | None = None
    read_high: bool = False
    count_latch: int | None = None
    status_latch: int | None = None
    element: int = 0
    period: int = 0
    counting: bool = False
    armed: bool = False
    load_at: int | None = None
    low_until: int | None = None


class I8254State(msgspec.Struct, frozen=True):
    """Three counters (2 with its gate low, as port 61h has it at reset), and the time in ns before
    which no further pulse goes to IRQ0 in a periodic mode."""

    counters: tuple[CounterState, CounterState, CounterState] = (
        CounterState(),
        CounterState(),
        CounterState(gate=False),
    )
    hold: int = 0


def _to_bcd(value: int) -> int:
    return value // 1000 << 12 | value // 100 % 10 << 8 | value // 10 % 10 << 4 | value % 10


def _from_bcd(value: int) -> int:
    return (value >> 12) * 1000 + (value >> 8 & 15) * 100 + (value >> 4 & 15) * 10 + (value & 15)


def _check(number: int, state: CounterState) -> None:
    name = f"i8254: counter {number}"
    modulus = 10_000 if state.control & 1 else 65_536
    mode = _mode(state.control)
    ranges: dict[str, tuple[int, int]] = {
        "tick": (0, 1 << 63),
        "control": (LSB << 4, 0x3F),
        "count": (1, modulus),
        "low": (0, 0xFF),
        "count_latch": (0, 0xFFFF),
        "status_latch": (0, 0xFF),
        "element": (0, modulus),
        "period": (0, modulus),
        "load_at": (state.tick + 1, state.tick + 1),
        "low_until": (state.tick + 1, state.tick + 1),
    }
    for field, (least, most) in ranges.items():
        value = getattr(state, field)
        if value is not None and not least <= value <= most:
            raise UsageError(
                f"{name}: {field} = {value} in the state", hint=f"it is from {least} to {most} here"
            )
    if number < 2 and not state.gate:
        raise UsageError(f"{name}: its gate is low in the state", hint="gates 0 and 1 are tied high")
    if state.count is None and (state.counting or state.load_at is not None):
        raise UsageError(f"{name} counts in the state without a count", hint="give its count")
    if state.armed and (not state.element or mode in (2, 3)):
        raise UsageError(f"{name} is armed in the state", hint="that takes mode 0, 1, 4 or 5 and an element")
    if state.counting and mode in (2, 3):
        # The loaded value is even in mode 3, and counts down by two.
        fits = (
            1 <= state.element <= state.period
            if mode == 2
            else state.element <= state.period and not state.element & 1 and state.period
        )
        idle = mode == 3 and not state.period & 1 and not state.element
        if not fits or idle:
            raise UsageError(
                f"{name}: element {state.element} of period {state.period} in mode {mode} in the state",
                hint="mode 2 counts from the period to 1, mode 3 in even steps",
            )


def _mode(control: int) -> int:
    mode = control >> 1 & 7
    return mode & 3 if mode > 5 else mode  # "M2: don't care" of modes 2 and 3


class _Counter:
    """One counter. Whoever reads or changes it calls `advance` to now first."""

    __slots__ = (
        "armed",
        "control",
        "count",
        "count_latch",
        "counting",
        "element",
        "gate",
        "load_at",
        "low",
        "low_until",
        "mode",
        "modulus",
        "null",
        "out",
        "period",
        "read_high",
        "status_latch",
        "tick",
    )

    def __init__(self, state: CounterState) -> None:
        self.tick = state.tick
        self.control = state.control
        self.gate = state.gate
        self.out = state.out
        self.count = state.count
        self.null = state.null
        self.low = state.low
        self.read_high = state.read_high
        self.count_latch = state.count_latch
        self.status_latch = state.status_latch
        self.element = state.element
        self.period = state.period
        self.counting = state.counting
        self.armed = state.armed
        self.load_at = state.load_at
        self.low_until = state.low_until
        self.mode = _mode(state.control)
        self.modulus = 10_000 if state.control & 1 else 65_536

    def state(self) -> CounterState:
        return CounterState(**{field: getattr(self, field) for field in CounterState.__struct_fields__})

    # Time.

    def advance(self, to: int) -> bool:
        """Go on to CLK pulse `to`. Answers whether OUT rose at least once."""
        rose = False
        load_at = self.load_at
        if load_at is not None and load_at <= to:
            rose = self._run(load_at - 1)
            rose |= self._load(load_at)
        return self._run(to) or rose

    def _load(self, at: int) -> bool:
        """The pulse that brings the count into the counting element; it does not count."""
        count = self.count
        assert count is not None
        rose = False
        if self.low_until is not None:  # a strobe lasts one pulse, and this is the next
            self.low_until = None
            self.out = rose = True
        self.tick = at
        self.load_at = None
        self.null = False
        self.counting = True
        self.element = self.period = count
        mode = self.mode
        if mode == 2:
            self.out = True
        elif mode == 3:
            self.out = True
            self.element = count & ~1
        else:
            self.armed = True
            if mode == 1:
                self.out = False
        return rose

    def _run(self, to: int) -> bool:
        pulses = to - self.tick
        if pulses <= 0:
            return False
        self.tick = to
        rose = False
        if self.low_until is not None:
            self.low_until = None
            self.out = rose = True
        mode = self.mode
        # The gate stops the counting, save in modes 1 and 5, where it only triggers.
        if not self.counting or not (self.gate or mode in (1, 5)):
            return rose
        if mode == 2:
            return self._run_rate(pulses)
        if mode == 3:
            return self._run_square(pulses)
        element = self.element
        if self.armed and pulses >= element:
            self.armed = False
            if mode < 2:
                self.out = rose = True
            elif pulses == element:
                self.out = False
                self.low_until = to + 1
            else:
                rose = True  # the strobe has come and gone
        # At zero it wraps and goes on.
        self.element = (element - pulses) % self.modulus
        return rose

    def _run_rate(self, pulses: int) -> bool:
        """ "Mode 2: Rate Generator": OUT is low while the element is 1."""
        rose = False
        if pulses < self.element:
            self.element -= pulses
        else:
            rose = self.period > 1
            pulses -= self.element
            self._reload()
            rose = rose or pulses >= self.period > 1
            self.element = self.period - pulses % self.period
        self.out = self.element > 1 or self.period == 1
        return rose

    def _run_square(self, pulses: int) -> bool:
        """ "Mode 3: Square Wave Mode": by two, and OUT turns with each load. In the high
        half of an odd count the element is 0 for one pulse."""
        rest = self._half_left()
        if pulses < rest:
            self.element -= 2 * pulses
            return False
        was_high = self.out
        pulses -= rest
        self._reload()
        period = self.period
        periods, pulses = divmod(pulses, period)
        self.out = not was_high
        rose = not was_high or (period > 1 and periods > 0)
        half = (period + 1) // 2 if self.out else period // 2
        if pulses >= half:
            pulses -= half
            self.out = was_high
            rose = rose or (was_high and period > 1)
        self.element = (period & ~1) - 2 * pulses
        return rose

    def _half_left(self) -> int:
        """Pulses until OUT turns in mode 3."""
        return self.element // 2 + (self.period & 1 if self.out else 0)

    def _reload(self) -> None:
        assert self.count is not None
        self.period = self.count
        self.null = False

    def next_rise(self) -> int | None:
        """The CLK pulse at which OUT will rise next, if the guest changes nothing."""
        if self.low_until is not None:
            return self.low_until
        count = self.count
        if count is None or not (self.gate or self.mode in (1, 5)):
            return None
        mode = self.mode
        if self.load_at is not None:
            if mode in (2, 3):
                return self.load_at + count if count > 1 else None
            return self.load_at + count + (mode >= 4)
        if not self.counting:
            return None
        if mode == 2:
            # With a period of 1 OUT is high already; what follows may be another count.
            ahead = self.tick + self.element
            if self.period > 1:
                return ahead
            return ahead + count if count > 1 else None
        if mode == 3:
            ahead = self.tick + self._half_left()
            if not self.out:
                return ahead
            return ahead + count // 2 if count > 1 else None
        return self.tick + self.element + (mode >= 4) if self.armed else None

    # What the guest does, at the pulse that `advance` went to.

    def program(self, control: int) -> None:
        """ "Control Word Format": the logic is reset, OUT goes to its first level at once."""
        self.control = control
        self.mode = _mode(control)
        self.modulus = 10_000 if control & 1 else 65_536
        self.element %= self.modulus
        self.out = self.mode != 0
        self.count = self.low = None
        self.count_latch = self.status_latch = self.load_at = self.low_until = None
        self.null = True
        self.read_high = self.counting = self.armed = False
        self.period = 0

    def write(self, value: int) -> None:
        access = self.control >> 4
        if access == LSB:
            raw = value
        elif access == MSB:
            raw = value << 8
        elif self.low is None:
            self.low = value
            if self.mode == 0:
                # "Writing the first byte disables counting. OUT is set low immediately."
                self.counting = self.armed = self.out = False
                self.load_at = None
            return
        else:
            raw = self.low | value << 8
            self.low = None
        if self.control & 1:
            raw = _from_bcd(raw) % 10_000
        self.count = raw or self.modulus
        self.null = True
        mode = self.mode
        if mode == 0:
            self.armed = self.out = False
            self.load_at = self.tick + 1
        elif mode == 4 or (mode in (2, 3) and not self.counting):
            self.load_at = self.tick + 1
        # Modes 1 and 5 wait for a trigger, modes 2 and 3 for the end of the (half) period.

    def set_gate(self, gate: bool) -> None:
        self.gate = gate
        mode = self.mode
        if mode in (0, 4):
            return
        if gate:
            if self.count is not None:
                self.load_at = self.tick + 1
        elif mode in (2, 3):
            self.out = True

    def latch_count(self) -> None:
        if self.count_latch is None:
            self.count_latch = self.shown()

    def latch_status(self) -> None:
        if self.status_latch is None:
            self.status_latch = (
                self.control | (STATUS_OUT if self.out else 0) | (STATUS_NULL if self.null else 0)
            )

    def shown(self) -> int:
        """The counting element as the guest reads it, 16 bits."""
        value = self.element % self.modulus
        return _to_bcd(value) if self.control & 1 else value

    def read(self) -> int:
        if self.status_latch is not None:
            value, self.status_latch = self.status_latch, None
            return value
        value = self.shown() if self.count_latch is None else self.count_latch
        access = self.control >> 4
        high = access == MSB or (access == BOTH and self.read_high)
        if access == BOTH:
            self.read_high = not high
        if access != BOTH or high:
            self.count_latch = None
        return value >> 8 if high else value & 0xFF


class I8254:
    """An 8254: counters 0-2 at offsets 0-2, the control word at 3. `output` is OUT0.

    Gates 0 and 1 are tied high; gate 2 and OUT2 go to port 61h.
    """

    widths: frozenset[int] = frozenset({1})
    #: Ports that the device takes.
    length: ClassVar[int] = 4

    def __init__(self, clock: Clock, output: Irq, *, state: I8254State | None = None) -> None:
        """Raises UsageError for a `state` that the chip cannot be in."""
        state = state or I8254State()
        for number, counter in enumerate(state.counters):
            _check(number, counter)
        if not 0 <= state.hold < 1 << 63:
            raise UsageError(f"i8254: hold = {state.hold} in the state", hint="a time in ns, from 0")
        self._clock = clock
        self._output = output
        self._counters = tuple(_Counter(counter) for counter in state.counters)
        self._hold = state.hold
        self._timer = clock.timer(self._sync, "i8254")
        # The line's level is OUT0's as it was last looked at; a rise since then is still to come.
        output.set(self._counters[0].out)
        self._arm()

    @classmethod
    def from_state(cls, state: I8254State, *, clock: Clock, output: Irq) -> I8254:
        """Raises UsageError for a state that the chip cannot be in."""
        return cls(clock, output, state=state)

    def state(self) -> I8254State:
        first, second, third = self._counters
        return I8254State((first.state(), second.state(), third.state()), self._hold)

    # The pins.

    @property
    def out2(self) -> bool:
        """OUT2 now."""
        return self._counter(2).out

    def set_gate2(self, level: bool) -> None:
        """GATE2: its rise is the trigger of modes 1, 2, 3 and 5."""
        if level != self._counters[2].gate:
            self._counter(2).set_gate(level)

    # What the guest does.

    def read(self, offset: int, size: int, /) -> int:
        offset &= 3
        return FLOATING if offset == CONTROL else self._counter(offset).read()

    def write(self, offset: int, size: int, value: int, /) -> None:
        offset &= 3
        value &= 0xFF
        if offset != CONTROL:
            self._counter(offset).write(value)
            touched = offset == 0
        elif value >> 6 == READ_BACK:
            for number in range(3):
                if value & 2 << number:
                    counter = self._counter(number)
                    if not value & NOT_COUNT:
                        counter.latch_count()
                    if not value & NOT_STATUS:
                        counter.latch_status()
            return
        else:
            counter = self._counter(value >> 6)
            if not value & 0x30:
                counter.latch_count()
                return
            counter.program(value & 0x3F)
            touched = value >> 6 == 0
        if touched:
            self._output.set(self._counters[0].out)
            self._arm()

    # Time.

    def _counter(self, number: int) -> _Counter:
        """A counter as it is now. Counter 0 tells its line first."""
        counter = self._counters[number]
        if number:
            counter.advance(self._clock.now() * FREQUENCY // SECOND)
        else:
            self._sync()
        return counter

    def _sync(self) -> None:
        now = self._clock.now()
        counter = self._counters[0]
        if counter.advance(now * FREQUENCY // SECOND):
            if counter.mode in (2, 3):
                self._hold = now + PULSE_SPACING
            self._output.set(False)
            self._output.set(True)
        self._output.set(counter.out)
        self._arm()

    def _arm(self) -> None:
        counter = self._counters[0]
        tick = counter.next_rise()
        if tick is None:
            self._timer.clear()
            return
        deadline = -(-tick * SECOND // FREQUENCY)
        if counter.mode in (2, 3) and deadline < self._hold:
            deadline = self._hold
        self._timer.set(deadline)
