"""Snapshot files with any content and right hashes: what a hash cannot catch, the rules have to."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

from snapshot_reader import MAGIC, PAGE, up

HEADER = struct.Struct("<8sIIQQQQQQ32s32s32s")
RUN = struct.Struct("<QQQII32s")
LINE = b"vmmsim-snapshot 1 vmmsim/0.1.0".ljust(63) + b"\n"


class Parts:
    """A file taken apart into `manifest`, `table` (a list of runs) and `pages`; `build()` joins them."""

    def __init__(self, data: bytes) -> None:
        size, at, runs, pages_at = struct.unpack_from("<4Q", data, 80)
        self.line = data[:64]
        self.manifest = data[256 : 256 + size]
        self.table = [list(run) for run in RUN.iter_unpack(data[at : at + 64 * runs])]
        self.pages = data[pages_at:]
        #: Header fields by position in HEADER that are forced to a value.
        self.forced: dict[int, Any] = {}

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.manifest)

    @json.setter
    def json(self, value: Any) -> None:
        self.manifest = json.dumps(value).encode()

    def build(self) -> bytes:
        table = b"".join(RUN.pack(*run) for run in self.table)
        table_at = up(256 + len(self.manifest), 64)
        pages_at = up(table_at + len(table), PAGE)
        fields: list[Any] = [
            MAGIC, 1, 256, len(self.manifest), table_at, len(self.table), pages_at, len(self.pages),
            pages_at + len(self.pages), hashlib.sha256(self.manifest).digest(),
            hashlib.sha256(table).digest(), bytes(32),
        ]  # fmt: skip
        for at, value in self.forced.items():
            fields[at] = value
        head = self.line + HEADER.pack(*fields)
        body = self.manifest.ljust(table_at - 256, b"\0") + table
        return head + hashlib.sha256(head).digest() + body.ljust(pages_at - 256, b"\0") + self.pages

    def hash_run(self, number: int) -> None:
        """Give a run the hash of the pages that it has now."""
        run = self.table[number]
        at = run[2] - self.pages_at
        run[5] = hashlib.sha256(self.pages[at : at + run[1]]).digest()

    @property
    def pages_at(self) -> int:
        return up(up(256 + len(self.manifest), 64) + 64 * len(self.table), PAGE)

    def replace(self) -> None:
        """Let the runs' offsets follow a manifest of another size."""
        at = self.pages_at
        for run in self.table:
            if run[3] == 1:
                run[2] = at
                at += run[1]


def packed_header(pack: bytes, **changes: Any) -> bytes:
    """A packed file with other header fields: `codec`, `whole`, `stream`, `magic`, `version`."""
    names = ("magic", "version", "codec", "whole", "stream")
    fields = dict(zip(names, struct.unpack_from("<8sIIQQ", pack, 64), strict=True)) | changes
    head = pack[:64] + struct.pack("<8sIIQQ", *(fields[name] for name in names)) + pack[96:384]
    return head + hashlib.sha256(head).digest() + pack[416:]
