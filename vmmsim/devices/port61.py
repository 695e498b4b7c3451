"""Port 61h, system control port B: the speaker's gate and what the timer says.

IBM PC/AT Technical Reference, "Port B". Nothing is heard.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ..clock import SECOND, Clock
from ..errors import UsageError
from .i8254 import FREQUENCY, I8254

__all__ = ["Port61", "Port61State"]

GATE2 = 0x01
# 0x02 is the speaker's data, 0x04 and 0x08 keep the parity and the channel check off.
WRITABLE = 0x0F
REFRESH = 0x10
OUT2 = 0x20
# 0x40 and 0x80, a channel check and a parity error, never come.

#: Timer ticks between two refresh requests: 15.085 us. It is what the PC's BIOS programs into
#: counter 1, and does not follow it here.
REFRESH_TICKS = 18


class Port61State(msgspec.Struct, frozen=True):
    """`value` is bits 3-0 as written; all else follows from the timer and the time."""

    value: int = 0


class Port61:
    """One register. Bit 4 turns with each refresh request, bit 5 is the timer's OUT2.

    `pit` is given the gate of its counter 2, at construction too. `clock` is the machine's.
    """

    widths: frozenset[int] = frozenset({1})
    #: Ports that the device takes.
    length: ClassVar[int] = 1

    def __init__(self, pit: I8254, clock: Clock, *, state: Port61State | None = None) -> None:
        """Raises UsageError for a `state` that the port cannot be in."""
        state = state or Port61State()
        if state.value & ~WRITABLE:
            raise UsageError(
                f"port61: value = {state.value:#x} in the state has bits that are not kept",
                hint=f"only the bits {WRITABLE:#x} are",
            )
        self._pit = pit
        self._clock = clock
        self._value = state.value
        pit.set_gate2(bool(self._value & GATE2))

    @classmethod
    def from_state(cls, state: Port61State, *, pit: I8254, clock: Clock) -> Port61:
        """Raises UsageError for a state that the port cannot be in."""
        return cls(pit, clock, state=state)

    def state(self) -> Port61State:
        return Port61State(self._value)

    def read(self, offset: int, size: int, /) -> int:
        value = self._value
        if self._clock.now() * FREQUENCY // (SECOND * REFRESH_TICKS) & 1:
            value |= REFRESH
        if self._pit.out2:
            value |= OUT2
        return value

    def write(self, offset: int, size: int, value: int, /) -> None:
        self._value = value & WRITABLE
        self._pit.set_gate2(bool(value & GATE2))
