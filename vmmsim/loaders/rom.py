"""Firmware images: flat, and ending where the CPU starts.

After RESET the CPU fetches from FFFFFFF0h (SDM vol. 3, section 9.1.4), so a ROM ends at
4 GiB. A PC's chipset shows the last 128 KiB of it also below 1 MiB, where real mode
reaches it. There it is RAM here, as it is once a chipset has been told to shadow it:
SeaBIOS writes its variables there.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import ImageError
from ..memory import PAGE_SIZE, format_size
from .image import ImageSegment, LoadedImage, RomRegion

__all__ = ["MAX_ROM", "load_rom"]

MAX_ROM = 16 << 20
_SHADOW = 128 << 10
_END = 1 << 32
_SHADOW_END = 1 << 20
_RESET_VECTOR = 0xFFFFFFF0


def load_rom(data: bytes, *, name: str, path: Path | None = None) -> LoadedImage:
    """`data` as read-only memory that ends at 4 GiB, entered by a reset.

    Its last 128 KiB, or all of it if there is less, are also RAM that ends at 1 MiB. Raises
    ImageError unless there are 4 KiB to 16 MiB, in whole pages of 4 KiB.
    """
    if not data:
        raise ImageError(f"{name} is empty", hint="a ROM has at least 4 KiB")
    if len(data) > MAX_ROM:
        raise ImageError(
            f"{name} has {format_size(len(data))}, and a ROM at most {format_size(MAX_ROM)}",
            hint="give a firmware image, not a disk: SeaBIOS is 128 or 256 KiB, OVMF 2 or 4 MiB",
        )
    if len(data) % PAGE_SIZE:
        raise ImageError(
            f"{name} has {len(data)} bytes, which is no multiple of 4 KiB: it is truncated, or no ROM",
            hint="a PC's firmware is a multiple of 64 KiB; pad your own at its front, "
            "so that the last 16 bytes stay at FFFFFFF0h",
        )
    shadow = data[-_SHADOW:]
    return LoadedImage(
        name=name,
        segments=[ImageSegment(_SHADOW_END - len(shadow), shadow, len(shadow), "shadow of the ROM")],
        entry=_RESET_VECTOR,
        mode="reset",
        path=path,
        rom=[RomRegion(_END - len(data), data, "firmware")],
    )
