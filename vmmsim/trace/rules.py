"""What the records of a trace must keep to, each in its place: the rules behind its types.

A file can come from anywhere. What has passed here is in order and in bounds, so that viewers need not ask.
"""

from __future__ import annotations

import re
from typing import Any

from .records import (
    REGISTERS,
    Code,
    End,
    Event,
    ExitRecord,
    Header,
    Jump,
    MemoryChange,
    Record,
    plain,
)

__all__ = ["LONGEST_TEXT", "MOST_BYTES", "MOST_CHANGES", "MOST_LINES", "Checker", "RuleError"]

#: Characters of a text of a record, instructions of a `Code`, changes of a look, bytes of a change.
LONGEST_TEXT, MOST_LINES, MOST_CHANGES, MOST_BYTES = 4096, 64, 256, 256
_LONGEST_NAME = 100
_MOST_DEVICES = 1024
_MOST_CPUS = 255
_LONGEST_INSN = 15
#: How deep a device's state may be nested, and how many values it may have.
_DEEPEST, _MOST_VALUES = 8, 20_000

_ADDRESS_BITS = {"port": 16, "mmio": 52, "msr": 32}
_M64 = (1 << 64) - 1
_MOST_NS = 1 << 62
_KIND = re.compile(r"[a-z_]{1,32}", re.ASCII)
_HEX = re.compile(r"(?:[0-9a-f]{2})*", re.ASCII)
_NAMES = frozenset(REGISTERS)


class RuleError(ValueError):
    """A record that breaks a rule, which is the text."""


class Checker:
    """Takes the records of one trace in their order; `check` raises RuleError."""

    def __init__(self) -> None:
        self._header: Header | None = None
        self._ended = False
        self._codes = 0
        #: Behind which access each snapshot was taken.
        self._snapshots: list[int] = []
        self._exits = 0

    def check(self, record: Record) -> None:
        if self._ended:
            raise RuleError("a record behind the end record")
        if type(record) is Header:
            if self._header is not None:
                raise RuleError("a second header")
            self._header_is_good(record)
            self._header = record
            return
        if self._header is None:
            raise RuleError("the first record must be the header")
        if type(record) is ExitRecord:
            self._exit(record, self._header)
        elif type(record) is End:
            self._end(record)
        elif not self._header.detailed:
            raise RuleError("the header says that the trace has accesses only")
        elif type(record) is Event:
            self._event(record, self._header)
        elif type(record) is Code:
            self._code(record)
        elif type(record) is Jump:
            self._jump(record)

    def _header_is_good(self, header: Header) -> None:
        for name in ("vmmsim", "guest", "backend", "provenance", "machine", "clock"):
            _text(name, getattr(header, name))
        if not 1 <= header.cpus <= _MOST_CPUS:
            raise RuleError(f"{header.cpus} vCPUs; a machine has 1 to {_MOST_CPUS}")
        if max(len(header.devices), len(header.regions)) > _MOST_DEVICES:
            raise RuleError(f"more than {_MOST_DEVICES} devices or regions")
        for device in header.devices:
            _text("device", device.name, _LONGEST_NAME)
            _text("chip", device.chip, _LONGEST_NAME)
            end = 1 << _ADDRESS_BITS[device.space]
            if not (0 <= device.start < end and 0 < device.size <= end - device.start):
                raise RuleError(f"the device {device.name!r} is beyond its bus")
        for region in header.regions:
            _text("region", region.name, _LONGEST_NAME)
            if not (0 <= region.gpa < 1 << 52 and 0 < region.size <= 1 << 52):
                raise RuleError(f"the region at {region.gpa:#x} is beyond the guest's addresses")
        _registers(header.start)
        if not header.detailed and (header.start or header.devices or header.regions):
            raise RuleError("the header says that the trace has accesses only, and has details itself")

    def _exit(self, r: ExitRecord, header: Header) -> None:
        if r.n != self._exits + 1:
            raise RuleError(f"exit {r.n} where exit {self._exits + 1} must be")
        self._exits += 1
        if not 1 <= r.size <= 8:
            raise RuleError(f"a size of {r.size} bytes; an access has 1 to 8")
        if r.value < 0 or r.value >> 8 * r.size:
            raise RuleError(f"the value {r.value} does not fit {r.size} bytes")
        space = r.exit_class.space
        if r.address < 0 or r.address >> _ADDRESS_BITS[space]:
            raise RuleError(f"the address {r.address:#x} is beyond the {r.kind}'s bus")
        if space == "msr" and r.size != 8:
            raise RuleError(f"a size of {r.size} bytes; an MSR has 8")
        if not header.detailed:
            if r != plain(r):
                raise RuleError("details of an exit, and the header says that the trace has accesses only")
            return
        self._place(r, header)
        _text("device", r.device, _LONGEST_NAME)
        _text("output", r.output)
        if r.state:
            _state(r.state)
            if not r.looked:
                raise RuleError("a device's state without a look")

    def _event(self, r: Event, header: Header) -> None:
        self._behind(r.n, "event")
        if not _KIND.fullmatch(r.kind):
            raise RuleError("the kind of an event is a word of small letters")
        _text("detail", r.detail)
        self._place(r, header)

    def _place(self, r: ExitRecord | Event, header: Header) -> None:
        """What accesses and events have in common."""
        if not 0 <= r.cpu < header.cpus:
            raise RuleError(f"vCPU {r.cpu} of {header.cpus}")
        if r.rip is not None and not 0 <= r.rip <= _M64:
            raise RuleError("a RIP of more than 64 bits")
        if not (0 <= r.guest_ns < _MOST_NS and 0 <= r.vmm_ns < _MOST_NS):
            raise RuleError("a time below 0, or of more than 146 years")
        if not 0 <= r.code <= self._codes:
            raise RuleError(f"code {r.code} where {self._codes} are known")
        _registers(r.regs)
        _text("then", r.then)
        if r.memory:
            if not r.looked:
                raise RuleError("changes of memory without a look")
            if len(r.memory) > MOST_CHANGES:
                raise RuleError(f"more than {MOST_CHANGES} changes of memory in a look")
            for change in r.memory:
                _change(change)

    def _code(self, code: Code) -> None:
        if code.id != self._codes + 1:
            raise RuleError(f"code {code.id} where code {self._codes + 1} must be")
        self._codes += 1
        if not 1 <= len(code.lines) <= MOST_LINES:
            raise RuleError(f"code of {len(code.lines)} instructions; there are 1 to {MOST_LINES}")
        for line in code.lines:
            if not 0 <= line.linear <= _M64:
                raise RuleError("an instruction's address of more than 64 bits")
            if not 0 < _size(line.code) <= _LONGEST_INSN:
                raise RuleError(f"an instruction has 1 to {_LONGEST_INSN} bytes")
            _text("text", line.text, _LONGEST_NAME * 2)
        if all(line.linear != code.here for line in code.lines):
            raise RuleError(f"the code's own instruction, at {code.here:#x}, is not among its lines")

    def _jump(self, jump: Jump) -> None:
        self._behind(jump.n, "jump")
        _text("label", jump.label)
        _registers(jump.regs)
        if jump.what == "snapshot":
            if (jump.snapshot, jump.to) != (len(self._snapshots) + 1, jump.n):
                raise RuleError(
                    f"snapshot {jump.snapshot} of exit {jump.to} where snapshot {len(self._snapshots) + 1} "
                    f"of exit {jump.n} must be"
                )
            self._snapshots.append(jump.n)
        elif not 0 <= jump.snapshot <= len(self._snapshots):
            raise RuleError(f"back to snapshot {jump.snapshot} where {len(self._snapshots)} are known")
        elif jump.to != ([0, *self._snapshots])[jump.snapshot]:
            raise RuleError(f"snapshot {jump.snapshot} is not of exit {jump.to}")

    def _end(self, end: End) -> None:
        if end.n != self._exits:
            raise RuleError(f"the end counts {end.n} exits, the file has {self._exits}")
        if not _KIND.fullmatch(end.kind):
            raise RuleError("the kind of the end is a word of small letters")
        _text("detail", end.detail)
        if end.rip is not None and not 0 <= end.rip <= _M64:
            raise RuleError("a RIP of more than 64 bits")
        self._ended = True

    def _behind(self, n: int, what: str) -> None:
        if n != self._exits:
            raise RuleError(f"{what} behind exit {n} where {self._exits} exits were")


