"""pcap and pcapng files for the findings, made by hand from the drafts of the IETF's opsawg group."""

import struct


def pcap(link):
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link)
    return head + struct.pack("<IIII", 1, 0, 14, 14) + bytes(12) + b"\x08\x00"


def block(kind, body):
    size = 12 + len(body)
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


def section():
    return block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(**options):
    """resolution: if_tsresol, a power of ten; offset: if_tsoffset in seconds."""
    body = struct.pack("<HHI", 1, 0, 65535)
    if "resolution" in options:
        body += struct.pack("<HHB3x", 9, 1, options["resolution"])
    if "offset" in options:
        body += struct.pack("<HHq", 14, 8, options["offset"])
    return block(1, body + bytes(4))


def packet(interface, time):
    return block(6, struct.pack("<IIIII", interface, time >> 32, time & 0xFFFFFFFF, 14, 14) + bytes(16))


def simple_packet():
    return block(3, struct.pack("<I", 14) + bytes(16))
