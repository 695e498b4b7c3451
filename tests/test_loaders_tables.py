"""What describes a PC to its guest: ACPI tables, the MP table, the E820 map."""

from __future__ import annotations

import shutil
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.clock import ExitClock
from vmmsim.devices.acpi_pm import AcpiPm
from vmmsim.devices.reset_control import ResetControl
from vmmsim.errors import UsageError
from vmmsim.loaders.acpi import AcpiTables, PciRoot, acpi_tables
from vmmsim.loaders.e820 import E820Entry, E820Type, e820_map, pack_boot_params, pack_multiboot, pack_pvh
from vmmsim.loaders.image import BootMemory
from vmmsim.loaders.mptable import mp_table
from vmmsim.testing.slow import time_limit

MIB = 1 << 20
GIB = 1 << 30

#: INTA of devices 1 to 31 to GSI 16 to 19, in turn: a DSDT of more than 4 KiB.
PCI = PciRoot(irqs={(device, pin): 16 + (device + pin) % 4 for device in range(32) for pin in range(4)})

VARIANTS = {
    "least": {"cpus": 1, "com_ports": (), "i8042": False, "reset_port": 0},
    "default": {"cpus": 2},
    "pci": {"cpus": 255, "pci": PCI, "vga": True, "msi": True},
}


def tables(variant: str = "default", address: int = 0xE0000) -> AcpiTables:
    return acpi_tables(address=address, **VARIANTS[variant])  # type: ignore[arg-type]


class Guest:
    """ACPI tables as a guest meets them: by addresses alone."""

    def __init__(self, made: AcpiTables) -> None:
        self.base = made.address
        self.bytes = made.data

    def at(self, gpa: int, size: int) -> bytes:
        assert self.base <= gpa <= gpa + size <= self.base + len(self.bytes), hex(gpa)
        return self.bytes[gpa - self.base : gpa - self.base + size]

    def table(self, gpa: int) -> bytes:
        """A table with a header: its length is in it, and its bytes add up to 0."""
        (size,) = struct.unpack("<I", self.at(gpa + 4, 4))
        data = self.at(gpa, size)
        assert sum(data) & 0xFF == 0, data[:4]
        return data

    def find(self) -> dict[str, bytes]:
        """Every table, from the RSDP on (5.2.5.1: on a 16-byte boundary)."""
        places = [at for at in range(0, len(self.bytes), 16) if self.bytes[at : at + 8] == b"RSD PTR "]
        rsdp = self.at(self.base + places[0], 36)
        assert sum(rsdp[:20]) & 0xFF == sum(rsdp) & 0xFF == 0
        revision, rsdt_gpa, length, xsdt_gpa = struct.unpack("<xxxxxxxxxxxxxxxBIIQxxxx", rsdp)
        assert (revision, length) == (2, 36)
        rsdt, xsdt = self.table(rsdt_gpa), self.table(xsdt_gpa)
        short = [gpa for (gpa,) in struct.iter_unpack("<I", rsdt[36:])]
        assert short == [gpa for (gpa,) in struct.iter_unpack("<Q", xsdt[36:])]
        found = {"RSDT": rsdt, "XSDT": xsdt}
        for gpa in short:
            data = self.table(gpa)
            found[data[:4].decode()] = data
        fadt = found["FACP"]
        facs, dsdt = struct.unpack_from("<II", fadt, 36)
        assert struct.unpack_from("<QQ", fadt, 132) == (0, dsdt)
        assert facs % 64 == 0
        found["FACS"] = self.at(facs, 64)
        found["DSDT"] = self.table(dsdt)
        return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("address", [0xE0000, 0x7FFE_0000])
def test_a_guest_finds_every_table_and_every_checksum_is_right(variant: str, address: int) -> None:
    made = tables(variant, address)
    found = Guest(made).find()

    assert made.rsdp == address
    assert {name: data[:4] for name, data in found.items()} == {
        name: name.encode() for name in ("RSDT", "XSDT", "FACP", "APIC", "FACS", "DSDT")
    }
    assert all(made.table(name) == data for name, data in found.items())


