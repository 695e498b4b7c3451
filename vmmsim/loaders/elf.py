"""ELF32 and ELF64 executables for x86, read by pyelftools.

Each PT_LOAD program header is stored at its physical address, its memory size filled up
with zeros (System V ABI, chapter 5, "Program Header"). The entry is the file's, in flat
32-bit protected mode for an ELF32 and in long mode for an ELF64. Where it is a virtual
address of a segment that lies elsewhere physically, as kernels that are linked high have
it, it is moved along, since the presets map memory onto itself. Symbols are .symtab's, as
they are.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any, Literal

from ..errors import ImageError
from .image import ImageSegment, LoadedImage

__all__ = ["MAGIC", "load_elf"]

MAGIC = b"\x7fELF"

_HEADER_SIZE = {1: 52, 2: 64}
_ET_CORE = 4
_EM_386 = 3
_EM_X86_64 = 62
_MACHINES = {2: "SPARC", 4: "68000", 8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "S390", 40: "ARM"}
_MACHINES |= {183: "AArch64", 243: "RISC-V"}
#: Symbols that name a place in the guest: functions, objects, and labels with no type.
_NAMED = ("STT_FUNC", "STT_OBJECT", "STT_NOTYPE")


def load_elf(
    data: bytes,
    *,
    name: str,
    mode: str | None = None,
    entry: int | None = None,
    path: Path | None = None,
    bare: bool = True,
) -> LoadedImage:
    """The image of an ELF file's bytes. `mode` and `entry` replace what the file says.

    A section or symbol table that cannot be read costs the symbols, with a warning in the image: like
    Linux's own loader this one needs the program headers only. Raises ImageError for a file that is
    truncated or damaged, is for another machine, is a core dump, or has nothing to load; with `bare` also
    for a program of an operating system.
    """
    from elftools.common.exceptions import ELFError

    machine = _check_header(data, name)
    try:
        return _read(data, name, machine, mode, entry, path, bare)
    except (
        ELFError,
        struct.error,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        # pyelftools meets damage in many ways; all of them mean the same to the caller.
        raise ImageError(
            f"{name} is a damaged ELF file: {error or type(error).__name__}", hint="build or copy it again"
        ) from error


def _check_header(data: bytes, name: str) -> int:
    """The machine number, after what can be said before parsing."""
    size = _HEADER_SIZE.get(data[4], 64) if len(data) > 4 else 64
    if len(data) < size:
        raise ImageError(
            f"{name} is a truncated ELF file: {len(data)} bytes, and its header alone has {size}",
            hint="build or copy it again",
        )
    if data[4] not in _HEADER_SIZE or data[5] not in (1, 2):
        raise ImageError(
            f"{name} is a damaged ELF file: class {data[4]}, byte order {data[5]}",
            hint="build or copy it again",
        )
    order: Literal["little", "big"] = "little" if data[5] == 1 else "big"
    kind = int.from_bytes(data[16:18], order)
    machine = int.from_bytes(data[18:20], order)
    if machine not in (_EM_386, _EM_X86_64) or data[5] != 1:
        what = _MACHINES.get(machine, f"machine {machine}")
        if machine in (_EM_386, _EM_X86_64):
            what = "x86 with its numbers big-endian"
        raise ImageError(f"{name} is an ELF file for {what}, not for x86", hint="build it for i386 or x86-64")
    if kind == _ET_CORE:
        raise ImageError(
            f"{name} is a core dump, the memory of a program that ended, and no program",
            hint="give the program's own file",
        )
    return machine


def _read(
    data: bytes, name: str, machine: int, mode: str | None, entry: int | None, path: Path | None, bare: bool
) -> LoadedImage:
    elf, symbols, warnings = _open(data, name)
    start_at = elf.header["e_entry"]
    segments = []
    for number, header in enumerate(elf.iter_segments()):
        if header["p_type"] != "PT_LOAD" or not header["p_memsz"]:
            continue
        label = f"segment {number}"
        start, count, size = header["p_offset"], header["p_filesz"], header["p_memsz"]
        if start + count > len(data):
            raise ImageError(
                f"{name} is a truncated ELF file: {label} ends at byte {start + count} of {len(data)}",
                hint="build or copy it again",
            )
        if count > size:
            raise ImageError(
                f"{name}: {label} has {count} bytes in the file and {size} in memory",
                hint="build or copy it again",
            )
        segments.append(ImageSegment(header["p_paddr"], data[start : start + count], size, label))
        if 0 <= elf.header["e_entry"] - header["p_vaddr"] < size:
            start_at = elf.header["e_entry"] - header["p_vaddr"] + header["p_paddr"]
    if bare:
        _check_bare(elf, name)
    if not segments:
        raise ImageError(
            f"{name} is an ELF file with nothing to load",
            hint="link it as an executable: an object file (.o) has no PT_LOAD segments",
        )
    return LoadedImage(
        name=name,
        segments=segments,
        entry=start_at if entry is None else entry,
        mode=mode or ("l64" if machine == _EM_X86_64 else "p32"),
        symbols=symbols,
        path=path,
        warnings=warnings,
    )


def _check_bare(elf: Any, name: str) -> None:
    """ImageError for a program of an operating system: it would need a dynamic loader or system calls.
    What says so: PT_INTERP, and the notes that C's and Go's start-up code bring along (ELF note "GNU", type
    NT_GNU_ABI_TAG; "Go")."""
    for segment in elf.iter_segments():
        what = ""
        if segment["p_type"] == "PT_INTERP":
            what = f"a program that is dynamically linked (its loader is {segment.get_interp_name()})"
        elif segment["p_type"] == "PT_NOTE":
            for note in _notes(segment):
                if (note["n_name"], note["n_type"]) == ("GNU", "NT_GNU_ABI_TAG"):
                    what = "a program for an operating system (its note NT_GNU_ABI_TAG says so)"
                elif note["n_name"] == "Go":
                    what = "a Go program for an operating system"
        if what:
            raise ImageError(
                f"{name} is {what}, and here is none: its first system call would go nowhere",
                hint="put it into an initrd, and boot that with --kernel and --initrd; or link it with "
                "-nostdlib -static as code for the bare CPU",
            )


def _notes(segment: Any) -> list[Any]:
    """The notes of a segment; none where they are damaged, since nothing is loaded by them."""
    try:
        return list(segment.iter_notes())
    except Exception:  # pyelftools meets damage in many ways
        return []


def _open(data: bytes, name: str) -> tuple[Any, dict[str, int], list[str]]:
    """(the file, its symbols, warnings): without sections where those cannot be read."""
    from elftools.elf.elffile import ELFFile

    try:
        elf: Any = ELFFile(io.BytesIO(data))
        return elf, _symbols(elf), []
    except Exception as error:  # pyelftools meets damage in many ways
        why = str(error) or type(error).__name__
    wide = data[4] == 2
    header = bytearray(data)
    struct.pack_into("<Q" if wide else "<I", header, 0x28 if wide else 0x20, 0)  # e_shoff
    header[0x3A if wide else 0x2E : 0x40 if wide else 0x34] = bytes(6)  # e_shentsize, e_shnum, e_shstrndx
    return (
        ELFFile(io.BytesIO(bytes(header))),
        {},
        [f"{name} is loaded without symbols: its section or symbol table cannot be read ({why})"],
    )


def _symbols(elf: Any) -> dict[str, int]:
    table = elf.get_section_by_name(".symtab")
    if table is None:
        return {}
    return {
        symbol.name: symbol["st_value"]
        for symbol in table.iter_symbols()
        if symbol.name and symbol["st_info"]["type"] in _NAMED and symbol["st_shndx"] != "SHN_UNDEF"
    }
