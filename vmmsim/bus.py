"""Where an access goes: disjoint ranges of ports and of physical addresses.

This is the one place for the rules of width:

* `split_access` cuts what an instruction does into the accesses that the VMM sees: pieces
  of at most 8 bytes, ascending, cut at 4 KiB pages. (KVM does this in the kernel; a
  backend that is given larger pieces calls it.)
* A `Bus` cuts an access further for the device that takes it: a device declares the
  widths it knows (`widths`), and gets an access that it lacks as pieces of its widest
  fitting width, ascending; an access that runs over the end of a device's range is cut
  there. This is what an ISA bus does with a 16-bit access to an 8-bit chip.
* Bytes that nobody claims read as all ones, writes to them vanish; both are counted.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from .errors import UsageError

__all__ = ["Bus", "Device", "Mapping", "split_access"]

_PAGE = 4096
#: Cached decisions a bus keeps of a size before it starts anew: guests that scan memory stay
#: bounded.
_CACHE_LIMIT = 4096

#: Who answers a read: a function, its first argument, and the bits that no answer has.
ReadPlan = tuple[Callable[[int, int], int], int, int]
#: Who takes a write: a function and its first argument.
WritePlan = tuple[Callable[[int, int, int], None], int]


@runtime_checkable
class Device(Protocol):
    """What a bus asks of a device. Offsets count from the start of its range.

    `widths` are the access sizes in bytes that the device takes, from {1, 2, 4, 8}.
    """

    widths: frozenset[int]

    def read(self, offset: int, size: int, /) -> int:
        """Answer a read of `size` bytes, one of `widths`: 0 <= answer < 2**(8*size), little-endian."""

    def write(self, offset: int, size: int, value: int, /) -> None:
        """Take a write of `size` bytes, one of `widths`; 0 <= value < 2**(8*size)."""


class Mapping:
    """`device` at `start`, `length` addresses long, known as `name`."""

    __slots__ = ("device", "length", "name", "start")

    def __init__(self, start: int, length: int, device: Device, name: str) -> None:
        self.start = start
        self.length = length
        self.device = device
        self.name = name

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + self.length

    def __repr__(self) -> str:
        return f"<{self.name} {self.start:#x}..{self.end - 1:#x}>"


def split_access(address: int, size: int) -> Iterator[tuple[int, int]]:
    """The accesses that an instruction's `size` bytes at `address` make: (address, size)."""
    while size:
        piece = min(size, 8, _PAGE - address % _PAGE)
        yield address, piece
        address += piece
        size -= piece


