"""The prefixes of an instruction (SDM vol. 2, 2.1.1)."""

from __future__ import annotations

__all__ = ["LEGACY_PREFIXES"]

#: All but REX and VEX: lock, repeat, segments, sizes of operand and address.
LEGACY_PREFIXES = frozenset(b"\xf0\xf2\xf3\x2e\x36\x3e\x26\x64\x65\x66\x67")
