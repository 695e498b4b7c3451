"""Descriptors and gates: known words of known systems, and round trips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.cpu.descriptors import (
    ATTR_CODE16,
    ATTR_CODE32,
    ATTR_CODE64,
    ATTR_DATA32,
    ATTR_TSS64_BUSY,
    Gate,
    decode_descriptor,
    decode_gate,
    decode_system64,
    encode_descriptor,
    encode_gate,
    encode_system64,
    with_dpl,
)
from vmmsim.cpu.state import Segment
from vmmsim.errors import UsageError

FLAT = 0xFFFFFFFF

#: Linux's GDT (arch/x86/kernel/cpu/common.c, gdt_page) with the accessed bit set, and the
#: descriptor of a real mode segment based at 0xF0000 (SDM vol. 3, 9.1.4).
KNOWN = [
    (Segment(0x08, 0, FLAT, ATTR_CODE32), 0x00CF9B000000FFFF),
    (Segment(0x10, 0, FLAT, ATTR_CODE64), 0x00AF9B000000FFFF),
    (Segment(0x18, 0, FLAT, ATTR_DATA32), 0x00CF93000000FFFF),
    (Segment(0x2B, 0, FLAT, with_dpl(ATTR_DATA32, 3)), 0x00CFF3000000FFFF),
    (Segment(0x33, 0, FLAT, with_dpl(ATTR_CODE64, 3)), 0x00AFFB000000FFFF),
    (Segment(0xF000, 0xF0000, 0xFFFF, ATTR_CODE16), 0x00009B0F0000FFFF),
]


@pytest.mark.parametrize(("segment", "word"), KNOWN)
def test_known_descriptors(segment: Segment, word: int) -> None:
    data = word.to_bytes(8, "little")
    assert encode_descriptor(segment) == data
    assert decode_descriptor(data, segment.selector) == segment


def test_system_descriptor_has_a_base_of_64_bits() -> None:
    # Field by field from SDM vol. 3, figure 7-4.
    tss = Segment(0x40, 0xFFFF_8000_1234_5678, 0x67, ATTR_TSS64_BUSY)
    data = bytes.fromhex("6700 7856 34 8b 00 12 0080ffff 00000000")
    assert encode_system64(tss) == data
    assert decode_system64(data, 0x40) == tss


def test_interrupt_gate_of_long_mode() -> None:
    # SDM vol. 3, figure 6-8: offset 15:0, selector, IST, access, offset 31:16, 63:32, reserved.
    gate = Gate(selector=0x10, offset=0xFFFF_FFFF_8100_1234, type=14, dpl=3, ist=2)
    data = bytes.fromhex("3412 1000 02 ee 0081 ffffffff 00000000")
    assert encode_gate(gate, long=True) == data
    assert decode_gate(data, long=True) == gate


def test_call_gate_of_the_80286_ignores_its_last_word() -> None:
    gate = decode_gate(bytes.fromhex("3412 0800 05 84 5555"))
    assert gate == Gate(selector=8, offset=0x1234, type=4, count=5)


limits = st.one_of(
    st.tuples(st.integers(0, 0xFFFFF), st.just(0)),
    st.tuples(st.integers(0, 0xFFFFF).map(lambda n: n << 12 | 0xFFF), st.just(1)),
)


@given(base=st.integers(0, FLAT), limit=limits, low=st.integers(0, 255), flags=st.integers(0, 7))
def test_round_trip(base: int, limit: tuple[int, int], low: int, flags: int) -> None:
    segment = Segment(0x28, base, limit[0], low | flags << 12 | limit[1] << 15)
    assert decode_descriptor(encode_descriptor(segment), 0x28) == segment


@given(data=st.binary(min_size=8, max_size=8))
def test_every_8_bytes_are_some_descriptor(data: bytes) -> None:
    assert encode_descriptor(decode_descriptor(data)) == data


@given(
    gate=st.builds(
        Gate,
        selector=st.integers(0, 0xFFFF),
        offset=st.integers(0, 2**64 - 1),
        type=st.sampled_from([12, 14, 15]),
        dpl=st.integers(0, 3),
        present=st.integers(0, 1),
        ist=st.integers(0, 7),
    )
)
def test_long_gates_round_trip(gate: Gate) -> None:
    assert decode_gate(encode_gate(gate, long=True), long=True) == gate


def test_what_a_descriptor_cannot_say_is_refused() -> None:
    with pytest.raises(UsageError, match="base"):
        encode_descriptor(Segment(0, 1 << 32, 0xFFFF, ATTR_CODE16))
    with pytest.raises(UsageError, match="limit 0x100000 "):
        encode_descriptor(Segment(0, 0, 0x100000, ATTR_CODE16))
    with pytest.raises(UsageError, match="G=1"):
        encode_descriptor(Segment(0, 0, 0x12345, ATTR_CODE32))
    with pytest.raises(UsageError, match="16 bits"):
        encode_gate(Gate(8, 0x10000, 6))
    with pytest.raises(UsageError, match="7 bytes"):
        decode_descriptor(bytes(7))
