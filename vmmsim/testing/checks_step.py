"""Checks: what a debugger asks of a CPU. Single steps, breakpoints, and the refusals where there are none."""

from __future__ import annotations

from ..backends.base import Backend
from ..errors import NotSupported
from ..exits import Breakpoint, BudgetSpent, Exit, Halt, MmioRead, PortRead, PortWrite
from .bench import CODE, DATA, HOLE, Bench, Script
from .checks import NotApplicable, per_mode, raises, registry

__all__ = ["CHECKS"]

CHECKS, check = registry()
_MODES = ("real", "p32", "l64", "l64u")
#: inc eax; jmp over the next; inc ebx; inc ecx; nop: the same bytes in every mode (16 bits in real mode).
_PROGRAM = bytes.fromhex("ffc0eb02ffc3ffc190")
#: RIP (from CODE) before the first instruction and behind each.
_WAY = (0, 2, 6, 8, 9)
_STEPPED = BudgetSpent("insns", 1)


def _native(bench: Bench) -> bool:
    """Whether the code runs where KVM neither steps nor stops (capability single_step)."""
    return bench.mode == "l64u" and bench.backend.capabilities.single_step == "emulated"


def _cannot_step(bench: Bench) -> str:
    """Why no instruction can be stepped here by the capability `single_step`, or ""."""
    if bench.backend.capabilities.single_step == "no":
        return "this backend has no single step (capability single_step)"
    if _native(bench):
        return "no single step in 64-bit code at CPL 3 (capability single_step)"
    return ""


def _needs_steps(bench: Bench) -> None:
    reason = _cannot_step(bench)
    if reason:
        raise NotApplicable(reason)


def _needs_breakpoints(bench: Bench) -> None:
    has = bench.backend.capabilities.breakpoints
    if not has:
        raise NotApplicable(f"this backend keeps {has} breakpoints (capability breakpoints)")
    if _native(bench):
        raise NotApplicable("64-bit code at CPL 3 runs natively here, and no breakpoint is seen in it")


def _stepped(bench: Bench, script: Script | None = None) -> None:
    exit = bench.vcpu.step(script or Script())
    assert exit == _STEPPED, f"a step ended with {exit.describe()}"


def _ends(bench: Bench) -> None:
    """The program goes on to its end, as without a debugger."""
    exit: Exit = bench.run()
    assert isinstance(exit, (Halt, PortWrite)), exit.describe()
    assert bench.rip == bench.end_rip, f"it ended at {bench.rip:#x}, not {bench.end_rip:#x}"
    registers = bench.vcpu.registers()
    assert (registers.rax, registers.rbx, registers.rcx) == (1, 0, 1), f"{registers}"


@per_mode(CHECKS, *_MODES)
def a_step_is_one_instruction(backend: Backend, mode: str) -> None:
    """step executes one instruction, taken jumps too; where it cannot, it says why and changes nothing."""
    with Bench(backend, mode, _PROGRAM) as bench:
        reason = _cannot_step(bench)
        before = bench.vcpu.state()
        if reason:
            error = raises(NotSupported, lambda: bench.vcpu.step(Script()), reason)
            assert str(error), "a refusal says why"
            assert not before.diff(bench.vcpu.state()), "a step that is refused changes nothing"
        else:
            for number, at in enumerate(_WAY[1:], 1):
                _stepped(bench)
                assert bench.rip == CODE + at, f"step {number} ended at {bench.rip:#x}, not {CODE + at:#x}"
            rflags = bench.vcpu.registers().rflags
            assert not rflags & 0x100, f"a step leaves TF behind: rflags {rflags:#x}"
        _ends(bench)


@per_mode(CHECKS, *_MODES)
def steps_over_accesses(backend: Backend, mode: str) -> None:
    """A step makes all accesses of its instruction by the handler, and no other's."""
    # in al, 0x60; out 0x61, al; mov al, [esi]; add [esi], al: with SI in real mode, RSI in 64-bit code
    code = bytes.fromhex("e460e6618a040004" if mode == "real" else "e460e6618a060006")
    with Bench(backend, mode, code, regs={"rsi": HOLE}) as bench:
        _needs_steps(bench)
        script = Script([0x11, 0x22, 0x30])
        wanted = (
            [("port_read", 0x60, 1, 0x11)],
            [("port_write", 0x61, 1, 0x11)],
            [("mmio_read", HOLE, 1, 0x22)],
            [("mmio_read", HOLE, 1, 0x30), ("mmio_write", HOLE, 1, 0x52)],
        )
        for number, accesses in enumerate(wanted):
            script.seen.clear()
            _stepped(bench, script)
            assert script.seen == accesses, f"step {number} made {script.seen}"
            assert bench.rip == CODE + 2 * number + 2, f"step {number} ended at {bench.rip:#x}"


@per_mode(CHECKS, "real", "p32", "l64")
def a_step_of_halt(backend: Backend, mode: str) -> None:
    """A step of HLT is Halt, with RIP behind it."""
    with Bench(backend, mode, b"\x90") as bench:
        _needs_steps(bench)
        _stepped(bench)
        exit = bench.vcpu.step(Script())
        assert isinstance(exit, Halt), exit.describe()
        assert bench.rip == bench.end_rip


@per_mode(CHECKS, *_MODES)
def steps_of_rep(backend: Backend, mode: str) -> None:
    """Each step of REP STOSB does an iteration or more, stays there until the last, and loses none."""
    with Bench(backend, mode, bytes.fromhex("f3aa90"), regs={"rcx": 5, "rdi": DATA, "rax": 0x77}) as bench:
        _needs_steps(bench)
        left = 5
        for _ in range(8):
            _stepped(bench)
            registers = bench.vcpu.registers()
            assert registers.rdi - DATA == 5 - registers.rcx, f"{registers}"
            if registers.rip != CODE:
                break
            assert registers.rcx < left, f"a step with no iteration: {registers.rcx} left"
            left = registers.rcx
        assert (bench.rip, bench.vcpu.registers().rcx) == (CODE + 2, 0)
        assert bench.memory.read(DATA, 6) == b"\x77" * 5 + b"\0"


