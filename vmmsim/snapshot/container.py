"""Snapshot files: loading and saving them. The bytes are those of `vmmsim.snapshot.format`.

Loading checks everything before it returns: the header, the manifest, the table, every hash of
every page, and all of that for each parent. The pages are then mapped, not read. Which files' pages
have been hashed is remembered for the process, so that many clones of one file cost one check.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from ..errors import SnapshotError, UsageError
from .atomic import AtomicFile, replacing
from .encode import Link, decode_link, decode_manifest, encode_manifest
from .format import (
    DATA,
    HEADER_SIZE,
    MOST_MANIFEST,
    MOST_RUNS,
    ZERO,
    Header,
    TableRun,
    damaged,
    data_place,
    pack_header,
    pack_table,
    parse_header,
    parse_table,
)
from .pages import MappedFile, MemoryImage, Run
from .plan import Extent, plan, with_blanks
from .values import Snapshot

__all__ = ["SnapshotFile", "flatten", "load", "open_file", "save", "verify"]

_MOST_PARENTS = 256
_MOST_NEIGHBOURS = 10_000
_MOST_REMEMBERED = 10_000
#: A file that changed less than this ago may change once more within the same tick of its time stamps.
_SETTLED_NS = 2_000_000_000
_Key = tuple[int, int, int, int, int, str]
_checked: set[_Key] = set()
_NO_HASH = bytes(32)


class SnapshotFile:
    """A snapshot file whose header, manifest and table have been checked; its pages have not.

    `manifest` is the JSON as it is in the file. Made by `open_file`.
    """

    def __init__(self, path: str, fd: int) -> None:
        """Takes `fd` over: it is closed with the file, or when it is no snapshot."""
        self.path = path
        try:
            self._read(fd)
            self.mapped = MappedFile(fd, path)
        except BaseException:
            os.close(fd)
            raise

    def _read(self, fd: int) -> None:
        status = os.fstat(fd)
        self.header: Header = parse_header(_read(fd, min(HEADER_SIZE, status.st_size)), status.st_size)
        self._key: _Key = (
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, self.id,
        )  # fmt: skip
        self._settled = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS
        rest = _read(fd, self.header.data_offset - HEADER_SIZE)
        self.manifest = rest[: self.header.manifest_size]
        table_at = self.header.table_offset - HEADER_SIZE
        table = rest[table_at : table_at + self.header.table_size]
        if hashlib.sha256(self.manifest).digest() != self.header.manifest_hash:
            raise damaged("the manifest does not have its hash")
        if hashlib.sha256(table).digest() != self.header.table_hash:
            raise damaged("the table of pages does not have its hash")
        if any(rest[self.header.manifest_size : table_at]) or any(rest[table_at + len(table) :]):
            raise damaged("what lies between the parts is not zero")
        self.link: Link = decode_link(self.manifest)
        self.table = parse_table(table, self.header, incremental=self.link.parent is not None)

    @property
    def id(self) -> str:
        """The snapshot's name: 64 hexadecimal digits, a hash over all that the file says."""
        return self.header.id

    def check_pages(self, *, again: bool = False) -> None:
        """Hash the pages, unless this process has done so; `again`: in any case."""
        if self._key in _checked and not again:
            return
        view = self.mapped.view
        for run in self.table:
            if run.kind == DATA:
                found = hashlib.sha256(view[run.offset : run.offset + run.length]).digest()
                if found != run.hash:
                    raise damaged(f"the pages at {run.gpa:#x} do not have their hash")
        if self._settled:
            if len(_checked) >= _MOST_REMEMBERED:
                _checked.clear()
            _checked.add(self._key)

    def image(self, parent: MemoryImage | None) -> MemoryImage:
        """Its memory. Raises SnapshotError when table, regions and parent do not fit."""
        own: list[Run] = []
        begins = {region.gpa for region in self.link.regions}  # regions may touch
        for run in self.table:
            last = own[-1] if own else None
            if run.kind == ZERO:
                own.append(Run(run.gpa, run.length, None))
            elif last is not None and last.file and last.end == run.gpa and run.gpa not in begins:
                own[-1] = self._run(last.gpa, last.length + run.length, last.offset)
            else:
                own.append(self._run(run.gpa, run.length, run.offset))
        try:
            return MemoryImage(self.link.regions, own, parent=parent, id=self.id, path=self.path)
        except UsageError as error:
            raise SnapshotError(f"its memory cannot be: {error.message}", hint=error.hint) from error

    def _run(self, gpa: int, length: int, offset: int) -> Run:
        return Run(gpa, length, self.mapped.view[offset : offset + length], offset, self.mapped)


