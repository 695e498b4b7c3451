"""Checks: every register set and read back, in each mode, alone and across execution."""

from __future__ import annotations

from collections.abc import Callable

from ..backends.base import Backend
from ..cpu.msrs import FS_BASE, GS_BASE, KERNEL_GS_BASE, LSTAR, PAT, STAR, SYSENTER_EIP
from ..cpu.state import CpuState, Segment, Table
from ..diff.divergences import ignored_bits
from ..errors import NotSupported, UsageError, VmmsimError
from ..exits import Halt, PortWrite, Refused, Shutdown
from .bench import CODE, DATA, Bench
from .checks import per_mode, raises, registry

__all__ = ["CHECKS"]

CHECKS, check = registry()
_MODES = ("real", "reset", "p16", "p32", "l64", "l64u", "c32")
_CF_PF_AF_ZF_SF_DF_OF = 0xCD5


def _bench(backend: Backend, mode: str, code: bytes, adjust: Callable[[CpuState], None]) -> Bench:
    """A bench; c32 (compatibility mode) is l64 with the 32-bit code segment."""

    def change(state: CpuState) -> None:
        if mode == "c32":
            state.cs = Segment(0x08, 0, 0xFFFFFFFF, 0xC09B)
        adjust(state)

    return Bench(backend, "l64" if mode == "c32" else mode, code, adjust=change)


def _same(before: CpuState, after: CpuState, what: str) -> None:
    masks = ignored_bits(())
    found = [
        f"{name} {mine} -> {theirs}"
        for name, mine, theirs in before.diff(after)
        if not (
            isinstance(mine, int) and isinstance(theirs, int) and not (mine ^ theirs) & ~masks.get(name, 0)
        )
    ]
    assert not found, f"{what}: " + "; ".join(found)


def _fill_general(state: CpuState) -> None:
    wide = state.mode == "l64"
    for number, name in enumerate(("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp")):
        value = 0x0123456789ABCDEF * (number + 1)
        setattr(state, name, value & (2**64 - 1 if wide else 0xFFFFFFFF))
    if wide:
        for number in range(8, 16):
            setattr(state, f"r{number}", 0xFEDCBA9876543210 ^ number << 56)
    state.rflags = 2 | _CF_PF_AF_ZF_SF_DF_OF


@per_mode(CHECKS, *_MODES)
def registers_are_kept(backend: Backend, mode: str) -> None:
    """General registers and flags read back as written, before and after an instruction."""
    with _bench(backend, mode, b"\x90", _fill_general) as bench:
        state = bench.vcpu.state()
        _fill_general(state)
        bench.vcpu.set_state(state)
        _same(state, bench.vcpu.state(), "set, then read")
        registers = bench.vcpu.registers()
        for name in registers.__struct_fields__:
            assert getattr(registers, name) == getattr(state, name), (
                f"registers() and state() differ in {name}"
            )
        bench.vcpu.set_registers(registers)
        _same(state, bench.vcpu.state(), "set_registers, then read")
        if mode in ("reset", "l64u"):
            return
        bench.expect(Halt)
        after = bench.vcpu.state()
        after.rip, after.halted = state.rip, state.halted
        _same(state, after, "after NOP and HLT")


def _fill_segments(state: CpuState) -> None:
    if state.mode == "real":
        for number, name in enumerate(("ds", "es", "fs", "gs", "ss")):
            selector = 0x100 * (number + 1)
            setattr(state, name, Segment(selector, selector << 4, 0xFFFF, 0x93))


@check
def segments_of_real_mode(backend: Backend) -> None:
    """Each data segment keeps its own selector and base, and addresses with it."""
    # mov al, fs:[0x10]; out 0x80, al
    with Bench(backend, "real", bytes.fromhex("64a01000e680"), adjust=_fill_segments) as bench:
        state = bench.vcpu.state()
        for number, name in enumerate(("ds", "es", "fs", "gs", "ss")):
            segment = getattr(state, name)
            selector = 0x100 * (number + 1)
            assert (segment.selector, segment.base, segment.limit) == (selector, selector << 4, 0xFFFF), (
                f"{name} is {segment}"
            )
        bench.memory.write(0x3010, b"\x5a")
        assert bench.expect(PortWrite) == PortWrite(0x80, 1, 0x5A)
        _same(state, _at_rip(bench, state), "after the instructions")


