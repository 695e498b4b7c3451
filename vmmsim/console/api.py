"""What is asked of the Console API of Windows, by file descriptor; what is no console has no mode.

`Console` is what `vmmsim.terminal` and `vmmsim.streams` need; tests give them one that is made up.
"""

from __future__ import annotations

import functools
import os
import re
from typing import Protocol

from .keys import Key

__all__ = [
    "ECHO_INPUT",
    "LINE_INPUT",
    "PROCESSED_INPUT",
    "PROCESSED_OUTPUT",
    "UTF_8",
    "VT_INPUT",
    "VT_OUTPUT",
    "Console",
    "console",
    "is_cygwin_terminal",
]

#: Modes of an input buffer (SetConsoleMode): Ctrl-c is a signal; lines; echo; keys as escape sequences.
PROCESSED_INPUT, LINE_INPUT, ECHO_INPUT, VT_INPUT = 0x1, 0x2, 0x4, 0x200
#: Modes of a screen buffer: control characters, escape sequences.
PROCESSED_OUTPUT, VT_OUTPUT = 0x1, 0x4
UTF_8 = 65001
_CYGWIN = re.compile(r"\\(?:msys|cygwin)-[0-9a-f]+-pty\d+-(?:from|to)-master")


class Console(Protocol):
    """What is asked of Windows."""

    def mode(self, fd: int) -> int | None:
        """GetConsoleMode; None for what is no console."""

    def set_mode(self, fd: int, mode: int) -> bool:
        """SetConsoleMode: whether it took the mode."""

    def code_page(self) -> int:
        """GetConsoleOutputCP: how bytes that are written become characters."""

    def set_code_page(self, number: int) -> bool:
        """SetConsoleOutputCP."""

    def keys(self, fd: int, seconds: float) -> list[Key] | None:
        """Key events that are there, after waiting for some at most so long. None: the console is gone."""

    def pipe_name(self, fd: int) -> str:
        """The name of the pipe that `fd` is, "" for anything else."""


def is_cygwin_terminal(console: Console, fd: int) -> bool:
    """Whether `fd` is a terminal of Cygwin or MSYS2 (Git Bash's mintty): to a program of Windows it is a
    pipe, with a name that says so. It gives lines, and nothing can be set there."""
    return _CYGWIN.search(console.pipe_name(fd)) is not None


@functools.cache
def console() -> Console | None:
    """This process's Console API; None where this is not Windows."""
    if os.name != "nt":
        return None
    from .kernel32 import Kernel32

    return Kernel32()
