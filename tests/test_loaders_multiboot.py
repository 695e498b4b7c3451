"""Multiboot kernels, against the Multiboot Specification 0.6.96; and how a kernel is told apart."""

from __future__ import annotations

import struct
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.cpu.modes import setup
from vmmsim.errors import ImageError, UsageError
from vmmsim.loaders import BootModule, LoadedImage, kernel_format, load_kernel, split_modules
from vmmsim.loaders.image import BootMemory, ImageSegment
from vmmsim.memory import GuestMemory

MIB = 1 << 20
CODE = b"\xfa\xf4" * 8
#: The RAM of a PC of 64 MiB, as the loader assumes it without a map.
MAP64 = [(0, 0xA0000, 1), (MIB, 63 * MIB, 1)]


def header(flags: int, *addresses: int) -> bytes:
    return struct.pack(
        f"<{3 + len(addresses)}I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF, *addresses
    )


def kludge(
    flags: int = 0, *, load: int = MIB, bss: int = 0x1000, entry: int | None = None, pad: int = 16
) -> bytes:
    """A file with `pad` bytes before its header, all of it loaded at `load`, and `bss` more bytes."""
    size = pad + 32 + len(CODE)
    entry = load + pad + 32 if entry is None else entry
    fields = (load + pad, load, load + size, load + size + bss if bss else 0, entry)
    return bytes(pad) + header(flags | 1 << 16, *fields) + CODE


def elf32(flags: int, *, at: int = MIB, bss: int = 0x100, machine: int = 3) -> bytes:
    """An ELF32 executable whose only segment is a Multiboot header and code."""
    body = header(flags) + CODE
    program = struct.pack("<8I", 1, 84, at, at, len(body), len(body) + bss, 7, 4)
    ident = b"\x7fELF\1\1\1" + bytes(9)
    rest = struct.pack("<HHIIIIIHHHHHH", 2, machine, 1, at + 12, 52, 0, 0, 52, 32, 1, 40, 0, 0)
    return ident + rest + program + body


def load(data: bytes, **arguments: object) -> LoadedImage:
    return load_kernel(data, name="kernel", **{"memory_size": 64 * MIB, **arguments})  # type: ignore[arg-type]


class Booted:
    """The guest's memory and CPU at the entry, and short names for what a kernel looks at."""

    def __init__(self, image: LoadedImage, size: int = 64 * MIB) -> None:
        self.memory = GuestMemory()
        self.memory.add(0, size)
        image.place(self.memory)
        self.cpu = image.enter(setup(image.mode, image.entry, size).state)
        self.info = self.cpu.rbx

    def u32(self, at: int) -> int:
        return self.memory.read_int(at, 4)

    def text(self, at: int) -> str:
        return self.memory.read(at, 256).split(b"\0")[0].decode()


def test_an_elf32_kernel_is_entered_as_the_specification_says() -> None:
    image = load(elf32(3))
    guest = Booted(image)
    cpu = guest.cpu
    assert cpu.rax == 0x2BADB002
    assert (cpu.mode, cpu.linear_rip) == ("p32", MIB + 12)
    assert cpu.cr0 & 0x80000001 == 1, "PE set, PG clear"
    assert cpu.rflags & (1 << 17 | 1 << 9) == 0, "VM and IF clear"
    assert (cpu.cs.base, cpu.cs.limit, cpu.cs.type & 8) == (0, 0xFFFFFFFF, 8)
    for segment in (cpu.ds, cpu.es, cpu.fs, cpu.gs, cpu.ss):
        assert (segment.base, segment.limit, segment.type & 0xA) == (0, 0xFFFFFFFF, 2)
    assert guest.memory.read(MIB + 12, len(CODE)) == CODE


def test_the_gdt_in_memory_is_what_the_segment_registers_hold() -> None:
    from vmmsim.cpu.descriptors import decode_descriptor

    guest = Booted(load(elf32(0)))
    cpu = guest.cpu
    for segment in (cpu.cs, cpu.ds, cpu.ss, cpu.tr):
        entry = guest.memory.read(cpu.gdt.base + segment.selector, 8)
        assert decode_descriptor(entry, segment.selector) == segment
        assert segment.selector + 7 <= cpu.gdt.limit


def test_the_information_structure_tells_memory_command_line_and_loader() -> None:
    guest = Booted(load(elf32(2), append="console=com1 x"))
    flags, lower, upper = (guest.u32(guest.info + 4 * n) for n in range(3))
    assert flags == 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    assert (lower, upper) == (640, 63 * 1024)
    assert guest.text(guest.u32(guest.info + 16)) == "kernel console=com1 x"
    assert guest.u32(guest.info + 20) == 0, "no modules"
    assert guest.text(guest.u32(guest.info + 64)) == "vmmsim"
    length, at = guest.u32(guest.info + 44), guest.u32(guest.info + 48)
    entries = []
    end = at + length
    while at < end:  # as section 3.3 has a kernel walk it
        entries.append(struct.unpack("<QQI", guest.memory.read(at + 4, 20)))
        at += guest.u32(at) + 4
    assert entries == MAP64
    assert at == end


