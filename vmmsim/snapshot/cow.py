"""Guest memory over a snapshot's pages, copy-on-write: nothing is copied, going back drops pages.

On POSIX a region's host pages can be mapped anew where they are, MAP_PRIVATE over a file: the
guest sees the file's bytes, and what it (or a device, or the host) stores goes to pages of its
own. To go back is to map the file once more: the kernel drops the pages that were stored to, and
nothing else. It is exact, whoever stored, needs no dirty log of a backend, and is the same on KVM
and Unicorn; its cost grows with the pages stored to. Elsewhere pages are compared and copied.

What is mapped is host pages (vmmsim.snapshot.host_pages). Where those are larger than a guest's, the
odd guest pages at a stretch's ends are copied; where that would be many, the bytes are first brought
into a file of this process, in which each region begins with a host page.

Which pages were stored to is in Linux's page map (Documentation/admin-guide/mm/pagemap.rst): a page
of the mapping that is no longer the file's. Where there is none, pages are compared with the file's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from ..memory import PAGE_SIZE, GuestMemory
from .host_pages import can_map, fit, map_over, memory_file, no_room, suspects, touched, up
from .pages import MappedFile, MemoryImage, MemoryRegion, Run, filled, region_of

__all__ = ["Backing", "image_of", "put_back", "put_back_by_copy"]

#: An image in more pieces than this is first brought into one file: a host has so many mappings a
#: process (65,530 on Linux), and each costs a system call. So is one of which more bytes than that have to
#: be copied each time.
_MOST_PIECES = 24
_MOST_COPIED = 256 << 10
#: Of a base's pages, the part that may differ before a snapshot gets a base of its own.
_MOST_CHANGED = 4

#: (gpa, length, descriptor or None for zero pages, offset). Whole host pages, but at a region's end.
_Piece = tuple[int, int, int | None, int]


class Backing:
    """Host pages with the bytes of an image, to map guest memory over, and `copied`: runs of odd guest pages
    that share a host page with others."""

    def __init__(
        self,
        regions: tuple[MemoryRegion, ...],
        pieces: Iterable[_Piece],
        keep: object,
        copied: Iterable[Run] = (),
    ) -> None:
        self.regions = regions
        self.pieces = tuple(pieces)
        self.copied = tuple(copied)
        self._keep = keep  # whose descriptors those are

    def map_under(self, memory: GuestMemory) -> None:
        """Give `memory` these bytes. HostError when the host refuses; the memory is then undefined."""
        memory.base = None  # until it is known what lies where
        for region in memory.regions:
            region.anonymous = False
        for gpa, length, fd, offset in self.pieces:
            owner = memory.region_at(gpa)
            assert owner is not None  # a piece lies in one region
            map_over(owner, gpa - owner.gpa, length, fd, offset)
        for run in self.copied:
            assert run.buffer is not None
            _store(memory, run.gpa, run.buffer)


def _one_file(regions: tuple[MemoryRegion, ...], runs: Iterable[Run]) -> tuple[Backing, MemoryImage]:
    """All regions in one file, each at a host page, and the image over it. `runs` ascending, none zero."""
    offsets, size = {}, 0
    for region in regions:
        offsets[region.gpa] = size - region.gpa
        size += up(region.size)
    fd = memory_file(size)
    places = []
    try:
        for run in runs:
            place = run.gpa + offsets[region_of(regions, run.gpa).gpa]
            assert run.buffer is not None
            for done in range(0, run.length, 1 << 24):
                os.pwrite(fd, run.buffer[done : done + (1 << 24)], place + done)
            places.append((run.gpa, run.length, place))
        mapped = MappedFile(fd, "")
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError):
            raise no_room(error) from error
        raise
    own = [Run(gpa, n, mapped.view[place : place + n], place, mapped) for gpa, n, place in places]
    image = MemoryImage(regions, own)
    pieces = [(r.gpa, r.size, fd, r.gpa + offsets[r.gpa]) for r in regions]
    image.backing = Backing(regions, pieces, mapped)
    return image.backing, image


def _backing_of(image: MemoryImage) -> Backing:
    """The host pages of an image without a parent, made when they are first asked for."""
    if image.backing is None:
        image.backing = _over_its_files(image) or _one_file(image.regions, image.runs())[0]
    backing: Backing = image.backing
    return backing


def _over_its_files(image: MemoryImage) -> Backing | None:
    """Over the files that the image's pages are in, if that takes few mappings and little copying."""
    runs = image.runs()
    if len(runs) > _MOST_PIECES:
        return None
    pieces: list[_Piece] = [(r.gpa, r.size, None, 0) for r in image.regions]
    copied: list[Run] = []
    for run in runs:
        if run.file is None:
            return None
        region = region_of(image.regions, run.gpa)
        start, end = fit(region.size, run.gpa - region.gpa, run.length, run.offset)
        start, end = region.gpa + start, region.gpa + end
        if start < end:
            pieces.append((start, end - start, run.file.fileno(), run.offset + start - run.gpa))
        copied += [run.cut(*ends) for ends in ((run.gpa, start), (end, run.end)) if ends[0] < ends[1]]
    if sum(run.length for run in copied) > _MOST_COPIED:
        return None
    pieces.sort(key=lambda piece: (piece[0], piece[2] is not None))
    return Backing(image.regions, pieces, [run.file for run in runs], copied)


