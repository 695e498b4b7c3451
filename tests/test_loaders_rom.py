"""ROM images: where the CPU starts, and what of it lies below 1 MiB; and entering any image."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.cpu.modes import setup
from vmmsim.cpu.state import CpuState, Segment
from vmmsim.errors import ImageError, UsageError
from vmmsim.loaders import LoadedImage, RomRegion, load_rom
from vmmsim.memory import GuestMemory

KIB, MIB = 1 << 10, 1 << 20
RESET_VECTOR = 0xFFFFFFF0


def rom_of(size: int) -> bytes:
    """`size` bytes that differ from page to page, with a far jump to F000:E05B at the vector."""
    data = b"".join((page % 65521).to_bytes(4, "little") * 1024 for page in range(size // 4096))
    return data[:-16] + b"\xea\x5b\xe0\x00\xf0" + bytes(11)


def ram(size: int = 2 * MIB) -> GuestMemory:
    memory = GuestMemory()
    memory.add(0, size)
    return memory


@pytest.mark.parametrize("size", [4 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, 16 * MIB])
def test_a_rom_ends_at_4_gib_and_is_read_only(size: int) -> None:
    data, memory = rom_of(size), ram()
    image = load_rom(data, name="bios.bin")
    image.place(memory)
    region = memory.region_at(RESET_VECTOR)
    assert region is not None
    assert (region.gpa, region.end, region.readonly) == ((1 << 32) - size, 1 << 32, True)
    assert memory.read(region.gpa, size) == data
    cpu = image.enter(setup(image.mode, image.entry).state)
    assert memory.read(cpu.linear_rip, 5) == b"\xea\x5b\xe0\x00\xf0", "the CPU starts at its last 16 bytes"
    assert (cpu.mode, cpu.linear_rip) == ("real", RESET_VECTOR)


@pytest.mark.parametrize(("size", "start"), [(4 * KIB, 0xFF000), (64 * KIB, 0xF0000), (256 * KIB, 0xE0000)])
def test_its_last_128_kib_are_ram_below_1_mib(size: int, start: int) -> None:
    data, memory = rom_of(size), ram()
    load_rom(data, name="bios.bin").place(memory)
    assert memory.read(start, MIB - start) == data[-(MIB - start) :]
    assert memory[start - 1] == 0
    region = memory.region_at(start)
    assert region is not None
    assert not region.readonly


@pytest.mark.parametrize(
    ("size", "message"), [(0, "empty"), (1, "4 KiB"), (65535, "4 KiB"), (16 * MIB + 4096, "at most 16 MiB")]
)
def test_what_is_no_rom_is_refused_with_a_remedy(size: int, message: str) -> None:
    with pytest.raises(ImageError, match=message) as error:
        load_rom(bytes(size), name="bios.bin")
    assert error.value.hint


@given(size=st.integers(1, 70_000))
def test_a_rom_is_whole_pages(size: int) -> None:
    if size % 4096 == 0:
        assert len(load_rom(bytes(size), name="rom").rom[0].data) == size
    else:
        with pytest.raises(ImageError):
            load_rom(bytes(size), name="rom")


def test_a_rom_is_loaded_again_into_its_own_place() -> None:
    memory = ram()
    load_rom(rom_of(64 * KIB), name="one").place(memory)
    load_rom(bytes(64 * KIB), name="two").place(memory)
    assert memory.read(0xFFFF0000, 64 * KIB) == bytes(64 * KIB)
    assert len(memory.regions) == 2


def test_a_rom_that_does_not_fit_leaves_memory_as_it_was() -> None:
    memory = ram(64 * KIB)
    with pytest.raises(ImageError, match="shadow"):
        load_rom(rom_of(64 * KIB), name="bios.bin").place(memory)
    assert len(memory.regions) == 1
    memory = ram()
    memory.add(0xFFFFF000, 0x1000)
    with pytest.raises(ImageError, match="overlaps <RAM") as error:
        load_rom(rom_of(64 * KIB), name="bios.bin").place(memory)
    assert error.value.hint
    assert memory.read(0xF0000, 64 * KIB) == bytes(64 * KIB)


def test_a_device_in_the_way_leaves_no_region_behind() -> None:
    class Vm:
        def map_memory(self, region: object) -> None: ...
        def unmap_memory(self, region: object) -> None: ...
        def memory_written(self, gpa: int, size: int) -> None: ...

    def vacant(gpa: int, size: int) -> None:
        if gpa == 0xFFF00000:
            raise UsageError("a device is there", hint="move it")

    memory = ram()
    memory.attach(Vm(), lambda: None, vacant)  # type: ignore[arg-type]
    page = bytes(4096)
    image = LoadedImage(
        "rom", [], 0, "reset", rom=[RomRegion(0xFFFF0000, page, "a"), RomRegion(0xFFF00000, page, "b")]
    )
    with pytest.raises(UsageError, match="a device"):
        image.place(memory)
    assert len(memory.regions) == 1


def test_registers_and_state_changes_replace_what_the_preset_says() -> None:
    preset = setup("p32", 0x1000).state
    kept = preset.copy()
    code = Segment(0x10, 0, 0xFFFFFFFF, 0xC09B)
    image = LoadedImage(
        "k", [], 0x1000, "p32", registers={"rsi": 7, "rsp": 0x8000}, state_changes={"cs": code}
    )
    entered = image.enter(preset)
    assert (entered.rsi, entered.rsp, entered.cs, entered.ds) == (7, 0x8000, code, preset.ds)
    assert preset == kept, "the preset's own state is another"


@pytest.mark.parametrize(
    ("registers", "changes"),
    [({"esi": 1}, {}), ({"rsi": 1 << 64}, {}), ({"rsi": -1}, {}), ({}, {"nothing": 1})],
)
def test_a_register_that_is_none_is_refused(registers: dict[str, int], changes: dict[str, object]) -> None:
    image = LoadedImage("k", [], 0, "p32", registers=registers, state_changes=changes)
    with pytest.raises(UsageError):
        image.enter(CpuState())
