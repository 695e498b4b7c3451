"""ACPI tables: how a PC tells its guest what it is made of.

ACPI Specification 6.5: RSDP (5.2.5.3), RSDT and XSDT (5.2.7, 5.2.8), FADT (5.2.9), FACS
(5.2.10), DSDT (5.2.11.1), MADT (5.2.12); AML is chapter 20. The FADT describes
`vmmsim.devices.acpi_pm.AcpiPm` and `vmmsim.devices.reset_control.ResetControl`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from ..errors import UsageError

__all__ = ["AcpiTables", "PciRoot", "acpi_tables"]

RSDP_SIZE = 36
FACS_SIZE = 64
FADT_SIZE = 276  # revision 6
HEADER_SIZE = 36

# FADT "Fixed Feature Flags" (table 5.10).
WBINVD = 1 << 0
PROC_C1 = 1 << 2
SLP_BUTTON = 1 << 5  # there is no sleep button in the fixed registers (a power button is)
FIX_RTC = 1 << 6  # the RTC's alarm is not in the fixed registers either
RESET_REG_SUP = 1 << 10

# FADT "IA-PC Boot Architecture Flags" (table 5.11).
LEGACY_DEVICES = 1 << 0
HAS_8042 = 1 << 1
NO_VGA = 1 << 2
NO_MSI = 1 << 3
NO_ASPM = 1 << 4

# Generic Address Structure (5.2.3.2).
SYSTEM_IO = 1
BYTE_ACCESS, WORD_ACCESS, DWORD_ACCESS = 1, 2, 3
NO_REGISTER = bytes(12)

# MADT entries ("Interrupt Controller Structure Types").
LOCAL_APIC, IO_APIC, SOURCE_OVERRIDE, LOCAL_APIC_NMI = 0, 1, 2, 4
ALL_PROCESSORS = 0xFF
PCAT_COMPAT = 1  # there are 8259s as well
HIGH_LEVEL = 0xD  # polarity in bits 1:0, trigger in bits 3:2

#: The value that AcpiPm takes for power off.
S5_TYPE = 5


class PciRoot(msgspec.Struct, frozen=True):
    """A PCI host bridge with configuration mechanism #1 (CF8h), for the DSDT.

    `memory` is the window for BARs: guest-physical address and size, both below 4 GiB.
    `io` is that of ports. `irqs` maps (device number, pin 0-3 for INTA-INTD) to the GSI
    that the pin is wired to.
    """

    memory: tuple[int, int] = (0xC0000000, 0x3EC00000)
    io: tuple[int, int] = (0xC000, 0x4000)
    irqs: Mapping[tuple[int, int], int] = msgspec.field(default_factory=dict)


class AcpiTables(msgspec.Struct, frozen=True):
    """`data` for guest-physical `address`, where it begins with the RSDP.

    `tables` says where each table is: signature -> (guest-physical address, size in bytes).
    """

    address: int
    data: bytes
    tables: dict[str, tuple[int, int]]

    @property
    def rsdp(self) -> int:
        """The RSDP's address, for boot protocols that hand it over (boot_params, PVH)."""
        return self.address

    def table(self, signature: str) -> bytes:
        """The bytes of one table."""
        gpa, size = self.tables[signature]
        return self.data[gpa - self.address : gpa - self.address + size]


