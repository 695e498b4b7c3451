"""Checks: the exits that are no access. HLT, triple faults, fetches, exceptions, refusals."""

from __future__ import annotations

from ..backends.base import Backend
from ..cpu.state import CpuState, Segment, Table
from ..diff.divergences import divergence
from ..exits import FetchUnmapped, GuestException, Halt, PortWrite, Refused, Shutdown
from .bench import CODE, DATA, END, HOLE, Bench
from .checks import NotApplicable, per_mode, registry

__all__ = ["CHECKS"]

CHECKS, check = registry()
_R0_MODES = ("real", "p16", "p32", "l64")
_IDT = 0x6000
_HANDLER = 0x2000

# The same bytes in every mode.
_DIVIDE_BY_ZERO = bytes.fromhex("31c9f7f1")  # xor cx, cx; div cx (or ecx)
_UD2 = bytes.fromhex("0f0b")
_INT3 = bytes.fromhex("cc")


@per_mode(CHECKS, *_R0_MODES)
def halt_and_go_on(backend: Backend, mode: str) -> None:
    """HLT exits with RIP behind it, and running again goes on there."""
    # inc eax (ax); hlt; inc eax; hlt: FF C0 is INC in every mode.
    with Bench(backend, mode, bytes.fromhex("ffc0f4ffc0f4"), end=False) as bench:
        bench.expect(Halt, rip=CODE + 3)
        assert bench.vcpu.registers().rax == 1
        bench.expect(Halt, rip=CODE + 6)
        assert bench.vcpu.registers().rax == 2


@per_mode(CHECKS, "p32", "l64", "l64u")
def triple_fault(backend: Backend, mode: str) -> None:
    """An exception that the guest's IDT cannot take is Shutdown, with RIP at the instruction."""
    with Bench(backend, mode, _DIVIDE_BY_ZERO) as bench:
        bench.expect(Shutdown, rip=CODE + 2)


@check
def triple_fault_in_real_mode(backend: Backend) -> None:
    """Real mode has an IDT limit too; a vector beyond it is a triple fault."""

    def no_idt(state: CpuState) -> None:
        state.idt = Table(0, 0)

    # Where the limit is not looked at, the vector leads to a HLT.
    memory = {_HANDLER: b"\xf4", **_real_vector(0)}
    with Bench(backend, "real", _DIVIDE_BY_ZERO, memory=memory, adjust=no_idt) as bench:
        if divergence("real-mode-idt-limit").applies_to(backend.provenance, "pvm"):
            bench.expect(Halt, rip=_HANDLER + 1)
        else:
            bench.expect(Shutdown, rip=CODE + 2)


@check
def triple_fault_and_a_new_start(backend: Backend) -> None:
    """After a triple fault the vCPU takes a new state and runs again."""
    with Bench(backend, "p32", _UD2) as bench:
        before = bench.vcpu.state()
        bench.expect(Shutdown)
        before.rip = CODE + 2
        bench.vcpu.set_state(before)
        bench.expect(Halt, rip=CODE + 3)


@per_mode(CHECKS, "real", "p32", "l64", "l64u")
def fetch_from_a_hole(backend: Backend, mode: str) -> None:
    """A jump to where no memory is: FetchUnmapped with the address, not a spin."""
    # jmp eax / jmp rax, with the target in RAX; in real mode jmp ax.
    with Bench(backend, mode, bytes.fromhex("ffe0"), regs={"rax": HOLE}) as bench:
        exit = bench.expect(FetchUnmapped, rip=HOLE)
        assert isinstance(exit, FetchUnmapped)
        assert exit.address == HOLE, f"the address is {exit.address:#x}, not {HOLE:#x}"


def _real_vector(vector: int) -> dict[int, bytes]:
    return {vector * 4: _HANDLER.to_bytes(2, "little") + b"\0\0"}


def _gate(mode: str, state: CpuState, vector: int) -> tuple[int, bytes]:
    """An interrupt gate to the handler in the running code segment (SDM vol. 3, 6.11, 6.14.1)."""
    low = _HANDLER | state.cs.selector << 16 | 0x8E00 << 32
    size = 16 if mode == "l64" else 8
    return _IDT + vector * size, low.to_bytes(size, "little")


def _faulting(backend: Backend, mode: str, vector: int, code: bytes, fault_rip: int, frame: int) -> None:
    """Run `code`, whose exception `vector` must reach a handler (HLT) or be a GuestException.

    `frame` is where the saved IP lies above the handler's stack pointer.
    """
    memory = {_HANDLER: b"\xf4"}
    if mode == "real":
        memory |= _real_vector(vector)

    def with_idt(state: CpuState) -> None:
        if mode != "real":
            state.idt = Table(_IDT, 0xFFF)

    with Bench(backend, mode, code, memory=memory, adjust=with_idt) as bench:
        if mode != "real":
            gpa, gate = _gate(mode, bench.vcpu.state(), vector)
            bench.memory.write(gpa, gate)
        exit = bench.run()
        if isinstance(exit, GuestException):
            assert not backend.capabilities.delivers_exceptions, f"not delivered: {exit.describe()}"
            assert exit.vector == vector, f"vector {exit.vector}, expected {vector}"
            assert bench.rip == fault_rip, f"rip {bench.rip:#x}, expected {fault_rip:#x}"
            return
        assert isinstance(exit, Halt), f"expected the handler's HLT, got {exit.describe()}"
        registers = bench.vcpu.registers()
        assert registers.rip == _HANDLER + 1, f"halted at {registers.rip:#x}, not in the handler"
        width = {"real": 2, "p32": 4, "l64": 8}[mode]
        saved = bench.memory.read_int(registers.rsp + frame, width)
        assert saved == fault_rip, f"the saved IP is {saved:#x}, expected {fault_rip:#x}"