def _at_rip(bench: Bench, state: CpuState) -> CpuState:
    after = bench.vcpu.state()
    after.rip, after.rax = state.rip, state.rax
    return after


@check
def big_real_mode(backend: Backend) -> None:
    """Hidden bases and limits that no real-mode selector gives ("unreal" mode) are kept and used."""
    flat = Segment(0, 0x2000, 0xFFFFFFFF, 0x8093)

    def unreal(state: CpuState) -> None:
        state.ds = flat

    # mov eax, [0x1E000] with a 32-bit address: linear 0x20000
    with Bench(backend, "real", bytes.fromhex("6766a100e00100"), adjust=unreal) as bench:
        bench.memory.write_int(0x20000, 4, 0xCAFEF00D)
        assert bench.vcpu.state().ds == flat, f"ds is {bench.vcpu.state().ds}"
        bench.expect(Halt)
        assert bench.vcpu.registers().rax == 0xCAFEF00D
        assert bench.vcpu.state().ds == flat, f"after running ds is {bench.vcpu.state().ds}"


@check
def segments_of_protected_mode(backend: Backend) -> None:
    """Bases, limits and access rights of descriptors that are in the GDT are kept and used."""
    based = Segment(0x58, 0x3000, 0x1FFF, 0x4093)

    def adjust(state: CpuState) -> None:
        state.es = based
        state.gdt = Table(state.gdt.base, 0x5F)

    # mov eax, es:[0x10]
    with Bench(backend, "p32", bytes.fromhex("26a110000000"), adjust=adjust) as bench:
        from ..cpu.descriptors import encode_descriptor

        bench.memory.write(bench.vcpu.state().gdt.base + 0x58, encode_descriptor(based))
        bench.memory.write_int(0x3010, 4, 0xCAFEF00D)
        bench.vcpu.set_state(bench.vcpu.state())
        assert bench.vcpu.state().es == based, f"es is {bench.vcpu.state().es}"
        bench.expect(Halt)
        assert bench.vcpu.registers().rax == 0xCAFEF00D
        assert bench.vcpu.state().es == based, f"after running es is {bench.vcpu.state().es}"


@check
def fs_and_gs_bases_of_long_mode(backend: Backend) -> None:
    """64-bit bases of FS and GS are kept and used; the base MSRs are the same registers."""

    def adjust(state: CpuState) -> None:
        data = state.fs
        state.fs = Segment(data.selector, DATA, data.limit, data.attr)
        state.gs = Segment(data.selector, 0xFFFF800000000000, data.limit, data.attr)

    # mov eax, fs:[0x10]
    with Bench(backend, "l64", bytes.fromhex("648b042510000000"), adjust=adjust) as bench:
        bench.memory.write_int(DATA + 0x10, 4, 0xCAFEF00D)
        bench.expect(Halt)
        state = bench.vcpu.state()
        assert state.rax == 0xCAFEF00D
        assert (state.fs.base, state.gs.base) == (DATA, 0xFFFF800000000000)
        assert bench.vcpu.read_msr(FS_BASE) == DATA
        assert bench.vcpu.read_msr(GS_BASE) == 0xFFFF800000000000
        bench.vcpu.write_msr(FS_BASE, 0x12345000)
        assert bench.vcpu.state().fs.base == 0x12345000


