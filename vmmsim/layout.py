"""Every address, port and irq number of the machine models, in one place.

Addresses are guest-physical and in bytes. The PC's numbers are those of the IBM PC/AT
Technical Reference; the debug ports are QEMU's (docs/specs, isa-debug-exit) and Bochs'.
"""

from __future__ import annotations

__all__ = [
    "ACPI_PM_PORT",
    "ACPI_TABLES",
    "BDA",
    "BIOS_AREA",
    "BOOT_GDT",
    "BOOT_PAGE_TABLES",
    "BOOT_STACK",
    "BOOT_TABLES",
    "BOOT_TABLES_SIZE",
    "BOOT_TSS",
    "CHAR_IN",
    "CHAR_OUT",
    "COM1_IRQ",
    "COM1_PORT",
    "DEBUG_CONSOLE_PORT",
    "DEBUG_EXIT_PORT",
    "DEFAULT_LOAD",
    "DEFAULT_MEMORY",
    "EBDA",
    "ELCR_PORT",
    "FIRMWARE_LOG_PORT",
    "FW_CFG_PORT",
    "HIGH_RAM",
    "HOST_BRIDGE_PORT",
    "IOAPIC",
    "KBC_COMMAND_PORT",
    "KBC_DATA_PORT",
    "KEYBOARD_IRQ",
    "LAPIC",
    "LOW_RAM_END",
    "MAX_CPUS",
    "MAX_MEMORY",
    "MOUSE_IRQ",
    "MP_TABLE",
    "PCI_MEMORY",
    "PCI_PORTS",
    "PIC_MASTER_PORT",
    "PIC_SLAVE_PORT",
    "PIT_PORT",
    "PORT_61",
    "PORT_92",
    "POST_CODE_PORT",
    "RANDOM_LETTER",
    "RESET_CONTROL_PORT",
    "RTC_IRQ",
    "RTC_PORT",
    "SCI_IRQ",
    "SCRATCH",
    "SCRATCH_SIZE",
    "SNAPSHOT_PORT",
    "TALK_PAGE",
    "TALK_PAGE_SIZE",
    "TESTDEV_IRQ_PORT",
    "TESTDEV_MEMORY",
    "TESTDEV_PORT",
    "VIDEO",
    "VIDEO_SIZE",
    "ioapic_id",
]


def ioapic_id(cpus: int) -> int:
    """The I/O APIC's id (0-15) in a machine with so many vCPUs: the first that no local APIC has."""
    return cpus if cpus <= 15 else 0


DEFAULT_MEMORY = 64 << 20
#: `-m` beyond this is refused: a typing error more often than a wish.
MAX_MEMORY = 512 << 30
#: APIC ids have 8 bits, and all ones is everybody.
MAX_CPUS = 255

#: RAM of more than 3 GiB goes on at 4 GiB: the last GiB below it is for APICs, PCI and ROM.
LOW_RAM_END = 3 << 30
HIGH_RAM = 4 << 30
#: Where a PC's display adapter has its memory. A `pc` has no display: a hole. What lies
#: behind it up to 1 MiB is RAM, as it is once a chipset shadows its ROMs.
VIDEO, VIDEO_SIZE = 0xA0000, 0x20000

#: What a PC's firmware leaves behind for a kernel: its data area and the extended one (the last
#: KiB below 640 KiB), and from E0000h on what a kernel searches by signatures: ACPI's RSDP
#: there, the MP table from F0000h on.
BDA, EBDA, BIOS_AREA = 0x400, 0x9FC00, 0xE0000
ACPI_TABLES, MP_TABLE = 0xE0000, 0xF0000
#: Where CPUs and chipsets have their APICs (SDM vol. 3, 10.4.1; 82093AA).
IOAPIC, LAPIC = 0xFEC00000, 0xFEE00000
#: The windows of PCI's memory and ports: (start, size).
PCI_MEMORY, PCI_PORTS = (LOW_RAM_END, IOAPIC - LOW_RAM_END), (0xC000, 0x4000)

#: The talk's devices live in the page at 0x1000, which is a hole in the RAM.
TALK_PAGE = 0x1000
TALK_PAGE_SIZE = 0x1000
CHAR_IN = 0x1000
RANDOM_LETTER = 0x1010
CHAR_OUT = 0x1020

#: The scratch device of the `widths` guest and the conformance suite: two pages of
#: registers, so that an access can cross a page inside the device, in a hole below 1 MiB.
SCRATCH = 0xD0000
SCRATCH_SIZE = 0x2000

COM1_PORT = 0x3F8
COM1_IRQ = 4
RTC_IRQ, KEYBOARD_IRQ, MOUSE_IRQ, SCI_IRQ = 8, 1, 12, 9
PIC_MASTER_PORT, PIC_SLAVE_PORT, ELCR_PORT = 0x20, 0xA0, 0x4D0
PIT_PORT, PORT_61, RTC_PORT = 0x40, 0x61, 0x70
KBC_DATA_PORT, KBC_COMMAND_PORT, PORT_92 = 0x60, 0x64, 0x92
POST_CODE_PORT, HOST_BRIDGE_PORT, RESET_CONTROL_PORT = 0x80, 0xCF8, 0xCF9
ACPI_PM_PORT, FW_CFG_PORT = 0x600, 0x510
TESTDEV_PORT, TESTDEV_IRQ_PORT, TESTDEV_MEMORY = 0xE0, 0x2000, 0xFF000000
#: A byte written here ends the machine; the value is the exit code.
DEBUG_EXIT_PORT = 0xF4
#: A write asks for a snapshot, a read answers the generation. Once the ports of an 80287.
SNAPSHOT_PORT = 0xF8
#: Bochs' and QEMU's debug console: a byte written is printed, a read answers 0xE9.
DEBUG_CONSOLE_PORT = 0xE9
#: Where SeaBIOS and OVMF write their log: the default of QEMU's isa-debugcon.
FIRMWARE_LOG_PORT = 0x402

#: Where a flat image goes unless told otherwise: the PC's boot sector.
DEFAULT_LOAD = 0x7C00
#: The stack of the mode presets grows down from here, below the boot sector.
BOOT_STACK = 0x7C00

#: The tables of the mode presets (cpu/modes.py), below the EBDA and out of the way of images:
#: GDT, page tables (4 GiB by 2 MiB pages), then the TSS with its I/O permission bitmap.
BOOT_TABLES = 0x90000
BOOT_GDT = BOOT_TABLES
BOOT_PAGE_TABLES = BOOT_TABLES + 0x1000
BOOT_TSS = BOOT_TABLES + 0x7000
BOOT_TABLES_SIZE = 0xA000