class Bus:
    """Ports (limit 0x10000) or physical addresses (limit 2**52) and the devices on them.

    `read` and `write` are the way of a guest's access. `unclaimed_reads` and
    `unclaimed_writes` count accesses of which at least one byte had no device.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.unclaimed_reads = 0
        self.unclaimed_writes = 0
        #: Called as (address, size, is_write) for an access that nobody claims.
        self.on_unclaimed: Callable[[int, int, bool], None] | None = None
        self._mappings: list[Mapping] = []
        self._starts: list[int] = []
        #: Decided already, by size and then by address: see `plan_read` and `plan_write`.
        self.readers: tuple[dict[int, ReadPlan], ...] = tuple({} for _ in range(9))
        self.writers: tuple[dict[int, WritePlan], ...] = tuple({} for _ in range(9))

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """What is on the bus, by ascending address."""
        return tuple(self._mappings)

    def attach(self, start: int, length: int, device: Device, name: str = "") -> Mapping:
        """Put `device` at `start`..`start + length - 1`.

        Raises UsageError for an empty range, one beyond the limit, an overlap (naming both)
        and a device whose `widths` are not from {1, 2, 4, 8}.
        """
        name = name or type(device).__name__
        if length <= 0 or start < 0 or start + length > self.limit:
            raise UsageError(
                f"{name}: the range {start:#x} + {length:#x} is not on the {self.name} bus",
                hint=f"use at least one address, below {self.limit:#x}",
            )
        if not device.widths or not device.widths <= {1, 2, 4, 8}:
            raise UsageError(
                f"{name} declares the access widths {sorted(device.widths)}",
                hint="a device takes some of 1, 2, 4 and 8 bytes",
            )
        end = start + length
        for other in self._mappings:
            if start < other.end and other.start < end:
                raise UsageError(
                    f"{name} at {start:#x}..{end - 1:#x} overlaps {other!r} on the {self.name} bus",
                    hint="ranges are disjoint: move or detach one",
                )
        mapping = Mapping(start, length, device, name)
        insort(self._mappings, mapping, key=lambda m: m.start)
        self._rebuild()
        return mapping

    def detach(self, mapping: Mapping) -> None:
        """Take a mapping off the bus; its addresses are unclaimed again."""
        if mapping not in self._mappings:
            raise UsageError(
                f"{mapping!r} is not on the {self.name} bus", hint="detach what attach() returned"
            )
        self._mappings.remove(mapping)
        self._rebuild()

    def replace(self, devices: dict[Mapping, Device]) -> None:
        """Put other devices in the places of these mappings: the same machine, restored."""
        for mapping, device in devices.items():
            mapping.device = device
        self._rebuild()

    def _rebuild(self) -> None:
        self._starts = [m.start for m in self._mappings]
        for reads, writes in zip(self.readers, self.writers, strict=True):
            reads.clear()
            writes.clear()

    def find(self, address: int) -> Mapping | None:
        """The mapping that holds `address`."""
        at = bisect_right(self._starts, address) - 1
        if at >= 0 and address < self._mappings[at].end:
            return self._mappings[at]
        return None

    def read(self, address: int, size: int) -> int:
        """The device's answer to a read of `size` (1-8) bytes."""
        try:
            read, offset, _ = self.readers[size][address]
        except KeyError:
            read, offset, _ = self.plan_read(address, size)
        return read(offset, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Give a write of `size` (1-8) bytes to its device."""
        try:
            write, offset = self.writers[size][address]
        except KeyError:
            write, offset = self.plan_write(address, size)
        write(offset, size, value)

    def plan_read(self, address: int, size: int) -> ReadPlan:
        """Who answers a read. Kept in `readers[size][address]`, where the dispatcher looks it
        up by itself."""
        mapping = self.find(address)
        if mapping and address + size <= mapping.end and size in mapping.device.widths:
            plan = (mapping.device.read, address - mapping.start, -1 << 8 * size)
        else:
            plan = (self._read_cut, address, -1 << 8 * size)
        plans = self.readers[size]
        if len(plans) >= _CACHE_LIMIT:
            plans.clear()
        plans[address] = plan
        return plan

    def plan_write(self, address: int, size: int) -> WritePlan:
        """The same for a write, kept in `writers[size][address]`."""
        mapping = self.find(address)
        if mapping and address + size <= mapping.end and size in mapping.device.widths:
            plan = (mapping.device.write, address - mapping.start)
        else:
            plan = (self._write_cut, address)
        plans = self.writers[size]
        if len(plans) >= _CACHE_LIMIT:
            plans.clear()
        plans[address] = plan
        return plan

    def _cut(self, address: int, size: int) -> Iterator[tuple[Mapping | None, int, int]]:
        """(mapping, address, size) pieces, each within one device and of a width it takes.

        A device that takes no width so small gets its narrowest one.
        """
        end = address + size
        while address < end:
            mapping = self.find(address)
            if mapping is None:
                yield None, address, 1
                address += 1
                continue
            room = min(end, mapping.end) - address
            piece = max((w for w in mapping.device.widths if w <= room), default=room)
            yield mapping, address, piece
            address += piece

    def _read_cut(self, address: int, size: int) -> int:
        value = 0
        missed = False
        for mapping, at, piece in self._cut(address, size):
            if mapping is None:
                part = (1 << 8 * piece) - 1
                missed = True
            else:
                width = piece if piece in mapping.device.widths else min(mapping.device.widths)
                part = mapping.device.read(at - mapping.start, width)
                if part & -1 << 8 * width:
                    raise ValueError(f"{part:#x} does not answer a {width}-byte read")
                part &= (1 << 8 * piece) - 1
            value |= part << 8 * (at - address)
        if missed:
            self.unclaimed_reads += 1
            if self.on_unclaimed is not None:
                self.on_unclaimed(address, size, False)
        return value

    def _write_cut(self, address: int, size: int, value: int) -> None:
        missed = False
        for mapping, at, piece in self._cut(address, size):
            if mapping is None:
                missed = True
                continue
            part = value >> 8 * (at - address) & ((1 << 8 * piece) - 1)
            width = piece if piece in mapping.device.widths else min(mapping.device.widths)
            mapping.device.write(at - mapping.start, width, part)
        if missed:
            self.unclaimed_writes += 1
            if self.on_unclaimed is not None:
                self.on_unclaimed(address, size, True)