def _text(name: str, text: str, most: int = LONGEST_TEXT) -> None:
    if len(text) > most:
        raise RuleError(f"{name} has {len(text)} characters, and may have {most}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RuleError(f"{name} has half of a surrogate pair, which is no character") from None


def _registers(values: dict[str, int]) -> None:
    for name, value in values.items():
        if name not in _NAMES:
            raise RuleError(f"there is no register {name[:20]!r}")
        if not 0 <= value <= _M64:
            raise RuleError(f"{name} has more than 64 bits")


def _size(digits: str) -> int:
    if not _HEX.fullmatch(digits):
        raise RuleError(f"{digits[:20]!r} is no row of bytes: two digits of 0-9 and a-f each")
    return len(digits) // 2


def _change(change: MemoryChange) -> None:
    if not (0 <= change.gpa < 1 << 52 and 0 < change.size < 1 << 52):
        raise RuleError("a change of memory is beyond the guest's addresses")
    shown = _size(change.old)
    if shown != _size(change.new) or not 0 < shown <= min(change.size, MOST_BYTES):
        raise RuleError(
            f"a change of {change.size} bytes shows as many of them before as after, 1 to {MOST_BYTES}"
        )


def _state(state: dict[str, object]) -> None:
    left = _MOST_VALUES
    level: list[Any] = [state]
    for _ in range(_DEEPEST):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                for name, item in value.items():
                    _text("a field's name", name, _LONGEST_NAME)
                    inner.append(item)
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str):
                _text("a field", value)
        left -= len(inner)
        if left < 0:
            raise RuleError(f"a device's state of more than {_MOST_VALUES} values")
        if not inner:
            return
        level = inner
    raise RuleError(f"a device's state is nested deeper than {_DEEPEST}")
