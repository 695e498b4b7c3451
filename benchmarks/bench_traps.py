"""Exceptions, interrupts by INT n and system calls: round trips a second, on Unicorn.

One round trip is the trap into the guest's handler and the way back (IRETQ, SYSRETQ), in
64-bit code. The goals are rates, not ratios: Unicorn by itself delivers none.
"""

from __future__ import annotations

import time
from functools import partial

from common import CODE, CPU, Benchmark, Result, engine, machine_with, unusable

from vmmsim.cpu.descriptors import Gate, encode_gate
from vmmsim.cpu.msrs import LSTAR, STAR
from vmmsim.cpu.state import Table

_IDT, _HANDLER = 0x20000, 0x21000

#: name -> (mode, vector, code with the count at 78563412, handler).
_GUESTS = {
    # mov ecx, N; again: int 0x80; dec ecx; jnz again; hlt | iretq
    "int": ("l64", 0x80, "b978563412 cd80 ffc9 75fa f4", "48cf"),
    # mov ecx, N; mov rsi, 1 << 32; again: mov al, [rsi]; dec ecx; jnz again; hlt
    # add qword ptr [rsp + 8], 2; add rsp, 8; iretq
    "page_fault": (
        "l64", 14, "b978563412 48be0000000001000000 8a06 ffc9 75fa f4", "488344240802 4883c408 48cf",
    ),
    # mov ebx, N; again: syscall; dec ebx; jnz again; out 0xf4, al | sysretq
    "syscall": ("l64u", None, "bb78563412 0f05 ffcb 75fa e6f4", "480f07"),
}  # fmt: skip


def trap_rate(what: str, count: int, way: str) -> float:
    mode, vector, text, handler = _GUESTS[what]
    code = bytes.fromhex(text).replace(bytes.fromhex("78563412"), count.to_bytes(4, "little"))
    with engine(way), machine_with(code, "unicorn", mode=mode) as machine:
        machine.memory.write(_HANDLER, bytes.fromhex(handler))
        state = machine.vcpu.state()
        if vector is not None:
            gate = Gate(state.cs.selector, _HANDLER, 14)
            machine.memory.write(_IDT + 16 * vector, encode_gate(gate, long=True))
            state.idt = Table(_IDT, 0xFFF)
        state.efer |= 1
        state.msrs[STAR], state.msrs[LSTAR] = 0x23 << 48 | 0x10 << 32, _HANDLER
        machine.vcpu.set_state(state)
        began = time.thread_time()
        exit = machine.run()
        seconds = time.thread_time() - began
        assert exit.kind in ("halt", "guest_exit"), exit
        assert machine.vcpu.registers().rip in range(CODE, CODE + len(code) + 1)
    return count / seconds


def _run(name: str, what: str, way: str, goal: int | None, quick: bool) -> list[Result]:
    if why := unusable("unicorn"):
        return [Result(name=name, unit="round trips/s", backend="unicorn", skipped=why)]
    count = 500 if quick else (1_000_000 if way == "native" and what != "syscall" else 100_000)
    value = max(trap_rate(what, count, way) for _ in range(1 if quick else 5))
    return [
        Result(
            name=name,
            unit="round trips/s",
            value=value,
            goal="" if goal is None else f"value >= {goal:,}",
            met=None if goal is None else value >= goal,
            backend=f"unicorn/{way}",
            clock=CPU,
            of="one run" if quick else "best of 5",
        )
    ]


BENCHMARKS: dict[str, Benchmark] = {
    f"trap_{what}_{way}": partial(_run, f"trap_{what}_{way}", what, way, goal)
    for what, way, goal in (
        ("int", "native", 1_000_000),
        ("page_fault", "native", 1_000_000),
        ("syscall", "native", None),
        ("int", "portable", 50_000),
        ("page_fault", "portable", 50_000),
        ("syscall", "portable", 80_000),
    )
}