@check
def descriptor_tables_and_system_segments(backend: Backend) -> None:
    """GDTR, IDTR, LDTR and TR read back, and SIDT and STR show them to the guest."""

    def adjust(state: CpuState) -> None:
        state.idt = Table(0x6000, 0x7FF)
        state.ldt = Segment(0x48, 0x9000, 0xFF, 0x82)

    # sidt [0x5000]; str eax
    with Bench(backend, "p32", bytes.fromhex("0f010d005000000f00c8"), adjust=adjust) as bench:
        state = bench.vcpu.state()
        assert state.idt == Table(0x6000, 0x7FF), f"idt is {state.idt}"
        assert state.ldt == Segment(0x48, 0x9000, 0xFF, 0x82), f"ldt is {state.ldt}"
        assert state.tr.selector == 0x40
        bench.expect(Halt)
        assert bench.memory.read(DATA, 6) == bytes.fromhex("ff0700600000")
        assert bench.vcpu.registers().rax & 0xFFFF == 0x40


def _fill_fpu(state: CpuState, avx: bool) -> None:
    fpu = state.fpu
    fpu.fcw, fpu.mxcsr = 0x27F, 0x9FC0
    # TOP = 5: three values on the stack, physical registers 5, 6 and 7.
    fpu.fsw, fpu.ftw = 5 << 11, 0xE0
    fpu.st[:3] = [0x3FFF8000000000000000, 0xC000C000000000000000, 0x4000C90FDAA22168C235]
    fpu.xmm = [(0x0123456789ABCDEF << 64 | 0xFEDCBA9876543210) ^ n << 120 ^ n for n in range(16)]
    if avx:
        fpu.ymmh = [(0xA5A5A5A5 << 96 | 0x5A5A5A5A) ^ n << 64 for n in range(16)]
        state.xcr0 = 7
        state.cr4 |= 1 << 18


@per_mode(CHECKS, "p32", "l64", "l64u")
def vector_and_x87_state_is_kept(backend: Backend, mode: str) -> None:
    """x87, SSE (and AVX) state reads back, and an exit and its instruction do not touch it."""
    avx = bool(backend.capabilities.xcr0 & 4) and mode != "p32"
    with Bench(backend, mode, b"\xe6\x80", adjust=lambda state: _fill_fpu(state, avx)) as bench:
        wanted = bench.vcpu.state()
        _fill_fpu(wanted, avx)
        _same(wanted, bench.vcpu.state(), "set, then read")
        bench.expect(PortWrite)
        after = bench.vcpu.state()
        after.rip = wanted.rip
        _same(wanted, after, "after an exit")


@check
def sse_registers_are_the_guests(backend: Backend) -> None:
    """What was set is what the guest's MOVUPS stores, and what it loads is read."""
    # movups [rsi], xmm3; movups xmm4, [rsi+0x10]
    code = bytes.fromhex("0f111e0f106610")

    def adjust(state: CpuState) -> None:
        state.fpu.xmm[3] = 0x0F0E0D0C0B0A09080706050403020100

    memory = {DATA + 16: bytes(range(0x40, 0x50))}
    with Bench(backend, "l64", code, regs={"rsi": DATA}, memory=memory, adjust=adjust) as bench:
        bench.expect(Halt)
        assert bench.memory.read(DATA, 16) == bytes(range(16))
        assert bench.vcpu.state().fpu.xmm[4] == int.from_bytes(bytes(range(0x40, 0x50)), "little")


@check
def control_registers(backend: Backend) -> None:
    """CR0, CR2, CR3, CR4, CR8 and EFER read back, and the guest's MOV CR shows them."""

    def adjust(state: CpuState) -> None:
        state.cr2 = 0x1122334455667788
        state.cr8 = 5
        state.cr4 |= 0x80  # PGE
        state.cr0 &= ~0x10000  # WP

    # mov rax, cr0; mov rbx, cr2; mov rcx, cr4; mov rdx, cr8; mov rsi, cr3
    code = bytes.fromhex("0f20c00f20d30f20e1440f20c20f20de")
    with Bench(backend, "l64", code, adjust=adjust) as bench:
        state = bench.vcpu.state()
        assert (state.cr2, state.cr8) == (0x1122334455667788, 5), f"cr2 {state.cr2:#x}, cr8 {state.cr8}"
        assert not state.cr0 & 0x10000, f"cr0 is {state.cr0:#x}"
        assert state.cr4 & 0x80, f"cr4 is {state.cr4:#x}"
        bench.expect(Halt)
        registers = bench.vcpu.registers()
        seen = (registers.rax, registers.rbx, registers.rcx, registers.rsi)
        wanted = (state.cr0, state.cr2, state.cr4, state.cr3)
        assert seen == wanted, f"the guest sees {[hex(v) for v in seen]}, not {[hex(v) for v in wanted]}"
        assert registers.rdx == 5, f"the guest reads {registers.rdx:#x} from CR8, expected 5"


