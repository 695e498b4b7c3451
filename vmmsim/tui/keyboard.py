"""Both ends of the guest's characters while a person steps through it."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Console", "Keyboard", "Starved"]


class Starved(Exception):
    """The guest waits for a character that nobody has typed."""


class Keyboard:
    """A source (`devices.base.CharSource`) of what a person types. It never waits: Starved instead.

    Each byte is the guest's from the moment on at which it was there first, so that a way forward
    that was gone before is the same again. `now` is the moment (`History.moment`), `again` whether
    such a way is under way. `send`, `end` and `ahead` are for any thread.
    """

    def __init__(self) -> None:
        self.now: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self.again: Callable[[], bool] = lambda: False
        self._lock = threading.Lock()
        self._bytes = bytearray()
        #: Of each byte that the guest could have taken: the moment at which it was there first.
        self._since: list[tuple[int, int]] = []
        self._over = False
        self._over_since: tuple[int, int] | None = None
        #: How many bytes the guest has taken.
        self.position = 0

    # -- the person's end

    def send(self, data: bytes) -> None:
        """Type `data`."""
        with self._lock:
            self._bytes += data

    def end(self) -> None:
        """Say that no more comes."""
        self._over = True

    def ahead(self) -> bytes:
        """What was typed and not taken yet."""
        with self._lock:
            return bytes(self._bytes[self.position :])

    def drop_ahead(self) -> None:
        """It was not typed."""
        with self._lock:
            del self._bytes[self.position :], self._since[self.position :]
            self._over, self._over_since = False, None

    # -- the guest's end

    def ready(self) -> bool:
        """Whether `get` would return a byte."""
        with self._lock:
            at, now = self.position, self.now()
            if at >= len(self._bytes):
                return False
            if self.again():
                return at < len(self._since) and self._since[at] <= now
            # Bytes of a way that is not gone again are there from here on.
            self._since[at:] = [now] * (len(self._bytes) - at)
            return True

    def get(self) -> int | None:
        """The next byte if one is there, else None."""
        if not self.ready():
            return None
        self.position += 1
        return self._bytes[self.position - 1]

    def wait(self) -> int | None:
        """The next byte, or None at the end of input. Starved if neither is there."""
        byte = self.get()
        if byte is None and not self.ended:
            raise Starved
        return byte

    @property
    def ended(self) -> bool:
        """Whether the input is over and no byte is left."""
        if not self._over or self.position < len(self._bytes):
            return False
        if self.again():
            return self._over_since is not None and self._over_since <= self.now()
        self._over_since = self.now() if self._over_since is None else min(self._over_since, self.now())
        return True

    def record(self) -> None:
        """What was typed is kept anyhow."""

    def seek(self, position: int) -> bool:
        """Give the bytes from `position` on once more."""
        self.position = position
        return True

    def close(self) -> None:
        self._over = True


class Console:
    """A sink of what the guest prints, which can go back."""

    def __init__(self) -> None:
        self.data = bytearray()

    def put(self, data: bytes, /) -> None:
        self.data += data

    def back_to(self, length: int) -> None:
        """It has printed so many bytes."""
        del self.data[length:]
