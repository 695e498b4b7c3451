"""The trap unit: what a guest on Unicorn sees of exceptions, interrupts, calls and intercepts.

The expected frames are those of SDM vol. 3, chapter 6 (figures 6-4, 6-8, 6-9), written out.
Most tests deliver one event to a state at rest and look at the state and the stack; those
that need instructions run a guest whose hooks are wired as the backend's are.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import pytest
from context_tools import error_code
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import UC_HOOK_INSN, UC_HOOK_INSN_INVALID, UC_HOOK_INTR, UC_PROT_ALL, x86_const
from unicorn.unicorn_py3.unicorn import uclib

from vmmsim.backends.unicorn_context import ContextCodec
from vmmsim.backends.unicorn_registers import scratch_engine
from vmmsim.backends.unicorn_trap_intercepts import ALL
from vmmsim.backends.unicorn_trap_memory import GuestFault
from vmmsim.backends.unicorn_traps import HALTED, VMCB, VMCB_SIZE, GuestRam, Platform, TrapUnit, vmcb_bytes
from vmmsim.cpu import msrs
from vmmsim.cpu.descriptors import Gate, encode_descriptor, encode_gate
from vmmsim.cpu.modes import (
    CODE16,
    CODE32,
    CODE64,
    DATA,
    TSS,
    USER_CODE32,
    USER_CODE64,
    USER_DATA,
    setup,
)
from vmmsim.cpu.paging import identity_4level, identity_32bit, identity_pae
from vmmsim.cpu.state import CpuState, Events, Segment, Table
from vmmsim.memory import Region

pytestmark = pytest.mark.unicorn

RAM = 4 << 20
CODE = 0x10000
HANDLER = 0x12345
STACK = 0x20000
INNER_STACK = 0x28000
IDT = 0x5000
GDT, PAGES, TSS_AT = 0x90000, 0x91000, 0x97000
#: Two pages for more tables, and a place of the GDT that no preset uses.
MORE_TABLES, SPARE, SPARE_SELECTOR = 0xA0000, 0x58, 0x58
CF, ZF, TF, IF, DF, NT, RF, VM, AC = (1 << n for n in (0, 6, 8, 9, 10, 14, 16, 17, 18))
LIVELY = 2 | CF | ZF | IF | DF | 3 << 12  # flags that a delivery carries over
MASK64 = (1 << 64) - 1

_INTR = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32)
_INVALID = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
_CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Guest:
    """An engine in the preset `mode` with its trap unit; `run` has the hooks of a backend."""

    def __init__(self, mode: str, code: str = "", **fields: object) -> None:
        self.platform = Platform()
        self.region = Region(0, RAM, readonly=False, name="RAM")
        self._anchor = ctypes.c_char.from_buffer(self.region.buffer)
        self.uc = scratch_engine()
        self.uc.mem_map_ptr(0, RAM, UC_PROT_ALL, ctypes.addressof(self._anchor))
        self.codec = ContextCodec(self.uc)
        self.ram = GuestRam([self.region])
        self.unit = TrapUnit(self.codec, self.ram, self.platform)
        preset = setup(mode, CODE)
        for at, data in preset.writes:
            self.put(at, data)
        self.put(CODE, bytes.fromhex(code))
        self.state = preset.state
        self.state.rsp = STACK
        self.state.rflags = LIVELY
        for name, value in fields.items():
            setattr(self.state, name, value)
        if mode.startswith("l64"):
            self.put(TSS_AT + 4, struct.pack("<Q", INNER_STACK))
            self.state.idt = Table(IDT, 0xFFF)
        elif mode in ("p16", "p32"):
            self.put(TSS_AT + 4, struct.pack("<IH", INNER_STACK, DATA))
            self.state.idt = Table(IDT, 0x7FF)
        self.numbers: list[int] = []
        self.ends: list[str] = []
        self._keep: list[Any] = []

    def put(self, at: int, data: bytes) -> None:
        self.region.buffer[at : at + len(data)] = data

    def get(self, at: int, layout: str) -> tuple[int, ...]:
        return struct.unpack_from(layout, self.region.buffer, at)

    def gate(
        self, vector: int, selector: int = CODE64, offset: int = HANDLER, type: int = 14, **more: int
    ) -> None:
        long = bool(self.state.efer & 0x400)
        gate = Gate(selector, offset, type, **more)
        self.put(IDT + vector * (16 if long else 8), encode_gate(gate, long=long))

    def descriptor(self, selector: int, segment: Segment) -> None:
        self.put(GDT + (selector & 0xFFF8), encode_descriptor(segment))

    def deliver(self, vector: int, error: int | None = None, kind: str = "fault") -> CpuState:
        self.codec.write_state(self.state)
        assert self.unit.deliver(vector, error=error, kind=kind) is None
        return self.codec.read_state()

    def arm(self, codes: frozenset[int] = ALL) -> None:
        self.uc.mem_map(VMCB, VMCB_SIZE)
        self.uc.mem_write(VMCB, vmcb_bytes())
        self.codec.write_state(self.state)
        self.unit.arm(codes)

    def run(self, *, count: int = 0) -> CpuState:
        """Until HLT is intercepted, #UD has no gate, or the CPU shuts down."""
        self.codec.write_state(self.state)
        if not self._keep:
            self._install()
        self.uc.emu_start(self.state.rip, 0, count=count)
        return self.codec.read_state()

    def _install(self) -> None:
        def leave(end: str | None) -> None:
            if end is not None:
                self.ends.append(end)
                uclib.uc_emu_stop(self.uc._uch)

        def on_interrupt(_uc: int, number: int) -> None:
            self.numbers.append(number)
            leave(self.unit.raised(number))

        def on_invalid(_uc: int) -> bool:
            self.numbers.append(6)
            leave(self.unit.undefined())
            return True

        self._hook(UC_HOOK_INTR, _INTR(on_interrupt))
        self._hook(UC_HOOK_INSN_INVALID, _INVALID(on_invalid))
        syscall, sysenter = x86_const.UC_X86_INS_SYSCALL, x86_const.UC_X86_INS_SYSENTER
        self._hook(UC_HOOK_INSN, _CALL(lambda _uc: leave(self.unit.syscall())), syscall)
        self._hook(UC_HOOK_INSN, _CALL(lambda _uc: leave(self.unit.sysenter())), sysenter)

    def _hook(self, kind: int, callback: Any, instruction: int | None = None) -> None:
        self._keep.append(callback)
        extra = () if instruction is None else (ctypes.c_int(instruction),)
        status = uclib.uc_hook_add(
            self.uc._uch, ctypes.byref(ctypes.c_size_t()), kind, ctypes.cast(callback, ctypes.c_void_p), None,
            ctypes.c_uint64(1), ctypes.c_uint64(0), *extra,
        )  # fmt: skip
        assert status == 0


def user32(guest: Guest) -> None:
    """Move a p32 guest to CPL 3."""
    guest.state.cs = Segment(USER_CODE32, 0, 0xFFFFFFFF, 0xC0FB)
    for name in ("ss", "ds", "es"):
        setattr(guest.state, name, Segment(USER_DATA, 0, 0xFFFFFFFF, 0xC0F3))


# --- 64-bit mode -----------------------------------------------------------------------------


def test_a_64_bit_interrupt_gate_pushes_five_words_and_clears_if() -> None:
    guest = Guest("l64")
    guest.gate(0x80)
    after = guest.deliver(0x80, kind="hard")
    assert guest.get(after.rsp, "<5Q") == (CODE, CODE64, LIVELY, STACK, DATA)
    assert (after.rip, after.rsp, after.rflags) == (HANDLER, STACK - 40, LIVELY & ~IF)
    assert (after.cs.selector, after.cpl, after.ss) == (CODE64, 0, guest.state.ss)


def test_a_64_bit_trap_gate_keeps_if() -> None:
    guest = Guest("l64")
    guest.gate(0x80, type=15)
    assert guest.deliver(0x80, kind="hard").rflags == LIVELY


def test_a_delivery_clears_tf_nt_and_rf_but_not_ac() -> None:
    guest = Guest("l64", rflags=LIVELY | TF | NT | RF | AC)
    guest.gate(0x80)
    assert guest.deliver(0x80, kind="hard").rflags == LIVELY & ~IF | AC


