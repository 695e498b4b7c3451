"""The whole `pc` machine: what its timer costs a guest that computes, what a halted guest
costs the host, and guest code that makes no accesses.

CPU time is the process's, so that the threads that wait for the clock are in it. The timer
runs by the host's clock: on a busy host a second of CPU time has more than 1,000 ticks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial

from bench_guest_code import ALU, MIX, bare, count_in
from common import CODE, CPU, Benchmark, Result, compare, engine, unusable

from vmmsim import Machine
from vmmsim.budget import seconds
from vmmsim.cpu.descriptors import Gate, encode_gate
from vmmsim.cpu.state import Table
from vmmsim.loaders.flat import load_flat

_IDT, _HANDLER, _VECTOR = 0x20000, 0x21000, 0x20

#: In 64-bit code: the 8259A's four ICWs (vectors from 20h) and its mask, with IRQ 0 open.
_PIC = bytes.fromhex("b011e620b020e621b004e621b001e621b0fee621")
#: Counter 0 of the 8254, mode 2, 1,193 ticks: 1 kHz. And as many bytes of NOPs.
_PIT = bytes.fromhex("b034e643b0a9e640b004e640")
_NO_PIT = b"\x90" * len(_PIT)
#: xor ebp, ebp; sti; then the loop of ALU; cli; hlt.
_SPIN = bytes.fromhex("31edfb") + ALU[0].replace(b"\xf4", b"\xfa\xf4")
#: push rax; inc ebp; mov al, 0x20; out 0x20, al; pop rax; iretq
_TICK = bytes.fromhex("50ffc5b020e6205848cf")
#: mov al, 0xff; out 0x21, al; sti; again: hlt; jmp again
_IDLE = bytes.fromhex("b0ffe621fbf4ebfd")


@contextlib.contextmanager
def _pc(code: bytes, backend: str) -> Iterator[Machine]:
    """`backend` may name Unicorn's engine: unicorn/native."""
    name, _, way = backend.partition("/")
    with (
        engine(way) if way else contextlib.nullcontext(),
        Machine(backend=name, model="pc", memory=1 << 20, without=("char-in",)) as machine,
    ):
        machine.load(load_flat(code, name="benchmark", load_address=CODE, mode="l64"))
        yield machine


def _spin(backend: str, turns: int, timer: bool) -> float:
    code = _PIC + (_PIT if timer else _NO_PIT) + count_in(_SPIN, turns)
    with _pc(code, backend) as machine:
        machine.memory.write(_HANDLER, _TICK)
        state = machine.vcpu.state()
        gate = Gate(state.cs.selector, _HANDLER, 14)
        machine.memory.write(_IDT + 16 * _VECTOR, encode_gate(gate, long=True))
        state.idt = Table(_IDT, 0xFFF)
        machine.vcpu.set_state(state)
        began, wall = time.process_time(), time.perf_counter()
        exit = machine.run()
        used, wall = time.process_time() - began, time.perf_counter() - wall
        assert exit.kind == "halt", exit
        ticks = machine.vcpu.registers().rbp
        # Late ticks of a busy host come together as one.
        assert (ticks > 300 * wall - 50) if timer else not ticks, (ticks, wall)
    return turns / used


def _timer(backend: str, turns: int, quick: bool) -> list[Result]:
    name = f"timer_1khz_{backend.replace('/', '_')}"
    if why := unusable(backend.partition("/")[0]):
        return [Result(name=name, unit="turns/s", backend=backend, skipped=why)]
    turns = 1_000 if quick else turns
    return [
        compare(
            name,
            lambda: _spin(backend, turns, True),
            lambda: _spin(backend, turns, False),
            unit="turns/s",
            goal=0.9,
            backend=backend,
            clock=CPU,
            rounds=1 if quick else 5,
        )
    ]


def _idle(backend: str, quick: bool) -> list[Result]:
    name = f"idle_hlt_{backend.replace('/', '_')}"
    if why := unusable(backend.partition("/")[0]):
        return [Result(name=name, unit="CPU seconds", backend=backend, skipped=why)]
    with _pc(_IDLE, backend) as machine:
        began, wall = time.process_time(), time.perf_counter()
        exit = machine.run(budget=seconds(0.2 if quick else 5))
        used, wall = time.process_time() - began, time.perf_counter() - wall
        assert exit.kind == "budget", exit
    return [
        Result(
            name=name,
            unit="CPU seconds",
            value=used,
            baseline=wall,
            ratio=used / wall,
            goal="ratio <= 0.01",
            met=used / wall <= 0.01,
            backend=backend,
            clock=CPU,
            of="one run, of its wall time",
        )
    ]


def _machine(code: bytes, insns: int) -> float:
    with _pc(code, "unicorn/native") as machine:
        began = time.thread_time()
        exit = machine.run()
        seconds = time.thread_time() - began
    assert exit.kind == "halt", exit
    return insns / seconds


def _code(name: str, guest: tuple[bytes, int], turns: int, quick: bool) -> list[Result]:
    if why := unusable("unicorn"):
        return [Result(name=name, unit="instructions/s", backend="unicorn", skipped=why)]
    turns = 10_000 if quick else turns
    code, insns = count_in(guest[0], turns), 1 + guest[1] * turns
    return [
        compare(
            name,
            lambda: _machine(code, insns),
            lambda: bare(code, insns),
            unit="instructions/s",
            goal=0.97,
            backend="unicorn/native",
            clock=CPU,
            rounds=1 if quick else 7,
        )
    ]


BENCHMARKS: dict[str, Benchmark] = {
    "timer_1khz_unicorn_native": partial(_timer, "unicorn/native", 300_000_000),
    "timer_1khz_unicorn_portable": partial(_timer, "unicorn/portable", 300_000_000),
    "timer_1khz_kvm": partial(_timer, "kvm", 100_000),
    "idle_hlt_unicorn_native": partial(_idle, "unicorn/native"),
    "idle_hlt_unicorn_portable": partial(_idle, "unicorn/portable"),
    "idle_hlt_kvm": partial(_idle, "kvm"),
    "guest_code_pc_alu": partial(_code, "guest_code_pc_alu", ALU, 100_000_000),
    "guest_code_pc_mix": partial(_code, "guest_code_pc_mix", MIX, 3_000_000),
}
