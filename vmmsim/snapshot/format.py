"""The snapshot file's bytes, version 1: constants, the header, the table of runs.

docs/snapshot-format.md is this file in words; whoever changes one changes both, and the version.

        0  64 bytes of text: `vmmsim-snapshot 1 vmmsim/0.1.0`, blanks, a newline
       64  the header; at 224 the SHA-256 of the 224 bytes before it, which is the snapshot's id
      256  the manifest, JSON
        .  zeros up to a multiple of 64, then the table: 64 bytes a run
        .  zeros up to a multiple of 4096, then the pages, in the table's order

Every byte is under a hash or is zero by rule, so that no change of any byte goes unseen. Every
size is checked against the file's before anything is allocated.
"""

from __future__ import annotations

import hashlib
import re
import struct
from typing import NamedTuple

from .. import __version__
from ..errors import SnapshotError
from ..memory import GPA_LIMIT, PAGE_SIZE

__all__ = [
    "DATA",
    "HEADER_SIZE",
    "LINE_SIZE",
    "MAGIC",
    "MOST_MANIFEST",
    "MOST_RUN",
    "MOST_RUNS",
    "RUN_SIZE",
    "VERSION",
    "ZERO",
    "Header",
    "TableRun",
    "aligned",
    "damaged",
    "data_place",
    "first_line",
    "pack_header",
    "pack_table",
    "parse_header",
    "parse_line",
    "parse_table",
]

NAME = "vmmsim-snapshot"
VERSION = 1
LINE_SIZE = 64
HEADER_SIZE = 256
RUN_SIZE = 64
#: As PNG's: a byte above 127, and line ends that transfers as text would change.
MAGIC = b"\x89VMS\r\n\x1a\n"
#: Kinds of a run.
DATA, ZERO = 1, 2
#: A manifest of a PC has 30 KiB.
MOST_MANIFEST = 16 << 20
#: A run's pages are hashed as one, so a reader can check a part without the others.
MOST_RUN = 4 << 20
MOST_RUNS = 1 << 22

_HEADER = struct.Struct("<8sIIQQQQQQ32s32s32x")
_RUN = struct.Struct("<QQQII32s")
_TABLE_ALIGN = 64
_LINE = re.compile(rb"([a-z-]{1,24}) ([0-9]{1,9}) ([!-~]{1,45}) *\n")
_NO_HASH = bytes(32)

assert LINE_SIZE + _HEADER.size + 32 == HEADER_SIZE
assert _RUN.size == RUN_SIZE


class Header(NamedTuple):
    """The header's fields; offsets and sizes in bytes from the file's begin."""

    id: str
    manifest_size: int
    table_offset: int
    runs: int
    data_offset: int
    data_size: int
    file_size: int
    manifest_hash: bytes
    table_hash: bytes

    @property
    def manifest_end(self) -> int:
        return HEADER_SIZE + self.manifest_size

    @property
    def table_size(self) -> int:
        return self.runs * RUN_SIZE


class TableRun(NamedTuple):
    """A run of pages at guest-physical `gpa`; a ZERO run has neither `offset` nor `hash`."""

    gpa: int
    length: int
    offset: int
    kind: int
    hash: bytes


def damaged(what: str) -> SnapshotError:
    return SnapshotError(what, hint="the file is damaged or was cut short: fetch it again")


