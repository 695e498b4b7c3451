"""The report of a comparison: values first, then lines for people, and JSON.

`Report.lines()` is the one text that the command line, the pytest plugin and (through
vmmsim.diff.html) a browser show.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from ..errors import UsageError

__all__ = [
    "Change",
    "CodeLine",
    "Explanation",
    "FieldPair",
    "MemoryRange",
    "OutputDifference",
    "Report",
    "SideView",
    "StepResult",
]

#: How many lines of a kind the text shows; JSON has them all.
_SHOWN = 24
_SHOWN_EXITS = 8
#: The longest names that tables show.
_LABEL = 16


class FieldPair(msgspec.Struct, frozen=True):
    """A register, or a field of a device, that differs."""

    name: str
    a: Any
    b: Any


class Change(msgspec.Struct, frozen=True):
    """A register of one side, at the last exit that was the same and now."""

    name: str
    before: Any
    now: Any


class MemoryRange(msgspec.Struct, frozen=True):
    """`length` bytes at guest-physical `gpa` that differ; `a` and `b` are the first 16, in hexadecimal."""

    gpa: int
    length: int
    a: str
    b: str


class OutputDifference(msgspec.Struct, frozen=True):
    """The consoles differ from the byte `at` on; `a` and `b` are up to 64 characters from there."""

    at: int
    a: str
    b: str


class CodeLine(msgspec.Struct, frozen=True):
    """One instruction. `here`: RIP is at it, or it made the exit."""

    address: int
    code: str
    text: str
    here: bool = False


class Explanation(msgspec.Struct, frozen=True):
    """An entry of divergences.toml that may be the cause. `why` says what speaks for it."""

    id: str
    title: str
    why: str


class SideView(msgspec.Struct, frozen=True, kw_only=True):
    """One side where the comparison ended. `event` is the exit that differs, or its end.
    `missing` says why this side could not run; the rest is empty then."""

    name: str
    provenance: str = ""
    exits: int = 0
    event: str = ""
    end: str = ""
    rip: int | None = None
    mode: str = ""
    registers: dict[str, Any] = {}
    changed: tuple[Change, ...] = ()
    code: tuple[CodeLine, ...] = ()
    accesses: tuple[str, ...] = ()
    missing: str = ""
    remedy: str = ""


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """The first instruction behind which the sides differ: the `number`-th, from 1, behind exit `exit`,
    at which they were the same still (0: the start). None: none was found, and `note`
    says what that means. `how` says for each side how it was gone through."""

    number: int | None
    how: tuple[str, str]
    exit: int = 0
    note: str = ""
    address: int | None = None
    a: str = ""
    b: str = ""
    registers: tuple[FieldPair, ...] = ()
    memory: tuple[MemoryRange, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came out of comparing two runs. `exits` were the same; `exit` is the number of the first
    that differs, from 1, None when the exits were all the same. `what` differs: `exit`, `end`, or
    the first of `registers`, `memory`, `devices`, `output`; "" if nothing does."""

    verdict: Literal["same", "diverged", "stopped"]
    what: str = ""
    workload: str
    exits: int = 0
    exit: int | None = None
    trace_hash: str = ""
    before: tuple[str, ...] = ()
    a: SideView
    b: SideView
    registers: tuple[FieldPair, ...] = ()
    memory: tuple[MemoryRange, ...] = ()
    devices: tuple[FieldPair, ...] = ()
    output: OutputDifference | None = None
    explanations: tuple[Explanation, ...] = ()
    step: StepResult | None = None
    notes: tuple[str, ...] = ()
    command: str = ""

    @property
    def same(self) -> bool:
        """Whether the sides were compared to the end and are the same."""
        return self.verdict == "same"

    def __str__(self) -> str:
        return self.text()

    def text(self) -> str:
        """The report as lines of plain text."""
        return "\n".join(text for _, text in self.lines())

    def json(self) -> bytes:
        """The report as one JSON object. Bytes of registers are numbers; those above 2^53 too."""
        return msgspec.json.encode(self, enc_hook=_plain)

    def headline(self) -> str:
        """One sentence: what came out."""
        names = f"{self.a.name} and {self.b.name}"
        for side in (self.a, self.b):
            if side.missing:
                return f"{side.name} is missing: {side.missing}"
        if self.verdict == "same":
            return f"{names} are the same: {self.exits} exits, {self.a.end or 'no end'}"
        if self.verdict == "stopped":
            return f"{names}: {self.exits} exits were the same, and there it was stopped"
        if self.exit is not None:
            return f"{names} differ at exit {self.exit} of {self.workload}"
        return f"{names} differ in {self.what} at the end of {self.workload}, after {self.exits} same exits"

    @property
    def labels(self) -> tuple[str, str]:
        """What the sides are called in tables: their names, if these are short."""
        names = (self.a.name, self.b.name)
        return names if names[0] != names[1] and max(map(len, names)) <= _LABEL else ("a", "b")

    def lines(self) -> Iterator[tuple[str, str]]:
        """(kind, text): the kind is head, part, a, b, here, note, or "" for plain lines."""
        yield "head", self.headline()
        if self.labels == ("a", "b"):
            yield "a", f"a: {self.a.name} on {self.a.provenance or 'nothing'}"
            yield "b", f"b: {self.b.name} on {self.b.provenance or 'nothing'}"
        for note in self.notes:
            yield "note", f"note: {note}"
        if self.verdict == "diverged":
            yield from self._event()
            yield from self._registers()
            yield from self._memory("memory that differs", self.memory)
            if self.devices:
                yield "part", "devices that differ"
                yield from _pairs(self.devices, self.a.name, self.b.name)
            yield from self._output()
            yield from self._code()
            yield from self._accesses()
            yield from self._step()
            yield "part", "known divergences"
            if not self.explanations:
                yield "", "  none explains it"
            for found in self.explanations:
                yield "", f"  {found.id}: {found.title} ({found.why})"
        if self.command and self.verdict == "diverged":
            yield "part", "to see it again"
            yield "", f"  {self.command}"

    def _sides(self) -> Iterator[tuple[str, str, SideView]]:
        """(kind of its lines, label, side)."""
        yield "a", self.labels[0], self.a
        yield "b", self.labels[1], self.b

    def _event(self) -> Iterator[tuple[str, str]]:
        if self.exit is None:
            return
        yield "part", "the exits"
        shown = self.before[-_SHOWN_EXITS:]
        for number, line in enumerate(shown, self.exits - len(shown) + 1):
            yield "", f"  {'both':>12} #{number}: {line}"
        for kind, label, side in self._sides():
            yield kind, f"  {label:>12} #{self.exit}: {side.event}"

    def _registers(self) -> Iterator[tuple[str, str]]:
        if self.registers:
            yield "part", "registers that differ"
            yield from _pairs(self.registers, *self.labels)
        elif self.exit is not None and self.a.registers and self.b.registers:
            yield "part", "registers"
            yield "", "  the same on both sides there"
        changed = [
            [f"  {c.name:>12}: {_value(c.before)} -> {_value(c.now)}" for c in side.changed[:_SHOWN]]
            for side in (self.a, self.b)
        ]
        since = "the last exit that was the same" if self.exits else "the start"
        yield from self._by_side("changed{} since " + since, *changed)

    def _by_side(self, title: str, a: list[str], b: list[str]) -> Iterator[tuple[str, str]]:
        """Lines of both sides, once if they are the same."""
        if a and a == b:
            yield "part", title.format("")
            yield from (("", line) for line in a)
            return
        for (kind, label, _), lines in zip(self._sides(), (a, b), strict=True):
            if lines:
                yield "part", title.format(f" on {label}")
                yield from ((kind, line) for line in lines)

    @staticmethod
    def _memory(title: str, ranges: tuple[MemoryRange, ...]) -> Iterator[tuple[str, str]]:
        if not ranges:
            return
        yield "part", title
        for found in ranges[:_SHOWN]:
            yield "", f"  {found.gpa:#x}, {found.length} bytes"
            more = " ..." if found.length > 16 else ""
            yield "a", f"    {_spaced(found.a)}{more}"
            yield "b", f"    {_spaced(found.b)}{more}"
        if len(ranges) > _SHOWN:
            yield "", f"  and {len(ranges) - _SHOWN} ranges more"

    def _output(self) -> Iterator[tuple[str, str]]:
        if self.output is not None:
            yield "part", f"what was printed differs from byte {self.output.at} on"
            for (kind, label, _), text in zip(self._sides(), (self.output.a, self.output.b), strict=True):
                yield kind, f"  {label:>12}: {text!r}"

    def _code(self) -> Iterator[tuple[str, str]]:
        if self.exit is None and not self.registers:
            return
        texts = [
            [
                f"  {'>' if line.here else ' '} {line.address:#x}:  {_spaced(line.code):<24} {line.text}"
                for line in side.code
            ]
            for side in (self.a, self.b)
        ]
        for kind, text in self._by_side("code{}", *texts):
            yield ("here" if text.startswith("  >") else kind), text

    def _accesses(self) -> Iterator[tuple[str, str]]:
        lines = [[f"  {line}" for line in side.accesses[-_SHOWN_EXITS:]] for side in (self.a, self.b)]
        yield from self._by_side("last device accesses{}", *lines)

    def _step(self) -> Iterator[tuple[str, str]]:
        step = self.step
        if step is None:
            return
        yield "part", "the first instruction that differs"
        if step.number is not None:
            behind = f"exit {step.exit}" if step.exit else "the start"
            yield "here", f"  instruction {step.number} behind {behind}, at {step.address or 0:#x}"
            if step.a == step.b:
                yield "here", f"  > {step.a}"
            else:
                for (kind, label, _), text in zip(self._sides(), (step.a, step.b), strict=True):
                    yield kind, f"  {label:>12}: {text}"
            yield from _pairs(step.registers, *self.labels)
        yield from self._memory("memory that differs behind it", step.memory)
        if step.note:
            yield "", f"  {step.note}"
        for (_, label, _), how in zip(self._sides(), step.how, strict=True):
            yield "", f"  {label:>12}: {how}"


def _pairs(pairs: tuple[FieldPair, ...], a: str, b: str) -> Iterator[tuple[str, str]]:
    for pair in pairs[:_SHOWN]:
        yield "", f"  {pair.name:>12}: {a} {_value(pair.a)}, {b} {_value(pair.b)}"
    if len(pairs) > _SHOWN:
        yield "", f"  and {len(pairs) - _SHOWN} more"


def _value(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value)
    text = value.hex(" ") if isinstance(value, bytes) else str(value)
    return text if len(text) <= 72 else text[:69] + "..."


def _spaced(text: str) -> str:
    return bytes.fromhex(text).hex(" ")


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, memoryview)):
        return bytes(value).hex()
    raise UsageError(f"a {type(value).__name__} in a report", hint="this is a fault in vmmsim")