def test_the_fadt_says_where_the_registers_are() -> None:
    fadt = Guest(acpi_tables(address=0xE0000, cpus=1, pm_port=0xB000, sci=10)).find()["FACP"]

    assert len(fadt) == 276
    assert (fadt[8], fadt[131]) == (6, 5)  # 6.5
    assert struct.unpack_from("<HI", fadt, 46) == (10, 0)  # SCI_INT, SMI_CMD
    assert struct.unpack_from("<8I", fadt, 56) == (0xB000, 0, 0xB004, 0, 0, 0xB008, 0, 0)
    assert (fadt[88], fadt[89], fadt[91]) == (4, 2, 4)
    assert fadt[108] == 0x32
    flags = struct.unpack_from("<I", fadt, 112)[0]
    assert flags & 1 << 10  # RESET_REG_SUP
    assert not flags & 1 << 4  # the power button is in the fixed registers
    assert not flags & 1 << 8  # the timer has 24 bits
    assert not flags & 1 << 20  # HW_REDUCED_ACPI
    assert fadt[116:128] == struct.pack("<BBBBQ", 1, 8, 0, 1, 0xCF9)
    assert fadt[128] == 6
    assert struct.unpack_from("<H", fadt, 109)[0] & 3 == 3  # legacy devices, 8042
    for offset, address, bits in ((148, 0xB000, 32), (172, 0xB004, 16), (208, 0xB008, 32)):
        assert struct.unpack_from("<BBBxQ", fadt, offset) == (1, bits, 0, address)


def test_what_the_tables_say_works_on_the_devices() -> None:
    made = acpi_tables(address=0xE0000, cpus=1)
    fadt = Guest(made).find()["FACP"]
    done: list[object] = []
    control = struct.unpack_from("<I", fadt, 64)[0]
    pm = AcpiPm(ExitClock(), on_power_off=lambda: done.append("off"))
    # \_S5: the first element of the package, after NameOp, the name and PackageOp.
    dsdt = made.table("DSDT")
    at = dsdt.index(b"\x08\\_S5_\x12")
    prefix, slp_typ = dsdt[at + 9], dsdt[at + 10]
    assert (dsdt[at + 8], prefix) == (4, 0x0A)
    pm.write(control - 0x600, 2, slp_typ << 10 | 1 << 13)
    ResetControl(done.append).write(0, 1, fadt[128])

    assert done == ["off", True]


def test_the_fadt_says_what_the_machine_lacks() -> None:
    fadt = Guest(tables("least")).find()["FACP"]

    assert struct.unpack_from("<H", fadt, 109)[0] == 0b11101  # no 8042, no VGA, no MSI, no ASPM
    assert not struct.unpack_from("<I", fadt, 112)[0] & 1 << 10
    assert fadt[116:129] == bytes(13)


