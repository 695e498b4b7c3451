"""The thunks for AArch64 do what those for x86-64 do: both run in an emulator, on the same scenes."""

from __future__ import annotations

import struct

import pytest

pytest.importorskip("unicorn")

from hypothesis import given, settings
from hypothesis import strategies as st
from thunk_world import CONTRACTS, CPU, ENV, HOLE, OFFSETS, PAGES, SHARED, TABLE, UC, Scene, play

from vmmsim.backends.unicorn_native.thunks import Shared

#: Values around which a thunk decides something.
_COUNTS = st.sampled_from([0, 1, 2, 5, 6, 1 << 40, (1 << 62) - 1, 1 << 62])
_ADDRESSES = st.sampled_from(
    [0x2000, 0x2001, 0x2FFC, 0x2FFD, 0x2FFF, 0x3000, 0x3008, 0xFEE0_0FF8, 0xFFFF_FFFF_FFFF_F800]
)
_WORD = st.integers(0, (1 << 64) - 1)
_HALF = st.one_of(st.integers(0, (1 << 32) - 1), st.sampled_from([0, 1]))
_CHOSEN = {
    Shared.SPECIAL: st.sampled_from([0, 0x80000]),
    Shared.DELIVERING: st.sampled_from([0, 0, 0, 1, 2]),
    Shared.WALKED: st.sampled_from([0, 0, 0x1234]),
    Shared.WINDOW: _ADDRESSES.map(lambda address: address - 8),
    Shared.ARMED: st.sampled_from([0, 1]),
    Shared.SKIP: st.sampled_from([0, 0, 0, 3]),
    Shared.MADE: st.sampled_from([0, 1]),
    Shared.BEHIND: st.sampled_from([0, 1]),
    Shared.DATA: _WORD,
    Shared.DATA + 1: _WORD,
    Shared.DATA + 2: _WORD,
    Shared.PAGE_COUNT: st.sampled_from([4, 5, 1 << 24]),
    Shared.TLB: st.just(0x100),
} | dict.fromkeys(
    (
        *(Shared.BYTES, Shared.LIMIT, Shared.END, Shared.BLOCKS, Shared.TOKEN_BLOCKS, Shared.INSNS),
        *(Shared.INSN_LIMIT, Shared.INDEX, Shared.TRAPS, Shared.PORTS, Shared.MMIO),
    ),
    _COUNTS,
)
#: One bit more, or none: 4 bytes each.
_FLAGS = {
    "EFLAGS": st.sampled_from([2, 0x202, 0x10246]),
    "HFLAGS": st.sampled_from([0, 3, 8, 0x40C0B0]),
    "CC_OP": st.sampled_from([1, 2, 30]),
    "CC_SOURCE": st.one_of(_HALF, st.sampled_from([0, 0x8D5, 0x845])),
    "CR0": st.sampled_from([0x11, 0x8000_0011]),
    "CR2": st.sampled_from([0x1000, 0x1001]),
    "CS_FLAGS": st.sampled_from([0x1000, 0x1100, 0x100, 0, 0xAF9B00, 0xAF9A00]),
    "SS_FLAGS": st.sampled_from([0x1000, 0x1100, 0x100, 0, 0xCF9300, 0xCF9200]),
    "EXCEPTION": _HALF,
    "EXCEPTION_IS_INT": st.sampled_from([0, 1]),
}