def test_a_64_bit_frame_starts_at_a_multiple_of_16() -> None:
    guest = Guest("l64", rsp=STACK - 3)
    guest.gate(0x80)
    after = guest.deliver(0x80, kind="hard")
    assert after.rsp == STACK - 16 - 40
    assert guest.get(after.rsp, "<5Q")[3] == STACK - 3


def test_an_error_code_lies_below_the_frame() -> None:
    guest = Guest("l64")
    guest.gate(13)
    after = guest.deliver(13, 0x1234)
    assert after.rsp == STACK - 48
    assert guest.get(after.rsp, "<6Q") == (0x1234, CODE, CODE64, LIVELY | RF, STACK, DATA)


@pytest.mark.parametrize(
    ("vector", "kind", "rf"),
    [(0, "fault", RF), (1, "fault", 0), (1, "trap", 0), (3, "soft", 0), (0x20, "hard", 0), (8, "fault", 0)],
)
def test_only_a_fault_that_is_no_debug_exception_pushes_rf(vector: int, kind: str, rf: int) -> None:
    guest = Guest("l64")
    guest.gate(vector)
    after = guest.deliver(vector, kind=kind)
    assert guest.get(after.rsp, "<5Q")[2] & RF == rf


def test_from_cpl_3_the_stack_is_rsp0_and_ss_is_null() -> None:
    guest = Guest("l64u")
    guest.gate(14)
    after = guest.deliver(14, 6)
    assert guest.get(after.rsp, "<6Q") == (6, CODE, USER_CODE64, LIVELY | RF, STACK, USER_DATA)
    assert (after.rsp, after.cs.selector, after.ss.selector, after.cpl) == (INNER_STACK - 48, CODE64, 0, 0)


def test_an_ist_entry_is_the_stack_also_without_a_change_of_cpl_and_ss_stays() -> None:
    guest = Guest("l64")
    guest.put(TSS_AT + 0x24 + 8 * 2, struct.pack("<Q", 0x30008))  # IST3
    guest.gate(8, ist=3)
    after = guest.deliver(8, 0)
    assert after.rsp == 0x30000 - 48
    assert guest.get(after.rsp, "<6Q")[4:] == (STACK, DATA)
    assert after.ss == guest.state.ss


def test_an_nmi_masks_nmis_until_iret() -> None:
    guest = Guest("l64", "f448cf")  # hlt; iretq
    guest.gate(2, offset=CODE + 1)
    guest.state = guest.deliver(2, kind="nmi")
    assert guest.state.events.nmi_masked
    assert not guest.run().events.nmi_masked


def test_a_delivery_ends_an_interrupt_shadow() -> None:
    guest = Guest("l64", events=Events(sti_shadow=True))
    guest.gate(14)
    assert guest.deliver(14, 0).events == Events()


def test_a_conforming_segment_keeps_cpl_3_and_its_stack() -> None:
    guest = Guest("l64u")
    guest.descriptor(SPARE_SELECTOR, Segment(0, 0, 0xFFFFFFFF, 0xA09F))
    guest.state.gdt = Table(GDT, SPARE + 7)
    guest.gate(0x80, SPARE_SELECTOR)
    after = guest.deliver(0x80, kind="hard")
    assert (after.rsp, after.cs.selector, after.ss) == (STACK - 40, SPARE_SELECTOR | 3, guest.state.ss)


def test_a_16_bit_code_segment_of_compatibility_mode_is_left_for_64_bit_code() -> None:
    guest = Guest("l64", cs=Segment(CODE16, 0, 0xFFFF, 0x9B), rip=0x1234)
    guest.gate(0x80)
    after = guest.deliver(0x80, kind="hard")
    assert guest.get(after.rsp, "<5Q")[:2] == (0x1234, CODE16)
    assert after.mode == "l64"


def test_an_accessed_bit_that_was_clear_is_set_in_the_code_descriptor() -> None:
    guest = Guest("l64")
    guest.descriptor(CODE64, Segment(0, 0, 0xFFFFFFFF, 0xA09A))
    guest.gate(0x80)
    guest.deliver(0x80, kind="hard")
    assert guest.get(GDT + CODE64 + 5, "<B") == (0x9B,)


# --- what a delivery meets -------------------------------------------------------------------


def nested(guest: Guest, vector: int, error: int | None = None, kind: str = "hard") -> tuple[int, int, int]:
    """The (vector, error code, pushed RIP) that arrive instead; handlers are told by their offset."""
    for number in (8, 10, 11, 12, 13, 14):
        if guest.get(IDT + number * 16, "<Q") == (0,):
            guest.gate(number, offset=0x1000 * number)
    after = guest.deliver(vector, error, kind)
    code, rip = guest.get(after.rsp, "<2Q")
    return after.rip >> 12, code, rip


def test_a_vector_beyond_the_idt_is_a_general_protection_fault() -> None:
    guest = Guest("l64")
    guest.state.idt = Table(IDT, 0x7F * 16 + 15)
    assert nested(guest, 0x80) == (13, 0x80 * 8 + 3, CODE)


def test_a_gate_that_is_not_present_is_np() -> None:
    guest = Guest("l64")
    guest.gate(0x80, present=0)
    assert nested(guest, 0x80) == (11, 0x80 * 8 + 3, CODE)


def test_a_gate_of_another_type_is_a_general_protection_fault() -> None:
    guest = Guest("l64")
    guest.gate(0x80, type=5)
    assert nested(guest, 0x80) == (13, 0x80 * 8 + 3, CODE)


def test_int_n_through_a_gate_of_cpl_0_faults_at_the_int_without_ext() -> None:
    guest = Guest("l64u", "90cd80")
    guest.state.rip = CODE + 3
    guest.gate(0x80)
    assert nested(guest, 0x80, kind="soft") == (13, 0x80 * 8 + 2, CODE + 1)


def test_int3_through_a_gate_of_cpl_0_faults_at_its_one_byte() -> None:
    guest = Guest("l64u", "90cc")
    guest.state.rip = CODE + 2
    guest.gate(3)
    assert nested(guest, 3, kind="soft") == (13, 3 * 8 + 2, CODE + 1)


@pytest.mark.parametrize("kind", ["hard", "fault", "icebp", "nmi"])
def test_only_software_interrupts_are_checked_against_the_gates_dpl(kind: str) -> None:
    guest = Guest("l64u")
    guest.gate(3)
    assert guest.deliver(3, kind=kind).rip == HANDLER


@pytest.mark.parametrize(
    ("selector", "vector", "error"),
    [
        (0, 13, 1),
        (SPARE_SELECTOR, 13, SPARE_SELECTOR | 1),  # beyond the GDT
        (DATA, 13, DATA | 1),
        (CODE32, 13, CODE32 | 1),  # not 64-bit code
        (USER_CODE64, 13, USER_CODE64 & ~3 | 1),  # DPL 3 from CPL 0
        (CODE64 | 4, 13, CODE64 | 5),  # there is no LDT
    ],
)
def test_a_gate_to_a_bad_code_segment_names_the_selector(selector: int, vector: int, error: int) -> None:
    guest = Guest("l64")
    guest.gate(0x80, selector)
    assert nested(guest, 0x80) == (vector, error, CODE)


def test_a_code_segment_that_is_not_present_is_np() -> None:
    guest = Guest("l64")
    guest.descriptor(SPARE_SELECTOR, Segment(0, 0, 0xFFFFFFFF, 0xA01B))
    guest.state.gdt = Table(GDT, SPARE + 7)
    guest.gate(0x80, SPARE_SELECTOR)
    assert nested(guest, 0x80) == (11, SPARE_SELECTOR | 1, CODE)


def test_a_handler_that_is_not_canonical_is_a_general_protection_fault() -> None:
    guest = Guest("l64")
    guest.gate(0x80, offset=1 << 47)
    assert nested(guest, 0x80) == (13, 1, CODE)


def test_a_tss_too_short_for_the_stack_is_ts() -> None:
    guest = Guest("l64u")
    guest.put(TSS_AT + 0x24, struct.pack("<Q", INNER_STACK))
    guest.state.tr = Segment(TSS, TSS_AT, 0x2B, 0x8B)  # has RSP0 and IST1, but not IST2
    guest.gate(0x80, ist=2)
    assert nested(guest, 0x80) == (10, TSS | 1, CODE)


