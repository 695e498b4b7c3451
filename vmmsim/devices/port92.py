"""System control port A (port 92h) of IBM's PS/2: the fast reset and the fast A20 gate.

From the PS/2 Hardware Interface Technical Reference, "System Control Port A": bits 7 and 6
are the activity light, 4 a watchdog's status, 3 the lock of the password in the RTC's
RAM, 1 the A20 gate, 0 the alternate reset. Bits 5 and 2 are reserved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import msgspec

from ..errors import UsageError

__all__ = ["Port92", "Port92State"]

RESET = 0x01
A20 = 0x02
LOCK = 0x08
LIGHT = 0xC0
_KEPT = LIGHT | LOCK | A20 | RESET


class Port92State(msgspec.Struct, frozen=True):
    """`value` is what the port reads as; 0 at power-on."""

    value: int = 0


class Port92:
    """One byte. Bit 0 going from 0 to 1 calls `on_reset`; bit 1 moving calls `on_a20` with its
    new level (None: not connected).

    On a PC the gate is open when this port or the keyboard controller opens it, so whoever
    connects both asks both for `a20`. Bit 3, once set, stays until power-on as in the
    reference, but there is no password to lock. There is no watchdog either: bit 4 reads 0.
    """

    widths: frozenset[int] = frozenset({1})
    #: Ports that the device takes.
    length: ClassVar[int] = 1

    def __init__(
        self,
        on_reset: Callable[[], None],
        on_a20: Callable[[bool], None] | None = None,
        *,
        state: Port92State | None = None,
    ) -> None:
        """Raises UsageError for a `state` that the port cannot be in."""
        state = state or Port92State()
        if state.value & ~_KEPT:
            raise UsageError(
                f"port 92h: {state.value:#x} in the state", hint=f"only the bits {_KEPT:#x} exist"
            )
        self._on_reset = on_reset
        self._on_a20 = on_a20
        self._value = state.value

    @classmethod
    def from_state(
        cls,
        state: Port92State,
        *,
        on_reset: Callable[[], None],
        on_a20: Callable[[bool], None] | None = None,
    ) -> Port92:
        """Calls neither: a reset that was made is not made again, and `a20` tells the level."""
        return cls(on_reset, on_a20, state=state)

    def state(self) -> Port92State:
        return Port92State(self._value)

    @property
    def a20(self) -> bool:
        """Whether this port lets address line 20 through."""
        return bool(self._value & A20)

    def read(self, offset: int, size: int, /) -> int:
        return self._value

    def write(self, offset: int, size: int, value: int, /) -> None:
        before = self._value
        self._value = value & _KEPT | before & LOCK
        moved = before ^ self._value
        if moved & A20 and self._on_a20 is not None:
            self._on_a20(self.a20)
        if moved & self._value & RESET:
            self._on_reset()
