"""Checks: the rules between an exit and its reply, and what can be seen in between."""

from __future__ import annotations

from functools import partial

import msgspec

from ..backends.base import Backend
from ..errors import UsageError
from ..exits import Halt, MmioRead, MmioWrite, PortRead, PortWrite
from .bench import CODE, DATA, HOLE, Bench, Script
from .checks import per_mode, raises, registry

__all__ = ["CHECKS"]

CHECKS, check = registry()

_IN = bytes.fromhex("e460")  # in al, 0x60
_LOAD = bytes.fromhex("8a06")  # mov al, [esi]
_ADD = bytes.fromhex("830605")  # add dword [esi], 5


@check
def an_unanswered_read_stops_the_next_run(backend: Backend) -> None:
    """run() after an unanswered read is a UsageError; the read can be answered after that."""
    for code, kind in ((_IN, PortRead), (_LOAD, MmioRead)):
        with Bench(backend, "p32", code, regs={"rsi": HOLE}) as bench:
            exit = bench.expect(kind)
            assert isinstance(exit, (PortRead, MmioRead))
            raises(UsageError, bench.vcpu.run, "run() with an unanswered read")
            raises(
                UsageError, lambda: bench.vcpu.run_inline(Script()), "run_inline() with an unanswered read"
            )
            exit.reply(0x5A)
            bench.expect(Halt, rip=CODE + 3)
            assert bench.vcpu.registers().rax == 0x5A


@check
def a_reply_is_given_once_and_fits(backend: Backend) -> None:
    """Twice, too wide, or read before it is there: UsageError, and the right reply still works."""
    with Bench(backend, "p32", _IN) as bench:
        exit = bench.expect(PortRead)
        assert isinstance(exit, PortRead)
        raises(UsageError, lambda: exit.value, "the value before the reply")
        raises(UsageError, lambda: exit.reply(0x100), "a reply of 9 bits to a 1-byte read")
        raises(UsageError, lambda: exit.reply(-1), "a negative reply")
        exit.reply(0x5A)
        raises(UsageError, lambda: exit.reply(0x5A), "a second reply")
        bench.expect(Halt)
        assert bench.vcpu.registers().rax == 0x5A
        assert exit.value == 0x5A, "the value can be read later"


@check
def state_at_an_unanswered_read(backend: Backend) -> None:
    """Registers show the CPU before the instruction; setting them is a UsageError."""
    for code, kind in ((_IN, PortRead), (_LOAD, MmioRead), (_ADD, MmioRead)):
        with Bench(backend, "p32", code, regs={"rsi": HOLE, "rax": 0x11223344}) as bench:
            before = bench.vcpu.registers()
            exit = bench.expect(kind)
            assert isinstance(exit, (PortRead, MmioRead))
            seen = bench.vcpu.registers()
            assert seen == before, f"{kind.kind}: registers are {seen}"
            state = bench.vcpu.state()
            assert state.rip == CODE
            raises(
                UsageError, partial(bench.vcpu.set_registers, before), "set_registers at an unanswered read"
            )
            raises(UsageError, partial(bench.vcpu.set_state, state), "set_state at an unanswered read")
            exit.reply(0x5A)


@check
def a_reply_completes_the_instruction(backend: Backend) -> None:
    """After the reply registers() shows the instruction done, and setting them is possible."""
    for code, kind in ((_IN, PortRead), (_LOAD, MmioRead)):
        with Bench(backend, "p32", code + b"\x90", regs={"rsi": HOLE, "rax": 0x11223344}) as bench:
            exit = bench.expect(kind)
            assert isinstance(exit, (PortRead, MmioRead))
            exit.reply(0x5A)
            registers = bench.vcpu.registers()
            assert registers.rip == CODE + 2, f"{kind.kind}: rip {registers.rip:#x}"
            assert registers.rax == 0x1122335A, f"{kind.kind}: rax {registers.rax:#x}"
            bench.set(rbx=7, rip=CODE + 3)
            bench.expect(Halt, rip=CODE + 4)
            assert bench.vcpu.registers().rbx == 7


