"""Exit traces as JSON Lines: a header, a record for each access, a record of the end.

    {"type":"header","format":1,"vmmsim":"0.1.0","guest":"guess","backend":"kvm","provenance":"kvm/pvm"}
    {"type":"exit","n":1,"kind":"mmio_read","address":4096,"size":1,"value":109}
    {"type":"end","n":57,"kind":"halt","detail":"halt","rip":31790}

One record a line, so that `head`, `grep` and `jq` work on it. Addresses and values are
numbers; a value of 8 bytes can be beyond 2^53, which Python reads exactly and JavaScript
does not. A trace without an end record is of a run that was cut short.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

import msgspec

from .. import __version__
from ..errors import ImageError, UsageError
from ..exits import ACCESS_EXITS, Access, Exit

__all__ = ["FORMAT", "End", "ExitRecord", "Header", "Trace", "TraceError", "TraceWriter", "read_trace"]

#: The version of the format: raised when a reader of the old one would misread a new trace.
FORMAT = 1

_FLUSH_AT = 1 << 16
_KINDS = {cls.kind: cls for cls in ACCESS_EXITS}


class TraceError(ImageError):
    """A trace file that breaks the format; the message names the line and the rule."""


class Header(msgspec.Struct, tag="header", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line: what was run, and on what."""

    format: int = FORMAT
    vmmsim: str = __version__
    guest: str
    backend: str
    provenance: str


class ExitRecord(msgspec.Struct, tag="exit", frozen=True, forbid_unknown_fields=True):
    """The `n`-th access, from 1. `size` in bytes; `value` is what was written or answered."""

    n: int
    kind: Literal["port_read", "port_write", "mmio_read", "mmio_write"]
    address: int
    size: int
    value: int

    @property
    def exit_class(self) -> type[Access]:
        return _KINDS[self.kind]


class End(msgspec.Struct, tag="end", frozen=True, forbid_unknown_fields=True):
    """The last line. `n` is the number of accesses, `kind` that of the exit that ended the
    run, or `error`; `detail` is for people, `rip` where the vCPU stood."""

    n: int
    kind: str
    detail: str = ""
    rip: int | None = None


class Trace(msgspec.Struct, frozen=True):
    """A whole trace. `end` is None when the run was cut short."""

    header: Header
    exits: tuple[ExitRecord, ...]
    end: End | None = None


class TraceWriter:
    """Writes a trace to `file`, which is opened for bytes and stays the caller's.

    It is an observer for `Machine.observe`. Call `end` when the run is over.
    """

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self._file = file
        self._encode = msgspec.json.Encoder().encode
        self._pending = [self._encode(header)]
        self._size = 0
        self.count = 0

    def __call__(self, cls: type[Access], address: int, size: int, value: int) -> None:
        self.count += 1
        record = ExitRecord(self.count, cls.kind, address, size, value)  # type: ignore[arg-type]
        line = self._encode(record)
        self._pending.append(line)
        self._size += len(line)
        if self._size >= _FLUSH_AT:
            self.flush()

    def end(self, exit: Exit | None, *, detail: str = "", rip: int | None = None) -> None:
        """Write the last record; without an exit the kind is `error`."""
        kind = exit.kind if exit is not None else "error"
        self._pending.append(self._encode(End(self.count, kind, detail, rip)))
        self.flush()

    def flush(self) -> None:
        """Hand what is pending to the file."""
        if self._pending:
            left = memoryview(b"\n".join(self._pending) + b"\n")
            while left:  # an unbuffered file may take a part only
                left = left[self._file.write(left) :]
            self._pending.clear()
            self._size = 0
        self._file.flush()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()


def read_trace(source: str | Path | Iterable[bytes]) -> Trace:
    """Read a trace from a path or from its lines.

    Raises UsageError for a file that cannot be opened, TraceError for one that breaks the
    format: it names the line and the rule.
    """
    if isinstance(source, (str, Path)):
        try:
            with open(source, "rb") as file:
                return _parse(file, str(source))
        except OSError as error:
            raise UsageError(
                f"the trace '{source}' cannot be read: {error.strerror}", hint="give a file of run --trace"
            ) from error
    return _parse(source, "trace")


def _parse(lines: Iterable[bytes], name: str) -> Trace:
    decoder = msgspec.json.Decoder(Header | ExitRecord | End)
    header: Header | None = None
    end: End | None = None
    exits: list[ExitRecord] = []
    number = 0
    for number, line in enumerate(lines, 1):
        try:
            record = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _broken(name, number, f"not a trace record: {error}") from error
        if end is not None:
            raise _broken(name, number, "a record behind the end record")
        if header is None:
            if not isinstance(record, Header):
                raise _broken(name, number, "the first record must be the header")
            if record.format != FORMAT:
                raise _broken(
                    name,
                    number,
                    f"format {record.format} of vmmsim {record.vmmsim}; this version reads format {FORMAT}",
                )
            header = record
        elif isinstance(record, Header):
            raise _broken(name, number, "a second header")
        elif isinstance(record, End):
            if record.n != len(exits):
                raise _broken(name, number, f"the end counts {record.n} exits, the file has {len(exits)}")
            end = record
        else:
            _check(record, len(exits) + 1, name, number)
            exits.append(record)
    if header is None:
        raise _broken(name, number + 1, "the file is empty: it must begin with a header")
    return Trace(header, tuple(exits), end)


def _check(record: ExitRecord, expected: int, name: str, number: int) -> None:
    if record.n != expected:
        raise _broken(name, number, f"exit {record.n} where exit {expected} must be")
    if not 1 <= record.size <= 8:
        raise _broken(name, number, f"a size of {record.size} bytes; an access has 1 to 8")
    if record.value < 0 or record.value >> 8 * record.size:
        raise _broken(name, number, f"the value {record.value} does not fit {record.size} bytes")
    if record.address < 0 or record.address >> (16 if record.exit_class.space == "port" else 52):
        raise _broken(name, number, f"the address {record.address:#x} is beyond the {record.kind}'s bus")


def _broken(name: str, line: int, rule: str) -> TraceError:
    return TraceError(f"{name}, line {line}: {rule}", hint="write the trace again with run --trace")
