"""What differs between two snapshots: registers, device fields, stretches of memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec

from ..cpu.state import CpuState
from .pages import MemoryImage, differences
from .values import Snapshot

__all__ = ["Difference", "FieldDifference", "MemoryDifference", "compare", "field_differences", "unequal"]

#: How near, in bytes, to the next instruction a difference is taken for one of code.
_NEAR = 256
_LISTED = 12
#: Differences with fewer equal bytes between them are one.
_GAP = 16
_LONGEST = 15
_NOT_ZERO = re.compile(rb"[^\0]+")


class FieldDifference(msgspec.Struct, frozen=True):
    """A register, a device's field or another value by its dotted name; None where one side lacks it."""

    name: str
    a: Any
    b: Any


class MemoryDifference(msgspec.Struct, frozen=True):
    """`length` bytes at guest-physical `gpa` of which the first and the last differ; `a` and `b`
    are up to 16 of them. `code_a`, `code_b`: the instructions there, when either CPU is near."""

    gpa: int
    length: int
    a: bytes
    b: bytes
    code_a: tuple[str, ...] = ()
    code_b: tuple[str, ...] = ()


class Difference(msgspec.Struct, frozen=True):
    """All that differs. `bytes_differing` counts pages' bytes beyond `memory` too, which is
    cut at a limit (`more` says so)."""

    fields: tuple[FieldDifference, ...] = ()
    memory: tuple[MemoryDifference, ...] = ()
    pages: int = 0
    more: bool = False

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.fields and not self.pages


def compare(a: Snapshot, b: Snapshot, *, most: int = 1000) -> Difference:
    """Compare two snapshots, with at most `most` stretches of memory. Provenance is not compared."""
    fields = tuple(_fields(a, b))
    if a.memory.regions != b.memory.regions:
        fields += (FieldDifference("memory.regions", list(a.memory.regions), list(b.memory.regions)),)
    pages = list(differences(a.memory, b.memory))
    memory = list(islice(_stretches(a, b, pages), most + 1))
    return Difference(
        fields, tuple(memory[:most]), sum(size for _, size in pages) // 4096, len(memory) > most
    )


def _fields(a: Snapshot, b: Snapshot) -> Iterator[FieldDifference]:
    for at in range(max(len(a.cpus), len(b.cpus))):
        prefix = f"cpu{at}." if len(a.cpus) > 1 or len(b.cpus) > 1 else ""
        mine, theirs = (s.cpus[at] if at < len(s.cpus) else None for s in (a, b))
        if mine is None or theirs is None:
            yield FieldDifference(f"cpu{at}", mine and "there", theirs and "there")
            continue
        for name, x, y in mine.state.diff(theirs.state):
            yield from field_differences(prefix + name, x, y)
        for name in ("run_state", "insns"):
            yield from field_differences(prefix + name, getattr(mine, name), getattr(theirs, name))
    for name in (*a.devices, *(n for n in b.devices if n not in a.devices)):
        yield from field_differences(name, a.devices.get(name), b.devices.get(name))
    for name in ("clock", "config", "input_position", "random_state", "generation", "current"):
        yield from field_differences(name, getattr(a, name), getattr(b, name))


def field_differences(name: str, x: Any, y: Any) -> Iterator[FieldDifference]:
    """Where two values of one kind differ, by dotted name: structs and tuples field by field."""
    if x == y:
        return
    if isinstance(x, msgspec.Struct) and type(x) is type(y):
        for field in x.__struct_fields__:
            yield from field_differences(f"{name}.{field}", getattr(x, field), getattr(y, field))
    elif isinstance(x, tuple) and isinstance(y, tuple) and len(x) == len(y):
        for at, (mine, theirs) in enumerate(zip(x, y, strict=True)):
            yield from field_differences(f"{name}[{at}]", mine, theirs)
    else:
        yield FieldDifference(name, x, y)


def _stretches(a: Snapshot, b: Snapshot, pages: list[tuple[int, int]]) -> Iterator[MemoryDifference]:
    code = [_Code(snapshot) for snapshot in (a, b)]
    for gpa, size in pages:
        for at in range(gpa, gpa + size, 1 << 20):
            count = min(1 << 20, gpa + size - at)
            x, y = (_bytes(s.memory, at, count) for s in (a, b))
            for start, length in unequal(x, y):
                x_code, y_code = (part.near(at + start, length) for part in code)
                shown = start + min(length, 16)
                yield MemoryDifference(at + start, length, x[start:shown], y[start:shown], x_code, y_code)


def _bytes(image: MemoryImage, gpa: int, length: int) -> bytes:
    runs = image.pieces(gpa, length)
    return b"".join(bytes(run.length) if run.buffer is None else bytes(run.buffer) for run in runs)


def unequal(x: bytes, y: bytes) -> Iterator[tuple[int, int]]:
    """(start, length) of the stretches that differ, in buffers of one length."""
    mixed = (int.from_bytes(x, "little") ^ int.from_bytes(y, "little")).to_bytes(len(x), "little")
    start = end = -1
    for found in _NOT_ZERO.finditer(mixed):
        if start >= 0 and found.start() - end >= _GAP:
            yield start, end - start
            start = -1
        if start < 0:
            start = found.start()
        end = found.end()
    if start >= 0:
        yield start, end - start


class _Code:
    """A snapshot's code around its next instructions."""

    def __init__(self, snapshot: Snapshot) -> None:
        from ..cpu.paging import linear_to_gpa
        from ..disasm import CodeReader

        self._reader = CodeReader(snapshot.memory)
        self._next: list[tuple[CpuState, int]] = []
        for cpu in snapshot.cpus:
            gpa = linear_to_gpa(cpu.state, cpu.state.linear_rip, snapshot.memory.read)
            if gpa is not None:
                self._next.append((cpu.state, gpa))

    def near(self, gpa: int, length: int) -> tuple[str, ...]:
        """The instructions in `length` bytes at `gpa`, if a CPU stands near.

        They are decoded from the CPU's next instruction on, if that lies before their end.
        """
        for state, rip in self._next:
            first = state.linear_rip + gpa - rip
            if first < 0 or not gpa - _NEAR <= rip < gpa + length + _NEAR:
                continue
            start = min(length, _NEAR) if rip < gpa + length else 0
            if start:
                size = gpa + start + _LONGEST - rip if rip <= gpa + start else _LONGEST
                found = self._reader.decode(state, state.linear_rip, size=size, count=2 * _NEAR)
            else:
                found = self._reader.decode(state, first, size=min(length, _NEAR), count=_LISTED)
            touched = [i for i in found if i.end > first and i.address < first + length]
            return tuple(f"{i.address:#x}  {i.code.hex(' ')}  {i.text}" for i in touched[:_LISTED])
        return ()
