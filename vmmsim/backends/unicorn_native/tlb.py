"""Stores at full speed to pages that the guest could execute, but has not.

A store to a page with translated code must throw that code away, so QEMU marks the TLB's
entry of such a page, and stores take a slow way there. QEMU itself marks no other pages.
Unicorn 2.1.4 does not know which pages hold code. It marks all, and takes the mark away at
the first store, but never where the guest's page tables allow execution, as they do
without paging, in 32-bit paging without PAE, and while a kernel unpacks and starts itself:
each store to them costs ten times as much.

`StoreGuard` knows which pages hold code. Before code of a page is translated, its entry in
the TLB must be one for fetches. The thunk `fill`, which stands around QEMU's walk of the
page tables, hands out entries for loads and stores that no fetch hits, until the page has
been fetched from. So it sees the first fetch from each page, notes it, and has QEMU mark
all entries of that page, by whatever address; from then on its entries keep their mark
(bit 0x800 in `addr_code` is what holds Unicorn off taking it away). The note is forgotten
with the translations and the TLB. It is a byte for each page of guest memory.

All of it is data of the one engine: the pointer to the walk in CPUState's class, and the
TLB's tables, which lie just before the CPU structure. Where they are not found, or do not
look as they should, stores stay slow and nothing else changes.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import TYPE_CHECKING

from .thunks import Shared, symbol

if TYPE_CHECKING:
    from .thunks import Thunks

__all__ = ["StoreGuard"]

#: Entries of the TLB have 64 bytes; a table has at least 64 of them.
_ENTRY, _FEWEST, _MOST = 64, 64, 1 << 22
#: addr_code and paddr, in an entry.
_ADDR_CODE, _PADDR = 16, 24
#: The tables, one for each of three modes: a mask and a pointer. They end so close to the CPU
#: structure, at the most.
_MODES, _TABLE, _NEAR = 3, 16, 0x100
#: The class is no further behind the CPU structure, and has at least so many bytes.
_NEAR_CLASS, _CLASS_BYTES = 0x20000, 0xA0
#: Pages beyond are not tracked: 64 GiB. Stores to them are slow where they were.
_MOST_PAGES = 1 << 24


class StoreGuard:
    """The thunk of one engine and its notes. `forget` when all translations are thrown away."""

    def __init__(self, pages: int) -> None:
        """`pages` is the number of pages up to the end of guest memory."""
        self._notes = mmap.mmap(-1, max(min(pages, _MOST_PAGES), 1))
        self._count = min(pages, _MOST_PAGES)

    def install(self, thunks: Thunks, executed: int) -> bool:
        """Put the thunk in. `executed` is a page, at the same linear and physical address, whose
        translation the engine has just looked up to fetch from it. False if it cannot be."""
        words = thunks.words
        env, cpu = words[Shared.ENV], words[Shared.CPU]
        walk, protect = symbol("x86_cpu_tlb_fill_x86_64"), symbol("tlb_reset_dirty_x86_64")
        tables = _tables(env, executed)
        if walk is None or protect is None or tables is None:
            return False
        pointer = _pointer_to(walk, cpu, env)
        if pointer is None:
            return False
        words[Shared.FILL], words[Shared.PROTECT] = walk, protect
        words[Shared.TLB] = tables - cpu
        words[Shared.PAGE_COUNT] = self._count
        words[Shared.PAGES] = ctypes.addressof(ctypes.c_char.from_buffer(self._notes))
        _word(pointer).value = thunks.at["fill"]
        return True

    def forget(self) -> None:
        """No page holds code any more. The TLB must be flushed before the guest goes on."""
        if sys.platform == "linux":
            self._notes.madvise(mmap.MADV_DONTNEED)
        else:  # where it is advice only, and the bytes stay
            self._notes[:] = bytes(len(self._notes))


def _word(address: int) -> ctypes.c_uint64:
    return ctypes.c_uint64.from_address(address)


def _tables(env: int, executed: int) -> int | None:
    """The address of the TLB's first table, found by an entry of a fetch in one of them."""
    for first in range(env - _MODES * _TABLE, env - _NEAR, -_TABLE):
        tables = [
            (_word(at).value, _word(at + 8).value) for at in range(first, first + _MODES * _TABLE, _TABLE)
        ]
        if not all(_plausible(mask, table) for mask, table in tables):
            continue
        for mask, table in tables:
            entry = table + (executed >> 6 & mask)
            if _word(entry + _ADDR_CODE).value == _word(entry + _PADDR).value == executed:
                return first
    return None


def _plausible(mask: int, table: int) -> bool:
    size = mask + _ENTRY
    return (
        _FEWEST * _ENTRY <= size <= _MOST * _ENTRY and not size & mask and table > 1 << 16 and not table & 7
    )


#: How far into CPUState the pointer to its class was found.
_found: list[int] = []


def _pointer_to(walk: int, cpu: int, env: int) -> int | None:
    """Where the class of CPUState has the pointer to the walk. CPUState, which lies before the CPU
    structure `env`, points to it; it is behind `env`, and has the pointer twice: the walk in use, then
    that of the CPU itself. In the next engine it is looked for where it was in the last."""
    for at in (*_found, *range(0, env - cpu, 8)):
        known = _word(cpu + at).value
        if env < known < env + _NEAR_CLASS and not known & 7:
            for place in range(known, known + _CLASS_BYTES, 8):
                if _word(place).value == _word(place + 8).value == walk:
                    _found[:] = [at]
                    return place
    return None