@per_mode(CHECKS, "real", "p32", "l64")
def divide_error(backend: Backend, mode: str) -> None:
    """#DE reaches the guest's handler, or is a GuestException, with the IP of the DIV."""
    _faulting(backend, mode, 0, _DIVIDE_BY_ZERO, CODE + 2, 0)


@per_mode(CHECKS, "real", "p32", "l64")
def invalid_opcode(backend: Backend, mode: str) -> None:
    """#UD reaches the guest's handler, or is a GuestException, with the IP of the UD2."""
    _faulting(backend, mode, 6, _UD2, CODE, 0)


@check
def breakpoint_in_real_mode(backend: Backend) -> None:
    """INT3 is a trap: the saved IP is behind it."""
    _faulting(backend, "real", 3, _INT3, CODE + 1, 0)


@check
def page_fault(backend: Backend) -> None:
    """#PF at a page that is not present: error code, CR2, and the IP of the instruction."""
    # mov eax, [rsi]; the presets map 4 GiB, so 1 << 32 is not there.
    memory = {_HANDLER: b"\xf4"}

    def with_idt(state: CpuState) -> None:
        state.idt = Table(_IDT, 0xFFF)

    with Bench(
        backend, "l64", bytes.fromhex("8b06"), regs={"rsi": 1 << 32}, memory=memory, adjust=with_idt
    ) as bench:
        gpa, gate = _gate("l64", bench.vcpu.state(), 14)
        bench.memory.write(gpa, gate)
        exit = bench.run()
        cr2 = bench.vcpu.state().cr2
        assert cr2 == 1 << 32, f"CR2 is {cr2:#x}"
        if isinstance(exit, GuestException):
            # A backend that cannot tell the error code says None.
            assert exit.vector == 14, exit.describe()
            assert exit.error_code in (0, None), exit.describe()
            assert bench.rip == CODE
            return
        assert isinstance(exit, Halt), exit.describe()
        registers = bench.vcpu.registers()
        frame = [bench.memory.read_int(registers.rsp + at, 8) for at in (0, 8)]
        assert frame == [0, CODE], f"error code and RIP on the stack are {frame}"


@check
def what_the_host_refuses(backend: Backend) -> None:
    """x87 code runs, or is Refused with RIP and the bytes of the instruction: never a hang."""
    # fldz; fstp qword [0x5000]
    code = bytes.fromhex("d9eedd1d00500000")
    with Bench(backend, "p32", code, memory={DATA: b"\xff" * 8}) as bench:
        exit = bench.run()
        if isinstance(exit, Refused):
            assert exit.reason, "a refusal says why"
            assert bench.rip == CODE, f"rip {bench.rip:#x} is not at the refused instruction"
            assert not exit.insn or exit.insn.startswith(b"\xd9\xee"), f"bytes {exit.insn.hex(' ')}"
            assert backend.capabilities.refuses, "a host that refuses says so in its capabilities"
            # The vCPU is usable: step over it and go on.
            bench.set(rip=CODE + len(code))
            bench.expect(Halt)
            return
        assert isinstance(exit, Halt), exit.describe()
        assert bench.memory.read(DATA, 8) == bytes(8)


@check
def reset_state_runs(backend: Backend) -> None:
    """From the state after RESET the first fetch is at physical FFFFFFF0 (SDM vol. 3, 9.1.4)."""
    with Bench(backend, "reset") as bench:
        # jmp 0000:1000, where the bench's HLT is.
        rom = bench.memory.add(0xFFFFF000, 0x1000, readonly=True)
        bench.memory.write(0xFFFFFFF0, bytes.fromhex("ea00100000"))
        bench.expect(Halt, rip=CODE + 1)
        cs = bench.vcpu.state().cs
        assert (cs.selector, cs.base) == (0, 0), f"after the far jump cs is {cs}"
        bench.memory.remove(rom)