def acpi_tables(
    *,
    address: int,
    cpus: int,
    pm_port: int = 0x600,
    sci: int = 9,
    reset_port: int = 0xCF9,
    reset_value: int = 6,
    ioapic_id: int = 0,
    ioapic_address: int = 0xFEC00000,
    lapic_address: int = 0xFEE00000,
    century: int = 0x32,
    com_ports: Sequence[tuple[int, int]] = ((0x3F8, 4),),
    i8042: bool = True,
    vga: bool = False,
    msi: bool = False,
    pci: PciRoot | None = None,
    apics: bool = True,
    oem_id: str = "VMMSIM",
) -> AcpiTables:
    """The tables of a PC with `cpus` processors (1 to 255, APIC IDs from 0) and one I/O APIC.

    Without `apics` there is no MADT: the guest keeps to its 8259s (5.2.12: the MADT is for "an
    APIC or SAPIC implementation").

    `address` is guest-physical, a multiple of 64 (the FACS wants that). A guest that is not told
    searches for the RSDP from E0000h to FFFFFh, so the tables go there, or anywhere below 4 GiB
    with a boot protocol that hands `rsdp` over. `pm_port` is AcpiPm's first port, `sci` its IRQ
    (active high, level); the reset register takes `reset_value`, and 0 for `reset_port` says that there
    is none. `century` is the RTC's CMOS byte (0: none). `com_ports` are (first port, IRQ).
    Without `i8042`, `vga`, `msi` or `pci` the tables say that the machine lacks it.

    The machine is in ACPI mode from the start (SMI_CMD is 0), \\_S5 is SLP_TYP 5, and there are
    no GPEs. Raises UsageError for what cannot be.
    """
    if address % 64 or not 0 <= address < (1 << 32) - 0x4000:
        raise UsageError(
            f"acpi: tables at {address:#x}", hint="use a multiple of 64 that leaves 16 KiB to 4 GiB"
        )
    if not 1 <= cpus <= 255:
        raise UsageError(f"acpi: {cpus} processors", hint="8-bit APIC IDs allow 1 to 255")
    if not 0 <= pm_port <= 0xFFF0 or not 0 <= reset_port <= 0xFFFF or not 3 <= sci <= 15:
        raise UsageError(
            f"acpi: the ports {pm_port:#x} and {reset_port:#x}, SCI {sci}",
            hint="ports have 16 bits, and the SCI is one of IRQ 3 to 15",
        )
    if not 0 <= ioapic_id <= 0xFF or not 0 <= reset_value <= 0xFF or not 0 <= century <= 0xFF:
        raise UsageError(
            f"acpi: I/O APIC ID {ioapic_id}, reset value {reset_value}, century {century:#x}",
            hint="each is a byte",
        )
    if not 0 <= ioapic_address < 1 << 32 or not 0 <= lapic_address < 1 << 32:
        raise UsageError(
            f"acpi: an APIC at {ioapic_address:#x} or {lapic_address:#x}", hint="use addresses below 4 GiB"
        )
    if not oem_id.isascii() or len(oem_id) > 6:
        raise UsageError(f"acpi: the OEM ID {oem_id!r}", hint="use at most 6 ASCII characters")
    oem = oem_id.ljust(6).encode("ascii")

    tables: dict[str, tuple[int, int]] = {}
    data = bytearray(RSDP_SIZE)

    def place(signature: str, table: bytes, align: int = 16) -> int:
        data.extend(bytes(-len(data) % align))
        gpa = address + len(data)
        tables[signature] = (gpa, len(table))
        data.extend(table)
        return gpa

    facs = place(
        "FACS", struct.pack("<4sIIIIQB", b"FACS", FACS_SIZE, 0, 0, 0, 0, 2).ljust(FACS_SIZE, b"\0"), 64
    )
    dsdt = place("DSDT", _table("DSDT", 2, _dsdt(com_ports, i8042, pci), oem))
    boot_flags = (
        LEGACY_DEVICES
        | (HAS_8042 if i8042 else 0)
        | (0 if vga else NO_VGA)
        | (0 if msi else NO_MSI)
        | NO_ASPM
    )
    fadt = _fadt(facs, dsdt, pm_port, sci, reset_port, reset_value, century, boot_flags)
    listed = [place("FACP", _table("FACP", 6, fadt, oem))]
    if apics:
        madt = _madt(cpus, ioapic_id, ioapic_address, lapic_address, sci)
        listed.append(place("APIC", _table("APIC", 5, madt, oem)))
    rsdt = place("RSDT", _table("RSDT", 1, struct.pack(f"<{len(listed)}I", *listed), oem))
    xsdt = place("XSDT", _table("XSDT", 1, struct.pack(f"<{len(listed)}Q", *listed), oem))
    data[:RSDP_SIZE] = _rsdp(rsdt, xsdt, oem)
    tables["RSD PTR "] = (address, RSDP_SIZE)
    return AcpiTables(address, bytes(data), tables)


def _table(signature: str, revision: int, body: bytes, oem: bytes) -> bytes:
    """`body` with the header that all tables but RSDP and FACS have (5.2.6)."""
    table = bytearray(
        struct.pack(
            "<4sIBB6s8sI4sI",
            signature.encode("ascii"),
            HEADER_SIZE + len(body),
            revision,
            0,
            oem,
            oem.ljust(8),
            1,
            b"VMSM",
            1,
        )
        + body
    )
    table[9] = -sum(table) & 0xFF
    return bytes(table)


def _rsdp(rsdt: int, xsdt: int, oem: bytes) -> bytes:
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, oem, 2, rsdt, RSDP_SIZE, xsdt, 0))
    rsdp[8] = -sum(rsdp[:20]) & 0xFF  # revision 0's part has a checksum of its own
    rsdp[32] = -sum(rsdp) & 0xFF
    return bytes(rsdp)


