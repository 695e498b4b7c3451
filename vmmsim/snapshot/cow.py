"""Guest memory over a snapshot's pages, copy-on-write: nothing is copied, going back drops pages.

On POSIX a region's host pages can be mapped anew where they are, MAP_PRIVATE over a file: the
guest sees the file's bytes, and what it (or a device, or the host) stores goes to pages of its
own. To go back is to map the file once more: the kernel drops the pages that were stored to, and
nothing else. It is exact, whoever stored, needs no dirty log of a backend, and is the same on KVM
and Unicorn; its cost grows with the pages stored to. Elsewhere pages are compared and copied.

Which pages were stored to is in Linux's page map (Documentation/admin-guide/mm/pagemap.rst): a page
of the mapping that is no longer the file's. Where there is none, pages are compared with the file's.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import HostError
from ..memory import PAGE_SIZE, GuestMemory, Region, format_size
from .pages import MappedFile, MemoryImage, MemoryRegion, Run, filled

__all__ = [
    "Backing",
    "can_map",
    "image_of",
    "map_over",
    "memory_file",
    "put_back",
    "put_back_by_copy",
    "suspects",
    "touched",
]

_PROT = 3  # PROT_READ | PROT_WRITE
_MAP_FIXED = 0x10
#: An image in more pieces than this is first brought into one file: a host has so many mappings a
#: process (65,530 on Linux), and each costs a system call.
_MOST_PIECES = 24
#: Page map entries, their top byte: present or swapped; and not a page of the file besides.
_THERE = re.compile(rb"[\x40-\xff]+")
_OWN_PAGES = re.compile(rb"[\x80-\x9f\xc0-\xdf\x40-\x5f]+")
_PAGE_MAP_ENTRY = 8
#: Of a base's pages, the part that may differ before a snapshot gets a base of its own.
_MOST_CHANGED = 4

#: (gpa, length, descriptor or None for zero pages, offset).
_Piece = tuple[int, int, int | None, int]


@functools.cache
def can_map() -> bool:
    """Whether host pages can be mapped anew where they are."""
    return os.name == "posix" and _mmap() is not None


@functools.cache
def _mmap() -> Any:
    try:
        function = ctypes.CDLL(None, use_errno=True).mmap
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_void_p
    function.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    )  # fmt: skip
    return function


class Backing:
    """Host pages with the bytes of an image, to map guest memory over."""

    def __init__(self, regions: tuple[MemoryRegion, ...], pieces: Iterable[_Piece], keep: object) -> None:
        self.regions = regions
        self.pieces = tuple(pieces)
        self._keep = keep  # whose descriptors those are

    def map_under(self, memory: GuestMemory) -> None:
        """Give `memory` these bytes. HostError when the host refuses; the memory is then undefined."""
        memory.base = None  # until it is known what lies where
        for region in memory.regions:
            region.anonymous = False
        regions = {region.gpa: region for region in memory.regions}
        owner: Region | None = None
        base = 0
        for gpa, length, fd, offset in self.pieces:
            if owner is None or not owner.gpa <= gpa < owner.end:
                owner = regions[max(at for at in regions if at <= gpa)]
                base = _address(owner)
            _map(base + gpa - owner.gpa, length, fd, offset)


def _address(region: Region) -> int:
    anchor = ctypes.c_char.from_buffer(region.buffer)
    address = ctypes.addressof(anchor)
    del anchor  # or the mapping could never be closed
    return address


def _map(address: int, length: int, fd: int | None, offset: int) -> None:
    flags = mmap.MAP_PRIVATE | _MAP_FIXED | getattr(mmap, "MAP_NORESERVE", 0)
    if fd is None:
        flags |= mmap.MAP_ANONYMOUS
    done = _mmap()(address, length, _PROT, flags, -1 if fd is None else fd, offset)
    if done != address:
        raise HostError(
            f"the host cannot map {format_size(length)} of guest memory: {os.strerror(ctypes.get_errno())}",
            hint="see ulimit -v, and /proc/sys/vm/max_map_count on Linux",
        )


def map_over(region: Region, at: int, length: int, fd: int, offset: int) -> None:
    """Lay a part of a region, whole pages, over a file that has the same bytes. HostError."""
    _map(_address(region) + at, length, fd, offset)


def memory_file(size: int) -> int:
    """A descriptor of a file in memory, of zeros, that nobody else sees."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("vmmsim-snapshot")
    else:
        fd, path = tempfile.mkstemp()
        os.unlink(path)
    os.ftruncate(fd, size)
    return fd


