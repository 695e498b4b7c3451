"""Which pages a snapshot file gets, and where they lie in it.

A host maps whole pages of its own, from an offset in the file that is a multiple of their size
(vmmsim.snapshot.host_pages). So that hosts with larger pages than a guest's can map a file, too, the runs
of a file without a parent begin and end where such pages do in their region, if few zero pages are enough
for that; and the manifest ends in as many blanks as bring the runs to such an offset. A reader needs to
know of neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from .format import MOST_MANIFEST, MOST_RUN, aligned, data_place
from .pages import MemoryImage, MemoryRegion, differences, filled, region_of

__all__ = ["Extent", "plan", "with_blanks"]

#: (gpa, length, buffers) of a run to write; buffers are None for pages that became zero.
Extent = tuple[int, int, list[memoryview] | None]

#: Pages that hosts have, in bytes, but those of 4 KiB, which all files fit. The largest first.
_HOST_PAGES = (64 << 10, 16 << 10)
#: Zero pages may be one part in so many of the others.
_FEW = 2
_ZEROS = memoryview(bytes(_HOST_PAGES[0]))


def plan(image: MemoryImage, base: MemoryImage | None) -> tuple[list[Extent], int]:
    """The runs to write, with all pages that are not zero or with those that are not `base`'s; and the size
    of the host pages that they begin and end with, 0 where that is any page of the guest's."""
    extents: list[Extent] = []
    if base is not None:
        for gpa, part in _differing(image, base):
            for begin, size in _in_regions(image.regions, gpa, part if isinstance(part, int) else len(part)):
                if isinstance(part, int):
                    extents.append((begin, size, None))
                else:
                    _extend(extents, image.regions, begin, part[begin - gpa : begin - gpa + size])
        return extents, 0
    size = 0
    for run in image.runs():
        assert run.buffer is not None
        for at, length, full in filled(run.buffer):
            if full:
                _extend(extents, image.regions, run.gpa + at, run.buffer[at : at + length])
                size += length
    for unit in _HOST_PAGES:
        stretches = _stretches(image.regions, extents, unit)
        if sum(end - begin for begin, end in stretches) - size <= size // _FEW:
            return _padded(image.regions, extents, stretches), unit
    return extents, 0


def with_blanks(
    manifest: bytes, regions: tuple[MemoryRegion, ...], extents: Iterable[Extent], unit: int
) -> bytes:
    """`manifest`, and blanks behind it: as many as let most bytes of the runs lie in the file as they do in a
    region that begins with a host page of `unit` bytes. None for a unit of 0."""
    extents = tuple(extents)
    if not unit:
        return manifest
    wanted: Counter[int] = Counter()
    at = data_place(len(manifest), len(extents))
    for gpa, length, _ in extents:
        wanted[(gpa - region_of(regions, gpa).gpa - at) % unit] += length
        at += length
    blanks = wanted.most_common(1)[0][0] if wanted else 0
    return manifest + b" " * blanks if len(manifest) + blanks <= MOST_MANIFEST else manifest


def _differing(image: MemoryImage, base: MemoryImage) -> Iterator[tuple[int, memoryview | int]]:
    """(gpa, bytes) of pages that differ; how many bytes, where they are zero now."""
    for gpa, length in differences(image, base):
        for run in image.pieces(gpa, length):
            if run.buffer is None:
                yield run.gpa, run.length
                continue
            for at, size, full in filled(run.buffer):
                yield run.gpa + at, run.buffer[at : at + size] if full else size


def _in_regions(regions: tuple[MemoryRegion, ...], gpa: int, length: int) -> Iterator[tuple[int, int]]:
    """The parts of a stretch that lie in one region each: regions may touch."""
    end = gpa + length
    while gpa < end:
        size = min(end, region_of(regions, gpa).end) - gpa
        yield gpa, size
        gpa += size


def _extend(extents: list[Extent], regions: tuple[MemoryRegion, ...], gpa: int, view: memoryview) -> None:
    """Add pages of one region: to the last run, as far as they follow it there and it has room."""
    while view:
        start, length, buffers = extents[-1] if extents else (0, MOST_RUN, None)
        follows = start + length == gpa and gpa != region_of(regions, gpa).gpa
        if buffers is None or not follows or length >= MOST_RUN:
            start, length, buffers = gpa, 0, []
            extents.append((start, length, buffers))
        part = view[: MOST_RUN - length]
        buffers.append(part)
        extents[-1] = start, length + len(part), buffers
        gpa, view = gpa + len(part), view[len(part) :]


def _stretches(
    regions: tuple[MemoryRegion, ...], extents: Iterable[Extent], unit: int
) -> list[tuple[int, int]]:
    """(begin, end) of what has the runs, in pages of `unit` bytes of their region; the last may be cut."""
    found: list[tuple[int, int]] = []
    for gpa, length, _ in extents:
        region = region_of(regions, gpa)
        begin = gpa - (gpa - region.gpa) % unit
        end = min(region.end, region.gpa + aligned(gpa + length - region.gpa, unit))
        if found and region.gpa < found[-1][1] >= begin:
            found[-1] = found[-1][0], end
        else:
            found.append((begin, end))
    return found


def _padded(
    regions: tuple[MemoryRegion, ...], extents: Iterable[Extent], stretches: Iterable[tuple[int, int]]
) -> list[Extent]:
    """The runs of `stretches`: the bytes of `extents`, and zeros between them."""
    padded: list[Extent] = []
    left = iter(extents)
    extent = next(left, None)
    for begin, end in stretches:
        at = begin
        while at < end:
            stop = end if extent is None else min(end, extent[0])
            for zeros in range(at, stop, len(_ZEROS)):
                _extend(padded, regions, zeros, _ZEROS[: stop - zeros])
            at = stop
            if extent is not None and extent[0] == at < end:
                for view in extent[2] or ():
                    _extend(padded, regions, at, view)
                    at += len(view)
                extent = next(left, None)
    return padded
