"""ELF kernels by the PVH boot ABI: Linux's vmlinux, and whatever else has Xen's note.

The sources are Xen's docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h (struct
hvm_start_info, version 1). The entry is in the ELF note XEN_ELFNOTE_PHYS32_ENTRY, name
"Xen", type 18: a physical address, entered in flat 32-bit protected mode with the address
of hvm_start_info in EBX.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from ..errors import ImageError
from ..memory import PAGE_SIZE
from .elf import MAGIC, load_elf
from .image import BootMemory, BootModule, LoadedImage, c_string

__all__ = ["START_MAGIC", "load_pvh", "note_segments", "pvh_entry"]

START_MAGIC = 0x336EC578
_VERSION = 1
_PT_NOTE = 4
_PHYS32_ENTRY = 18
_OWNER = b"Xen\0"
#: Of each segment of notes so many bytes are looked at; Linux's has some hundred.
_NOTES_READ = 64 << 10
_MIB1 = 1 << 20
_GIB4 = 1 << 32
#: Where modules end: the last byte that a 64-bit Linux takes an initrd at (initrd_addr_max),
#: and for a 32-bit one what it always maps.
_TOP = {1: 0x38000000, 2: 0x80000000}


def pvh_entry(data: bytes) -> int | None:
    """The physical address in the PVH note of an ELF file for x86, or None.

    What cannot be read, in a truncated file for one, is no note.
    """
    for notes in note_segments(data):
        entry = _in_notes(notes)
        if entry is not None:
            return entry
    return None


def note_segments(data: bytes) -> Iterator[bytes]:
    """The first 64 KiB of each PT_NOTE segment of an ELF file for x86; none of what cannot be read."""
    if data[:4] != MAGIC or data[4:5] not in (b"\1", b"\2"):
        return
    wide = data[4] == 2
    try:
        table = struct.unpack_from("<Q" if wide else "<I", data, 0x20 if wide else 0x1C)[0]
        entry_size, count = struct.unpack_from("<HH", data, 0x36 if wide else 0x2A)
        if entry_size < (56 if wide else 32):
            return
        for number in range(count):
            at = table + number * entry_size
            if struct.unpack_from("<I", data, at)[0] != _PT_NOTE:
                continue
            if wide:
                offset, size = struct.unpack_from("<Q16xQ", data, at + 8)
            else:
                offset, size = struct.unpack_from("<I8xI", data, at + 4)
            yield data[offset : offset + min(size, _NOTES_READ)]
    except (struct.error, OverflowError):
        return


def _in_notes(notes: bytes) -> int | None:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name_at = at + 12
        value_at = name_at + -(-name_size // 4) * 4
        if kind == _PHYS32_ENTRY and notes[name_at : name_at + name_size] == _OWNER and size in (4, 8):
            value = notes[value_at : value_at + size]
            return int.from_bytes(value, "little") if len(value) == size else None
        at = value_at + -(-size // 4) * 4
    return None


def load_pvh(
    data: bytes,
    *,
    memory: BootMemory,
    append: str = "",
    modules: Sequence[BootModule] = (),
    acpi_rsdp: int = 0,
) -> LoadedImage:
    """The ELF kernel `data` with its hvm_start_info, whose address is in EBX at the entry.

    The modules, of which Linux takes the first as its initrd, lie high in the RAM below
    2 GiB (896 MiB for an ELF32). Arguments are those of `load_kernel`. Raises ImageError
    for a file that is damaged or has no PVH note, and for what does not fit.
    """
    name = memory.name
    entry = pvh_entry(data)
    if entry is None:
        raise ImageError(
            f"{name} has no PVH note (XEN_ELFNOTE_PHYS32_ENTRY)",
            hint="build Linux with CONFIG_PVH=y, or give its bzImage",
        )
    image = load_elf(data, name=name, mode="p32", entry=entry, bare=False)
    if not any(segment.gpa <= entry < segment.end for segment in image.segments) or entry >= _GIB4:
        raise ImageError(
            f"{name} is damaged: its PVH note names {entry:#x}, where nothing is loaded",
            hint="build or copy it again",
        )
    for segment in image.segments:
        memory.claim(segment)
    command_at = memory.put(c_string(append, "command line"), "the command line")
    modlist = b"".join(_module(memory, module, _TOP[data[4]]) for module in modules)
    memmap = b"".join(
        struct.pack("<QQII", gpa, min(size, (1 << 64) - 1), kind, 0) for gpa, size, kind in memory.entries
    )
    info = struct.pack(
        "<IIIIQQQQII",
        START_MAGIC,
        _VERSION,
        0,
        len(modules),
        memory.put(modlist, "the list of modules") if modlist else 0,
        command_at,
        acpi_rsdp,
        memory.put(memmap, "the memory map") if memmap else 0,
        len(memory.entries),
        0,
    )
    image.registers = {"rbx": memory.put(info, "hvm_start_info")}
    image.state_changes = memory.flat32(code=0x08, data=0x10)
    image.segments = memory.segments
    return image


def _module(memory: BootMemory, module: BootModule, top: int) -> bytes:
    """Place a module and its string. Returns its struct hvm_modlist_entry."""
    at = memory.put(module.data, "a module", low=_MIB1, high=top, align=PAGE_SIZE, top=True)
    text_at = memory.put(c_string(module.text, "string of a module"), "the string of a module")
    return struct.pack("<QQQQ", at, len(module.data), text_at if module.text else 0, 0)
