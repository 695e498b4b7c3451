"""Checks: ending a run at an instruction. Budgets, stop_here, handlers that raise."""

from __future__ import annotations

from functools import partial

from .. import budget, models
from ..backends.base import Backend, VmOptions
from ..cpu.modes import setup as mode_setup
from ..diff.divergences import divergence
from ..errors import NotSupported
from ..exits import BudgetSpent, Cancelled, Halt, MmioRead, PortRead
from ..machine import Machine
from .bench import CODE, DATA, HOLE, Bench, Script
from .checks import NotApplicable, per_mode, raises, registry

__all__ = ["CHECKS"]

CHECKS, check = registry()


@check
def budgets_of_exits_and_seconds(backend: Backend) -> None:
    """A Machine on this backend stops after exactly so many exits, and when its time is over."""
    # l: out 0x80, al; inc eax (ax); jmp l: the same bytes in every mode.
    with Machine(backend=backend, memory=0x20000, without=tuple(models.MODELS["bare"])) as machine:
        setup = mode_setup("p32", CODE, tables=0x10000)
        for gpa, data in [*setup.writes, (CODE, bytes.fromhex("e680ffc0ebfa"))]:
            machine.memory.write(gpa, data)
        machine.cpu.load(setup.state)
        for number in range(1, 4):
            exit = machine.run(budget=budget.exits(5))
            assert exit == BudgetSpent("exits", 5), exit.describe()
            assert machine.accesses.total == 5 * number, f"{machine.accesses.total} exits"
            assert machine.cpu.rip == CODE + 2, f"rip {machine.cpu.rip:#x}"
        exit = machine.run(budget=budget.seconds(0.05))
        assert exit == BudgetSpent("seconds", 0.05), exit.describe()
        wanted = machine.accesses.total - (machine.cpu.rip == CODE + 2)
        assert machine.cpu.rax == wanted, f"{machine.cpu.rax} INCs, {machine.accesses.total} OUTs"


@check
def instruction_budget(backend: Backend) -> None:
    """max_insns stops after exactly so many instructions, or is NotSupported."""
    # Four INCs, then REP STOSB of 5 (each iteration counts as one), then HLT.
    code = bytes.fromhex("40404343f3aa")
    regs = {"rcx": 5, "rdi": DATA}
    with Bench(backend, "p32", code, regs=regs) as bench:
        if not backend.capabilities.insn_budget:
            raises(NotSupported, lambda: bench.vcpu.run(max_insns=3), "max_insns")
            raises(NotSupported, lambda: bench.vcpu.run_inline(Script(), max_insns=3), "max_insns inline")
            bench.expect(Halt)
            return
        exit = bench.run(max_insns=3)
        assert isinstance(exit, BudgetSpent), exit.describe()
        assert (exit.unit, exit.amount) == ("insns", 3), exit.describe()
        registers = bench.vcpu.registers()
        assert (registers.rip, registers.rax, registers.rbx) == (CODE + 3, 2, 1), f"{registers}"
        exit = bench.run_inline(Script(), max_insns=3)
        assert isinstance(exit, BudgetSpent), exit.describe()
        registers = bench.vcpu.registers()
        assert (registers.rip, registers.rcx, registers.rdi) == (CODE + 4, 3, DATA + 2), f"{registers}"
        bench.expect(Halt, rip=CODE + 7)


@check
def instructions_are_counted(backend: Backend) -> None:
    """With count_insns the count is exact, exits and looks or not; without it, it is None or true."""
    # mov cl, 3; rep stosb (3 iterations); in al, 0x60; add [esi], eax; inc ebx; then HLT
    code = bytes.fromhex("b103f3aae460010643")
    regs = {"rdi": DATA, "rsi": HOLE}
    counts = []
    for style in ("inline", "exits", "exits and looks"):
        with Bench(backend, "p32", code, regs=regs, options=VmOptions(count_insns=True)) as bench:
            start = bench.vcpu.insns
            if not backend.capabilities.insn_budget:
                assert start is None, "a backend that cannot count says None"
                return
            assert start == 0, f"{start} instructions before the first"
            if style == "inline":
                bench.run_inline(Script([1, 2]))
            else:
                while not isinstance(exit := bench.run(), Halt):
                    if isinstance(exit, (PortRead, MmioRead)):
                        exit.reply(1)
                    if style != "exits":
                        bench.vcpu.state()
            counts.append(bench.vcpu.insns)
    # REP STOSB may or may not count the look at a count of 0 that ends it.
    assert len(set(counts)) == 1, f"inline, exits, looks: {counts}"
    assert counts[0] in (8, 9), f"{counts[0]} instructions"