def aligned(size: int, unit: int) -> int:
    """`size` rounded up to a multiple of `unit`."""
    return -(-size // unit) * unit


def data_place(manifest_size: int, runs: int) -> int:
    """Where the pages begin behind a manifest of so many bytes and a table of so many runs."""
    return aligned(aligned(HEADER_SIZE + manifest_size, _TABLE_ALIGN) + RUN_SIZE * runs, PAGE_SIZE)


def first_line(name: str = NAME, version: int = VERSION) -> bytes:
    """The 64 bytes that any version of vmmsim can read."""
    return f"{name} {version} vmmsim/{__version__}".encode()[: LINE_SIZE - 1].ljust(LINE_SIZE - 1) + b"\n"


def parse_line(line: bytes, name: str = NAME, version: int = VERSION) -> None:
    """Check the first line. Raises SnapshotError for another format, or another version."""
    found = _LINE.fullmatch(line)
    if found is None or not found[1].startswith(NAME.encode()):
        raise SnapshotError("this is not a snapshot", hint="its first line says vmmsim-snapshot")
    kind, number, writer = found[1].decode(), int(found[2]), found[3].decode()
    if kind != name:
        packed = kind == f"{NAME}-pack"
        raise SnapshotError(
            f"this is a {'packed' if packed else 'plain'} snapshot"
            if packed or kind == NAME
            else f"a {kind}",
            hint="first: vmmsim snapshot unpack FILE" if packed else "only packed snapshots are unpacked",
        )
    if number > version:
        raise SnapshotError(
            f"format {number}, written by {writer}, is newer than what this vmmsim {__version__} reads",
            hint="update vmmsim",
        )
    if number != version:
        raise SnapshotError(f"there is no format {number}: the first is 1", hint="the file is damaged")


def pack_header(
    manifest: bytes, table: bytes, data_size: int, *, line: bytes | None = None
) -> tuple[bytes, Header]:
    """The first 256 bytes of the file of these parts, and what they say."""
    table_offset = aligned(HEADER_SIZE + len(manifest), _TABLE_ALIGN)
    data_offset = data_place(len(manifest), len(table) // RUN_SIZE)
    hashes = hashlib.sha256(manifest).digest(), hashlib.sha256(table).digest()
    numbers = len(manifest), table_offset, len(table) // RUN_SIZE, data_offset, data_size
    end = data_offset + data_size
    head = (line or first_line()) + _HEADER.pack(MAGIC, VERSION, HEADER_SIZE, *numbers, end, *hashes)
    digest = hashlib.sha256(head)
    return head + digest.digest(), Header(digest.hexdigest(), *numbers, end, *hashes)


def parse_header(head: bytes, file_size: int) -> Header:
    """The header from a file's first 256 bytes. Raises SnapshotError, also for a file that has
    not the size that the header says."""
    if len(head) < LINE_SIZE:
        raise damaged(f"a file of {len(head)} bytes is no snapshot")
    parse_line(head[:LINE_SIZE])
    if len(head) < HEADER_SIZE:
        raise damaged("the header is cut short")
    digest = hashlib.sha256(head[: HEADER_SIZE - 32])
    if digest.digest() != head[HEADER_SIZE - 32 :]:
        raise damaged("the header does not have its hash")
    magic, version, header_size, *numbers, manifest_hash, table_hash = _HEADER.unpack_from(head, LINE_SIZE)
    found = Header._make((digest.hexdigest(), *numbers, manifest_hash, table_hash))
    if magic != MAGIC or version != VERSION or header_size != HEADER_SIZE:
        raise damaged("the header is not that of format 1")
    if any(head[LINE_SIZE + _HEADER.size - 32 : HEADER_SIZE - 32]):
        raise damaged("the header's reserved bytes are not zero")
    if found.file_size != file_size:
        raise damaged(f"the file has {file_size} bytes, and its header says {found.file_size}")
    if found.manifest_size > MOST_MANIFEST or found.runs > MOST_RUNS:
        raise damaged("the header has a size that no snapshot has")
    _check_places(found)
    return found


def _check_places(found: Header) -> None:
    table_offset = aligned(found.manifest_end, _TABLE_ALIGN)
    data_offset = data_place(found.manifest_size, found.runs)
    if (
        found.table_offset != table_offset
        or found.data_offset != data_offset
        or found.data_size % PAGE_SIZE
        or found.file_size != data_offset + found.data_size
    ):
        raise damaged("the header's sizes do not add up")


def pack_table(runs: list[TableRun]) -> bytes:
    """The table's bytes."""
    return b"".join(_RUN.pack(*run[:4], 0, run.hash) for run in runs)


def parse_table(table: bytes, header: Header, *, incremental: bool) -> list[TableRun]:
    """The runs, whose hash the caller has checked. Raises SnapshotError for runs that are not
    ascending, not whole pages, or not exactly the file's pages in a row."""
    runs: list[TableRun] = []
    gpa, offset = 0, header.data_offset
    for start, length, place, kind, reserved, digest in _RUN.iter_unpack(table):
        size = length if kind == DATA else 0
        if start < gpa or start % PAGE_SIZE or length % PAGE_SIZE or not 0 < length <= GPA_LIMIT - start:
            raise damaged(f"run {len(runs)} of the table has no place in memory")
        if kind == DATA:
            good = place == offset and length <= MOST_RUN
        else:
            good = kind == ZERO and incremental and not place and digest == _NO_HASH
        if not good or reserved:
            raise damaged(f"run {len(runs)} of the table is not one of format 1")
        runs.append(TableRun(start, length, place, kind, digest))
        gpa, offset = start + length, offset + size
    if offset != header.file_size:
        raise damaged("the table's runs are not the file's pages")
    return runs