def _regions(memory: GuestMemory) -> tuple[MemoryRegion, ...]:
    return tuple(MemoryRegion(r.gpa, r.size, r.readonly, r.name) for r in memory.regions)


def image_of(memory: GuestMemory) -> MemoryImage:
    """The memory as it is now, as an image that later stores do not change.

    What the memory lies over is shared, not copied: only the pages that differ from it are.
    """
    regions = _regions(memory)
    if not can_map():
        return MemoryImage.of_buffers(regions, {r.gpa: bytes(r.buffer) for r in memory.regions})
    base = memory.base
    if base is not None and base.regions == regions:
        pages: dict[int, bytes | memoryview] = {}
        most = max(64, sum(run.length for run in base.runs()) // PAGE_SIZE // _MOST_CHANGED)
        for gpa, page in _changed(memory, base):
            pages[gpa] = page
            if len(pages) > most:
                break
        else:
            return MemoryImage.of_pages(regions, pages, parent=base) if pages else base
    runs = []
    for region in memory.regions:
        for start, length in touched(region):
            gpa = region.gpa + start
            with memoryview(region.buffer) as whole, whole[start : start + length] as view:
                runs += [Run(gpa + at, n, view[at : at + n]) for at, n, full in filled(view) if full]
    try:
        backing, image = _one_file(regions, runs)
    finally:
        for run in runs:  # or the memory could never be closed
            assert run.buffer is not None
            run.buffer.release()
    backing.map_under(memory)
    memory.base = image
    return image


def _changed(memory: GuestMemory, base: MemoryImage) -> Iterator[tuple[int, bytes]]:
    """(gpa, page) of each page that is not what `base`, under it, has."""
    for region in memory.regions:
        for at, length in suspects(region):
            for page_at in range(at, at + length, PAGE_SIZE):
                page = region.buffer[page_at : page_at + PAGE_SIZE]
                if page != base.page(region.gpa + page_at):
                    yield region.gpa + page_at, page


def put_back(memory: GuestMemory, image: MemoryImage) -> None:
    """Make `memory` what `image` says; their regions are the same. HostError when the host refuses:
    the memory is then undefined."""
    if not can_map():
        put_back_by_copy(memory, image)
        return
    layers = []
    root = image
    while root.backing is None and root.parent is not None:
        layers.append(root)
        root = root.parent
    _backing_of(root).map_under(memory)
    memory.base = root
    for layer in reversed(layers):
        for run in layer.own:
            _store(memory, run.gpa, bytes(run.length) if run.buffer is None else run.buffer)
    memory.replaced()


def put_back_by_copy(memory: GuestMemory, image: MemoryImage) -> None:
    """The same by comparing and copying each page: for hosts that cannot map, and to test the other."""
    for region in memory.regions:
        for at in range(0, region.size, PAGE_SIZE):
            page = image.page(region.gpa + at)
            if region.buffer[at : at + PAGE_SIZE] != page:
                region.buffer[at : at + PAGE_SIZE] = bytes(page)
    memory.replaced()


def _store(memory: GuestMemory, gpa: int, data: bytes | memoryview) -> None:
    region = memory.region_at(gpa)
    assert region is not None  # a run lies in one region
    at = gpa - region.gpa
    region.buffer[at : at + len(data)] = bytes(data)
