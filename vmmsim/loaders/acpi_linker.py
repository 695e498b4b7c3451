"""ACPI tables for firmware that chooses their place itself: files and a script for fw_cfg.

QEMU, hw/acpi/bios-linker-loader.c, whose script "etc/table-loader" SeaBIOS
(src/fw/romfile_loader.h) and OVMF execute: allocate a file, add a file's address to a
pointer in another, mend a checksum. Each command has 128 bytes, little-endian.
"""

from __future__ import annotations

import struct

from .acpi import RSDP_SIZE, AcpiTables

__all__ = ["fw_cfg_tables"]

SCRIPT, RSDP, TABLES = "etc/table-loader", "etc/acpi/rsdp", "etc/acpi/tables"

_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
#: Anywhere below 4 GiB; the last 64 KiB below 1 MiB, where guests search for the RSDP.
_HIGH, _FSEG = 1, 2
_COMMAND_SIZE = 128
_FILE_SIZE = 56

#: signature -> the pointers in it, (offset, size in bytes): RSDP 5.2.5.3, FADT 5.2.9 of ACPI 6.5.
_POINTERS = {"RSD PTR ": ((16, 4), (24, 8)), "FACP": ((36, 4), (40, 4), (140, 8))}
#: RSDT and XSDT are lists of pointers behind the header.
_LISTS = {"RSDT": 4, "XSDT": 8}
_HEADER_SIZE, _CHECKSUM_AT = 36, 9


def fw_cfg_tables(made: AcpiTables) -> dict[str, bytes]:
    """The three files by their names, for tables made for any address.

    The pointers in the files are offsets in "etc/acpi/tables", to which the script adds
    where it is.
    """
    # The first table is the FACS, on a multiple of 64 as it must be in the file too.
    base = made.address + min(gpa - made.address for gpa, _ in made.tables.values() if gpa != made.address)
    data = bytearray(made.data)
    script = [_allocate(RSDP, 16, _FSEG), _allocate(TABLES, 64, _HIGH)]

    def relate(signature: str, pointers: tuple[tuple[int, int], ...]) -> None:
        gpa, _ = made.tables[signature]
        for offset, size in pointers:
            at = gpa - made.address + offset
            value = int.from_bytes(data[at : at + size], "little") - base
            data[at : at + size] = value.to_bytes(size, "little")
            file, start = (RSDP, made.address) if signature == "RSD PTR " else (TABLES, base)
            script.append(_add_pointer(file, TABLES, gpa - start + offset, size))

    for signature, size in _LISTS.items():
        _, length = made.tables[signature]
        relate(signature, tuple((at, size) for at in range(_HEADER_SIZE, length, size)))
    for signature, pointers in _POINTERS.items():
        relate(signature, pointers)
    for signature in ("RSDT", "XSDT", "FACP"):
        gpa, length = made.tables[signature]
        script.append(_add_checksum(TABLES, gpa - base + _CHECKSUM_AT, gpa - base, length))
    script.append(_add_checksum(RSDP, 8, 0, 20))
    script.append(_add_checksum(RSDP, 32, 0, RSDP_SIZE))
    return {
        SCRIPT: b"".join(script),
        RSDP: bytes(data[:RSDP_SIZE]),
        TABLES: bytes(data[base - made.address :]),
    }


def _name(file: str) -> bytes:
    return file.encode("ascii").ljust(_FILE_SIZE, b"\0")


def _command(kind: int, body: bytes) -> bytes:
    return (struct.pack("<I", kind) + body).ljust(_COMMAND_SIZE, b"\0")


def _allocate(file: str, align: int, zone: int) -> bytes:
    return _command(_ALLOCATE, _name(file) + struct.pack("<IB", align, zone))


def _add_pointer(file: str, target: str, offset: int, size: int) -> bytes:
    return _command(_ADD_POINTER, _name(file) + _name(target) + struct.pack("<IB", offset, size))


def _add_checksum(file: str, offset: int, start: int, length: int) -> bytes:
    return _command(_ADD_CHECKSUM, _name(file) + struct.pack("<III", offset, start, length))
