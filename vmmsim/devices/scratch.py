"""Scratch: registers that keep what is written, of any width. For tests of the access rules."""

from __future__ import annotations

import msgspec

from ..errors import UsageError

__all__ = ["Scratch", "ScratchState"]

#: More than any test needs; a size beyond it is a mistake.
_MAX_SIZE = 1 << 24


class ScratchState(msgspec.Struct, frozen=True):
    """`data` is every register's byte, from offset 0."""

    data: bytes


class Scratch:
    """`size` bytes (1 to 16 MiB) of little-endian registers, 1, 2, 4 or 8 bytes wide each.

    It is memory that the CPU can only reach by exits, which is what shows the width and
    the order of each access.
    """

    widths: frozenset[int] = frozenset({1, 2, 4, 8})

    def __init__(self, size: int, *, state: ScratchState | None = None) -> None:
        if not 0 < size <= _MAX_SIZE:
            raise UsageError(f"scratch: no device of {size} bytes", hint=f"use 1 to {_MAX_SIZE} bytes")
        if state is not None and len(state.data) != size:
            raise UsageError(
                f"scratch: the state holds {len(state.data)} bytes, the device {size}",
                hint="restore into a device of the same size",
            )
        #: Addresses that the device takes on its bus, in bytes.
        self.length = size
        self._data = bytearray(size) if state is None else bytearray(state.data)

    @classmethod
    def from_state(cls, state: ScratchState) -> Scratch:
        return cls(len(state.data), state=state)

    def state(self) -> ScratchState:
        return ScratchState(bytes(self._data))

    def read(self, offset: int, size: int, /) -> int:
        self._check(offset, size)
        return int.from_bytes(self._data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int, /) -> None:
        self._check(offset, size)
        self._data[offset : offset + size] = value.to_bytes(size, "little")

    def _check(self, offset: int, size: int) -> None:
        # Beside the end a slice would grow the device instead of failing.
        if offset < 0 or offset + size > self.length:
            raise UsageError(
                f"scratch: {size} bytes at offset {offset:#x} are not in its {self.length:#x} bytes",
                hint="the bus cuts accesses at the end of a device",
            )
