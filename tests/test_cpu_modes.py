"""Mode presets: each is in its mode, and its segments are what its own GDT says."""

from __future__ import annotations

from itertools import pairwise

import pytest

from vmmsim import Machine, layout
from vmmsim.budget import seconds
from vmmsim.cpu import modes
from vmmsim.cpu.descriptors import decode_descriptor, decode_system64
from vmmsim.cpu.paging import linear_to_gpa
from vmmsim.errors import UsageError
from vmmsim.exits import GuestExit
from vmmsim.loaders import load_bytes
from vmmsim.memory import GuestMemory
from vmmsim.testing.slow import time_limit

EXPECTED = {"real": "real", "reset": "real", "p16": "p16", "p32": "p32", "l64": "l64", "l64u": "l64"}
TABLED = ["p16", "p32", "l64", "l64u"]


def placed(setup: modes.ModeSetup) -> GuestMemory:
    memory = GuestMemory()
    memory.add(0, 1 << 20)
    for gpa, data in setup.writes:
        memory.write(gpa, data)
    return memory


def test_there_is_a_preset_for_each_name() -> None:
    assert list(modes.MODES) == list(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_preset_is_in_its_mode(name: str) -> None:
    state = modes.setup(name, 0x7C00).state
    assert state.mode == EXPECTED[name]
    assert state.cpl == (3 if name == "l64u" else 0)
    assert state.linear_rip == (0xFFFFFFF0 if name == "reset" else 0x7C00)
    assert state.rflags == 2, "interrupts are off"
    assert (state.fpu.fcw, state.fpu.mxcsr) == (0x37F, 0x1F80)


def test_reset_is_the_manuals_table() -> None:
    # SDM vol. 3, table 9-1, and 9.1.4 for the first instruction.
    state = modes.reset().state
    assert (state.rip, state.rflags, state.cr0) == (0xFFF0, 2, 0x60000010)
    assert (state.cs.selector, state.cs.base, state.cs.limit, state.cs.attr) == (
        0xF000,
        0xFFFF0000,
        0xFFFF,
        0x9B,
    )
    for name in ("ds", "es", "fs", "gs", "ss"):
        segment = getattr(state, name)
        assert (segment.selector, segment.base, segment.limit, segment.attr) == (0, 0, 0xFFFF, 0x93)
    assert (state.gdt.base, state.gdt.limit, state.idt.base, state.idt.limit) == (0, 0xFFFF, 0, 0xFFFF)
    assert (state.dr6, state.dr7, state.efer) == (0xFFFF0FF0, 0x400, 0)


@pytest.mark.parametrize("name", TABLED)
def test_hidden_parts_are_what_the_gdt_says(name: str) -> None:
    setup = modes.setup(name, 0x7C00)
    memory, state = placed(setup), setup.state
    for register in ("cs", "ds", "es", "fs", "gs", "ss"):
        segment = getattr(state, register)
        at = state.gdt.base + (segment.selector & ~7)
        assert at + 7 <= state.gdt.base + state.gdt.limit
        assert decode_descriptor(memory.read(at, 8), segment.selector) == segment, register
        assert segment.selector & 3 == segment.dpl == state.cpl
    at = state.gdt.base + state.tr.selector
    if name.startswith("l64"):
        assert decode_system64(memory.read(at, 16), state.tr.selector) == state.tr
    else:
        assert decode_descriptor(memory.read(at, 8), state.tr.selector) == state.tr
    assert (state.idt.limit, state.gdt.base % 8) == (0, 0)


@pytest.mark.parametrize("name", TABLED)
def test_tables_stay_in_their_place(name: str) -> None:
    for tables in (layout.BOOT_TABLES, 0x20000):
        spans = sorted((g, g + len(d)) for g, d in modes.setup(name, 0, tables=tables).writes)
        assert spans[0][0] >= tables
        assert spans[-1][1] <= tables + layout.BOOT_TABLES_SIZE
        assert all(a[1] <= b[0] for a, b in pairwise(spans))


@pytest.mark.parametrize("name", ["l64", "l64u"])
@pytest.mark.parametrize("linear", [0, 0x7C00, 0xFEE00000, 0xFFFFFFFF])
def test_long_mode_maps_4_gib_onto_itself(name: str, linear: int) -> None:
    setup = modes.setup(name, 0x7C00)
    memory = placed(setup)
    assert linear_to_gpa(setup.state, linear, memory.read) == linear
    assert linear_to_gpa(setup.state, 1 << 32, memory.read) is None


def test_user_preset_opens_every_port_and_the_others_none() -> None:
    for name, byte in (("l64u", 0), ("l64", 0xFF)):
        setup = modes.setup(name, 0x7C00)
        memory, tss = placed(setup), setup.state.tr
        bitmap = tss.base + memory.read_int(tss.base + 0x66, 2)
        assert memory.read(bitmap, 8192) == bytes([byte]) * 8192
        assert bitmap + 8192 == tss.base + tss.limit, "the closing byte is the segment's last"
        assert memory[bitmap + 8192] == 0xFF


def test_sse_is_enabled_in_long_mode() -> None:
    state = modes.setup("l64", 0).state
    assert state.cr4 & 0x600 == 0x600, "OSFXSR and OSXMMEXCPT"
    assert state.cr0 & 0xC == 0, "EM and TS are clear"


def test_a_real_mode_entry_above_64_kib_gets_its_segment() -> None:
    state = modes.setup("real", 0xE1234).state
    assert (state.cs.selector, state.rip, state.linear_rip) == (0xE000, 0x1234, 0xE1234)


def test_the_stack_lies_in_a_small_memory() -> None:
    assert modes.setup("real", 0, 0x1000).state.rsp == 0x1000
    assert modes.setup("real", 0, 64 << 20).state.rsp == layout.BOOT_STACK


def test_bad_requests_are_refused() -> None:
    with pytest.raises(UsageError, match="no mode 'v86'") as error:
        modes.setup("v86", 0)
    assert "real, reset, p16, p32, l64, l64u" in error.value.hint
    for name, entry in (
        ("real", 0x100000),
        ("p16", 0x10000),
        ("p32", 1 << 32),
        ("l64", 1 << 32),
        ("p32", -1),
    ):
        with pytest.raises(UsageError, match="out of reach"):
            modes.setup(name, entry)
    with pytest.raises(UsageError, match="CS=0x10000"):
        modes.real(0x10000, 0)
    with pytest.raises(UsageError, match="aligned"):
        modes.setup("p32", 0, tables=0x90010)


@pytest.mark.parametrize("name", EXPECTED)
def test_preset_runs_code_on_each_backend(name: str, backend_name: str) -> None:
    code = bytes.fromhex("b007 e6f4")  # mov al, 7; out 0xf4, al: the same bytes in every mode
    at = 0xFFFFFFF0 if name == "reset" else 0x7C00
    with Machine(backend=backend_name, memory=1 << 20) as machine:
        if name == "reset":
            machine.memory.add(0xFFFFF000, 0x1000)  # the last page below 4 GiB, where a ROM ends
        machine.load(load_bytes(code, load_address=at, mode=name))
        before = machine.cpu.state()
        assert (before.mode, before.cpl) == (EXPECTED[name], 3 if name == "l64u" else 0)
        assert machine.run(budget=seconds(time_limit(10))) == GuestExit(7)
        after = machine.cpu.state()
        assert after.rax == 7
        assert after.linear_rip == at + 4
        assert (after.mode, after.cpl) == (before.mode, before.cpl)
