"""A reader of snapshot files, written from docs/snapshot-format.md alone: nothing of vmmsim is used.

`read(path)` gives the manifest and the pages, or raises ValueError.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

PAGE = 4096
MAGIC = bytes.fromhex("89564d530d0a1a0a")


class File(NamedTuple):
    id: str
    manifest: dict[str, Any]
    pages: dict[int, bytes]  # gpa -> page; of a file with a parent, those that it has itself


def up(value: int, unit: int) -> int:
    return (value + unit - 1) // unit * unit


def need(good: object, what: str) -> None:
    if not good:
        raise ValueError(what)


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def parse(data: bytes) -> File:
    need(len(data) >= 256, "short")
    need(data[:18] == b"vmmsim-snapshot 1 " and data[63:64] == b"\n", "first line")
    magic, version, header_size = struct.unpack_from("<8sII", data, 64)
    manifest_size, table_at, runs, data_at, data_size, file_size = struct.unpack_from("<6Q", data, 80)
    need((magic, version, header_size) == (MAGIC, 1, 256), "header")
    need(data[192:224] == bytes(32) and sha(data[:224]) == data[224:256], "id")
    need(manifest_size <= 16 << 20 and runs <= 1 << 22, "size")
    need(table_at == up(256 + manifest_size, 64) and data_at == up(table_at + 64 * runs, PAGE), "places")
    need(data_size % PAGE == 0 and file_size == data_at + data_size == len(data), "file size")
    manifest = data[256 : 256 + manifest_size]
    table = data[table_at : table_at + 64 * runs]
    need(sha(manifest) == data[128:160] and sha(table) == data[160:192], "hash")
    need(not any(data[256 + manifest_size : table_at] + data[table_at + 64 * runs : data_at]), "gap")
    said = json.loads(manifest)
    pages = {}
    last, place = 0, data_at
    for gpa, length, offset, kind, zero, digest in struct.iter_unpack("<QQQII32s", table):
        need(gpa >= last and gpa % PAGE == 0 and length % PAGE == 0 and length and not zero, "run")
        region = [r for r in said["regions"] if r["gpa"] <= gpa and gpa + length <= r["gpa"] + r["size"]]
        need(len(region) == 1, "run outside memory")
        if kind == 1:
            run = data[offset : offset + length]
            need(offset == place and length <= 4 << 20 and sha(run) == digest, "pages")
            place += length
        else:
            need(kind == 2 and said["parent"] and offset == 0 and digest == bytes(32), "kind")
            run = bytes(length)
        for at in range(0, length, PAGE):
            pages[gpa + at] = run[at : at + PAGE]
        last = gpa + length
    need(place == len(data), "pages left")
    return File(data[224:256].hex(), said, pages)


def read(path: Path) -> File:
    """The file, with its parents' pages where it has none; parents are looked for beside it."""
    file = parse(path.read_bytes())
    wanted = file.manifest["parent"]
    if wanted is None:
        return file
    for other in path.parent.iterdir():
        if other.is_file() and other.read_bytes()[224:256].hex() == wanted:
            parent = read(other)
            need(parent.manifest["regions"] == file.manifest["regions"], "regions")
            return file._replace(pages={**parent.pages, **file.pages})
    raise ValueError("no parent")


def integer(value: int | str) -> int:
    """An integer of the manifest."""
    return int(value, 16) if isinstance(value, str) else value
