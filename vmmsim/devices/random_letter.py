"""RandomLetter: the talk's dice, one register that answers a letter to be guessed."""

from __future__ import annotations

import random as _random
from typing import ClassVar

import msgspec

__all__ = ["RandomLetter", "RandomLetterState"]


class RandomLetterState(msgspec.Struct, frozen=True):
    """RandomLetter keeps nothing: the random source is a resource, like a clock."""


class RandomLetter:
    """One byte wide, one register at offset 0: a read answers 'a' to 'z' (0x61-0x7A).

    `random` is where the letters come from; give `random.Random(seed)` for a run that can
    be repeated. Writes are ignored.
    """

    widths: frozenset[int] = frozenset({1})
    #: Addresses that the device takes on its bus, in bytes.
    length: ClassVar[int] = 1

    def __init__(self, random: _random.Random, *, state: RandomLetterState | None = None) -> None:
        # random() is the one method whose sequence Python promises to keep for a seed;
        # randrange() and choice() may change from version to version.
        self._random = random.random

    @classmethod
    def from_state(cls, state: RandomLetterState, *, random: _random.Random) -> RandomLetter:
        return cls(random, state=state)

    def state(self) -> RandomLetterState:
        return RandomLetterState()

    def read(self, offset: int, size: int, /) -> int:
        return 0x61 + int(self._random() * 26)

    def write(self, offset: int, size: int, value: int, /) -> None:
        pass
