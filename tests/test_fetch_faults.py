"""An instruction that runs into a page which cannot be fetched from, behind others that can.

The instructions before it are executed, once each; the fault has its own RIP, and CR2 is the page's start
(SDM vol. 3, 6.5 "faults" and 6.15 "Interrupt 14"). QEMU translates all of them before it executes the first.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from vmmsim.backends.base import Backend, VmOptions
from vmmsim.cpu.descriptors import Gate, encode_gate
from vmmsim.cpu.modes import CODE32, CODE64
from vmmsim.cpu.state import CpuState, Table
from vmmsim.errors import NotSupported
from vmmsim.exits import BudgetSpent, FetchUnmapped, GuestExit, Halt, MmioRead, MmioWrite, ReadAccess, Refused
from vmmsim.testing.bench import HOLE, Bench, Script

IDT, HANDLER, STACK = 0x6000, 0x7000, 0x7800
#: Two pages of code, and the page that cannot be fetched from.
CODE, EDGE = 0x10000, 0x12000
#: PML4, PDPT, PD and PT. The lowest 2 MiB are mapped onto themselves, in pages of 4 KiB.
TABLES = 0x60000
PT = TABLES + 0x3000
PRESENT, WRITE, USER, NX = 1, 2, 4, 1 << 63
INC = b"\xff\xc3"  # inc ebx
ADD = bytes.fromhex("05 11 22 33 44")  # add eax, 0x44332211
EFER_NXE = 1 << 11


def entry(value: int) -> bytes:
    return value.to_bytes(8, "little")


def table_writes(edge: int, page_rights: int) -> dict[int, bytes]:
    """`edge` is the entry for the page at EDGE, the other pages have `page_rights`."""
    rights = PRESENT | WRITE | USER
    pages = [number << 12 | page_rights for number in range(512)]
    pages[EDGE >> 12] = edge
    return {
        TABLES: entry(TABLES + 0x1000 | rights),
        TABLES + 0x1000: entry(TABLES + 0x2000 | rights),
        TABLES + 0x2000: entry(PT | rights),
        PT: b"".join(map(entry, pages)),
    }


def paged(
    backend: Backend,
    mode: str,
    code: bytes,
    start: int,
    *,
    edge: int = 0,
    rights: int = PRESENT | WRITE | USER,
    cs_base: int = 0,
    nxe: bool = False,
    handler: bytes = b"\xf4",
    options: VmOptions | None = None,
    **regs: int,
) -> Bench:
    """`code` at the linear address `start`, in 64-bit mode or in 32-bit mode with PAE; #PF goes to
    `handler`."""
    long = mode != "p32"

    def adjust(state: CpuState) -> None:
        state.idt = Table(IDT, 0xFFF)
        state.rip, state.rbx = start - cs_base, 0
        state.cs = msgspec.structs.replace(state.cs, base=cs_base)
        state.cr3 = TABLES if long else TABLES + 0x1000
        if not long:
            state.cr0, state.cr4 = state.cr0 | 1 << 31, state.cr4 | 1 << 5
        state.efer = state.efer | EFER_NXE if nxe else state.efer & ~EFER_NXE
        for name, value in regs.items():
            setattr(state, name, value)

    gate = encode_gate(Gate(CODE64 if long else CODE32, HANDLER, 14), long=long)
    writes = table_writes(edge, rights)
    if not long:  # a PDPTE of PAE has no such rights
        writes[TABLES + 0x1000] = entry(TABLES + 0x2000 | PRESENT)
    memory = {start: code, HANDLER: handler, IDT + 14 * len(gate): gate} | writes
    regs = {"rsp": STACK} | regs
    try:
        return Bench(backend, mode, b"", memory=memory, adjust=adjust, options=options)
    except NotSupported as error:
        if long:
            raise
        pytest.skip(str(error))  # paging outside long mode, on kvm_pvm


def halted(bench: Bench, handler: Script | None = None) -> Script:
    script = handler or Script()
    end = bench.run_inline(script)
    if isinstance(end, Refused):
        pytest.skip(end.reason)
    assert isinstance(end, Halt), end.describe()
    return script


def frame(bench: Bench) -> tuple[int, int]:
    """The error code and RIP that the CPU pushed, in the handler."""
    size = 4 if bench.mode == "p32" else 8
    words = bench.memory.read(bench.vcpu.registers().rsp, 2 * size)
    return int.from_bytes(words[:size], "little"), int.from_bytes(words[size:], "little")


def faulted_at(bench: Bench, rip: int, error: int, incs: int, address: int = EDGE) -> None:
    state = bench.vcpu.state()
    assert frame(bench) == (error, rip)
    assert state.cr2 == address
    assert state.rbx == incs
    assert state.rax == 0
    assert not state.events.sti_shadow
    assert not state.events.mov_ss_shadow


BEFORE = [0, 2, 20, 200, 900, 1600]


@pytest.mark.parametrize("cut", [0, 1, 4])
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("mode", ["l64", "p32"])
def test_into_a_page_that_is_not_present(backend: Backend, mode: str, before: int, cut: int) -> None:
    """`cut` bytes of the instruction are in the page before; `before` bytes come before them."""
    code = INC * (before // 2) + ADD[:cut]
    with paged(backend, mode, code, EDGE - len(code)) as bench:
        halted(bench)
        faulted_at(bench, EDGE - cut, 0, before // 2)


@pytest.mark.parametrize("before", [0, 20, 900])
def test_into_a_page_that_is_not_to_be_executed(backend: Backend, before: int) -> None:
    code = INC * (before // 2) + ADD[:2]
    with paged(backend, "l64", code, EDGE - len(code), edge=EDGE | PRESENT | NX, nxe=True) as bench:
        halted(bench)
        faulted_at(bench, EDGE - 2, 0x11, before // 2)


@pytest.mark.parametrize("nxe", [False, True])
@pytest.mark.parametrize("before", [0, 20, 900])
def test_into_a_page_of_the_kernel_at_cpl_3(backend: Backend, before: int, nxe: bool) -> None:
    code = INC * (before // 2) + ADD[:3]
    with paged(backend, "l64u", code, EDGE - len(code), edge=EDGE | PRESENT, nxe=nxe) as bench:
        halted(bench)
        faulted_at(bench, EDGE - 3, 0x15 if nxe else 5, before // 2)


@pytest.mark.parametrize("before", [0, 20, 900])
def test_into_a_page_of_the_user_with_smep(backend: Backend, before: int) -> None:
    code = INC * (before // 2) + ADD[:3]
    rights, edge, cr4 = PRESENT | WRITE, EDGE | PRESENT | USER, 1 << 20 | 1 << 9 | 1 << 5
    with paged(backend, "l64", code, EDGE - len(code), edge=edge, rights=rights, cr4=cr4) as bench:
        halted(bench)
        faulted_at(bench, EDGE - 3, 0x11, before // 2)


@pytest.mark.parametrize("before", [0, 20, 900])
def test_in_a_code_segment_that_does_not_begin_at_0(backend: Backend, before: int) -> None:
    code = INC * (before // 2) + ADD[:3]
    with paged(backend, "p32", code, EDGE - len(code), cs_base=0x3210) as bench:
        halted(bench)
        faulted_at(bench, EDGE - 3 - 0x3210, 0, before // 2)


@pytest.mark.parametrize("nxe", [False, True])
@pytest.mark.parametrize("way", ["inline", "exits"])
def test_accesses_before_it_are_made_once(backend: Backend, way: str, nxe: bool) -> None:
    """A load and a store of MMIO, and a store to RAM, among others."""
    read, write = bytes.fromhex("8a 0e"), bytes.fromhex("88 4e 01")  # mov cl, [rsi]; mov [rsi+1], cl
    ram = bytes.fromhex("fe 07")  # inc byte [rdi]
    code = INC * 3 + read + INC * 2 + ram + write + INC * 4 + ADD[:2]
    regs = {"rsi": HOLE, "rdi": 0x5000}
    with paged(backend, "l64", code, EDGE - len(code), nxe=nxe, **regs) as bench:
        if way == "inline":
            seen = halted(bench, Script([0x5A])).seen
        else:
            seen = []
            while not isinstance(exit := bench.run(), Halt):
                assert exit.kind in ("mmio_read", "mmio_write"), exit.describe()
                if isinstance(exit, ReadAccess):
                    assert not bench.vcpu.state().events.sti_shadow
                    assert not bench.vcpu.state().events.mov_ss_shadow
                    exit.reply(0x5A)
                seen.append((exit.kind, exit.address, exit.size, exit.value))
        assert seen == [("mmio_read", HOLE, 1, 0x5A), ("mmio_write", HOLE + 1, 1, 0x5A)]
        assert bench.memory.read(0x5000, 1) == b"\1"
        faulted_at(bench, EDGE - 2, 0x10 if nxe else 0, 9)


@pytest.mark.parametrize("before", [0, 20, 900])
@pytest.mark.parametrize("mode", ["l64", "p32"])
def test_the_handler_maps_the_page(backend: Backend, mode: str, before: int) -> None:
    code = INC * (before // 2) + ADD + INC + b"\xf4"
    start = EDGE - before - 3
    # mov byte [PT + 8 * number], EDGE's low byte and rights; invlpg [EDGE]; inc edx; drop the error; iret
    place = (PT + 8 * (EDGE >> 12)).to_bytes(4, "little")
    if mode == "l64":
        handler = bytes.fromhex("c7 04 25") + place + (EDGE | 7).to_bytes(4, "little")
        handler += bytes.fromhex("0f 01 3c 25") + EDGE.to_bytes(4, "little")
        handler += bytes.fromhex("ff c2 48 83 c4 08 48 cf")
    else:
        handler = bytes.fromhex("c7 05") + place + (EDGE | 7).to_bytes(4, "little")
        handler += bytes.fromhex("0f 01 3d") + EDGE.to_bytes(4, "little")
        handler += bytes.fromhex("ff c2 83 c4 04 cf")
    with paged(backend, mode, code, start, handler=handler, rdx=0) as bench:
        halted(bench)
        registers = bench.vcpu.registers()
        assert (registers.rbx, registers.rax, registers.rdx) == (before // 2 + 1, 0x44332211, 1)
        assert registers.rip == start + len(code)


@pytest.mark.parametrize("before", [0, 20, 900])
@pytest.mark.parametrize("behind", ["", "ff e7"], ids=["last", "jump"])  # jmp rdi: the block ends there
@pytest.mark.parametrize("nxe", [False, True])
def test_a_load_that_looks_the_same(backend: Backend, before: int, behind: str, nxe: bool) -> None:
    """The last instruction of the page, or the one before a jump, loads from the next page's start."""
    load = bytes.fromhex("8b 07" + behind)  # mov eax, [rdi]
    code = INC * (before // 2) + load
    with paged(backend, "l64", code, EDGE - len(code), nxe=nxe, rdi=EDGE) as bench:
        halted(bench)
        faulted_at(bench, EDGE - len(load), 0, before // 2)


@pytest.mark.parametrize("behind", ["", "ff e7"], ids=["last", "jump"])
def test_a_load_that_looks_the_same_with_flags(backend: Backend, behind: str) -> None:
    """RCL asks for CF before it loads; the fault's image of RFLAGS is that of before."""
    code = bytes.fromhex("83 fb 01 d1 17" + behind)  # cmp ebx, 1; rcl dword [rdi], 1
    with paged(backend, "l64", code, EDGE - len(code), rdi=EDGE) as bench:
        halted(bench)
        image = int.from_bytes(bench.memory.read(bench.vcpu.registers().rsp + 24, 8), "little")
        assert image & 0x8D5 == 0x95  # CF, PF, AF and SF of 0 - 1


@pytest.mark.parametrize("nxe", [False, True])
def test_the_other_read_of_such_a_load_is_not_made_twice(backend: Backend, nxe: bool) -> None:
    """CMPS reads MMIO, and a page that is absent, the next one behind the code; in which order is the CPU's
    business. The block ends before the page, so nothing is fetched from there."""
    code = b"\xa6\xff\xe7"  # cmpsb; jmp rdi
    with paged(backend, "l64", code, EDGE - len(code), nxe=nxe, rsi=EDGE, rdi=HOLE) as bench:
        assert len(halted(bench).seen) <= 1
        faulted_at(bench, EDGE - len(code), 0, 0)


@pytest.mark.parametrize("rdi", [EDGE - 2, EDGE - 4], ids=["crosses", "does not"])
def test_loads_behind_a_fault_of_one_that_crosses(backend: Backend, rdi: int) -> None:
    """Unicorn took the handler's loads from MMIO for parts of the one with the fault: nobody was asked."""
    read = bytes.fromhex("8a 0e f4")  # mov cl, [rsi]; hlt
    load = bytes.fromhex("8b 07") + read  # mov eax, [rdi]
    with paged(backend, "l64", load, CODE, rsi=HOLE, rdi=rdi, rcx=0, handler=read) as bench:
        assert halted(bench, Script([0x5A])).seen == [("mmio_read", HOLE, 1, 0x5A)]
        assert bench.vcpu.registers().rcx == 0x5A


def test_cr2_changes_with_the_fault_and_not_before(backend: Backend) -> None:
    """Seen by the guest, by whoever looks at an exit, and where the run is stopped right before the fault."""
    read_cr2, store = bytes.fromhex("0f 20 d2"), bytes.fromhex("88 06")  # mov rdx, cr2; mov [rsi], al
    code = INC + read_cr2 + store + ADD[:2]
    start = EDGE - len(code)
    for stop in (False, True):
        with paged(backend, "l64", code, start, rsi=HOLE, cr2=0x1234) as bench:
            if stop:
                script = Script()
                script.on_access = lambda _, vcpu=bench.vcpu: vcpu.stop_here(GuestExit(1))  # type: ignore[misc]
                assert bench.run_inline(script) == GuestExit(1)
            else:
                exit = bench.run()
                if isinstance(exit, Refused):
                    pytest.skip(exit.reason)
                assert isinstance(exit, MmioWrite)
            state = bench.vcpu.state()
            assert (state.rip, state.cr2, state.rdx) == (EDGE - 2, 0x1234, 0x1234)
            halted(bench)
            faulted_at(bench, EDGE - 2, 0, 1)


def test_a_jump_to_the_page(backend: Backend) -> None:
    code = INC + b"\xff\xe7"  # jmp rdi
    with paged(backend, "l64", code, CODE, rdi=EDGE + 0x10) as bench:
        halted(bench)
        faulted_at(bench, EDGE + 0x10, 0, 1, EDGE + 0x10)


def test_the_page_comes_before_its_instruction(backend: Backend) -> None:
    """A store in the same straight line maps the page: there is no fault. The SDM says that an entry which
    was not present is not cached (vol. 3, 4.10.2.3)."""
    place = (PT + 8 * (EDGE >> 12)).to_bytes(4, "little")
    store = bytes.fromhex("c7 04 25") + place + (EDGE | 7).to_bytes(4, "little")
    code = INC + store + INC + ADD + b"\xf4"
    start = EDGE - len(INC + store + INC) - 2
    with paged(backend, "l64", code, start) as bench:
        halted(bench)
        registers = bench.vcpu.registers()
        assert (registers.rip, registers.rbx, registers.rax) == (start + len(code), 2, 0x44332211)


@pytest.mark.unicorn
@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("jump", [False, True])
def test_instructions_are_counted_exactly(engine: str, jump: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the fault nothing is counted, and each budget ends behind its instruction."""
    monkeypatch.setenv("VMMSIM_UNICORN", engine)
    from vmmsim.backends import open_backend

    backend = open_backend("unicorn")[0]
    code = INC * 5 + (b"\xff\xe7" if jump else ADD[:2])
    start = CODE if jump else EDGE - len(code)
    options = VmOptions(count_insns=True)
    with paged(backend, "l64", code, start, options=options, rdi=EDGE) as bench:
        halted(bench)
        assert bench.vcpu.insns == 5 + jump + 1  # and HLT
    for budget in range(1, 6 + jump):
        with paged(backend, "l64", code, start, options=options, rdi=EDGE) as bench:
            assert isinstance(bench.run_inline(Script(), max_insns=budget), BudgetSpent)
            registers = bench.vcpu.registers()
            assert (bench.vcpu.insns, registers.rbx) == (budget, min(budget, 5))
            assert registers.rip == (EDGE if budget > 5 else start + 2 * budget)
            halted(bench)
            assert bench.vcpu.insns == 5 + jump + 1


class Pins:
    """A board that has one interrupt."""

    def __init__(self, vector: int) -> None:
        self.vector, self.left = vector, 1

    def service(self) -> None: ...
    def pending(self) -> bool:
        return self.left > 0

    def acknowledge(self) -> int:
        self.left -= 1
        return self.vector

    def cr8_written(self, value: int, /) -> None: ...


@pytest.mark.parametrize("before", [20, 900])
def test_an_interrupt_comes_before_the_fault(backend: Backend, before: int) -> None:
    """It waits for STI, whose shadow covers one instruction; the next ones, straight into the page, it
    comes before. Its handler halts there."""
    code = b"\xfb" + INC * (before // 2) + ADD[:2]
    start = EDGE - len(code)
    with paged(backend, "l64", code, start) as bench:
        vector = 0x20
        gate = encode_gate(Gate(CODE64, HANDLER + 0x10, 14), long=True)
        bench.memory.write(IDT + vector * len(gate), gate)
        bench.memory.write(HANDLER + 0x10, b"\xf4")
        bench.vcpu.connect(Pins(vector))
        bench.vcpu.attention()
        halted(bench)
        registers = bench.vcpu.registers()
        assert registers.rip == HANDLER + 0x11
        rip = int.from_bytes(bench.memory.read(registers.rsp, 8), "little")
        assert (rip, registers.rbx) == (start + 3, 1)


# -- where no memory is


def base(value: int) -> Callable[[CpuState], None]:
    def adjust(state: CpuState) -> None:
        state.cs = msgspec.structs.replace(state.cs, selector=value >> 4, base=value)
        state.rip -= value

    return adjust


@pytest.mark.parametrize("cut", [0, 1, 3])
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("mode", ["real", "real-based", "p16", "p32", "l64"])
def test_into_no_memory(backend: Backend, mode: str, before: int, cut: int) -> None:
    add = b"\x66" + ADD if mode in ("real", "real-based", "p16") else ADD
    inc = b"\x66\xff\xc3" if len(add) > len(ADD) else INC
    code = inc * (before // 2) + add[:cut]
    start = HOLE - len(code)
    based = 0x1230 if mode == "real-based" else 0

    def adjust(state: CpuState) -> None:
        state.rip, state.rax, state.rbx = start, 0, 0
        base(based)(state) if based else None

    with Bench(backend, mode.split("-")[0], b"", memory={start: code}, adjust=adjust) as bench:
        exit = bench.run_inline(Script())
        if isinstance(exit, Refused):
            pytest.skip(exit.reason)
        state = bench.vcpu.state()
        assert exit == FetchUnmapped(HOLE)
        assert (state.linear_rip, state.rbx, state.rax) == (HOLE - cut, before // 2, 0)
        assert not state.events.sti_shadow
        assert not state.events.mov_ss_shadow


@pytest.mark.unicorn
@pytest.mark.parametrize("engine", ["native", "portable"])
def test_a_budget_ends_before_the_fetch_from_no_memory(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMSIM_UNICORN", engine)
    from vmmsim.backends import open_backend

    backend = open_backend("unicorn")[0]
    code = INC * 5 + ADD[:2]

    def adjust(state: CpuState) -> None:
        state.rip, state.rbx = HOLE - len(code), 0

    for budget in range(1, 6):
        memory = {HOLE - len(code): code}
        with Bench(backend, "p32", b"", memory=memory, adjust=adjust) as bench:
            assert bench.run_inline(Script(), max_insns=budget) == BudgetSpent("insns", budget)
            assert (bench.rip, bench.vcpu.insns) == (HOLE - len(code) + 2 * budget, budget)
            assert bench.run_inline(Script()) == FetchUnmapped(HOLE)
            assert bench.rip == HOLE - 2


def test_an_access_on_the_way_into_no_memory_is_made_once(backend: Backend) -> None:
    read = bytes.fromhex("8a 0e")  # mov cl, [esi]
    code = INC * 3 + read + INC * 2 + ADD[:2]
    start = HOLE - len(code)

    def adjust(state: CpuState) -> None:
        state.rip, state.rbx, state.rsi = start, 0, HOLE + 0x10

    with Bench(backend, "p32", b"", memory={start: code}, adjust=adjust) as bench:
        exit = bench.run()
        assert isinstance(exit, MmioRead)
        exit.reply(7)
        assert bench.run() == FetchUnmapped(HOLE)
        registers = bench.vcpu.registers()
        assert (registers.rip, registers.rbx, registers.rcx & 0xFF) == (HOLE - 2, 5, 7)
