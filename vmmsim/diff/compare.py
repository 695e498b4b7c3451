"""Compare two runs: exit by exit, register by register, byte by byte.

Each function returns the first difference as a `Difference` that a person can read, or None.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..cpu.state import CpuState
from ..exits import Access, Exit, ReadAccess, WriteAccess
from ..memory import GuestMemory
from .divergences import ignored_bits

__all__ = ["Difference", "TraceStep", "compare_memory", "compare_states", "compare_traces"]

#: How many exits before the first difference are shown.
_CONTEXT = 5
_BLOCK = 4096


class TraceStep(msgspec.Struct, frozen=True):
    """One exit as it is compared: `value` is a read's answer or a write's data, None for
    others; `rip` is where the vCPU was, None when the run did not look (inline mode)."""

    kind: str
    address: int | None = None
    size: int | None = None
    value: int | None = None
    rip: int | None = None

    @classmethod
    def of(cls, exit: Exit, rip: int | None = None) -> TraceStep:
        """The step of an exit. A read must have been answered."""
        if isinstance(exit, (ReadAccess, WriteAccess)):
            return cls(exit.kind, exit.address, exit.size, exit.value, rip)
        return cls(exit.kind, getattr(exit, "address", None), rip=rip)

    @classmethod
    def of_access(cls, exit_class: type[Access], address: int, size: int, value: int) -> TraceStep:
        """The step of an observer's call (`Machine.observe`)."""
        return cls(exit_class.kind, address, size, value)

    def __str__(self) -> str:
        text = self.kind
        if self.address is not None:
            text += f" {self.address:#x}"
        if self.size is not None:
            text += f" size {self.size}"
        if self.value is not None:
            text += f" = {self.value:#x}"
        return text if self.rip is None else f"{text} (rip {self.rip:#x})"


class Difference(msgspec.Struct, frozen=True):
    """The first place where two runs differ. `at` is the number of the exit, the name of the
    register, or the guest-physical address; `text` is the report."""

    what: str
    at: int | str
    text: str

    def __str__(self) -> str:
        return self.text


def compare_traces(
    left: Sequence[TraceStep], right: Sequence[TraceStep], *, names: tuple[str, str] = ("left", "right")
) -> Difference | None:
    """The first exit in which the traces differ. RIPs are compared where both have one."""
    for number, (mine, theirs) in enumerate(zip(left, right, strict=False)):
        if _same(mine, theirs):
            continue
        return _trace_difference(left, number, names, str(mine), str(theirs))
    if len(left) == len(right):
        return None
    number = min(len(left), len(right))
    ends = [str(side[number]) if number < len(side) else "(the run has ended)" for side in (left, right)]
    return _trace_difference(left, number, names, ends[0], ends[1])


def _same(mine: TraceStep, theirs: TraceStep) -> bool:
    if mine.rip is None or theirs.rip is None:
        mine = msgspec.structs.replace(mine, rip=None)
        theirs = msgspec.structs.replace(theirs, rip=None)
    return mine == theirs


def _trace_difference(
    trace: Sequence[TraceStep], number: int, names: tuple[str, str], mine: str, theirs: str
) -> Difference:
    first = max(0, number - _CONTEXT)
    lines = [f"exit {number} differs"]
    lines += [f"  {'both':>8} #{n}: {trace[n]}" for n in range(first, number)]
    lines += [f"  {names[0]:>8} #{number}: {mine}", f"  {names[1]:>8} #{number}: {theirs}"]
    return Difference("trace", number, "\n".join(lines))


def compare_states(
    left: CpuState,
    right: CpuState,
    *,
    names: tuple[str, str] = ("left", "right"),
    ignore: dict[str, int] | None = None,
) -> Difference | None:
    """The registers in which two states differ, one line each.

    `ignore` has masks of bits that do not count, by field name (-1: all of it); None takes
    those of divergences.toml.
    """
    masks = ignored_bits() if ignore is None else ignore
    lines: list[str] = []
    first = ""
    for name, mine, theirs in left.diff(right):
        mask = masks.get(name, 0)
        if mask == -1:
            continue
        if isinstance(mine, int) and isinstance(theirs, int) and not (mine ^ theirs) & ~mask:
            continue
        first = first or name
        lines.append(f"  {name:>12}: {names[0]} {_text(mine)}, {names[1]} {_text(theirs)}")
    if not lines:
        return None
    return Difference("state", first, "registers differ\n" + "\n".join(lines))


def _text(value: object) -> str:
    return f"{value:#x}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def compare_memory(
    left: GuestMemory, right: GuestMemory, *, names: tuple[str, str] = ("left", "right")
) -> Difference | None:
    """The first range of bytes in which two memories differ (up to 16 bytes of it)."""
    shapes = [[(r.gpa, r.size, r.readonly) for r in memory.regions] for memory in (left, right)]
    if shapes[0] != shapes[1]:
        return Difference(
            "memory", 0, f"regions differ: {names[0]} {left.regions}, {names[1]} {right.regions}"
        )
    if left.digest() == right.digest():
        return None
    for mine, theirs in zip(left.regions, right.regions, strict=True):
        for at in range(0, mine.size, _BLOCK):
            a, b = mine.buffer[at : at + _BLOCK], theirs.buffer[at : at + _BLOCK]
            if a != b:
                skip = next(i for i in range(len(a)) if a[i] != b[i])
                gpa = mine.gpa + at + skip
                text = f"memory differs from {gpa:#x} on ({mine.name})\n" + "\n".join(
                    f"  {name:>8}: {data[skip : skip + 16].hex(' ')}"
                    for name, data in zip(names, (a, b), strict=True)
                )
                return Difference("memory", gpa, text)
    return None
