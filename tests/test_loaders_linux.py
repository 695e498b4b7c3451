"""Linux kernels: bzImage by Documentation/arch/x86/boot.rst, vmlinux by Xen's PVH boot ABI."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.cpu.modes import setup
from vmmsim.cpu.state import CpuState
from vmmsim.errors import ImageError, UsageError
from vmmsim.loaders import BootModule, LoadedImage, kernel_format, load_kernel
from vmmsim.loaders.linux import read_header
from vmmsim.loaders.pvh import pvh_entry
from vmmsim.memory import GuestMemory

MIB, GIB = 1 << 20, 1 << 30
PREF = 16 * MIB
GUESTS = Path("/work/shared/guests/linux")
#: Real kernels; their numbers below were read from the files by hand with od.
needs_kernels = pytest.mark.skipif(not GUESTS.is_dir(), reason="needs the kernels in /work/shared/guests")


@cache
def kernel(bits: int) -> bytes:
    return (GUESTS / f"bzImage-tiny{bits}-lz4").read_bytes()


def bzimage(
    *,
    version: int = 0x20F,
    setup_sects: int = 1,
    paragraphs: int = 0x80,
    loadflags: int = 1,
    xloadflags: int = 1,
    relocatable: int = 0,
    pref: int = PREF,
    init_size: int = MIB,
    initrd_max: int = 0x7FFFFFFF,
    cmdline_size: int = 255,
    alignment: int = 0x200000,
    header_end: int = 0x26C,
) -> bytes:
    """A setup header of protocol `version`, and a protected-mode part that counts up."""
    data = bytearray((setup_sects + 1) * 512)
    data[0x1F1] = setup_sects
    struct.pack_into("<I", data, 0x1F4, paragraphs)
    struct.pack_into("<H", data, 0x1FE, 0xAA55)
    data[0x200:0x202] = bytes([0xEB, header_end - 0x202])
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x206, version)
    data[0x211] = loadflags
    struct.pack_into("<I", data, 0x214, 0x100000)
    struct.pack_into("<I", data, 0x22C, initrd_max)
    struct.pack_into("<IBBHI", data, 0x230, alignment, relocatable, 21, xloadflags, cmdline_size)
    struct.pack_into("<QI", data, 0x258, pref, init_size)
    return bytes(data) + bytes(n & 0xFF for n in range(paragraphs * 16))


def load(data: bytes, **arguments: object) -> LoadedImage:
    return load_kernel(data, name="bzImage", **{"memory_size": 64 * MIB, **arguments})  # type: ignore[arg-type]


def entered(image: LoadedImage) -> CpuState:
    return image.enter(setup(image.mode, image.entry).state)


class Params:
    """struct boot_params as the kernel finds it at RSI (zero-page.rst)."""

    def __init__(self, image: LoadedImage) -> None:
        at = image.registers["rsi"]
        self.image = image
        (self.data,) = [s.data for s in image.segments if s.gpa == at]
        assert len(self.data) == 4096

    def u(self, at: int, size: int) -> int:
        return int.from_bytes(self.data[at : at + size], "little")

    def at(self, gpa: int) -> bytes:
        (found,) = [s.data for s in self.image.segments if s.gpa == gpa]
        return found

    @property
    def e820(self) -> list[tuple[int, ...]]:
        return [struct.unpack_from("<QQI", self.data, 0x2D0 + 20 * n) for n in range(self.data[0x1E8])]


def test_a_64_bit_kernel_is_entered_0x200_behind_its_start_in_long_mode() -> None:
    image = load(bzimage())
    cpu = entered(image)
    assert (image.entry, cpu.mode) == (MIB + 0x200, "l64")
    assert (cpu.cs.selector, cpu.ds.selector, cpu.es.selector, cpu.ss.selector) == (0x10, 0x18, 0x18, 0x18)
    assert cpu.rflags & 0x200 == 0
    assert cpu.rsi == image.registers["rsi"] != 0


def test_a_32_bit_kernel_is_entered_with_linuxs_selectors_and_no_paging() -> None:
    image = load(bzimage(xloadflags=0))
    cpu = entered(image)
    assert (image.entry, cpu.mode, cpu.cr0 >> 31) == (MIB, "p32", 0)
    assert (cpu.cs.selector, cpu.ds.selector, cpu.es.selector, cpu.ss.selector) == (0x10, 0x18, 0x18, 0x18)
    assert {s.limit for s in (cpu.cs, cpu.ds, cpu.es, cpu.ss)} == {0xFFFFFFFF}
    assert (cpu.rbx, cpu.rbp, cpu.rdi) == (0, 0, 0), "must be zero, says the 32-bit boot protocol"
    assert cpu.rflags & 0x200 == 0
    (gdt,) = [s.data for s in image.segments if s.gpa == cpu.gdt.base]
    assert gdt[0x10:0x20] == bytes.fromhex("ffff0000009bcf00 ffff00000093cf00"), "flat code and data"


def test_boot_params_has_the_header_and_what_a_loader_fills_in() -> None:
    data = bzimage()
    params = Params(load(data, append="console=ttyS0 quiet", initrd=b"cpio" * 3000, acpi_rsdp=0xE0000))
    written = {0x1FA, 0x1FB, *range(0x210, 0x212), *range(0x214, 0x220), 0x224, 0x225, *range(0x228, 0x22C)}
    for at in range(0x1F1, 0x26C):
        assert at in written or params.data[at] == data[at], f"{at:#x} is the header's"
    assert params.u(0x210, 1) == 0xFF
    assert params.u(0x211, 1) == 0x81, "LOADED_HIGH, CAN_USE_HEAP"
    assert params.u(0x224, 2) == 0xDE00
    assert params.u(0x1FA, 2) == 0xFFFF
    assert params.u(0x1EF, 1) == 0, "the sentinel of a loader that zeroed the page"
    assert params.at(params.u(0x228, 4)) == b"console=ttyS0 quiet\0"
    assert params.at(params.u(0x218, 4)) == b"cpio" * 3000
    assert params.u(0x21C, 4) == 12000
    assert (params.u(0x0C0, 4), params.u(0x0C4, 4), params.u(0x0C8, 4)) == (0, 0, 0)
    assert params.u(0x070, 8) == 0xE0000
    assert params.e820 == [(0, 0xA0000, 1), (MIB, 63 * MIB, 1)]
    assert params.u(0x1E0, 4) == 63 * 1024
    assert params.data[:2] + params.data[4:0x40] == bytes(0x3E), "no screen"


def test_a_text_screen_is_mode_3_with_80_by_25() -> None:
    params = Params(load(bzimage(), text_mode=True))
    assert (params.u(6, 1), params.u(7, 1), params.u(0xE, 1), params.u(0xF, 1), params.u(0x10, 2)) == (
        3,
        80,
        25,
        1,
        16,
    )
    assert params.u(0xA, 2) & 0xFF != 0x10, "what BL is where INT 10h, AH=12h knows no EGA"


def test_the_initrd_lies_as_high_as_it_may() -> None:
    def place(**arguments: object) -> int:
        image = load(
            bzimage(initrd_max=int(arguments.pop("limit", 0x7FFFFFFF))), initrd=bytes(5000), **arguments
        )
        return Params(image).u(0x218, 4)

    assert place() == 64 * MIB - 0x2000
    assert place(memory_size=4 * GIB) == 2 * GIB - 0x2000, "the last byte may be at 7FFFFFFF"
    assert place(memory_size=4 * GIB, limit=0x37FFFFFF) == 0x38000000 - 0x2000
    assert place(memory_size=8 * GIB, limit=0xFFFFFFFF) == 3 * GIB - 0x2000
    assert place(e820=[(0, 0xA0000, 1), (MIB, 40 * MIB, 1), (30 * MIB, 20 * MIB, 2)]) == 30 * MIB - 0x2000


def test_an_initrd_never_lies_where_the_kernel_unpacks_itself() -> None:
    size = 16 * MIB - 0x1000 - MIB  # all between the file's part at 1 MiB and the pref_address, but a page
    assert Params(load(bzimage(), memory_size=17 * MIB, initrd=bytes(size - 0x1000))).u(0x218, 4) < PREF
    with pytest.raises(ImageError, match=r"the initrd of .* does not fit") as error:
        load(bzimage(), memory_size=17 * MIB, initrd=bytes(size + 0x1000))
    assert "-m" in error.value.hint


def test_a_relocatable_kernel_lies_at_its_pref_address() -> None:
    image = load(bzimage(relocatable=1))
    assert image.entry == PREF + 0x200
    assert Params(image).u(0x214, 4) == PREF


def test_a_relocatable_kernel_goes_higher_where_its_pref_address_is_no_ram() -> None:
    e820 = [(0, 0xA0000, 1), (MIB, 10 * MIB, 1), (17 * MIB, 40 * MIB, 1)]
    assert load(bzimage(relocatable=1), e820=e820).entry == 18 * MIB + 0x200, "aligned to 2 MiB"
    with pytest.raises(ImageError, match="does not fit"):
        load(bzimage(relocatable=1), e820=e820[:2])


@pytest.mark.parametrize("relocatable", [0, 1])
def test_a_kernel_that_does_not_fit_says_how_much_it_needs(relocatable: int) -> None:
    data = bzimage(init_size=0xBAF000, relocatable=relocatable)
    assert load(data, memory_size=28 * MIB).entry
    with pytest.raises(ImageError, match=r"unpacks itself into 11\.7 MiB at 0x1000000") as error:
        load(data, memory_size=27 * MIB)
    assert "28M" in error.value.hint


def test_a_command_line_has_at_most_cmdline_size_characters() -> None:
    assert load(bzimage(cmdline_size=20), append="x" * 20)
    with pytest.raises(ImageError, match="has 21 bytes, and this kernel takes 20"):
        load(bzimage(cmdline_size=20), append="x" * 21)
    with pytest.raises(UsageError, match="NUL"):
        load(bzimage(), append="x\0")


def test_an_older_kernel_has_neither_pref_address_nor_a_64_bit_entry() -> None:
    data = bzimage(version=0x206, header_end=0x23C)
    header = read_header(data, name="old")
    assert (header.pref_address, header.init_size, header.xloadflags) == (MIB, 0, 0)
    assert load(data, memory_size=2 * MIB).mode == "p32"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bzimage(version=0x205), r"boot protocol 2\.05"),
        (bzimage(loadflags=0), "zImage"),
        (bzimage(header_end=0x220), "damaged"),
        (bzimage(paragraphs=0), "damaged"),
        (bzimage(relocatable=1, alignment=0x300000), "kernel_alignment"),
        (bzimage(pref=1 << 63), "does not fit"),
    ],
)
def test_a_kernel_that_cannot_be_booted_is_named(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as error:
        load(data)
    assert error.value.hint


def test_linux_takes_one_initrd_and_128_lines_of_memory_map() -> None:
    with pytest.raises(UsageError, match="one initrd"):
        load(bzimage(), initrd=b"a", modules=[BootModule(b"b")])
    assert Params(load(bzimage(), modules=[BootModule(b"b")])).u(0x21C, 4) == 1
    with pytest.raises(UsageError, match="129 entries"):
        load(bzimage(), e820=[(0, 64 * MIB, 1)] * 129)


def test_a_bzimage_that_is_cut_anywhere_is_refused() -> None:
    data = bzimage(paragraphs=8)
    assert kernel_format(data) == "bzImage"
    # The header counts in 16 bytes, and memtest86+ is a kernel whose last 16 are 8.
    for end in range(len(data) - 15):
        with pytest.raises(ImageError):
            load(data[:end])
    load(data[:-15])


@given(
    relocatable=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0x1F1, 0x270), st.integers(0, 255)), max_size=8),
)
def test_a_damaged_bzimage_loads_or_is_an_image_error(
    relocatable: bool, changes: list[tuple[int, int]]
) -> None:
    damaged = bytearray(bzimage(relocatable=relocatable))
    for at, value in changes:
        damaged[at] = value
    try:
        image = load(bytes(damaged), initrd=bytes(100))
    except ImageError:
        return
    memory = GuestMemory()
    memory.add(0, 64 * MIB)
    image.place(memory)
    entered(image)


@needs_kernels
@pytest.mark.parametrize(
    ("bits", "system_size", "xloadflags", "init_size"),
    [(32, 0x184200, 0, 0x45C000), (64, 0x1B5400, 0x21, 0xBAF000)],
)
def test_the_header_of_a_real_kernel(bits: int, system_size: int, xloadflags: int, init_size: int) -> None:
    header = read_header(kernel(bits), name="bzImage")
    assert (header.version, header.setup_size, header.system_size) == (0x20F, 32 * 512, system_size)
    assert (header.xloadflags, header.pref_address, header.init_size) == (xloadflags, PREF, init_size)
    assert (header.cmdline_size, header.initrd_addr_max, header.relocatable) == (2047, 0x7FFFFFFF, False)


@needs_kernels
@pytest.mark.parametrize(("bits", "entry", "mode"), [(32, MIB, "p32"), (64, MIB + 0x200, "l64")])
def test_a_real_kernel_and_its_initrd_are_placed(bits: int, entry: int, mode: str) -> None:
    initrd = (GUESTS / f"initrd-hello{bits}.cpio").read_bytes()
    image = load(kernel(bits), initrd=initrd, append="console=ttyS0")
    assert (image.entry, image.mode) == (entry, mode)
    memory = GuestMemory()
    memory.add(0, 64 * MIB)
    image.place(memory)
    assert memory.read(MIB, 4096) == kernel(bits)[32 * 512 : 32 * 512 + 4096]
    assert memory.read(64 * MIB - 0x2000, len(initrd)) == initrd
    with pytest.raises(ImageError, match="truncated"):
        load(kernel(bits)[:-16])


def note(kind: int, value: bytes, owner: bytes = b"Xen\0") -> bytes:
    padded = value + bytes(-len(value) % 4)
    return struct.pack("<III", len(owner), len(value), kind) + owner + bytes(-len(owner) % 4) + padded


def vmlinux(notes: bytes, *, wide: bool = True, at: int = PREF) -> bytes:
    """An ELF file with a segment of code at `at` and a segment of notes."""
    head, size = (64, 56) if wide else (52, 32)
    code_at = head + 2 * size
    notes_at = code_at + 16
    if wide:
        programs = struct.pack("<IIQQQQQQ", 1, 7, code_at, at, at, 16, 0x1000, 1)
        programs += struct.pack("<IIQQQQQQ", 4, 4, notes_at, 0, 0, len(notes), len(notes), 4)
    else:
        programs = struct.pack("<8I", 1, code_at, at, at, 16, 0x1000, 7, 1)
        programs += struct.pack("<8I", 4, notes_at, 0, 0, len(notes), len(notes), 4, 4)
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    rest = (2, 62 if wide else 3, 1, at, head, 0, 0, head, size, 2, 64, 0, 0)
    return (
        ident
        + struct.pack("<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH", *rest)
        + programs
        + b"\xf4" * 16
        + notes
    )


PVH = vmlinux(note(6, b"linux\0") + note(18, struct.pack("<Q", PREF + 8)))
PVH32 = vmlinux(note(18, struct.pack("<I", PREF + 4)), wide=False)


@pytest.mark.parametrize(("data", "entry"), [(PVH, PREF + 8), (PVH32, PREF + 4)], ids=["elf64", "elf32"])
def test_a_pvh_kernel_is_entered_as_xens_abi_says(data: bytes, entry: int) -> None:
    assert (kernel_format(data), pvh_entry(data)) == ("pvh", entry)
    image = load(data)
    cpu = entered(image)
    assert (cpu.linear_rip, cpu.mode) == (entry, "p32")
    assert (cpu.cr0 & 0x80000001, cpu.cr4) == (1, 0)
    assert (cpu.cs.base, cpu.cs.limit, cpu.ds.base, cpu.ds.limit) == (0, 0xFFFFFFFF, 0, 0xFFFFFFFF)
    assert (cpu.tr.base, cpu.tr.limit, cpu.tr.type) == (0, 0x67, 11), "an active 32-bit TSS"
    assert cpu.rflags & (1 << 17 | 1 << 9 | 1 << 8) == 0


def test_hvm_start_info_has_modules_command_line_and_memory_map() -> None:
    image = load(
        PVH, append="console=ttyS0", initrd=b"cpio", modules=[BootModule(b"two", "x y")], acpi_rsdp=0xF0000
    )
    memory = GuestMemory()
    memory.add(0, 64 * MIB)
    image.place(memory)
    info = struct.unpack("<IIIIQQQQII", memory.read(image.registers["rbx"], 56))
    magic, version, flags, count, modules, command, rsdp, memmap, entries, reserved = info
    assert (magic, version, flags, rsdp, reserved) == (0x336EC578, 1, 0, 0xF0000, 0)
    assert memory.read(command, 14) == b"console=ttyS0\0"
    places = [struct.unpack("<QQQQ", memory.read(modules + 32 * n, 32)) for n in range(count)]
    assert [memory.read(at, size) for at, size, _, _ in places] == [b"cpio", b"two"]
    assert places[0][2:] == (0, 0)
    assert memory.read(places[1][2], 4) == b"x y\0"
    found = [struct.unpack("<QQII", memory.read(memmap + 24 * n, 24)) for n in range(entries)]
    assert found == [(0, 0xA0000, 1, 0), (MIB, 63 * MIB, 1, 0)]


@pytest.mark.parametrize(
    "notes",
    [
        b"",
        note(18, bytes(8), b"GNU\0"),
        note(17, struct.pack("<Q", PREF)),
        note(18, b"\0\0"),
        struct.pack("<III", 0xFFFFFFFF, 0xFFFFFFFF, 18) + b"Xen\0",
    ],
)
def test_a_vmlinux_without_the_note_is_refused(notes: bytes) -> None:
    with pytest.raises(ImageError, match="PVH note") as error:
        load(vmlinux(notes))
    assert "CONFIG_PVH" in error.value.hint


@pytest.mark.parametrize("entry", [0, PREF - 1, PREF + 0x1000, 1 << 40])
def test_a_note_that_names_no_loaded_address_is_refused(entry: int) -> None:
    with pytest.raises(ImageError, match="where nothing is loaded"):
        load(vmlinux(note(18, struct.pack("<Q", entry))))


def test_a_vmlinux_outside_ram_does_not_fit() -> None:
    with pytest.raises(ImageError, match="segment 0"):
        load(PVH, memory_size=PREF)


@pytest.mark.parametrize("data", [PVH, PVH32], ids=["elf64", "elf32"])
def test_a_vmlinux_that_is_cut_anywhere_is_refused(data: bytes) -> None:
    for end in range(len(data)):
        with pytest.raises(ImageError):
            load(data[:end])


@given(changes=st.lists(st.tuples(st.integers(4, len(PVH) - 1), st.integers(0, 255)), max_size=8))
def test_a_damaged_vmlinux_loads_or_is_an_image_error(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(PVH)
    for at, value in changes:
        damaged[at] = value
    try:
        load(bytes(damaged), initrd=b"x")
    except ImageError:
        return


def unlz4(data: bytes) -> bytes:
    """LZ4's legacy frame (doc/lz4_Frame_format.md), as Linux's build packs its vmlinux."""
    assert data[:4] == b"\x02\x21\x4c\x18"
    out, block_at = bytearray(), 4
    while block_at + 4 <= len(data):
        size = int.from_bytes(data[block_at : block_at + 4], "little")
        at, end = block_at + 4, block_at + 4 + size
        if not size or end > len(data):
            break  # the unpacked size, which the build appends
        while at < end:
            token, at = data[at], at + 1
            literals, at = _length(data, at, token >> 4)
            out += data[at : at + literals]
            at += literals
            if at >= end:
                break
            offset = data[at] | data[at + 1] << 8
            count, at = _length(data, at + 2, token & 15)
            start, count = len(out) - offset, count + 4
            out += (
                (out[start : start + offset] * (-(-count // offset)))[:count]
                if offset < count
                else out[start : start + count]
            )
        block_at = end
    return bytes(out)


def _length(data: bytes, at: int, value: int) -> tuple[int, int]:
    if value == 15:
        while True:
            value, at = value + data[at], at + 1
            if data[at - 1] != 255:
                break
    return value, at


@needs_kernels
def test_the_vmlinux_in_a_real_bzimage_boots_by_pvh() -> None:
    data = kernel(64)
    offset, size = struct.unpack_from("<II", data, 0x248)  # payload_offset, payload_length
    start = 32 * 512 + offset
    inner = unlz4(data[start : start + size])
    assert kernel_format(inner) == "pvh"
    image = load(inner, initrd=bytes(4096))
    assert image.mode == "p32"
    assert any(s.gpa <= image.entry < s.end for s in image.segments)
    assert image.entry >= PREF
