"""Checks: ending a run from outside. Cancels, budgets, stop_here, handlers that raise.

Every stop is at an instruction boundary, and nothing that the guest did is lost or done
twice: the counters of the guests below are exact at every stop.
"""

from __future__ import annotations

import random
import threading
import time
from functools import partial

from .. import budget, models
from ..backends.base import Backend, Vcpu
from ..cpu.modes import setup as mode_setup
from ..diff.divergences import divergence
from ..errors import NotSupported
from ..exits import BudgetSpent, Cancelled, Halt, MmioRead, PortRead
from ..machine import Machine
from .bench import CODE, DATA, HOLE, Bench, Script
from .checks import NotApplicable, per_mode, raises, registry

__all__ = ["CHECKS"]

CHECKS, check = registry()

#: Counts in EAX and in memory; at any boundary the two tell where the guest is.
_COUNT = """
    l:
    40                             inc eax
    ff 05 00 50 00 00              inc dword ptr [0x5000]
    eb f7                          jmp l
"""
_COUNT_64 = """
    l:
    48 ff c0                       inc rax
    ff 06                          inc dword ptr [rsi]
    eb f9                          jmp l
"""

#: Read-modify-writes of every sort. EBX counts rounds; [edi] += 1, [edi+4] += 1, [edi+8] += 1,
#: and a token goes round between ECX and [edi+12].
_RMW = """
    l:
    ff 07                          inc dword ptr [edi]
    b8 01 00 00 00                 mov eax, 1
    f0 0f c1 47 04                 lock xadd [edi+4], eax
    f0 ff 47 08                    lock inc dword ptr [edi+8]
    87 4f 0c                       xchg [edi+0xc], ecx
    43                             inc ebx
    eb ea                          jmp l
"""
#: The same with an OUT in each round, for stops from a handler.
_RMW_OUT = """
    l:
    ff 07                          inc dword ptr [edi]
    b8 01 00 00 00                 mov eax, 1
    f0 0f c1 47 04                 lock xadd [edi+4], eax
    e6 80                          out 0x80, al
    f0 ff 47 08                    lock inc dword ptr [edi+8]
    89 06                          mov [esi], eax
    87 4f 0c                       xchg [edi+0xc], ecx
    43                             inc ebx
    eb e6                          jmp l
"""
_TOKENS = (0x1111, 0x2222)


class _Canceller:
    """A thread that calls `cancel` after random short times, as long as it is asked to."""

    def __init__(self, vcpu: Vcpu, longest: float, seed: int) -> None:
        self._vcpu = vcpu
        self._longest = longest
        self._random = random.Random(seed)
        self._armed = threading.Event()
        self._done = False
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while True:
            self._armed.wait()
            self._armed.clear()
            if self._done:
                return
            time.sleep(self._random.random() * self._longest)
            self._vcpu.cancel()

    def arm(self) -> None:
        """Cancel once, soon."""
        self._armed.set()

    def close(self) -> None:
        self._done = True
        self._armed.set()
        self._thread.join()


def _counting(mode: str) -> tuple[str, dict[str, int], list[int]]:
    """The counting guest, its registers, and the offsets of its instructions."""
    if mode == "l64u":
        return _COUNT_64, {"rsi": DATA}, [0, 3, 5]
    return _COUNT, {}, [0, 1, 7]


def _check_count(bench: Bench, offsets: list[int], what: str) -> int:
    registers = bench.vcpu.registers()
    offset = registers.rip - CODE
    assert offset in offsets, f"{what}: rip {registers.rip:#x} is between two instructions"
    memory = bench.memory.read_int(DATA, 4)
    ahead = registers.rax - memory
    assert ahead == (1 if offset == offsets[1] else 0), (
        f"{what}: at {registers.rip:#x} EAX counted {registers.rax}, memory {memory}"
    )
    return registers.rax


@per_mode(CHECKS, "p32", "l64u")
def cancel_before_a_run(backend: Backend, mode: str) -> None:
    """A cancel without a run ends the next run, once."""
    code, regs, offsets = _counting(mode)
    with Bench(backend, mode, code, regs=regs, end=False) as bench:
        bench.vcpu.cancel()
        bench.expect(Cancelled)
        _check_count(bench, offsets, "cancel before a run")
        canceller = _Canceller(bench.vcpu, 0.0, 1)
        started = time.perf_counter()
        threading.Timer(0.05, canceller.arm).start()
        bench.expect(Cancelled)
        canceller.close()
        assert time.perf_counter() - started > 0.02, "one cancel ended two runs"


@check
def uncancel_takes_a_cancel_back(backend: Backend) -> None:
    """After uncancel() the next run is not ended."""
    with Bench(backend, "p32", b"\x90") as bench:
        bench.vcpu.cancel()
        bench.vcpu.uncancel()
        bench.expect(Halt)


@per_mode(CHECKS, "p32", "l64u")
def two_hundred_cancels(backend: Backend, mode: str) -> None:
    """A spinning guest is cancelled 200 times from a thread; its counters are exact each time."""
    code, regs, offsets = _counting(mode)
    with Bench(backend, mode, code, regs=regs, end=False) as bench:
        canceller = _Canceller(bench.vcpu, 0.002, 2)
        try:
            for number in range(200):
                canceller.arm()
                bench.expect(Cancelled)
                count = _check_count(bench, offsets, f"cancel {number}")
        finally:
            canceller.close()
        assert count > 200, f"the guest made {count} rounds only"