_IMPOSSIBLE: dict[str, tuple[str, Callable[[CpuState], None]]] = {
    "PG without PE": ("cr0", lambda s: setattr(s, "cr0", s.cr0 & ~1)),
    "upper half of CR0": ("cr0", lambda s: setattr(s, "cr0", s.cr0 | 1 << 32)),
    "NW without CD": ("cr0", lambda s: setattr(s, "cr0", s.cr0 | 1 << 29)),
    "long mode without PAE": ("cr4", lambda s: setattr(s, "cr4", s.cr4 & ~0x20)),
    "reserved bit of CR4": ("cr4", lambda s: setattr(s, "cr4", s.cr4 | 1 << 40)),
    "LMA without LME": ("efer", lambda s: setattr(s, "efer", 0x400)),
    "RFLAGS without bit 1": ("rflags", lambda s: setattr(s, "rflags", 0)),
    "RIP not canonical": ("rip", lambda s: setattr(s, "rip", 1 << 60)),
    "CR8 above 15": ("cr8", lambda s: setattr(s, "cr8", 16)),
    "a register of 65 bits": ("rax", lambda s: setattr(s, "rax", 1 << 64)),
    "a negative register": ("rbx", lambda s: setattr(s, "rbx", -1)),
    "LSTAR not canonical": ("msr", lambda s: s.msrs.__setitem__(LSTAR, 1 << 60)),
    "XCR0 without x87": ("xcr0", lambda s: setattr(s, "xcr0", 0)),
}


@check
def impossible_states_are_refused(backend: Backend) -> None:
    """A state that no CPU can be in is a UsageError naming the field, and changes nothing."""
    with Bench(backend, "l64", b"\x90") as bench:
        before = bench.vcpu.state()
        for what, (field, spoil) in _IMPOSSIBLE.items():
            state = before.copy()
            state.rcx = 0x5555
            spoil(state)
            error = raises(UsageError, lambda state=state: bench.vcpu.set_state(state), what)  # type: ignore[misc]
            assert field in str(error), f"{what}: the error does not name {field}: {error}"
            _same(before, bench.vcpu.state(), f"after refusing {what}")
        bench.expect(Halt)


@check
def msrs_valid_and_not(backend: Backend) -> None:
    """MSRs read back what was written; one that does not exist is NotSupported."""
    with Bench(backend, "l64", b"\x90") as bench:
        values = {
            STAR: 0x0023001000000000,
            LSTAR: 0xFFFF800000001000,
            KERNEL_GS_BASE: 0x0000700000000000,
            SYSENTER_EIP: 0xFFFF800000002000,
            PAT: 0x0007040600070406,
        }
        for index, value in values.items():
            bench.vcpu.write_msr(index, value)
        state = bench.vcpu.state()
        for index, value in values.items():
            assert bench.vcpu.read_msr(index) == value, f"MSR {index:#x} is {bench.vcpu.read_msr(index):#x}"
            assert state.msrs[index] == value, f"state has MSR {index:#x} as {state.msrs[index]:#x}"
        raises(NotSupported, lambda: bench.vcpu.read_msr(0xDEAD0000), "an MSR that does not exist")
        raises(NotSupported, lambda: bench.vcpu.write_msr(0xDEAD0000, 1), "writing such an MSR")
        raises(VmmsimError, lambda: bench.vcpu.write_msr(LSTAR, 1 << 60), "LSTAR not canonical")
        assert bench.vcpu.read_msr(LSTAR) == values[LSTAR], "a refused write changes nothing"