def _one_file(regions: tuple[MemoryRegion, ...], runs: Iterable[Run]) -> tuple[Backing, MemoryImage]:
    """All regions in one file, in a row, and the image over it. `runs` ascending, none zero."""
    size = sum(region.size for region in regions)
    try:
        fd = memory_file(size)
    except OSError as error:
        raise HostError(f"the host has no memory for a snapshot: {error.strerror}") from error
    offsets, at = {}, 0
    for region in regions:
        offsets[region.gpa] = at - region.gpa
        at += region.size
    places = []
    try:
        starts = sorted(offsets)
        for run in runs:
            gpa = max(start for start in starts if start <= run.gpa)
            place = run.gpa + offsets[gpa]
            assert run.buffer is not None
            for done in range(0, run.length, 1 << 24):
                os.pwrite(fd, run.buffer[done : done + (1 << 24)], place + done)
            places.append((run.gpa, run.length, place))
        mapped = MappedFile(fd, "")
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError):
            raise HostError(f"the host has no memory for a snapshot: {error.strerror}") from error
        raise
    own = [Run(gpa, n, mapped.view[place : place + n], place, mapped) for gpa, n, place in places]
    image = MemoryImage(regions, own)
    pieces = [(r.gpa, r.size, fd, r.gpa + offsets[r.gpa]) for r in regions]
    image.backing = Backing(regions, pieces, mapped)
    return image.backing, image


def _backing_of(image: MemoryImage) -> Backing:
    """The host pages of an image without a parent, made when they are first asked for."""
    if image.backing is None:
        runs = image.runs()
        if all(run.file is not None for run in runs) and len(runs) <= _MOST_PIECES:
            pieces: list[_Piece] = [(r.gpa, r.size, None, 0) for r in image.regions]
            pieces += [(r.gpa, r.length, r.file.fileno(), r.offset) for r in runs if r.file is not None]
            pieces.sort(key=lambda piece: (piece[0], piece[2] is not None))
            image.backing = Backing(image.regions, pieces, [run.file for run in runs])
        else:
            image.backing = _one_file(image.regions, runs)[0]
    backing: Backing = image.backing
    return backing


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
    backing, image = _one_file(regions, runs)
    for run in runs:
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


def touched(region: Region) -> Iterator[tuple[int, int]]:
    """(offset, length) of the stretches of a region that may have other bytes than zeros."""
    if region.anonymous:
        return _stretches(region, _THERE)
    return iter([(0, region.size)])


def suspects(region: Region) -> Iterator[tuple[int, int]]:
    """(offset, length) of the stretches of a region that may have been stored to since it was mapped
    over what its memory's `base` has: all of it, where nobody knows."""
    return _stretches(region, _OWN_PAGES)


def _stretches(region: Region, kind: re.Pattern[bytes]) -> Iterator[tuple[int, int]]:
    """Those of pages of a kind, or all of the region where nobody tells."""
    entries = _page_map(_address(region), region.size)
    if entries is None:
        yield 0, region.size
        return
    for match in kind.finditer(entries[_PAGE_MAP_ENTRY - 1 :: _PAGE_MAP_ENTRY]):
        yield match.start() * PAGE_SIZE, (match.end() - match.start()) * PAGE_SIZE


def _page_map(address: int, size: int) -> bytes | None:
    if sys.platform != "linux" or mmap.PAGESIZE != PAGE_SIZE:
        return None
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        wanted = size // PAGE_SIZE * _PAGE_MAP_ENTRY
        found = b""
        while len(found) < wanted:
            part = os.pread(fd, wanted - len(found), address // PAGE_SIZE * _PAGE_MAP_ENTRY + len(found))
            if not part:
                return None
            found += part
        return found
    except OSError:
        return None
    finally:
        os.close(fd)


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
