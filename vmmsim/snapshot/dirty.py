"""Memory that moves while it changes: which pages the other side has not yet, and where they land.

At the source a DirtyPages begins as an image of the memory: guest memory is mapped over it,
copy-on-write, so that the page map tells which pages were stored to (vmmsim.snapshot.cow). Of
those, a page is dirty when its bytes are not those that were sent last. A page that is read while the guest
stores to it is sent in some state between, and is found again the next time; only the last look
has to be at a guest that stands still.

At the destination a Landing is host pages that the guest's memory is mapped over in the end:
what has arrived is not copied once more.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator

from ..errors import UsageError
from ..memory import PAGE_SIZE, GuestMemory, Region
from .cow import Backing, image_of
from .host_pages import can_map, map_over, memory_file, no_room, suspects, up
from .pages import ZERO_PAGE, MappedFile, MemoryImage, MemoryRegion, Run, filled, region_of

__all__ = ["Account", "DirtyPages", "Landing"]

#: Bytes of memory that are laid over an image at once, and the seconds for which the guest stands
#: still for as many of them as go.
_PIECE = 1 << 20
_STEP_SECONDS = 0.003
_FILLED = re.compile(rb"\x01+")


class DirtyPages:
    """The memory of a machine that stands still when this is made. `image` is what it was then, or
    if it is given, what guest memory lies over."""

    def __init__(self, memory: GuestMemory, image: MemoryImage | None = None) -> None:
        self.image = image_of(memory) if image is None else image
        self._memory = memory
        self._base = memory.base
        #: Pages that were sent after `image`, as they were sent.
        self._sent: dict[int, bytes] = {}

    @property
    def filled(self) -> int:
        """How many pages `first` gives, at most."""
        return sum(run.length for run in self.image.runs()) // PAGE_SIZE

    def first(self) -> Iterator[tuple[int, memoryview]]:
        """The pages of `image`, but those that are zero. The guest may run."""
        return ((gpa, page) for gpa, page in self.image.present() if page != ZERO_PAGE)

    def collect(self) -> list[tuple[int, bytes]]:
        """The pages whose bytes were not given before, ascending. They count as sent.

        The guest may run; what is given is then not of one moment. UsageError when the machine
        has other regions of memory by now.
        """
        regions = tuple((region.gpa, region.size) for region in self._memory.regions)
        if regions != tuple((region.gpa, region.size) for region in self.image.regions):
            raise UsageError(
                "the machine's memory regions have changed while it moved", hint="move it once more"
            )
        known = self._base is not None and self._memory.base is self._base
        found = []
        for region in self._memory.regions:
            for at, length in suspects(region) if known else [(0, region.size)]:
                for page_at in range(at, at + length, PAGE_SIZE):
                    page = region.buffer[page_at : page_at + PAGE_SIZE]
                    gpa = region.gpa + page_at
                    last = self._sent.get(gpa)
                    if page != (self.image.page(gpa) if last is None else last):
                        self._sent[gpa] = page
                        found.append((gpa, page))
        return found


class Account:
    """Makes the DirtyPages of a machine in steps, between which it runs: each lays some MiB of
    memory over an image of what they are then."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._landing: Landing | None = None
        self._left: list[tuple[Region, int, int]] = []

    def step(self) -> DirtyPages | None:
        """With the machine standing still: the next pieces; the DirtyPages behind the last one."""
        began = time.perf_counter()
        memory = self._memory
        # What lies over an image already costs no more than its pages that have changed.
        if not can_map() or memory.base is not None:
            return DirtyPages(memory)
        regions = tuple(MemoryRegion(r.gpa, r.size, r.readonly, r.name) for r in memory.regions)
        if self._landing is None or self._landing.regions != regions:
            self._landing = Landing(regions)
            self._left = [
                (region, at, min(_PIECE, region.size - at))
                for region in memory.regions
                for at in range(0, region.size, _PIECE)
            ]
        while self._left and time.perf_counter() < began + _STEP_SECONDS:
            self._lay(self._landing, *self._left.pop())
        if self._left:
            return None
        memory.base = self._landing.image()
        return DirtyPages(memory, memory.base)

    @staticmethod
    def _lay(landing: Landing, region: Region, at: int, length: int) -> None:
        with memoryview(region.buffer) as view, view[at : at + length] as piece:
            for start, size, full in filled(piece):
                if full:
                    with piece[start : start + size] as run:
                        landing.put_run(region.gpa + at + start, run)
        fd, offset = landing.place(region.gpa + at)
        map_over(region, at, length, fd, offset)


class Landing:
    """Host pages for the memory of `regions`, zero at first. HostError when the host has none."""

    def __init__(self, regions: Iterable[MemoryRegion]) -> None:
        self.regions = tuple(regions)
        self._filled = {region.gpa: bytearray(region.size // PAGE_SIZE) for region in self.regions}
        self._buffers: dict[int, bytearray] = {}
        self._file: MappedFile | None = None
        if not can_map():
            self._buffers = {region.gpa: bytearray(region.size) for region in self.regions}
            return
        self._places = {}
        at = 0
        for region in self.regions:  # each at a host page, to be mapped
            self._places[region.gpa] = at
            at += up(region.size)
        self._file = MappedFile(memory_file(at), "")

    def put(self, pages: Iterable[tuple[int, bytes | memoryview | None]]) -> None:
        """Pages have arrived: (gpa, 4096 bytes, or None for zeros), in memory of the regions."""
        for gpa, page in pages:
            self.put_run(gpa, ZERO_PAGE if page is None else page)

    def put_run(self, gpa: int, data: bytes | memoryview) -> None:
        """Whole pages in a row, in memory of one region."""
        region = region_of(self.regions, gpa)
        at, count = gpa - region.gpa, len(data) // PAGE_SIZE
        self._filled[region.gpa][at // PAGE_SIZE : at // PAGE_SIZE + count] = b"\1" * count
        if self._file is None:
            self._buffers[region.gpa][at : at + len(data)] = data
            return
        try:
            os.pwrite(self._file.fileno(), data, self._places[region.gpa] + at)
        except OSError as error:
            raise no_room(error) from error

    def place(self, gpa: int) -> tuple[int, int]:
        """Where a page is: a descriptor and the offset in it. Only where `can_map()`."""
        assert self._file is not None
        region = region_of(self.regions, gpa)
        return self._file.fileno(), self._places[region.gpa] + gpa - region.gpa

    def image(self) -> MemoryImage:
        """All that has arrived. No page may come after it."""
        if self._file is None:
            return MemoryImage.of_buffers(
                self.regions, {at: memoryview(b) for at, b in self._buffers.items()}
            )
        runs = []
        for region in self.regions:
            place = self._places[region.gpa]
            for match in _FILLED.finditer(self._filled[region.gpa]):
                start, length = match.start() * PAGE_SIZE, (match.end() - match.start()) * PAGE_SIZE
                view = self._file.view[place + start : place + start + length]
                runs.append(Run(region.gpa + start, length, view, place + start, self._file))
        image = MemoryImage(self.regions, runs)
        fd = self._file.fileno()
        pieces = [(r.gpa, r.size, fd, self._places[r.gpa]) for r in self.regions]
        image.backing = Backing(self.regions, pieces, self._file)
        return image