def _io_register(port: int, bits: int, access: int) -> bytes:
    return struct.pack("<BBBBQ", SYSTEM_IO, bits, 0, access, port)


def _fadt(
    facs: int,
    dsdt: int,
    pm_port: int,
    sci: int,
    reset_port: int,
    reset_value: int,
    century: int,
    boot_flags: int,
) -> bytes:
    flags = WBINVD | PROC_C1 | SLP_BUTTON | FIX_RTC | (RESET_REG_SUP if reset_port else 0)
    event, control, timer = pm_port, pm_port + 4, pm_port + 8
    body = b"".join(
        (
            struct.pack("<IIBBH", facs, dsdt, 0, 1, sci),  # preferred profile 1: desktop
            struct.pack("<IBBBB", 0, 0, 0, 0, 0),  # SMI_CMD and its values
            struct.pack("<8I", event, 0, control, 0, 0, timer, 0, 0),
            struct.pack("<8B", 4, 2, 0, 4, 0, 0, 0, 0),
            # No C2 and no C3: latencies of more than 100 and 1000 microseconds say so.
            struct.pack("<HHHHBBBBB", 101, 1001, 0, 0, 0, 0, 0, 0, century),
            struct.pack("<HBI", boot_flags, 0, flags),
            _io_register(reset_port, 8, BYTE_ACCESS) if reset_port else NO_REGISTER,
            struct.pack("<BHB", reset_value if reset_port else 0, 0, 5),  # ARM flags; minor version: 6.5
            struct.pack("<QQ", 0, dsdt),  # the FACS is below 4 GiB: the 32-bit field says where
            _io_register(event, 32, WORD_ACCESS),
            NO_REGISTER,
            _io_register(control, 16, WORD_ACCESS),
            NO_REGISTER,
            NO_REGISTER,
            _io_register(timer, 32, DWORD_ACCESS),
            NO_REGISTER * 4,  # GPE0, GPE1; sleep control and status of hardware-reduced ACPI
            b"vmmsim\0\0",  # hypervisor vendor identity
        )
    )
    assert len(body) == FADT_SIZE - HEADER_SIZE
    return body


def _madt(cpus: int, ioapic_id: int, ioapic_address: int, lapic_address: int, sci: int) -> bytes:
    entries = [struct.pack("<II", lapic_address, PCAT_COMPAT)]
    entries += [struct.pack("<BBBBI", LOCAL_APIC, 8, cpu, cpu, 1) for cpu in range(cpus)]
    entries.append(struct.pack("<BBBBII", IO_APIC, 12, ioapic_id, 0, ioapic_address, 0))
    # The 8254 is wired to pin 2. The other ISA IRQs go to the pins of their own numbers.
    entries.append(struct.pack("<BBBBIH", SOURCE_OVERRIDE, 10, 0, 0, 2, 0))
    entries.append(struct.pack("<BBBBIH", SOURCE_OVERRIDE, 10, 0, sci, sci, HIGH_LEVEL))
    entries.append(struct.pack("<BBBHB", LOCAL_APIC_NMI, 6, ALL_PROCESSORS, 0, 1))
    return b"".join(entries)


# AML (chapter 20). Only what the DSDT below needs.


def _package_length(size: int) -> bytes:
    """PkgLength (20.2.4) in front of `size` bytes; it counts itself."""
    if size + 1 < 0x40:
        return bytes((size + 1,))
    for more in (1, 2, 3):
        total = size + 1 + more
        if total < 1 << 4 + 8 * more:
            return bytes((more << 6 | total & 0xF,)) + (total >> 4).to_bytes(more, "little")
    raise UsageError(f"acpi: {size} bytes are too long for AML", hint="describe fewer devices")


def _with_length(opcode: bytes, body: bytes) -> bytes:
    return opcode + _package_length(len(body)) + body


def _integer(value: int) -> bytes:
    if value < 2:
        return bytes((value,))  # ZeroOp, OneOp
    for size, prefix in ((1, 0x0A), (2, 0x0B), (4, 0x0C), (8, 0x0E)):
        if value < 1 << 8 * size:
            return bytes((prefix,)) + value.to_bytes(size, "little")
    raise UsageError(f"acpi: {value:#x} is no integer of AML", hint="they have 64 bits")


def _package(elements: Sequence[bytes]) -> bytes:
    return _with_length(b"\x12", bytes((len(elements),)) + b"".join(elements))


def _name(name: str, value: bytes) -> bytes:
    return b"\x08" + name.encode("ascii") + value


