"""The page walk, and page tables that map memory onto itself.

`linear_to_gpa` is the walk of SDM vol. 3, chapter 4: no paging, 32-bit (with 4 MiB pages
and PSE-36), PAE, and 4-level. It only looks: no accessed or dirty bit is set, and rights
are not checked, since it serves debuggers and post-mortems, not the guest. An entry with a
reserved bit set maps nothing, as on the CPU; which of the bits 12-51 are physical address
depends on the CPU, so these are taken as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from ..errors import UsageError
from .state import CpuState

__all__ = [
    "identity_4level",
    "identity_32bit",
    "identity_pae",
    "is_user_page",
    "linear_to_gpa",
]

_CR0_PG = 1 << 31
_CR4_PSE = 1 << 4
_CR4_PAE = 1 << 5
_CR4_LA57 = 1 << 12
_EFER_LMA = 1 << 10

_PRESENT = 1
_BIG = 1 << 7
#: In an entry that maps a big page, the address bits below the page's size are reserved,
#: but for bit 12, which is PAT.
_BIG_RESERVED = ~0x1FFF
#: Bits 1, 2 and 5-8 of the four entries at the top of PAE's tables (SDM vol. 3, table 4-8).
_PDPTE_RESERVED = 0x1E6
#: Present and writable.
_TABLE = 3
_USER = 4
#: Physical addresses have at most 52 bits (SDM vol. 3, 4.1.4).
_ADDRESS = (1 << 52) - 1

ReadPhysical = Callable[[int, int], bytes]


def linear_to_gpa(state: CpuState, linear: int, read_phys: ReadPhysical) -> int | None:
    """The guest-physical address of `linear`, or None when no page maps it.

    `read_phys(gpa, size)` gives bytes of guest memory; a UsageError from it (a table that
    lies in a hole) counts as not mapped, and so do a linear address that is not canonical
    and 5-level paging.
    """
    if not state.cr0 & _CR0_PG:
        return linear & 0xFFFFFFFF
    try:
        if state.efer & _EFER_LMA:
            return _walk_4level(state, linear, read_phys)
        if state.cr4 & _CR4_PAE:
            return _walk_pae(state, linear & 0xFFFFFFFF, read_phys)
        return _walk_32bit(state, linear & 0xFFFFFFFF, read_phys)
    except UsageError:
        return None


def is_user_page(state: CpuState, linear: int, read_phys: ReadPhysical) -> bool:
    """Whether 4-level paging lets code at CPL 3 use `linear`: each entry of the walk has U/S set (SDM
    vol. 3, 4.6). False where no page maps it, and in other modes."""
    if not state.efer & _EFER_LMA or linear_to_gpa(state, linear, read_phys) is None:
        return False
    table, shift = state.cr3, 39
    while True:
        entry = _entry(read_phys, table & _ADDRESS & ~0xFFF, linear >> shift & 511, 8)
        if not entry & _USER:
            return False
        if shift == 12 or entry & _BIG:
            return True
        table, shift = entry, shift - 9


def _entry(read_phys: ReadPhysical, table: int, index: int, size: int) -> int:
    return int.from_bytes(read_phys(table + index * size, size), "little")


def _walk_4level(state: CpuState, linear: int, read_phys: ReadPhysical) -> int | None:
    linear &= (1 << 64) - 1
    if state.cr4 & _CR4_LA57 or linear >> 47 not in (0, 0x1FFFF):
        return None
    return _walk_wide(state.cr3 & _ADDRESS & ~0xFFF, linear, 39, read_phys)


def _walk_pae(state: CpuState, linear: int, read_phys: ReadPhysical) -> int | None:
    # CR3 is aligned to 32 bytes here, and the four entries at the top cannot map a page.
    entry = _entry(read_phys, state.cr3 & 0xFFFFFFE0, linear >> 30, 8)
    if not entry & _PRESENT or entry & _PDPTE_RESERVED:
        return None
    return _walk_wide(entry & _ADDRESS & ~0xFFF, linear, 21, read_phys)


def _walk_wide(table: int, linear: int, shift: int, read_phys: ReadPhysical) -> int | None:
    while True:
        entry = _entry(read_phys, table, linear >> shift & 511, 8)
        if not entry & _PRESENT:
            return None
        mask = (1 << shift) - 1
        if shift == 12:  # bit 7 is the PAT bit here
            return (entry & _ADDRESS & ~mask) | linear & mask
        if entry & _BIG:
            if shift == 39 or entry & mask & _BIG_RESERVED:
                return None
            return (entry & _ADDRESS & ~mask) | linear & mask
        table = entry & _ADDRESS & ~0xFFF
        shift -= 9


def _walk_32bit(state: CpuState, linear: int, read_phys: ReadPhysical) -> int | None:
    entry = _entry(read_phys, state.cr3 & 0xFFFFF000, linear >> 22, 4)
    if not entry & _PRESENT:
        return None
    if entry & _BIG and state.cr4 & _CR4_PSE:
        if entry & 1 << 21:
            return None
        # PSE-36: bits 13-20 of the entry are bits 32-39 of the address.
        return (entry & 0xFFC00000) | (entry >> 13 & 0xFF) << 32 | linear & 0x3FFFFF
    entry = _entry(read_phys, entry & 0xFFFFF000, linear >> 12 & 1023, 4)
    if not entry & _PRESENT:
        return None
    return (entry & 0xFFFFF000) | linear & 0xFFF


def _check(base: int, size: int, step: int, most: int) -> None:
    if base % 4096:
        raise UsageError(f"page tables at {base:#x}", hint="page tables are aligned to 4 KiB")
    if not 0 < size <= most or size % step:
        raise UsageError(
            f"an identity mapping of {size:#x} bytes",
            hint=f"use a multiple of {step:#x}, at most {most:#x}",
        )


def _page_of(entries: list[int]) -> bytes:
    return struct.pack(f"<{len(entries)}Q", *entries).ljust(4096, b"\0")


def identity_4level(base: int, *, size: int = 4 << 30, user: bool = False) -> bytes:
    """4-level tables, to be stored at `base`, that map 0..size-1 onto itself.

    2 MiB pages, writable, for CPL 3 too with `user`. `size` in bytes, a multiple of 2 MiB, at
    most 512 GiB. CR3 is `base`. The length is 8 KiB and 4 KiB for each GiB begun.
    """
    _check(base, size, 2 << 20, 512 << 30)
    rights = _TABLE | (_USER if user else 0)
    gigabytes = -(-size // (1 << 30))
    pages = [
        _page_of([base + 0x1000 | rights]),
        _page_of([base + 0x2000 + 0x1000 * i | rights for i in range(gigabytes)]),
    ]
    pages += _directories(size, rights)
    return b"".join(pages)


def identity_pae(base: int, *, size: int = 4 << 30, user: bool = False) -> bytes:
    """PAE tables, to be stored at `base`, that map 0..size-1 onto itself by 2 MiB pages.

    `size` is at most 4 GiB. CR3 is `base`; the length is 4 KiB and 4 KiB for each GiB begun.
    """
    _check(base, size, 2 << 20, 4 << 30)
    gigabytes = -(-size // (1 << 30))
    top = _page_of([base + 0x1000 + 0x1000 * i | _PRESENT for i in range(gigabytes)])
    return top + b"".join(_directories(size, _TABLE | (_USER if user else 0)))


def _directories(size: int, rights: int) -> list[bytes]:
    big = 2 << 20
    return [
        _page_of([at | rights | _BIG for at in range(start, min(start + (1 << 30), size), big)])
        for start in range(0, size, 1 << 30)
    ]


def identity_32bit(base: int, *, size: int = 4 << 30, user: bool = False) -> bytes:
    """A 32-bit page directory of 4 MiB pages (CR4.PSE), to be stored at `base`.

    `size` is a multiple of 4 MiB, at most 4 GiB. CR3 is `base`; the length is 4 KiB.
    """
    _check(base, size, 4 << 20, 4 << 30)
    rights = _TABLE | _BIG | (_USER if user else 0)
    entries = [at | rights for at in range(0, size, 4 << 20)]
    return struct.pack(f"<{len(entries)}I", *entries).ljust(4096, b"\0")
