"""What devices are given at construction: lines, sources and sinks, never the host itself.

A device knows no address, no bus, no thread and no host clock. Its state is a plain typed
value (`state()`, `from_state(state, ...resources)`); what it is connected to is an
argument. Construction and restoring are one path: the constructor is `from_state` of the
power-on state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["CharSink", "CharSource", "Irq", "IrqFan", "IrqLine", "NoIrq"]


class Irq(Protocol):
    """A level-sensitive interrupt line as the device drives it."""

    def set(self, level: bool, /) -> None:
        """Drive the line high (True) or low. Said again, the same level changes nothing."""


class NoIrq:
    """A line that goes nowhere."""

    def set(self, level: bool, /) -> None:
        pass


class IrqLine:
    """A line that remembers its level and tells `listener` of each change."""

    def __init__(self, listener: Callable[[bool], None] | None = None) -> None:
        self.level = False
        self._listener = listener

    def set(self, level: bool, /) -> None:
        if level != self.level:
            self.level = level
            if self._listener is not None:
                self._listener(level)


class IrqFan:
    """A line with several ends."""

    def __init__(self, *ends: Irq) -> None:
        self._ends = ends

    def set(self, level: bool, /) -> None:
        for end in self._ends:
            end.set(level)


class CharSource(Protocol):
    """Where characters for the guest come from: a terminal, a file, a pty, bytes."""

    def get(self) -> int | None:
        """The next byte (0-255) if one is there now, else None. Never waits."""

    def wait(self) -> int | None:
        """The next byte, waiting for it; None at the end of input or when the machine was
        cancelled meanwhile."""

    def ready(self) -> bool:
        """Whether `get` would return a byte."""

    @property
    def ended(self) -> bool:
        """Whether the input is over and no byte is left."""


class CharSink(Protocol):
    """Where the guest's characters go: stdout, a file, a buffer."""

    def put(self, data: bytes, /) -> None:
        """Take some characters. HostError when the host does not take them (a full disk)."""
