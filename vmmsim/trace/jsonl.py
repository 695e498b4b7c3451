"""Traces as JSON Lines: a header, a record for each exit, a record of the end.

    {"type":"header","format":2,"vmmsim":"0.1.0","guest":"guess","backend":"kvm","provenance":"kvm/pvm"}
    {"type":"exit","n":1,"kind":"mmio_read","address":4096,"size":1,"value":109}
    {"type":"end","n":57,"kind":"halt","detail":"halt","rip":31790}

One record a line, so that `head`, `grep` and `jq` work on it. Addresses and values are
numbers; a value of 8 bytes can be beyond 2^53, which Python reads exactly and JavaScript
does not. What has its default value is left out. A trace without an end record is of a run that
was cut short; so is one whose last line is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec

from ..errors import ImageError, UsageError
from ..exits import Access, Exit
from .records import FORMAT, Code, End, Event, ExitRecord, Header, Jump, Record, Trace
from .rules import Checker, RuleError

__all__ = ["TraceError", "TraceWriter", "is_trace", "read_trace", "trace_lines"]

#: Accesses that wait until they are encoded together.
_FLUSH_AT = 1024
#: The formats that are read.
_FORMATS = range(1, FORMAT + 1)
#: Bytes of a line; records of a trace, of some hundred bytes of the host's memory each.
_LONGEST_LINE, _MOST_RECORDS = 4 << 20, 10_000_000
_HEAD = b'{"type":"header",'


class TraceError(ImageError):
    """A trace file that breaks the format; the message names the line and the rule."""


class _Version(msgspec.Struct, tag="header"):
    """What a header of any format has."""

    format: int
    vmmsim: str = "?"


_encoder = msgspec.json.Encoder()


class TraceWriter:
    """Writes a trace to `file`, which is opened for bytes and stays the caller's.

    It is an observer for `Machine.observe`. Call `end` when the run is over.
    """

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self._file = file
        self._pending: list[Record] = [header]
        self.count = 0

    def __call__(self, cls: type[Access], address: int, size: int, value: int) -> None:
        self.count += 1
        self._pending.append(ExitRecord(self.count, cls.kind, address, size, value))  # type: ignore[arg-type]
        if len(self._pending) >= _FLUSH_AT:
            self.flush()

    def end(self, exit: Exit | None, *, detail: str = "", rip: int | None = None) -> None:
        """Write the last record; without an exit the kind is `error`."""
        kind = exit.kind if exit is not None else "error"
        self._pending.append(End(self.count, kind, detail, rip))
        self.flush()

    def flush(self) -> None:
        """Hand what is pending to the file."""
        if self._pending:
            left = memoryview(_encoder.encode_lines(self._pending))
            self._pending.clear()
            while left:  # an unbuffered file may take a part only
                left = left[self._file.write(left) :]
        self._file.flush()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()


def trace_lines(trace: Trace) -> Iterator[bytes]:
    """A whole trace as the bytes of its file, some lines at a time."""
    yield _encoder.encode(trace.header) + b"\n"
    for at in range(0, len(trace.records), _FLUSH_AT):
        yield _encoder.encode_lines(trace.records[at : at + _FLUSH_AT])
    if trace.end is not None:
        yield _encoder.encode(trace.end) + b"\n"


def is_trace(path: str | Path) -> bool:
    """Whether the file begins as a trace does. False for what cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_HEAD)) == _HEAD
    except (OSError, ValueError):
        return False


def read_trace(source: str | Path | Iterable[bytes]) -> Trace:
    """Read a trace, plain or detailed, of format 1 or 2, from a path or from its lines.

    A last line that is not whole, as a file has that was cut, is left out; there is no end then.
    Raises UsageError for a file that cannot be opened, TraceError for one that breaks the
    format: it names the line and the rule.
    """
    if isinstance(source, (str, Path)):
        try:
            with open(source, "rb") as file:
                return _parse(_lines(file), os.fspath(source))
        except OSError as error:
            raise UsageError(
                f"the trace '{source}' cannot be read: {error.strerror}", hint="give a file of run --trace"
            ) from error
    return _parse(source, "trace")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Its lines; the last may be one byte too long, which is found out then."""
    while line := file.readline(_LONGEST_LINE + 1):
        yield line


def _parse(lines: Iterable[bytes], name: str) -> Trace:
    decode = msgspec.json.Decoder(Record).decode
    checker = Checker()
    header: Header | None = None
    end: End | None = None
    records: list[ExitRecord | Event | Jump | Code] = []
    number = 0
    cut = False
    for number, line in enumerate(lines, 1):
        if cut:  # it was not the last
            raise _broken(name, number - 1, "not a trace record: the line is not whole")
        if len(line) > _LONGEST_LINE:
            raise _broken(name, number, f"longer than {_LONGEST_LINE >> 20} MiB")
        if header is None:
            _check_version(line, name)
        try:
            record = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if header is not None and line and _is_cut(line, error):
                cut = True
                continue
            raise _broken(name, number, f"not a trace record: {error}") from error
        try:
            checker.check(record)
        except RuleError as error:
            raise _broken(name, number, str(error)) from None
        if isinstance(record, Header):
            header = record
        elif isinstance(record, End):
            end = record
        else:
            records.append(record)
            if len(records) > _MOST_RECORDS:
                raise _broken(name, number, f"more than {_MOST_RECORDS:,} records; head -n gives a part")
    if header is None:
        raise _broken(name, number + 1, "the file is empty: it must begin with a header")
    return Trace(header, tuple(records), end)


def _check_version(line: bytes, name: str) -> None:
    """TraceError for a header of a format that is not known here, whatever else it has."""
    try:
        found = msgspec.json.decode(line, type=_Version)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            known = msgspec.json.decode(line, type=Record)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _broken(name, 1, f"not a trace record: {error}") from error
        header = isinstance(known, Header)
        rule = "a header without its format" if header else "the first record must be the header"
        raise _broken(name, 1, rule) from None
    if found.format not in _FORMATS:
        rule = (
            f"format {found.format} of vmmsim {found.vmmsim[:40]!r}; this version reads format 1 and {FORMAT}"
        )
        raise _broken(name, 1, rule)


def _is_cut(line: bytes, error: Exception) -> bool:
    """Whether a line is the beginning of one."""
    truncated = not isinstance(error, msgspec.ValidationError) and "truncated" in str(error)
    return truncated and not line.endswith(b"\n")


def _broken(name: str, line: int, rule: str) -> TraceError:
    return TraceError(
        f"{name}, line {line}: {rule}", hint="write the trace again with vmmsim trace, or run --trace"
    )