@per_mode(CHECKS, "real", "p32", "l64")
def a_step_after_an_exit(backend: Backend, mode: str) -> None:
    """A step at an exit that was answered finishes its instruction, and then makes one more."""
    with Bench(backend, mode, bytes.fromhex("e460ffc0")) as bench:  # in al, 0x60; inc eax
        _needs_steps(bench)
        exit = bench.expect(PortRead)
        assert isinstance(exit, PortRead)
        exit.reply(0x41)
        _stepped(bench)
        registers = bench.vcpu.registers()
        assert (registers.rip, registers.rax) == (CODE + 4, 0x42), f"{registers}"


@per_mode(CHECKS, *_MODES)
def a_run_ends_at_a_breakpoint(backend: Backend, mode: str) -> None:
    """Before its instruction, on each way to run, and again where the run begins there; a step goes on."""
    for way in ("run", "run_inline"):
        with Bench(backend, mode, _PROGRAM) as bench:
            _needs_breakpoints(bench)
            _needs_steps(bench)
            # The second is jumped over.
            bench.vcpu.set_breakpoints(
                frozenset({CODE + 6, CODE + 4}) if _two(bench) else frozenset({CODE + 6})
            )
            for _ in range(2):
                exit = bench.run() if way == "run" else bench.run_inline(Script())
                assert exit == Breakpoint(CODE + 6), f"{way}: {exit.describe()}"
                registers = bench.vcpu.registers()
                assert (registers.rip, registers.rax, registers.rcx) == (CODE + 6, 1, 0), (
                    f"{way}: {registers}"
                )
            _stepped(bench)
            assert bench.rip == CODE + 8, f"{way}: a step off a breakpoint ended at {bench.rip:#x}"
            _ends(bench)


def _two(bench: Bench) -> bool:
    return bench.backend.capabilities.breakpoints > 1


@per_mode(CHECKS, *_MODES)
def breakpoints_are_replaced(backend: Backend, mode: str) -> None:
    """set_breakpoints replaces the set; without any the guest runs to its end, and sees none."""
    with Bench(backend, mode, _PROGRAM) as bench:
        _needs_breakpoints(bench)
        bench.vcpu.set_breakpoints(frozenset({CODE + 2}))
        bench.vcpu.set_breakpoints(frozenset({CODE + 6}))
        exit = bench.run()
        assert exit == Breakpoint(CODE + 6), exit.describe()
        bench.vcpu.set_breakpoints(frozenset())
        state = bench.vcpu.state()
        assert (state.dr, state.dr7 & 0xFF) == ([0, 0, 0, 0], 0), (
            f"the guest sees dr {state.dr}, {state.dr7:#x}"
        )
        _ends(bench)


@per_mode(CHECKS, "p32", "l64")
def a_breakpoint_in_a_loop(backend: Backend, mode: str) -> None:
    """Each time around, with the accesses of the loop made once each."""
    # l: in al, 0x60; dec ecx; jnz l
    code = bytes.fromhex("e460ffc975fa")
    with Bench(backend, mode, code, regs={"rcx": 3}) as bench:
        _needs_breakpoints(bench)
        _needs_steps(bench)
        bench.vcpu.set_breakpoints(frozenset({CODE + 2}))
        script = Script([1, 2, 3])
        for number in range(3):
            exit = bench.run_inline(script)
            assert exit == Breakpoint(CODE + 2), f"stop {number}: {exit.describe()}"
            assert len(script.seen) == number + 1, f"stop {number}: {script.seen}"
            _stepped(bench, script)
        exit = bench.run_inline(script)
        assert isinstance(exit, Halt), exit.describe()
        assert [step[3] for step in script.seen] == [1, 2, 3]


@check
def a_breakpoint_where_a_read_waits(backend: Backend) -> None:
    """A breakpoint behind an instruction with an exit: the answer is taken first."""
    with Bench(
        backend, "p32", bytes.fromhex("8a06ffc0"), regs={"rsi": HOLE}
    ) as bench:  # mov al, [esi]; inc eax
        _needs_breakpoints(bench)
        bench.vcpu.set_breakpoints(frozenset({CODE + 2}))
        exit = bench.expect(MmioRead)
        assert isinstance(exit, MmioRead)
        exit.reply(0x41)
        ended = bench.run()
        assert ended == Breakpoint(CODE + 2), ended.describe()
        assert bench.vcpu.registers().rax == 0x41


@check
def more_breakpoints_than_there_are(backend: Backend) -> None:
    """One more than the capability says is NotSupported, and the ones before stay."""
    has = backend.capabilities.breakpoints
    if has > 64:
        raise NotApplicable(f"this backend keeps {has} breakpoints")
    with Bench(backend, "p32", _PROGRAM) as bench:
        some = frozenset({CODE + 6}) if has else frozenset()
        bench.vcpu.set_breakpoints(some)
        many = frozenset(CODE + at for at in range(has + 1))
        error = raises(NotSupported, lambda: bench.vcpu.set_breakpoints(many), f"{has + 1} breakpoints")
        assert str(error), "a refusal says why"
        if has:
            exit = bench.run()
            assert exit == Breakpoint(CODE + 6), exit.describe()
        bench.vcpu.set_breakpoints(frozenset())
        _ends(bench)
