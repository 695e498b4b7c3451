"""LoadedImage: what every loader makes, and how it comes into guest memory.

A boot protocol asks for more than bytes and an entry: registers, segments, tables of its
own. `registers` and `state_changes` say what differs from the mode preset; `BootMemory` is
where a loader finds room for the rest. The selectors of the 32-bit protocols are Linux's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from .. import layout
from ..cpu.descriptors import ATTR_CODE32, ATTR_DATA32, ATTR_TSS32_BUSY, encode_descriptor
from ..cpu.state import GPR_NAMES, CpuState, Segment, Table
from ..errors import ImageError, UsageError
from ..memory import GuestMemory, format_size

if TYPE_CHECKING:
    from ..memory import Region

__all__ = [
    "LOW_END",
    "LOW_START",
    "BootMemory",
    "BootModule",
    "E820Like",
    "ImageSegment",
    "LoadedImage",
    "RomRegion",
    "c_string",
]

_RAM = 1
_KIB640 = 0xA0000
_MIB1 = 1 << 20
_GIB3 = 3 << 30
_GIB4 = 4 << 30
_FLAT = 0xFFFFFFFF

#: What a protocol hands over goes between these: above the boot sector's place and the
#: presets' stack, below the presets' tables.
LOW_START = 0x8000
LOW_END = layout.BOOT_TABLES


class ImageSegment(msgspec.Struct, frozen=True):
    """`data` for guest-physical `gpa`, followed by zeros up to `size` bytes."""

    gpa: int
    data: bytes
    size: int
    name: str

    @property
    def end(self) -> int:
        """First address behind the segment."""
        return self.gpa + self.size

    def __str__(self) -> str:
        return f"{self.name} ({self.size} bytes at {self.gpa:#x})"


class RomRegion(msgspec.Struct, frozen=True):
    """`data`, whole pages of 4 KiB, as read-only memory at guest-physical `gpa`."""

    gpa: int
    data: bytes
    name: str

    @property
    def end(self) -> int:
        """First address behind the region."""
        return self.gpa + len(self.data)


class BootModule(msgspec.Struct, frozen=True):
    """A file that a boot loader puts beside the kernel, and the string that goes with it."""

    data: bytes
    text: str = ""


class LoadedImage(msgspec.Struct):
    """A guest image in parts that only need to be stored.

    `entry` is the linear address of the first instruction in `mode` (a name of
    `vmmsim.cpu.modes.MODES`), `symbols` maps names to linear addresses, `path` is the file
    it came from or None for bytes. `registers` (general registers, RIP, RFLAGS) and
    `state_changes` (other fields of CpuState) replace what the preset says; `rom` is memory
    that the image brings along, `port_writes` what firmware would have written to
    devices, as (port, byte), `warnings` what a person should know of it, as sentences.
    """

    name: str
    segments: list[ImageSegment]
    entry: int
    mode: str
    symbols: dict[str, int] = msgspec.field(default_factory=dict)
    path: Path | None = None
    registers: dict[str, int] = msgspec.field(default_factory=dict)
    state_changes: dict[str, Any] = msgspec.field(default_factory=dict)
    rom: list[RomRegion] = msgspec.field(default_factory=list)
    port_writes: list[tuple[int, int]] = msgspec.field(default_factory=list)
    warnings: list[str] = msgspec.field(default_factory=list)

    def enter(self, state: CpuState) -> CpuState:
        """The state at the entry: a copy of the preset's `state` with the image's changes.

        Raises UsageError for a register that does not exist or a value beyond 64 bits.
        """
        entered = state.copy()
        for name, value in self.registers.items():
            if name not in (*GPR_NAMES, "rip", "rflags"):
                raise UsageError(
                    f"{self.name}: there is no register '{name}'", hint="write rax..r15, rip or rflags"
                )
            if not 0 <= value < 1 << 64:
                raise UsageError(f"{self.name}: {name}={value:#x}", hint="a register has 64 bits")
            setattr(entered, name, value)
        for name, change in self.state_changes.items():
            if name not in state.__struct_fields__:
                raise UsageError(
                    f"{self.name}: the CPU state has no field '{name}'", hint="see vmmsim.cpu.state.CpuState"
                )
            setattr(entered, name, change)
        return entered

    def place(self, memory: GuestMemory) -> None:
        """Add the ROM to `memory` and store all segments in it, or do nothing.

        ROM of the same place and size is written again. Raises ImageError naming the first
        segment that does not lie in memory entirely, and the memory's size, or the region
        that is where the ROM goes; UsageError where a device is there.
        """
        for segment in self.segments:
            if not memory.contains(segment.gpa, segment.size):
                raise ImageError(
                    f"{self.name}: {segment} does not fit the guest's memory of {_extent(memory)}",
                    hint="give more memory with -m, or put it elsewhere (a flat file with --load)",
                )
        self._add_rom(memory)
        for segment in self.segments:
            memory.write(segment.gpa, segment.data)
            _clear(memory, segment.gpa + len(segment.data), segment.size - len(segment.data))

    def _add_rom(self, memory: GuestMemory) -> None:
        missing = []
        for rom in self.rom:
            here = memory.region_at(rom.gpa)
            if here is not None and here.readonly and (here.gpa, here.end) == (rom.gpa, rom.end):
                continue
            for region in memory.regions:
                if rom.gpa < region.end and region.gpa < rom.end:
                    raise ImageError(
                        f"{self.name}: the ROM at {rom.gpa:#x}..{rom.end - 1:#x} overlaps {region!r}",
                        hint="give the machine less memory, or a model with a hole below 4 GiB",
                    )
            missing.append(rom)
        added: list[Region] = []
        try:
            for rom in missing:
                added.append(memory.add(rom.gpa, len(rom.data), readonly=True, name=rom.name))
        except BaseException:
            for region in added:
                memory.remove(region)
            raise
        for rom in self.rom:
            memory.write(rom.gpa, rom.data)

    def symbol_at(self, address: int) -> str | None:
        """`name` or `name+0x12` of the nearest symbol at or below `address`, if there is one."""
        best = max(
            (item for item in self.symbols.items() if item[1] <= address),
            key=lambda item: item[1],
            default=None,
        )
        if best is None:
            return None
        return best[0] if best[1] == address else f"{best[0]}+{address - best[1]:#x}"


class _Entry(Protocol):
    @property
    def gpa(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def type(self) -> int: ...


#: A line of the memory map: an object with `gpa`, `size` and `type`, or the three of them.
E820Like = tuple[int, int, int] | _Entry


class BootMemory:
    """The guest's memory as a boot loader has it: the map, and the RAM that is still free.

    `name` is the image's, for errors. `e820` is the map as the guest is told it (ACPI 6.4,
    section 15: type 1 is RAM); None is that of a PC of `memory_size` bytes: 0 to 640 KiB, 1 MiB to
    3 GiB, and from 4 GiB on what is left. The first 32 KiB and the place of the mode
    presets' tables are not given away. `segments` are the parts placed so far.

    Raises UsageError for an entry that is not one.
    """

    def __init__(self, name: str, memory_size: int, e820: Sequence[E820Like] | None = None) -> None:
        self.name = name
        self.entries = _pc_map(memory_size) if e820 is None else [_triple(entry) for entry in e820]
        self.segments: list[ImageSegment] = []
        ram = [(gpa, gpa + size) for gpa, size, kind in self.entries if kind == _RAM and size]
        for gpa, size, kind in self.entries:
            if kind != _RAM:
                ram = _without(ram, gpa, gpa + size)
        self._ram = _joined(ram)
        self._free = _without(self._ram, 0, LOW_START)
        self._free = _without(self._free, layout.BOOT_TABLES, layout.BOOT_TABLES + layout.BOOT_TABLES_SIZE)

    @property
    def low_size(self) -> int:
        """Bytes of RAM from address 0 on, at most 640 KiB."""
        return min(self._end_of(0), _KIB640)

    @property
    def upper_size(self) -> int:
        """Bytes of RAM from 1 MiB to the first hole."""
        return max(self._end_of(_MIB1) - _MIB1, 0)

    def _end_of(self, gpa: int) -> int:
        return next((end for start, end in self._ram if start <= gpa < end), 0)

    def is_ram(self, gpa: int, size: int) -> bool:
        """Whether `size` bytes at `gpa` are RAM, free or not."""
        return gpa + size <= self._end_of(gpa)

    def reserve(self, gpa: int, size: int) -> None:
        """Give nothing of `size` bytes at `gpa` away from now on."""
        self._free = _without(self._free, gpa, gpa + size)

    def claim(self, segment: ImageSegment) -> None:
        """Keep `segment`, which is to lie where it says. Raises ImageError where no RAM is."""
        if not self.is_ram(segment.gpa, segment.size):
            raise ImageError(
                f"{self.name}: {segment} does not lie in the guest's RAM ({self})",
                hint="give more memory with -m, or link it for another address",
            )
        self.reserve(segment.gpa, segment.size)
        self.segments.append(segment)

    def find(
        self, size: int, *, low: int = LOW_START, high: int = LOW_END, align: int = 16, top: bool = False
    ) -> int | None:
        """The lowest multiple of `align` (or with `top` the highest) where `size` bytes are
        free at or above `low` and end at or below `high`, or None. For no bytes there is a
        place too, where one byte would be free."""
        found, size = None, max(size, 1)
        for start, end in self._free:
            start, end = max(start, low), min(end, high)
            at = (end - size) // align * align if top else -(-start // align) * align
            if start <= at and at + size <= end:
                found = at
                if not top:
                    break
        return found

    def put(
        self,
        data: bytes,
        what: str,
        *,
        low: int = LOW_START,
        high: int = LOW_END,
        align: int = 16,
        top: bool = False,
    ) -> int:
        """`find` a place for `data` and claim it. Returns its address.

        Raises ImageError, with `what` it is, when there is none.
        """
        at = self.find(len(data), low=low, high=high, align=align, top=top)
        if at is None:
            raise ImageError(
                f"{self.name}: {what} of {format_size(len(data))} does not fit between {low:#x} and "
                f"{high - 1:#x} in the guest's RAM ({self})",
                hint="give more memory with -m, or make it smaller",
            )
        self.claim(ImageSegment(at, data, len(data), what))
        return at

    def flat32(self, *, code: int, data: int) -> dict[str, Any]:
        """`state_changes` for 32-bit protected mode as boot protocols want it, over preset p32.

        Puts a GDT into memory. `code` and `data` are the selectors of CS and of the data segments, which
        follow each other and are both flat: Linux demands 10h and 18h (boot.rst, "32-bit Boot Protocol");
        Multiboot and PVH leave them open, and other loaders have 8 and 10h there, where many kernels that
        keep the loader's CS have their own code and data. TR is an active 32-bit TSS at 0 with limit 67h,
        after them, as Xen's PVH ABI has it.
        """
        cs = Segment(code, 0, _FLAT, ATTR_CODE32)
        ds = Segment(data, 0, _FLAT, ATTR_DATA32)
        tss = Segment(data + 8, 0, 0x67, ATTR_TSS32_BUSY)
        gdt = bytes(code) + b"".join(encode_descriptor(segment) for segment in (cs, ds, tss))
        changes: dict[str, Any] = dict.fromkeys(("ds", "es", "fs", "gs", "ss"), ds)
        changes |= {"cs": cs, "tr": tss, "gdt": Table(self.put(gdt, "GDT"), len(gdt) - 1)}
        return changes

    def __str__(self) -> str:
        return ", ".join(f"{start:#x}..{end - 1:#x}" for start, end in self._ram) or "none"


def c_string(text: str, what: str) -> bytes:
    """`text` with its terminating zero, as UTF-8 or as the bytes that the command line had.

    Raises UsageError for a NUL character in it.
    """
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the {what} has the character {text[error.start]!r}", hint="that is half of a character"
        ) from error
    if b"\0" in data:
        raise UsageError(f"the {what} has a NUL character", hint="the guest would see its end there")
    return data + b"\0"


def _pc_map(memory_size: int) -> list[tuple[int, int, int]]:
    if memory_size <= 0:
        raise UsageError(f"a memory of {memory_size} bytes", hint="a guest needs memory")
    places = [(0, min(memory_size, _KIB640)), (_MIB1, min(memory_size, _GIB3) - _MIB1)]
    places.append((_GIB4, memory_size - _GIB3))
    return [(gpa, size, _RAM) for gpa, size in places if size > 0]


def _triple(entry: E820Like) -> tuple[int, int, int]:
    gpa, size, kind = entry if isinstance(entry, tuple) else (entry.gpa, entry.size, entry.type)
    gpa, size, kind = int(gpa), int(size), int(kind)
    if gpa < 0 or size < 0 or gpa + size > 1 << 64 or not 0 <= kind < 1 << 32:
        raise UsageError(
            f"an e820 entry of {size:#x} bytes at {gpa:#x}, type {kind}", hint="addresses have 64 bits"
        )
    return gpa, size, kind


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted; what touches or overlaps is one range."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _without(ranges: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    parts = [part for a, b in ranges for part in ((a, min(b, start)), (max(a, end), b))]
    return [(a, b) for a, b in parts if a < b]


def _extent(memory: GuestMemory) -> str:
    places = ", ".join(f"{r.gpa:#x}..{r.end - 1:#x}" for r in memory.regions)
    return f"{format_size(memory.size)} ({places})"


def _clear(memory: GuestMemory, gpa: int, size: int) -> None:
    # In blocks: a large .bss must not need as much memory again on the host.
    block = bytes(min(size, 1 << 20))
    while size > 0:
        memory.write(gpa, block[:size])
        gpa += len(block[:size])
        size -= len(block[:size])
