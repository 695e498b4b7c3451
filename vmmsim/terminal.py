"""The person's terminal: Ctrl-a escapes, and a mode in which each key reaches the guest.

POSIX has terminals with termios, Windows consoles; `open_terminal` takes what fits.

The escapes are QEMU's and kvmtool's: Ctrl-a x stops vmmsim, Ctrl-a h shows help, Ctrl-a
Ctrl-a sends one Ctrl-a to the guest.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from .console.api import (
    ECHO_INPUT,
    LINE_INPUT,
    PROCESSED_INPUT,
    PROCESSED_OUTPUT,
    UTF_8,
    VT_INPUT,
    VT_OUTPUT,
    Console,
    console,
    is_cygwin_terminal,
)

__all__ = ["BANNER", "CTRL_A", "HELP", "ConsoleTerminal", "EscapeFilter", "RawTerminal", "open_terminal"]

CTRL_A = 0x01
BANNER = "vmmsim: press Ctrl-a x to stop, Ctrl-a h for help"
#: In a terminal of Cygwin or MSYS2, which is a pipe to programs of Windows.
LINES = (
    "vmmsim: this terminal gives whole lines; in Windows Terminal, or by winpty, the guest gets each key. "
    "Ctrl-a x and Enter to stop"
)
HELP = """\
Ctrl-a x       stop the machine
Ctrl-a Ctrl-a  send Ctrl-a to the guest
Ctrl-a h       this help
Ctrl-c         stop the machine, as Ctrl-a x; of a PC (--machine pc) it is a key for the guest"""

_COMMANDS = {ord("x"): "quit", ord("X"): "quit", ord("h"): "help", ord("?"): "help"}


class EscapeFilter:
    """Takes the Ctrl-a escapes out of what is typed. No I/O; state is kept between feeds."""

    def __init__(self) -> None:
        self._escaped = False

    def feed(self, data: bytes) -> tuple[bytes, list[str]]:
        """(what the guest is to have, commands in order: `quit`, `help`).

        Ctrl-a with any other key is dropped along with it, as QEMU does.
        """
        kept = bytearray()
        commands: list[str] = []
        for byte in data:
            if self._escaped:
                self._escaped = False
                if byte == CTRL_A:
                    kept.append(byte)
                elif byte in _COMMANDS:
                    commands.append(_COMMANDS[byte])
            elif byte == CTRL_A:
                self._escaped = True
            else:
                kept.append(byte)
        return bytes(kept), commands


class _PutBack(ABC):
    """What is changed while it is entered, and put back in any case: on leaving, at exit, by a signal."""

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}

    @abstractmethod
    def _restore(self) -> None: ...

    @abstractmethod
    def _on_signal(self, number: int, frame: FrameType | None) -> None: ...

    def _heed(self, *names: str) -> None:
        """Put back at the end of the process, and by signals that would end or stop it. A Python handler can
        only be set from the main thread; one that is there already ends the program in order, and so leaves
        the block."""
        atexit.register(self._restore)
        if threading.current_thread() is not threading.main_thread():
            return
        for name in names:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                self._handlers[number] = signal.signal(number, self._on_signal)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        atexit.unregister(self._restore)
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)
        self._handlers = {}


class RawTerminal(_PutBack):
    """While open, keys reach the guest at once and are not echoed (the guest echoes).

    With `signals` the signal keys stay on: Ctrl-c stops vmmsim, Ctrl-z suspends it; without, they
    are keys for the guest, whose shell wants them. Nothing happens when
    `fd` is not a terminal, or when this process is in its background. The
    settings are put back on leaving by any way that lets a process act: a normal end, an
    exception, exit(), SIGTERM, SIGHUP and while suspended.
    """

    def __init__(self, fd: int | None = None, *, signals: bool = True) -> None:
        """`fd` is standard input by default."""
        super().__init__()
        self._signals = signals
        self._fd = _stdin_fd() if fd is None else fd
        self._saved: list[Any] | None = None

    @property
    def active(self) -> bool:
        """Whether the terminal's settings are changed now."""
        return self._saved is not None

    @property
    def banner(self) -> str:
        """What to tell the person first; "" for nothing."""
        return BANNER if self.active else ""

    def __enter__(self) -> RawTerminal:
        if self._enter():
            self._heed("SIGTERM", "SIGHUP", "SIGTSTP")
        return self

    def _enter(self) -> bool:
        if self._saved is not None or os.name != "posix":
            return False
        import termios

        try:
            # Changing the settings from the background would suspend the whole job.
            if not os.isatty(self._fd) or os.tcgetpgrp(self._fd) != os.getpgrp():
                return False
            saved = termios.tcgetattr(self._fd)
        except (OSError, termios.error):
            return False
        changed = [*saved[:6], [*saved[6]]]
        changed[3] &= ~(termios.ICANON | termios.ECHO)
        if not self._signals:
            changed[3] &= ~termios.ISIG
            changed[0] &= ~termios.IXON  # Ctrl-s, Ctrl-q
            changed[0] &= ~termios.ICRNL  # Enter is a carriage return, as a serial line has it
        changed[6][termios.VMIN] = 1
        changed[6][termios.VTIME] = 0
        # Saved first: a signal between the two lines must find what to put back.
        self._saved = saved
        termios.tcsetattr(self._fd, termios.TCSANOW, changed)
        return True

    def _restore(self) -> None:
        if self._saved is None:
            return
        import termios

        saved, self._saved = self._saved, None
        # Blocked, SIGTTOU lets a process that has come into the background do this too.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, saved)
        except (OSError, termios.error):
            pass  # The terminal is gone; there is nothing to put back.
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Put the settings back, then let the signal do what it does by default."""
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Only a suspended process comes here, once it is continued.
        signal.signal(number, self._on_signal)
        self._enter()


class ConsoleTerminal(_PutBack):
    """The same for a console of Windows, by `console`: keys reach the guest at once, unless `keys` is False,
    and what the guest prints is UTF-8 with a terminal's escape sequences. Of the three descriptors of the
    standard streams those are set that are a console; they are put back on leaving, and at exit.

    With `signals` Ctrl-c is a signal, without a key. Ctrl-Break always is a signal; it ends the process.
    """

    def __init__(
        self, console: Console, *, keys: bool = True, signals: bool = True, fds: tuple[int, ...] = (0, 1, 2)
    ) -> None:
        super().__init__()
        self._console = console
        self._keys, self._signals = keys, signals
        self._input, *self._outputs = fds
        #: What puts back each thing that was changed, the last one first.
        self._undo: list[Callable[[], object]] = []
        self.active = False

    @property
    def banner(self) -> str:
        """What to tell the person first; "" for nothing."""
        if self.active:
            return BANNER
        return LINES if self._keys and is_cygwin_terminal(self._console, self._input) else ""

    def __enter__(self) -> ConsoleTerminal:
        self._heed("SIGBREAK")
        if self._keys:
            drop = LINE_INPUT | ECHO_INPUT | VT_INPUT | (0 if self._signals else PROCESSED_INPUT)
            self.active = self._change(self._input, drop, PROCESSED_INPUT if self._signals else 0)
        # A console that knows no escape sequences (before Windows 10) stays as it is.
        set_here = [self._change(fd, 0, PROCESSED_OUTPUT | VT_OUTPUT) for fd in self._outputs]
        if any(set_here):
            page = self._console.code_page()
            if self._console.set_code_page(UTF_8):
                self._undo.append(lambda: self._console.set_code_page(page))
        return self

    def _change(self, fd: int, drop: int, add: int) -> bool:
        mode = self._console.mode(fd)
        if mode is None:
            return False
        self._undo.append(lambda: self._console.set_mode(fd, mode))
        return self._console.set_mode(fd, mode & ~drop | add)

    def _restore(self) -> None:
        self.active = False
        while self._undo:
            self._undo.pop()()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def open_terminal(*, keys: bool, signals: bool) -> RawTerminal | ConsoleTerminal | None:
    """For a run whose guest has the standard streams: to be entered while it runs, and left in any case.
    `keys`: its input is what is typed there. None where nothing is to be set."""
    windows = console()
    if windows is not None:
        return ConsoleTerminal(windows, keys=keys, signals=signals)
    return RawTerminal(signals=signals) if keys else None


def _stdin_fd() -> int:
    try:
        return sys.__stdin__.fileno() if sys.__stdin__ is not None else -1
    except (OSError, ValueError):
        return -1
