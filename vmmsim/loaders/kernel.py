"""Kernels that a boot protocol starts: which one it is, and the loader for it.

Told apart as QEMU's -kernel does: a Linux bzImage by its setup header, then a Multiboot
header, then an ELF file with the note of PVH.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ImageError, UsageError
from .elf import MAGIC as ELF_MAGIC
from .image import BootMemory, BootModule, E820Like, LoadedImage
from .linux import is_bzimage, load_linux
from .multiboot import find_header, load_multiboot
from .near_miss import multiboot_near_miss, pvh_near_miss
from .pvh import load_pvh, note_segments, pvh_entry

__all__ = ["kernel_format", "load_kernel", "split_modules"]

_MULTIBOOT2 = (0xE85250D6).to_bytes(4, "little")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x02\x21\x4c\x18": "lz4",
    b"BZh": "bzip2",
}


def kernel_format(data: bytes, *, name: str = "image") -> str:
    """`bzImage`, `multiboot` or `pvh`.

    Raises ImageError, saying what it looks like instead, for anything else.
    """
    if is_bzimage(data):
        return "bzImage"
    if find_header(data) is not None:
        return "multiboot"
    if pvh_entry(data) is not None:
        return "pvh"
    if not data:
        raise ImageError(f"{name} is empty", hint="give a bzImage, a Multiboot kernel or a vmlinux")
    if any(data[at : at + 4] == _MULTIBOOT2 for at in range(0, min(len(data), 32768), 8)):
        raise ImageError(
            f"{name} is a Multiboot 2 kernel, and vmmsim loads Multiboot 1",
            hint="build it with a Multiboot 1 header too (magic 0x1BADB002)",
        )
    why = multiboot_near_miss(data) or next(filter(None, map(pvh_near_miss, note_segments(data))), "")
    if why:
        raise ImageError(
            f"{name} is no kernel that can be booted: {why}",
            hint="check the linker script, or what makes it (Linux: CONFIG_PVH=y)",
        )
    if data.startswith(ELF_MAGIC):
        raise ImageError(
            f"{name} is an ELF file with no Multiboot header and no PVH note, so nothing says how to boot it",
            hint="build Linux with CONFIG_PVH=y, or give its bzImage; a program for the bare CPU "
            "needs no boot protocol: run it as an image",
        )
    for magic, kind in _COMPRESSED.items():
        if data.startswith(magic):
            raise ImageError(f"{name} is compressed with {kind}", hint="unpack it first")
    if data[56:60] == b"ARM\x64":
        raise ImageError(f"{name} is a Linux kernel for AArch64", hint="give one for x86")
    raise ImageError(
        f"{name} is no kernel: it has no Linux setup header, no Multiboot header and is no ELF file",
        hint="give a bzImage, a Multiboot kernel or a vmlinux; it may be truncated",
    )


def load_kernel(
    data: bytes,
    *,
    name: str,
    memory_size: int,
    e820: Sequence[E820Like] | None = None,
    initrd: bytes | None = None,
    append: str = "",
    modules: Sequence[BootModule] = (),
    acpi_rsdp: int = 0,
    text_mode: bool = False,
    path: Path | None = None,
) -> LoadedImage:
    """The kernel `data` and what its boot protocol hands over, for a machine of `memory_size`
    bytes.

    `e820` is its memory map (see `BootMemory` for the default), `append` the command line.
    `initrd` comes before the `modules`: Linux takes one of all, Multiboot and PVH any
    number. `acpi_rsdp` is the guest-physical address of the RSDP, 0 for none. `text_mode`
    tells the kernel that there is a colour text screen of 80x25 at B8000h.

    Raises ImageError for what is no kernel, is damaged, or does not fit; UsageError for a
    bad memory map or a NUL in a string.
    """
    kind = kernel_format(data, name=name)
    memory = BootMemory(name, memory_size, e820)
    files = [BootModule(initrd), *modules] if initrd is not None else list(modules)
    if kind == "multiboot":
        image = load_multiboot(data, memory=memory, append=append, modules=files, text_mode=text_mode)
    elif kind == "pvh":
        image = load_pvh(data, memory=memory, append=append, modules=files, acpi_rsdp=acpi_rsdp)
    else:
        if len(files) > 1:
            raise UsageError(
                f"{name}: {len(files)} modules for a Linux kernel, which takes one initrd",
                hint="join the cpio archives: cat a.cpio b.cpio",
            )
        image = load_linux(
            data,
            memory=memory,
            initrd=files[0].data if files else None,
            append=append,
            acpi_rsdp=acpi_rsdp,
            text_mode=text_mode,
        )
    image.path = path
    return image


def split_modules(text: str) -> list[tuple[str, str]]:
    """The modules of `FILE args,FILE2` as QEMU's -initrd has them for a Multiboot kernel.

    Each is the file's path and the module's string, which is path and arguments. A comma
    in either is written twice. Raises UsageError for a module without a path.
    """
    parts = [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
    for part in parts:
        if not part.split(" ", 1)[0]:
            raise UsageError(f"'{text}' names a module without a file", hint="write FILE args,FILE2")
    return [(part.split(" ", 1)[0], part) for part in parts]
