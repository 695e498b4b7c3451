"""Snapshots from one CPU to another: the future of a machine is the same, exit for exit, wherever it goes on.

Each ordered pair of KVM, Unicorn's native engine and its portable one. The clock is that of exits, so that
interrupts, too, come at the same exit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vmmsim import Machine, guests
from vmmsim.backends import open_backend
from vmmsim.backends.base import Backend
from vmmsim.budget import exits, seconds
from vmmsim.cpu.state import CpuState, Segment, Table
from vmmsim.diff import TraceStep, compare_memory, compare_states, compare_traces
from vmmsim.exits import Access, BudgetSpent, GuestExit, Halt
from vmmsim.loaders import load_bytes
from vmmsim.snapshot.container import load, save
from vmmsim.snapshot.values import CpuSnapshot, Snapshot
from vmmsim.streams import BytesSource
from vmmsim.testing.slow import time_limit

VARIANTS = ("kvm", "unicorn", "unicorn-portable")


def pair(source: str, target: str) -> Any:
    marks = [getattr(pytest.mark, name.partition("-")[0]) for name in dict.fromkeys((source, target))]
    return pytest.param(source, target, marks=marks, id=f"{source} to {target}")


PAIRS = [pair(source, target) for source in VARIANTS for target in VARIANTS if source != target]
on_each_pair = pytest.mark.parametrize(("source", "target"), PAIRS)
on_each_cpu = pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=getattr(pytest.mark, v.partition("-")[0]), id=v) for v in VARIANTS]
)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Backend]:
    """An opened backend by the name of a variant."""

    def opened(variant: str) -> Backend:
        name, _, engine = variant.partition("-")
        with monkeypatch.context() as patch:
            patch.setenv("VMMSIM_UNICORN", engine)
            return open_backend(name)[0]

    return opened


Cpu = Callable[[str], Backend]


class Traced:
    """A machine and what it has done: `trace` of its accesses, since `from_here` was called."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.trace: list[TraceStep] = []
        machine.observe(lambda *access: self.trace.append(TraceStep.of_access(*access)))

    def to_the_end(self) -> list[TraceStep]:
        end = self.machine.run(budget=seconds(time_limit(20)))
        return [*self.trace, TraceStep.of(end, self.machine.cpu.rip)]


def same_end(one: Machine, two: Machine, names: tuple[str, str]) -> None:
    """Registers, FPU, memory, devices, time: whatever a machine is."""
    for mine, theirs in zip(one.processors, two.processors, strict=True):
        assert mine.status == theirs.status
        found = compare_states(mine.vcpu.state(), theirs.vcpu.state(), names=names)
        assert found is None, str(found)
    found = compare_memory(one.memory, two.memory, names=names)
    assert found is None, str(found)
    assert one.device_states() == two.device_states()
    assert one.clock.now() == two.clock.now()
    assert one.random.getstate() == two.random.getstate()
    assert getattr(one.source, "position", 0) == getattr(two.source, "position", 0)


# -- guests in every mode, at several exits

#: A guest, and the input that it gets.
GUESTS = {
    "timer-real": b"",
    "lwn": b"",
    "hello32": b"",
    "hello64": b"",
    "timer-long": b"",
    "ring3": b"",
    "timer-user": b"",
    "guess": b"a\nb\nc\nd\ne\nf\n",
    "serial-echo": b"across\n",
    "smp-ping-pong": b"",
}
SEED = 11


def machine_of(guest: str, backend: Backend, **arguments: Any) -> Machine:
    source = BytesSource(GUESTS[guest])
    return Machine.for_guest(guest, backend=backend, seed=SEED, clock="exits", source=source, **arguments)


def refused(guest: str, *backends: Backend) -> bool:
    return bool({b.provenance for b in backends} & set(guests.load(guest).manifest.refused))