def test_the_madt_lists_processors_the_io_apic_and_the_exceptions() -> None:
    madt = Guest(acpi_tables(address=0xE0000, cpus=3, ioapic_id=5)).find()["APIC"]
    assert struct.unpack_from("<II", madt, 36) == (0xFEE00000, 1)
    entries, at = [], 44
    while at < len(madt):
        entries.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]

    assert entries == [
        *(struct.pack("<BBBBI", 0, 8, cpu, cpu, 1) for cpu in range(3)),
        struct.pack("<BBBBII", 1, 12, 5, 0, 0xFEC00000, 0),
        struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0),
        struct.pack("<BBBBIH", 2, 10, 0, 9, 9, 0xD),  # active high, level
        struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1),
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_iasl_disassembles_every_table_and_compiles_the_dsdt_again(variant: str, tmp_path: Path) -> None:
    iasl = shutil.which("iasl")
    if iasl is None:
        pytest.skip("iasl is not installed (Debian: acpica-tools)")
    made = tables(variant)
    for name in ("RSDT", "XSDT", "FACP", "APIC", "FACS", "DSDT"):
        (tmp_path / f"{name}.aml").write_bytes(made.table(name))
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
    done = subprocess.run(
        [iasl, "-oa", "-p", "again", "DSDT.dsl"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=time_limit(60),
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 Errors, 0 Warnings, 0 Remarks" in done.stdout
    # Without optimizations the compiler makes the same AML from its own words (the header has
    # its own name in it).
    assert (tmp_path / "again.aml").read_bytes()[36:] == made.table("DSDT")[36:]


@pytest.mark.parametrize(
    "wrong",
    [
        {"address": 0xE0010},
        {"address": 1 << 32},
        {"cpus": 0},
        {"cpus": 256},
        {"sci": 2},
        {"pm_port": 0x10000},
        {"reset_port": -1},
        {"ioapic_id": 256},
        {"ioapic_address": 1 << 32},
        {"century": 256},
        {"oem_id": "TOOLONG"},
        {"com_ports": [(0x3F8, 16)]},
        {"com_ports": [(0x3F8, 4)] * 10},
        {"pci": PciRoot(memory=(3 * GIB, 2 * GIB))},
        {"pci": PciRoot(io=(0xC000, 0))},
        {"pci": PciRoot(irqs={(32, 0): 16})},
        {"pci": PciRoot(irqs={(0, 4): 16})},
    ],
    ids=str,
)
def test_acpi_tables_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match="acpi"):
        acpi_tables(**{"address": 0xE0000, "cpus": 1} | wrong)


# The MP table.


def mp_entries(data: bytes) -> tuple[tuple, list[bytes]]:
    """The configuration table's header and entries, with both checksums checked."""
    signature, at, paragraphs, revision = struct.unpack_from("<4sIBB", data)
    assert (signature, at, paragraphs, revision) == (b"_MP_", 0xF0010, 1, 4)
    assert sum(data[:16]) & 0xFF == 0
    assert data[11:16] == bytes(5)  # a table is present; virtual wire mode
    table = data[16:]
    assert sum(table) & 0xFF == 0
    header = struct.unpack_from("<4sHBB8s12sIHHIHBB", table)
    assert header[:3] == (b"PCMP", len(table), 4)
    entries, at = [], 44
    while at < len(table):
        size = 20 if table[at] == 0 else 8
        entries.append(table[at : at + size])
        at += size
    assert len(entries) == header[8]
    return header, entries


def test_the_mp_table_describes_processors_bus_io_apic_and_wiring() -> None:
    made = mp_table(address=0xF0000, cpus=2, level_irqs=frozenset({9}), cpu_signature=0x306C3)
    header, entries = mp_entries(made.data)

    assert header[4:6] == (b"VMMSIM  ", b"VMMSIM PC   ")
    assert header[9] == 0xFEE00000
    assert entries[:4] == [
        struct.pack("<BBBBII8x", 0, 0, 0x14, 3, 0x306C3, 0x201),
        struct.pack("<BBBBII8x", 0, 1, 0x14, 1, 0x306C3, 0x201),
        b"\x01\x00ISA   ",
        struct.pack("<BBBBI", 2, 2, 0x11, 1, 0xFEC00000),
    ]
    # type, interrupt type, flags, source bus, source IRQ, destination, pin
    assert [struct.unpack("<BBHBBBB", entry) for entry in entries[4:]] == [
        (3, 0, 0, 0, 0, 2, 2),
        *((3, 0, 0xD if irq == 9 else 0, 0, irq, 2, irq) for irq in range(16) if irq not in (0, 2)),
        (4, 3, 0, 0, 0, 0xFF, 0),
        (4, 1, 0, 0, 0, 0xFF, 1),
    ]


@given(st.integers(1, 255), st.none() | st.integers(0, 15))
def test_any_number_of_processors_makes_a_sound_mp_table(cpus: int, ioapic: int | None) -> None:
    _, entries = mp_entries(mp_table(address=0xF0000, cpus=cpus, ioapic_id=ioapic).data)

    processors = [entry for entry in entries if entry[0] == 0]
    assert [entry[1] for entry in processors] == list(range(cpus))
    assert [entry[1] for entry in processors if entry[3] & 2] == [0]
    (chip,) = [entry for entry in entries if entry[0] == 2]
    assert {entry[6] for entry in entries if entry[0] == 3} == {chip[1]}
    if ioapic is None and cpus < 16:
        assert chip[1] not in range(cpus)


@pytest.mark.parametrize(
    "wrong",
    [
        {"address": 0xF0008},
        {"cpus": 0},
        {"cpus": 256},
        {"ioapic_id": 16},
        {"level_irqs": frozenset({2})},
        {"cpu_features": -1},
        {"oem_id": "far too long"},
        {"product_id": "ä"},
    ],
    ids=str,
)
def test_mp_tables_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match="mp table"):
        mp_table(**{"address": 0xF0000, "cpus": 1} | wrong)


# The E820 map.

RAM, RESERVED, ACPI, NVS, UNUSABLE = E820Type


def triples(entries: list[E820Entry]) -> list[tuple[int, int, int]]:
    return [(entry.gpa, entry.end, entry.type) for entry in entries]


