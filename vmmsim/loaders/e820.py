"""The memory map that a PC tells its guest: what INT 15h AX=E820h answers.

ACPI Specification 6.5, chapter 15 ("System Address Map Interfaces"): ranges of
guest-physical addresses and what each may be used for. What no entry covers is no memory:
devices may be there. The same list goes to Linux in its boot_params, to fw_cfg's
"etc/e820", to a multiboot kernel and to a PVH kernel, each in its own packing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from itertools import pairwise

import msgspec

from ..errors import UsageError
from ..memory import GPA_LIMIT

__all__ = ["E820Entry", "E820Type", "e820_map", "pack_boot_params", "pack_multiboot", "pack_pvh"]

#: Where the first MiB's RAM ends on a PC, and where RAM goes on.
LOW_END = 0xA0000
HIGH_START = 0x100000
#: Linux's boot_params has room for so many entries (E820_MAX_ENTRIES_ZEROPAGE).
BOOT_PARAMS_ENTRIES = 128


class E820Type(IntEnum):
    """What a range is for ("Address Range Types")."""

    RAM = 1
    RESERVED = 2
    #: RAM again, once the guest has read the ACPI tables in it.
    ACPI = 3
    #: The guest leaves it alone, and keeps it when it hibernates.
    NVS = 4
    UNUSABLE = 5


#: Where two ranges overlap, the later of these wins: what must not be touched is not touched.
_STRENGTH = (E820Type.RAM, E820Type.ACPI, E820Type.NVS, E820Type.RESERVED, E820Type.UNUSABLE)


class E820Entry(msgspec.Struct, frozen=True):
    """`size` bytes from guest-physical `gpa`."""

    gpa: int
    size: int
    type: int  #: an E820Type; a map made elsewhere may have others

    @property
    def end(self) -> int:
        """First address behind the range."""
        return self.gpa + self.size


def e820_map(
    regions: Iterable[tuple[int, int, E820Type]],
    *,
    ebda: int | None = 0x9FC00,
    bios: int | None = 0xE0000,
) -> list[E820Entry]:
    """The map of `regions`, (gpa, size in bytes, type) in any order, as a PC tells it.

    The first MiB is the PC's, whatever RAM the regions have there: RAM up to `ebda`, the
    EBDA reserved from there to A0000h, nothing from A0000h to `bios`, the BIOS reserved from
    there to FFFFFh. None leaves that range out (the EBDA's bytes are RAM then).
    Entries are sorted, do not overlap, and touch only where their types differ. Where regions
    overlap, the less usable type wins: unusable, reserved, NVS, ACPI, RAM.

    Raises UsageError for a region that is empty or not below 2**48, for a type that does not
    exist, and for an `ebda` or `bios` that is not where it can be.
    """
    ranges: list[tuple[int, int, E820Type]] = []
    for gpa, size, kind in regions:
        if size <= 0 or gpa < 0 or gpa + size > GPA_LIMIT:
            raise UsageError(
                f"e820: no memory map has {size} bytes at {gpa:#x}", hint="ranges lie below 2^48, not empty"
            )
        if kind not in _STRENGTH:
            raise UsageError(f"e820: the type {kind!r} of {gpa:#x}", hint="use one of E820Type")
        kind = E820Type(kind)
        if kind is E820Type.RAM:
            # The window of the display and of adapters is not RAM for the guest's kernel.
            if gpa < LOW_END:
                ranges.append((gpa, min(gpa + size, LOW_END), kind))
            if gpa + size > HIGH_START:
                ranges.append((max(gpa, HIGH_START), gpa + size, kind))
        else:
            ranges.append((gpa, gpa + size, kind))
    for start, end, low, name in ((ebda, LOW_END, 0x400, "ebda"), (bios, HIGH_START, LOW_END, "bios")):
        if start is None:
            continue
        if not low <= start < end:
            raise UsageError(f"e820: {name} at {start:#x}", hint=f"it lies from {low:#x} to {end - 1:#x}")
        ranges.append((start, end, E820Type.RESERVED))
    return _flatten(ranges)


def _flatten(ranges: Sequence[tuple[int, int, E820Type]]) -> list[E820Entry]:
    edges = sorted({edge for start, end, _ in ranges for edge in (start, end)})
    entries: list[E820Entry] = []
    for start, end in pairwise(edges):
        kinds = [kind for first, last, kind in ranges if first <= start and end <= last]
        if not kinds:
            continue
        kind = max(kinds, key=_STRENGTH.index)
        if entries and entries[-1].end == start and entries[-1].type is kind:
            start = entries.pop().gpa
        entries.append(E820Entry(start, end - start, kind))
    return entries


def pack_boot_params(entries: Sequence[E820Entry]) -> bytes:
    """20 bytes each: base and length (64 bits), type (32 bits), little-endian.

    This is Linux's `struct boot_e820_entry` (for boot_params at 2D0h; the number of entries
    goes to 1E8h), and fw_cfg's "etc/e820". Raises UsageError for more than the 128 entries
    that boot_params holds.
    """
    if len(entries) > BOOT_PARAMS_ENTRIES:
        raise UsageError(
            f"e820: {len(entries)} entries", hint=f"boot_params has room for {BOOT_PARAMS_ENTRIES}"
        )
    return b"".join(struct.pack("<QQI", entry.gpa, entry.size, entry.type) for entry in entries)


def pack_multiboot(entries: Sequence[E820Entry]) -> bytes:
    """24 bytes each: the size of the rest (20), then as in `pack_boot_params`.

    Multiboot Specification 0.6.96, section 3.3 (`mmap_addr`): the types are E820's.
    """
    return b"".join(struct.pack("<IQQI", 20, entry.gpa, entry.size, entry.type) for entry in entries)


def pack_pvh(entries: Sequence[E820Entry]) -> bytes:
    """24 bytes each: as in `pack_boot_params`, then 4 reserved bytes.

    Xen, public/arch-x86/hvm/start_info.h: `struct hvm_memmap_table_entry`.
    """
    return b"".join(struct.pack("<QQII", entry.gpa, entry.size, entry.type, 0) for entry in entries)
