"""MemoryImage: guest memory at one moment, in 4 KiB pages; a page that is not there is zero.

An image is a list of runs, each some pages in a row: in a buffer of this process, or in a
file that is mapped, not read. An incremental image has a parent, and only what differs from it.
Finding a page, and opening an image, cost by the number of runs and not by the size of memory.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from ..errors import UsageError
from ..memory import GPA_LIMIT, PAGE_SIZE

__all__ = [
    "ZERO_PAGE",
    "MappedFile",
    "MemoryImage",
    "MemoryRegion",
    "Run",
    "differences",
    "filled",
    "region_of",
]

ZERO_PAGE = bytes(PAGE_SIZE)
#: Buffers are looked through in pieces of so many bytes: one comparison, if the piece is all zero.
_PIECE = 1 << 20
_ZERO_PIECE = bytes(_PIECE)
#: Bytes read in one call.
_MOST_READ = 1 << 26
#: More memory than any machine has (layout.MAX_MEMORY), with its ROMs.
_MOST_MEMORY = 1 << 40
_MOST_REGIONS = 4096


class MemoryRegion(msgspec.Struct, frozen=True):
    """`size` bytes of RAM, or of ROM, at guest-physical `gpa`; both are multiples of 4096."""

    gpa: int
    size: int
    readonly: bool = False
    name: str = ""

    @property
    def end(self) -> int:
        return self.gpa + self.size


class MappedFile:
    """A file's bytes, mapped read-only. The descriptor lives as long as this object does.

    With `copied`, as on Windows, the bytes are read and the descriptor is closed at once: a file
    that is open or mapped there can be neither replaced nor renamed, and saving over a snapshot that is
    loaded does the first. What is loaded then takes as much memory as the file is long.
    """

    def __init__(self, fd: int, path: str, *, copied: bool = os.name == "nt") -> None:
        self.path = path
        self.size = os.fstat(fd).st_size
        if copied:
            self.view = _read_all(fd, self.size)
            self._fd = -1
            os.close(fd)
            return
        self.view = memoryview(mmap.mmap(fd, self.size, access=mmap.ACCESS_READ))
        self._fd = fd
        weakref.finalize(self, os.close, fd)

    def fileno(self) -> int:
        """The descriptor: runs of the file can be mapped once more, MAP_PRIVATE, for a clone."""
        return self._fd


def _read_all(fd: int, size: int) -> memoryview:
    view = memoryview(mmap.mmap(-1, size))
    with open(fd, "rb", buffering=0, closefd=False) as file:
        file.seek(0)
        done = 0
        while count := file.readinto(view[done : done + _MOST_READ]):
            done += count
    if done != size:
        raise OSError(f"it has {done} bytes, and had {size} before")
    return view.toreadonly()


class Run(NamedTuple):
    """`length` bytes of pages at `gpa`: in `buffer`, or zero where that is None.

    `offset` is where they are in `file`, which is None for a buffer of this process. Zero
    runs are in incremental images only, over pages of the parent that are not zero.
    """

    gpa: int
    length: int
    buffer: memoryview | None
    offset: int = 0
    file: MappedFile | None = None

    @property
    def end(self) -> int:
        return self.gpa + self.length

    def cut(self, start: int, end: int) -> Run:
        """The part from guest-physical `start` to `end`, which lie inside."""
        at = start - self.gpa
        part = None if self.buffer is None else self.buffer[at : at + end - start]
        return Run(start, end - start, part, self.offset + at if self.file else 0, self.file)


class MemoryImage:
    """Regions and their pages. `own` are the runs of this image, `parent` has the others.

    `id` is the hash of the file that it came from, `path` where that was. Raises UsageError for regions that
    overlap, or runs that are not whole pages of one region, in ascending order.
    """

    def __init__(
        self,
        regions: Iterable[MemoryRegion],
        own: Iterable[Run] = (),
        *,
        parent: MemoryImage | None = None,
        id: str | None = None,
        path: str | None = None,
    ) -> None:
        self.regions = tuple(regions)
        self.own = tuple(own)
        self.parent = parent
        self.id = id
        self.path = path
        #: Host pages with its bytes, once guest memory was mapped over them (vmmsim.snapshot.cow).
        self.backing: Any = None
        check_regions(self.regions)
        if parent is not None and parent.regions != self.regions:
            raise UsageError("the parent has other memory regions", hint="take a snapshot without a parent")
        self._check_runs()

    @classmethod
    def of_pages(
        cls,
        regions: Iterable[MemoryRegion],
        pages: Mapping[int, bytes | memoryview],
        *,
        parent: MemoryImage | None = None,
    ) -> MemoryImage:
        """An image of single pages by their address; with a parent, of those that changed."""
        own = []
        for gpa, page in sorted(pages.items()):
            if len(page) != PAGE_SIZE:
                raise UsageError(f"a page of {len(page)} bytes at {gpa:#x}", hint="pages have 4096 bytes")
            if page != ZERO_PAGE:
                own.append(Run(gpa, PAGE_SIZE, memoryview(page)))
            elif parent is not None:
                own.append(Run(gpa, PAGE_SIZE, None))
        return cls(regions, own, parent=parent)

    @classmethod
    def of_buffers(
        cls,
        regions: Iterable[MemoryRegion],
        buffers: Mapping[int, bytes | memoryview | mmap.mmap],
        *,
        copy: bool = False,
    ) -> MemoryImage:
        """An image of whole buffers by their address, which are looked through for zero pages.

        With `copy` the other pages are copied, and the buffers are free again; without it nothing is
        copied, and the buffers must not change.
        """
        own = []
        for gpa, buffer in sorted(buffers.items()):
            view = memoryview(buffer).cast("B")
            for at, length, full in filled(view):
                if full:
                    part = view[at : at + length]
                    own.append(Run(gpa + at, length, memoryview(bytes(part)) if copy else part))
        return cls(regions, own)

    def _check_runs(self) -> None:
        at = 0
        regions = iter(self.regions)
        region = next(regions, None)
        for run in self.own:
            while region is not None and region.end <= run.gpa:
                region = next(regions, None)
            if run.gpa % PAGE_SIZE or run.length % PAGE_SIZE or run.length <= 0 or run.gpa < at:
                raise UsageError(
                    f"pages {run.gpa:#x}+{run.length:#x} are not in order", hint="give whole pages, ascending"
                )
            if region is None or run.gpa < region.gpa or run.end > region.end:
                raise UsageError(
                    f"pages {run.gpa:#x}+{run.length:#x} are not in one region", hint="cut them at its end"
                )
            at = run.end

    @cached_property
    def _resolved(self) -> tuple[tuple[Run, ...], list[int]]:
        if self.parent is None:
            runs = [run for run in self.own if run.buffer is not None]
        else:
            runs = _overlay(self.parent.runs(), self.own)
        return tuple(runs), [run.gpa for run in runs]

    def runs(self) -> tuple[Run, ...]:
        """All pages that may be other than zero, those of the parents too, ascending.

        Runs in a row in both memory and file are one. To map a clone: anonymous memory for
        each region, and over it each run of its `file` from `offset` on, MAP_PRIVATE.
        """
        return self._resolved[0]

    def _run_at(self, gpa: int) -> Run | None:
        runs, starts = self._resolved
        at = bisect_right(starts, gpa) - 1
        return runs[at] if at >= 0 and gpa < runs[at].end else None

    def page(self, gpa: int) -> bytes | memoryview:
        """The 4096 bytes of the page at `gpa`. UsageError where no region is."""
        if gpa % PAGE_SIZE:
            raise UsageError(f"{gpa:#x} is not the address of a page", hint="give a multiple of 4096")
        run = self._run_at(gpa)
        if run is None or run.buffer is None:
            if not any(r.gpa <= gpa < r.end for r in self.regions):
                raise UsageError(f"there is no memory at guest-physical {gpa:#x}", hint="see regions")
            return ZERO_PAGE
        return run.buffer[gpa - run.gpa : gpa - run.gpa + PAGE_SIZE]

    def pieces(self, gpa: int, length: int) -> Iterator[Run]:
        """What holds `length` bytes of pages at `gpa`, without a gap: zero runs where nothing does."""
        runs, starts = self._resolved
        at, end = gpa, gpa + length
        number = max(0, bisect_right(starts, gpa) - 1)
        while at < end:
            run = runs[number] if number < len(runs) else None
            if run is not None and run.end <= at:
                number += 1
                continue
            stop = end if run is None else min(end, run.gpa if run.gpa > at else run.end)
            yield Run(at, stop - at, None) if run is None or run.gpa > at else run.cut(at, stop)
            at = stop

    def present(self) -> Iterator[tuple[int, memoryview]]:
        """(gpa, page) of each page that may be other than zero, ascending."""
        for run in self.runs():
            assert run.buffer is not None
            for at in range(0, run.length, PAGE_SIZE):
                yield run.gpa + at, run.buffer[at : at + PAGE_SIZE]

    def read(self, gpa: int, size: int) -> bytes:
        """`size` bytes at `gpa`, as `GuestMemory.read`. UsageError where no region is."""
        data = b""
        while len(data) < size:
            at = gpa + len(data)
            page = self.page(at - at % PAGE_SIZE)
            data += page[at % PAGE_SIZE : at % PAGE_SIZE + size - len(data)]
        return data

    def digest(self) -> str:
        """SHA-256 over each region's place and each page that is not zero, with its address:
        the same for equal memories, however they are kept."""
        hasher = hashlib.sha256()
        for region in self.regions:
            hasher.update(f"{region.gpa:x} {region.size:x} {region.readonly}\n".encode())
        for gpa, page in self.present():
            if page != ZERO_PAGE:
                hasher.update(gpa.to_bytes(8, "little"))
                hasher.update(page)
        return hasher.hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MemoryImage):
            return NotImplemented
        return self.regions == other.regions and next(differences(self, other), None) is None

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        used = sum(run.length for run in self.runs())
        return f"<MemoryImage {sum(r.size for r in self.regions):#x} bytes, {used:#x} not zero>"


def region_of(regions: tuple[MemoryRegion, ...], gpa: int) -> MemoryRegion:
    """The one of ascending `regions` that has `gpa`, which one of them has."""
    return regions[bisect_right(regions, gpa, key=_gpa) - 1]


_gpa = attrgetter("gpa")


def check_regions(regions: tuple[MemoryRegion, ...]) -> None:
    """Raises UsageError for regions that are not whole pages, disjoint and ascending."""
    if len(regions) > _MOST_REGIONS or sum(region.size for region in regions) > _MOST_MEMORY:
        raise UsageError("more memory than a machine can have", hint="at most 1 TiB in 4096 regions")
    at = 0
    for region in regions:
        if region.gpa % PAGE_SIZE or region.size % PAGE_SIZE or region.size <= 0:
            raise UsageError(f"{region} is not made of whole pages", hint="use multiples of 4096")
        if region.gpa < at or region.end > GPA_LIMIT:
            raise UsageError(f"{region} overlaps another, or ends beyond 2^48", hint="ascending, disjoint")
        at = region.end


def filled(view: memoryview) -> Iterator[tuple[int, int, bool]]:
    """`view`, whole pages, as (start, length, whether it is filled): stretches of pages that
    are not zero, and of pages that are."""
    begin, kind = 0, False
    for piece_at in range(0, len(view), _PIECE):
        piece = bytes(view[piece_at : piece_at + _PIECE])
        if piece == _ZERO_PIECE[: len(piece)]:
            step, kinds = len(piece), [False]
        else:
            step = PAGE_SIZE
            kinds = [piece[at : at + step] != ZERO_PAGE for at in range(0, len(piece), step)]
        for number, is_filled in enumerate(kinds):
            at = piece_at + number * step
            if is_filled != kind:
                if at > begin:
                    yield begin, at - begin, kind
                begin, kind = at, is_filled
    if len(view) > begin:
        yield begin, len(view) - begin, kind


def _overlay(base: tuple[Run, ...], top: tuple[Run, ...]) -> list[Run]:
    """`base` where `top` has nothing; without the zero runs."""
    out = [run for run in top if run.buffer is not None]
    first = 0
    for run in base:
        at = run.gpa
        while first < len(top) and top[first].end <= at:
            first += 1
        number = first
        while at < run.end:
            over = top[number] if number < len(top) else None
            if over is None or over.gpa >= run.end:
                out.append(run.cut(at, run.end))
                break
            if over.gpa > at:
                out.append(run.cut(at, over.gpa))
            at = over.end
            number += 1
    out.sort(key=lambda run: run.gpa)
    return out


def differences(mine: MemoryImage, other: MemoryImage) -> Iterator[tuple[int, int]]:
    """The (gpa, length) stretches of pages whose bytes differ, ascending; a page that only one
    of the two has counts as zero in the other."""
    edges = {edge for image in (mine, other) for run in image.runs() for edge in (run.gpa, run.end)}
    cuts = sorted(edges)
    begin = end = 0
    for start, stop in pairwise(cuts):
        a, b = mine._run_at(start), other._run_at(start)
        if a is None and b is None:
            continue
        if a is not None and b is not None and _same_place(a, b):
            continue
        for at in _unequal_pages(a and a.cut(start, stop), b and b.cut(start, stop), start, stop):
            if at != end and end:
                yield begin, end - begin
            if at != end or not end:
                begin = at
            end = at + PAGE_SIZE
    if end:
        yield begin, end - begin


def _same_place(a: Run, b: Run) -> bool:
    return a.file is not None and a.file is b.file and a.offset - a.gpa == b.offset - b.gpa


def _unequal_pages(a: Run | None, b: Run | None, start: int, stop: int) -> Iterator[int]:
    for at in range(0, stop - start, _PIECE):
        size = min(_PIECE, stop - start - at)
        x, y = (_bytes(run, at, size) for run in (a, b))
        if x != y:
            for page in range(0, size, PAGE_SIZE):
                if x[page : page + PAGE_SIZE] != y[page : page + PAGE_SIZE]:
                    yield start + at + page


def _bytes(run: Run | None, at: int, size: int) -> bytes:
    return _ZERO_PIECE[:size] if run is None or run.buffer is None else bytes(run.buffer[at : at + size])
