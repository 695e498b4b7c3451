"""The MP table: how a PC without ACPI tells its processors and interrupt wiring.

Intel MultiProcessor Specification, version 1.4, chapter 4: a floating pointer structure
that the guest finds by its signature, and the configuration table that it points to.
"""

from __future__ import annotations

import struct

import msgspec

from ..errors import UsageError

__all__ = ["MpTable", "mp_table"]

SPEC_REVISION = 4  # 1.4

# Entry types (table 4-3).
PROCESSOR, BUS, IO_APIC, IO_INTERRUPT, LOCAL_INTERRUPT = range(5)

CPU_ENABLED = 0x01
CPU_BOOT = 0x02
IO_APIC_ENABLED = 0x01

# Interrupt types (table 4-10) and flags: polarity in bits 1:0, trigger in bits 3:2.
INT, NMI, EXT_INT = 0, 1, 3
CONFORMS = 0x0  # as the bus has it: ISA is active high, edge
HIGH_LEVEL = 0xD

ALL_LOCAL_APICS = 0xFF
ISA_BUS_ID = 0
#: On a PC the 8254 is wired to this pin of the I/O APIC, whose pin 0 is the 8259's output.
IRQ0_PIN = 2
#: The slave 8259's output goes to this input of the master, so no device has it.
CASCADE = 2


class MpTable(msgspec.Struct, frozen=True):
    """`data` for guest-physical `address`: the floating pointer, then the configuration table."""

    address: int
    data: bytes


def mp_table(
    *,
    address: int,
    cpus: int,
    ioapic_id: int | None = None,
    ioapic_address: int = 0xFEC00000,
    lapic_address: int = 0xFEE00000,
    cpu_signature: int = 0x600,
    cpu_features: int = 0x201,
    level_irqs: frozenset[int] = frozenset(),
    oem_id: str = "VMMSIM",
    product_id: str = "VMMSIM PC",
) -> MpTable:
    """The table for `cpus` processors with the APIC IDs 0 to cpus - 1; 0 is the boot processor.

    `address` is guest-physical, a multiple of 16. A guest searches for the floating pointer in
    the first KiB of the EBDA, the last KiB of base memory, and F0000h to FFFFFh (chapter 4).
    `ioapic_id` None is the first ID that no processor has (3.6.6: IDs are unique), or 0 when
    that is more than the chip's four bits; the I/O APIC's ID register should have it as well.
    The machine starts with its 8259s in charge (virtual wire mode). The ISA IRQs go to the
    I/O APIC's pins of the same number, but IRQ 0 to pin 2; `level_irqs` of them are active high
    and level-triggered (PCI's and ACPI's). The signature and features are CPUID 1's EAX and EDX.

    Raises UsageError for an address or a number of CPUs that cannot be.
    """
    if address % 16 or not 0 <= address < 1 << 32:
        raise UsageError(f"mp table: the address {address:#x}", hint="use a multiple of 16 below 4 GiB")
    if not 1 <= cpus <= 255:
        raise UsageError(f"mp table: {cpus} processors", hint="8-bit APIC IDs allow 1 to 255")
    if ioapic_id is None:
        ioapic_id = cpus if cpus < 16 else 0
    if not 0 <= ioapic_id < 16:
        raise UsageError(f"mp table: the I/O APIC ID {ioapic_id}", hint="the 82093AA's ID has four bits")
    for value, name in (
        (ioapic_address, "I/O APIC address"),
        (lapic_address, "local APIC address"),
        (cpu_signature, "CPU signature"),
        (cpu_features, "set of CPU features"),
    ):
        if not 0 <= value < 1 << 32:
            raise UsageError(f"mp table: {value:#x} is no {name}", hint="it has 32 bits")
    if not level_irqs <= frozenset(range(16)) - {CASCADE}:
        raise UsageError(
            f"mp table: the level-triggered IRQs {sorted(level_irqs)}", hint="ISA has IRQ 0 to 15, but not 2"
        )

    entries = []
    for cpu in range(cpus):
        flags = CPU_ENABLED | (CPU_BOOT if cpu == 0 else 0)
        # Local APIC version 14h: an integrated one with six LVT entries.
        entries.append(struct.pack("<BBBBII8x", PROCESSOR, cpu, 0x14, flags, cpu_signature, cpu_features))
    entries.append(struct.pack("<BB6s", BUS, ISA_BUS_ID, b"ISA   "))
    # Version 11h: an 82093AA.
    entries.append(struct.pack("<BBBBI", IO_APIC, ioapic_id, 0x11, IO_APIC_ENABLED, ioapic_address))
    for irq in range(16):
        if irq != CASCADE:
            flags = HIGH_LEVEL if irq in level_irqs else CONFORMS
            entries.append(_interrupt(IO_INTERRUPT, INT, flags, irq, ioapic_id, irq or IRQ0_PIN))
    entries.append(_interrupt(LOCAL_INTERRUPT, EXT_INT, CONFORMS, 0, ALL_LOCAL_APICS, 0))
    entries.append(_interrupt(LOCAL_INTERRUPT, NMI, CONFORMS, 0, ALL_LOCAL_APICS, 1))

    body = b"".join(entries)
    table = bytearray(
        struct.pack(
            "<4sHBB8s12sIHHIHBB",
            b"PCMP",
            44 + len(body),
            SPEC_REVISION,
            0,
            _text(oem_id, 8),
            _text(product_id, 12),
            0,
            0,
            len(entries),
            lapic_address,
            0,
            0,
            0,
        )
        + body
    )
    table[7] = -sum(table) & 0xFF
    # Length in paragraphs; feature bytes: a table is present, and no IMCR (virtual wire mode).
    pointer = bytearray(struct.pack("<4sIBBB5B", b"_MP_", address + 16, 1, SPEC_REVISION, 0, 0, 0, 0, 0, 0))
    pointer[10] = -sum(pointer) & 0xFF
    return MpTable(address, bytes(pointer + table))


def _interrupt(kind: int, what: int, flags: int, irq: int, apic: int, pin: int) -> bytes:
    return struct.pack("<BBHBBBB", kind, what, flags, ISA_BUS_ID, irq, apic, pin)


def _text(text: str, size: int) -> bytes:
    """A field of the header: ASCII, filled up with blanks."""
    if not text.isascii() or len(text) > size:
        raise UsageError(f"mp table: the name {text!r}", hint=f"use at most {size} ASCII characters")
    return text.ljust(size).encode("ascii")