def test_the_memory_map_may_be_given() -> None:
    e820 = [
        (0, 0x9FC00, 1),
        (0x9FC00, 0x400, 2),
        SimpleNamespace(gpa=MIB, size=7 * MIB, type=1),
        (9 * MIB, MIB, 1),
    ]
    guest = Booted(load(elf32(2), e820=e820))
    assert (guest.u32(guest.info + 4), guest.u32(guest.info + 8)) == (639, 7 * 1024), "up to the first hole"
    assert guest.u32(guest.info + 44) == 4 * 24


def test_modules_lie_on_pages_behind_the_kernel_with_their_strings() -> None:
    modules = [BootModule(b"one" * 2000, "first.img -v"), BootModule(b"", "empty"), BootModule(b"2", "two")]
    guest = Booted(load(elf32(1, bss=0x5000), modules=modules, initrd=b"zero"))
    count, at = guest.u32(guest.info + 20), guest.u32(guest.info + 24)
    assert count == 4
    before = MIB + 0x5000
    for number, (data, text) in enumerate([(b"zero", ""), *((m.data, m.text) for m in modules)]):
        start, end, string, reserved = (guest.u32(at + 16 * number + 4 * n) for n in range(4))
        assert start % 0x1000 == 0
        assert guest.memory.read(start, end - start) == data
        assert (guest.text(string), reserved) == (text, 0)
        assert start >= before
        before = end


def test_the_addresses_in_the_header_place_a_file_of_any_format() -> None:
    guest = Booted(load(kludge(load=0x200000, pad=0x40)))
    assert guest.cpu.linear_rip == 0x200000 + 0x40 + 32
    assert guest.memory.read(guest.cpu.linear_rip, len(CODE)) == CODE


def test_bss_is_cleared_and_nothing_of_the_loader_lies_in_it() -> None:
    image = load(kludge(load=0x8000, bss=0x4000))
    kernel = image.segments[0]
    assert kernel.size == len(kernel.data) + 0x4000
    assert all(other.gpa >= kernel.end or other.end <= kernel.gpa for other in image.segments[1:])


def test_without_a_load_end_the_whole_file_is_loaded() -> None:
    data = header(1 << 16, MIB, MIB, 0, 0, MIB + 32) + CODE + b"more"
    (kernel, *_) = load(data).segments
    assert kernel.data == data


@pytest.mark.parametrize("bit", range(3, 16))
def test_a_required_feature_that_is_not_known_is_refused(bit: int) -> None:
    with pytest.raises(ImageError, match=f"bit {bit} "):
        load(elf32(1 << bit))


def test_optional_features_are_ignored() -> None:
    assert load(elf32(0xFFFE0000)).entry == MIB + 12


def test_a_video_mode_needs_a_screen() -> None:
    with pytest.raises(ImageError, match="video mode"):
        load(elf32(4))
    guest = Booted(load(elf32(4), text_mode=True))
    assert guest.u32(guest.info) & 1 << 12
    assert guest.memory.read_int(guest.info + 88, 8) == 0xB8000
    assert [guest.u32(guest.info + at) for at in (96, 100, 104)] == [160, 80, 25]
    assert guest.memory.read(guest.info + 108, 2) == b"\x10\x02", "16 bits a cell, EGA text"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((MIB, MIB + 16, 0, 0, MIB), "load_addr"),
        ((MIB + 64, MIB, 0, 0, MIB), "load_addr"),
        ((MIB, MIB, MIB - 1, 0, MIB), "load_end_addr"),
        ((MIB, MIB, MIB + 48, MIB + 40, MIB), "bss_end_addr"),
        ((MIB, MIB, 0, 0, MIB + 48), "entry_addr"),
        ((MIB, MIB, MIB + 49, 0, MIB), "truncated"),
        ((0xFFFFFFF0, 0xFFFFFFF0, 0, 0, 0xFFFFFFF0), "RAM"),
        ((MIB, MIB, 0, 64 * MIB + 1, MIB), "RAM"),
    ],
)
def test_addresses_that_contradict_each_other_are_refused(fields: tuple[int, ...], message: str) -> None:
    with pytest.raises(ImageError, match=message) as error:
        load(header(1 << 16, *fields) + CODE)
    assert error.value.hint


def test_kernels_of_other_formats_are_refused_with_a_remedy() -> None:
    with pytest.raises(ImageError, match="no ELF file"):
        load(header(0) + CODE)
    wide = bytearray(elf32(0))
    wide[4] = 2
    with pytest.raises(ImageError, match="ELF64") as error:
        load(bytes(wide))
    assert "objcopy" in error.value.hint
    with pytest.raises(ImageError, match="ARM"):
        load(elf32(0, machine=40))


