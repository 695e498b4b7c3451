"""The host's pages: which of a region's can be mapped anew where they are, and which were stored to.

A host maps whole pages of its own: 4 KiB on x86, 16 KiB on Apple silicon, up to 64 KiB on arm64 and
POWER. mmap(2) with MAP_FIXED takes an address and a file offset that are multiples of such a page, and
what it maps goes on to the end of the last one. A guest's page has 4 KiB, so there it shares a host page
with others, over which that file's bytes must never be laid. Each region is a mapping of its own, so it
begins with a host page, and what lies between its end and that of its last host page is nobody's.
"""

from __future__ import annotations

import functools
import mmap
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from ..errors import HostError
from ..memory import PAGE_SIZE, Region, format_size
from ..streams.host import temporary_error

__all__ = [
    "MOST_HOST_PAGE",
    "can_map",
    "fit",
    "host_page",
    "map_over",
    "memory_file",
    "no_room",
    "suspects",
    "touched",
    "up",
    "why_copied",
]

#: The largest page of a host whose pages are mapped.
MOST_HOST_PAGE = 64 << 10
_PROT = 3  # PROT_READ | PROT_WRITE
_MAP_FIXED = 0x10
#: Page map entries, their top byte: present or swapped; and not a page of the file besides.
_THERE = re.compile(rb"[\x40-\xff]+")
_OWN_PAGES = re.compile(rb"[\x80-\x9f\xc0-\xdf\x40-\x5f]+")
_PAGE_MAP_ENTRY = 8


def host_page() -> int:
    """Bytes in a page of the host."""
    return mmap.PAGESIZE


def up(size: int) -> int:
    """`size` rounded up to whole host pages."""
    return -(-size // host_page()) * host_page()


def why_copied() -> str:
    """Why pages are copied here and not mapped; nothing where they are mapped."""
    if os.name != "posix":
        return "this system cannot map pages anew where they are"
    if _mmap() is None:
        return "this Python cannot call the C library's mmap"
    size = host_page()
    if size & (size - 1) or not PAGE_SIZE <= size <= MOST_HOST_PAGE:
        return (
            f"the host says that its pages have {size} bytes, and pages are mapped that have a power of two "
            f"from {PAGE_SIZE} to {MOST_HOST_PAGE}"
        )
    return ""


def can_map() -> bool:
    """Whether host pages can be mapped anew where they are."""
    return not why_copied()


@functools.cache
def _mmap() -> Any:
    try:
        import ctypes  # here, since `vmmsim doctor` is to work without

        function = ctypes.CDLL(None, use_errno=True).mmap
    except (ImportError, OSError, AttributeError):
        return None
    function.restype = ctypes.c_void_p
    function.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    )  # fmt: skip
    return function


def fit(size: int, at: int, length: int, offset: int) -> tuple[int, int]:
    """What of `length` bytes at `at` in a region of `size` can be mapped from a file that has them at
    `offset`, from one place in the region to another: whole host pages, and the last of the region as far as
    it goes. Nothing (`at` to `at`) where they lie otherwise in the file's pages."""
    page, end = host_page(), at + length
    start, stop = up(at), end if end == size else end - end % page
    return (start, stop) if start < stop and (offset - at) % page == 0 else (at, at)


def address_of(region: Region) -> int:
    """Where the host has the region: the begin of a host page."""
    from ctypes import addressof, c_char

    anchor = c_char.from_buffer(region.buffer)
    address = addressof(anchor)
    del anchor  # or the mapping could never be closed
    return address


def map_over(region: Region, at: int, length: int, fd: int | None, offset: int = 0) -> None:
    """Lay `length` bytes at `at` in the region over those at `offset` of a file, copy-on-write; over zeros if
    `fd` is None. They are what `fit` gives, or the whole region. HostError when the host refuses."""
    from ctypes import get_errno

    size = host_page()
    assert at % size == offset % size == 0, (at, offset)
    assert (at + length) % size == 0 or at + length == region.size, (at, length)
    flags = mmap.MAP_PRIVATE | _MAP_FIXED | getattr(mmap, "MAP_NORESERVE", 0)
    if fd is None:
        flags |= mmap.MAP_ANONYMOUS
    address = address_of(region) + at
    done = _mmap()(address, length, _PROT, flags, -1 if fd is None else fd, offset)
    if done != address:
        raise HostError(
            f"the host cannot map {format_size(length)} of guest memory: {os.strerror(get_errno())}",
            hint="see ulimit -v, and /proc/sys/vm/max_map_count on Linux",
        )


def memory_file(size: int) -> int:
    """A descriptor of a file of `size` zeros that nobody else sees: in memory where the host has that,
    else on its disk, without a name, and taking room for what is written only. HostError."""
    fd = -1
    try:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("vmmsim-snapshot")
        else:
            fd, path = tempfile.mkstemp(prefix="vmmsim-")  # only this user may open it
            os.unlink(path)
        os.ftruncate(fd, size)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise no_room(error) from error
    return fd


def no_room(error: OSError) -> HostError:
    """What to say when a memory file cannot be made or written."""
    if hasattr(os, "memfd_create"):
        reason = error.strerror or str(error)
        return HostError(f"the host has no memory for a snapshot: {reason}", hint="free some memory")
    return temporary_error("a snapshot's pages", error)


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
    """Those of host pages of a kind, or all of the region where nobody tells."""
    entries = _page_map(address_of(region), region.size)
    if entries is None:
        yield 0, region.size
        return
    size = host_page()
    for match in kind.finditer(entries[_PAGE_MAP_ENTRY - 1 :: _PAGE_MAP_ENTRY]):
        at = match.start() * size
        yield at, min(match.end() * size, region.size) - at


def _page_map(address: int, size: int) -> bytes | None:
    """The page map's entries for `size` bytes at `address`, one for each host page."""
    if sys.platform != "linux" or why_copied():
        return None
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        wanted = up(size) // host_page() * _PAGE_MAP_ENTRY
        found = b""
        while len(found) < wanted:
            at = address // host_page() * _PAGE_MAP_ENTRY + len(found)
            part = os.pread(fd, wanted - len(found), at)
            if not part:
                return None
            found += part
        return found
    except OSError:
        return None
    finally:
        os.close(fd)