@st.composite
def scenes(draw: st.DrawFn, thunk: str) -> Scene:
    memory = {}
    for index, values in _CHOSEN.items():
        memory[SHARED + 8 * index] = struct.pack("<Q", draw(values))
    for word, values in _FLAGS.items():
        memory[ENV + OFFSETS[word]] = struct.pack("<I", draw(values))
    rip, address = draw(_COUNTS), draw(_ADDRESSES)
    rdi = draw(st.sampled_from([0, 0x1000, 0x10000, 0x20001])) + address & (1 << 64) - 1
    base = draw(st.sampled_from([0, 0x10000]))
    memory[ENV + OFFSETS["RIP"]] = struct.pack("<Q", rip)
    memory[ENV + OFFSETS["RDI"]] = struct.pack("<Q", rdi - base & (1 << 64) - 1)
    memory[ENV + OFFSETS["ES_BASE"]] = struct.pack("<Q", base)
    memory[UC + OFFSETS["RECURSION"]] = struct.pack("<I", draw(st.sampled_from([0, 8])))
    memory[SHARED + 8 * Shared.TOKEN_RIP] = struct.pack("<Q", draw(st.sampled_from([rip, 77])))
    if draw(st.booleans()):
        memory[SHARED + 8 * Shared.TOKEN_BLOCKS] = memory[SHARED + 8 * Shared.BLOCKS]
    memory[HOLE] = struct.pack("<QQ", 0x2000, SHARED)
    memory[CPU + 0x100] = struct.pack("<6Q", *(7 * 64, TABLE, 3 * 64, TABLE + 0x400, 64, TABLE + 0x800))
    entry = _entry(draw, address & -0x1000 & (1 << 64) - 1)
    # The entry that is looked up is that of the address, in the table of the mode.
    mode = draw(st.integers(0, 2))
    at = (TABLE, TABLE + 0x400, TABLE + 0x800)[mode] + (address >> 6 & (7 * 64, 3 * 64, 64)[mode])
    memory[PAGES] = bytes(draw(st.lists(st.sampled_from([0, 1]), min_size=8, max_size=8)))
    size, value = draw(st.sampled_from([1, 2, 4, 8])), draw(st.one_of(_WORD, st.just(0)))
    port = draw(st.sampled_from([0x80, 0x3F8, 0xFFFF]))
    arguments: tuple[int, ...] = {
        "block": (UC, rip, draw(st.sampled_from([1, 15, 4096, 0xFFFF_FFFF])), SHARED),
        "insn": (UC, rip, 3, SHARED),
        "trap": (UC, draw(st.sampled_from([0, 1, 6, 11, 12, 13, 14, 14, 14, 0xFF, 0x100, 0x172])), SHARED),
        "in": (UC, port, min(size, 4), SHARED),
        "out": (UC, port, min(size, 4), value & 0xFFFF_FFFF, SHARED),
        "read": (UC, 19, address, size, value, SHARED),
        "write": (UC, 20, address, size, value, SHARED),
        "piece": (UC, address - 0x2000 & (1 << 64) - 1, min(size, 4), HOLE),
        "leave": (UC,),
        "fill": (CPU, address, size, draw(st.integers(0, 2)), mode, draw(st.integers(0, 1)), draw(_WORD)),
        "start": (),
        "stop": (),
    }[thunk]
    answers = tuple(draw(st.lists(st.one_of(_HALF, _WORD, st.sampled_from([0, 1])), min_size=4, max_size=4)))
    changes = {
        "DO_INTERRUPT": {ENV + OFFSETS["CS_FLAGS"]: struct.pack("<I", draw(_FLAGS["CS_FLAGS"]))},
        "FILL": {at: entry},
        "CALLBACK": {SHARED + 8 * Shared.BEHIND: struct.pack("<Q", draw(st.integers(0, 1)))},
    }
    return Scene(thunk, arguments, memory, answers, changes)


def _entry(draw: st.DrawFn, page: int) -> bytes:
    """addr_read, addr_write, addr_code, paddr, addend."""
    none = (1 << 64) - 1
    write = draw(st.sampled_from([page, page | 0x400, page | 0x800, none]))
    code = draw(st.sampled_from([page, page | 0x800, none]))
    paddr = draw(st.sampled_from([0, 0x3000, 0x4000, 0x4001, 0x5000, 1 << 45]))
    return struct.pack("<5Q", page, write, code, paddr, draw(_WORD))


@pytest.mark.parametrize("thunk", CONTRACTS)
def test_both_architectures_do_the_same(thunk: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(scenes(thunk))
    def alike(scene: Scene) -> None:
        of_x86, of_arm = play("x86_64", scene), play("aarch64", scene)

        assert of_arm.calls == of_x86.calls
        assert of_arm.answer == of_x86.answer
        assert of_arm.memory == of_x86.memory

    alike()


def test_the_write_thunk_has_the_callers_registers_on_the_stack() -> None:
    """Where `flags` looks for the place in translated code: on AArch64 no call has put it there."""
    words = {SHARED + 8 * Shared.SKIP: bytes(8)}
    outcome = play("aarch64", Scene("write", (UC, 20, 0x2000, 1, 5, SHARED), words))

    stacked = struct.unpack(f"<{len(outcome.stack) // 8}Q", outcome.stack)
    assert set(outcome.kept[:-1]) <= set(stacked[:128])  # all but X18