def test_a_stack_that_is_not_canonical_is_ss() -> None:
    guest = Guest("l64", rsp=(1 << 47) + 64)
    guest.put(TSS_AT + 0x24, struct.pack("<Q", INNER_STACK))
    guest.gate(0x80)
    guest.gate(12, ist=1, offset=0xC000)
    assert nested(guest, 0x80) == (12, 1, CODE)


def unmapped(guest: Guest, linear: int, bits: int = 0) -> None:
    """Give the 2 MiB page of `linear`, below 1 GiB, the low `bits` in place of its own."""
    at = PAGES + 0x2000 + (linear >> 21) * 8
    entry = guest.get(at, "<Q")[0]
    guest.put(at, struct.pack("<Q", entry & ~0x7F | bits))


def test_a_stack_that_is_not_mapped_is_a_page_fault_with_cr2() -> None:
    guest = Guest("l64", rsp=0x300000)
    guest.put(TSS_AT + 0x24, struct.pack("<Q", INNER_STACK))
    unmapped(guest, 0x200000)
    guest.gate(0x80)
    guest.gate(14, ist=1, offset=0xE000)
    assert nested(guest, 0x80) == (14, 2, CODE)
    assert guest.codec.read_state().cr2 == 0x300000 - 40


def test_a_supervisor_stack_in_a_read_only_page_faults_with_wp_alone() -> None:
    guest = Guest("l64", rsp=0x300000)
    guest.put(TSS_AT + 0x24, struct.pack("<Q", INNER_STACK))
    unmapped(guest, 0x200000, 0x01)
    guest.gate(0x80)
    guest.gate(14, ist=1, offset=0xE000)
    assert nested(guest, 0x80) == (14, 3, CODE)
    guest.state.cr0 &= ~(1 << 16)
    assert guest.deliver(0x80, kind="hard").rip == HANDLER


def test_smap_forbids_a_supervisor_stack_in_a_users_page_unless_ac_is_set() -> None:
    guest = Guest("l64", rsp=0x300000)
    guest.put(TSS_AT + 0x24, struct.pack("<Q", INNER_STACK))
    guest.state.cr4 |= 1 << 21
    for at in (PAGES, PAGES + 0x1000):  # user in the upper levels
        guest.put(at, bytes([guest.get(at, "<B")[0] | 4]))
    unmapped(guest, 0x200000, 0x07)
    guest.gate(0x80)
    guest.gate(14, ist=1, offset=0xE000)
    assert nested(guest, 0x80) == (14, 3, CODE)
    guest.state.rflags |= AC
    assert guest.deliver(0x80, kind="hard").rip == HANDLER


def test_a_reserved_bit_in_a_page_table_is_in_the_error_code() -> None:
    guest = Guest("l64", rsp=0x300000)
    guest.put(TSS_AT + 0x24, struct.pack("<Q", INNER_STACK))
    at = PAGES + 0x2000 + 8
    guest.put(at, struct.pack("<Q", guest.get(at, "<Q")[0] | 1 << 13))
    guest.gate(0x80)
    guest.gate(14, ist=1, offset=0xE000)
    assert nested(guest, 0x80) == (14, 0xB, CODE)


def test_a_frame_across_a_page_that_is_missing_stores_nothing() -> None:
    guest = Guest("l64", rsp=0x200010)
    guest.put(TSS_AT + 0x24, struct.pack("<Q", INNER_STACK))
    unmapped(guest, 0x200000)
    guest.put(0x1FFFE0, b"\xaa" * 32)
    guest.gate(0x80)
    guest.gate(14, ist=1, offset=0xE000)
    assert nested(guest, 0x80) == (14, 2, CODE)
    assert guest.codec.read_state().cr2 == 0x200000
    assert guest.get(0x1FFFE0, "<Q") == (0xAAAAAAAAAAAAAAAA,)


def test_accessed_and_dirty_bits_are_set_where_a_delivery_reads_and_writes() -> None:
    guest = Guest("l64", rsp=0x300000)
    for entry in range(2):
        unmapped(guest, entry << 21, 0x03)  # clears both
    guest.gate(0x80)
    guest.deliver(0x80, kind="hard")
    assert guest.get(PAGES + 0x2000, "<B") == (0xA3,)  # tables: accessed
    assert guest.get(PAGES + 0x2008, "<B") == (0xE3,)  # stack: dirty too


def test_a_second_contributory_exception_is_a_double_fault() -> None:
    guest = Guest("l64")
    guest.gate(13, present=0)
    assert nested(guest, 13, 0x18, "fault") == (8, 0, CODE)


def test_a_page_fault_during_a_general_protection_fault_is_delivered_in_turn() -> None:
    guest = Guest("l64", rsp=0x300000)
    guest.put(TSS_AT + 0x24, struct.pack("<Q", INNER_STACK))
    unmapped(guest, 0x200000)
    guest.gate(14, ist=1, offset=0xE000)
    assert nested(guest, 13, 0, "fault") == (14, 2, CODE)


@pytest.mark.parametrize("broken", ["not present", "page fault"])
def test_any_fault_during_a_page_fault_is_a_double_fault(broken: str) -> None:
    guest = Guest("l64")
    guest.put(TSS_AT + 0x24, struct.pack("<Q", INNER_STACK))
    guest.gate(8, ist=1, offset=0x8000)
    if broken == "not present":
        guest.gate(14, present=0)
    else:
        guest.state.rsp = 0x300000
        unmapped(guest, 0x200000)
    assert nested(guest, 14, 2, "fault") == (8, 0, CODE)


def test_external_interrupts_of_low_vectors_are_benign() -> None:
    guest = Guest("l64")
    guest.gate(13, present=0)
    guest.gate(11, offset=0xB000)
    assert nested(guest, 13, kind="hard") == (11, 13 * 8 + 3, CODE)


def test_a_fault_while_a_double_fault_is_delivered_shuts_down_and_changes_nothing() -> None:
    guest = Guest("l64")
    guest.codec.write_state(guest.state)
    before = guest.codec.read_state()
    cause = guest.unit.deliver(13, error=0, kind="fault")
    assert cause is not None
    assert "#GP" in cause
    assert "#DF" in cause
    assert guest.codec.read_state().diff(before) == []


def used(guest: Guest) -> Guest:
    """With each page accessed and dirty, as after some time."""
    for at in range(PAGES, PAGES + 0x6000, 8):
        entry = guest.get(at, "<Q")[0]
        guest.put(at, struct.pack("<Q", entry | 0x60 if entry & 1 else entry))
    return guest


@pytest.mark.parametrize(("mode", "kind"), [("l64", "fault"), ("l64u", "hard"), ("l64u", "soft")])
def test_ordinary_64_bit_deliveries_go_the_quick_way(
    monkeypatch: pytest.MonkeyPatch, mode: str, kind: str
) -> None:
    guest = used(Guest(mode))
    guest.gate(0x80, dpl=3)
    monkeypatch.setattr(guest.unit, "deliver_fully", None)
    assert guest.deliver(0x80, kind=kind).rip == HANDLER


@settings(max_examples=300, deadline=None)
@given(
    vector=st.integers(0, 255),
    kind=st.sampled_from(["fault", "trap", "soft", "hard", "nmi", "icebp"]),
    error=st.none() | st.integers(0, 0xFFFF),
    mode=st.sampled_from(["l64", "l64u"]),
    gate=st.tuples(st.sampled_from([14, 15]), st.integers(0, 3), st.sampled_from([0, 0, 1, 7])),
    rsp=st.integers(0x1F000, 0x21000) | st.sampled_from([0, 8, 0x300000, 1 << 47, MASK64]),
    flags=st.integers(0, 0x7FFFF).map(lambda flags: flags & ~VM & 0x3C7FD5 | 2),
)
def test_the_quick_way_of_64_bit_gates_does_what_the_complete_one_does(
    vector: int, kind: str, error: int | None, mode: str, gate: tuple[int, int, int], rsp: int, flags: int
) -> None:
    outcomes = []
    for quick in (True, False):
        guest = used(Guest(mode, rsp=rsp, rflags=flags))
        for number in (1, 7):
            guest.put(TSS_AT + 0x1C + 8 * number, struct.pack("<Q", 0x30000 + 0x100 * number))
        for number in (8, 10, 11, 12, 13, 14):
            guest.gate(number, offset=0x1000 * number, ist=1)
        guest.gate(vector, type=gate[0], dpl=gate[1], ist=gate[2])
        guest.codec.write_state(guest.state)
        if not quick:
            guest.unit._quick = lambda *_: False  # type: ignore[method-assign]
        cause = guest.unit.deliver(vector, error=error, kind=kind)
        outcomes.append((cause, guest.codec.read_state(), bytes(guest.region.buffer[0:0x100000])))
    assert outcomes[0][0] == outcomes[1][0]
    assert outcomes[0][1].diff(outcomes[1][1]) == []
    assert outcomes[0][2] == outcomes[1][2]


