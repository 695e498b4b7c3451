"""What a file is that is nearly what was asked for, in words: told with the error, and what to do instead."""

from __future__ import annotations

import struct

from ..errors import ImageError
from .linux import is_bzimage
from .multiboot import HEADER_MAGIC, SEARCHED

__all__ = ["check_flat", "multiboot_near_miss", "pvh_near_miss"]

_MAGIC = HEADER_MAGIC.to_bytes(4, "little")
#: A file of text is at least so long: fewer bytes may be code by chance.
_TEXT_LEAST = 16
_TEXT = frozenset(b"\t\n\r\f" + bytes(range(32, 127)))


def check_flat(data: bytes, name: str) -> None:
    """Raises ImageError for a file that is to be run as bare code, from its first byte on, and is not code:
    a Linux kernel, or text."""
    if is_bzimage(data):
        raise ImageError(
            f"{name} is a Linux kernel (bzImage), which a boot protocol starts",
            hint=f"give it with --kernel {name}; to run its bytes as they are say --mode real",
        )
    if len(data) >= _TEXT_LEAST and b"\n" in data and _TEXT.issuperset(data):
        raise ImageError(
            f"{name} is a text file, and its bytes would be run as code",
            hint="assemble it first (vmmsim asm FILE); to run its bytes as they are say --mode real",
        )


def multiboot_near_miss(data: bytes) -> str:
    """Why what looks like a Multiboot header is none (Multiboot 0.6.96, 3.1), or ""."""
    at = data.find(_MAGIC)
    why = ""
    while at >= 0 and at + 12 <= len(data):
        flags, checksum = struct.unpack_from("<II", data, at + 4)
        sound = (HEADER_MAGIC + flags + checksum) & 0xFFFFFFFF == 0
        if sound and at % 4:
            return f"it has a Multiboot header at offset {at:#x}, which is not aligned to 4"
        if sound:
            return f"it has a Multiboot header at offset {at:#x}, beyond the first {SEARCHED} bytes"
        if not at % 4 and at + 12 <= SEARCHED and not why:
            wanted = -(HEADER_MAGIC + flags) & 0xFFFFFFFF
            why = (
                f"it has Multiboot's magic at offset {at:#x} with the checksum {checksum:#x}, "
                f"which should be {wanted:#x}"
            )
        at = data.find(_MAGIC, at + 1)
    return why


def pvh_near_miss(notes: bytes) -> str:
    """Why a note of type XEN_ELFNOTE_PHYS32_ENTRY (18) in the bytes of a PT_NOTE segment is none, or ""."""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        owner = notes[at + 12 : at + 12 + name_size]
        if kind == 18 and owner == b"Xen":
            return "its PVH note's owner is 'Xen' without the NUL that belongs to it (n_namesz is 3, not 4)"
        if kind == 18 and owner == b"Xen\0" and size not in (4, 8):
            return f"its PVH note has {size} bytes, and an address has 4 or 8"
        at += 12 + -(-name_size // 4) * 4 + -(-size // 4) * 4
    return ""
