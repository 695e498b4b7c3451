"""Page tables: random mappings, and where a linear address must lead by them.

The tables are built from what is mapped where, so the expected translation is known without a walk.
"""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st

__all__ = ["PageTables", "page_tables"]

_PRESENT, _WRITABLE, _USER, _BIG = 1, 2, 4, 0x80
_PAGE, _LARGE = 0x1000, 0x200000


class PageTables(msgspec.Struct, frozen=True):
    """4-level tables at `cr3`: `image` are the bytes from there on. `pages` maps a linear address to
    (gpa, size, writable, user)."""

    cr3: int
    image: bytes
    pages: dict[int, tuple[int, int, bool, bool]]

    def translate(self, linear: int) -> int | None:
        """The guest-physical address, None where nothing is mapped."""
        for start, (gpa, size, _, _) in self.pages.items():
            if start <= linear < start + size:
                return gpa + linear - start
        return None


def page_tables(
    *, cr3: int = 0x100000, memory: int = 1 << 30, most: int = 8
) -> st.SearchStrategy[PageTables]:
    """1 to `most` pages of 4 KiB and 2 MiB, anywhere in the canonical addresses, onto `memory` bytes."""
    numbers = st.integers(0, (1 << 35) - 1) | st.integers((1 << 36) - (1 << 35), (1 << 36) - 1)
    page = st.tuples(
        numbers, st.integers(0, memory // _PAGE - 1), st.booleans(), st.booleans(), st.booleans()
    )
    return st.lists(page, min_size=1, max_size=most).map(lambda drawn: _build(cr3, drawn))


def _build(cr3: int, drawn: list[tuple[int, int, bool, bool, bool]]) -> PageTables:
    tables = [bytearray(_PAGE)]
    pages: dict[int, tuple[int, int, bool, bool]] = {}
    for number, frame, large, writable, user in drawn:
        size = _LARGE if large else _PAGE
        linear = number * _PAGE & -size
        gpa = frame * _PAGE & -size
        if any(start < linear + size and linear < start + other for start, (_, other, _, _) in pages.items()):
            continue
        flags = _PRESENT | (_WRITABLE if writable else 0) | (_USER if user else 0)
        table = 0
        for level in (39, 30) if large else (39, 30, 21):
            at = (linear >> level & 511) * 8
            entry = int.from_bytes(tables[table][at : at + 8], "little")
            if not entry:
                tables.append(bytearray(_PAGE))
                entry = cr3 + _PAGE * (len(tables) - 1) | _PRESENT | _WRITABLE | _USER
                tables[table][at : at + 8] = entry.to_bytes(8, "little")
            table = ((entry & ~0xFFF) - cr3) // _PAGE
        at = (linear >> (21 if large else 12) & 511) * 8
        if large:
            flags |= _BIG
        tables[table][at : at + 8] = (gpa | flags).to_bytes(8, "little")
        pages[linear] = (gpa, size, writable, user)
    canonical = {
        linear | (0xFFFF_0000_0000_0000 if linear >> 47 & 1 else 0): page for linear, page in pages.items()
    }
    return PageTables(cr3, b"".join(tables), canonical)