def test_the_map_of_a_pc_with_more_than_4_gib() -> None:
    found = e820_map(
        [
            (4 * GIB, GIB, RAM),
            (0, 3 * GIB, RAM),
            (3 * GIB - 64 * 1024, 32 * 1024, ACPI),
            (3 * GIB - 32 * 1024, 32 * 1024, NVS),
            (0xFEC00000, 0x1000, RESERVED),
        ]
    )

    assert triples(found) == [
        (0, 0x9FC00, 1),
        (0x9FC00, 0xA0000, 2),
        (0xE0000, 0x100000, 2),
        (MIB, 3 * GIB - 64 * 1024, 1),
        (3 * GIB - 64 * 1024, 3 * GIB - 32 * 1024, 3),
        (3 * GIB - 32 * 1024, 3 * GIB, 4),
        (0xFEC00000, 0xFEC01000, 2),
        (4 * GIB, 5 * GIB, 1),
    ]


def test_the_map_without_ebda_and_bios_is_the_ram_outside_the_window() -> None:
    found = e820_map([(0, 2 * MIB, RAM)], ebda=None, bios=None)

    assert triples(found) == [(0, 0xA0000, 1), (MIB, 2 * MIB, 1)]


def test_neighbours_of_one_type_are_one_entry() -> None:
    found = e820_map([(MIB, MIB, RAM), (2 * MIB, MIB, RAM)], ebda=None, bios=None)

    assert triples(found) == [(MIB, 3 * MIB, 1)]


pages = st.tuples(st.integers(0, 600), st.integers(1, 200), st.sampled_from(E820Type))


@given(st.lists(pages, max_size=12), st.booleans())
def test_any_map_is_sorted_disjoint_merged_and_says_the_worst_of_each_page(regions: list, pc: bool) -> None:
    ranges = [(gpa << 12, size << 12, kind) for gpa, size, kind in regions]
    found = e820_map(ranges) if pc else e820_map(ranges, ebda=None, bios=None)
    for before, after in pairwise(found):
        assert before.end < after.gpa or (before.end == after.gpa and before.type != after.type)
    assert all(entry.size > 0 for entry in found)

    def told(at: int) -> int | None:
        return next((entry.type for entry in found if entry.gpa <= at < entry.end), None)

    order = [RAM, ACPI, NVS, RESERVED, UNUSABLE]
    for at in range(0, 801 << 12, 0x1000):
        kinds = [kind for gpa, size, kind in ranges if gpa <= at < gpa + size]
        if 0xA0000 <= at < MIB:
            kinds = [kind for kind in kinds if kind is not RAM]
        if pc and 0xE0000 <= at < MIB:
            kinds.append(RESERVED)
        assert told(at) == max(kinds, key=order.index, default=None)
    if pc:
        assert told(0x9FFFF) in (RESERVED, UNUSABLE)


@pytest.mark.parametrize(
    ("regions", "more"),
    [
        ([(0, 0, RAM)], {}),
        ([(-1, 2, RAM)], {}),
        ([(0, 1 << 49, RAM)], {}),
        ([(0, 1, 6)], {}),
        ([(0, 1, "ram")], {}),
        ([], {"ebda": 0xA0000}),
        ([], {"ebda": 0}),
        ([], {"bios": 0x9F000}),
        ([], {"bios": 0x100000}),
    ],
)
def test_maps_that_cannot_be_are_refused(regions: list, more: dict) -> None:
    with pytest.raises(UsageError, match="e820"):
        e820_map(regions, **more)


def test_each_protocol_gets_its_packing() -> None:
    entries = [E820Entry(0, 0x9FC00, RAM), E820Entry(4 * GIB, GIB, NVS)]

    assert pack_boot_params(entries) == struct.pack("<QQIQQI", 0, 0x9FC00, 1, 4 * GIB, GIB, 4)
    assert pack_multiboot(entries) == struct.pack("<IQQIIQQI", 20, 0, 0x9FC00, 1, 20, 4 * GIB, GIB, 4)
    assert pack_pvh(entries) == struct.pack("<QQIIQQII", 0, 0x9FC00, 1, 0, 4 * GIB, GIB, 4, 0)


def test_boot_params_has_room_for_128_entries() -> None:
    entries = [E820Entry(n * MIB, 0x1000, RAM) for n in range(129)]
    assert len(pack_boot_params(entries[:128])) == 128 * 20

    with pytest.raises(UsageError, match="129"):
        pack_boot_params(entries)


def test_the_boot_loaders_take_the_map() -> None:
    found = e820_map([(0, 64 * MIB, RAM)])

    assert BootMemory("kernel", 64 * MIB, found).entries == [(e.gpa, e.size, e.type) for e in found]