# --- 16- and 32-bit protected mode -----------------------------------------------------------


def test_a_32_bit_interrupt_gate_pushes_three_dwords() -> None:
    guest = Guest("p32")
    guest.gate(0x80, CODE32)
    after = guest.deliver(0x80, kind="hard")
    assert guest.get(after.rsp, "<3I") == (CODE, CODE32, LIVELY)
    assert (after.rip, after.rsp, after.rflags) == (HANDLER, STACK - 12, LIVELY & ~IF)


def test_a_32_bit_trap_gate_keeps_if_and_has_the_error_code_on_top() -> None:
    guest = Guest("p32")
    guest.gate(13, CODE32, type=15)
    after = guest.deliver(13, 0x28)
    assert guest.get(after.rsp, "<4I") == (0x28, CODE, CODE32, LIVELY | RF)
    assert after.rflags == LIVELY


@pytest.mark.parametrize(("type", "flags"), [(6, LIVELY & ~IF), (7, LIVELY)])
def test_a_16_bit_gate_pushes_words_and_has_a_16_bit_offset(type: int, flags: int) -> None:
    guest = Guest("p32", rip=0x1CAFE)
    guest.gate(0x80, CODE32, offset=0x2345, type=type)
    guest.put(IDT + 0x80 * 8 + 6, b"\xff\xff")  # an 80286 gate has nothing there
    after = guest.deliver(0x80, kind="hard")
    assert guest.get(after.rsp, "<3H") == (0xCAFE, CODE32, LIVELY)
    assert (after.rip, after.rsp, after.rflags) == (0x2345, STACK - 6, flags)


def test_from_cpl_3_a_32_bit_gate_takes_ss0_and_esp0_and_pushes_the_old_ones() -> None:
    guest = Guest("p32")
    user32(guest)
    guest.gate(13, CODE32)
    after = guest.deliver(13, 0)
    assert guest.get(after.rsp, "<6I") == (0, CODE, USER_CODE32, LIVELY | RF, STACK, USER_DATA)
    assert (after.rsp, after.ss.selector, after.cs.selector, after.cpl) == (INNER_STACK - 24, DATA, CODE32, 0)


def test_a_16_bit_tss_has_its_stack_two_bytes_in() -> None:
    guest = Guest("p32")
    user32(guest)
    guest.state.tr = Segment(TSS, TSS_AT, 0x2B, 0x83)
    guest.put(TSS_AT + 2, struct.pack("<HH", 0x8000, DATA))
    guest.gate(0x80, CODE32)
    after = guest.deliver(0x80, kind="hard")
    assert after.rsp == 0x8000 - 20
    assert guest.get(after.rsp, "<5I") == (CODE, USER_CODE32, LIVELY, STACK, USER_DATA)


def test_a_16_bit_stack_wraps_within_sp() -> None:
    guest = Guest("p32", rsp=0xABCD0004)
    guest.state.ss = Segment(0x50, 0x100000, 0xFFFF, 0x93)
    guest.gate(0x80, CODE32, offset=0x2345, type=6)
    after = guest.deliver(0x80, kind="hard")
    assert after.rsp == 0xABCDFFFE
    assert guest.get(0x100000, "<2H") == (CODE32, LIVELY)
    assert guest.get(0x10FFFE, "<H") == (CODE & 0xFFFF,)


def nested32(guest: Guest, vector: int, error: int | None = None, kind: str = "hard") -> tuple[int, int, int]:
    for number in (8, 10, 11, 12, 13, 14):
        if guest.get(IDT + number * 8, "<Q") == (0,):
            guest.gate(number, CODE32, offset=0x1000 * number)
    after = guest.deliver(vector, error, kind)
    code, rip = guest.get(after.rsp, "<2I")
    return after.rip >> 12, code, rip


@pytest.mark.parametrize(
    ("selector", "vector", "error"),
    [
        (0, 10, 1),
        (SPARE_SELECTOR, 10, SPARE_SELECTOR | 1),  # beyond the GDT
        (DATA | 1, 10, DATA | 1),  # RPL is not the new CPL
        (USER_DATA, 10, USER_DATA & ~3 | 1),  # nor is DPL
        (CODE32, 10, CODE32 | 1),  # not writable
    ],
)
def test_a_bad_ss_in_the_tss_is_ts(selector: int, vector: int, error: int) -> None:
    guest = Guest("p32")
    user32(guest)
    # The handlers of the faults run at CPL 3, on the stack that there is.
    guest.descriptor(0x48, Segment(0, 0, 0xFFFFFFFF, 0xC0FB))
    for number in (10, 13):
        guest.gate(number, 0x48, offset=0x1000 * number)
    guest.gate(0x80, CODE32)
    guest.put(TSS_AT + 8, struct.pack("<H", selector))
    assert nested32(guest, 0x80) == (vector, error, CODE)


def test_an_inner_stack_that_is_too_small_is_ss_with_the_selector() -> None:
    guest = Guest("p32")
    user32(guest)
    guest.descriptor(0x48, Segment(0, 0, 0xFFFFFFFF, 0xC0FB))
    guest.gate(12, 0x48, offset=0xC000)
    guest.descriptor(SPARE_SELECTOR, Segment(0, 0, 0xFFF, 0x4093))
    guest.state.gdt = Table(GDT, SPARE + 7)
    guest.put(TSS_AT + 4, struct.pack("<IH", 16, SPARE_SELECTOR))
    guest.gate(0x80, CODE32)
    assert nested32(guest, 0x80) == (12, SPARE_SELECTOR | 1, CODE)


def test_a_handler_beyond_the_limit_of_its_segment_is_a_general_protection_fault() -> None:
    guest = Guest("p32")
    guest.gate(0x80, CODE16, offset=0x10000)
    assert nested32(guest, 0x80) == (13, 1, CODE)


def test_from_virtual_8086_mode_the_data_segments_are_pushed_and_nulled() -> None:
    guest = Guest("p32")
    state = guest.state
    for number, name in enumerate(("cs", "ss", "ds", "es", "fs", "gs"), 0x1000):
        setattr(state, name, Segment(number, number << 4, 0xFFFF, 0xF3))
    state.rflags = LIVELY | VM
    state.rip, state.rsp = 0x123, 0xFF0
    guest.gate(0x21, CODE32, dpl=3)
    after = guest.deliver(0x21, kind="hard")
    assert guest.get(after.rsp, "<9I") == (
        0x123, 0x1000, LIVELY | VM, 0xFF0, 0x1001, 0x1003, 0x1002, 0x1004, 0x1005,
    )  # fmt: skip
    assert (after.rsp, after.mode, after.cpl) == (INNER_STACK - 36, "p32", 0)
    assert [getattr(after, name).selector for name in ("ds", "es", "fs", "gs")] == [0, 0, 0, 0]


def test_a_gate_to_conforming_code_from_virtual_8086_mode_is_a_general_protection_fault() -> None:
    guest = Guest("p32")
    for name in ("cs", "ss", "ds", "es", "fs", "gs"):
        setattr(guest.state, name, Segment(0x1000, 0x10000, 0xFFFF, 0xF3))
    guest.state.rflags, guest.state.rip = 2 | VM, 5
    guest.descriptor(SPARE_SELECTOR, Segment(0, 0, 0xFFFFFFFF, 0xC09F))
    guest.state.gdt = Table(GDT, SPARE + 7)
    guest.gate(0x80, SPARE_SELECTOR)
    assert nested32(guest, 0x80) == (13, SPARE_SELECTOR | 1, 5)