@check
def a_stop_before_hlt_loses_no_halt(backend: Backend) -> None:
    """Stopped and cancelled right before a HLT, the guest still exits with Halt afterwards."""
    with Bench(backend, "p32", bytes.fromhex("e680")) as bench:
        script = Script()
        script.on_access = lambda number: bench.vcpu.stop_here(Cancelled())
        for way in ("stop_here", "stop_here, then cancel", "an exit, then cancel", "cancel twice"):
            bench.set(rip=CODE)
            if way == "an exit, then cancel":
                bench.run()
            else:
                bench.run_inline(script)
            for _ in range({"stop_here": 0, "cancel twice": 2}.get(way, 1)):
                bench.vcpu.cancel()
                exit = bench.run()
                assert isinstance(exit, Cancelled), f"{way}: {exit.describe()}"
                assert bench.rip == CODE + 2, f"{way}: rip {bench.rip:#x} is not at the HLT"
            bench.expect(Halt, rip=CODE + 3)


@check
def cancel_is_prompt(backend: Backend) -> None:
    """A cancel of a spinning guest takes effect in the time that the capabilities promise."""
    promised = backend.capabilities.cancel_latency_ms / 1000
    code, regs, _ = _counting("p32")
    with Bench(backend, "p32", code, regs=regs, end=False) as bench:
        best = 10.0
        for _ in range(5):
            at: list[float] = []

            def stop(at: list[float] = at) -> None:
                at.append(time.perf_counter())
                bench.vcpu.cancel()

            threading.Timer(0.02, stop).start()
            bench.expect(Cancelled)
            best = min(best, time.perf_counter() - at[0])
        # The best of five, since this measures the machine's other work too.
        assert best <= max(promised, 0.001), f"{best * 1000:.1f} ms, promised {promised * 1000:g} ms"


@check
def cancel_between_exits(backend: Backend) -> None:
    """A cancel at an exit ends the next run; the access at hand is not lost."""
    with Bench(backend, "p32", bytes.fromhex("e460e661")) as bench:
        exit = bench.expect(PortRead)
        assert isinstance(exit, PortRead)
        exit.reply(0x5A)
        bench.vcpu.cancel()
        seen = [bench.run().kind for _ in range(3)]
        assert sorted(seen) == ["cancelled", "halt", "port_write"], f"the exits are {seen}"
        assert bench.vcpu.registers().rax == 0x5A


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


def _check_rmw(bench: Bench, steps: list[int], what: str) -> None:
    """`steps` are the offsets behind which [edi], [edi+4], [edi+8], the exchange and EBX count."""
    registers = bench.vcpu.registers()
    offset = registers.rip - CODE
    counts = [bench.memory.read_int(DATA + at, 4) for at in (0, 4, 8)]
    rounds = registers.rbx & 0xFFFFFFFF
    done = [1 if step <= offset < steps[-1] else 0 for step in steps]
    wanted = [rounds + d for d in done[:3]]
    assert counts == wanted, (
        f"{what}: rip {registers.rip:#x}, rounds {rounds}, counters {counts}, not {wanted}"
    )
    swaps = rounds + done[3]
    tokens = (registers.rcx, bench.memory.read_int(DATA + 12, 4))
    expected = _TOKENS if swaps % 2 == 0 else _TOKENS[::-1]
    assert tokens == expected, f"{what}: after {swaps} exchanges the tokens are {tokens}"


def _rmw_bench(backend: Backend, code: str) -> Bench:
    memory = {DATA + 12: _TOKENS[1].to_bytes(4, "little")}
    return Bench(
        backend, "p32", code, regs={"rdi": DATA, "rsi": HOLE, "rcx": _TOKENS[0]}, memory=memory, end=False
    )


#: Offsets behind the instructions that count, the last one behind `inc ebx`.
_RMW_STEPS = [2, 12, 16, 19, 20]
_RMW_OUT_STEPS = [2, 12, 18, 23, 24]


@check
def four_thousand_cancels_of_read_modify_writes(backend: Backend) -> None:
    """INC, LOCK XADD, LOCK INC and XCHG under 4,000 cancels: every counter exact at every stop."""
    with _rmw_bench(backend, _RMW) as bench:
        canceller = _Canceller(bench.vcpu, 0.0002, 3)
        try:
            for number in range(4000):
                canceller.arm()
                bench.expect(Cancelled)
                _check_rmw(bench, _RMW_STEPS, f"cancel {number}")
        finally:
            canceller.close()


@check
def four_thousand_stops_of_read_modify_writes(backend: Backend) -> None:
    """The same under 4,000 stops from the handler, at OUTs and at stores."""
    chance = random.Random(4)
    with _rmw_bench(backend, _RMW_OUT) as bench:
        script = Script()
        countdown = 0

        def stop(number: int) -> None:
            nonlocal countdown
            countdown -= 1
            if countdown <= 0:
                bench.vcpu.stop_here(Cancelled())

        script.on_access = stop
        for number in range(4000):
            countdown = chance.randrange(1, 4)
            bench.run_inline(script)
            script.seen.clear()
            _check_rmw(bench, _RMW_OUT_STEPS, f"stop {number}")


@check
def two_thousand_budgets_of_read_modify_writes(backend: Backend) -> None:
    """The same under 2,000 instruction budgets of random length."""
    if not backend.capabilities.insn_budget:
        raise NotApplicable("this backend counts no instructions (capability insn_budget)")
    chance = random.Random(5)
    with _rmw_bench(backend, _RMW) as bench:
        total = 0
        for number in range(2000):
            amount = chance.randrange(1, 200)
            exit = bench.run(max_insns=amount)
            assert isinstance(exit, BudgetSpent), exit.describe()
            total += amount
            _check_rmw(bench, _RMW_STEPS, f"budget {number}")
        assert bench.vcpu.registers().rbx == total // 7, "7 instructions make a round"
