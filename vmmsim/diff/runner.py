"""Run a case on two backends, and say in which fields they differ.

A field is a register by its name in `CpuState.fields`, or one of

    end        how the program ended: `end`, `#14` for an exception, `shutdown`, ...
    accesses   what it did outside RAM, access by access
    memory     RAM
    frame      the RFLAGS that an exception pushed, and `error`, its error code
    pushed     memory right below the stack pointer, where an exception that ended in a shutdown was pushed
    code       the program wrote over itself: on both, and no difference by itself
    fpu.exponent0..7   sign and exponent of an x87 register whose other 64 bits are the same
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..backends.base import Backend
from ..cpu.state import FpuState
from ..cpu.vectors import ERROR_CODE_VECTORS
from .case import RAM, SLOT, Case
from .divergences import ignored_bits
from .lanes import END, HUNG, NAMES, REFUSED, Lane, Outcome

__all__ = ["Field", "Pair", "Verdict"]

_RF = 1 << 16
_MANTISSA = (1 << 64) - 1
#: Sign and exponent of a register that MMX has written: the divergence `mmx-exponent`.
_MMX_EXPONENT = 0xFFFF
#: The widest frame: five words of 8 bytes and an error code (SDM vol. 3, 6.14.2).
_LARGEST_FRAME = 48


class Field(msgspec.Struct, frozen=True):
    """A difference: `left` and `right` are numbers, or text of `end`, `accesses` and `memory`."""

    name: str
    left: int | str
    right: int | str

    @property
    def bits(self) -> int:
        """Which bits differ; -1 where the values are no numbers."""
        if isinstance(self.left, int) and isinstance(self.right, int):
            return self.left ^ self.right
        return -1

    def __str__(self) -> str:
        left, right = (f"{v:#x}" if isinstance(v, int) else str(v) for v in (self.left, self.right))
        return f"{self.name}: {left} | {right}"


class Verdict(msgspec.Struct, frozen=True):
    """`fields` is empty when both sides agree. `refused` says why the case could not be compared:
    a side refused it."""

    fields: tuple[Field, ...] = ()
    ends: tuple[str, str] = ("", "")
    refused: str = ""


class Pair:
    """Two backends with a lane each. A context manager."""

    def __init__(self, left: Backend, right: Backend) -> None:
        self.left = Lane(left)
        try:
            self.right = Lane(right)
        except BaseException:
            self.left.close()
            raise
        self.provenances = (left.provenance, right.provenance)
        self._ignored = ignored_bits()

    def close(self) -> None:
        self.left.close()
        self.right.close()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, case: Case, *, masked: bool = True) -> Verdict:
        """Run `case` on both, compare, and leave both ready for the next. Without `masked` also what
        divergences.toml leaves out of each comparison counts."""
        left, right = self.left, self.right
        left.enter(case)
        right.enter(case)
        a = left.run(case)
        b = right.run(case)
        verdict = self._compare(case, a, b, masked)
        left.leave(case)
        right.leave(case)
        return verdict

    def _compare(self, case: Case, a: Outcome, b: Outcome, masked: bool) -> Verdict:
        ends = (a.end, b.end)
        if REFUSED in ends:
            return Verdict(ends=ends, refused=REFUSED)
        found: list[Field] = []
        if a.end != b.end:
            found.append(Field("end", a.end, b.end))
        if a.seen != b.seen:
            found.append(_accesses(a.seen, b.seen))
        normal = a.end == b.end == END
        mask = self._ignored.get("rflags", 0) | (case.undefined if normal else case.ever_undefined)
        if not masked:
            mask = 0
        if a.regs != b.regs:
            for name, mine, theirs in zip(NAMES, a.regs, b.regs, strict=True):
                if mine != theirs and (name != "rflags" or (mine ^ theirs) & ~mask):
                    found.append(Field(name, mine, theirs))
        if a.state is not None or b.state is not None:
            self._states(case, a, b, found)
        if a.fpu is not None and b.fpu is not None and a.fpu != b.fpu:
            self._fpus(a.fpu, b.fpu, found, masked)
        self._memories(case, a, b, mask, found)
        if found and self.left.ram[case.place : case.place + SLOT] != case.image:
            found.append(Field("code", "overwritten", "overwritten"))
        if HUNG in ends and len(found) > 1:
            found = found[:1]
        return Verdict(tuple(found), ends)

    def _states(self, case: Case, a: Outcome, b: Outcome, found: list[Field]) -> None:
        base = case.state()
        mine, theirs = a.state or base, b.state or base
        for name in ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt"):
            x, y = getattr(mine, name), getattr(theirs, name)
            if x != y:
                found.append(Field(name, str(x), str(y)))
        for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
            x, y = getattr(mine, name), getattr(theirs, name)
            if x != y:
                found.append(Field(name, x, y))

    def _fpus(self, a: FpuState, b: FpuState, found: list[Field], masked: bool) -> None:
        for name in ("fcw", "fsw", "ftw", "fop", "fip", "fdp", "mxcsr"):
            x, y = getattr(a, name), getattr(b, name)
            if (x ^ y) & ~(self._ignored.get(f"fpu.{name}", 0) if masked else 0):
                found.append(Field(f"fpu.{name}", x, y))
        for number, (x, y) in enumerate(zip(a.xmm, b.xmm, strict=True)):
            if x != y:
                found.append(Field(f"fpu.xmm{number}", x, y))
        for number, (x, y) in enumerate(zip(a.st, b.st, strict=True)):
            if x == y:
                continue
            if (x ^ y) & _MANTISSA:
                found.append(Field(f"fpu.st{number}", x, y))
            elif not masked or _MMX_EXPONENT not in (x >> 64, y >> 64):
                found.append(Field(f"fpu.exponent{number}", x >> 64, y >> 64))

    def _memories(self, case: Case, a: Outcome, b: Outcome, mask: int, found: list[Field]) -> None:
        mine, theirs = self.left.ram, self.right.ram
        # SS:SP has 16 bits in real mode: what the frame holds is compared whatever else ESP has.
        stack = 0xFFFF if case.mode == "16" else -1
        rsp = a.regs[6] & stack
        same = a.end == b.end and rsp == b.regs[6] & stack
        if same and a.end[0] == "#":
            for name, at, size in _frame(case.mode, int(a.end[1:]), rsp):
                if case.mode == "32":
                    at &= 0xFFFFFFFF
                if not 0 <= at <= at + size <= RAM:
                    continue
                x, y = (int.from_bytes(m[at : at + size], "little") for m in (mine, theirs))
                if x != y:
                    theirs[at : at + size] = mine[at : at + size]
                    if (x ^ y) & ~(mask | _RF) or name == "error":
                        found.append(Field(name, x, y))
        if same and a.end == "shutdown":
            start, end = max(0, min(rsp, RAM) - _LARGEST_FRAME), min(rsp, RAM)
            if mine[start:end] != theirs[start:end]:
                found.append(_memory(mine, theirs, start, end, "pushed"))
                theirs[start:end] = mine[start:end]
        if mine[:RAM] != theirs[:RAM]:
            found.append(_memory(mine, theirs, 0, RAM))


def _accesses(mine: list[Any], theirs: list[Any]) -> Field:
    at = next(
        (i for i, (x, y) in enumerate(zip(mine, theirs, strict=False)) if x != y), min(len(mine), len(theirs))
    )

    def show(seen: list[Any]) -> str:
        if at >= len(seen):
            return f"{len(seen)} accesses"
        kind, address, size, value = seen[at]
        return f"#{at} {kind} {address:#x} size {size} = {value:#x}"

    return Field("accesses", show(mine), show(theirs))


def _memory(mine: Any, theirs: Any, start: int, end: int, name: str = "memory") -> Field:
    page = next(i for i in range(start, end, 256) if mine[i : i + 256] != theirs[i : i + 256])
    at = next(i for i in range(page, end) if mine[i] != theirs[i])
    x, y = (bytes(m[at : at + 8]) for m in (mine, theirs))
    return Field(name, f"{at:#x}: {x.hex(' ')}", f"{at:#x}: {y.hex(' ')}")


def _frame(mode: str, vector: int, rsp: int) -> list[tuple[str, int, int]]:
    """(field, gpa, size) of RFLAGS and of the error code in an exception's frame (SDM vol. 3, 6.12.1,
    6.13, 6.14.2; 20.1.4)."""
    if mode == "16":
        return [("frame", (rsp & 0xFFFF) + 4, 2)]
    word = 4 if mode == "32" else 8
    if vector not in ERROR_CODE_VECTORS:
        return [("frame", rsp + 2 * word, word)]
    return [("frame", rsp + 3 * word, word), ("error", rsp, word)]
