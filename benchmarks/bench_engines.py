"""Unicorn's native engine against the portable one, in turn in the same run: what its machine code is worth.

It runs on each host that has a native engine, an emulated one too. `engines_trap_*` are the round trips of
bench_traps; `engines_exit_*` are accesses to a port, answered inline, and by `vcpu.run()` one at a time. For
these it is the CPU time of all threads: the portable engine hands each exit of `run()` over to another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from bench_traps import trap_rate
from common import CPU, Benchmark, Result, access_loop, compare, engine, machine_with, unusable

from vmmsim.exits import Access

_ROUNDS = 3


def _inline(count: int, way: str) -> float:
    with engine(way), machine_with(access_loop("port_out", count), "unicorn") as machine:
        began = time.process_time()
        machine.run()
        seconds = time.process_time() - began
        assert machine.accesses.total == count
    return count / seconds


def _one_by_one(count: int, way: str) -> float:
    with engine(way), machine_with(access_loop("port_out", count), "unicorn") as machine:
        seen = 0
        began = time.process_time()
        while isinstance(machine.vcpu.run(), Access):
            seen += 1
        seconds = time.process_time() - began
    assert seen == count
    return count / seconds


def _run(
    name: str,
    unit: str,
    rate: Callable[[int, str], float],
    counts: tuple[int, int],
    goal: float | None,
    quick: bool,
) -> list[Result]:
    why = unusable("unicorn")
    if not why:
        from vmmsim.backends.unicorn_native.vcpu import native_usable

        usable, reason = native_usable()
        why = "" if usable else reason
    if why:
        return [Result(name=name, unit=unit, backend="unicorn", skipped=why)]
    native, portable = (500, 500) if quick else counts
    return [
        compare(
            name,
            lambda: rate(native, "native"),
            lambda: rate(portable, "portable"),
            unit=unit,
            goal=goal,
            backend="unicorn/native against unicorn/portable",
            clock=CPU,
            rounds=1 if quick else _ROUNDS,
        )
    ]


_TRAPS, _EXITS = "round trips/s", "accesses/s"
BENCHMARKS: dict[str, Benchmark] = {
    name: partial(_run, name, unit, rate, counts, goal)
    for name, unit, rate, counts, goal in (
        ("engines_trap_int", _TRAPS, partial(trap_rate, "int"), (50_000, 3_000), 5.0),
        ("engines_trap_page_fault", _TRAPS, partial(trap_rate, "page_fault"), (50_000, 3_000), 5.0),
        ("engines_trap_syscall", _TRAPS, partial(trap_rate, "syscall"), (10_000, 3_000), None),
        ("engines_exit_inline", _EXITS, _inline, (50_000, 20_000), None),
        ("engines_exit_one_by_one", _EXITS, _one_by_one, (20_000, 3_000), None),
    )
}
