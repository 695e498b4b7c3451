"""Segment descriptors and gates, to and from the 8 or 16 bytes of the guest's tables.

The layouts are SDM vol. 3: 3.4.5 (code and data), 3.5 (system descriptors, 16 bytes in
long mode), 6.11 and 6.14.1 (gates). A decoded code, data or system descriptor is a
`Segment`, which is what the CPU keeps in the hidden part of a segment register.
"""

from __future__ import annotations

import msgspec

from ..errors import UsageError
from .state import Segment

__all__ = [
    "ATTR_CODE16",
    "ATTR_CODE32",
    "ATTR_CODE64",
    "ATTR_DATA16",
    "ATTR_DATA32",
    "ATTR_LDT",
    "ATTR_TSS32_BUSY",
    "ATTR_TSS64_BUSY",
    "Gate",
    "decode_descriptor",
    "decode_gate",
    "decode_system64",
    "encode_descriptor",
    "encode_gate",
    "encode_system64",
    "pack_descriptor",
    "with_dpl",
]

#: Access rights of flat segments, in the layout of `Segment.attr`, DPL 0, accessed.
ATTR_CODE16 = 0x009B
ATTR_DATA16 = 0x0093  #: Data, 16-bit stack pointer.
ATTR_CODE32 = 0xC09B  #: 32-bit code, limit in pages.
ATTR_DATA32 = 0xC093  #: Data, 32-bit stack pointer, limit in pages.
ATTR_CODE64 = 0xA09B  #: 64-bit code.
ATTR_LDT = 0x0082  #: A local descriptor table.
#: A busy TSS: type 11 is both the 32-bit and the 64-bit form (SDM vol. 3, table 3-2).
ATTR_TSS32_BUSY = 0x008B
ATTR_TSS64_BUSY = 0x008B  #: The same number, in a descriptor of 16 bytes.

_GATE_PRESENT = 1 << 7


def with_dpl(attr: int, dpl: int) -> int:
    """`attr` with its descriptor privilege level set to `dpl` (0-3)."""
    return attr & ~(3 << 5) | dpl << 5


def encode_descriptor(segment: Segment) -> bytes:
    """The 8 bytes of a descriptor in the GDT or LDT. The selector is not part of it.

    Raises UsageError when the base needs more than 32 bits (`encode_system64` has 64) or
    when the limit cannot be written with the segment's G bit: without it a limit has 20
    bits, with it the low 12 bits are ones.
    """
    if segment.base >> 32:
        raise UsageError(
            f"a segment base of {segment.base:#x} does not fit a descriptor of 8 bytes",
            hint="bases beyond 4 GiB are set by the FS and GS base MSRs, or by 16-byte system descriptors",
        )
    limit = segment.limit
    if segment.g:
        fits = limit & 0xFFF == 0xFFF and limit >> 32 == 0
        limit >>= 12
    else:
        fits = 0 <= limit < 1 << 20
    if not fits:
        raise UsageError(
            f"the segment limit {segment.limit:#x} cannot be written with G={segment.g}",
            hint="with G=0 a limit is below 2^20; with G=1 its low 12 bits are all ones",
        )
    return pack_descriptor(segment.base, limit, segment.attr).to_bytes(8, "little")


def pack_descriptor(base: int, limit: int, attr: int) -> int:
    """The bits of a descriptor (SDM vol. 3, figure 3-8); `limit` has the 20 bits that are
    stored, whatever G says. Nothing is checked."""
    return (
        limit & 0xFFFF
        | (base & 0xFFFFFF) << 16
        | (attr & 0xFF) << 40
        | (limit >> 16 & 15) << 48
        | (attr >> 12 & 15) << 52
        | (base >> 24 & 0xFF) << 56
    )