def test_a_header_counts_only_where_the_specification_looks_for_it() -> None:
    good = header(0)
    assert kernel_format(bytes(8180) + good) == "multiboot"
    for wrong in (bytes(8184) + good, bytes(2) + good, good[:8] + b"\1" + good[9:], good[:11]):
        with pytest.raises(ImageError, match="no kernel"):
            kernel_format(wrong)
    assert kernel_format(b"\0\x02\xb0\xad\x1b" + bytes(3) + good) == "multiboot", "a false one is passed by"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (b"\xd6\x50\x52\xe8" + bytes(100), "Multiboot 2"),
        (bytes(56) + b"ARM\x64" + bytes(8), "AArch64"),
        (b"\x7fELF\2\1\1" + bytes(100), "no PVH note"),
        (b"hello", "no kernel"),
    ],
)
def test_what_is_no_kernel_is_named(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as error:
        load(data)
    assert error.value.hint


@pytest.mark.parametrize("data", [elf32(3), kludge(3)], ids=["elf32", "addresses"])
def test_a_kernel_that_is_cut_anywhere_is_refused(data: bytes) -> None:
    for end in range(len(data)):
        with pytest.raises(ImageError):
            load(data[:end])


@given(
    data=st.sampled_from([elf32(3), kludge(3)]),
    changes=st.lists(st.tuples(st.integers(0, 110), st.integers(0, 255)), max_size=6),
)
def test_a_damaged_kernel_loads_or_is_an_image_error(data: bytes, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    try:
        image = load(bytes(damaged))
    except ImageError:
        return
    Booted(image)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ImageError, match="a module of 63 MiB does not fit") as error:
        load(elf32(0), initrd=bytes(63 * MIB))
    assert "-m" in error.value.hint
    with pytest.raises(ImageError, match="segment 0"):
        load(elf32(0), memory_size=MIB)
    with pytest.raises(ImageError, match="command line"):
        load(elf32(0), append="x" * MIB)


def test_a_nul_in_a_string_is_the_callers_fault() -> None:
    with pytest.raises(UsageError, match="NUL"):
        load(elf32(0), append="a\0b")
    with pytest.raises(UsageError, match="half"):
        load(elf32(0), append="\ud800")


def test_the_modules_of_a_command_line_are_qemus() -> None:
    assert split_modules("a.img -x 1,b") == [("a.img", "a.img -x 1"), ("b", "b")]
    assert split_modules("a,,b.img c,,d") == [("a,b.img", "a,b.img c,d")]
    for wrong in ("", "a,", ",a", " a"):
        with pytest.raises(UsageError, match="without a file"):
            split_modules(wrong)


@pytest.mark.parametrize("entry", [(-1, 5, 1), (0, -1, 1), (1, 1 << 64, 1), (0, 1, -1)])
def test_a_memory_map_that_is_none_is_refused(entry: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="e820"):
        BootMemory("kernel", MIB, [entry])


def test_a_large_pc_has_its_hole_below_4_gib() -> None:
    ram = 1
    entries = [(0, 0xA0000, ram), (MIB, (3 << 30) - MIB, ram), (4 << 30, 1 << 30, ram)]
    assert BootMemory("kernel", 4 << 30).entries == entries


page_ranges = st.tuples(st.integers(0, 300), st.integers(0, 80), st.integers(1, 3))


@given(
    e820=st.lists(page_ranges, max_size=8),
    wishes=st.lists(
        st.tuples(st.integers(0, 0x20000), st.sampled_from([1, 16, 4096]), st.booleans()), max_size=8
    ),
)
def test_what_is_placed_lies_in_ram_apart_and_aligned(
    e820: list[tuple[int, int, int]], wishes: list[tuple[int, int, bool]]
) -> None:
    memory = BootMemory("kernel", MIB, [(gpa << 12, size << 12, kind) for gpa, size, kind in e820])
    pages = {p for gpa, size, kind in e820 if kind == 1 for p in range(gpa, gpa + size)}
    pages -= {p for gpa, size, kind in e820 if kind != 1 for p in range(gpa, gpa + size)}
    for size, align, top in wishes:
        try:
            at = memory.put(bytes(size), "it", high=1 << 32, align=align, top=top)
        except ImageError:
            continue
        assert at % align == 0
        assert at >= 0x8000
    taken: list[ImageSegment] = sorted((s for s in memory.segments if s.size), key=lambda s: s.gpa)
    for segment in taken:
        assert set(range(segment.gpa >> 12, (segment.end - 1 >> 12) + 1)) <= pages
        assert segment.end <= 0x90000 or segment.gpa >= 0x9A000, "the presets' tables are there"
    assert all(a.end <= b.gpa for a, b in pairwise(taken))