def cuts(length: int) -> list[int]:
    """After how many exits snapshots are taken."""
    return sorted({1, length // 3, length // 2, length - 2} & set(range(1, length)))


def taken_in_a_run(machine: Machine, at: list[int]) -> dict[int, Snapshot]:
    taken: dict[int, Snapshot] = {}
    seen = 0

    def look(*access: object) -> None:
        nonlocal seen
        seen += 1
        if seen in at:
            machine.between(lambda number=seen: taken.update({number: machine.snapshot()}))

    machine.observe(look)
    machine.run(budget=seconds(time_limit(20)))
    return taken


def taken_at_exits(machine: Machine, at: list[int]) -> dict[int, Snapshot]:
    taken: dict[int, Snapshot] = {}
    seen = 0
    for exit in machine.exits():
        if isinstance(exit, Access):
            seen += 1
            machine.answer(exit)
            if seen in at:
                taken[seen] = machine.snapshot()
        elif isinstance(exit, Halt) and seen in at:
            taken[seen] = machine.snapshot()  # halted, perhaps to be woken
    return taken


@on_each_pair
@pytest.mark.parametrize("take", [taken_in_a_run, taken_at_exits], ids=["in a run", "at exits"])
@pytest.mark.parametrize("guest", GUESTS)
def test_a_guest_goes_on_elsewhere_as_it_would_have_here(
    guest: str, take: Any, source: str, target: str, cpu: Cpu, tmp_path: Path
) -> None:
    here, there = cpu(source), cpu(target)
    if refused(guest, here, there):
        pytest.skip(f"{guest} is refused on one of the two")
    with machine_of(guest, here) as straight:
        whole = Traced(straight).to_the_end()
        at = cuts(len(whole) - 1)
        with machine_of(guest, here) as machine:
            taken = take(machine, at)
        assert sorted(taken) == at
        for number, snapshot in taken.items():
            if number == at[len(at) // 2]:  # one of them by a file
                save(snapshot, tmp_path / "across.vmm")
                snapshot = load(tmp_path / "across.vmm")
            data = BytesSource(GUESTS[guest])
            with Machine.from_snapshot(snapshot, backend=there, source=data) as restored:
                rest = Traced(restored).to_the_end()
                found = compare_traces(whole[number:], rest, names=(source, f"{target} after {number}"))
                assert found is None, str(found)
                same_end(straight, restored, (source, target))


# -- in the middle of things

HANDLER = 0x7D00


class TapeState(msgspec.Struct, frozen=True):
    read: int = 0
    written: tuple[int, ...] = ()


class Tape:
    """A device whose reads count up, and that remembers what was written."""

    widths = frozenset({1, 2, 4})

    def __init__(self, state: TapeState | None = None) -> None:
        state = state or TapeState()
        self.read_next, self.written = state.read, list(state.written)

    def read(self, offset: int, size: int, /) -> int:
        self.read_next += 1
        return self.read_next & 0xFF

    def write(self, offset: int, size: int, value: int, /) -> None:
        self.written.append(value)

    def state(self) -> TapeState:
        return TapeState(self.read_next, tuple(self.written))


#: What a file does not know of by itself.
TAPES = {"tape": TapeState, "tape-mmio": TapeState}


def tape(machine: Machine) -> Machine:
    machine.attach_port(0x300, 4, Tape(), "tape", restore=Tape)
    machine.attach_mmio(0xFE000000, 0x1000, Tape(), "tape-mmio", restore=Tape)
    return machine


def made(
    backend: Backend, code: str, *, mode: str = "p32", bits: int = 32, handler: str = "", **arguments: Any
) -> Machine:
    """A `pc` with `code` at 7C00h, and a 16-bit handler at `HANDLER`."""
    pytest.importorskip("keystone", reason="keystone-engine has no wheel for this platform")
    from vmmsim.asm import assemble

    arguments = {"model": "pc", "memory": 1 << 20, "clock": "exits", "seed": SEED} | arguments
    machine = Machine(backend=backend, **arguments)
    machine.load(load_bytes(assemble(code, bits, 0x7C00), name="test", load_address=0x7C00, mode=mode))
    if handler:
        machine.memory.write(HANDLER, assemble(handler, 16, HANDLER))
    return tape(machine)


def over(snapshot: Snapshot, backend: Backend) -> Machine:
    """A new machine where `snapshot` was taken, with the same devices of our own."""
    machine = tape(Machine(snapshot.config, backend=backend))
    try:
        for region in snapshot.memory.regions:
            if machine.memory.region_at(region.gpa) is None:
                machine.memory.add(region.gpa, region.size, readonly=region.readonly)
        machine.restore(snapshot)
    except BaseException:
        machine.close()
        raise
    return machine


def altered(snapshot: Snapshot, change: Callable[[CpuState], None]) -> Snapshot:
    """The snapshot with another first CPU."""
    state = snapshot.cpus[0].state.copy()
    change(state)
    cpu = CpuSnapshot(state=state, run_state=snapshot.cpus[0].run_state, insns=snapshot.cpus[0].insns)
    return msgspec.structs.replace(snapshot, cpus=(cpu, *snapshot.cpus[1:]))


REPEATS = {
    "OUTSB": "cld\nmov edx, 0x300\nmov esi, 0x5000\nmov ecx, 12\nrep outsb\nhlt\n",
    "INSB": "cld\nmov edx, 0x300\nmov edi, 0x5000\nmov ecx, 12\nrep insb\nhlt\n",
    "MOVSB to MMIO": "cld\nmov esi, 0x5000\nmov edi, 0xFE000010\nmov ecx, 12\nrep movsb\nhlt\n",
    "MOVSD from MMIO": "cld\nmov edi, 0x5000\nmov esi, 0xFE000010\nmov ecx, 12\n.byte 0xf3, 0xa5\nhlt\n",
    "STOSW to MMIO": "cld\nmov edi, 0xFE000010\nmov eax, 0x1234\nmov ecx, 12\nrep stosw\nhlt\n",
}


@on_each_pair
@pytest.mark.parametrize("name", REPEATS)
def test_in_the_middle_of_a_rep(name: str, source: str, target: str, cpu: Cpu) -> None:
    here, there = cpu(source), cpu(target)
    counts = set()
    with made(here, REPEATS[name]) as straight:
        straight.memory.write(0x5000, bytes(range(1, 13)))
        whole = Traced(straight).to_the_end()
        assert len(whole) == 13
        for number in (1, 5, 11):
            with made(here, REPEATS[name]) as machine:
                machine.memory.write(0x5000, bytes(range(1, 13)))
                traced = Traced(machine)
                machine.run(budget=exits(number))
                made_so_far = len(traced.trace)  # KVM may make all of them before it can be stopped
                snapshot = machine.snapshot()
            counts.add(snapshot.cpus[0].state.rcx)
            with over(snapshot, there) as restored:
                rest = Traced(restored).to_the_end()
                found = compare_traces(whole[made_so_far:], rest, names=(source, target))
                assert found is None, str(found)
                same_end(straight, restored, (source, target))
    if source != "kvm":
        assert counts == {11, 7, 1}


#: Interrupt 8 is at `HANDLER`, the timer's, and is asked for; interrupts are off.
PENDING = f"""cli
mov al, 0x11
out 0x20, al
mov al, 8
out 0x21, al
mov al, 4
out 0x21, al
mov al, 1
out 0x21, al
mov al, 0xfe
out 0x21, al
mov word ptr [0x20], {HANDLER}
mov word ptr [0x22], 0
mov word ptr [8], {HANDLER + 0x40}
mov word ptr [10], 0
mov al, 0x34
out 0x43, al
mov al, 0xa9
out 0x40, al
mov al, 4
out 0x40, al
xor cx, cx
mov bx, 1500
wait:
in al, 0x80
dec bx
jnz wait
mov al, 0x50
out 0xe9, al
sti
inc cx
inc cx
inc cx
mov al, cl
out 0x80, al
cli
hlt
"""
#: Each tells how far CX had come.
TOLD = """push ax
mov al, cl
out 0xe9, al
mov al, 0x20
out 0x20, al
pop ax
iret
.balign 64, 0
push ax
mov al, cl
or al, 0x80
out 0xe9, al
pop ax
iret
"""


def pending(backend: Backend) -> Snapshot:
    """A timer's interrupt waits in the 8259A, behind the P that was printed; IF is clear."""
    with made(backend, PENDING, mode="real", bits=16, handler=TOLD) as machine:
        machine.run(until=lambda exit: getattr(exit, "address", 0) == 0xE9, budget=seconds(time_limit(20)))
        snapshot = machine.snapshot()
    assert snapshot.devices["pic"].master.irr & 1
    return snapshot


def code_behind(snapshot: Snapshot) -> int:
    """The STI behind the P, of one byte; three INC CX of one byte each follow."""
    return snapshot.cpus[0].state.rip


def printed(snapshot: Snapshot, backend: Backend) -> tuple[bytes, list[TraceStep]]:
    with over(snapshot, backend) as machine:
        trace = Traced(machine).to_the_end()
        return machine.output.data, trace


def set_interrupts(state: CpuState) -> None:
    state.rip += 1  # behind the STI
    state.rflags |= 1 << 9


def set_shadow(name: str) -> Callable[[CpuState], None]:
    def change(state: CpuState) -> None:
        set_interrupts(state)
        setattr(state.events, name, True)

    return change


@on_each_pair
def test_an_interrupt_that_waits_is_taken_behind_sti_elsewhere(source: str, target: str, cpu: Cpu) -> None:
    snapshot = pending(cpu(source))
    # STI holds it off for one instruction (SDM vol. 2, STI): the first INC CX is done.
    assert printed(snapshot, cpu(target))[0] == b"\x01"
    assert printed(snapshot, cpu(source)) == printed(snapshot, cpu(target))


@on_each_pair
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_interrupts, b"\x00"),
        (set_shadow("sti_shadow"), b"\x01"),
        (set_shadow("mov_ss_shadow"), b"\x01"),
    ],
    ids=["no shadow", "STI", "MOV SS"],
)
def test_in_the_shadow_of_sti_and_mov_ss(
    change: Any, said: bytes, source: str, target: str, cpu: Cpu
) -> None:
    snapshot = altered(pending(cpu(source)), change)
    with over(snapshot, cpu(source)) as machine:  # the shadow goes through the source's own CPU
        again = machine.snapshot()
        events = again.cpus[0].state.events
        assert (events.sti_shadow or events.mov_ss_shadow) is (said == b"\x01")
    data, trace = printed(again, cpu(target))
    assert data == said
    assert (data, trace) == printed(again, cpu(source))


