"""Checks: cancels, and that no stop of any sort loses or repeats what the guest does.

Every stop is at an instruction boundary: the counters of the guests below are exact there.
"""

from __future__ import annotations

import random
import threading
import time

from ..backends.base import Backend, Vcpu
from ..exits import BudgetSpent, Cancelled, Halt, PortRead
from .bench import CODE, DATA, HOLE, Bench, Script
from .checks import NotApplicable, per_mode, registry
from .slow import time_limit

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
    """A cancel of a spinning guest takes effect in the time that the capabilities promise (times
    VMMSIM_SLOW)."""
    promised = time_limit(backend.capabilities.cancel_latency_ms / 1000)
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
            exit = bench.run_inline(script)
            assert isinstance(exit, Cancelled), f"stop {number} gave {exit.describe()}"
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
