"""Every address, port and irq number of the machine models, in one place.

Addresses are guest-physical and in bytes. The PC's numbers are those of the IBM PC/AT
Technical Reference; the debug ports are QEMU's (docs/specs, isa-debug-exit) and Bochs'.
"""

from __future__ import annotations

__all__ = [
    "ACPI_PM_PORT",
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
    "ELCR_PORT",
    "FW_CFG_PORT",
    "IOAPIC_PAGE",
    "KBC_COMMAND_PORT",
    "KBC_DATA_PORT",
    "KEYBOARD_IRQ",
    "LAPIC_PAGE",
    "MAX_CPUS",
    "MAX_MEMORY",
    "MOUSE_IRQ",
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
    "TALK_PAGE",
    "TALK_PAGE_SIZE",
    "TESTDEV_IRQ_PORT",
    "TESTDEV_MEMORY",
    "TESTDEV_PORT",
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
POST_CODE_PORT, RESET_CONTROL_PORT = 0x80, 0xCF9
ACPI_PM_PORT, FW_CFG_PORT = 0x600, 0x510
#: Where CPUs and chipsets have their APICs (SDM vol. 3, 10.4.1; 82093AA).
LAPIC_PAGE, IOAPIC_PAGE = 0xFEE00000, 0xFEC00000
TESTDEV_PORT, TESTDEV_IRQ_PORT, TESTDEV_MEMORY = 0xE0, 0x2000, 0xFF000000
#: A byte written here ends the machine; the value is the exit code.
DEBUG_EXIT_PORT = 0xF4
#: Bochs' and QEMU's debug console: a byte written is printed, a read answers 0xE9.
DEBUG_CONSOLE_PORT = 0xE9

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