@check
def protected_mode_by_the_guest_itself(backend: Backend) -> None:
    """LGDT, MOV CR0 and a far jump take a guest from real mode to 32-bit code."""
    gdt = bytes(8) + bytes.fromhex("ffff0000009bcf00") + bytes.fromhex("ffff00000093cf00")
    code = """
        0f 01 16 00 50                 lgdt [0x5000]
        0f 20 c0                       mov eax, cr0
        0c 01                          or al, 1
        0f 22 c0                       mov cr0, eax
        ea 00 20 08 00                 ljmp 8:0x2000
    """
    memory = {
        DATA: bytes.fromhex("170000600000"),
        0x6000: gdt,
        # mov ax, 0x10; mov ds, ax; mov dword [0x5100], 0x12345678; hlt
        0x2000: bytes.fromhex("66b810008ed8c7050051000078563412f4"),
    }
    with Bench(backend, "real", code, memory=memory, end=False) as bench:
        bench.expect(Halt, rip=0x2011)
        state = bench.vcpu.state()
        assert state.mode == "p32", f"the mode is {state.mode}"
        assert state.cs.selector == 8
        assert state.ds == Segment(0x10, 0, 0xFFFFFFFF, 0xC093), f"ds is {state.ds}"
        assert state.gdt == Table(0x6000, 0x17), f"gdt is {state.gdt}"
        assert bench.memory.read_int(DATA + 0x100, 4) == 0x12345678


@check
def iretq_to_ring_3(backend: Backend) -> None:
    """IRETQ enters user code, whose OUT goes through the TSS's bitmap."""
    # push 0x2b; push 0x7c00; push 2; push 0x33; push 0x2000; iretq
    code = """
        6a 2b                          push 0x2b
        68 00 7c 00 00                 push 0x7c00
        6a 02                          push 2
        6a 33                          push 0x33
        68 00 20 00 00                 push 0x2000
        48 cf                          iretq
    """
    user = bytes.fromhex("b85a000000") + END["l64u"]  # mov eax, 0x5a; out 0xf4, al
    with Bench(backend, "l64u", code, memory={0x2000: user}, end=False, adjust=_to_ring_0) as bench:
        exit = bench.expect(PortWrite)
        assert exit == PortWrite(0xF4, 1, 0x5A), exit.describe()
        state = bench.vcpu.state()
        assert state.cpl == 3, f"CPL {state.cpl}"
        assert state.cs.selector == 0x33
        assert state.rip == 0x2007


def _to_ring_0(state: CpuState) -> None:
    """The user preset (whose pages and ports are open) one ring further in."""
    state.cs = Segment(0x10, 0, 0xFFFFFFFF, 0xA09B)
    state.ss = Segment(0x18, 0, 0xFFFFFFFF, 0xC093)


@check
def a_watchdog_or_a_spin(backend: Backend) -> None:
    """`jmp $` spins until it is cancelled, or the watchdog says Refused: it never hangs."""
    import threading

    from ..backends.base import VmOptions
    from ..exits import Cancelled

    options = VmOptions(watchdog_seconds=0.5)
    with Bench(backend, "p32", b"\xeb\xfe", options=options) as bench:
        timer = threading.Timer(2.0, bench.vcpu.cancel)
        timer.start()
        exit = bench.run()
        timer.cancel()
        assert isinstance(exit, (Refused, Cancelled)), exit.describe()
        assert bench.rip == CODE


@check
def vmcall_does_not_hang(backend: Backend) -> None:
    """A hypercall ends in some way: a fault, a refusal, or the next instruction."""
    with Bench(backend, "p32", bytes.fromhex("0f01c1")) as bench:
        exit = bench.run()
        assert isinstance(exit, (Halt, Shutdown, Refused, GuestException)), exit.describe()


@check
def exceptions_are_delivered_twice(backend: Backend) -> None:
    """A second exception of the same kind is as good as the first (no stale double fault)."""
    if not backend.capabilities.delivers_exceptions:
        raise NotApplicable("exceptions end the run here (capability delivers_exceptions)")
    memory = {_HANDLER: bytes.fromhex("83060183042402cf"), **_real_vector(6)}
    # Real mode handler: add word [si...]: counts at DS:0x5000, steps over UD2, IRET.
    memory[_HANDLER] = bytes.fromhex("ff0600505d83c50255cf")
    with Bench(backend, "real", _UD2 * 3, memory=memory) as bench:
        bench.expect(Halt, rip=CODE + 7)
        assert bench.memory.read_int(DATA, 2) == 3


@check
def page_tables_in_a_hole(backend: Backend) -> None:
    """A page table where no memory is reads as ones: a fault (here a triple one), never a hang."""

    def top(state: CpuState) -> None:
        state.cr3 = HOLE

    with Bench(backend, "l64", b"\x90", adjust=top) as bench:
        bench.expect(Shutdown, rip=CODE)
    # mov eax, [rsi], by a page directory in the hole: its first entry, and one in the middle.
    for linear in (0xC0000000, 0xFFC00000):
        with Bench(backend, "l64", bytes.fromhex("8b06"), regs={"rsi": linear}) as bench:
            pml4 = bench.vcpu.state().cr3 & ~0xFFF
            pdpt = bench.memory.read_int(pml4, 8) & ~0xFFF
            bench.memory.write_int(pdpt + 3 * 8, 8, HOLE | 3)
            bench.expect(Shutdown, rip=CODE)
            assert bench.vcpu.state().cr2 == linear
