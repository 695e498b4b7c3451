"""Places where a run is to stop, as a person writes them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from ..errors import UsageError

if TYPE_CHECKING:
    from ..memory import GuestMemory

__all__ = ["Point", "number", "parse_point"]

#: Bytes of RAM that one point may watch.
_WATCH_MAX = 64


class Point(NamedTuple):
    """`kind` is code (a linear address), port or mmio (an access there), or ram (a change there)."""

    kind: str
    address: int
    size: int = 1
    name: str = ""

    def __str__(self) -> str:
        if self.kind == "code":
            return f"{self.address:#x}" + (f" {self.name}" if self.name else "")
        text = f"port:{self.address:#x}" if self.kind == "port" else f"gpa:{self.address:#x}"
        return text + (f",{self.size}" if self.size != 1 else "")


def number(text: str, what: str) -> int:
    """0x7c00, 31744, or 7c00h. Raises UsageError."""
    word = text.strip().lower()
    try:
        found = int(word[:-1], 16) if word.endswith("h") else int(word, 0)
    except ValueError:
        found = -1
    if not 0 <= found < 1 << 64:
        raise UsageError(f"{what}: '{text.strip()}' is not an address", hint="write 0x7c00 or 31744")
    return found


def parse_point(text: str, symbols: Mapping[str, int], memory: GuestMemory) -> Point:
    """`ADDRESS` or `SYMBOL` of code, `port:ADDRESS[,SIZE]`, `gpa:ADDRESS[,SIZE]`. Raises UsageError."""
    text = text.strip()
    kind, colon, rest = text.partition(":")
    if not colon:
        if text in symbols:
            return Point("code", symbols[text], name=text)
        if text[:1].isdigit():
            return Point("code", number(text, "breakpoint"))
        near = difflib.get_close_matches(text, symbols, 1)
        raise UsageError(
            f"there is no symbol '{text}'" if text else "no place was given",
            hint=f"did you mean '{near[0]}'?" if near else "write an address, gpa:ADDRESS or port:ADDRESS",
        )
    where, _, size_text = rest.partition(",")
    address, size = number(where, kind), number(size_text, "size") if size_text else 1
    if not 1 <= size <= _WATCH_MAX:
        raise UsageError(f"{size} bytes at a point", hint=f"from 1 to {_WATCH_MAX}")
    if kind == "port":
        return Point("port", address, size)
    if kind != "gpa":
        raise UsageError(f"'{kind}:' is no kind of point", hint="write gpa:ADDRESS or port:ADDRESS")
    return Point("ram" if memory.contains(address, size) else "mmio", address, size)
