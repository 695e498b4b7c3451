"""A file that is there whole or not at all, whatever happens while it is written.

It is written under another name in the same directory, flushed to the disk, renamed over its
name, and the directory is flushed: so says every file system's manual that promises anything.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from ..errors import HostError
from ..streams.host import flush

__all__ = ["AtomicFile", "replacing"]


class AtomicFile:
    """What `replacing` gives: written at a place that moves on, or at another after `seek`.

    `path` is its name as long as it is not whole.
    """

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self.path = path

    def write(self, data: bytes | memoryview) -> None:
        """Write all of `data`."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def seek(self, offset: int) -> None:
        """Write at `offset` from now on; what was jumped over is zero."""
        os.lseek(self._fd, offset, os.SEEK_SET)

    def reopen(self) -> int:
        """A descriptor of its own, to read back what was written."""
        return os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[AtomicFile]:
    """A file that takes the place of `path` at the end of the block, if nothing was raised.

    Raises HostError for what the host cannot do (no room, no right); `path` is then as it was. Only
    when the directory cannot be flushed the file is there already, whole; the error says so.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
        fd = os.open(temporary, flags, 0o666)
        try:
            try:
                yield AtomicFile(fd, str(temporary))
                flush(fd)
            finally:
                os.close(fd)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        held = os.name == "nt" and isinstance(error, PermissionError)  # so Windows tells it
        raise HostError(
            f"'{target}' cannot be written: {reason}",
            hint="another process has it open, or may not write there"
            if held
            else "check the directory and the room on its disk",
        ) from error
    _flush_directory(target)


def _flush_directory(target: Path) -> None:
    if os.name == "nt":  # a directory cannot be opened there; NTFS keeps a journal of renames
        return
    try:
        fd = os.open(target.parent, os.O_RDONLY)
        try:
            flush(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(
            f"'{target}' is written, but may not survive a power failure: {error.strerror}",
            hint="its directory could not be flushed",
        ) from error