def set_acknowledged(state: CpuState) -> None:
    state.events.interrupt = 8


def set_nmi(state: CpuState) -> None:
    state.events.nmi_pending = True


def set_masked_nmi(state: CpuState) -> None:
    state.events.nmi_pending = state.events.nmi_masked = True


def set_exception(state: CpuState) -> None:
    state.rip += 1
    state.events.exception = 2 + 6  # the double fault, which has a handler here: vector 8


@on_each_pair
@pytest.mark.parametrize(
    ("change", "said"),
    [
        # Delivered with IF clear, before STI; then that of the 8259A behind the first INC CX.
        (set_acknowledged, b"\x00\x01"),
        (set_nmi, b"\x80\x01"),
        # The handler of the timer ends with IRET, which unmasks the NMI (SDM vol. 3, 6.7.1).
        (set_masked_nmi, b"\x01\x81"),
        (set_exception, b"\x00"),
    ],
    ids=["interrupt acknowledged", "NMI", "NMI masked", "exception"],
)
def test_what_is_pending_in_the_cpu_is_delivered_elsewhere(
    change: Any, said: bytes, source: str, target: str, cpu: Cpu
) -> None:
    snapshot = altered(pending(cpu(source)), change)
    with over(snapshot, cpu(source)) as machine:
        again = machine.snapshot()
        assert again.cpus[0].state.events == snapshot.cpus[0].state.events
    data, trace = printed(again, cpu(target))
    assert data == said
    assert (data, trace) == printed(again, cpu(source))


