"""The page walk: against tables made here by hand, and against vmmsim's identity tables."""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.cpu.paging import identity_4level, identity_32bit, identity_pae, is_user_page, linear_to_gpa
from vmmsim.cpu.state import CpuState
from vmmsim.errors import UsageError

PG, PSE, PAE, LA57, LMA = 1 << 31, 1 << 4, 1 << 5, 1 << 12, 1 << 10
GIB = 1 << 30

LONG = CpuState(cr0=PG | 1, cr3=0x1000, cr4=PAE, efer=LMA)
PAE32 = CpuState(cr0=PG | 1, cr3=0x1000, cr4=PAE)
P32 = CpuState(cr0=PG | 1, cr3=0x1000, cr4=PSE)


def tables(entries: dict[int, int], width: int = 8) -> Callable[[int, int], bytes]:
    """A memory of 1 MiB with `width`-byte entries at addresses; beyond it is a hole."""

    def read(gpa: int, size: int) -> bytes:
        if gpa + size > 1 << 20:
            raise UsageError(f"there is no memory at {gpa:#x}")
        assert size == width
        return entries.get(gpa, 0).to_bytes(width, "little")

    return read


def stored(base: int, data: bytes) -> Callable[[int, int], bytes]:
    def read(gpa: int, size: int) -> bytes:
        assert base <= gpa
        assert gpa + size <= base + len(data)
        return data[gpa - base : gpa - base + size]

    return read


def test_without_paging_linear_is_physical() -> None:
    assert linear_to_gpa(CpuState(cr0=1), 0x1_2345_6789, tables({})) == 0x2345_6789


def test_4level_walk_of_every_page_size() -> None:
    read = tables(
        {
            0x1000: 0x2007,  # PML4E 0
            0x2000: 0x3007,  # PDPTE 0
            0x2008: 0x40000083,  # PDPTE 1: a page of 1 GiB at 0x40000000
            0x3000: 0x4007,  # PDE 0
            0x3008: 0x8000000000600083,  # PDE 1: 2 MiB, no-execute
            0x4000: 0xFFFFF_ABCDE_000 & ((1 << 52) - 1) | 0x8000_0000_0000_0001,  # PTE 0
            0x4010: 0x81,  # PTE 2: bit 7 is PAT in a PTE, not a big page
            0x1800: 0x2007,  # PML4E 256: the upper half
        }
    )
    assert linear_to_gpa(LONG, 0x123, read) == 0xFFFFFABCDE123
    assert linear_to_gpa(LONG, 0x1FFF, read) is None
    assert linear_to_gpa(LONG, 0x2FFF, read) == 0xFFF
    assert linear_to_gpa(LONG, 0x212345, read) == 0x612345
    assert linear_to_gpa(LONG, 0x7FFFFFFF, read) == 0x7FFFFFFF
    assert linear_to_gpa(LONG, 0xFFFF_8000_0021_2345, read) == 0x612345
    assert linear_to_gpa(LONG, 0x0000_8000_0021_2345, read) is None, "not canonical"


def test_pae_and_32bit_walks() -> None:
    pae = tables({0x1008: 0x2001, 0x2008: 0x1_2340_0083, 0x2000: 0x3003, 0x3008: 0x5003})
    assert linear_to_gpa(PAE32, 0x40201234, pae) == 0x1_2340_1234
    assert linear_to_gpa(PAE32, 0x40001234, pae) == 0x5234
    assert linear_to_gpa(PAE32, 0x1234, pae) is None

    # PDE 1 is a 4 MiB page with bits 13-20 = 1: PSE-36 puts it beyond 4 GiB.
    legacy = tables({0x1004: 0x00802083, 0x1000: 0x2003, 0x2004: 0x7003}, 4)
    assert linear_to_gpa(P32, 0x412345, legacy) == 0x1_0081_2345
    assert linear_to_gpa(P32, 0x1234, legacy) == 0x7234
    without_pse = CpuState(cr0=PG | 1, cr3=0x1000)
    assert linear_to_gpa(without_pse, 0x412345, legacy) is None, "bit 7 means nothing: table in a hole"


def test_tables_in_a_hole_and_5_levels_map_nothing() -> None:
    assert linear_to_gpa(LONG, 0, tables({0x1000: 0x7000_0000_0007})) is None
    five = CpuState(cr0=PG | 1, cr3=0x1000, cr4=PAE | LA57, efer=LMA)
    assert linear_to_gpa(five, 0, tables({0x1000: 0x2007})) is None


def test_reserved_bits_map_nothing() -> None:
    # SDM vol. 3, figures 4-4, 4-7 and 4-11.
    long = tables({0x1000: 0x2007, 0x1008: 0x2087, 0x2000: 0x40002083, 0x2008: 0x3007, 0x3000: 0x102087})
    assert linear_to_gpa(LONG, 0, long) is None, "bit 13 of a 1 GiB page"
    assert linear_to_gpa(LONG, 1 << 30, long) is None, "bit 13 of a 2 MiB page"
    assert linear_to_gpa(LONG, 1 << 39, long) is None, "PS in a PML4E"
    assert linear_to_gpa(P32, 0, tables({0x1000: 0x00200083}, 4)) is None, "bit 21 of a 4 MiB page"
    assert linear_to_gpa(PAE32, 0, tables({0x1000: 0x2003, 0x2000: 0x83})) is None, "R/W in a PDPTE"


