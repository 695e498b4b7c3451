"""Ctrl-C while a guest runs: the signal ends the run at an instruction boundary first.

A Python signal handler may run inside a device's answer, and an exception that leaves a
callback of a C library is lost. So while a guest runs, the handlers of SIGINT, SIGTERM
and SIGHUP are replaced by one that only cancels the vCPU; the real handler is called
after the run has ended.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ["DeferredSignals"]

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
]


class DeferredSignals:
    """Context manager around a run: `cancel` is called at once, the real handler at the end.

    Does nothing outside the main thread, where Python runs no signal handlers.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._saved: list[tuple[int, Any]] = []
        self._pending: list[tuple[Any, int, FrameType | None]] = []

    def __enter__(self) -> DeferredSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    signal.signal(number, self._note)
                    self._saved.append((number, handler))
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        handler = next(h for n, h in self._saved if n == number)
        self._pending.append((handler, number, frame))
        self._cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._saved:
            signal.signal(number, handler)
        self._saved = []
        pending, self._pending = self._pending, []
        for handler, number, frame in pending:
            handler(number, frame)
