"""Recordings as files: a line of text, a JSON header, a packed snapshot, what came from outside.

    vmmsim-recording 1 <SHA-256 of all that follows, 64 hexadecimal digits>\\n
    {"guest": ..., "snapshot_size": n, ...}\\n
    n bytes: the machine as the run began, a packed snapshot (docs/snapshot-format.md)
    {"type": "input", "exit": 3, "byte": 109}\\n ... {"type": "end", ...}\\n

The hash covers each byte behind the first line, and the first line has no byte that is not checked: a
file that was changed or cut off anywhere is refused. Events are in the order in which they came.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from .. import __version__
from ..errors import SnapshotError, UsageError
from ..snapshot import container
from ..snapshot.atomic import replacing
from ..snapshot.pack import pack, unpack
from ..snapshot.values import Snapshot
from ..streams.host import temporary_folder

__all__ = [
    "FORMAT",
    "End",
    "Header",
    "Input",
    "InputEnd",
    "Interrupt",
    "Recording",
    "RecordingError",
    "load",
    "save",
]

#: The version of the format: raised when a reader of the old one would misread a new recording.
FORMAT = 1
_FIRST = re.compile(rb"vmmsim-recording (\d{1,9}) ([0-9a-f]{64})\n")
_FIRST_SIZE = 128
#: A recording is read whole: 2 GiB of them are half a billion exits.
_MOST = 2 << 30
#: Exits in one line of check sums.
_CHUNK = 4096


class RecordingError(SnapshotError):
    """A recording that cannot be read: damaged, cut off, foreign, of another version."""


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was recorded, for people, and how long the snapshot is, in bytes."""

    guest: str = ""
    backend: str = ""
    provenance: str = ""
    vmmsim: str = __version__
    snapshot_size: int = 0


class Input(msgspec.Struct, tag="input", frozen=True, forbid_unknown_fields=True):
    """A character (0 to 255) was there when the guest had made `exit` exits; None: a wait for one was
    interrupted."""

    exit: int
    byte: int | None


class InputEnd(msgspec.Struct, tag="input_end", frozen=True, forbid_unknown_fields=True):
    """The input was over when the guest had made `exit` exits."""

    exit: int


class Interrupt(msgspec.Struct, tag="interrupt", frozen=True, forbid_unknown_fields=True):
    """A vCPU took an interrupt behind exit `exit`."""

    exit: int
    vector: int
    cpu: int = 0


class Sums(msgspec.Struct, tag="sums", frozen=True, forbid_unknown_fields=True):
    """A running check sum (CRC-32) for each exit from the `first` on, 4 bytes each, little-endian."""

    first: int
    sums: bytes


class End(msgspec.Struct, tag="end", frozen=True, forbid_unknown_fields=True):
    """The last event: how many exits there were, the kind of the one that ended the run, `code` if the guest
    gave one, and where the vCPU stood."""

    exits: int
    kind: str
    detail: str = ""
    rip: int = 0
    code: int | None = None


Event = Input | InputEnd | Interrupt


class Recording(msgspec.Struct, kw_only=True):
    """A recorded run. `sums` has 4 bytes for each exit."""

    header: Header
    snapshot: Snapshot
    events: list[Event]
    sums: bytes
    end: End


