"""The rules of a host with larger pages, for Python programs on a Linux with pages of 4 KiB.

What Python code asks the host for is answered as a host with such pages answers it: mmap.mmap, the C
library's mmap through ctypes, the page map, and all that tells a page's size. C code meets no rules here;
page_rules.c makes them for that too, where there is a compiler.

    with rules(16384): ...                                    in this process
    VMMSIM_HOST_PAGE=16384 PYTHONPATH=tools/hosts/page_rules python ...      from a process's begin on

mmap(2): a fixed address and a file's offset are multiples of the page, and a mapping covers whole pages:
the bytes behind its end are the file's, then zeros. Here a mapping must also lie in one of the process's own
(`OverNeighbour`): a kernel would take what is there away in silence.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import resource
import stat
import struct
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["OverNeighbour", "rules"]

_REAL = 4096
_MAP_FIXED, _FAILED = 0x10, (1 << 64) - 1
_PRESENT, _SWAPPED, _OF_FILE = 1 << 63, 1 << 62, 1 << 61
_TRIES = 64
_real_mmap = mmap.mmap


class OverNeighbour(AssertionError):
    """Something was to be mapped where the process has no mapping of its own."""


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _address(mapping: mmap.mmap) -> int:
    anchor = ctypes.c_char.from_buffer(mapping)
    return ctypes.addressof(anchor)


def _mapping(page: int) -> tuple[type[mmap.mmap], Callable[[int], tuple[int, int]]]:
    """A class for mmap.mmap, and what tells the begin and end of the one that has an address."""
    alive: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()

    class Mapping(_real_mmap):
        def __new__(cls, fileno: int, length: int, *rest: Any, **named: Any) -> Mapping:
            if named.get("offset", 0) % page:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            make = super().__new__
            if fileno != -1:
                return make(cls, fileno, length, *rest, **named)
            # Linux puts each mapping right below another: a longer one begins lower.
            extra = 0
            for _ in range(_TRIES):
                made = make(cls, -1, length + extra, *rest, **named)
                odd = _address(made) % page
                if not odd:
                    break
                made.close()
                extra = (extra + odd) % (4 * page)
            else:
                raise OSError(errno.ENOMEM, "no address that is a multiple of the page")
            if extra:
                made.resize(length)
            alive[_address(made)] = made
            return made

        def madvise(self, option: int, start: int = 0, length: int | None = None) -> None:
            if start % page:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            super().madvise(option, start, len(self) - start if length is None else length)

    def owner(address: int) -> tuple[int, int]:
        for begin, mapping in list(alive.items()):
            if not mapping.closed and begin <= address < begin + len(mapping):
                return begin, begin + _up(len(mapping), _REAL)
        raise OverNeighbour(f"{address:#x} is in no mapping of this process")

    return Mapping, owner


def _c_mmap(page: int, owner: Callable[[int], tuple[int, int]]) -> Callable[..., int]:
    real = ctypes.CDLL(None, use_errno=True).mmap
    real.restype = ctypes.c_void_p
    real.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    )  # fmt: skip

    def c_mmap(at: int, length: int, prot: int, flags: int, fd: int, offset: int) -> int:
        if not flags & _MAP_FIXED:
            raise NotImplementedError("only with MAP_FIXED")
        if not length or at % page or offset % page:
            ctypes.set_errno(errno.EINVAL)
            return _FAILED
        end = owner(at)[1]
        if at + length > end:
            raise OverNeighbour(f"{at:#x}+{length:#x} goes beyond its mapping")
        whole = min(_up(length, page), end - at)  # what is behind the mapping's end is nobody's
        part = whole
        if not flags & mmap.MAP_ANONYMOUS:
            status = os.fstat(fd)
            assert stat.S_ISREG(status.st_mode)
            part = min(whole, max(_up(length, _REAL), _up(status.st_size, _REAL) - offset))
        done: int = real(at, part, prot, flags, fd, offset)
        if done == at and part < whole:
            real(at + part, whole - part, prot, flags | mmap.MAP_ANONYMOUS, -1, 0)
        return done

    return c_mmap


def _own(entry: int) -> bool:
    return bool(entry & _SWAPPED) or entry & (_PRESENT | _OF_FILE) == _PRESENT


def _page_map(page: int) -> tuple[Callable[..., int], Callable[[int, int, int], bytes]]:
    """os.open and os.pread, which read the page map with an entry for each page."""
    real_open, real_read, parts = os.open, os.pread, page // _REAL

    def is_page_map(fd: int) -> bool:
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/self/fd/{fd}").endswith("/pagemap")
        return False

    opened: set[int] = set()

    def open_(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        fd = real_open(path, flags, *rest, **named)
        (opened.add if path == "/proc/self/pagemap" else opened.discard)(fd)
        return fd

    def pread(fd: int, size: int, offset: int) -> bytes:
        if fd not in opened or not is_page_map(fd):
            return real_read(fd, size, offset)
        data = b""
        while len(data) < size * parts:
            part = real_read(fd, size * parts - len(data), offset * parts + len(data))
            if not part:
                break
            data += part
        entries = struct.unpack(f"<{len(data) // 8}Q", data)
        out = []
        for at in range(0, len(entries) // parts * parts, parts):
            group = entries[at : at + parts]
            out.append(max(group, key=lambda entry: (_own(entry), entry >> 63)))
        return struct.pack(f"<{len(out)}Q", *out)

    return open_, pread


def _sysconf(page: int) -> Callable[[str | int], int]:
    real, names = os.sysconf, os.sysconf_names
    pages = {names[name] for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES")}

    def sysconf(name: str | int) -> int:
        number = names[name] if isinstance(name, str) else name
        if number == names["SC_PAGE_SIZE"]:
            return page
        return real(number) // (page // _REAL) if number in pages else real(number)

    return sysconf


@contextlib.contextmanager
def rules(page: int) -> Iterator[None]:
    """The rules of a host with pages of `page` bytes. A size that no host has is told as it is, and
    mapping is then left alone."""
    if not sys.platform.startswith("linux") or mmap.PAGESIZE != _REAL:
        raise RuntimeError("these rules are made on a Linux with pages of 4 KiB")
    changes: list[tuple[Any, str, Any]] = [
        (mmap, "PAGESIZE", page),
        (mmap, "ALLOCATIONGRANULARITY", page),
        (resource, "getpagesize", lambda: page),
        (os, "sysconf", _sysconf(page)),
    ]
    if page % _REAL == 0:
        mapping, owner = _mapping(page)
        c_mmap = _c_mmap(page, owner)
        getattr_ = ctypes.CDLL.__getattr__

        def symbol(library: ctypes.CDLL, name: str) -> Any:
            return c_mmap if name == "mmap" and library._name is None else getattr_(library, name)

        open_, pread = _page_map(page)
        changes += [
            (mmap, "mmap", mapping),
            (ctypes.CDLL, "__getattr__", symbol),
            (os, "open", open_),
            (os, "pread", pread),
        ]
    before = [(where, name, getattr(where, name)) for where, name, _ in changes]
    try:
        for where, name, value in changes:
            setattr(where, name, value)
        _forget()
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)
        _forget()


def _forget() -> None:
    """What vmmsim has looked up before."""
    module = sys.modules.get("vmmsim.snapshot.host_pages")
    if module is not None:
        module._mmap.cache_clear()