HALTS = PENDING.replace("mov bx, 1500", "mov bx, 1").replace("sti\ninc cx", "sti\nhlt\nhlt\nhlt\ninc cx")


@on_each_pair
@pytest.mark.parametrize("style", ["run", "exits"])
def test_a_halted_cpu_is_woken_by_a_timer_elsewhere(style: str, source: str, target: str, cpu: Cpu) -> None:
    with made(cpu(source), HALTS, mode="real", bits=16, handler=TOLD) as machine:
        traced = Traced(machine)
        taken = []
        for exit in machine.exits():
            if isinstance(exit, Halt):
                taken.append((machine.snapshot(), len(traced.trace)))
        assert len(taken) == 4
        snapshot, at = taken[1]  # nothing is pending there: a millisecond is missing
        rest = traced.trace[at:]
        now = machine.clock.now()
        assert now - snapshot.clock.now_ns > 1_000_000
        assert snapshot.cpus[0].run_state == "halted"
        with over(snapshot, cpu(target)) as restored:
            again = Traced(restored)
            if style == "run":
                assert restored.run(budget=seconds(time_limit(20))) == Halt()
            else:
                assert list(restored.exits())[-1] == Halt()
            assert again.trace == rest
            assert restored.clock.now() == now


@on_each_pair
def test_an_nmi_wakes_a_halted_cpu_elsewhere(source: str, target: str, cpu: Cpu) -> None:
    """HLT with interrupts off: nothing but the NMI that came with the snapshot ends it."""
    code = PENDING.replace("mov bx, 1500", "mov bx, 1").replace("sti\n", "cli\nhlt\n")
    with made(cpu(source), code, mode="real", bits=16, handler=TOLD) as machine:
        assert machine.run(budget=seconds(time_limit(20))) == Halt()
        snapshot = altered(machine.snapshot(), set_nmi)
    with over(snapshot, cpu(target)) as restored:
        assert restored.run(budget=seconds(time_limit(20))) == Halt()
        assert restored.output.data == b"\x80"
        assert restored.cpu.rcx & 0xFF == 3


