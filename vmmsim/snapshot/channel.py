"""A side of a migration over a wire: bytes go out, events come in, and each wait has an end."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from ..errors import MigrationError
from .stream import Event, Side, Source
from .wire import SLICE, Wire

__all__ = ["Channel"]

E = TypeVar("E", bound=Event)


class Channel:
    """`check` is called while something is waited for, and may raise to end it."""

    def __init__(self, side: Side, wire: Wire, check: Callable[[], None] = lambda: None) -> None:
        self.side = side
        self.bytes_sent = 0
        self.bytes_received = 0
        self._wire = wire
        self._check = check
        self._events: deque[Event] = deque()
        #: What is left of what was being sent when something raised.
        self._rest = b""

    def flush(self, *, until: float | None = None) -> None:
        """Send what the side has to say; see `Wire.send`. Raises MigrationError."""
        data = self.side.take()
        if not data:
            return
        try:
            self._wire.send(data, self._look, until)
        finally:
            self._rest = data[len(data) - self._wire.left :]
            self.bytes_sent += len(data) - self._wire.left
            if isinstance(self.side, Source):
                self.side.not_sent(self._wire.left)
        if self._wire.left:
            while (more := self._wire.receive(SLICE)) is not None:
                self._came(more)  # the reason why, or the end: both raise
            self.side.eof()

    def _look(self) -> None:
        self._check()
        data = self._wire.receive(0)
        if data is not None:
            self._came(data)

    def _came(self, data: bytes) -> None:
        if not data:
            self.side.eof()
        self.bytes_received += len(data)
        self._events.extend(self.side.feed(data))

    def next(self, seconds: float) -> Event:
        """The next event. MigrationError when nothing at all comes in so many seconds."""
        limit = time.perf_counter() + seconds
        while not self._events:
            self.flush()
            self._check()
            data = self._wire.receive(SLICE)
            if data is not None:
                self._came(data)
                limit = time.perf_counter() + seconds
            elif time.perf_counter() > limit:
                raise MigrationError(
                    f"the {self.side.other} says nothing for {seconds:g} s", hint="it is stopped, or too slow"
                )
        return self._events.popleft()

    def wait(self, kind: type[E], seconds: float) -> E:
        """The next event, which is a `kind`: the protocol lets nothing else come."""
        event = self.next(seconds)
        assert isinstance(event, kind), event
        return event

    def abort(self, reason: str) -> bool:
        """Tell the other side, if it can still be told: whether it was tried."""
        if not self.side.abort(reason):
            return False
        with contextlib.suppress(MigrationError):
            self._wire.send(self._rest + self.side.take(), lambda: None, time.perf_counter() + 1)
        return True

    def close(self, *, linger: float = 0.0) -> None:
        self._wire.close(linger=linger)
