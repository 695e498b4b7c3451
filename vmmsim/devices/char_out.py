"""CharOut: the talk's screen, one register that prints what is written to it."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from .base import CharSink

__all__ = ["CharOut", "CharOutState"]


class CharOutState(msgspec.Struct, frozen=True):
    """CharOut keeps nothing: what was printed is out."""


class CharOut:
    """One byte wide, one register at offset 0: a write prints its low byte, a read answers 0."""

    widths: frozenset[int] = frozenset({1})
    #: Addresses that the device takes on its bus, in bytes.
    length: ClassVar[int] = 1

    def __init__(self, sink: CharSink, *, state: CharOutState | None = None) -> None:
        self._put = sink.put

    @classmethod
    def from_state(cls, state: CharOutState, *, sink: CharSink) -> CharOut:
        return cls(sink, state=state)

    def state(self) -> CharOutState:
        return CharOutState()

    def read(self, offset: int, size: int, /) -> int:
        return 0

    def write(self, offset: int, size: int, value: int, /) -> None:
        self._put(bytes((value & 0xFF,)))