@pytest.mark.parametrize("tables", ["32-bit", "PAE"])
def test_the_other_forms_of_paging_are_walked_and_their_faults_coded(tables: str) -> None:
    guest = Guest("p32", rsp=0x600000)
    if tables == "PAE":
        guest.put(MORE_TABLES, identity_pae(MORE_TABLES, size=1 << 30))
        guest.put(MORE_TABLES + 0x1000 + 8 * 2, bytes(8))
        guest.state.cr4 = 0x20
    else:
        guest.put(MORE_TABLES, identity_32bit(MORE_TABLES, size=8 << 20))
        guest.put(MORE_TABLES + 4, bytes(4))
        guest.state.cr4 = 0x10
    guest.state.cr0 |= 1 << 31 | 1 << 16
    guest.state.cr3 = MORE_TABLES
    guest.gate(0x80, CODE32)
    guest.codec.write_state(guest.state)
    assert guest.unit.deliver(0x80, kind="hard") is not None  # the faults' stack is the same
    assert guest.codec.read_state().cr2 == 0x600000 - 4
    guest.state.rsp = STACK
    assert guest.deliver(0x80, kind="hard").rip == HANDLER


# --- task gates ------------------------------------------------------------------------------

NEW_TSS, TASK_CODE, TASK_STACK = 0x40000, 0x41000, 0x42000


def task_guest(code: str = "f4") -> Guest:
    """A p32 guest whose vector 8 is a task gate to CPL 0 code at TASK_CODE."""
    guest = Guest("p32", code, rbx=0xB0B)
    guest.descriptor(SPARE_SELECTOR, Segment(0, NEW_TSS, 0x67, 0x89))
    guest.state.gdt = Table(GDT, SPARE + 7)
    image = [TASK_CODE, 2, 1, 2, 3, 4, TASK_STACK, 6, 7, 8, DATA, CODE32, DATA, DATA, 0, 0]
    guest.put(NEW_TSS + 0x20, struct.pack("<16I", *image))
    guest.gate(8, SPARE_SELECTOR, offset=0, type=5)
    return guest


def test_a_task_gate_switches_and_pushes_the_error_code_on_the_new_stack() -> None:
    guest = task_guest()
    after = guest.deliver(8, 0x55)
    assert (after.rip, after.rax, after.rcx, after.rsp) == (TASK_CODE, 1, 2, TASK_STACK - 4)
    assert guest.get(after.rsp, "<I") == (0x55,)
    assert (after.tr.selector, after.tr.base, after.tr.attr | 2) == (SPARE_SELECTOR, NEW_TSS, 0x8B)
    assert after.rflags == 2 | NT
    assert after.cr0 & 8
    assert guest.get(NEW_TSS, "<H") == (TSS,)
    assert guest.get(TSS_AT + 0x20, "<2I") == (CODE, LIVELY)
    assert guest.get(TSS_AT + 0x34, "<I") == (0xB0B,)
    assert guest.get(GDT + SPARE + 5, "<B") == (0x8B,)


def test_iret_leaves_a_nested_task() -> None:
    guest = task_guest("f4")
    guest.put(TASK_CODE, bytes.fromhex("83c404cf"))  # add esp, 4; iret
    guest.state = guest.deliver(8, 0)
    after = guest.run()
    assert (after.rip, after.rbx, after.tr.selector) == (CODE + 1, 0xB0B, TSS)


def test_a_task_that_is_busy_is_a_general_protection_fault() -> None:
    guest = task_guest()
    guest.descriptor(SPARE_SELECTOR, Segment(0, NEW_TSS, 0x67, 0x8B))
    guest.gate(0x80, SPARE_SELECTOR, offset=0, type=5)
    assert nested32(guest, 0x80) == (13, SPARE_SELECTOR | 1, CODE)


# --- real mode -------------------------------------------------------------------------------


def real(code: str = "", **fields: object) -> Guest:
    guest = Guest("real", code, rsp=0x7000, **fields)
    guest.put(0x80 * 4, struct.pack("<HH", 0x1234, 0xF00))
    return guest


def test_real_mode_pushes_three_words_and_clears_if_tf_and_ac() -> None:
    guest = real(rflags=LIVELY | TF | AC)
    after = guest.deliver(0x80, kind="hard")
    assert guest.get(0x6FFA, "<3H") == (guest.state.rip, 0x1000, LIVELY | TF)
    assert (after.rip, after.cs.selector, after.cs.base, after.rsp) == (0x1234, 0xF00, 0xF000, 0x6FFA)
    assert after.rflags == LIVELY & ~IF


def test_real_mode_pushes_no_error_code() -> None:
    guest = real()
    guest.put(13 * 4, struct.pack("<HH", 0x1234, 0xF00))
    assert guest.deliver(13, 0).rsp == 0x6FFA


def test_the_interrupt_table_of_real_mode_can_be_moved() -> None:
    guest = real()
    guest.state.idt = Table(0x30000, 0x3FF)
    guest.put(0x30000 + 0x80 * 4, struct.pack("<HH", 0x4321, 0x100))
    after = guest.deliver(0x80, kind="hard")
    assert (after.cs.base, after.rip) == (0x1000, 0x4321)


def test_a_vector_beyond_the_table_of_real_mode_is_a_general_protection_fault() -> None:
    guest = real()
    guest.state.idt = Table(0, 0x7F * 4 + 3)
    guest.put(13 * 4, struct.pack("<HH", 0x1111, 0x200))
    assert guest.deliver(0x80, kind="hard").rip == 0x1111


def test_an_odd_stack_pointer_of_1_shuts_real_mode_down() -> None:
    guest = real()
    guest.state.rsp = 1
    guest.codec.write_state(guest.state)
    cause = guest.unit.deliver(0x80, kind="hard")
    assert cause is not None
    assert "#SS" in cause


def test_a_stack_pointer_of_0_wraps_in_real_mode() -> None:
    guest = real()
    guest.state.rsp = 0
    assert guest.deliver(0x80, kind="hard").rsp == 0xFFFA


# --- guests that run -------------------------------------------------------------------------


def test_int_n_comes_back_with_every_register_as_it_was() -> None:
    guest = Guest("l64", "cd80 f4 90 48cf")  # int 0x80; hlt; nop; iretq
    guest.gate(0x80, offset=CODE + 4)
    after = guest.run()
    guest.state.rip = CODE + 3
    assert after.diff(guest.state) == []
    assert guest.numbers == [0x80]


def test_a_faulting_load_is_executed_once_more_when_its_page_is_there() -> None:
    # mov rax, [rbx]; hlt   handler: mov [rdi], rsi (the entry); invlpg [rbx]; inc ecx; add rsp, 8; iretq
    guest = Guest(
        "l64", "488b03 f4 488937 0f013b ffc1 4883c408 48cf", rbx=0x300000, rdi=PAGES + 0x2008, rsi=0x200083
    )
    unmapped(guest, 0x200000)
    guest.put(0x300000, struct.pack("<Q", 0xFEEDF00D))
    guest.gate(14, offset=CODE + 4)
    after = guest.run()
    assert (after.rax, after.rcx, after.cr2, after.rip) == (0xFEEDF00D, 1, 0x300000, CODE + 4)
    assert guest.numbers == [14]


def test_page_faults_one_after_the_other_are_not_taken_for_a_double_fault() -> None:
    # l: mov al, [rbx]; add rbx, 0x1000; dec edx; jnz l; hlt   handler: add rsp, 8; add qword [rsp], 2; iretq
    guest = Guest("l64", "8a03 4881c300100000 ffca 75f3 f4 4883c408 4883042402 48cf", rbx=0x200000, rdx=5)
    unmapped(guest, 0x200000)
    guest.gate(14, offset=CODE + 14)
    after = guest.run()
    assert guest.numbers == [14] * 5
    assert (after.cr2, after.rip) == (0x204000, CODE + 14)


def test_the_flags_of_a_lazy_comparison_are_pushed() -> None:
    guest = Guest("l64", "39c0 cd80 f4 59595b f4")  # cmp eax, eax; int 0x80   handler: pop rcx, rcx, rbx; hlt
    guest.gate(0x80, offset=CODE + 5)
    assert guest.run().rbx == (LIVELY & ~CF) | 4  # ZF and PF


def test_single_steps_arrive_as_debug_exceptions_behind_each_instruction() -> None:
    guest = Guest("l64", "90 90 f4 48ffc1 48cf", rflags=2 | TF)  # nop; nop; hlt   handler: inc rcx; iretq
    guest.gate(1, offset=CODE + 3)
    guest.arm(frozenset({0x78}))
    after = guest.run()
    # Behind both NOPs, and behind HLT, which a pending #DB does not let wait.
    assert after.rcx >= 3
    assert after.dr6 & 0x4000