@check
def msrs_by_the_guest(backend: Backend) -> None:
    """WRMSR and RDMSR of the guest reach the same registers."""
    # mov ecx, LSTAR; mov eax, 0x1000; mov edx, 0xffff8000; wrmsr; xor eax, eax; xor edx, edx; rdmsr
    code = bytes.fromhex("b9820000c0b800100000ba0080ffff0f3031c031d20f32")
    with Bench(backend, "l64", code) as bench:
        bench.expect(Halt)
        registers = bench.vcpu.registers()
        assert (registers.rax, registers.rdx) == (0x1000, 0xFFFF8000)
        assert bench.vcpu.read_msr(LSTAR) == 0xFFFF800000001000


@check
def an_unknown_msr_in_the_guest(backend: Backend) -> None:
    """RDMSR of an MSR that does not exist is #GP (here without an IDT: a triple fault)."""
    # mov ecx, 0xdead0000; rdmsr
    with Bench(backend, "p32", bytes.fromhex("b90000adde0f32")) as bench:
        bench.expect(Shutdown)
        assert bench.rip == CODE + 5


@check
def bad_control_register_writes_by_the_guest(backend: Backend) -> None:
    """MOV CR4 with a reserved bit is #GP (here without an IDT: a triple fault)."""
    # mov eax, 0x80000000; mov cr4, eax
    with Bench(backend, "p32", bytes.fromhex("b8000000800f22e0")) as bench:
        before = bench.vcpu.state().cr4
        exit = bench.run()
        assert isinstance(exit, (Shutdown, Refused)), exit.describe()
        assert bench.rip == CODE + 5
        assert bench.vcpu.state().cr4 == before


@check
def debug_registers(backend: Backend) -> None:
    """DR0-3, DR6 and DR7 read back, and the guest's MOV DR shows them."""

    def adjust(state: CpuState) -> None:
        state.dr = [0x1000, 0x2000, 0x3000, 0x4000]
        state.dr6, state.dr7 = 0xFFFF0FF0, 0x400

    # mov rax, dr1; mov rbx, dr7
    with Bench(backend, "l64", bytes.fromhex("0f21c80f21fb"), adjust=adjust) as bench:
        state = bench.vcpu.state()
        assert state.dr == [0x1000, 0x2000, 0x3000, 0x4000], f"dr is {state.dr}"
        assert (state.dr6, state.dr7) == (0xFFFF0FF0, 0x400), f"dr6 {state.dr6:#x}, dr7 {state.dr7:#x}"
        bench.expect(Halt)
        registers = bench.vcpu.registers()
        assert (registers.rax, registers.rbx) == (0x2000, 0x400)


@check
def a_state_moves_to_another_vcpu(backend: Backend) -> None:
    """The state and memory of a stopped guest go on in a fresh VM exactly as in the old one."""
    # l: in al, 0x60; add ebx, eax; out 0x61, al; loop l
    code = bytes.fromhex("e46001c3e661e2f8")
    with Bench(backend, "p32", code, regs={"rcx": 4}) as one, Bench(backend, "p32", code) as two:
        from ..exits import PortRead

        exit = one.expect(PortRead)
        assert isinstance(exit, PortRead)
        exit.reply(3)
        state = one.vcpu.state()
        two.vcpu.set_state(state)
        for bench in (one, two):
            for answer in (None, 5, 7, 11):
                if answer is not None:
                    read = bench.expect(PortRead)
                    assert isinstance(read, PortRead)
                    read.reply(answer)
                bench.expect(PortWrite)
            bench.expect(Halt)
        _same(one.vcpu.state(), two.vcpu.state(), "at the end")
        assert one.vcpu.registers().rbx == 3 + 5 + 7 + 11
