"""Port 80h: where a PC's firmware says how far it came (POST codes).

IBM PC/AT Technical Reference, "Manufacturing test port": a byte written is latched for a
display card. Guests also write here to wait for an I/O cycle, so most codes are idle talk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import ClassVar

import msgspec

from ..errors import UsageError

__all__ = ["KEPT", "PostCode", "PostCodeState"]

#: How many of the last codes are kept.
KEPT = 256


class PostCodeState(msgspec.Struct, frozen=True):
    """`codes` are the last codes (0-255), oldest first; at most `KEPT` of them."""

    codes: tuple[int, ...] = ()


class PostCode:
    """One byte wide, one port: a write is a code, a read answers the last one.

    Before the first write a read answers 0xFF, as a port does that has no latch. `on_code`
    is called with each code, for a host that shows or traces them.
    """

    widths: frozenset[int] = frozenset({1})
    #: Ports that the device takes.
    length: ClassVar[int] = 1

    def __init__(
        self, on_code: Callable[[int], None] | None = None, *, state: PostCodeState | None = None
    ) -> None:
        """Raises UsageError for a state with too many codes or one that is no byte."""
        state = state or PostCodeState()
        if len(state.codes) > KEPT:
            raise UsageError(
                f"post code: {len(state.codes)} codes in the state", hint=f"the last {KEPT} are kept"
            )
        for code in state.codes:
            if not 0 <= code <= 0xFF:
                raise UsageError(f"post code: the code {code} in the state is no byte", hint="use 0 to 255")
        self._on_code = on_code
        self._codes = deque(state.codes, maxlen=KEPT)

    @classmethod
    def from_state(cls, state: PostCodeState, *, on_code: Callable[[int], None] | None = None) -> PostCode:
        """Does not call `on_code` for the codes in the state."""
        return cls(on_code, state=state)

    def state(self) -> PostCodeState:
        return PostCodeState(tuple(self._codes))

    @property
    def codes(self) -> tuple[int, ...]:
        """The last codes, oldest first."""
        return tuple(self._codes)

    def read(self, offset: int, size: int, /) -> int:
        return self._codes[-1] if self._codes else 0xFF

    def write(self, offset: int, size: int, value: int, /) -> None:
        code = value & 0xFF
        self._codes.append(code)
        if self._on_code is not None:
            self._on_code(code)
