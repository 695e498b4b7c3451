"""Files that a verb writes when its run is over: whether they can be, and writing them whole."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..errors import HostError, UsageError

__all__ = ["check_writable", "write_file"]


def check_writable(path: str, option: str) -> None:
    """UsageError, before a guest runs for long, where the file of `option` cannot be written."""
    directory = os.path.dirname(path) or "."
    reason = ""
    if os.path.isdir(path):
        reason = "it is a directory"
    elif not os.path.isdir(directory):
        reason = f"there is no directory '{directory}'"
    elif not os.access(directory, os.W_OK):
        reason = f"nothing can be written into '{directory}'"
    if reason:
        raise UsageError(f"'{path}' cannot be written: {reason}", hint=f"choose another file for {option}")


def write_file(path: str, pieces: Iterable[bytes]) -> None:
    """Write a file whole or not at all; a device such as /dev/null as it comes. Raises HostError."""
    from ..snapshot.atomic import replacing

    if os.path.exists(path) and not os.path.isfile(path):
        try:
            with open(path, "wb") as file:
                file.writelines(pieces)
        except OSError as error:
            raise HostError(f"'{path}' cannot be written: {error.strerror}") from error
        return
    with replacing(path) as target:
        for piece in pieces:
            target.write(piece)