def test_div_by_zero_in_real_mode_is_repaired_by_its_handler() -> None:
    # div cl; hlt   handler: inc cx; iret
    guest = Guest("real", "f6f1 f4 41 cf", rsp=0x7000, rcx=0, rax=9)
    guest.put(0, struct.pack("<HH", 3, 0x1000))
    after = guest.run()
    assert (after.rax & 0xFF, after.rcx, guest.numbers) == (9, 1, [0])


def test_an_undefined_instruction_has_its_handler() -> None:
    guest = Guest("l64", "0f0b f4 4883042402 48cf")  # ud2; hlt   handler: add qword [rsp], 2; iretq
    guest.gate(6, offset=CODE + 3)
    assert guest.run().rip == CODE + 3
    assert guest.numbers == [6]


def test_icebp_is_a_debug_exception_that_no_dpl_forbids() -> None:
    guest = Guest("l64u", "f1")
    guest.gate(1, offset=CODE + 0x100)
    guest.put(CODE + 0x100, b"\xf4")
    after = guest.run()
    assert (after.rip, guest.get(after.rsp, "<Q")) == (CODE + 0x101, (CODE + 1,))


def test_a_debug_exception_clears_general_detect() -> None:
    guest = Guest("l64", dr7=0x2400)
    guest.gate(1)
    assert guest.deliver(1, kind="fault").dr7 == 0x400


@settings(max_examples=200, deadline=None)
@given(
    bits=st.lists(st.integers(0, 0x1FF).map(lambda low: low & 0x67 | 1), min_size=3, max_size=3),
    leaf=st.sampled_from([0, 1, 3, 5, 7, 0x23, 0x63, 0x67]),
    no_execute=st.booleans(),
    wp=st.booleans(),
    nxe=st.booleans(),
    write=st.booleans(),
    user=st.booleans(),
)
def test_the_walk_agrees_with_the_engines(
    bits: list[int], leaf: int, no_execute: bool, wp: bool, nxe: bool, write: bool, user: bool
) -> None:
    # mov [rbx], al   or   mov al, [rbx]
    guest = Guest("l64u" if user else "l64", ("8803" if write else "8a03") + "f4", rbx=(1 << 39) + 0x5678)
    guest.state.cr0 = guest.state.cr0 & ~(1 << 16) | wp << 16
    guest.state.efer |= nxe << 11
    tables = [PAGES + 8, *(MORE_TABLES + 0x1000 * n for n in range(2)), MORE_TABLES + 0x2000 + 8 * 5]
    for level, low in enumerate(bits):
        guest.put(tables[level], struct.pack("<Q", MORE_TABLES + 0x1000 * level | low))
    guest.put(tables[3], struct.pack("<Q", 0x50000 | leaf | no_execute << 63))
    before = [guest.get(at, "<Q")[0] for at in tables]

    # The engine's own walk, with a hook that only looks.
    seen: list[tuple[int, int | None]] = []

    def look(_uc: int, number: int) -> None:
        seen.append((number, error_code(guest.codec)))
        uclib.uc_emu_stop(guest.uc._uch)

    guest._hook(UC_HOOK_INTR, _INTR(look))
    guest.codec.write_state(guest.state)
    guest.uc.emu_start(CODE, 0)
    theirs = [guest.get(at, "<Q")[0] for at in tables]

    for at, entry in zip(tables, before, strict=True):
        guest.put(at, struct.pack("<Q", entry))
    guest.codec.write_state(guest.state)
    guest.unit.cpu.save()
    guest.unit.use_memory(guest.state.rflags)
    ours: int | None = None
    try:
        gpa = guest.unit.memory.translate(guest.state.rbx, write=write, user=user, implicit=False)
    except GuestFault as fault:
        ours = fault.error
    faults = [code for number, code in seen[:1] if number == 14]
    assert faults == ([] if ours is None else [ours])
    if ours is None:
        assert gpa == 0x50678
        assert [guest.get(at, "<Q")[0] for at in tables] == theirs


def test_a_stack_where_there_is_no_ram_loses_its_frame() -> None:
    guest = Guest("l64", rsp=RAM + 0x10000)
    guest.gate(0x80)
    after = guest.deliver(0x80, kind="hard")
    assert (after.rip, after.rsp) == (HANDLER, RAM + 0x10000 - 40)


def test_a_stack_in_rom_loses_its_frame() -> None:
    guest = Guest("l64", rsp=STACK)
    guest.gate(0x80)
    guest.codec.write_state(guest.state)
    guest.region.readonly = True
    guest.ram.set_regions([guest.region])
    assert guest.unit.deliver(0x80, kind="hard") is None
    assert guest.get(STACK - 40, "<5Q") == (0,) * 5


def test_stores_of_the_complete_way_are_reported() -> None:
    written: list[tuple[int, int]] = []
    guest = real()
    guest.unit.memory.ram = GuestRam([guest.region], written=lambda gpa, size: written.append((gpa, size)))
    guest.deliver(0x80, kind="hard")
    assert written == [(0x6FFE, 2), (0x6FFC, 2), (0x6FFA, 2)]


def test_guest_ram_lets_its_regions_go() -> None:
    region = Region(0, 0x1000, readonly=False, name="RAM")
    ram = GuestRam([region])
    ram.write(8, b"abc")
    assert ram.read(8, 3) == b"abc"
    with pytest.raises(LookupError):
        ram.read(0x1000, 1)
    ram.close()
    region.buffer.close()
    with pytest.raises(LookupError):
        ram.read(8, 3)


def test_an_exception_without_an_idt_ends_the_run() -> None:
    guest = Guest("l64", "0f0b")
    guest.state.idt = Table(0, 0)
    guest.run()
    assert len(guest.ends) == 1


# --- SYSCALL and SYSENTER --------------------------------------------------------------------


def syscall_guest(code: str, mode: str = "l64u", **more: int) -> Guest:
    guest = Guest(mode, code)
    guest.state.efer |= 1
    # SYSRET's 64-bit CS is this + 16, and its SS this + 8: the presets' selectors fit.
    guest.state.msrs |= {
        msrs.STAR: (USER_CODE32 & ~3) << 48 | CODE64 << 32,
        msrs.LSTAR: CODE + 0x100,
        msrs.FMASK: IF | CF | DF,
    }
    guest.state.msrs |= {getattr(msrs, name): value for name, value in more.items()}
    return guest


def test_syscall_loads_what_its_msrs_say() -> None:
    guest = syscall_guest("0f05 90")
    guest.put(CODE + 0x100, bytes.fromhex("90f4"))
    after = guest.run()
    assert (after.rip, after.rcx, after.r11) == (CODE + 0x102, CODE + 2, LIVELY)
    assert after.rflags == LIVELY & ~(IF | CF | DF)
    assert after.cs == Segment(CODE64, 0, 0xFFFFFFFF, 0xA09B)
    assert after.ss == Segment(CODE64 + 8, 0, 0xFFFFFFFF, 0xC093)
    assert (after.cpl, after.rsp) == (0, STACK)


def test_a_prefix_before_syscall_counts() -> None:
    guest = syscall_guest("480f05")
    guest.put(CODE + 0x100, b"\xf4")
    after = guest.run()
    assert (after.rcx, after.rip) == (CODE + 3, CODE + 0x101)


def test_sysret_goes_back_behind_syscall() -> None:
    guest = syscall_guest(
        "0f05 ffc3 0f05"
    )  # syscall; inc ebx; syscall   handler: cmp ebx, 1; je +3; sysret; hlt
    guest.put(CODE + 0x100, bytes.fromhex("83fb01 7403 480f07 f4"))
    after = guest.run()
    assert (after.rbx, after.rcx, after.rip) == (1, CODE + 6, CODE + 0x109)


def test_syscall_without_sce_is_undefined() -> None:
    guest = syscall_guest("90 0f05")
    guest.state.efer &= ~1
    guest.gate(6, offset=CODE + 0x200)
    guest.put(CODE + 0x200, b"\xf4")
    after = guest.run()
    assert (after.rip, guest.get(after.rsp, "<Q")[0]) == (CODE + 0x201, CODE + 1)