# -- every register

PROBE = "probe:\nin al, 0x80\njmp probe\n"


def fill(state: CpuState) -> None:
    """Something in each register that a snapshot has and that code in long mode at CPL 0 can have."""
    for number, name in enumerate(
        ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{n}" for n in range(8, 16)))
    ):
        setattr(state, name, 0xFEDCBA9876543210 ^ number << 56)
    state.rflags = 0x246 | 0x8D5 | 1 << 10 | 1 << 21  # OF SF ZF AF PF CF, DF, ID
    state.cr2, state.cr8 = 0x1122334455667788, 9
    state.cr4 |= 0x80
    state.dr = [0x1000, 0x2000, 0xFFFF800000003000, 0x4000]
    state.dr6, state.dr7 = 0xFFFF0FF3, 0x400
    state.fs = Segment(state.fs.selector, 0xFFFF900000001000, state.fs.limit, state.fs.attr)
    state.gs = Segment(state.gs.selector, 0x00007F0000002000, state.gs.limit, state.gs.attr)
    state.ldt = Segment(0x48, 0x9000, 0xFF, 0x82)
    state.gdt = Table(state.gdt.base, state.gdt.limit)
    state.idt = Table(0xFFFF800000006000, 0x7FF)
    state.efer |= 1 | 1 << 11  # SCE, NXE
    state.msrs = {
        0x174: 0x33, 0x175: 0xFFFF800000001000, 0x176: 0xFFFF800000002000, 0x277: 0x0006040600070406,
        0xC0000081: 0x0023001000000000, 0xC0000082: 0xFFFF800000003000, 0xC0000083: 0xFFFF800000004000,
        0xC0000084: 0x47700, 0xC0000102: 0x0000700000000000,
    }  # fmt: skip
    fpu = state.fpu
    fpu.fcw, fpu.mxcsr = 0xC7F, 0xFFC0  # truncating, masked; FZ, truncating, DAZ
    fpu.fsw, fpu.ftw = 5 << 11 | 0x4700, 0xE0
    fpu.fop, fpu.fip, fpu.fdp = 0x5AA, 0x123456789, 0xABCDEF012
    fpu.st[:3] = [0x3FFF8000000000000000, 0xC000C000000000000000, 0x4000C90FDAA22168C235]
    fpu.xmm = [(0x0123456789ABCDEF << 64 | 0xFEDCBA9876543210) ^ n << 120 ^ n for n in range(16)]


