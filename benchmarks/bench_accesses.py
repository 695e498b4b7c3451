"""Accesses on Unicorn, against an empty callback of Unicorn's own Python binding.

The guest is one loop of `in`, `out`, a load or a store, three instructions a turn, real
mode. The binding's side is `hook_add(UC_HOOK_INSN, lambda ...)` for ports and
`mmio_map(lambda ..., lambda ...)` for MMIO, which does nothing but answer; ours goes
through bus and device, with true widths, counted and remembered for a post-mortem.

`inline_*` is `machine.run()`. `run_exit_*` is `vcpu.run()`, one exit at a time: the loop
that KVM programs have, which leaves the engine at each access.

`portable_*` is `machine.run()` on the portable engine.

`*_mmio_write_zero` stores 0, which is a case of its own on Unicorn: INS stores one before it
reads its port, and that one is no access of the guest.
"""

from __future__ import annotations

import time
from functools import partial

from common import (
    ACCESSES,
    CPU,
    HOLE,
    Benchmark,
    Result,
    access_loop,
    compare,
    engine,
    machine_with,
    unusable,
)

from vmmsim.exits import Access

_GOALS = {"port_out": 1.0, "port_in": 1.0, "mmio_write": 0.6, "mmio_write_zero": 0.6, "mmio_read": 0.6}
_RUN_EXIT_GOAL = 0.1
#: Where the binding's engine has the guest's code: its page 0; HOLE is not mapped as memory.
_AT = 0


def _loop(kind: str, count: int) -> bytes:
    if kind == "mmio_write_zero":
        return access_loop("mmio_write", count, al=0)
    return access_loop(kind, count)


def _inline(kind: str, count: int) -> float:
    with machine_with(_loop(kind, count), "unicorn") as machine:
        began = time.thread_time()
        machine.run()
        seconds = time.thread_time() - began
        assert machine.accesses.total == count
    return count / seconds


def _one_by_one(kind: str, count: int) -> float:
    with machine_with(_loop(kind, count), "unicorn") as machine:
        run = machine.vcpu.run
        seen = 0
        began = time.thread_time()
        while isinstance(exit := run(), Access):
            if not exit.is_write:
                exit.reply(0x41)  # type: ignore[call-arg]
            seen += 1
        seconds = time.thread_time() - began
    assert seen == count
    return count / seconds


def _binding(kind: str, count: int) -> float:
    from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_MODE_16
    from unicorn.unicorn_py3.unicorn import Uc
    from unicorn.x86_const import UC_X86_INS_IN, UC_X86_INS_OUT

    code = _loop(kind, count)
    uc = Uc(UC_ARCH_X86, UC_MODE_16)
    uc.ctl_set_tcg_buffer_size(16 << 20)
    uc.mem_map(_AT, 0x1000)
    uc.mem_write(_AT, code)
    if kind == "port_out":
        uc.hook_add(UC_HOOK_INSN, lambda *_: None, None, 1, 0, UC_X86_INS_OUT)
    elif kind == "port_in":
        uc.hook_add(UC_HOOK_INSN, lambda *_: 0x41, None, 1, 0, UC_X86_INS_IN)
    else:
        uc.mmio_map(HOLE, 0x1000, lambda *_: 0x41, None, lambda *_: None, None)
    began = time.thread_time()
    uc.emu_start(_AT, _AT + len(code) - 1)
    return count / (time.thread_time() - began)


def _run_inline(kind: str, quick: bool) -> list[Result]:
    name = f"unicorn_{kind}"
    if why := unusable("unicorn"):
        return [Result(name=name, unit="accesses/s", backend="unicorn", skipped=why)]
    count = 2_000 if quick else 200_000
    result = compare(
        name,
        lambda: _inline(kind, count),
        lambda: _binding(kind, count),
        unit="accesses/s",
        goal=_GOALS[kind],
        backend="unicorn",
        clock=CPU,
        rounds=1 if quick else 9,
    )
    return [result]


def _portable(kind: str, quick: bool) -> list[Result]:
    name = f"portable_{kind}"
    if why := unusable("unicorn"):
        return [Result(name=name, unit="accesses/s", backend="unicorn", skipped=why)]
    ours, theirs = (500, 2_000) if quick else (30_000, 200_000)

    def inline() -> float:
        with engine("portable"):
            return _inline(kind, ours)

    result = compare(
        name,
        inline,
        lambda: _binding(kind, theirs),
        unit="accesses/s",
        goal=None,
        backend="unicorn",
        clock=CPU,
        rounds=1 if quick else 7,
    )
    return [result]


def _run_exits(quick: bool) -> list[Result]:
    unit = "exits/s"
    if why := unusable("unicorn"):
        return [Result(name="unicorn_run_exit", unit=unit, backend="unicorn", skipped=why)]
    results = [
        compare(
            f"unicorn_run_exit_{kind}",
            partial(_one_by_one, kind, 500 if quick else 60_000),
            partial(_binding, kind, 2_000 if quick else 200_000),
            unit=unit,
            goal=_RUN_EXIT_GOAL,
            backend="unicorn",
            clock=CPU,
            rounds=1 if quick else 7,
        )
        for kind in _GOALS
    ]
    worst = min(results, key=lambda r: r.ratio or 0.0)
    summary = Result(**{**worst.json(), "name": "unicorn_run_exit"})
    summary.of += f"; the worst: {worst.name.removeprefix('unicorn_run_exit_')}"
    return [*results, summary]


BENCHMARKS: dict[str, Benchmark] = {
    **{f"unicorn_{kind}": partial(_run_inline, kind) for kind in _GOALS},
    **{f"portable_{kind}": partial(_portable, kind) for kind in ACCESSES},
    "unicorn_run_exit": _run_exits,
}