@check
def instruction_budgets_one_by_one(backend: Backend) -> None:
    """A guest run in budgets of 1 makes the accesses of an uninterrupted run."""
    if not backend.capabilities.insn_budget:
        raise NotApplicable("this backend counts no instructions (capability insn_budget)")
    code = bytes.fromhex("b8050000000306894604e6604875f4")
    script = Script([1, 2, 3, 4, 5, 6, 7, 8])
    whole = Script([1, 2, 3, 4, 5, 6, 7, 8])
    with Bench(backend, "p32", code[5:], regs={"rsi": HOLE, "rax": 5}) as bench:
        whole.on_access = lambda number: bench.vcpu.stop_here(Cancelled()) if number == 20 else None
        bench.run_inline(whole)
        wanted = bench.vcpu.registers()
    with Bench(backend, "p32", code[5:], regs={"rsi": HOLE, "rax": 5}) as bench:
        for _ in range(1000):
            exit = bench.run_inline(script, max_insns=1)
            assert isinstance(exit, BudgetSpent), exit.describe()
            if len(script.seen) == 21:
                break
        assert script.seen == whole.seen, f"{script.seen[-3:]} against {whole.seen[-3:]}"
        assert bench.vcpu.registers() == wanted


@per_mode(CHECKS, "p32", "l64u")
def stop_here_at_each_sort_of_access(backend: Backend, mode: str) -> None:
    """stop_here ends the run right after the instruction of the access, with its exit."""
    # in al, 0x60; out 0x61, al; mov al, [esi] (rsi); mov [esi], al
    code = bytes.fromhex("e460e6618a06880690")
    with Bench(backend, mode, code, regs={"rsi": HOLE}) as bench:
        script = Script([0x11, 0x22])
        stop = BudgetSpent("exits", 1)
        script.on_access = lambda number: bench.vcpu.stop_here(stop)
        for number, rip in enumerate((2, 4, 6, 8)):
            exit = bench.run_inline(script)
            assert exit == BudgetSpent("exits", 1), f"stop {number} gave {exit.describe()}"
            assert bench.rip == CODE + rip, f"stop {number} at {bench.rip:#x}, expected {CODE + rip:#x}"
            assert len(script.seen) == number + 1, f"stop {number} saw {script.seen}"
        assert bench.vcpu.registers().rax == 0x22
        assert [step[3] for step in script.seen] == [0x11, 0x11, 0x22, 0x22]


@check
def stop_here_in_a_read_modify_write(backend: Backend) -> None:
    """A stop at the read of an ADD comes after its write: no access is half done."""
    with Bench(backend, "p32", bytes.fromhex("830605"), regs={"rsi": HOLE}) as bench:
        script = Script([0x10])
        script.on_access = lambda number: bench.vcpu.stop_here(Cancelled()) if number == 0 else None
        exit = bench.run_inline(script)
        assert isinstance(exit, Cancelled), exit.describe()
        assert bench.rip == CODE + 3
        bench.run_inline(script)
        assert script.seen == [("mmio_read", HOLE, 4, 0x10), ("mmio_write", HOLE, 4, 0x15)], script.seen


@check
def stop_here_at_a_write_that_was_waiting(backend: Backend) -> None:
    """A look has finished an ADD, whose write waits: a stop at it comes before the next instruction."""
    for way in ("stop_here", "stop_here and cancel", "raise"):
        # add dword [esi], 5; inc edx; then HLT
        with Bench(backend, "p32", bytes.fromhex("83060542"), regs={"rsi": HOLE}) as bench:
            exit = bench.expect(MmioRead)
            assert isinstance(exit, MmioRead)
            exit.reply(0x10)
            bench.vcpu.state()
            script = Script()

            def stop(number: int, way: str = way, bench: Bench = bench) -> None:
                if way == "raise":
                    raise _Broken
                bench.vcpu.stop_here(BudgetSpent("exits", 1))

            script.on_access = stop
            if way == "stop_here and cancel":
                bench.vcpu.cancel()
            if way == "raise":
                raises(_Broken, partial(bench.run_inline, script), "the handler's error")
            else:
                ended = bench.run_inline(script)
                assert ended == BudgetSpent("exits", 1), f"{way}: {ended.describe()}"
            assert script.seen == [("mmio_write", HOLE, 4, 0x15)], f"{way}: {script.seen}"
            assert bench.rip == CODE + 3, f"{way}: stopped at {bench.rip:#x}"
            if way == "stop_here and cancel":
                bench.expect(Cancelled, rip=CODE + 3)
            bench.expect(Halt, rip=CODE + 5)
            assert bench.vcpu.registers().rdx == 1