@check
def state_can_be_replaced_after_a_reply(backend: Backend) -> None:
    """set_state after a reply holds: nothing of the completed instruction comes back."""
    with Bench(backend, "p32", _IN, regs={"rax": 1}) as bench:
        start = bench.vcpu.state()
        exit = bench.expect(PortRead)
        assert isinstance(exit, PortRead)
        exit.reply(0x5A)
        bench.vcpu.set_state(start)
        assert bench.vcpu.registers() == msgspec.convert(
            {name: getattr(start, name) for name in bench.vcpu.registers().__struct_fields__},
            type(bench.vcpu.registers()),
        )
        again = bench.expect(PortRead)
        assert isinstance(again, PortRead)
        again.reply(0x77)
        bench.expect(Halt)
        assert bench.vcpu.registers().rax == 0x77


@check
def a_write_exit_is_behind_its_instruction(backend: Backend) -> None:
    """A write needs no reply, and the CPU is seen after the instruction."""
    # out 0x61, al; mov [esi], eax
    with Bench(backend, "p32", bytes.fromhex("e6618906"), regs={"rsi": HOLE, "rax": 5}) as bench:
        bench.expect(PortWrite, rip=CODE + 2)
        bench.expect(MmioWrite, rip=CODE + 4)
        bench.expect(Halt, rip=CODE + 5)


@check
def looking_between_read_and_write(backend: Backend) -> None:
    """In a read-modify-write a look after the reply finishes it; the write comes from the next run."""
    with Bench(backend, "p32", _ADD, regs={"rsi": HOLE}) as bench:
        exit = bench.expect(MmioRead)
        assert isinstance(exit, MmioRead)
        exit.reply(0x10)
        assert bench.vcpu.registers().rip == CODE + 3
        assert bench.vcpu.state().rip == CODE + 3
        write = bench.run()
        assert write == MmioWrite(HOLE, 4, 0x15), write.describe()
        bench.expect(Halt, rip=CODE + 4)


@check
def looking_half_way_through_a_page_crossing_load(backend: Backend) -> None:
    """Between the two pieces of a load nothing is lost and nothing is done twice."""
    with Bench(backend, "l64", bytes.fromhex("488b06"), regs={"rsi": 0x8FFD}) as bench:
        first = bench.expect(MmioRead)
        assert isinstance(first, MmioRead)
        first.reply(0x030201)
        assert bench.vcpu.registers().rax == 0, "the load is not done"
        second = bench.expect(MmioRead)
        assert isinstance(second, MmioRead)
        assert (second.address, second.size) == (0x9000, 5), second.describe()
        second.reply(0x0807060504)
        bench.expect(Halt)
        assert bench.vcpu.registers().rax == 0x0807060504030201


@check
def memory_is_settled_when_the_host_looks(backend: Backend) -> None:
    """After the reply to `insb` the byte is in guest memory."""
    with Bench(backend, "p32", b"\x6c", regs={"rdi": DATA, "rdx": 0x60}) as bench:
        exit = bench.expect(PortRead)
        assert isinstance(exit, PortRead)
        assert bench.memory.read(DATA, 1) == b"\0"
        exit.reply(0x41)
        assert bench.memory.read(DATA, 1) == b"A"
        bench.expect(Halt)


@per_mode(CHECKS, "p32", "l64u")
def the_two_ways_to_run_can_be_mixed(backend: Backend, mode: str) -> None:
    """run() and run_inline() take turns on one vCPU and make one sequence of accesses."""
    code = bytes.fromhex("e460e661") * 4 + b"\xe6\x62"
    with Bench(backend, mode, code) as bench:
        from ..exits import Cancelled

        script = Script([1, 2, 3, 4])
        script.on_access = lambda number: bench.vcpu.stop_here(Cancelled()) if number % 2 else None
        values = []
        for value in (0x11, 0x22):
            exit = bench.expect(PortRead)
            assert isinstance(exit, PortRead)
            exit.reply(value)
            write = bench.expect(PortWrite)
            assert isinstance(write, PortWrite)
            values.append(write.value)
            bench.run_inline(script)
        assert values == [0x11, 0x22], f"the guest wrote {values}"
        assert script.seen == [
            ("port_read", 0x60, 1, 1),
            ("port_write", 0x61, 1, 1),
            ("port_read", 0x60, 1, 2),
            ("port_write", 0x61, 1, 2),
        ], f"inline saw {script.seen}"
        assert bench.expect(PortWrite) == PortWrite(0x62, 1, 2)