def decode_descriptor(data: bytes, selector: int = 0) -> Segment:
    """What the CPU loads from the 8 bytes `data` for `selector`.

    A descriptor that is not present decodes too: look at `Segment.present`. Raises
    UsageError unless there are 8 bytes.
    """
    _need(data, 8)
    value = int.from_bytes(data, "little")
    attr = value >> 40 & 0xFF | (value >> 52 & 15) << 12
    limit = value & 0xFFFF | (value >> 48 & 15) << 16
    if attr >> 15 & 1:
        limit = limit << 12 | 0xFFF
    base = value >> 16 & 0xFFFFFF | (value >> 56 & 0xFF) << 24
    return Segment(selector, base, limit, attr)


def encode_system64(segment: Segment) -> bytes:
    """The 16 bytes of a TSS or LDT descriptor in long mode (SDM vol. 3, figure 7-4).

    Raises UsageError as `encode_descriptor` does, but takes a base of 64 bits.
    """
    low = Segment(segment.selector, segment.base & 0xFFFFFFFF, segment.limit, segment.attr)
    return encode_descriptor(low) + (segment.base >> 32).to_bytes(4, "little") + bytes(4)


def decode_system64(data: bytes, selector: int = 0) -> Segment:
    """The TSS or LDT segment of a 16-byte descriptor. Raises UsageError unless there are 16."""
    _need(data, 16)
    low = decode_descriptor(data[:8], selector)
    return Segment(selector, low.base | int.from_bytes(data[8:12], "little") << 32, low.limit, low.attr)


class Gate(msgspec.Struct, frozen=True):
    """An entry of the IDT, or a call or task gate of the GDT.

    `type` is that of SDM vol. 3, table 3-2: 5 task, 4 or 12 call, 6 or 14 interrupt, 7 or
    15 trap (the smaller numbers are the 16-bit gates of the 80286). `ist` is the stack
    number of a long mode gate, `count` the parameter count of a call gate.
    """

    selector: int
    offset: int
    type: int
    dpl: int = 0
    present: int = 1
    ist: int = 0
    count: int = 0


def encode_gate(gate: Gate, *, long: bool = False) -> bytes:
    """The 8 bytes of a gate, or the 16 of a long mode gate.

    Raises UsageError when the offset does not fit.
    """
    bits = 64 if long else (32 if gate.type & 8 else 16)
    if gate.offset >> bits:
        raise UsageError(
            f"the gate's offset {gate.offset:#x} does not fit {bits} bits",
            hint="give an offset within the code segment",
        )
    low = gate.ist & 7 if long else gate.count & 31
    access = gate.type & 15 | (gate.dpl & 3) << 5 | (_GATE_PRESENT if gate.present else 0)
    value = (
        gate.offset & 0xFFFF
        | gate.selector << 16
        | low << 32
        | access << 40
        | (gate.offset >> 16 & 0xFFFF) << 48
    )
    data = value.to_bytes(8, "little")
    return data + (gate.offset >> 32).to_bytes(4, "little") + bytes(4) if long else data


def decode_gate(data: bytes, *, long: bool = False) -> Gate:
    """The gate of 8 bytes, or 16 with `long`. The upper offset of a 16-bit gate is not read,
    as on an 80286. Raises UsageError for another count of bytes."""
    _need(data, 16 if long else 8)
    value = int.from_bytes(data[:8], "little")
    access = value >> 40 & 0xFF
    offset = value & 0xFFFF
    if access & 8 or long:
        offset |= (value >> 48 & 0xFFFF) << 16
    if long:
        offset |= int.from_bytes(data[8:12], "little") << 32
    return Gate(
        selector=value >> 16 & 0xFFFF,
        offset=offset,
        type=access & 15,
        dpl=access >> 5 & 3,
        present=access >> 7,
        ist=value >> 32 & 7 if long else 0,
        count=0 if long else value >> 32 & 31,
    )


def _need(data: bytes, count: int) -> None:
    if len(data) != count:
        raise UsageError(f"a descriptor of {len(data)} bytes", hint=f"this form has {count}")