def save(recording: Recording, path: str | Path) -> None:
    """Write `recording` to `path`, whole or not at all. Raises HostError."""
    encode = msgspec.json.encode
    with temporary_folder("the begin of a recording") as folder:
        whole, packed = folder / "start", folder / "packed"
        container.save(recording.snapshot, whole)
        pack(whole, packed, codec="zlib")
        start = packed.read_bytes()
    header = msgspec.structs.replace(recording.header, snapshot_size=len(start))
    lines = [encode(event) for event in recording.events]
    step = 4 * _CHUNK
    for at in range(0, len(recording.sums), step):
        lines.append(encode(Sums(at // 4 + 1, recording.sums[at : at + step])))
    lines.append(encode(recording.end))
    body = [encode(header) + b"\n", start, b"\n".join(lines) + b"\n"]
    hasher = hashlib.sha256()
    for part in body:
        hasher.update(part)
    with replacing(path) as file:
        file.write(f"vmmsim-recording {FORMAT} {hasher.hexdigest()}\n".encode())
        for part in body:
            file.write(part)


def load(path: str | Path) -> Recording:
    """The recording in the file `path`. Raises RecordingError, and SnapshotError for its snapshot."""
    name = str(path)
    body = _checked(_read(name), name)
    first, _, rest = body.partition(b"\n")
    try:
        header = msgspec.json.decode(first, type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _bad(name, f"its header is none: {error}") from error
    if not 0 < header.snapshot_size <= len(rest):
        raise _bad(name, f"a snapshot of {header.snapshot_size} bytes does not fit")
    events, sums, end = _events(rest[header.snapshot_size :], name)
    return Recording(
        header=header,
        snapshot=_snapshot(rest[: header.snapshot_size], name),
        events=events,
        sums=sums,
        end=end,
    )


def _read(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            data = file.read(_MOST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecordingError(
            f"the recording '{name}' cannot be read: {reason}", hint="check the path"
        ) from error
    if len(data) > _MOST:
        raise _bad(name, f"it has more than {_MOST} bytes")
    return data


def _checked(data: bytes, name: str) -> bytes:
    """What is behind the first line, which has the hash of it."""
    found = _FIRST.match(data[:_FIRST_SIZE])
    if found is None:
        if data.startswith(b"vmmsim-recording "):
            raise _bad(name, "its first line is damaged")
        raise RecordingError(f"'{name}' is no recording", hint="make one with vmmsim run GUEST --record FILE")
    if int(found[1]) != FORMAT or found[1] != str(FORMAT).encode():
        raise RecordingError(
            f"'{name}' has format {int(found[1])}; this version reads {FORMAT}",
            hint="use the vmmsim that wrote it",
        )
    body = data[found.end() :]
    if hashlib.sha256(body).hexdigest().encode() != found[2]:
        raise _bad(name, "it is damaged or cut off: it does not have its hash")
    return body


def _snapshot(packed: bytes, name: str) -> Snapshot:
    with temporary_folder("the begin of a recording") as folder:
        path, whole = folder / "packed", folder / "start"
        path.write_bytes(packed)
        try:
            unpack(path, whole)
            # Its pages stay mapped when the file has lost its name.
            return container.load(whole)
        except SnapshotError as error:
            raise _bad(name, f"its snapshot cannot be loaded: {error.message}") from error


def _events(data: bytes, name: str) -> tuple[list[Event], bytes, End]:
    decoder = msgspec.json.Decoder(Input | InputEnd | Interrupt | Sums | End)
    events: list[Event] = []
    sums = bytearray()
    end: End | None = None
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            event = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _bad(name, f"event {number} is none: {error}") from error
        if end is not None:
            raise _bad(name, f"event {number} is behind the end")
        if isinstance(event, Sums):
            if event.first != len(sums) // 4 + 1 or len(event.sums) % 4:
                raise _bad(name, f"event {number}: the check sums of exit {event.first} are out of order")
            sums += event.sums
        elif isinstance(event, End):
            end = event
        else:
            _check_event(event, events, name)
            events.append(event)
    if end is None or not data.endswith(b"\n"):
        raise _bad(name, "it has no end")
    if end.exits != len(sums) // 4:
        raise _bad(name, f"it ends behind {end.exits} exits, and has check sums of {len(sums) // 4}")
    if events and events[-1].exit > end.exits:
        raise _bad(name, f"something came from outside at exit {events[-1].exit}, behind the end")
    return events, bytes(sums), end


def _check_event(event: Event, before: list[Event], name: str) -> None:
    if event.exit < (before[-1].exit if before else 0):
        raise _bad(name, f"an event of exit {event.exit} is out of order")
    value = event.byte if isinstance(event, Input) else event.vector if isinstance(event, Interrupt) else 0
    if value is not None and not 0 <= value <= 0xFF:
        raise _bad(name, f"{value} at exit {event.exit} is no byte")


def _bad(name: str, what: str) -> RecordingError:
    return RecordingError(f"the recording '{name}': {what}", hint="record the run again")


def check_recordable(reason: str) -> UsageError:
    """What to say of a machine whose run cannot be recorded."""
    return UsageError(f"this run cannot be recorded: {reason}", hint="use --clock exits, and one vCPU")
