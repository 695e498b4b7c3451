"""CharIn: the talk's keyboard, one register that answers the next character of the input."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from .base import CharSource

__all__ = ["EOT", "CharIn", "CharInState"]

#: ASCII "end of transmission", what Ctrl-D types: the answer once the input is over.
EOT = 0x04


class CharInState(msgspec.Struct, frozen=True):
    """CharIn keeps nothing: what has not been read yet is still in its source."""


class CharIn:
    """One byte wide, one register at offset 0.

    A read waits until there is a character and answers it; at the end of the input it
    answers `EOT` (0x04), each time. A read that is given up because the machine was
    cancelled while it waited answers 0 (NUL, no character), so that the instruction can
    finish and the machine stops between two instructions. Writes are ignored.
    """

    widths: frozenset[int] = frozenset({1})
    #: Addresses that the device takes on its bus, in bytes.
    length: ClassVar[int] = 1

    def __init__(self, source: CharSource, *, state: CharInState | None = None) -> None:
        self._source = source

    @classmethod
    def from_state(cls, state: CharInState, *, source: CharSource) -> CharIn:
        return cls(source, state=state)

    def state(self) -> CharInState:
        return CharInState()

    def read(self, offset: int, size: int, /) -> int:
        byte = self._source.wait()
        if byte is not None:
            return byte
        return EOT if self._source.ended else 0

    def write(self, offset: int, size: int, value: int, /) -> None:
        pass
