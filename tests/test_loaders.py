"""Loaders: what a user gives on the command line, good and bad."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.errors import ImageError, ImageNotFound, UsageError, VmmsimError
from vmmsim.loaders import ImageSegment, LoadedImage, load_bytes, load_file
from vmmsim.memory import GuestMemory

EM_386, EM_X86_64, EM_AARCH64 = 3, 62, 183
Segments = list[tuple[int, bytes, int]]


def make_elf(machine: int, entry: int, segments: Segments, symbols: dict[str, int] | None = None) -> bytes:
    """An executable by the System V ABI: header, PT_LOAD headers, .symtab, .strtab, .shstrtab."""
    wide = machine != EM_386
    head, ph_size, sh_size = (64, 56, 64) if wide else (52, 32, 40)
    at = head + ph_size * len(segments)
    headers, body = b"", b""
    for paddr, data, size in segments:
        # The virtual address is another one: a loader must take the physical.
        vaddr = paddr + 0x40000000
        if wide:
            headers += struct.pack("<IIQQQQQQ", 1, 7, at + len(body), vaddr, paddr, len(data), size, 1)
        else:
            headers += struct.pack("<IIIIIIII", 1, at + len(body), vaddr, paddr, len(data), size, 7, 1)
        body += data
    strings, table = b"\0", b"\0" * (24 if wide else 16)
    for name, value in (symbols or {}).items():
        place = len(strings)
        strings += name.encode() + b"\0"
        if wide:
            table += struct.pack("<IBBHQQ", place, 0x12, 0, 1, value, 0)
        else:
            table += struct.pack("<IIIBBH", place, value, 0, 0x12, 0, 1)
    names = b"\0.symtab\0.strtab\0.shstrtab\0"
    table_at = at + len(body)
    strings_at = table_at + len(table)
    names_at = strings_at + len(strings)
    entry_size = 24 if wide else 16
    form = "<IIQQQQIIQQ" if wide else "<IIIIIIIIII"
    sections = b"\0" * sh_size
    sections += struct.pack(form, 1, 2, 0, 0, table_at, len(table), 2, 1, 8, entry_size)
    sections += struct.pack(form, 9, 3, 0, 0, strings_at, len(strings), 0, 0, 1, 0)
    sections += struct.pack(form, 17, 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    rest = (2, machine, 1, entry, head, names_at + len(names), 0, head, ph_size, len(segments), sh_size, 4, 3)
    header = ident + struct.pack("<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH", *rest)
    return header + headers + body + table + strings + names + sections


def memory_of(size: int, hole: tuple[int, int] | None = None) -> GuestMemory:
    memory = GuestMemory()
    if hole:
        memory.add(0, hole[0])
        memory.add(hole[1], size - hole[1])
    else:
        memory.add(0, size)
    return memory


SOUND = make_elf(EM_X86_64, 0x100010, [(0x100000, b"code" * 8, 0x1000)], {"start": 0x100010})


def test_a_flat_file_is_a_boot_sector(tmp_path: Path) -> None:
    path = tmp_path / "boot.bin"
    path.write_bytes(b"\xf4")
    image = load_file(path)
    assert (image.name, image.entry, image.mode, image.path) == ("boot.bin", 0x7C00, "real", path)
    memory = memory_of(0x10000)
    image.place(memory)
    assert memory[0x7C00] == 0xF4


def test_a_flat_file_goes_where_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "code"
    path.write_bytes(b"\x90\xf4")
    image = load_file(str(path), load_address=0x2000, mode="p32", entry=0x2001)
    assert image.segments == [ImageSegment(0x2000, b"\x90\xf4", 2, "image")]
    assert (image.entry, image.mode) == (0x2001, "p32")


@pytest.mark.parametrize(("machine", "mode"), [(EM_386, "p32"), (EM_X86_64, "l64")])
def test_elf_goes_to_physical_addresses(tmp_path: Path, machine: int, mode: str) -> None:
    path = tmp_path / "kernel.elf"
    segments = [(0x2000, b"text", 4), (0x3000, b"data", 0x20)]
    path.write_bytes(make_elf(machine, 0x2002, segments, {"start": 0x2000, "table": 0x3000}))
    image = load_file(path)
    assert (image.entry, image.mode) == (0x2002, mode)
    assert image.symbols == {"start": 0x2000, "table": 0x3000}
    memory = memory_of(0x8000)
    memory.write(0x3000, b"\xcc" * 0x40)
    image.place(memory)
    assert memory.read(0x2000, 4) == b"text"
    assert memory.read(0x3000, 0x21) == b"data" + bytes(0x1C) + b"\xcc", ".bss is cleared, and no more"


def test_a_virtual_entry_moves_with_its_segment() -> None:
    image = load_bytes(make_elf(EM_X86_64, 0x40002002, [(0x2000, b"text", 4), (0x9000, b"more", 4)]))
    assert image.entry == 0x2002


def test_mode_and_entry_replace_what_the_elf_says() -> None:
    image = load_bytes(SOUND, mode="l64u", entry=0x100004)
    assert (image.mode, image.entry) == ("l64u", 0x100004)


def test_symbol_at_is_the_nearest_below() -> None:
    image = LoadedImage("k", [], 0, "p32", {"a": 0x100, "b": 0x200})
    found = [image.symbol_at(at) for at in (0xFF, 0x100, 0x1FF, 0x200)]
    assert found == [None, "a", "a+0xff", "b"]


def test_no_such_image(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound, match="there is no image") as error:
        load_file(tmp_path / "nothing")
    assert error.value.exit_code == 127
    assert "vmmsim guests" in error.value.hint
    with pytest.raises(ImageNotFound):
        load_file("a\0b")


def test_empty_image_and_directory(tmp_path: Path) -> None:
    empty = tmp_path / "empty.bin"
    empty.touch()
    with pytest.raises(ImageError, match=r"empty\.bin is empty"):
        load_file(empty)
    with pytest.raises(ImageError, match=r"is no image file|is a directory"):
        load_file(tmp_path)
    with pytest.raises(ImageError):
        load_file(empty / "below")


def test_unreadable_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "secret"
    path.write_bytes(b"\xf4")
    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read everything
    with pytest.raises(ImageError, match="permission denied"):
        load_file(path)


@pytest.mark.parametrize("load", [-1, 1 << 48])
def test_load_address_that_is_none(load: int) -> None:
    with pytest.raises(UsageError, match="load address"):
        load_bytes(b"\xf4", load_address=load)


def test_load_address_for_an_elf_is_refused() -> None:
    with pytest.raises(UsageError, match="says itself where it goes"):
        load_bytes(SOUND, load_address=0x1000)


def test_truncated_elf_says_so() -> None:
    for length in (4, 5, 20, 63):
        with pytest.raises(ImageError, match="truncated ELF file"):
            load_bytes(SOUND[:length], name="k")
    with pytest.raises(ImageError, match=r"truncated ELF file: segment 0 ends at byte 152 of 130"):
        load_bytes(SOUND[:130], name="k")


def test_elf_for_another_machine() -> None:
    with pytest.raises(ImageError, match="is an ELF file for AArch64, not for x86"):
        load_bytes(make_elf(EM_AARCH64, 0, [(0, b"x", 1)]))
    big_endian = bytearray(SOUND)
    big_endian[5] = 2
    big_endian[18:20] = (8).to_bytes(2, "big")
    with pytest.raises(ImageError, match="for MIPS"):
        load_bytes(bytes(big_endian))


def test_elf_with_nothing_to_load() -> None:
    with pytest.raises(ImageError, match="nothing to load") as error:
        load_bytes(make_elf(EM_X86_64, 0, []))
    assert "object file" in error.value.hint


def test_elf_segment_larger_in_the_file_than_in_memory() -> None:
    with pytest.raises(ImageError, match="4 bytes in the file and 2 in memory"):
        load_bytes(make_elf(EM_X86_64, 0, [(0x2000, b"text", 2)]))


def test_image_outside_memory_changes_nothing() -> None:
    image = load_bytes(make_elf(EM_X86_64, 0, [(0x2000, b"text", 4), (0x9000, b"data", 4)]), name="k.elf")
    memory = memory_of(0x8000)
    with pytest.raises(ImageError, match=r"k\.elf: segment 1 \(4 bytes at 0x9000\) does not fit .* 32 KiB"):
        image.place(memory)
    assert memory.read(0, 0x8000) == bytes(0x8000)


def test_image_over_a_hole_or_larger_than_memory() -> None:
    with pytest.raises(ImageError, match="does not fit"):
        load_bytes(bytes(0x3000), load_address=0).place(memory_of(0x8000, hole=(0x1000, 0x2000)))
    with pytest.raises(ImageError, match=r"65537 bytes at 0x0.* 64 KiB"):
        load_bytes(bytes(0x10001), load_address=0).place(memory_of(0x10000))
    # A size that no host has must be refused by arithmetic, not by trying.
    with pytest.raises(ImageError, match="does not fit"):
        load_bytes(make_elf(EM_X86_64, 0, [(0x2000, b"x", 1 << 46)])).place(memory_of(0x8000))


@given(data=st.data())
def test_a_damaged_elf_is_an_error_of_ours_or_an_image(data: st.DataObject) -> None:
    """Whatever bytes follow the magic, no exception of pyelftools or struct gets out."""
    blob = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(4, len(blob) - 1))] = data.draw(st.integers(0, 255))
    blob = blob[: data.draw(st.integers(4, len(blob)))]
    try:
        image = load_bytes(bytes(blob))
    except VmmsimError:
        return
    assert image.segments
