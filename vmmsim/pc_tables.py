"""What a PC's firmware says of the machine: to a kernel in memory, to other firmware by fw_cfg.

Everything follows from the `MachineConfig`: the E820 map from its RAM, the ACPI and MP tables
from the devices that it names. The tables lie where a kernel that is told nothing searches
for them; vmmsim/layout.py has the addresses.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from . import layout, models
from .loaders import BootModule, ImageSegment, LoadedImage, load_kernel
from .loaders.acpi import AcpiTables, PciRoot, acpi_tables
from .loaders.acpi_linker import fw_cfg_tables
from .loaders.e820 import E820Entry, E820Type, e820_map, pack_boot_params
from .loaders.mptable import MpTable, mp_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config import MachineConfig

__all__ = ["PcTables", "boot_kernel", "fw_cfg_items", "pc_tables"]

#: fw_cfg's key for "IRQ 0 goes to pin 2 of the I/O APIC" (QEMU, hw/i386/fw_cfg.h).
_IRQ0_OVERRIDE = 0x8002


class PcTables(msgspec.Struct, frozen=True):
    """`e820` is the memory map, `rsdp` ACPI's root pointer (guest-physical; 0: no tables).

    `segments` are what goes into memory; `acpi` and `mp` what of it they were made from,
    None where the machine has no such table.
    """

    e820: list[E820Entry]
    segments: list[ImageSegment]
    rsdp: int = 0
    acpi: AcpiTables | None = None
    mp: MpTable | None = None


def _e820(config: MachineConfig) -> list[E820Entry]:
    """The memory map of a machine: a PC's first MiB for `pc`, for others just their RAM."""
    pc = config.model == "pc"
    ram = [(gpa, size, E820Type.RAM) for gpa, size in models.ram(config)]
    ebda = layout.EBDA if pc and config.memory > layout.EBDA else None
    bios = layout.BIOS_AREA if pc and config.memory > layout.BIOS_AREA else None
    return e820_map(ram, ebda=ebda, bios=bios)


#: ICW1 to ICW4 and the masks of both 8259As (data sheet 231468, "Programming the 8259A"), as a PC's BIOS
#: sets them up: (port, value).
_PICS_OF_A_BIOS = (
    (0x20, 0x11), (0xA0, 0x11), (0x21, 0x08), (0xA1, 0x70), (0x21, 0x04), (0xA1, 0x02),
    (0x21, 0x01), (0xA1, 0x01), (0x21, 0x00), (0xA1, 0x00),
)  # fmt: skip


def pc_tables(config: MachineConfig) -> PcTables:
    """What the firmware of `config`'s machine leaves for a kernel.

    A `pc` that has its RAM below 1 MiB gets the BIOS data area (COM1, the EBDA and the size of
    base memory), the ACPI tables if it has `acpi-pm`, whose registers they describe, and an
    MP table if it has local APICs. Without local APICs the ACPI tables have no MADT. Other
    models get the memory map alone.
    """
    e820 = _e820(config)
    if config.model != "pc" or config.memory < layout.BIOS_AREA + 0x20000:
        return PcTables(e820, [])
    names = models.names(config)
    cpus = config.cpus
    bda = _bda("uart" in names)
    segments = [
        ImageSegment(layout.BDA, bda, len(bda), "BIOS data area"),
        ImageSegment(layout.EBDA, b"\1", 1, "EBDA"),
    ]
    acpi = mp = None
    if "acpi-pm" in names:
        acpi = _acpi(config, layout.ACPI_TABLES)
        segments.append(ImageSegment(acpi.address, acpi.data, len(acpi.data), "ACPI tables"))
    if "lapic" in names:
        mp = mp_table(
            address=layout.MP_TABLE,
            cpus=cpus,
            ioapic_id=layout.ioapic_id(cpus),
            ioapic_address=layout.IOAPIC,
            lapic_address=layout.LAPIC,
            level_irqs=frozenset({layout.SCI_IRQ}) if acpi is not None else frozenset(),
        )
        segments.append(ImageSegment(mp.address, mp.data, len(mp.data), "MP table"))
    return PcTables(e820, segments, acpi.rsdp if acpi is not None else 0, acpi, mp)