def open_file(path: str | Path) -> SnapshotFile:
    """Open a snapshot file and check all but its pages and parents. Raises SnapshotError."""
    name = os.fspath(path)
    fd = open_to_read(name)
    try:
        return SnapshotFile(name, fd)
    except SnapshotError as error:
        raise SnapshotError(f"'{name}': {error.message}", hint=error.hint) from error
    except OSError as error:
        raise _unreadable(name, error) from error


def open_to_read(name: str) -> int:
    """A descriptor of the regular file `name`. Raises SnapshotError."""
    # Not to wait for a writer of a FIFO, which is none of ours.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        fd = os.open(name, flags)
    except FileNotFoundError as error:
        raise SnapshotError(f"there is no file {_quoted(name)}", hint="check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(name, error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SnapshotError(f"{_quoted(name)} is not a file", hint="a snapshot is mapped, so it is a file")
    return fd


def _unreadable(name: str, error: OSError | ValueError) -> SnapshotError:
    reason = getattr(error, "strerror", None) or str(error)
    return SnapshotError(f"{_quoted(name)} cannot be read: {reason}", hint="check the path and its rights")


def _quoted(name: str) -> str:
    return f"'{name}'" if name.isprintable() else repr(name)


def load(
    path: str | Path,
    *,
    parents: Iterable[str | Path] = (),
    extra: Mapping[str, type[msgspec.Struct]] | None = None,
    verify: bool = True,
    expect: str | None = None,
) -> Snapshot:
    """The snapshot in the file `path`; its memory is mapped.

    Parents are looked for among the files `parents`, then beside the file that names them.
    `extra` maps names of devices that are in no table to the types of their states. Without
    `verify` the pages' hashes are not checked: for a file that another process has just checked,
    and whose id, `expect`, it has told. Raises SnapshotError; then nothing is left open.
    """
    chain = _chain(path, parents)
    if expect is not None and chain[0].id != expect:
        raise SnapshotError(
            f"{_quoted(os.fspath(path))} is snapshot {chain[0].id[:16]}, not {expect[:16]}",
            hint="the file was replaced",
        )
    try:
        manifest = decode_manifest(chain[0].manifest, extra)
    except SnapshotError as error:
        raise SnapshotError(f"'{os.fspath(path)}': {error.message}", hint=error.hint) from error
    memory = _image(chain)
    if verify:
        _check(chain, again=False)
    return manifest.snapshot(memory)


def verify(path: str | Path, *, parents: Iterable[str | Path] = ()) -> list[SnapshotFile]:
    """Check every byte of the file and of its parents, and return them all, the file first.

    Raises SnapshotError for the first fault. What this build makes of the devices is `load`'s.
    """
    chain = _chain(path, parents)
    _image(chain)
    _check(chain, again=True)
    return chain


def _check(chain: list[SnapshotFile], *, again: bool) -> None:
    for file in chain:
        try:
            file.check_pages(again=again)
        except SnapshotError as error:
            raise SnapshotError(f"'{file.path}': {error.message}", hint=error.hint) from error


def _image(chain: list[SnapshotFile]) -> MemoryImage:
    image = None
    for file in reversed(chain):
        image = file.image(image)
    assert image is not None
    return image


def _chain(path: str | Path, parents: Iterable[str | Path]) -> list[SnapshotFile]:
    """The file, its parent, the parent's parent, to the one that has none."""
    given = {file.id: file for file in map(open_file, parents)}
    chain = [open_file(path)]
    while (wanted := chain[-1].link.parent) is not None:
        if any(file.id == wanted for file in chain):
            raise SnapshotError(f"'{chain[-1].path}' is its own ancestor", hint="such a file is not vmmsim's")
        if len(chain) > _MOST_PARENTS:
            raise SnapshotError(f"more than {_MOST_PARENTS} parents", hint="vmmsim snapshot flatten")
        file = given[wanted] if wanted in given else _parent(chain[-1], wanted)
        if file.id != wanted:
            raise SnapshotError(f"'{file.path}' changed while it was opened", hint="try again")
        chain.append(file)
    return chain


def _parent(child: SnapshotFile, wanted: str) -> SnapshotFile:
    directory, name = os.path.dirname(child.path) or ".", child.link.parent_name
    said = ""
    for path in _beside(directory, name):
        try:
            with open(path, "rb") as file:
                head = file.read(HEADER_SIZE)
        except OSError:
            continue
        if hashlib.sha256(head[:-32]).hexdigest() == wanted:
            return open_file(path)
        if os.path.basename(path) == name:
            said = f"; '{path}' is another snapshot"
    raise SnapshotError(
        f"'{child.path}' is incremental, and its parent {wanted[:16]} is not here{said}",
        hint=f"put {name or 'the parent'} into {directory}, or name it with --parent",
    )


def _beside(directory: str, name: str | None) -> Iterator[str]:
    """Files that may be the parent: that of the name first."""
    if name is not None and os.path.isfile(os.path.join(directory, name)):
        yield os.path.join(directory, name)
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if number >= _MOST_NEIGHBOURS:
                return
            if entry.name != name and entry.is_file() and entry.stat().st_size >= HEADER_SIZE:
                yield entry.path


def save(
    snapshot: Snapshot,
    path: str | Path,
    *,
    parent: Snapshot | None = None,
    extra: Mapping[str, type[msgspec.Struct]] | None = None,
) -> str:
    """Write `snapshot` to the file `path`, whole or not at all; its id.

    With `parent`, a snapshot that `load` has given, only the pages that differ from it are written. Raises
    UsageError for a snapshot that could not be loaded again, HostError when the host cannot write.
    """
    base = None
    if parent is not None:
        base = parent.memory
        if base.id is None:
            raise UsageError("the parent is in no file", hint="save it, and load it again")
        if base.regions != snapshot.memory.regions:
            raise UsageError("the parent has other memory regions", hint="save without a parent")
        _keep_ancestors(base, path)
    name = os.path.basename(base.path) if base is not None and base.path else None
    manifest = encode_manifest(
        snapshot, parent=base.id if base is not None else None, parent_name=name, extra=extra
    )
    if len(manifest) > MOST_MANIFEST:
        raise UsageError(f"a manifest of {len(manifest)} bytes", hint=f"at most {MOST_MANIFEST}")
    extents, unit = plan(snapshot.memory, base)
    if len(extents) > MOST_RUNS:
        raise UsageError(f"memory in {len(extents)} pieces", hint=f"a file has at most {MOST_RUNS}")
    manifest = with_blanks(manifest, snapshot.memory.regions, extents, unit)
    with replacing(path) as file:
        return _write(file, manifest, extents)


def _keep_ancestors(base: MemoryImage | None, path: str | Path) -> None:
    while base is not None:
        with contextlib.suppress(OSError):
            if base.path is not None and os.path.samefile(base.path, path):
                raise UsageError(
                    f"'{os.fspath(path)}' is an ancestor of the new snapshot", hint="write to another name"
                )
        base = base.parent


def _write(file: AtomicFile, manifest: bytes, extents: list[Extent]) -> str:
    """The pages first and the header last: what is half written has no header."""
    begin = offset = data_place(len(manifest), len(extents))
    file.seek(offset)
    table = []
    for gpa, length, buffers in extents:
        if buffers is None:
            table.append(TableRun(gpa, length, 0, ZERO, _NO_HASH))
            continue
        hasher = hashlib.sha256()
        for view in buffers:
            hasher.update(view)
            file.write(view)
        table.append(TableRun(gpa, length, offset, DATA, hasher.digest()))
        offset += length
    packed = pack_table(table)
    head, header = pack_header(manifest, packed, offset - begin)
    file.seek(HEADER_SIZE)
    file.write(manifest.ljust(header.table_offset - HEADER_SIZE, b"\0"))
    file.write(packed.ljust(begin - header.table_offset, b"\0"))
    file.seek(0)
    file.write(head)
    return header.id


def flatten(path: str | Path, output: str | Path, *, parents: Iterable[str | Path] = ()) -> str:
    """Write the snapshot `path` and what it has of its parents as one file without any; its id."""
    return save(load(path, parents=parents), output)


def _read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(fd, size - len(data))
        if not piece:
            raise damaged("the file is cut short")
        data += piece
    return data
