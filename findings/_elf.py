"""Small ELF64 files for the findings: a header, program headers, data."""

import struct


def program_header(kind, offset, size, align, address=0x100000):
    return struct.pack("<IIQQQQQQ", kind, 5, offset, address, address, size, size, align)


def elf64(headers, data=b"", count=None, sections=b"", entry=0x100000):
    body = b"".join(headers) + data
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack(
        "<HHIQQQIHHH",
        2,
        62,
        1,
        entry,
        64,
        64 + len(body) if sections else 0,
        0,
        64,
        56,
        len(headers) if count is None else count,
    )
    head += struct.pack("<HHH", 64, len(sections) // 64, 0)
    return head + body + sections


def note(owner, kind, desc, align=4):
    head = struct.pack("<III", len(owner), len(desc), kind)
    return head + owner + bytes(-len(owner) % align) + desc + bytes(-len(desc) % align)