def _acpi(config: MachineConfig, address: int) -> AcpiTables:
    names = models.names(config)
    cpus = config.cpus
    return acpi_tables(
        address=address,
        cpus=cpus,
        apics="lapic" in names,
        pm_port=layout.ACPI_PM_PORT,
        sci=layout.SCI_IRQ,
        reset_port=layout.RESET_CONTROL_PORT if "reset-control" in names else 0,
        ioapic_id=layout.ioapic_id(cpus),
        ioapic_address=layout.IOAPIC,
        lapic_address=layout.LAPIC,
        com_ports=((layout.COM1_PORT, layout.COM1_IRQ),) if "uart" in names else (),
        i8042="kbc" in names,
        pci=PciRoot(layout.PCI_MEMORY, layout.PCI_PORTS) if "host-bridge" in names else None,
    )


def boot_kernel(
    config: MachineConfig,
    data: bytes,
    *,
    name: str,
    initrd: bytes | None = None,
    append: str = "",
    modules: Sequence[BootModule] = (),
    path: Path | None = None,
) -> LoadedImage:
    """The kernel `data` for a machine of `config`, with the tables of `pc_tables`.

    Arguments and errors are those of `vmmsim.loaders.load_kernel`. A machine with 8259As has them as a BIOS
    leaves them, which Multiboot promises (Multiboot 0.6.96, 3.2): IRQ 0 to 7 are vectors 08h to 0Fh, IRQ 8
    to 15 70h to 77h, none is masked.
    """
    tables = pc_tables(config)
    image = load_kernel(
        data,
        name=name,
        memory_size=config.memory,
        e820=tables.e820,
        initrd=initrd,
        append=append,
        modules=modules,
        acpi_rsdp=tables.rsdp,
        path=path,
    )
    image.segments.extend(tables.segments)
    if "pic" in models.names(config):
        image.port_writes = list(_PICS_OF_A_BIOS)
    return image


def fw_cfg_items(config: MachineConfig) -> tuple[dict[str, bytes], dict[int, bytes]]:
    """What fw_cfg tells firmware of `config`'s machine: files by name, other items by key.

    These are what SeaBIOS asks for: etc/e820 has its RAM (from 0 on, without a gap for the
    display, as QEMU says it), etc/table-loader and what belongs to it its ACPI tables,
    etc/sercon-port makes the serial port its screen, and with etc/boot-fail-wait -1 it halts
    when there is nothing to boot.
    """
    from .devices.fw_cfg import legacy_items

    names = models.names(config)
    cpus = config.cpus
    below = min(config.memory, layout.LOW_RAM_END)
    ram = [E820Entry(0, below, E820Type.RAM)]
    if config.memory > below:
        ram.append(E820Entry(layout.HIGH_RAM, config.memory - below, E820Type.RAM))
    files = {
        "etc/e820": pack_boot_params(ram),
        "etc/boot-fail-wait": struct.pack("<i", -1),
        "etc/max-cpus": struct.pack("<H", cpus),
    }
    if "uart" in names:
        files["etc/sercon-port"] = struct.pack("<H", layout.COM1_PORT)
    if "acpi-pm" in names:
        files |= fw_cfg_tables(_acpi(config, 0))
    legacy = legacy_items(memory=config.memory, cpus=cpus)
    if "lapic" in names:
        legacy[_IRQ0_OVERRIDE] = struct.pack("<I", 1)
    return files, legacy


def _bda(com1: bool) -> bytes:
    """The BIOS data area's first bytes (400h-414h): COM1's port, the EBDA's segment, base memory in KiB."""
    area = bytearray(0x15)
    struct.pack_into("<H", area, 0x00, layout.COM1_PORT if com1 else 0)
    struct.pack_into("<H", area, 0x0E, layout.EBDA >> 4)
    struct.pack_into("<H", area, 0x13, layout.EBDA >> 10)
    return bytes(area)
