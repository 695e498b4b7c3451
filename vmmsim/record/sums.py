"""A running check sum over exits: the same after each exit as long as two runs are the same."""

from __future__ import annotations

import struct
import zlib

from ..exits import Access, MmioRead, MmioWrite, MsrRead, MsrWrite, PortRead, PortWrite

__all__ = ["next_sum"]

_PACK = struct.Struct("<BBQQ").pack
_CLASSES: tuple[type[Access], ...] = (PortRead, PortWrite, MmioRead, MmioWrite, MsrRead, MsrWrite)
_KINDS = {cls: number for number, cls in enumerate(_CLASSES, 1)}


def next_sum(sum: int, cls: type[Access], address: int, size: int, value: int) -> int:
    """The sum (32 bits) behind an access, from that before it; 0 at the begin."""
    return zlib.crc32(_PACK(_KINDS[cls], size, address, value), sum)
