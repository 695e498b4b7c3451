"""Multiboot kernels, by the Multiboot Specification 0.6.96.

A kernel is an ELF32 file, or any file whose header says where it goes (the "a.out
kludge", section 3.1.3). It is entered in flat 32-bit protected mode with 2BADB002h in EAX
and the address of the information structure in EBX (section 3.2).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec

from ..errors import ImageError
from ..memory import PAGE_SIZE
from .elf import MAGIC as ELF_MAGIC
from .elf import load_elf
from .image import BootMemory, BootModule, ImageSegment, LoadedImage, c_string

__all__ = ["BOOT_MAGIC", "HEADER_MAGIC", "SEARCHED", "Header", "find_header", "load_multiboot"]

HEADER_MAGIC = 0x1BADB002
BOOT_MAGIC = 0x2BADB002

#: Bytes of the file in which the header must be (section 3.1).
SEARCHED = 8192
#: Bits of the header's flags. Of bits 0-15 an unknown one must be refused (section 3.1.2).
_PAGE_ALIGN = 1 << 0
_MEMORY_INFO = 1 << 1
_VIDEO_MODE = 1 << 2
_ADDRESSES = 1 << 16
_UNDERSTOOD = _PAGE_ALIGN | _MEMORY_INFO | _VIDEO_MODE

#: Bits of the information structure's flags (section 3.3).
_HAS_MEMORY = 1 << 0
_HAS_COMMAND_LINE = 1 << 2
_HAS_MODULES = 1 << 3
_HAS_MAP = 1 << 6
_HAS_LOADER_NAME = 1 << 9
_HAS_FRAMEBUFFER = 1 << 12
_INFO_SIZE = 116

_EGA_TEXT = 2
_MIB1 = 1 << 20
_GIB4 = 1 << 32


class Header(msgspec.Struct, frozen=True):
    """A Multiboot header: its place in the file and its flags."""

    offset: int
    flags: int


def find_header(data: bytes) -> Header | None:
    """The first header in the first 8192 bytes, aligned to 4 bytes and with the right sum."""
    end = min(len(data), SEARCHED)
    magic = HEADER_MAGIC.to_bytes(4, "little")
    at = data.find(magic, 0, end)
    while at >= 0:
        if at % 4 == 0 and at + 12 <= end:
            flags, checksum = struct.unpack_from("<II", data, at + 4)
            if (HEADER_MAGIC + flags + checksum) & 0xFFFFFFFF == 0:
                return Header(at, flags)
        at = data.find(magic, at + 1, end)
    return None


def load_multiboot(
    data: bytes,
    *,
    memory: BootMemory,
    append: str = "",
    modules: Sequence[BootModule] = (),
    text_mode: bool = False,
) -> LoadedImage:
    """The kernel `data` with its information structure.

    The command line is the image's name and `append`, as GRUB and QEMU have it. Modules lie
    behind the kernel and above 1 MiB, on pages. Arguments are those of `load_kernel`.
    Raises ImageError for a kernel that is damaged, wants what the machine has not, or does not
    fit.
    """
    name = memory.name
    header = find_header(data)
    if header is None:
        raise ImageError(
            f"{name} has no Multiboot header",
            hint="it lies in the first 8192 bytes, aligned to 4; check the linker script",
        )
    _check_flags(name, header.flags, text_mode=text_mode)
    image = _by_addresses(data, name, header.offset) if header.flags & _ADDRESSES else _by_elf(data, name)
    for segment in image.segments:
        memory.claim(segment)
    behind = max(_MIB1, *(segment.end for segment in image.segments))
    image.registers = {"rax": BOOT_MAGIC, "rbx": _put_info(memory, append, modules, behind, text_mode)}
    image.state_changes = memory.flat32(code=0x08, data=0x10)
    image.segments = memory.segments
    return image


def _check_flags(name: str, flags: int, *, text_mode: bool) -> None:
    unknown = flags & 0xFFFF & ~_UNDERSTOOD
    if unknown:
        bits = ", ".join(str(bit) for bit in range(16) if unknown >> bit & 1)
        raise ImageError(
            f"{name} requires the Multiboot feature of bit {bits} of its header's flags, "
            "which the specification 0.6.96 does not define",
            hint="clear the bit; bits 16-31 are those that a loader may ignore",
        )
    if flags & _VIDEO_MODE and not text_mode:
        raise ImageError(
            f"{name} requires a video mode (bit 2 of its Multiboot header's flags), and there is no screen",
            hint="clear the bit, or take a machine with a screen",
        )


def _by_elf(data: bytes, name: str) -> LoadedImage:
    if not data.startswith(ELF_MAGIC):
        raise ImageError(
            f"{name} has a Multiboot header without addresses (bit 16 of its flags), and is no ELF file",
            hint="link it as an ELF32 file, or give the addresses",
        )
    if data[4:5] == b"\2":
        raise ImageError(
            f"{name} is an ELF64 file, and Multiboot enters 32-bit code of an ELF32",
            hint="objcopy -O elf32-i386, or give addresses in the header (bit 16 of its flags)",
        )
    return load_elf(data, name=name, mode="p32", bare=False)


def _by_addresses(data: bytes, name: str, at: int) -> LoadedImage:
    """What the header's five addresses say (section 3.1.3)."""
    if len(data) < at + 32:
        raise _truncated(name, len(data), at + 32)
    header_at, load_at, load_end, bss_end, entry = struct.unpack_from("<IIIII", data, at + 12)
    start = at - (header_at - load_at)
    if header_at < load_at or start < 0:
        raise _damaged(
            name, f"load_addr is {load_at:#x} and header_addr {header_at:#x}, {at} bytes into the file"
        )
    if load_end and load_end < load_at:
        raise _damaged(name, f"load_end_addr is {load_end:#x}, below load_addr {load_at:#x}")
    count = load_end - load_at if load_end else len(data) - start
    if len(data) < start + count:
        raise _truncated(name, len(data), start + count)
    if bss_end and bss_end < load_at + count:
        raise _damaged(name, f"bss_end_addr is {bss_end:#x}, and the data end at {load_at + count:#x}")
    size = bss_end - load_at if bss_end else count
    if not load_at <= entry < load_at + size:
        raise _damaged(name, f"entry_addr is {entry:#x}, where nothing is loaded")
    segment = ImageSegment(load_at, data[start : start + count], size, "kernel")
    return LoadedImage(name=name, segments=[segment], entry=entry, mode="p32")