@on_each_pair
def test_every_register_is_carried(source: str, target: str, cpu: Cpu, tmp_path: Path) -> None:
    with made(cpu(source), PROBE, mode="l64", bits=64) as machine:
        machine.run(budget=exits(3))
        first = altered(machine.snapshot(), fill)
    with over(first, cpu(source)) as machine:
        snapshot = machine.snapshot()
    save(snapshot, tmp_path / "registers.vmm", extra=TAPES)
    wanted = first.cpus[0].state
    with over(load(tmp_path / "registers.vmm", extra=TAPES), cpu(target)) as restored:
        assert restored.vcpu.state().diff(wanted) == []
        restored.run(budget=exits(3))  # and they are still there
        left = restored.vcpu.state()
        # An AMD host loses x87's last instruction when it runs something else meanwhile: its FXSAVE and XSAVE
        # keep it only where an exception is pending (APM vol. 2, 11.4.4).
        lost = ("fpu.fop", "fpu.fip", "fpu.fdp") if "kvm" in (source, target) else ()
        for name, mine, theirs in left.diff(wanted):
            assert name in ("rax", "rip", "rflags", *lost), (name, mine, theirs)
        back = restored.snapshot()
    with over(back, cpu(source)) as machine:
        assert [name for name, *_ in machine.vcpu.state().diff(left) if name not in lost] == []


@on_each_pair
def test_every_msr_of_the_table_is_in_the_test_of_registers(source: str, target: str) -> None:
    from vmmsim.cpu.msrs import STATE_MSRS

    state = CpuState()
    fill(state)
    assert state.msrs.keys() == STATE_MSRS.keys()
    assert not [index for index, value in state.msrs.items() if STATE_MSRS[index] == value]


#: At CPL 3, where kvm_pvm, too, has x87 and SSE: thirds, by the rounding that was set before. Each is stored.
ROUNDS = """fld1
fidiv dword ptr [0x5000]
fstp qword ptr [0x5010]
mov al, 1
out 0x80, al
cvtsi2sd xmm1, dword ptr [0x5004]
divsd xmm1, xmm2
movsd qword ptr [0x5018], xmm1
fild dword ptr [0x5004]
fistp qword ptr [0x5020]
fstp tbyte ptr [0x5030]
mov al, 2
out 0x80, al
spin:
mov al, 0
out 0xf4, al
jmp spin
"""


@on_each_pair
@pytest.mark.parametrize("mode", [0, 1, 2, 3], ids=["nearest", "down", "up", "zero"])
def test_rounding_is_as_it_was_set(mode: int, source: str, target: str, cpu: Cpu) -> None:
    """Both the x87's (FCW bits 10-11) and that of SSE (MXCSR bits 13-14): the same bits come out."""

    def rounded(state: CpuState) -> None:
        state.fpu.fcw = 0x37F | mode << 10
        state.fpu.mxcsr = 0x1F80 | mode << 13
        state.fpu.fsw, state.fpu.ftw = 7 << 11, 0x80
        state.fpu.st[0] = 0x4000C90FDAA22168C235  # pi
        state.fpu.xmm[2] = 0x4008000000000000  # 3.0

    with made(cpu(source), ROUNDS, mode="l64u", bits=64) as machine:
        machine.memory.write(0x5000, (3).to_bytes(4, "little") + (10).to_bytes(4, "little"))
        begin = altered(machine.snapshot(), rounded)
    stored = []
    for variant in (source, target):
        with over(begin, cpu(variant)) as machine:
            machine.run(budget=exits(1))
            middle = machine.snapshot()
            other = target if variant == source else source
        with over(middle, cpu(other)) as restored:
            assert restored.run(budget=seconds(time_limit(20))) == GuestExit(0)
            stored.append(restored.memory.read(0x5010, 0x30))
    assert stored[0] == stored[1]
    third, quotient = (int.from_bytes(stored[0][at : at + 8], "little") for at in (0, 8))
    # IEEE 754: 1/3 and 10/3 are below their nearest doubles' neighbours by rounding down or to zero.
    assert third == 0x3FD5555555555555 + (mode == 2)
    assert quotient == 0x400AAAAAAAAAAAAA + (mode in (0, 2))
    assert stored[0][0x20:0x2A] == 0x4000C90FDAA22168C235.to_bytes(10, "little")


