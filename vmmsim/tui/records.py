"""The list of exits so far."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ..disasm import Insn
from ..errors import UsageError
from ..exits import Access, Exit

__all__ = ["Record", "Records"]

#: So many are kept; when there are half as many more, the older ones are forgotten.
_KEPT = 20_000


class Record(msgspec.Struct):
    """One exit. `before` is the number of accesses before it since the history began (-1: of another
    history), `printed` of the console's bytes, `within` whether its instruction had made another access
    first, `rip` linear and `insn` what made it, None where nobody looked; `insns` None
    where nobody counts."""

    number: int
    exit: Exit
    device: str
    before: int
    printed: int
    rip: int | None = None
    insn: Insn | None = None
    insns: int | None = None
    within: bool = False
    by_hand: bool = False

    def same(self, other: Exit) -> bool:
        """Whether `other` is this exit once more; what a read is answered does not matter."""
        mine = self.exit
        if type(mine) is not type(other) or not isinstance(mine, Access) or not isinstance(other, Access):
            return type(mine) is type(other)
        same = (mine.address, mine.size) == (other.address, other.size)
        return same and (not mine.is_write or mine.value == other.value)  # type: ignore[attr-defined]


class Records:
    """The exits, oldest first; numbers begin with 1 and do not change."""

    def __init__(self) -> None:
        self._kept: list[Record] = []
        #: How many there have been.
        self.count = 0

    def add(self, record: Record) -> None:
        self.count = record.number
        self._kept.append(record)
        if len(self._kept) > _KEPT * 3 // 2:
            del self._kept[:-_KEPT]

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._kept))

    def span(self) -> range:
        """The numbers of those that are kept."""
        return range(self.count - len(self._kept) + 1, self.count + 1)

    @property
    def last(self) -> Record | None:
        return self._kept[-1] if self._kept else None

    def tail(self, count: int, *, end: int | None = None) -> list[Record]:
        """The last `count`, up to number `end`."""
        stop = len(self._kept) if end is None else max(0, end - self.count + len(self._kept))
        return self._kept[max(0, stop - count) : stop]

    def get(self, number: int) -> Record:
        """UsageError for one that there is not, or not any more."""
        at = number - self.count + len(self._kept) - 1
        if not self._kept or not 0 <= at < len(self._kept):
            first = self._kept[0].number if self._kept else 0
            raise UsageError(
                f"there is no exit {number} to go to",
                hint=f"there are {first} to {self.count}" if self._kept else "there has been none",
            )
        return self._kept[at]

    def halts_before(self, record: Record) -> int:
        """How many halts lie between the last access before `record`, and it."""
        count = 0
        for other in self.tail(len(self._kept), end=record.number - 1)[::-1]:
            if other.before != record.before or isinstance(other.exit, Access):
                break
            count += 1
        return count

    def cut(self, number: int) -> list[Record]:
        """Forget those from `number` on, and return them."""
        at = max(0, number - self.count + len(self._kept) - 1)
        gone, self._kept = self._kept[at:], self._kept[:at]
        self.count = min(self.count, number - 1)
        return gone

    def own(self) -> int:
        """The number of the first of this history, or of the next one."""
        return next((record.number for record in self._kept if record.before >= 0), self.count + 1)

    def estrange(self) -> None:
        """A new history begins: there is no way to these any more."""
        for record in self._kept:
            record.before = -1
