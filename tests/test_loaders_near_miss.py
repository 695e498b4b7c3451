"""Files that are nearly what was asked for: the error says which rule they miss, and what to do."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from cli_tools import vmmsim
from test_loaders import EM_386, EM_X86_64, make_elf
from test_loaders_linux import bzimage, note, vmlinux
from test_loaders_multiboot import MIB, Booted, elf32, load

from vmmsim.errors import ImageError
from vmmsim.loaders import kernel_format, load_bytes

MAGIC = 0x1BADB002
CODE = [(0x8000, b"\x90\xf4", 2)]


def header(checksum: int = -MAGIC & 0xFFFFFFFF) -> bytes:
    return struct.pack("<III", MAGIC, 0, checksum)


def test_a_multiboot_kernel_starts_with_the_selectors_of_other_loaders() -> None:
    # GRUB and QEMU: a kernel whose own GDT is {0, code, data} and which never reloads CS lives on there.
    cpu = Booted(load(elf32(0))).cpu
    assert [s.selector for s in (cpu.cs, cpu.ds, cpu.es, cpu.ss, cpu.fs, cpu.gs)] == [8] + [0x10] * 5
    assert cpu.tr.selector == 0x18


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (bytes(8192) + header(), "offset 0x2000, beyond the first 8192 bytes"),
        (bytes(8190) + header(), "not aligned to 4"),
        (bytes(66) + header(), "offset 0x42, which is not aligned to 4"),
        (bytes(64) + header(5), "the checksum 0x5, which should be 0xe4524ffe"),
    ],
)
def test_a_multiboot_header_that_is_none(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        kernel_format(data + bytes(64), name="kernel")


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (struct.pack("<III4sI", 3, 4, 18, b"Xen", MIB), "without the NUL"),
        (note(18, bytes(2)), "2 bytes, and an address has 4 or 8"),
    ],
)
def test_a_pvh_note_that_is_none(one: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        kernel_format(vmlinux(notes=one), name="kernel")


def test_a_bzimage_without_kernel(tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(bzimage())
    done = vmmsim("run", tmp_path / "bzImage", "-b", "unicorn")
    assert done.returncode == 125
    assert "give it with --kernel bzImage" in done.stderr.decode()
    # Who says how it is to be run means it.
    assert load_bytes(bzimage(), name="bzImage", mode="real").entry == 0x7C00


def test_a_text_file_is_no_code() -> None:
    with pytest.raises(ImageError, match="is a text file") as caught:
        load_bytes(b"; a guest\nmov al, 1\nhlt\n", name="guest.asm")
    assert "vmmsim asm" in caught.value.hint
    assert load_bytes(b"; a guest\nmov al, 1\nhlt\n", name="guest.asm", mode="real")
    assert load_bytes(b"XYZ\n", name="short")


def with_header(kind: int, offset: int, data: bytes) -> bytes:
    """make_elf's file with one more program header, of `kind`, over the bytes `data` behind its end."""
    image = bytearray(make_elf(EM_X86_64, 0x8000, [*CODE, (0x9000, data, len(data))]))
    at = 64 + 56
    struct.pack_into("<I", image, at, kind)
    return bytes(image)


ABI_TAG = struct.pack("<III4s4I", 4, 16, 1, b"GNU\0", 0, 3, 2, 0)


@pytest.mark.parametrize(
    ("kind", "data", "says"),
    [
        (3, b"/lib64/ld-linux-x86-64.so.2\0", "dynamically linked .*ld-linux-x86-64"),
        (4, ABI_TAG, "NT_GNU_ABI_TAG"),
        (4, struct.pack("<III4s4s", 3, 4, 4, b"Go\0\0", b"abcd"), "a Go program"),
    ],
)
def test_a_program_of_an_operating_system(kind: int, data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        load_bytes(with_header(kind, 0, data), name="program")
    assert "initrd" in caught.value.hint


def test_a_build_id_is_no_operating_systems() -> None:
    build_id = struct.pack("<III4s", 4, 4, 3, b"GNU\0") + b"abcd"
    assert load_bytes(with_header(4, 0, build_id), name="guest").entry == 0x8000


def test_a_core_dump_is_no_program() -> None:
    image = bytearray(make_elf(EM_X86_64, 0x8000, CODE))
    image[16] = 4  # ET_CORE
    with pytest.raises(ImageError, match="core dump"):
        load_bytes(bytes(image), name="core")


def test_big_endian_x86_is_called_so() -> None:
    image = bytearray(make_elf(EM_X86_64, 0x8000, CODE))
    image[5] = 2
    image[16:20] = struct.pack(">HH", 2, 62)
    with pytest.raises(ImageError, match="x86 with its numbers big-endian"):
        load_bytes(bytes(image), name="guest")


@pytest.mark.parametrize("machine", [EM_386, EM_X86_64])
@pytest.mark.parametrize("what", ["offset", "index", "table"])
def test_a_damaged_section_table_costs_the_symbols_only(machine: int, what: str) -> None:
    whole = make_elf(machine, 0x8000, CODE, {"start": 0x8000})
    wide = machine == EM_X86_64
    image = bytearray(whole)
    at = struct.unpack_from("<Q" if wide else "<I", whole, 0x28 if wide else 0x20)[0]
    if what == "offset":  # of the section headers: far behind the end
        struct.pack_into("<I", image, 0x28 if wide else 0x20, 0x7FFFFFFF)
    elif what == "index":  # of the section with the names
        struct.pack_into("<H", image, 0x3E if wide else 0x32, 77)
    else:  # the symbol table lies behind the end
        struct.pack_into("<I", image, at + (64 + 24 if wide else 40 + 16), 0x7FFFFFFF)
    loaded = load_bytes(bytes(image), name="guest")
    assert [s.data for s in loaded.segments] == [s.data for s in load_bytes(whole, name="guest").segments]
    assert loaded.symbols == {}
    assert [w for w in loaded.warnings if "guest is loaded without symbols" in w] == loaded.warnings != []


def test_the_command_line_says_the_warning(tmp_path: Path) -> None:
    image = bytearray(make_elf(EM_386, 0x8000, CODE))
    struct.pack_into("<H", image, 0x32, 77)
    (tmp_path / "guest").write_bytes(image)
    done = vmmsim("run", tmp_path / "guest", "-b", "unicorn")
    assert done.returncode == 0
    assert "warning: guest is loaded without symbols" in done.stderr.decode()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("-kernel bzImage", "--kernel FILE"),
        ("-append x", "--append TEXT"),
        ("-nographic loop", "there is no screen"),
        ("-drive file=x loop", "there are no disks"),
        ("--smp 2 loop", "--cpus N"),
        ("-smp 2 loop", "--cpus N"),
    ],
)
def test_qemus_spellings_are_understood(words: str, hint: str) -> None:
    done = vmmsim("run", *words.split())
    assert done.returncode == 125
    assert f"'{words.split()[0]}' is QEMU's; here: {hint}" in done.stderr.decode()