def _eisa_id(name: str) -> bytes:
    """EISAID("PNP0501") as the integer that it is (19.6, "EISAID"), DWordPrefix and all."""
    letters = 0
    for letter in name[:3]:
        letters = letters << 5 | ord(letter) - 0x40
    return b"\x0c" + (letters << 16 | int(name[3:], 16)).to_bytes(4, "big")


def _resources(items: Iterable[bytes]) -> bytes:
    """A ResourceTemplate: a buffer of descriptors and the end tag (6.4.2.9), its checksum 0."""
    data = b"".join(items) + b"\x79\x00"
    return _with_length(b"\x11", _integer(len(data)) + data)


def _ports(first: int, count: int) -> bytes:
    """I/O Port Descriptor (6.4.2.5): 16 address bits decoded, at `first` and nowhere else."""
    return struct.pack("<BBHHBB", 0x47, 1, first, first, 1, count)


def _irq(number: int) -> bytes:
    """IRQ Descriptor (6.4.2.1) without flags: edge, active high, not shared."""
    return struct.pack("<BH", 0x22, 1 << number)


def _window(kind: int, flags: int, first: int, size: int) -> bytes:
    """DWord Address Space Descriptor (6.4.3.5.2): what a bridge passes on to its bus."""
    last = first + size - 1
    return struct.pack("<BHBBBIIIII", 0x87, 23, kind, 0x0C, flags, 0, first, last, 0, size)


def _device(name: str, hid: str, resources: Iterable[bytes], *more: bytes) -> bytes:
    body = name.encode("ascii") + _name("_HID", _eisa_id(hid)) + b"".join(more)
    return _with_length(b"\x5b\x82", body + _name("_CRS", _resources(resources)))


def _pci_root(pci: PciRoot) -> bytes:
    for first, size, limit in ((*pci.memory, 1 << 32), (*pci.io, 1 << 16)):
        if first < 0 or size <= 0 or first + size > limit:
            raise UsageError(f"acpi: PCI's window of {size:#x} at {first:#x}", hint=f"it ends at {limit:#x}")
    for (device, pin), gsi in pci.irqs.items():
        if not 0 <= device <= 31 or not 0 <= pin <= 3 or not 0 <= gsi <= 0xFFFFFFFF:
            raise UsageError(
                f"acpi: pin {pin} of PCI device {device} to GSI {gsi}",
                hint="devices are 0 to 31, pins 0 to 3",
            )
    # Each route: device number (all functions), pin, no link device, GSI.
    routes = [
        _package([_integer(device << 16 | 0xFFFF), _integer(pin), _integer(0), _integer(gsi)])
        for (device, pin), gsi in sorted(pci.irqs.items())
    ]
    resources = (
        struct.pack("<BHBBBHHHHH", 0x88, 13, 2, 0x0C, 0, 0, 0, 0xFF, 0, 0x100),  # bus numbers 0 to 255
        _ports(0xCF8, 8),
        _window(1, 3, *pci.io),  # ISA and non-ISA ranges
        _window(0, 1, *pci.memory),  # read-write, not cacheable
    )
    return _device("PCI0", "PNP0A03", resources, _name("_UID", _integer(0)), _name("_PRT", _package(routes)))


def _dsdt(com_ports: Sequence[tuple[int, int]], i8042: bool, pci: PciRoot | None) -> bytes:
    if len(com_ports) > 9:
        raise UsageError(f"acpi: {len(com_ports)} serial ports", hint="COM1 to COM9 have names")
    devices = []
    if pci is not None:
        devices.append(_pci_root(pci))
    devices.append(_device("RTC_", "PNP0B00", (_ports(0x70, 2), _irq(8))))
    if i8042:
        devices.append(_device("KBD_", "PNP0303", (_ports(0x60, 1), _ports(0x64, 1), _irq(1))))
        devices.append(_device("MOU_", "PNP0F13", (_irq(12),)))
    for number, (port, irq) in enumerate(com_ports, 1):
        if not 0 <= port <= 0xFFF8 or not 0 <= irq <= 15:
            raise UsageError(f"acpi: COM{number} at {port:#x}, IRQ {irq}", hint="IRQ 0 to 15, a 16-bit port")
        uid = _name("_UID", _integer(number))
        devices.append(_device(f"COM{number}", "PNP0501", (_ports(port, 8), _irq(irq)), uid))
    sleep = _package([_integer(S5_TYPE), _integer(S5_TYPE), _integer(0), _integer(0)])
    return _name("\\_S5_", sleep) + _with_length(b"\x10", b"\\_SB_" + b"".join(devices))