@on_each_pair
def test_limits_and_the_task_register_are_the_old_ones_until_they_are_loaded(
    source: str, target: str, cpu: Cpu
) -> None:
    """The hidden parts of segments, which no table in memory has any more."""
    with made(cpu(source), PROBE) as machine:
        machine.run(budget=exits(1))
        state = machine.vcpu.state()
        machine.memory.write(state.gdt.base + 8, bytes(state.gdt.limit - 7))
        before = machine.vcpu.state()
        with over(machine.snapshot(), cpu(target)) as restored:
            assert restored.vcpu.state().diff(before) == []
            assert restored.vcpu.state().tr.limit == before.tr.limit
            assert restored.run(budget=exits(5)) == BudgetSpent("exits", 5)


#: Enables the UART's FIFO, which a first character has been for, and looks at nothing.
FIFO = "mov edx, 0x3fa\nmov al, 1\nout dx, al\nmov ecx, 20\nspin:\nin al, 0x80\nloop spin\nhlt\n"


@on_each_cpu
@pytest.mark.parametrize("number", [1, 2, 5, 21])
def test_being_restored_is_no_occasion_to_take_input(variant: str, number: int, cpu: Cpu) -> None:
    with made(cpu(variant), FIFO, source=BytesSource(b"0123456789")) as machine:
        machine.run(budget=seconds(time_limit(20)))
        uart, position = machine.device_states()["uart"], machine.source.position
    with made(cpu(variant), FIFO, source=BytesSource(b"0123456789")) as machine:
        machine.run(budget=exits(number))
        snapshot = machine.snapshot()
        machine.run(budget=exits(7))
        for _ in range(2):
            machine.restore(snapshot)
            assert machine.run(budget=seconds(time_limit(20))) == Halt()
            assert machine.device_states()["uart"] == uart
            assert machine.source.position == position


@on_each_cpu
def test_with_the_hosts_clock_timers_go_on_after_a_restore_between_exits(variant: str, cpu: Cpu) -> None:
    code = PENDING.replace("mov bx, 1500", "mov bx, 1").replace("sti\n", "sti\nagain:\nhlt\njmp again\n")
    with made(cpu(variant), code, mode="real", bits=16, handler=TOLD, clock="host") as machine:
        snapshot, ticks = None, 0
        for exit in machine.exits():
            if isinstance(exit, Halt) and snapshot is None:
                snapshot = machine.snapshot()
                machine.restore(snapshot)
            elif isinstance(exit, Access) and exit.address == 0xE9 and snapshot is not None:
                ticks += 1
            if ticks == 3:
                break
        assert ticks == 3


@on_each_cpu
def test_a_run_that_was_cancelled_in_a_halt_waits_on(variant: str, cpu: Cpu) -> None:
    """HLT is left by an interrupt alone, not by a second run."""
    code = PENDING.replace("mov bx, 1500", "mov bx, 1").replace("sti\n", "sti\nhlt\nhlt\n")
    code = code.replace("mov al, 0xa9\nout 0x40, al\nmov al, 4", "mov al, 0\nout 0x40, al\nmov al, 0")
    with made(cpu(variant), code, mode="real", bits=16, handler=TOLD, clock="host") as machine:
        assert machine.run(budget=seconds(0.02)) == BudgetSpent("seconds", 0.02)  # 55 ms are a period
        began = machine.clock.now()
        assert machine.run(budget=seconds(time_limit(20))) == Halt()
        assert machine.output.data == b"P\0\0"
        assert machine.clock.now() - began > 20_000_000
