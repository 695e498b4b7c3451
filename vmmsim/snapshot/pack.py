"""Packed snapshots: a snapshot file compressed whole, small to send, and back byte by byte.

        0  64 bytes of text: `vmmsim-snapshot-pack 1 vmmsim/0.1.0`, blanks, a newline
       64  magic, version, codec (1 zlib, 2 zstd), sizes of the file and of the stream, the file's
           first 256 bytes; at 384 the SHA-256 of the 384 bytes before it
      416  the compressed stream, to the end

The id is that of the file, whose own hashes are checked when it is unpacked.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import SnapshotError, UsageError
from .atomic import replacing
from .container import SnapshotFile, open_file, open_to_read
from .format import HEADER_SIZE, LINE_SIZE, NAME, Header, damaged, first_line, parse_header, parse_line

__all__ = ["CODECS", "PACK_VERSION", "best_codec", "pack", "unpack"]

#: Of the format.
PACK_VERSION = 1
PACK_MAGIC = b"\x89VMP\r\n\x1a\n"
PACK_NAME = f"{NAME}-pack"
#: How a file can be compressed: name -> number in the header.
CODECS = {"zlib": 1, "zstd": 2}
_HEAD = struct.Struct("<8sIIQQ32x")
_HASH_AT = LINE_SIZE + _HEAD.size + HEADER_SIZE
_STREAM_AT = _HASH_AT + 32
_PIECE = 1 << 20
_LEVEL = {"zlib": 6, "zstd": 3}

assert _STREAM_AT == 416


def _zstd() -> Any:
    """Python 3.14's module, or the `zstandard` package, or None."""
    for name in ("compression.zstd", "zstandard"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def best_codec() -> str:
    """`zstd` where it can be used, else `zlib`."""
    return "zstd" if _zstd() is not None else "zlib"


def _compressor(codec: str) -> Any:
    if codec == "zlib":
        return zlib.compressobj(_LEVEL[codec])
    module = _zstd()
    if module is None:
        raise UsageError("zstd is not here", hint="pip install 'vmmsim[zstd]', or use --codec zlib")
    if module.__name__ == "zstandard":
        return module.ZstdCompressor(level=_LEVEL[codec]).compressobj()
    return module.ZstdCompressor(level=_LEVEL[codec])


class _Expander:
    """One stream of either codec: `more(data, most)` gives at most `most` bytes."""

    def __init__(self, codec: int) -> None:
        self._codec = codec
        self._surplus = False
        self._stream: Any
        if codec == CODECS["zlib"]:
            self._stream = zlib.decompressobj()
            self.errors: tuple[type[Exception], ...] = (zlib.error,)
            return
        module = _zstd()
        if module is None:
            raise SnapshotError(
                "it is packed with zstd, which is not here", hint="pip install 'vmmsim[zstd]'"
            )
        self.errors = (module.ZstdError,)
        if module.__name__ == "zstandard":
            self._stream = module.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        else:
            self._stream = module.ZstdDecompressor()

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What `data` expands to, in pieces."""
        self._surplus |= self._stream.eof
        if self._codec == CODECS["zlib"]:
            while data and not self._stream.eof:
                yield self._stream.decompress(data, _PIECE)
                data = self._stream.unconsumed_tail
            return
        # Small pieces in: a piece of zstd expands to at most a block (128 KiB) for a few bytes.
        for at in range(0, len(data), 256):
            if self._stream.eof:
                self._surplus = True
                return
            yield self._stream.decompress(data[at : at + 256])

    @property
    def done(self) -> bool:
        """Whether the stream has ended, with nothing behind it."""
        return self._stream.eof and not self._surplus and not self._stream.unused_data


def pack(path: str | Path, output: str | Path, *, codec: str | None = None) -> int:
    """Compress the snapshot file `path` to the file `output`; the size of that in bytes.

    `codec` is zlib or zstd, by default zstd where it is there. Parents stay parents: pack each, or
    flatten first. Raises SnapshotError for a damaged file, UsageError, HostError.
    """
    name = codec if codec is not None else best_codec()
    if name not in CODECS:
        raise UsageError(f"there is no codec '{name}'", hint="codecs are: " + ", ".join(CODECS))
    source = open_file(path)
    try:
        source.check_pages()
    except SnapshotError as error:
        raise SnapshotError(f"'{source.path}': {error.message}", hint=error.hint) from error
    view, stream, size = source.mapped.view, _compressor(name), 0
    with replacing(output) as file:
        file.seek(_STREAM_AT)
        for at in range(0, len(view), _PIECE):
            piece = stream.compress(view[at : at + _PIECE])
            size += len(piece)
            file.write(piece)
        piece = stream.flush()
        size += len(piece)
        file.write(piece)
        head = first_line(PACK_NAME, PACK_VERSION)
        head += _HEAD.pack(PACK_MAGIC, PACK_VERSION, CODECS[name], len(view), size) + view[:HEADER_SIZE]
        file.seek(0)
        file.write(head + hashlib.sha256(head).digest())
    return _STREAM_AT + size


def unpack(path: str | Path, output: str | Path) -> str:
    """Write the snapshot file that was packed in `path` to `output`, with every hash checked; its id.

    Raises SnapshotError, and then there is no `output`; HostError when the host cannot write.
    """
    name = os.fspath(path)
    with os.fdopen(open_to_read(name), "rb") as source:
        try:
            codec, header, head = _parse(source.read(_STREAM_AT), os.fstat(source.fileno()).st_size)
            with replacing(output) as file:
                _expand(source, codec, header, head, file)
        except SnapshotError as error:
            raise SnapshotError(f"'{name}': {error.message}", hint=error.hint) from error
    return header.id


def _parse(head: bytes, size: int) -> tuple[int, Header, bytes]:
    if len(head) < LINE_SIZE:
        raise damaged(f"a file of {len(head)} bytes is no packed snapshot")
    parse_line(head[:LINE_SIZE], PACK_NAME, PACK_VERSION)
    if len(head) < _STREAM_AT:
        raise damaged("the header is cut short")
    if hashlib.sha256(head[:_HASH_AT]).digest() != head[_HASH_AT:]:
        raise damaged("the header does not have its hash")
    magic, version, codec, whole, stream = _HEAD.unpack_from(head, LINE_SIZE)
    if (
        magic != PACK_MAGIC
        or version != PACK_VERSION
        or any(head[LINE_SIZE + _HEAD.size - 32 : LINE_SIZE + _HEAD.size])
    ):
        raise damaged("the header is not that of format 1")
    if codec not in CODECS.values():
        raise SnapshotError(f"it is packed by codec {codec}, which nobody knows", hint="update vmmsim")
    if stream != size - _STREAM_AT:
        raise damaged(f"the stream has {size - _STREAM_AT} bytes, and the header says {stream}")
    inner = head[_HASH_AT - HEADER_SIZE : _HASH_AT]
    return codec, parse_header(inner, whole), inner


def _expand(source: Any, codec: int, header: Header, head: bytes, file: Any) -> None:
    """Write the stream to `file`, and check that it is a whole snapshot file before that has its name."""
    expander, done, begin = _Expander(codec), 0, b""
    try:
        while data := source.read(_PIECE):
            for piece in expander.pieces(data):
                done += len(piece)
                if done > header.file_size:
                    raise damaged("the stream is longer than its file")
                if len(begin) < HEADER_SIZE:
                    begin += piece[: HEADER_SIZE - len(begin)]
                    if not head.startswith(begin):
                        raise damaged("the stream is not that of its header")
                file.write(piece)
    except expander.errors as error:
        raise damaged(f"the stream is broken: {error}") from error
    if done != header.file_size or not expander.done:
        raise damaged("the stream ends too early")
    written = SnapshotFile(file.path, file.reopen())
    written.check_pages(again=True)
    if written.id != header.id:
        raise damaged("the stream is not that of its header")