@pytest.mark.unicorn
@pytest.mark.parametrize("kind", ["32", "32pse", "pae", "l64"])
def test_walk_agrees_with_qemus(kind: str) -> None:
    """Random tables, with loops and reserved bits, walked by Unicorn (QEMU's TCG) and by us."""
    unicorn = pytest.importorskip("unicorn")
    from unicorn import x86_const as x86
    from unicorn.unicorn_py3.unicorn import uclib

    rng = random.Random(kind)
    width = 4 if kind.startswith("32") else 8
    cr4 = {"32": 0, "32pse": PSE, "pae": PAE, "l64": PAE}[kind]
    state = CpuState(cr0=PG | 0x11, cr3=0x1000, cr4=cr4, efer=0x500 if kind == "l64" else 0)
    mapped = 0
    for _ in range(20):
        memory = bytearray(1 << 20)
        entries = [
            rng.choices([rng.randrange(1, 17), rng.randrange(256)], [8, 1])[0] << 12
            | rng.choices([7, 6, 0x87], [16, 2, 3])[0]
            for _ in range(16 * 4096 // width)
        ]
        memory[0x1000:0x11000] = struct.pack(f"<{len(entries)}{'I' if width == 4 else 'Q'}", *entries)
        if kind == "pae":
            memory[0x1000:0x1020] = struct.pack("<4Q", *(rng.randrange(2, 17) << 12 | 1 for _ in range(4)))

        uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64 if kind == "l64" else unicorn.UC_MODE_32)
        uc.mem_map(0, len(memory))
        uc.mem_write(0, bytes(memory))
        uc.reg_write(x86.UC_X86_REG_CR3, state.cr3)
        uc.reg_write(x86.UC_X86_REG_CR4, cr4)
        if kind == "l64":
            uc.reg_write(x86.UC_X86_REG_MSR, (0xC0000080, state.efer))
        uc.reg_write(x86.UC_X86_REG_CR0, state.cr0)

        def read(gpa: int, size: int, memory: bytearray = memory) -> bytes:
            if gpa + size > len(memory):
                raise UsageError(f"there is no memory at {gpa:#x}")
            return bytes(memory[gpa : gpa + size])

        for _ in range(10):
            linear = rng.randrange(1 << 47 if kind == "l64" else 1 << 32)
            answer = ctypes.c_uint64()
            # The binding has no wrapper for it; it is part of unicorn.h.
            failed = uclib.uc_vmem_translate(uc._uch, ctypes.c_uint64(linear), 1, ctypes.byref(answer))
            expected = None if failed else answer.value
            mapped += expected is not None
            assert linear_to_gpa(state, linear, read) == expected, hex(linear)
    assert mapped > 20, "the tables must not be so bad that nothing is compared"


@given(linear=st.integers(0, 4 * GIB - 1))
def test_identity_tables_map_4_gib_onto_itself(linear: int) -> None:
    base = 0x91000
    long = CpuState(cr0=PG | 1, cr3=base, cr4=PAE, efer=LMA)
    assert linear_to_gpa(long, linear, stored(base, IDENTITY_4LEVEL)) == linear
    pae = CpuState(cr0=PG | 1, cr3=base, cr4=PAE)
    assert linear_to_gpa(pae, linear, stored(base, IDENTITY_PAE)) == linear
    legacy = CpuState(cr0=PG | 1, cr3=base, cr4=PSE)
    assert linear_to_gpa(legacy, linear, stored(base, IDENTITY_32BIT)) == linear


IDENTITY_4LEVEL = identity_4level(0x91000)
IDENTITY_PAE = identity_pae(0x91000)
IDENTITY_32BIT = identity_32bit(0x91000)


def test_identity_tables_end_where_they_were_asked_to() -> None:
    data = identity_4level(0x1000, size=GIB + (2 << 20), user=True)
    assert len(data) == 0x4000
    assert linear_to_gpa(LONG, GIB + (2 << 20) - 1, stored(0x1000, data)) == GIB + (2 << 20) - 1
    assert linear_to_gpa(LONG, GIB + (2 << 20), stored(0x1000, data)) is None
    assert all(data[at] & 4 for at in (0, 0x1000, 0x2000)), "the user bit is needed on every level"
    assert not any(e & 6 for e in identity_pae(0x1000, user=True)[:32:8]), "reserved in a PDPTE"


def test_bad_identity_mappings_are_refused() -> None:
    with pytest.raises(UsageError, match="aligned"):
        identity_4level(0x1001)
    with pytest.raises(UsageError, match="identity mapping"):
        identity_pae(0x1000, size=8 * GIB)
    with pytest.raises(UsageError, match="identity mapping"):
        identity_32bit(0x1000, size=2 << 20)


def test_a_page_is_the_users_when_each_entry_says_so() -> None:
    levels = [0x2007, 0x3007, 0x4007, 0x9007]  # at 0x1000, 0x2000, 0x3000, 0x4000
    places = [0x1000, 0x2000, 0x3000, 0x4000]
    assert is_user_page(LONG, 0x123, tables(dict(zip(places, levels, strict=True))))
    for level in range(4):
        entries = [entry & ~4 if number == level else entry for number, entry in enumerate(levels)]
        assert not is_user_page(LONG, 0x123, tables(dict(zip(places, entries, strict=True))))
    big = {0x1000: 0x2007, 0x2000: 0x3007, 0x3000: 0x87}
    assert is_user_page(LONG, 0x1FFFFF, tables(big))
    assert not is_user_page(LONG, 0x200000, tables(big))  # not mapped