def test_syscall_of_32_bit_code_is_undefined_on_this_cpu() -> None:
    guest = syscall_guest("90 0f05")
    guest.state.cs = Segment(USER_CODE32, 0, 0xFFFFFFFF, 0xC0FB)
    guest.gate(6, offset=CODE + 0x200)
    guest.put(CODE + 0x200, b"\xf4")
    after = guest.run()
    assert (after.rip, guest.get(after.rsp, "<Q")[0]) == (CODE + 0x201, CODE + 1)


@pytest.mark.parametrize("mode", ["p32", "l64u"])
def test_sysenter_goes_to_cpl_0_in_the_widest_mode(mode: str) -> None:
    guest = Guest(mode, "90 0f34")
    if mode == "p32":
        user32(guest)
    guest.state.msrs |= {
        msrs.SYSENTER_CS: CODE64 | 3,
        msrs.SYSENTER_ESP: 0x30000,
        msrs.SYSENTER_EIP: CODE + 0x100,
    }
    guest.put(CODE + 0x100, b"\xf4")
    after = guest.run()
    assert (after.rip, after.rsp, after.rflags) == (CODE + 0x101, 0x30000, LIVELY & ~IF)
    assert after.cs == Segment(CODE64, 0, 0xFFFFFFFF, 0xA09B if mode == "l64u" else 0xC09B)
    assert after.ss == Segment(CODE64 + 8, 0, 0xFFFFFFFF, 0xC093)
    assert after.mode == ("l64" if mode == "l64u" else "p32")


def test_sysexit_goes_back_to_cpl_3() -> None:
    # sysenter; nop; int 0x80   SYSENTER_EIP: mov ecx, esp; mov edx, CODE + 3; sysexit
    guest = Guest("p32", "0f34 90 cd80")
    user32(guest)
    # SYSEXIT takes CS + 16 and CS + 24: 0x18 and 0x20 from a CS of 8.
    guest.descriptor(0x18, Segment(0, 0, 0xFFFFFFFF, 0xC0FB))
    guest.descriptor(0x20, Segment(0, 0, 0xFFFFFFFF, 0xC0F3))
    guest.state.msrs |= {msrs.SYSENTER_CS: 8, msrs.SYSENTER_ESP: 0x30000, msrs.SYSENTER_EIP: CODE + 0x100}
    guest.put(CODE + 0x100, bytes.fromhex("89e1 ba03000100 0f35"))
    guest.descriptor(0x48, Segment(0, 0, 0xFFFFFFFF, 0xC093))
    guest.put(TSS_AT + 8, struct.pack("<H", 0x48))
    guest.gate(0x80, CODE32, offset=CODE + 0x200, dpl=3)
    guest.put(CODE + 0x200, b"\xf4")
    after = guest.run()
    assert guest.get(after.rsp, "<5I")[:2] == (CODE + 5, 0x1B)
    assert guest.get(after.rsp, "<5I")[3:] == (0x30000, 0x23)


def test_sysenter_with_a_null_cs_is_a_general_protection_fault() -> None:
    guest = Guest("l64u", "90 0f34")
    guest.gate(13, offset=CODE + 0x200)
    guest.put(CODE + 0x200, b"\xf4")
    after = guest.run()
    assert (after.rip, *guest.get(after.rsp, "<2Q")) == (CODE + 0x201, 0, CODE + 1)


# --- intercepts ------------------------------------------------------------------------------


def armed(code: str, mode: str = "l64", **fields: object) -> Guest:
    """A guest that ends at HLT, also when it came to #GP, whose handler is one."""
    guest = Guest(mode, code, **fields)
    if mode.startswith("l64"):
        guest.gate(13, offset=CODE + 0x800)
    elif mode == "p32":
        guest.gate(13, CODE32, offset=CODE + 0x800)
    guest.put(CODE + 0x800, b"\xf4")
    guest.arm()
    return guest


def faulted(guest: Guest, after: CpuState, layout: str = "<2Q") -> tuple[bool, int, int]:
    """Whether #GP(0) came, and of which RIP."""
    code, rip = guest.get(after.rsp, layout)
    return after.rip == CODE + 0x801, code, rip


def test_hlt_ends_the_run_with_rip_behind_it() -> None:
    guest = armed("90 f4")
    assert guest.run().rip == CODE + 2
    assert (guest.ends, guest.numbers) == ([HALTED], [0x178])


def test_cpuid_is_the_platforms_and_clears_the_upper_halves() -> None:
    guest = armed("0fa2 f4", rax=0xF_0000_0007, rcx=0xF_0000_0002, rbx=MASK64)
    guest.platform.cpuid = lambda leaf, subleaf: (leaf, 0xB, subleaf, 0xD)
    after = guest.run()
    assert (after.rax, after.rbx, after.rcx, after.rdx, after.rip) == (7, 0xB, 2, 0xD, CODE + 3)


def test_cpuid_at_cpl_3_is_answered_too() -> None:
    guest = armed("0fa2 ffc6 cd0d", "l64u", rax=7)
    guest.platform.cpuid = lambda leaf, subleaf: (1, 2, 3, 4)
    after = guest.run()
    assert (after.rax, after.rsi) == (1, 1)


def test_prefixes_of_an_intercepted_instruction_count() -> None:
    guest = armed("66f3480fa2 f4")
    assert guest.run().rip == CODE + 6


def test_rdtsc_and_rdtscp_are_the_platforms_counter() -> None:
    guest = armed("0f31 89c3 89d6 0f01f9 f4", rcx=0)
    guest.platform.tsc = lambda: 0x1122334455667788
    after = guest.run()
    assert (after.rbx, after.rsi) == (0x55667788, 0x11223344)
    assert (after.rax, after.rdx) == (0x55667788, 0x11223344)


def test_rdtsc_at_cpl_3_with_tsd_is_a_general_protection_fault() -> None:
    guest = armed("90 0f31", "l64u")
    guest.state.cr4 |= 4
    assert faulted(guest, guest.run()) == (True, 0, CODE + 1)


@pytest.mark.parametrize("code", ["0f32", "0f30", "0f20c0", "0f22c0", "440f20c0", "440f22c0", "f4", "0f33"])
def test_privileged_instructions_of_cpl_3_are_general_protection_faults(code: str) -> None:
    guest = armed("90" + code, "l64u", rcx=0x10)
    after = guest.run()
    assert guest.get(after.rsp, "<2Q") == (0, CODE + 1)
    assert guest.numbers[0] in (13, 0x16F)  # RDPMC's intercept comes first, and is #GP all the same


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (msrs.STAR, 0x0123456789ABCDEF),
        (msrs.LSTAR, 0xFFFF800000001234),
        (msrs.FMASK, 0x47700),
        (msrs.KERNEL_GS_BASE, 0x7FFFFFFFF000),
        (msrs.FS_BASE, 0xFFFFFFFF80000000),
        (msrs.GS_BASE, 0x1234),
        (msrs.SYSENTER_CS, 0x10),
        (msrs.SYSENTER_ESP, 0x7000),
        (msrs.PAT, 0x0007010600070106),
        (0xC0000103, 5),
    ],
)
def test_an_msr_of_the_cpu_reads_as_it_was_written(index: int, value: int) -> None:
    # wrmsr; xor eax, eax; xor edx, edx; rdmsr; hlt
    guest = armed("0f30 31c0 31d2 0f32 f4", rcx=index, rax=value & 0xFFFFFFFF, rdx=value >> 32)
    after = guest.run()
    assert (after.rdx << 32 | after.rax, after.rip) == (value, CODE + 9)
    assert guest.unit.read_msr(index) == value


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (msrs.LSTAR, 1 << 47),
        (msrs.GS_BASE, 1 << 63),
        (msrs.KERNEL_GS_BASE, 1 << 48),
        (msrs.SYSENTER_EIP, 1 << 47),
        (msrs.PAT, 2),
        (msrs.EFER, 0x501 | 1 << 12),  # SVME, which is AMD's
        (msrs.EFER, 0),  # LME while paging is on
        (0xC0000103, 1 << 32),
        (0x12345678, 0),
    ],
)
def test_a_bad_msr_write_is_a_general_protection_fault(index: int, value: int) -> None:
    guest = armed("90 0f30", rcx=index, rax=value & 0xFFFFFFFF, rdx=value >> 32)
    assert faulted(guest, guest.run()) == (True, 0, CODE + 1)


