"""What a PC tells a kernel: its RAM, the tables in its memory; and kernels that need them."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim import Machine, MachineConfig
from vmmsim.budget import seconds
from vmmsim.exits import GuestExit, SystemEvent
from vmmsim.loaders import load_bytes
from vmmsim.loaders.acpi import acpi_tables
from vmmsim.loaders.acpi_linker import fw_cfg_tables
from vmmsim.loaders.e820 import E820Type
from vmmsim.models import holes, ram
from vmmsim.pc_tables import boot_kernel, pc_tables
from vmmsim.testing.slow import time_limit

LINUX = Path(__file__).resolve().parents[2] / "shared" / "guests" / "linux"
MEMTEST = Path("/boot/memtest86+x64.bin")
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

needs_linux = pytest.mark.skipif(
    not LINUX.is_dir(), reason="no kernels beside this checkout (shared/guests/linux)"
)


def pc(memory: int = 64 * MIB, **fields: object) -> MachineConfig:
    return MachineConfig(model="pc", memory=memory, **fields)  # type: ignore[arg-type]


# where RAM is


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (64 * MIB, [(0, 0xA0000), (0xC0000, 64 * MIB - 0xC0000)]),
        (0x50000, [(0, 0x50000)]),
        (0xB0000, [(0, 0xA0000)]),
        (3 * GIB, [(0, 0xA0000), (0xC0000, 3 * GIB - 0xC0000)]),
        (5 * GIB, [(0, 0xA0000), (0xC0000, 3 * GIB - 0xC0000), (4 * GIB, 2 * GIB)]),
    ],
)
def test_a_pc_has_no_ram_where_its_display_and_its_last_gib_are(
    memory: int, expected: list[tuple[int, int]]
) -> None:
    assert ram(pc(memory)) == expected


def test_a_bare_machine_has_its_holes_and_the_one_below_4_gib() -> None:
    assert ram(MachineConfig(memory=4 * GIB)) == [
        (0, 0x1000),
        (0x2000, 3 * GIB - 0x2000),
        (4 * GIB, GIB),
    ]


@given(
    pages=st.integers(1, (8 * GIB) >> 12),
    model=st.sampled_from(["bare", "pc"]),
    extra=st.sampled_from([(), ("scratch",), ("testdev-mem", "scratch")]),
)
def test_ram_and_holes_add_up(pages: int, model: str, extra: tuple[str, ...]) -> None:
    config = MachineConfig(memory=pages << 12, model=model, extra_devices=extra)
    found = ram(config)

    assert found == sorted(found)
    assert all(size > 0 and gpa % 4096 == size % 4096 == 0 for gpa, size in found)
    assert all(gpa + size <= following for (gpa, size), (following, _) in pairwise(found))
    lost = 0
    for start, length in holes(config):
        assert not any(gpa < start + length and start < gpa + size for gpa, size in found)
        lost += max(0, min(start + length, min(config.memory, 3 * GIB)) - start)
    assert sum(size for _, size in found) == config.memory - lost


@pytest.mark.parametrize("kind", ["bare", "pc"])
def test_memory_beyond_3_gib_is_above_4_gib(backend_name: str, kind: str) -> None:
    with Machine(backend=backend_name, model=kind, memory=5 * GIB) as machine:
        assert machine.memory.contains(4 * GIB, 2 * GIB)
        assert not any(machine.memory.contains(gpa) for gpa in (3 * GIB, 4 * GIB - 1, 6 * GIB))
        machine.memory.write(3 * GIB - 4, b"last")
        # Protected mode, a byte from the last of low RAM, and one from the hole: all ones.
        code = "8a1dffffffbf8a3d000000c000fb88d8e6f4"  # mov bl,; mov bh,; add bl, bh; out 0xf4, al
        machine.load(load_bytes(bytes.fromhex(code), mode="p32"))
        assert machine.run(budget=seconds(time_limit(20))) == GuestExit((ord("t") + 0xFF) & 0xFF)


def test_the_display_of_a_pc_is_a_hole(backend_name: str) -> None:
    with Machine(backend=backend_name, model="pc") as machine:
        # mov ax, 0xb800; mov ds, ax; mov byte [0], 7; mov al, [0]; out 0xf4, al
        machine.load(load_bytes(bytes.fromhex("b800b88ed8c606000007a00000e6f4"), mode="real"))
        assert machine.run(budget=seconds(time_limit(20))) == GuestExit(0xFF)
        assert machine.mmio.unclaimed_writes == 1


# what is in it


class Memory:
    """What a kernel finds that is told nothing: it searches as the specifications say."""

    def __init__(self, config: MachineConfig) -> None:
        self.tables = pc_tables(config)

    def read(self, gpa: int, size: int) -> bytes:
        for segment in self.tables.segments:
            if segment.gpa <= gpa and gpa + size <= segment.end:
                at = gpa - segment.gpa
                return segment.data[at : at + size].ljust(size, b"\0")
        return bytes(size)

    def search(self, signature: bytes, start: int, end: int) -> int | None:
        places = (gpa for gpa in range(start, end, 16) if self.read(gpa, len(signature)) == signature)
        return next(places, None)

    def acpi(self) -> dict[str, bytes]:
        rsdp = self.search(b"RSD PTR ", 0xE0000, 0x100000)
        assert rsdp is not None
        (xsdt,) = struct.unpack("<Q", self.read(rsdp + 24, 8))
        found = {"XSDT": self.table(xsdt)}
        for (gpa,) in struct.iter_unpack("<Q", found["XSDT"][36:]):
            found[self.read(gpa, 4).decode()] = self.table(gpa)
        found["DSDT"] = self.table(struct.unpack_from("<I", found["FACP"], 40)[0])
        return found

    def table(self, gpa: int) -> bytes:
        data = self.read(gpa, struct.unpack("<I", self.read(gpa + 4, 4))[0])
        assert sum(data) & 0xFF == 0, data[:4]
        return data


def test_the_acpi_tables_are_where_they_are_searched_and_handed_over() -> None:
    memory = Memory(pc())
    found = memory.acpi()

    assert memory.tables.rsdp == memory.search(b"RSD PTR ", 0xE0000, 0x100000)
    assert set(found) == {"XSDT", "FACP", "DSDT", "APIC"}
    # Without a local APIC there is no MADT (APIC).
    assert "APIC" not in Memory(pc(without=("lapic", "ioapic"))).acpi()
    fadt = found["FACP"]
    assert struct.unpack_from("<I", fadt, 56) == (0x600,)  # PM1a_EVT_BLK
    assert struct.unpack_from("<I", fadt, 64) == (0x604,)  # PM1a_CNT_BLK
    assert struct.unpack_from("<I", fadt, 76) == (0x608,)  # PM_TMR_BLK
    assert fadt[116:129] == struct.pack("<BBBBQB", 1, 8, 0, 1, 0xCF9, 6)


def test_the_registers_that_the_tables_name_are_the_machines() -> None:
    with Machine(model="pc", backend="unicorn", clock="exits") as machine:
        assert machine.ports.find(0x604).device is machine.devices["acpi-pm"]  # type: ignore[union-attr]
        before = machine.ports.read(0x608, 4)
        for _ in range(1000):
            machine.clock.tick()  # type: ignore[attr-defined]
        assert machine.ports.read(0x608, 4) > before
        machine.ports.write(0xCF9, 1, 2)
        assert machine.ports.read(0xCF9, 1) == 2


@pytest.mark.parametrize(
    ("without", "lacking"),
    [("uart", b"COM1"), ("kbc", b"KBD_"), ("host-bridge", b"PCI0")],
)
def test_the_dsdt_names_no_device_that_is_left_out(without: str, lacking: bytes) -> None:
    assert lacking in Memory(pc()).acpi()["DSDT"]
    assert lacking not in Memory(pc(without=(without,))).acpi()["DSDT"]


def test_without_the_pm_registers_there_is_no_acpi_and_without_reset_control_no_reset_register() -> None:
    memory = Memory(pc(without=("acpi-pm",)))
    assert (memory.tables.rsdp, memory.tables.acpi) == (0, None)
    assert memory.search(b"RSD PTR ", 0xE0000, 0x100000) is None

    fadt = Memory(pc(without=("reset-control",))).acpi()["FACP"]
    assert not struct.unpack_from("<I", fadt, 112)[0] & 1 << 10


def test_iasl_reads_the_tables_of_the_machine(tmp_path: Path) -> None:
    iasl = shutil.which("iasl")
    if iasl is None:
        pytest.skip("iasl is not installed (Debian: acpica-tools)")
    for name, data in Memory(pc()).acpi().items():
        (tmp_path / f"{name}.aml").write_bytes(data)
        done = subprocess.run(
            [iasl, "-d", f"{name}.aml"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=time_limit(60),
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert not any(word in said.lower() for word in ("error", "warning", "invalid", "incorrect")), said


@pytest.fixture
def four_cpus() -> MachineConfig:
    return pc(cpus=4)


def test_with_local_apics_acpi_has_a_madt_that_names_each(four_cpus: MachineConfig) -> None:
    madt = Memory(four_cpus).acpi()["APIC"]
    assert struct.unpack_from("<II", madt, 36) == (0xFEE00000, 1)
    entries, at = [], 44
    while at < len(madt):
        entries.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    assert [(entry[2], entry[3], entry[4]) for entry in entries if entry[0] == 0] == [
        (cpu, cpu, 1) for cpu in range(4)
    ]
    assert [struct.unpack_from("<BxII", entry, 2) for entry in entries if entry[0] == 1] == [
        (4, 0xFEC00000, 0)
    ]
    # ISA IRQ 0 is GSI 2; the SCI, IRQ 9, is active high and level.
    assert [struct.unpack_from("<BBIH", entry, 2) for entry in entries if entry[0] == 2] == [
        (0, 0, 2, 0),
        (0, 9, 9, 0xD),
    ]


def test_with_local_apics_there_is_an_mp_table(four_cpus: MachineConfig) -> None:
    memory = Memory(four_cpus)
    at = memory.search(b"_MP_", 0xF0000, 0x100000)
    assert at is not None
    assert sum(memory.read(at, 16)) & 0xFF == 0
    (config,) = struct.unpack("<I", memory.read(at + 4, 4))
    table = memory.read(config, struct.unpack("<H", memory.read(config + 4, 2))[0])
    assert (table[:4], sum(table) & 0xFF) == (b"PCMP", 0)
    # Entries of 20 bytes are processors: their APIC IDs.
    assert [table[44 + 20 * n : 44 + 20 * n + 2] for n in range(4)] == [bytes((0, n)) for n in range(4)]
    assert struct.unpack_from("<I", table, 36) == (0xFEE00000,)


def test_the_bios_data_area_has_com1_and_the_size_of_base_memory() -> None:
    memory = Memory(pc())
    assert memory.read(0x400, 2) == b"\xf8\x03"
    assert memory.read(0x40E, 2) == b"\xc0\x9f"  # the EBDA's segment
    assert struct.unpack("<H", memory.read(0x413, 2)) == (639,)
    assert memory.read(0x9FC00, 1) == b"\1"  # its size in KiB
    assert Memory(pc(without=("uart",))).read(0x400, 2) == b"\0\0"


def test_the_memory_map_of_a_pc() -> None:
    R, X = E820Type.RAM, E820Type.RESERVED
    assert [(entry.gpa, entry.end, entry.type) for entry in pc_tables(pc(5 * GIB)).e820] == [
        (0, 0x9FC00, R),
        (0x9FC00, 0xA0000, X),
        (0xE0000, MIB, X),
        (MIB, 3 * GIB, R),
        (4 * GIB, 6 * GIB, R),
    ]


@given(pages=st.integers(1, (6 * GIB) >> 12), model=st.sampled_from(["bare", "pc"]))
def test_a_kernel_is_told_of_no_ram_that_is_not_there(pages: int, model: str) -> None:
    config = MachineConfig(memory=pages << 12, model=model)
    tables = pc_tables(config)
    there = ram(config)
    for entry in tables.e820:
        if entry.type is E820Type.RAM:
            assert any(gpa <= entry.gpa and entry.end <= gpa + size for gpa, size in there)
    for segment in tables.segments:
        assert any(gpa <= segment.gpa and segment.end <= gpa + size for gpa, size in there)


# the tables for firmware that places them itself


def execute(script: bytes, files: dict[str, bytes], places: dict[str, int]) -> dict[str, bytearray]:
    """What firmware makes of etc/table-loader (QEMU, hw/acpi/bios-linker-loader.c)."""
    made: dict[str, bytearray] = {}

    def name(raw: bytes) -> str:
        return raw.rstrip(b"\0").decode()

    for at in range(0, len(script), 128):
        (command,), body = struct.unpack_from("<I", script, at), script[at + 4 : at + 128]
        first = name(body[:56])
        if command == 1:
            align, zone = struct.unpack_from("<IB", body, 56)
            assert places[first] % align == 0
            assert zone == (2 if "rsdp" in first else 1)
            made[first] = bytearray(files[first])
        elif command == 2:
            offset, size = struct.unpack_from("<IB", body, 112)
            value = int.from_bytes(made[first][offset : offset + size], "little")
            assert value < len(files[name(body[56:112])])
            value += places[name(body[56:112])]
            made[first][offset : offset + size] = value.to_bytes(size, "little")
        else:
            assert command == 3
            offset, start, length = struct.unpack_from("<III", body, 56)
            total = sum(made[first][start : start + length])
            made[first][offset] = (made[first][offset] - total) & 0xFF
    return made


@given(
    rsdp=st.integers(0xF0000 >> 4, 0xFFF00 >> 4),
    tables=st.integers(MIB >> 6, (3 * GIB) >> 6),
    made_for=st.sampled_from([0, 0xE0000]),
    cpus=st.integers(1, 255),
)
def test_firmware_that_executes_the_script_has_sound_tables(
    rsdp: int, tables: int, made_for: int, cpus: int
) -> None:
    files = fw_cfg_tables(acpi_tables(address=made_for, cpus=cpus))
    script = files.pop("etc/table-loader")
    places = {"etc/acpi/rsdp": rsdp << 4, "etc/acpi/tables": tables << 6}
    made = execute(script, files, places)
    base, data = places["etc/acpi/tables"], made["etc/acpi/tables"]

    def table(gpa: int) -> bytes:
        at = gpa - base
        found = bytes(data[at : at + struct.unpack_from("<I", data, at + 4)[0]])
        assert sum(found) & 0xFF == 0
        return found

    root = made["etc/acpi/rsdp"]
    assert sum(root[:20]) & 0xFF == sum(root) & 0xFF == 0
    short, wide = struct.unpack("<I4xQ", root[16:32])
    assert table(short)[:4] == b"RSDT"
    assert table(wide)[:4] == b"XSDT"
    listed = [gpa for (gpa,) in struct.iter_unpack("<Q", table(wide)[36:])]
    assert listed == [gpa for (gpa,) in struct.iter_unpack("<I", table(short)[36:])]
    assert [table(gpa)[:4] for gpa in listed] == [b"FACP", b"APIC"]
    facs, dsdt = struct.unpack_from("<II", table(listed[0]), 36)
    assert table(dsdt)[:4] == b"DSDT"
    assert struct.unpack_from("<Q", table(listed[0]), 140) == (dsdt,)
    assert bytes(data[facs - base :][:4]) == b"FACS"
    assert facs % 64 == 0


# kernels


def boot(kernel: Path, config: MachineConfig, append: str, initrd: Path | None = None) -> Machine:
    image = boot_kernel(
        config,
        kernel.read_bytes(),
        name=kernel.name,
        initrd=initrd.read_bytes() if initrd is not None else None,
        append=append,
    )
    machine = Machine(config, backend="unicorn")
    try:
        machine.load(image)
    except BaseException:
        machine.close()
        raise
    return machine


@needs_linux
@pytest.mark.unicorn
@pytest.mark.timeout(60)
def test_linux_sees_the_memory_map_and_takes_the_ram_above_4_gib() -> None:
    with boot(
        LINUX / "bzImage-tiny64-lz4", pc(3 * GIB + 64 * MIB), "earlyprintk=serial,ttyS0,115200"
    ) as machine:
        for line in (
            b"[mem 0x0000000000000000-0x000000000009fbff] usable",
            b"[mem 0x000000000009fc00-0x000000000009ffff] reserved",
            b"[mem 0x00000000000e0000-0x00000000000fffff] reserved",
            b"[mem 0x0000000000100000-0x00000000bfffffff] usable",
            b"[mem 0x0000000100000000-0x0000000103ffffff] usable",
        ):
            machine.serial.expect_exact(b"BIOS-e820: " + line, timeout=time_limit(30))
        # What it made of them: node 0 has the RAM on both sides of the hole.
        machine.serial.expect_exact(b"Early memory node ranges", timeout=time_limit(30))
        machine.serial.expect_exact(b"[mem 0x0000000100000000-0x0000000103ffffff]", timeout=time_limit(30))


def debian_kernel() -> Path | None:
    """A stock Debian kernel: VMMSIM_DEBIAN_KERNEL, or the newest installed one for clouds."""
    given_path = os.environ.get("VMMSIM_DEBIAN_KERNEL")
    installed = sorted(Path("/boot").glob("vmlinuz-*-cloud-amd64"))
    return Path(given_path) if given_path else installed[-1] if installed else None


@needs_linux
@pytest.mark.unicorn
@pytest.mark.timeout(110)
@pytest.mark.parametrize("acpi", ["on", "off"])
def test_debians_kernel_boots_with_and_without_acpi(acpi: str) -> None:
    kernel = debian_kernel()
    if kernel is None:
        pytest.skip("no stock Debian kernel: set VMMSIM_DEBIAN_KERNEL or install linux-image-cloud-amd64")
    append = "console=ttyS0 panic=-1" + (" acpi=off reboot=k" if acpi == "off" else "")
    with boot(kernel, pc(512 * MIB), append, LINUX / "initrd-busybox64.cpio.gz") as machine:
        assert machine.run(budget=seconds(time_limit(100))) == SystemEvent("reset")
        text = machine.output.data
    assert b"BUSYBOX-INIT-OK" in text
    assert (b"ACPI: PM-Timer IO Port: 0x608" in text) == (acpi == "on")
    assert (b"PCI: Using configuration type 1" in text) or acpi == "on"
    assert b"[Firmware Bug]" not in text
    assert b"ACPI Error" not in text


@pytest.mark.unicorn
@pytest.mark.timeout(60)
@pytest.mark.skipif(not MEMTEST.is_file(), reason=f"no {MEMTEST} (Debian: memtest86+)")
def test_memtest86_finishes_its_first_test_and_finds_no_error() -> None:
    config = pc(8 * MIB)
    image = boot_kernel(config, MEMTEST.read_bytes(), name="memtest86+", append="console=ttyS0,115200")
    with Machine(config, backend="unicorn") as machine:
        machine.load(image)
        # Its screen, sent to the serial port about every other second. The first tests are short.
        machine.serial.expect(rb"#0  \[Address test, walking ones", timeout=time_limit(20))
        machine.serial.expect(rb"#[1-9]\d*  \[", timeout=time_limit(30))
        machine.serial.expect(rb"Errors: 0  ", timeout=time_limit(20))
        assert not any(f"Errors: {digit}".encode() in machine.output.data for digit in "123456789")
