"""Guest-physical memory: RAM and ROM regions over host pages that the CPU shares.

A region's bytes are one anonymous host mapping. The backend maps the same pages into the
guest (a KVM slot, Unicorn's mem_map_ptr), so nothing is ever copied. What no region
covers is a hole: the guest's accesses there are MMIO exits.
"""

from __future__ import annotations

import hashlib
import mmap
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .errors import HostError, UsageError

if TYPE_CHECKING:
    from .backends.base import Vm

__all__ = ["GPA_LIMIT", "PAGE_SIZE", "GuestMemory", "Region", "format_size", "parse_size"]

#: Bytes in a page.
PAGE_SIZE = 4096
#: RAM lies below this address (SDM vol. 3, 4.1.4: MAXPHYADDR; the contract's 2**48).
GPA_LIMIT = 1 << 48

_UNITS = {"": 1 << 20, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

_SHOWN_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def parse_size(text: str) -> int:
    """Bytes from `64M`, `1GiB`, `4096B`; a bare number is MiB, as QEMU's -m has it.

    Raises UsageError naming the accepted forms.
    """
    body = text.strip().upper().removesuffix("IB")
    number, unit = (body[:-1], body[-1]) if body[-1:].isalpha() else (body, "")
    # Python refuses to convert some thousand digits; no size has more than a few.
    if unit not in _UNITS or not number.isascii() or not number.isdigit() or len(number) > 20:
        raise UsageError(
            f"'{text}' is not a size",
            hint="write 64M, 1G, 512KiB or 4096B; a bare number is MiB",
        )
    return int(number) * _UNITS[unit]


def format_size(size: int) -> str:
    """For people: `64 MiB` for 1 << 26, `1025 KiB`, and `512.0 GiB` for a page more than 512 GiB.

    The largest binary unit that divides the size, as long as there are less than 10,000 of
    it; else the largest unit that is not larger, with one decimal.
    """
    fitting = [(unit, name) for unit, name in _SHOWN_UNITS if size >= unit]
    for unit, name in fitting:
        if size % unit == 0 and size // unit < 10_000:
            return f"{size // unit} {name}"
    if size < 10_000 or not fitting:
        return f"{size} bytes"
    unit, name = fitting[0]
    return f"{size / unit:.1f} {name}"


class Region:
    """`size` bytes of RAM (or ROM, which only the host writes) at guest-physical `gpa`.

    `buffer` is the writable host mapping, `anonymous` while no snapshot was mapped over it: a page that
    nobody has touched is then zero. Made by `GuestMemory.add`.
    """

    __slots__ = ("anonymous", "buffer", "gpa", "name", "readonly", "size")

    def __init__(self, gpa: int, size: int, *, readonly: bool, name: str) -> None:
        self.gpa = gpa
        self.size = size
        self.readonly = readonly
        self.name = name
        self.anonymous = True
        try:
            if hasattr(mmap, "MAP_NORESERVE"):
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_NORESERVE
                self.buffer = mmap.mmap(-1, size, flags)
            else:
                self.buffer = mmap.mmap(-1, size)
        except (OSError, ValueError, OverflowError) as error:
            raise HostError(
                f"the host has no {format_size(size)} for the guest's memory at {gpa:#x}",
                hint="ask for less with -m",
            ) from error

    @property
    def end(self) -> int:
        """First address behind the region."""
        return self.gpa + self.size

    def __repr__(self) -> str:
        kind = "ROM" if self.readonly else "RAM"
        return f"<{kind} {self.name} {self.gpa:#x}..{self.end - 1:#x}>"


class GuestMemory:
    """All regions of a machine, with checked access by guest-physical address.

    `memory[0x1000]` is a byte, `memory[0x1000:0x1010]` bytes; both can be assigned. An
    access may span regions that touch; one that meets a hole raises UsageError and changes
    nothing. The host may write ROM.
    """

    def __init__(self) -> None:
        self._regions: list[Region] = []
        self._starts: list[int] = []
        self._vm: Vm | None = None
        #: The image whose pages the regions' are, where they were not stored to (vmmsim.snapshot.cow).
        self.base: Any = None
        self._guard: Callable[[], None] = lambda: None
        self._check_vacant: Callable[[int, int], None] = lambda gpa, size: None

    def attach(
        self, vm: Vm, guard: Callable[[], None], check_vacant: Callable[[int, int], None] | None = None
    ) -> None:
        """Give the regions to `vm`, now and as they change. `guard` is called before the host
        touches guest memory: it finishes the instruction in flight. `check_vacant(gpa, size)`
        raises UsageError for a range that a new region must leave free."""
        self._vm = vm
        self._guard = guard
        if check_vacant is not None:
            self._check_vacant = check_vacant
        for region in self._regions:
            vm.map_memory(region)

    @property
    def regions(self) -> tuple[Region, ...]:
        """RAM and ROM, by ascending address."""
        return tuple(self._regions)

    @property
    def size(self) -> int:
        """Bytes in all regions."""
        return sum(region.size for region in self._regions)

    def add(self, gpa: int, size: int, *, readonly: bool = False, name: str = "") -> Region:
        """Add zeroed RAM, or ROM, of `size` bytes at `gpa`; both are multiples of 4 KiB.

        Raises UsageError for a bad size, address or overlap, HostError when the host has
        not so much. May be called on a stopped machine: the hole becomes memory.
        """
        what = name or ("ROM" if readonly else "RAM")
        if size <= 0:
            raise UsageError(
                f"{what} at {gpa:#x} has a size of {size} bytes",
                hint="memory needs at least one page of 4 KiB",
            )
        for value, label in ((gpa, "address"), (size, "size")):
            if value % PAGE_SIZE:
                raise UsageError(
                    f"{what}: the {label} {value:#x} is not a multiple of 4 KiB",
                    hint=f"use {value - value % PAGE_SIZE:#x} or {value - value % PAGE_SIZE + PAGE_SIZE:#x}",
                )
        if gpa < 0 or gpa + size > GPA_LIMIT:
            raise UsageError(
                f"{what} of {format_size(size)} at {gpa:#x} ends beyond 2^48",
                hint="memory lies below 2^48",
            )
        for other in self._regions:
            if gpa < other.end and other.gpa < gpa + size:
                raise UsageError(
                    f"{what} {gpa:#x}..{gpa + size - 1:#x} overlaps {other!r}",
                    hint="regions are disjoint: move one, or make it smaller",
                )
        self._check_vacant(gpa, size)
        region = Region(gpa, size, readonly=readonly, name=what)
        self.base = None
        self._guard()
        if self._vm is not None:
            self._vm.map_memory(region)
        insort(self._regions, region, key=lambda r: r.gpa)
        self._starts = [r.gpa for r in self._regions]
        return region

    def remove(self, region: Region) -> None:
        """Take `region` away from a stopped machine: its addresses become a hole."""
        if region not in self._regions:
            raise UsageError(f"{region!r} is not part of this memory", hint="remove what add() returned")
        self._guard()
        if self._vm is not None:
            self._vm.unmap_memory(region)
        self._regions.remove(region)
        self._starts = [r.gpa for r in self._regions]

    def region_at(self, gpa: int) -> Region | None:
        """The region that holds `gpa`, or None for a hole."""
        at = bisect_right(self._starts, gpa) - 1
        if at >= 0 and gpa < self._regions[at].end:
            return self._regions[at]
        return None

    def contains(self, gpa: int, size: int = 1) -> bool:
        """Whether all of `size` bytes at `gpa` are memory."""
        try:
            for _ in self._pieces(gpa, size):
                pass
        except UsageError:
            return False
        return True

    def _pieces(self, gpa: int, size: int) -> Iterator[tuple[Region, int, int]]:
        if size < 0:
            raise UsageError(f"a size of {size} bytes", hint="sizes are not negative")
        while size:
            region = self.region_at(gpa)
            if region is None:
                raise UsageError(
                    f"there is no memory at guest-physical {gpa:#x}",
                    hint="memory is " + (", ".join(map(repr, self._regions)) or "empty"),
                )
            count = min(size, region.end - gpa)
            yield region, gpa - region.gpa, count
            gpa += count
            size -= count

    def read(self, gpa: int, size: int) -> bytes:
        """`size` bytes at `gpa`."""
        self._guard()
        return b"".join(bytes(r.buffer[at : at + n]) for r, at, n in self._pieces(gpa, size))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data` at `gpa`, in RAM or ROM. Code that was translated there is forgotten."""
        self._guard()
        view = memoryview(data).cast("B")
        pieces = list(self._pieces(gpa, len(view)))
        done = 0
        for region, at, count in pieces:
            region.buffer[at : at + count] = bytes(view[done : done + count])
            if self._vm is not None:
                self._vm.memory_written(region.gpa + at, count)
            done += count

    def read_int(self, gpa: int, size: int) -> int:
        """A little-endian integer of `size` bytes."""
        return int.from_bytes(self.read(gpa, size), "little")

    def write_int(self, gpa: int, size: int, value: int) -> None:
        """Store `value`, 0 <= value < 2**(8*size), little-endian."""
        try:
            self.write(gpa, value.to_bytes(size, "little"))
        except OverflowError as error:
            raise UsageError(f"{value:#x} does not fit {size} bytes", hint="mask it first") from error

    def __getitem__(self, key: int | slice) -> int | bytes:
        if isinstance(key, slice):
            return self.read(*self._span(key))
        return self.read(key, 1)[0]

    def __setitem__(self, key: int | slice, value: int | bytes) -> None:
        if isinstance(key, slice):
            start, size = self._span(key)
            data = bytes(value)
            if len(data) != size:
                raise UsageError(
                    f"{len(data)} bytes do not fit the {size} bytes of the slice",
                    hint="memory does not shift: assign as many bytes as the slice has",
                )
            self.write(start, data)
        else:
            self.write_int(key, 1, int(value))

    @staticmethod
    def _span(key: slice) -> tuple[int, int]:
        if key.start is None or key.stop is None or key.step not in (None, 1) or key.stop < key.start:
            raise UsageError("a memory slice needs a start and an end", hint="memory[0x1000:0x1010]")
        return key.start, key.stop - key.start

    def digest(self) -> str:
        """SHA-256 over every region's place and bytes: equal memories have equal digests."""
        self._guard()
        hasher = hashlib.sha256()
        for region in self._regions:
            hasher.update(f"{region.gpa:x} {region.size:x} {region.readonly}\n".encode())
            with memoryview(region.buffer) as view:
                hasher.update(view)
        return hasher.hexdigest()

    def replaced(self) -> None:
        """The host has given the regions other bytes, past `write`: forget code translated there."""
        if self._vm is not None and self._regions:
            first, last = self._regions[0], self._regions[-1]
            self._vm.memory_written(first.gpa, last.end - first.gpa)

    def close(self) -> None:
        """Give the host pages back. The vCPUs must be gone."""
        for region in self._regions:
            try:
                region.buffer.close()
            except BufferError as error:
                raise UsageError(
                    f"{region!r} is still in use: a memoryview of it is alive",
                    hint="release the views before the machine is closed",
                ) from error
        self._regions.clear()
        self._starts.clear()
