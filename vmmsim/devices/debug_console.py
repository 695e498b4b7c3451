"""The debug console of Bochs and QEMU: a port to print to, without any setting up.

Port 0xE9 in Bochs' documentation (`port_e9_hack`) and QEMU's `-device isa-debugcon`.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from .base import CharSink

__all__ = ["PRESENT", "DebugConsole", "DebugConsoleState"]

#: What a read answers, so that a guest can find out that somebody listens: on a machine
#: without the device the port reads 0xFF.
PRESENT = 0xE9


class DebugConsoleState(msgspec.Struct, frozen=True):
    """The debug console keeps nothing."""


class DebugConsole:
    """One byte wide, one port: a write prints the byte, a read answers 0xE9."""

    widths: frozenset[int] = frozenset({1})
    #: Ports that the device takes.
    length: ClassVar[int] = 1

    def __init__(self, sink: CharSink, *, state: DebugConsoleState | None = None) -> None:
        self._put = sink.put

    @classmethod
    def from_state(cls, state: DebugConsoleState, *, sink: CharSink) -> DebugConsole:
        return cls(sink, state=state)

    def state(self) -> DebugConsoleState:
        return DebugConsoleState()

    def read(self, offset: int, size: int, /) -> int:
        return PRESENT

    def write(self, offset: int, size: int, value: int, /) -> None:
        self._put(bytes((value & 0xFF,)))
