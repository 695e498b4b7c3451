"""Port CF9h, the reset control register (RCR) of Intel's PCI chip sets.

82371SB (PIIX3) data sheet, "Reset Control Register"; the later ICH name it RST_CNT. This is
the register that ACPI's FADT names as RESET_REG, with the value 6.

The port lies inside the PCI configuration mechanism's CF8h-CFFh: the host bridge takes a
32-bit access to CF8h as its address register, and hands a byte access to CF9h to this
register. Whoever owns CF8h on the bus forwards it; alone, this device is put at CF9h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import msgspec

from ..errors import UsageError

__all__ = ["ResetControl", "ResetControlState"]

HARD = 0x02  # SRST: the reset that RCPU starts is a hard one
RCPU = 0x04  # its change from 0 to 1 resets
FULL = 0x08  # FULL_RST of the ICH: the power goes off and on as well
KEPT = HARD | FULL


class ResetControlState(msgspec.Struct, frozen=True):
    """`rcr` is the register without RCPU, which falls back with the reset that it starts."""

    rcr: int = 0


class ResetControl:
    """One byte wide, one port. A write with bit 2 calls `on_reset(hard)`.

    `hard` is bit 1: all of the machine is reset; without it only the CPU is (INIT). A reset
    begins when RCPU rises. It ends at once, and with it RCPU, so each write that has the bit resets.
    """

    widths: frozenset[int] = frozenset({1})
    #: Ports that the device takes.
    length: ClassVar[int] = 1

    def __init__(self, on_reset: Callable[[bool], None], *, state: ResetControlState | None = None) -> None:
        """Raises UsageError for a state with bits that the register does not keep."""
        state = state or ResetControlState()
        if state.rcr & ~KEPT:
            raise UsageError(
                f"reset control: RCR {state.rcr:#x} in the state", hint=f"only the bits {KEPT:#x} are kept"
            )
        self._on_reset = on_reset
        self._rcr = state.rcr

    @classmethod
    def from_state(cls, state: ResetControlState, *, on_reset: Callable[[bool], None]) -> ResetControl:
        """Does not call `on_reset`: a reset that was done is not done again."""
        return cls(on_reset, state=state)

    def state(self) -> ResetControlState:
        return ResetControlState(self._rcr)

    def read(self, offset: int, size: int, /) -> int:
        return self._rcr

    def write(self, offset: int, size: int, value: int, /) -> None:
        self._rcr = value & KEPT
        if value & RCPU:
            self._on_reset(bool(value & HARD))
