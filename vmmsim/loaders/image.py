"""LoadedImage: what every loader makes, and how it comes into guest memory."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ..errors import ImageError
from ..memory import GuestMemory, format_size

__all__ = ["ImageSegment", "LoadedImage"]


class ImageSegment(msgspec.Struct, frozen=True):
    """`data` for guest-physical `gpa`, followed by zeros up to `size` bytes."""

    gpa: int
    data: bytes
    size: int
    name: str

    @property
    def end(self) -> int:
        """First address behind the segment."""
        return self.gpa + self.size

    def __str__(self) -> str:
        return f"{self.name} ({self.size} bytes at {self.gpa:#x})"


class LoadedImage(msgspec.Struct):
    """A guest image in parts that only need to be stored.

    `entry` is the linear address of the first instruction in `mode` (a name of
    `vmmsim.cpu.modes.MODES`), `symbols` maps names to linear addresses, `path` is the file
    it came from or None for bytes.
    """

    name: str
    segments: list[ImageSegment]
    entry: int
    mode: str
    symbols: dict[str, int] = msgspec.field(default_factory=dict)
    path: Path | None = None

    def place(self, memory: GuestMemory) -> None:
        """Store all segments in `memory`, or none.

        Raises ImageError naming the first segment that does not lie in memory entirely, and
        the memory's size.
        """
        for segment in self.segments:
            if not memory.contains(segment.gpa, segment.size):
                raise ImageError(
                    f"{self.name}: {segment} does not fit the guest's memory of {_extent(memory)}",
                    hint="give more memory with -m, or put it elsewhere (a flat file with --load)",
                )
        for segment in self.segments:
            memory.write(segment.gpa, segment.data)
            _clear(memory, segment.gpa + len(segment.data), segment.size - len(segment.data))

    def symbol_at(self, address: int) -> str | None:
        """`name` or `name+0x12` of the nearest symbol at or below `address`, if there is one."""
        best = max(
            (item for item in self.symbols.items() if item[1] <= address),
            key=lambda item: item[1],
            default=None,
        )
        if best is None:
            return None
        return best[0] if best[1] == address else f"{best[0]}+{address - best[1]:#x}"


def _extent(memory: GuestMemory) -> str:
    places = ", ".join(f"{r.gpa:#x}..{r.end - 1:#x}" for r in memory.regions)
    return f"{format_size(memory.size)} ({places})"


def _clear(memory: GuestMemory, gpa: int, size: int) -> None:
    # In blocks: a large .bss must not need as much memory again on the host.
    block = bytes(min(size, 1 << 20))
    while size > 0:
        memory.write(gpa, block[:size])
        gpa += len(block[:size])
        size -= len(block[:size])
