"""Files of the host: opening them with clear errors, waiting with an end, flushing, temporary ones."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import HostError, UsageError

__all__ = [
    "SLICE",
    "flush",
    "listen_alone",
    "open_file",
    "readable",
    "temporary_error",
    "temporary_folder",
    "unix_path",
    "writable",
]

#: Seconds that a wait lasts before it looks whether it was interrupted.
SLICE = 0.02
#: select() takes descriptors below this (FD_SETSIZE of Linux, macOS and the BSDs).
_MOST_SELECTED = 1024


def readable(fd: int, seconds: float) -> bool:
    """Whether a read would not wait (there is something, or an end, or an error). HostError where the host
    has no way to wait for this descriptor."""
    if _selected(fd):
        return bool(select.select([fd], [], [], seconds)[0])
    return _poll(fd, select.POLLIN, seconds)


def writable(fd: int, seconds: float) -> bool:
    """Whether a write of a few bytes would not wait. HostError as `readable`."""
    if _selected(fd):
        return bool(select.select([], [fd], [], seconds)[1])
    return _poll(fd, select.POLLOUT, seconds)


def _selected(fd: int) -> bool:
    """macOS's poll() takes no terminals and other devices (poll(2), BUGS); Windows has none."""
    return not hasattr(select, "poll") or (sys.platform == "darwin" and fd < _MOST_SELECTED)


def _poll(fd: int, event: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, event)
    found = poll.poll(seconds * 1000)
    if found and found[0][1] & select.POLLNVAL and sys.platform == "darwin":
        raise HostError(
            f"macOS cannot wait for the terminal or device at descriptor {fd}",
            hint=f"close some files: it can below descriptor {_MOST_SELECTED}",
        )
    return bool(found)


def unix_path(path: str) -> str:
    """`path`, if a Unix socket can have it as its address. UsageError, with the limit of this host."""
    size, most = len(os.fsencode(path)), (107 if sys.platform == "linux" else 103)  # sun_path, and a NUL
    if size > most:
        raise UsageError(
            f"the path of a Unix socket has at most {most} bytes on this host, and '{path}' has {size}",
            hint="use a shorter one, as /tmp/NAME, or a relative one",
        )
    return path


@contextlib.contextmanager
def temporary_folder(what: str) -> Iterator[Path]:
    """A new folder for `what`, which is gone behind the block. HostError, also for what the block cannot
    write there."""
    try:
        with tempfile.TemporaryDirectory(prefix="vmmsim-") as folder:
            yield Path(folder)
    except OSError as error:
        raise temporary_error(what, error) from error


def temporary_error(what: str, error: OSError) -> HostError:
    """That `what` cannot be kept in the folder for temporary files, and what to do."""
    folder = "the folder for temporary files"
    with contextlib.suppress(OSError):  # there may be none
        folder = f"'{tempfile.gettempdir()}'"
    return HostError(
        f"{what} cannot be kept in {folder}: {error.strerror or error}",
        hint="let TMPDIR be a folder that can be written to, with room for the guest's memory",
    )


def flush(fd: int) -> None:
    """Bring what was written onto the disk itself. OSError.

    macOS's fsync leaves it in the drive's cache, F_FULLFSYNC does not (fsync(2) there); not all file
    systems have that one.
    """
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def listen_alone(listener: socket.socket, platform: str = os.name) -> None:
    """Set the option with which `listener` can have a port soon after another listener has left it, and
    with which no other process can have it meanwhile. Before it is bound.

    On POSIX that is SO_REUSEADDR. On Windows the first needs no option; there SO_REUSEADDR would let another
    process take the port, which SO_EXCLUSIVEADDRUSE forbids even where the other asks for it.
    """
    name = "SO_EXCLUSIVEADDRUSE" if platform == "nt" else "SO_REUSEADDR"
    listener.setsockopt(socket.SOL_SOCKET, getattr(socket, name), 1)


def open_file(path: str, flags: int, verb: str) -> int:
    """A descriptor of the file `path`, to "read" or "write" (`verb`).

    Raises UsageError for a path that is missing or a directory, HostError for the rest.
    """
    if not path:
        raise UsageError(f"no file name to {verb}", hint="give a path")
    if os.path.isdir(path):
        # open() itself lets a directory be read, on POSIX.
        raise UsageError(f"'{path}' is a directory", hint="give a file")
    try:
        return os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0), 0o666)
    except FileNotFoundError as error:
        what = "directory for" if flags & os.O_CREAT else "file"
        raise UsageError(f"there is no {what} '{path}'", hint="check the path") from error
    except PermissionError as error:
        raise HostError(f"no permission to {verb} '{path}'", hint="check its owner and mode") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HostError(f"cannot {verb} '{path}': {reason}", hint="check the path") from error
