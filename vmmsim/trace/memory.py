"""What changed in guest memory since the last look: its pages against copies of them.

Linux's page map says which pages were touched at all; elsewhere all are compared. Whoever stored is not
asked, and the guest's mappings stay as they are, so this may be done in the middle of a run.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..memory import PAGE_SIZE
from ..snapshot.host_pages import suspects, touched
from .records import MemoryChange
from .rules import MOST_CHANGES

if TYPE_CHECKING:
    from ..memory import GuestMemory, Region

__all__ = ["MemoryWatch"]

#: Bytes compared at once; of which changes are made of; between two changes that are told as one.
_CHUNK, _BLOCK, _GAP = 1 << 18, 64, 8
#: Bytes of a change that are shown; changes told one by one: more are told by pages.
_SHOWN, _MANY = 64, 48


class MemoryWatch:
    """Looks at the RAM of a machine. `changes` may be called in the middle of a run."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._copies: dict[int, _Copy] = {}
        self.restart()

    def restart(self) -> None:
        """What memory has now is what the next look compares with."""
        for copy in self._copies.values():
            copy.close()
        regions = [region for region in self._memory.regions if not region.readonly]
        self._copies = {region.gpa: _Copy(region) for region in regions}
        for region in regions:
            copy = self._copies[region.gpa]
            for at, length in _filled(self._memory, region):
                copy.take(at, length)

    def changes(self) -> tuple[MemoryChange, ...]:
        """The bytes that are others than at the last call, ascending."""
        found: list[tuple[int, bytes, bytes]] = []
        for region in self._memory.regions:
            copy = self._copies.get(region.gpa)
            if copy is None or copy.size != region.size:
                continue
            stretches = touched(region) if region.anonymous else suspects(region)
            for at, length in stretches:
                found += [(region.gpa + page, old, new) for page, old, new in copy.differing(at, length)]
        if not found:
            return ()
        return _told(found)

    def close(self) -> None:
        for copy in self._copies.values():
            copy.close()
        self._copies.clear()


def _filled(memory: GuestMemory, region: Region) -> Iterator[tuple[int, int]]:
    """(offset, length) of all that may be other than zero."""
    if region.anonymous or memory.base is None:
        yield from touched(region)
        return
    for run in memory.base.runs():
        if region.gpa <= run.gpa < region.end:
            yield run.gpa - region.gpa, run.length
    yield from suspects(region)


class _Copy:
    """A region's bytes as they were."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self.size = region.size
        flags = getattr(mmap, "MAP_NORESERVE", 0)
        if flags:
            self._buffer = mmap.mmap(-1, self.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags)
        else:
            self._buffer = mmap.mmap(-1, self.size)
        self._same = _comparer(region.buffer, self._buffer)

    def take(self, at: int, length: int) -> None:
        for begin in range(at, at + length, _CHUNK):
            end = min(begin + _CHUNK, at + length)
            self._buffer[begin:end] = self._region.buffer[begin:end]

    def differing(self, at: int, length: int) -> Iterator[tuple[int, bytes, bytes]]:
        """(offset, old, new) of each page that differs, which is taken over."""
        for begin in range(at, at + length, _CHUNK):
            size = min(_CHUNK, at + length - begin)
            if self._same(begin, size):
                continue
            for page in range(begin, begin + size, PAGE_SIZE):
                if not self._same(page, PAGE_SIZE):
                    old = self._buffer[page : page + PAGE_SIZE]
                    new = self._region.buffer[page : page + PAGE_SIZE]
                    self._buffer[page : page + PAGE_SIZE] = new
                    yield page, old, new

    def close(self) -> None:
        self._same = lambda at, size: True
        self._buffer.close()


def _comparer(one: mmap.mmap, other: mmap.mmap) -> Callable[[int, int], bool]:
    """What tells whether both have the same bytes, at (offset, size): by the C library, without a copy."""
    try:
        compare = ctypes.PyDLL(None).memcmp
        compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        addresses = []
        for buffer in (one, other):
            anchor = ctypes.c_char.from_buffer(buffer)
            addresses.append(ctypes.addressof(anchor))
            del anchor  # or the mapping could never be closed
    except (OSError, TypeError, AttributeError):  # Windows
        return lambda at, size: one[at : at + size] == other[at : at + size]
    a, b = addresses
    return lambda at, size: not compare(a + at, b + at, size)


def _told(pages: list[tuple[int, bytes, bytes]]) -> tuple[MemoryChange, ...]:
    ranges = [span for gpa, old, new in pages for span in _spans(gpa, old, new)]
    if len(ranges) > _MANY:  # one a page; or one for pages in a row
        ranges = [_whole(list(_spans(gpa, old, new))) for gpa, old, new in pages]
    if len(ranges) > _MANY:
        rows: list[tuple[int, int, bytes, bytes]] = []
        for gpa, size, old, new in ranges:
            if rows and gpa // PAGE_SIZE <= (rows[-1][0] + rows[-1][1] - 1) // PAGE_SIZE + 1:
                first = rows[-1]
                rows[-1] = (first[0], gpa + size - first[0], first[2], first[3])
            else:
                rows.append((gpa, size, old, new))
        ranges = rows[:MOST_CHANGES]
    return tuple(MemoryChange(gpa, size, old.hex(), new.hex()) for gpa, size, old, new in ranges)


def _whole(spans: list[tuple[int, int, bytes, bytes]]) -> tuple[int, int, bytes, bytes]:
    first, last = spans[0], spans[-1]
    return first[0], last[0] + last[1] - first[0], first[2], first[3]


def _spans(gpa: int, old: bytes, new: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """(gpa, size, old, new), the last two cut, of the stretches of a page that differ."""
    begin = end = -1
    for block in range(0, len(old), _BLOCK):
        if old[block : block + _BLOCK] == new[block : block + _BLOCK]:
            continue
        for at in range(block, min(block + _BLOCK, len(old))):
            if old[at] == new[at]:
                continue
            if begin < 0:
                begin = at
            elif at - end > _GAP:
                yield _cut(gpa, old, new, begin, end)
                begin = at
            end = at + 1
    if begin >= 0:
        yield _cut(gpa, old, new, begin, end)


def _cut(gpa: int, old: bytes, new: bytes, begin: int, end: int) -> tuple[int, int, bytes, bytes]:
    shown = slice(begin, min(end, begin + _SHOWN))
    return gpa + begin, end - begin, old[shown], new[shown]
