"""A CpuState in and out of a Unicorn engine, by the bytes of a context."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from context_tools import clear_old_exception, error_code
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import UC_ARCH_X86, UC_HOOK_INTR, UC_MODE_64, Uc, UcError

from vmmsim.backends import unicorn_context as context
from vmmsim.backends import unicorn_probe as probe
from vmmsim.backends.unicorn_context import ContextCodec, context_usable
from vmmsim.backends.unicorn_registers import scratch_engine
from vmmsim.cpu import msrs
from vmmsim.cpu.descriptors import encode_descriptor
from vmmsim.cpu.paging import identity_4level
from vmmsim.cpu.state import CpuState, Events, FpuState, Registers, Segment, Table
from vmmsim.cpu.validate import validate
from vmmsim.errors import NotSupported

Codec = ContextCodec
CODECS = [pytest.param(ContextCodec, id="context")]
NOT_HELD = {ContextCodec: context.NOT_HELD}

RAM = 2 << 20
CODE = 0x20000
DATA = 0x21000
STACK = 0x22000
GDT = 0x23000
TABLES = 0x40000
USER_TABLES = 0x60000
NOPS = b"\x90" * 64

pytestmark = pytest.mark.unicorn


def engine(code: bytes = NOPS) -> Uc:
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_set_tcg_buffer_size(4 << 20)
    uc.ctl_exits_enabled(True)
    uc.mem_map(0, RAM)
    uc.mem_write(CODE, code)
    uc.mem_write(TABLES, identity_4level(TABLES))
    uc.mem_write(USER_TABLES, identity_4level(USER_TABLES, user=True))
    return uc


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "codec_class" in metafunc.fixturenames:
        metafunc.parametrize("codec_class", CODECS)


def flat(selector: int, attr: int = 0xC093, base: int = 0) -> Segment:
    return Segment(selector, base, 0xFFFFFFFF, attr)


NULL = Segment(0, 0, 0, 0x10000)


def real(**fields: object) -> CpuState:
    return make(cr0=0x10, cs=Segment(CODE >> 4, CODE, 0xFFFF, 0x9B), **fields)


def protected(cs_attr: int = 0xC09B, **fields: object) -> CpuState:
    cs = flat(0x08, cs_attr, CODE) if cs_attr & 0x8000 else Segment(0x08, CODE, 0xFFFF, cs_attr)
    data = flat(0x10)
    segments = {"ds": data, "es": data, "ss": data, "fs": NULL, "gs": NULL}
    return make(cr0=0x11, cs=cs, **{**segments, **fields})


def long64(dpl: int = 0, **fields: object) -> CpuState:
    cs = flat(0x10 | dpl, 0xA09B | dpl << 5)
    ss = flat(0x18 | dpl, 0xC093 | dpl << 5)
    base = {"cs": cs, "ss": ss, "ds": NULL, "es": NULL, "fs": NULL, "gs": NULL}
    long = {
        "cr0": 0x80000011,
        "cr4": 0x220,
        "efer": 0xD01,
        "cr3": USER_TABLES if dpl else TABLES,
        "rip": CODE,
    }
    return make(**{**base, **long, **fields})


def make(**fields: object) -> CpuState:
    state = CpuState()
    for name, value in fields.items():
        setattr(state, name, value)
    validate(state)
    return state


def run(codec: Codec, state: CpuState, *, count: int = 0) -> CpuState:
    codec.write_state(state)
    codec.uc.emu_start(state.rip, 0, count=count)
    return codec.read_state()


# --- strategies: states that a CPU can reach -------------------------------------------------

U16, U32 = st.integers(0, (1 << 16) - 1), st.integers(0, (1 << 32) - 1)
U64, U128 = st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 128) - 1)
CANONICAL = st.integers(-(1 << 47), (1 << 47) - 1).map(lambda v: v & (1 << 64) - 1)


@st.composite
def limits(draw: st.DrawFn) -> tuple[int, int]:
    """A limit and its G bit in place."""
    if draw(st.booleans()):
        return draw(st.integers(0, 0xFFFFF)) << 12 | 0xFFF, 0x8000
    return draw(st.integers(0, 0xFFFFF)), 0


@st.composite
def data_segments(draw: st.DrawFn, cpl: int, base: st.SearchStrategy[int] = U32) -> Segment:
    if draw(st.integers(0, 3)) == 0:
        return Segment(draw(st.integers(0, 3)), 0, 0, 0x10000)
    limit, granular = draw(limits())
    kind = draw(st.sampled_from([0x91, 0x93, 0x97, 0x9B]))
    attr = (
        kind | draw(st.integers(cpl, 3)) << 5 | granular | draw(st.sampled_from([0, 0x1000, 0x4000, 0x5000]))
    )
    return Segment(draw(U16), draw(base), limit, attr)


@st.composite
def real_segments(draw: st.DrawFn) -> Segment:
    selector = draw(U16)
    if draw(st.booleans()):
        return Segment(selector, selector << 4, 0xFFFF, 0x93)
    limit, granular = draw(limits())
    return Segment(selector, draw(U32), limit, 0x93 | granular | draw(st.sampled_from([0, 0x4000])))


FPU = st.builds(
    FpuState, fcw=U16, fsw=U16, ftw=st.integers(0, 255), fop=st.integers(0, 0x7FF),
    fip=U64, fdp=U64, mxcsr=U16,
    st=st.lists(st.integers(0, (1 << 80) - 1), min_size=8, max_size=8),
    xmm=st.lists(U128, min_size=16, max_size=16), ymmh=st.lists(U128, min_size=16, max_size=16),
)  # fmt: skip
STATUS_FLAGS = st.integers(0, 0x3FFFFF).map(lambda v: v & 0x3C7ED5 & ~0x100 | 2)  # no TF, RF, VM


@st.composite
def states(draw: st.DrawFn, mode: str) -> CpuState:
    """A state whose next instruction is a NOP at CODE. `mode` as CpuState.mode, and l64-user."""
    long, cpl = mode[0] in "lc", 3 if mode.endswith("user") else 0
    state = CpuState()
    for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16))):
        setattr(state, name, draw(U64))
    state.rflags = draw(STATUS_FLAGS)
    wide = CANONICAL if long else U32
    state.gdt, state.idt = Table(draw(wide), draw(U16)), Table(draw(wide), draw(U16))
    state.ldt = Segment(draw(U16), draw(wide), draw(st.integers(0, 0xFFFFF)), 0x82)
    state.tr = Segment(draw(U16), draw(wide), draw(st.integers(0, 0xFFFFF)), 0x8B)
    state.cr0 = 0x10 | draw(st.sampled_from([0, 0x60000000])) | draw(st.integers(0, 0x3F)) & 0x2E
    state.cr2, state.cr8 = draw(wide), draw(st.integers(0, 15))
    # No SMAP: Unicorn's default CPU lacks it, so that the portable path cannot switch it on.
    state.cr4 = draw(st.integers(0, 0x7FF)) & 0x7DF | draw(st.sampled_from([0, 1 << 18, 1 << 20]))
    state.efer = draw(st.sampled_from([0, 1, 0x800, 0x801]))
    state.xcr0 = draw(st.sampled_from([1, 3]))
    state.dr, state.dr6 = [draw(U64) for _ in range(4)], 0xFFFF0FF0 | draw(st.integers(0, 15))
    state.dr7 = 0x400 | draw(U16) << 16
    for index in (msrs.LSTAR, msrs.CSTAR, msrs.KERNEL_GS_BASE, msrs.SYSENTER_ESP, msrs.SYSENTER_EIP):
        state.msrs[index] = draw(CANONICAL)
    state.msrs[msrs.STAR], state.msrs[msrs.FMASK] = draw(U64), draw(U64)
    state.msrs[msrs.SYSENTER_CS] = draw(U16)
    state.fpu = draw(FPU)
    if state.rflags & 1 << 9:
        state.events = Events(sti_shadow=draw(st.booleans()))
    if mode == "real":
        base = CODE - draw(st.integers(0, 0xFFF0))
        state.cs = Segment(draw(U16), base, 0xFFFF, 0x9B)
        state.rip = CODE - base
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(state, name, draw(real_segments()))
        return state
    state.cr0 |= 1
    for name in ("ds", "es"):
        setattr(state, name, draw(data_segments(cpl)))
    for name in ("fs", "gs"):
        segment = draw(data_segments(cpl, wide))
        if long and segment.unusable:
            segment = Segment(segment.selector, draw(CANONICAL), 0, 0x10000)
        setattr(state, name, segment)
    limit, granular = draw(limits())
    selector = draw(U16)
    state.ss = Segment(selector, draw(U32), limit, draw(st.sampled_from([0x93, 0x97])) | cpl << 5 | granular)
    if draw(st.booleans()):
        state.ss = Segment(state.ss.selector, state.ss.base, limit, state.ss.attr | 0x4000)
    kind = {"p16": 0x9B, "p32": 0x409B, "c16": 0x9B, "c32": 0x409B, "l64": 0x209B}[mode[:3]]
    base = 0 if mode[:3] == "l64" else CODE - draw(st.integers(0, 0xFFF0))
    limit, granular = draw(limits())
    state.cs = Segment(draw(U16), base, limit, kind | cpl << 5 | granular)
    state.rip = CODE - base
    if long:
        state.cr0 |= 0x80000000
        state.cr3, state.efer = USER_TABLES if cpl else TABLES, state.efer | 0x500
        state.cr4 |= 0x20
    return state


MODES = ["real", "p16", "p32", "p32-user", "l64", "l64-user", "c16", "c32", "c32-user"]


def differences(codec: type[Codec], wanted: CpuState, found: CpuState) -> list[tuple[str, object, object]]:
    return [d for d in wanted.diff(found) if d[0] not in NOT_HELD[codec]]


# --- what comes out is what went in ----------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=20)
@given(data=st.data())
def test_state_reads_as_written_and_survives_a_nop(
    codec_class: type[Codec], mode: str, data: st.DataObject
) -> None:
    wanted = data.draw(states(mode))
    validate(wanted)
    codec = codec_class(engine())
    codec.write_state(wanted)
    found = codec.read_state()
    assert differences(codec_class, wanted, found) == []
    assert codec.read_registers() == _registers(wanted)
    assert codec.read_rip() == wanted.rip

    codec.uc.emu_start(wanted.rip, 0, count=1)
    wanted.rip += 1
    wanted.events = Events()  # a shadow lasts for one instruction
    assert differences(codec_class, wanted, codec.read_state()) == []


def _registers(state: CpuState) -> Registers:
    return Registers(*(getattr(state, name) for name in Registers.__struct_fields__))


def test_reset_state_of_a_new_engine(codec_class: type[Codec]) -> None:
    codec = codec_class(engine())
    codec.write_state(CpuState())
    assert codec.read_state() == CpuState()


def test_registers_alone(codec_class: type[Codec]) -> None:
    codec = codec_class(engine())
    codec.write_state(long64())
    registers = codec.read_registers()
    registers.rax, registers.r15, registers.rip, registers.rflags = 1 << 63, 15, CODE + 8, 0x246
    codec.write_registers(registers)
    assert codec.read_registers() == registers
    state = codec.read_state()
    assert (state.rax, state.r15, state.rip, state.rflags) == (1 << 63, 15, CODE + 8, 0x246)


def test_msrs_outside_the_state_outlive_a_write(codec_class: type[Codec]) -> None:
    tsc_aux = 0xC0000103
    codec = codec_class(engine())
    codec.write_msr(tsc_aux, 0x1234)
    codec.write_state(long64())
    assert codec.read_msr(tsc_aux) == 0x1234


def test_virtual_8086_mode_is_read_as_written() -> None:
    tss = Segment(0x28, 0, 0x67, 0x8B)
    segment = Segment(0x100, 0x1000, 0xFFFF, 0xF3)
    v86 = make(
        cr0=0x11,
        rflags=0x20002,
        tr=tss,
        cs=segment,
        ds=segment,
        es=segment,
        fs=segment,
        gs=segment,
        ss=segment,
    )
    native = ContextCodec(engine())
    native.write_state(v86)
    assert native.read_state().diff(v86) == []


# --- what is written takes effect ------------------------------------------------------------


def test_reset_vector_runs_below_4_gib(codec_class: type[Codec]) -> None:
    uc = engine()
    uc.mem_map(0xFFFFF000, 0x1000)
    uc.mem_write(0xFFFFFFF0, bytes.fromhex("8cc8f4"))  # mov ax, cs; hlt
    after = run(codec_class(uc), CpuState(rip=0xFFF0))
    assert (after.rax, after.rip, after.cs) == (0xF000, 0xFFF3, CpuState().cs)


def test_data_segment_base_in_16_bit_protected_mode(codec_class: type[Codec]) -> None:
    uc = engine(bytes.fromhex("a10400f4"))  # mov ax, [4]; hlt
    uc.mem_write(DATA + 4, b"\x34\x12")
    after = run(codec_class(uc), protected(0x9B, ds=Segment(0x10, DATA, 0xFFFF, 0x93)))
    assert after.rax == 0x1234


def test_unreal_mode_reaches_above_64_kib(codec_class: type[Codec]) -> None:
    uc = engine(bytes.fromhex("67a100001000f4"))  # mov ax, [dword 0x100000]; hlt
    uc.mem_write(0x100000, b"\xcd\xab")
    after = run(codec_class(uc), real(ds=Segment(0, 0, 0xFFFFFFFF, 0x8093)))
    assert after.rax == 0xABCD
    assert after.ds.limit == 0xFFFFFFFF


@pytest.mark.parametrize(
    ("attr", "pushed_at", "esp"), [(0x93, STACK + 0xFFFC, 0x5FFFC), (0x4093, None, 0x4FFFC)]
)
def test_stack_width_is_that_of_ss(
    codec_class: type[Codec], attr: int, pushed_at: int | None, esp: int
) -> None:
    uc = engine(bytes.fromhex("50f4"))  # push eax; hlt
    ss = Segment(0x18, STACK, 0xFFFF, attr)
    after = run(codec_class(uc), protected(ss=ss, rax=0x11223344, rsp=0x50000))
    assert after.rsp == esp
    where = pushed_at if pushed_at is not None else STACK + 0x4FFFC
    assert uc.mem_read(where, 4) == b"\x44\x33\x22\x11"


def test_64_bit_user_code(codec_class: type[Codec]) -> None:
    uc = engine(
        bytes.fromhex("488cc8 64488b1c25 08000000 f4".replace(" ", ""))
    )  # mov rax, cs; mov rbx, fs:[8]; hlt
    uc.mem_write(DATA + 8, struct.pack("<Q", 0x1122334455667788))
    codec = codec_class(uc)
    codec.write_state(long64(3, fs=Segment(0, DATA, 0, 0x10000)))
    with pytest.raises(UcError):  # HLT at CPL 3 is #GP, and nobody takes it
        uc.emu_start(CODE, 0)
    after = codec.read_state()
    assert (after.rax, after.rbx, after.rip, after.cpl) == (0x13, 0x1122334455667788, CODE + 12, 3)


def test_user_code_cannot_read_a_supervisor_page(codec_class: type[Codec]) -> None:
    uc = engine(bytes.fromhex("488b0425 00000200 f4".replace(" ", "")))  # mov rax, [0x20000]; hlt
    codec = codec_class(uc)
    uc.mem_write(0x80000, identity_4level(0x80000, user=True))
    state = long64(3, cr3=0x80000)
    assert _vector(codec, state) == 13  # only the HLT faults
    uc.mem_write(0x80000, identity_4level(0x80000))
    assert _vector(codec, state) == 14


def _vector(codec: Codec, state: CpuState) -> int:
    seen: list[int] = []
    hook = codec.uc.hook_add(UC_HOOK_INTR, lambda uc, vector, _: (seen.append(vector), uc.emu_stop()))
    codec.write_state(state)
    codec.flush_tlb()
    codec.uc.emu_start(state.rip, 0)
    codec.uc.hook_del(hook)
    return seen[0]


def test_compatibility_mode_runs_32_bit_code(codec_class: type[Codec]) -> None:
    uc = engine(bytes.fromhex("40 f4".replace(" ", "")))  # inc eax; hlt (a REX prefix in 64-bit code)
    after = run(codec_class(uc), long64(cs=flat(0x08, 0xC09B, CODE), ds=flat(0x18), rip=0, rax=0xFFFFFFFF))
    assert (after.rax, after.rip, after.mode) == (0, 2, "c32")


def test_flags_and_direction(codec_class: type[Codec]) -> None:
    uc = engine(bytes.fromhex("ac 9c 0f92c3 f4".replace(" ", "")))  # lodsb; pushf; setc bl; hlt
    uc.mem_write(DATA, b"\x42")
    after = run(codec_class(uc), protected(rsi=DATA, rsp=STACK, rflags=0x8D7 | 1 << 10))
    assert (after.rax & 0xFF, after.rsi, after.rbx) == (0x42, DATA - 1, 1)
    assert struct.unpack("<I", uc.mem_read(STACK - 4, 4))[0] == after.rflags == 0xCD7


@pytest.mark.parametrize(("rounding", "third"), [(0, 0x3FD5555555555555), (2, 0x3FD5555555555556)])
def test_x87_values_and_rounding(codec_class: type[Codec], rounding: int, third: int) -> None:
    # fdivp st1, st0; fstp qword [DATA]; hlt, with 1.0 under 3.0
    uc = engine(bytes.fromhex("def9 dd1d 00100200 f4".replace(" ", "")))
    one, three = 0x3FFF << 64 | 1 << 63, 0x4000 << 64 | 3 << 62
    fpu = FpuState(fcw=0x27F | rounding << 10, fsw=6 << 11, ftw=0xC0, st=[three, one] + [0] * 6)
    after = run(codec_class(uc), protected(fpu=fpu))
    assert struct.unpack("<Q", uc.mem_read(DATA, 8))[0] == third
    assert (after.fpu.fsw >> 11 & 7, after.fpu.ftw) == (0, 0)


@pytest.mark.parametrize(("rounding", "result"), [(0, 2), (1, 1), (2, 2), (3, 1)])
def test_sse_values_and_rounding(codec_class: type[Codec], rounding: int, result: int) -> None:
    uc = engine(
        bytes.fromhex("f2410f2dc1 660f6fd1 f4".replace(" ", ""))
    )  # cvtsd2si eax, xmm9; movdqa xmm2, xmm1; hlt
    xmm = [0] * 16
    xmm[9], xmm[1] = 0x3FF8000000000000, (0xAA << 120) | 0x55  # 1.5
    after = run(codec_class(uc), long64(fpu=FpuState(mxcsr=0x1F80 | rounding << 13, xmm=xmm)))
    assert after.rax == result
    assert after.fpu.xmm[2] == xmm[1]


def test_guest_reads_written_msrs_xcr0_and_tables(codec_class: type[Codec]) -> None:
    # rdmsr; mov ebx, eax; xor ecx, ecx; xgetbv; sgdt [0x21000]; hlt
    code = "0f32 89c3 31c9 0f01d0 0f01042500100200 f4"
    uc = engine(bytes.fromhex(code.replace(" ", "")))
    state = long64(rcx=msrs.LSTAR, xcr0=3, gdt=Table(0xFFFF800000012340, 0x7F), cr4=0x40220)
    state.msrs[msrs.LSTAR] = 0xFFFFFFFF81234567
    after = run(codec_class(uc), state)
    assert (after.rbx, after.rax) == (0x81234567, 3)
    assert uc.mem_read(DATA, 10) == struct.pack("<HQ", 0x7F, 0xFFFF800000012340)


def test_paging_follows_a_changed_cr3(codec_class: type[Codec]) -> None:
    uc = engine(bytes.fromhex("488b0425 00100200 f4".replace(" ", "")))  # mov rax, [0x21000]; hlt
    uc.mem_write(DATA, b"\x01")
    codec = codec_class(uc)
    assert run(codec, long64()).rax == 1
    other = bytearray(identity_4level(0x80000))
    struct.pack_into("<Q", other, 0x2000, 0x90003)  # the first 2 MiB by 4 KiB pages
    uc.mem_write(0x80000, bytes(other))
    uc.mem_write(0x90000, struct.pack("<512Q", *(n << 12 | 3 for n in range(512))))
    struct_at = 0x90000 + 8 * (DATA >> 12)
    uc.mem_write(struct_at, struct.pack("<Q", 0xA0003))
    uc.mem_write(0xA0000, b"\x02")
    assert run(codec, long64(cr3=0x80000)).rax == 2


# --- what the guest changes is seen ----------------------------------------------------------


def test_segments_that_the_guest_loads(codec_class: type[Codec]) -> None:
    uc = engine(bytes.fromhex("8ed8 8ee1 f4".replace(" ", "")))  # mov ds, eax; mov fs, ecx; hlt
    new = Segment(0x18, DATA, 0x1FFF, 0x4093)
    uc.mem_write(GDT + 0x18, encode_descriptor(new))
    after = run(codec_class(uc), protected(gdt=Table(GDT, 0x1F), rax=0x18, rcx=0x18))
    assert (after.ds, after.fs) == (new, new)
    assert after.es == flat(0x10)


def test_segments_that_the_guest_loads_through_the_ldt_under_paging(codec_class: type[Codec]) -> None:
    uc = engine(bytes.fromhex("8ee0 f4".replace(" ", "")))  # mov fs, eax; hlt
    new = Segment(0x0F, DATA, 0x1FFF, 0x40F3)
    uc.mem_write(GDT + 8, encode_descriptor(new))
    after = run(codec_class(uc), long64(ldt=Segment(0x28, GDT, 0xF, 0x82), rax=0x0F))
    assert after.fs == new


def test_real_mode_load_keeps_limit_and_attributes(codec_class: type[Codec]) -> None:
    uc = engine(bytes.fromhex("8ed8f4"))  # mov ds, ax; hlt
    after = run(codec_class(uc), real(rax=0x1234, ds=Segment(0, 0, 0xFFFFFFFF, 0x8093)))
    assert after.ds == Segment(0x1234, 0x12340, 0xFFFFFFFF, 0x8093)


def test_guest_enters_protected_mode_by_itself(codec_class: type[Codec]) -> None:
    # lgdt [0x3000], with DS=0x2000; mov eax, cr0; or al, 1; mov cr0, eax; jmp dword 0x08:0x20020
    # and there: mov ds, ecx; hlt
    code = bytes.fromhex("0f01160030 0f20c0 0c01 0f22c0 66ea20000200 0800".replace(" ", ""))
    uc = engine(code.ljust(0x20, b"\x90") + bytes.fromhex("8ed9f4"))
    code32, data32 = Segment(0x08, 0, 0xFFFFFFFF, 0xC09B), Segment(0x10, 0, 0xFFFFFFFF, 0xC093)
    uc.mem_write(GDT, struct.pack("<HI", 0x17, GDT + 0x100))
    uc.mem_write(GDT + 0x108, encode_descriptor(code32) + encode_descriptor(data32))
    after = run(codec_class(uc), real(ds=Segment(0x2000, 0x20000, 0xFFFF, 0x93), rcx=0x10))
    assert (after.mode, after.cs, after.ds, after.rip) == ("p32", code32, data32, CODE + 0x23)
    assert after.es == real().es


@pytest.mark.parametrize("start", [real, protected, long64])
def test_sti_shadow_of_the_guest(codec_class: type[Codec], start: Callable[[], CpuState]) -> None:
    codec = codec_class(engine(bytes.fromhex("fb90f4")))  # sti; nop; hlt
    after = run(codec, start(), count=1)
    assert after.events == Events(sti_shadow=True)
    codec.uc.emu_start(after.rip, 0, count=1)
    assert codec.read_state().events == Events()


def test_mov_ss_shadow_of_the_guest(codec_class: type[Codec]) -> None:
    codec = codec_class(engine(bytes.fromhex("8ed090f4")))  # mov ss, ax; nop; hlt
    assert run(codec, real(), count=1).events == Events(mov_ss_shadow=True)


def test_segment_base_whose_descriptor_was_edited_after_the_load(codec_class: type[Codec]) -> None:
    uc = engine(bytes.fromhex("8ed8f4"))  # mov ds, eax; hlt
    uc.mem_write(GDT + 0x18, encode_descriptor(Segment(0x18, DATA, 0x1FFF, 0x4093)))
    codec = codec_class(uc)
    codec.write_state(protected(gdt=Table(GDT, 0x1F), rax=0x18))
    uc.emu_start(0, 0)
    uc.mem_write(GDT + 0x18, encode_descriptor(Segment(0x18, STACK, 0x2FFF, 0x4093)))
    assert codec.read_state().ds.base == DATA


def test_cr8() -> None:
    # mov rbx, cr8; mov cr8, rax; mov rcx, cr8; hlt
    codec = ContextCodec(engine(bytes.fromhex("440f20c3 440f22c0 440f20c1 f4".replace(" ", ""))))
    after = run(codec, long64(cr8=3, rax=9))
    assert (after.rbx, after.rcx, after.cr8) == (3, 9, 9)


def test_breakpoints_that_the_guest_has_armed(codec_class: type[Codec]) -> None:
    # mov dr0, rax; mov dr7, rcx; hlt | at 0x20: nop; hlt
    code = bytes.fromhex("0f23c0 0f23f9 f4".replace(" ", "")).ljust(0x20, b"\x90") + b"\x90\xf4"
    codec = codec_class(engine(code))
    armed = run(codec, long64(rax=CODE + 0x20, rcx=0x402))
    assert armed.dr7 == 0x402
    with pytest.raises(NotSupported, match="armed breakpoints"):
        codec.write_state(CpuState())
    assert codec.read_state() == armed
    clear_old_exception(codec)
    registers = codec.read_registers()
    registers.rip = CODE + 0x20
    codec.write_registers(registers)
    seen: list[int] = []
    codec.uc.hook_add(UC_HOOK_INTR, lambda uc, vector, _: (seen.append(vector), uc.emu_stop()))
    codec.uc.emu_start(CODE + 0x20, 0)
    assert seen == [1]


# --- in an INTR hook -------------------------------------------------------------------------


def _in_hook(codec: Codec, state: CpuState, deliver: Callable[[int], None]) -> None:
    codec.uc.hook_add(UC_HOOK_INTR, lambda uc, vector, _: deliver(vector))
    codec.write_state(state)
    codec.uc.emu_start(state.rip, 0)


def test_state_written_in_an_intr_hook_takes_effect(codec_class: type[Codec]) -> None:
    # int 0x80 | at 0x20: pushfq; hlt
    codec = codec_class(engine(bytes.fromhex("cd80").ljust(0x20, b"\x90") + bytes.fromhex("9cf4")))

    def deliver(vector: int) -> None:
        assert vector == 0x80
        state = codec.read_state()
        assert state.rip == CODE + 2
        state.rip, state.rflags, state.rbx, state.rsp = CODE + 0x20, 0x47, 7, STACK
        state.cs, state.ss = flat(0x10, 0xA09B), flat(0x18, 0xC093)
        codec.write_state(state)

    _in_hook(codec, long64(3, rflags=0x3A02), deliver)
    after = codec.read_state()
    assert (after.rip, after.rbx, after.rsp, after.cpl) == (CODE + 0x22, 7, STACK - 8, 0)
    assert struct.unpack("<Q", codec.uc.mem_read(STACK - 8, 8))[0] == 0x47


@pytest.mark.parametrize(("clear", "expected"), [(True, [14, 14, 14]), (False, [14, 8])])
def test_page_faults_in_a_row(codec_class: type[Codec], clear: bool, expected: list[int]) -> None:
    # Three loads from addresses that no table maps; the hook skips each.
    codec = codec_class(engine(bytes.fromhex("488b00") * 3 + b"\xf4"))
    seen: list[int] = []

    def deliver(vector: int) -> None:
        seen.append(vector)
        if vector != 14:
            codec.uc.emu_stop()
            return
        if clear:
            clear_old_exception(codec)
        registers = codec.read_registers()
        registers.rip += 3
        codec.write_registers(registers)

    _in_hook(codec, long64(rax=0x7F0000000000), deliver)
    assert seen == expected


def test_error_code(codec_class: type[Codec]) -> None:
    codec = codec_class(engine(bytes.fromhex("8ed8f4")))  # mov ds, eax
    codec.write_state(protected(gdt=Table(GDT, 0x17), rax=0x123B))
    with pytest.raises(UcError):
        codec.uc.emu_start(0, 0)
    assert error_code(codec) == 0x1238


# --- the layout and the stubs ----------------------------------------------------------------


def test_context_is_usable_here() -> None:
    assert context_usable() == (True, "every offset was found and checked in this process")


@pytest.mark.parametrize("what", ["ES.base", "EFER", "DR0", "CR2", "XMM0"])
def test_unknown_layout_is_said_and_refused(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    layout = probe.find_layout(scratch_engine())
    at = {"ES.base": layout.segments + 8, "EFER": layout.efer, "DR0": layout.debug, "CR2": layout.cr + 16}

    class Moved(probe.ContextBytes):
        def __init__(self, uc: Uc) -> None:
            super().__init__(uc)
            self.data[at.get(what, layout.xmm)] ^= 0xFF

    monkeypatch.setattr(probe, "ContextBytes", Moved)
    context._layout.cache_clear()
    context_usable.cache_clear()
    try:
        usable, reason = context_usable()
        assert not usable
        assert what in reason
        with pytest.raises(NotSupported, match="cannot be used"):
            ContextCodec(engine())
    finally:
        context._layout.cache_clear()
        context_usable.cache_clear()
