"""Flat binaries: the bytes of the file, at one address."""

from __future__ import annotations

from pathlib import Path

from .. import layout
from ..errors import ImageError, UsageError
from ..memory import GPA_LIMIT
from .image import ImageSegment, LoadedImage

__all__ = ["load_flat"]


def load_flat(
    data: bytes,
    *,
    name: str,
    load_address: int | None = None,
    mode: str | None = None,
    entry: int | None = None,
    path: Path | None = None,
) -> LoadedImage:
    """`data` at guest-physical `load_address` (0x7C00 unless told), entered there in `mode`
    (real unless told) unless `entry`, a linear address, says otherwise.

    Raises ImageError for no data and UsageError for an address that is not one.
    """
    if not data:
        raise ImageError(f"{name} is empty", hint="a guest needs at least one instruction")
    address = layout.DEFAULT_LOAD if load_address is None else load_address
    if not 0 <= address < GPA_LIMIT:
        raise UsageError(f"the load address {address:#x}", hint="memory lies below 2^48")
    return LoadedImage(
        name=name,
        segments=[ImageSegment(address, data, len(data), "image")],
        entry=address if entry is None else entry,
        mode=mode or "real",
        path=path,
    )