def test_an_msr_that_nobody_has_is_a_general_protection_fault_to_read() -> None:
    guest = armed("90 0f32", rcx=0x12345678)
    assert faulted(guest, guest.run()) == (True, 0, CODE + 1)


def test_msrs_of_the_platform_are_asked_of_it() -> None:
    written = {}
    guest = armed("0f32 ffc1 0f30 f4", rcx=0x1B)
    guest.platform.read_msr = {0x1B: 0x1_FEE00900}.get
    guest.platform.write_msr = lambda index, value: written.setdefault(index, value) == value
    after = guest.run()
    assert (after.rax, after.rdx, written) == (0xFEE00900, 1, {0x1C: 0x1_FEE00900})


def test_efer_takes_sce_and_nxe_and_keeps_lma() -> None:
    guest = armed("0f30 f4", rcx=msrs.EFER, rax=0x901)
    assert guest.run().efer == 0xD01


def test_cr8_is_the_platforms_both_ways() -> None:
    levels: list[int] = []
    guest = armed("440f22c0 440f20c3 f4", rax=5)  # mov cr8, rax; mov rbx, cr8
    guest.platform.set_cr8 = levels.append
    guest.platform.cr8 = lambda: 9
    after = guest.run()
    assert (levels, after.rbx, after.rip) == ([5], 9, CODE + 9)


def test_cr8_without_a_platform_is_the_cpus_own() -> None:
    guest = armed("450f22c5 440f20c3 f4", r13=7)  # mov cr8, r13; mov rbx, cr8
    after = guest.run()
    assert (after.rbx, after.cr8) == (7, 7)


def test_a_priority_beyond_15_is_a_general_protection_fault() -> None:
    guest = armed("90 440f22c0", rax=16)
    assert faulted(guest, guest.run()) == (True, 0, CODE + 1)


CR0_L64, CR4_L64 = 0x80010033, 0x620


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("0f22c0", CR0_L64 | 1 << 32),
        ("0f22c0", CR0_L64 & ~1),  # PG without PE
        ("0f22c0", CR0_L64 | 1 << 29),  # NW without CD
        ("0f22c0", CR0_L64 & ~(1 << 31)),  # paging off in 64-bit code
        ("0f22e0", CR4_L64 | 1 << 31),
        ("0f22e0", CR4_L64 & ~0x20),  # PAE off in long mode
        ("0f22e0", CR4_L64 | 1 << 13),  # VMXE, which CPUID does not offer
        ("0f22e0", CR4_L64 | 1 << 20),  # nor SMEP
    ],
)
def test_a_control_register_refuses_what_it_cannot_be(code: str, value: int) -> None:
    guest = armed("90" + code, rax=value)
    after = guest.run()
    assert faulted(guest, after) == (True, 0, CODE + 1)
    assert (after.cr0, after.cr4) == (CR0_L64, CR4_L64)


def test_a_feature_that_cpuid_offers_can_be_switched_on() -> None:
    guest = armed("0f22e0 f4", rax=CR4_L64 | 1 << 20)
    guest.platform.cpuid = lambda leaf, subleaf: (7, 0, 0, 0) if leaf == 0 else (0, 1 << 7, 0, 0)
    assert guest.run().cr4 == CR4_L64 | 1 << 20


def test_every_write_to_a_control_register_is_looked_at_not_only_the_first() -> None:
    # mov cr0, rax; mov cr0, rbx
    guest = armed("0f22c0 0f22c3", rax=CR0_L64 | 8, rbx=1 << 32)
    after = guest.run()
    assert faulted(guest, after) == (True, 0, CODE + 3)
    assert after.cr0 == CR0_L64 | 8


def test_clts_and_lmsw_are_executed() -> None:
    guest = armed("0f06 0f20c3 0f01f0 f4", rax=0xA)  # clts; mov rbx, cr0; lmsw ax
    guest.state.cr0 |= 8
    after = guest.run()
    assert (after.rbx, after.cr0, after.rip) == (CR0_L64, CR0_L64 | 8 | 2, CODE + 9)


def test_lmsw_from_memory_is_executed_and_the_next_write_is_looked_at() -> None:
    guest = armed("0f0133 0f22c0", rbx=0x30000, rax=1 << 32)  # lmsw [rbx]; mov cr0, rax
    guest.put(0x30000, struct.pack("<H", 0xB))
    after = guest.run()
    assert faulted(guest, after) == (True, 0, CODE + 3)
    assert (after.cr0, after.dr6) == (CR0_L64 | 8, 0xFFFF0FF0)
    assert guest.get(after.rsp, "<4Q")[3] == LIVELY | RF


def test_lmsw_from_a_page_that_is_missing_faults_like_any_load() -> None:
    guest = armed("0f0133 0f22c0", rbx=0x300000, rax=1 << 32)
    unmapped(guest, 0x200000)
    guest.gate(14, offset=CODE + 0x800)
    after = guest.run()
    assert guest.get(after.rsp, "<4Q") == (0, CODE, CODE64, LIVELY | RF)
    assert after.cr0 == CR0_L64


def test_a_guest_walks_from_real_to_64_bit_mode_with_everything_intercepted() -> None:
    guest = Guest("real", rsp=0x7000, rflags=2)
    guest.put(PAGES, identity_4level(PAGES))
    for selector, attr in ((CODE32, 0xC09B), (CODE64, 0xA09B), (DATA, 0xC093)):
        guest.descriptor(selector, Segment(0, 0, 0xFFFFFFFF, attr))
    guest.descriptor(TSS, Segment(0, TSS_AT, 0x67, 0x89))
    guest.state.gdt = Table(GDT, TSS + 15)
    real_code = "6631c0 6683c801 0f22c0 66ea"  # xor eax, eax; or eax, 1; mov cr0, eax; ljmp 8:
    guest.put(CODE, bytes.fromhex(real_code) + struct.pack("<IH", CODE + 0x100, CODE32))
    code = (
        "66b81800 8ed8 8ed0"  # ds, ss
        "66b84000 0f00d8"  # ltr
        "b820000000 0f22e0"  # CR4.PAE
        "b800100900 0f22d8"  # CR3
        "b9800000c0 b800010000 31d2 0f30"  # EFER.LME
        "b801000080 0f22c0 ea"  # CR0.PG
    )
    at = CODE + 0x100
    guest.put(at, bytes.fromhex(code) + struct.pack("<IH", CODE + 0x200, CODE64))
    guest.put(CODE + 0x200, bytes.fromhex("48b80000000001000000 f4"))
    guest.state.cs = Segment(CODE >> 4, CODE, 0xFFFF, 0x9B)
    guest.state.rip = 0
    guest.arm()
    after = guest.run()
    assert (after.mode, after.rax, after.efer, after.cr0) == ("l64", 1 << 32, 0x500, 0x80000011)
    assert after.rip == CODE + 0x20B


def test_a_tss_of_16_bits_keeps_long_mode_off() -> None:
    guest = armed("90 0f22c0", "p32", rax=0x80000031)
    guest.state.tr = Segment(TSS, TSS_AT, 0x2B, 0x83)
    guest.state.efer, guest.state.cr4 = 0x100, 0x20
    assert faulted(guest, guest.run(), "<2I") == (True, 0, CODE + 1)


def test_tf_gives_a_debug_exception_behind_an_intercepted_instruction() -> None:
    guest = armed("0fa2 90", rflags=2 | TF)
    guest.gate(1, offset=CODE + 0x900)
    guest.put(CODE + 0x900, b"\xf4")
    after = guest.run()
    assert guest.get(after.rsp, "<3Q") == (CODE + 2, CODE64, 2 | TF)
    assert after.dr6 & 0x4000


def test_an_interrupt_shadow_ends_behind_an_intercepted_instruction() -> None:
    guest = armed("fb 0fa2 f4", rflags=2)  # sti; cpuid; hlt
    assert guest.run().events == Events()


def test_shutdown_of_the_engine_itself_is_told() -> None:
    guest = armed("f4")
    guest.run()
    assert isinstance(guest.unit.intercept(0x7F), str)


def test_intercepts_can_be_taken_away() -> None:
    guest = armed("0fa2 f4")
    guest.unit.arm(())
    guest.run()
    assert guest.numbers == []
