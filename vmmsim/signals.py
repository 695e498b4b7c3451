"""Ctrl-C while a guest runs: the signal ends the run at an instruction boundary first.

A Python signal handler may run inside a device's answer, and an exception that leaves a
callback of a C library is lost. So while a guest runs, the handlers of SIGINT, SIGTERM
and SIGHUP are replaced by one that only takes a note; the real handler is called after
the run has ended.

Python runs signal handlers between two of its instructions, and a spinning guest never
comes back to Python. What does come at once is a byte in the wakeup file descriptor; a
thread waits there, and cancels the vCPU.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ["DeferredSignals"]

#: Whom a signal cancelled before, and the wakeup descriptor before.
_Before = tuple[Callable[[], None] | None, int]

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)


class _Watcher:
    """The thread at the wakeup descriptor. One for the process, started at the first run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancel: Callable[[], None] | None = None
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._forward = -1
        threading.Thread(target=self._watch, name="vmmsim-signals", daemon=True).start()

    def arm(self, cancel: Callable[[], None]) -> _Before:
        """Returns what `disarm` takes: a run within a device of another run is possible."""
        with self._lock:
            self._take()  # the thread may be late with a signal that has ended an earlier run
            before, self._cancel = self._cancel, cancel
        fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        if fd != self._writer.fileno():
            self._forward = fd
        return before, fd

    def disarm(self, before: _Before) -> None:
        """From here on nothing is cancelled by a signal that came before."""
        cancel, fd = before
        signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        with self._lock:
            self._cancel = cancel

    def leave(self) -> None:
        """In a child process, which has not the thread: its signals are not the parent's."""
        fd = signal.set_wakeup_fd(-1)
        if fd not in (-1, self._writer.fileno()):
            signal.set_wakeup_fd(fd, warn_on_full_buffer=False)

    def _watch(self) -> None:
        ready = selectors.DefaultSelector()  # not select(), which knows no descriptor above 1023
        ready.register(self._reader, selectors.EVENT_READ)
        while True:
            ready.select()
            with self._lock:
                numbers = self._take()
                if self._cancel is not None and any(number in _SIGNALS for number in numbers):
                    self._cancel()

    def _take(self) -> bytes:
        """The signals that have come, passed on to who had the wakeup descriptor before, an
        event loop for example. Only under the lock, so that none is taken for a later run."""
        try:
            numbers = self._reader.recv(64)
        except BlockingIOError:
            return b""
        if self._forward != -1:
            with contextlib.suppress(OSError):
                _pass_on(self._forward, numbers)
        return numbers


def _pass_on(fd: int, numbers: bytes, platform: str = os.name) -> None:
    """Write to a wakeup descriptor, as the interpreter does. On Windows that is a descriptor or the handle
    of a socket (signal.set_wakeup_fd), of which os.write() knows the first alone."""
    if platform == "nt":
        try:
            other = socket.socket(fileno=fd)
        except OSError:  # no socket
            pass
        else:
            try:
                other.send(numbers)
            finally:
                other.detach()
            return
    os.write(fd, numbers)


_watcher: _Watcher | None = None


def _after_fork() -> None:
    global _watcher
    if _watcher is not None:
        _watcher.leave()
        _watcher = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class DeferredSignals:
    """Context manager around a run: `cancel` is called at once, the real handler at the end.

    `uncancel` takes back a cancel that came too late for the run. Does nothing outside the
    main thread, where Python runs no signal handlers.
    """

    def __init__(self, cancel: Callable[[], None], uncancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._uncancel = uncancel
        self._saved: list[tuple[int, Any]] = []
        self._pending: list[tuple[Any, int, FrameType | None]] = []
        self._armed: tuple[_Watcher, _Before] | None = None

    def __enter__(self) -> DeferredSignals:
        global _watcher
        if threading.current_thread() is threading.main_thread():
            if _watcher is None:
                _watcher = _Watcher()
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    signal.signal(number, self._note)
                    self._saved.append((number, handler))
            if self._saved:
                self._armed = _watcher, _watcher.arm(self._cancel)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        handler = next(h for n, h in self._saved if n == number)
        self._pending.append((handler, number, frame))
        self._cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._armed is None:
            return
        watcher, before = self._armed
        watcher.disarm(before)
        self._armed = None
        for number, handler in self._saved:
            signal.signal(number, handler)
        self._saved = []
        pending, self._pending = self._pending, []
        if pending:
            self._uncancel()
        for handler, number, frame in pending:
            handler(number, frame)
