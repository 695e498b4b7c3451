"""Descriptors of the host: opening files with clear errors, and waiting with an end."""

from __future__ import annotations

import os
import select
import socket
import sys

from ..errors import HostError, UsageError

__all__ = ["SLICE", "listen_alone", "open_file", "readable", "writable"]

#: Seconds that a wait lasts before it looks whether it was interrupted.
SLICE = 0.02
#: select() takes no descriptor above 1023; macOS's poll() has not always taken terminals.
_HAS_POLL = hasattr(select, "poll") and sys.platform != "darwin"


def readable(fd: int, seconds: float) -> bool:
    """Whether a read would not wait (there is something, or an end, or an error)."""
    if not _HAS_POLL:
        return bool(select.select([fd], [], [], seconds)[0])
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def writable(fd: int, seconds: float) -> bool:
    """Whether a write of a few bytes would not wait."""
    if not _HAS_POLL:
        return bool(select.select([], [fd], [], seconds)[1])
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


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