def _put_info(
    memory: BootMemory, append: str, modules: Sequence[BootModule], behind: int, text_mode: bool
) -> int:
    """Place the information structure (section 3.3) and all it points to. Returns its address."""
    flags = _HAS_MEMORY | _HAS_COMMAND_LINE | _HAS_MODULES | _HAS_MAP | _HAS_LOADER_NAME
    info = bytearray(_INFO_SIZE)
    struct.pack_into("<II", info, 4, memory.low_size >> 10, min(memory.upper_size >> 10, 0xFFFFFFFF))
    line = f"{memory.name} {append}" if append else memory.name
    struct.pack_into("<I", info, 16, memory.put(c_string(line, "command line"), "the command line"))
    table = b"".join(_module(memory, module, behind) for module in modules)
    if table:
        struct.pack_into("<II", info, 20, len(modules), memory.put(table, "the list of modules"))
    # An entry's size does not count the field that it stands in.
    entries = b"".join(
        struct.pack("<IQQI", 20, gpa, min(size, (1 << 64) - 1), kind) for gpa, size, kind in memory.entries
    )
    struct.pack_into("<II", info, 44, len(entries), memory.put(entries, "the memory map"))
    struct.pack_into("<I", info, 64, memory.put(b"vmmsim\0", "the loader's name"))
    if text_mode:
        flags |= _HAS_FRAMEBUFFER
        struct.pack_into("<QIIIBB", info, 88, 0xB8000, 160, 80, 25, 16, _EGA_TEXT)
    struct.pack_into("<I", info, 0, flags)
    return memory.put(bytes(info), "the Multiboot information")


def _module(memory: BootMemory, module: BootModule, behind: int) -> bytes:
    """Place a module and its string. Returns its entry of the list of modules."""
    at = memory.put(module.data, "a module", low=behind, high=_GIB4, align=PAGE_SIZE)
    text_at = memory.put(c_string(module.text, "string of a module"), "the string of a module")
    # mod_end is the address of the first byte behind.
    return struct.pack("<IIII", at, at + len(module.data), text_at, 0)


def _truncated(name: str, size: int, wanted: int) -> ImageError:
    return ImageError(
        f"{name} is a truncated Multiboot kernel: {size} bytes of at least {wanted}",
        hint="build or copy it again",
    )


def _damaged(name: str, what: str) -> ImageError:
    return ImageError(f"{name}: its Multiboot header is wrong: {what}", hint="check the linker script")