@per_mode(CHECKS, "p32", "l64u")
def stop_here_within_rep(backend: Backend, mode: str) -> None:
    """Stops in the middle of REP INS, OUTS, MOVS and STOS: each element is made exactly once."""
    for name, code in (("insb", "f36c"), ("outsb", "f36e"), ("movsb", "f3a4"), ("stosb", "f3aa")):
        source = HOLE if name == "movsb" else DATA
        target = HOLE + 0x800 if name == "stosb" else DATA + 0x100
        data = bytes(range(1, 21))
        regs = {"rcx": 20, "rsi": source, "rdi": target, "rdx": 0x60, "rax": 0x77}
        with Bench(backend, mode, bytes.fromhex(code) + b"\xe6\x62", regs=regs, memory={DATA: data}) as bench:
            script = Script(list(data))
            script.on_access = lambda number: bench.vcpu.stop_here(Cancelled()) if number % 3 == 1 else None
            for _ in range(40):
                exit = bench.run_inline(script)
                assert isinstance(exit, Cancelled), f"{name}: {exit.describe()}"
                if len(script.seen) > 20:
                    break
                registers = bench.vcpu.registers()
                at_insn = registers.rip == CODE
                assert at_insn or registers.rip == CODE + 2, f"{name}: stopped at {registers.rip:#x}"
                assert at_insn or registers.rcx == 0, f"{name}: behind REP with {registers.rcx} to go"
                moved = registers.rsi - source if name == "outsb" else registers.rdi - target
                assert moved == 20 - registers.rcx, f"{name}: {moved} moved, {registers.rcx} to go"
                if exit is not None and script.on_access is not None and len(script.seen) < 20:
                    continue
                script.on_access = lambda number: bench.vcpu.stop_here(Cancelled())
            elements = [step for step in script.seen if step[1] != 0x62]
            assert len(elements) == 20, f"{name}: {len(elements)} elements"
            wanted = [0x77] * 20 if name == "stosb" else list(data)
            assert [step[3] for step in elements] == wanted, f"{name}: {elements}"
            if name in ("insb", "movsb"):
                assert bench.memory.read(DATA + 0x100, 20) == data, f"{name}: the bytes are wrong"


class _Broken(Exception):
    pass


@per_mode(CHECKS, "p32", "l64u")
def a_handler_that_raises(backend: Backend, mode: str) -> None:
    """The error comes out of run_inline at the boundary behind the access; the guest can go on."""
    code = bytes.fromhex("e460e6618a068806e662")
    with Bench(backend, mode, code, regs={"rsi": HOLE, "rax": 0x1100}) as bench:
        script = Script([0x11, 0x22])

        def broken(number: int) -> None:
            raise _Broken(number)

        script.on_access = broken
        for number, rip in enumerate((2, 4, 6, 8)):
            error = raises(_Broken, lambda: bench.run_inline(script), f"the handler's error {number}")
            assert error.args == (number,), f"error {error.args}, expected {number}"
            assert bench.rip == CODE + rip, f"error {number} at rip {bench.rip:#x}"
            assert bench.vcpu.state().rax == 0x11FF, "a failed read answers all ones"
        script.on_access = lambda number: bench.vcpu.stop_here(Cancelled())
        bench.run_inline(script)
        assert script.seen[-1] == ("port_write", 0x62, 1, 0xFF), f"{script.seen[-1]}"


@check
def a_handler_that_raises_within_rep(backend: Backend) -> None:
    """An error in the middle of REP leaves a boundary; no element is asked for twice."""
    with Bench(backend, "p32", bytes.fromhex("f36c"), regs={"rcx": 6, "rdi": DATA, "rdx": 0x60}) as bench:
        script = Script([1, 2, 3, 4, 5, 6])

        def broken(number: int) -> None:
            if number == 2:
                raise _Broken

        script.on_access = broken
        raises(_Broken, lambda: bench.run_inline(script), "the handler's error")
        registers = bench.vcpu.registers()
        assert registers.rdi - DATA == 6 - registers.rcx
        exit = bench.run_inline(script)
        assert isinstance(exit, Halt), exit.describe()
        # What KVM has read ahead when the error comes is answered with ones, unasked.
        ahead = divergence("rep-ins-read-ahead").applies_to(backend.provenance, "pvm", "vmx", "svm")
        asked = len(script.seen)
        assert asked == 6 or (ahead and asked >= 3), f"{asked} elements"
        wanted = bytes([1, 2, 0xFF]) + (bytes([4, 5, 6])[: asked - 3] if asked > 3 else b"")
        assert bench.memory.read(DATA, 6) == wanted.ljust(6, b"\xff")
