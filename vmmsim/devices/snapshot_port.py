"""The snapshot port: a guest that is ready says "snapshot me now", and a clone learns that it is one.

vmmsim's own device. What it is for is told in the literature on snapshots of whole machines: the
guest knows when it has booted, loaded and warmed up (Firecracker, docs/snapshotting), and a clone
must know that it is another machine than its siblings (Virtual Machine Generation ID, Microsoft 2012).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import msgspec

from ..errors import UsageError

__all__ = ["SnapshotPort", "SnapshotPortState"]

_MOST = 0xFFFFFFFF


class SnapshotPortState(msgspec.Struct, frozen=True):
    """`tag` is what was last written to ask for a snapshot (32 bits), 0 before."""

    tag: int = 0


class SnapshotPort:
    """Four bytes. A write to the first, of 1, 2 or 4 bytes, calls `on_snapshot` with the value; a
    write to the others does nothing.

    A read answers `generation()`: 0 in a machine that was never cloned, more in a clone. At most 32
    bits of it, so a 4-byte read from the first byte has it all. The machine takes the snapshot
    behind the instruction that asked: what is restored goes on there, and reads its own generation.
    """

    widths: frozenset[int] = frozenset({1, 2, 4})
    #: Ports that the device takes: a 4-byte access to the first one is one access.
    length: ClassVar[int] = 4

    def __init__(
        self,
        on_snapshot: Callable[[int], None],
        generation: Callable[[], int] = lambda: 0,
        *,
        state: SnapshotPortState | None = None,
    ) -> None:
        """Raises UsageError for a tag of more than 32 bits."""
        self._on_snapshot = on_snapshot
        self._generation = generation
        self._tag = (state or SnapshotPortState()).tag
        if not 0 <= self._tag <= _MOST:
            raise UsageError(f"snapshot port: the tag {self._tag:#x}", hint="a tag has 32 bits")

    @classmethod
    def from_state(
        cls,
        state: SnapshotPortState,
        *,
        on_snapshot: Callable[[int], None],
        generation: Callable[[], int] = lambda: 0,
    ) -> SnapshotPort:
        """Does not call `on_snapshot`: what was asked for is not asked for again."""
        return cls(on_snapshot, generation, state=state)

    def state(self) -> SnapshotPortState:
        return SnapshotPortState(self._tag)

    def read(self, offset: int, size: int, /) -> int:
        return min(self._generation(), _MOST) >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int, /) -> None:
        if offset == 0:
            self._tag = value & (1 << 8 * size) - 1 & _MOST
            self._on_snapshot(self._tag)
