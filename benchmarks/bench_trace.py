"""What a trace costs: the run that is recorded, and what is made of it.

The guest is bound by its exits: it polls the line status of the UART and writes a character, again and
again, three instructions an exit, in real mode. The baseline is the same run without a trace, in turn.

trace_record_*  the run with a recorder, without looks: the path of each exit. Making the records when it is
                over is not in it, and a line of its own
trace_looks_*   the same with looks as they are by default, of a run so short that each exit has one
trace_plain_*   the run with a plain trace, as run --trace writes it, to a file in memory
trace_bare_*    as trace_record, of a loop of OUT to a device that does nothing: the cheapest exit
trace_expand    records a second that are made of what the recorder kept
trace_page      seconds from the records of 100,000 exits to a page
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from common import CPU, WALL, Benchmark, Result, access_loop, compare, engine, machine_with, unusable

from vmmsim import Machine
from vmmsim.loaders import load_bytes
from vmmsim.streams import NullSink
from vmmsim.trace import Header, Trace, TraceWriter
from vmmsim.trace.recorder import TraceRecorder

_CPUS = {"kvm": ("kvm", ""), "native": ("unicorn", "native"), "portable": ("unicorn", "portable")}
_EXITS = {"kvm": 20_000, "native": 60_000, "portable": 40_000}
_GOAL = 0.5
_PAGE_EXITS, _PAGE_SECONDS = 100_000, 5.0


def _printing(turns: int) -> bytes:
    """mov ecx, turns; again: mov dx, 0x3fd; poll: in al, dx; test al, 0x20; jz poll; mov dx, 0x3f8;
    mov al, '.'; out dx, al; dec ecx; jnz again; hlt. Two exits a turn."""
    loop = bytes.fromhex("bafd03 ec a820 74fb baf803 b02e ee 6649 75ee f4".replace(" ", ""))
    return b"\x66\xb9" + turns.to_bytes(4, "little") + loop


def _machine(code: bytes, backend: str, bare: bool) -> Machine:
    if bare:
        return machine_with(code, backend)
    machine = Machine(backend=backend, memory=1 << 20, sink=NullSink())
    machine.load(load_bytes(code, name="printing", load_address=0x7C00, mode="real"))
    return machine


def _run(cpu: str, exits: int, begin: Callable[[Machine], Any], *, bare: bool = False) -> float:
    """Exits a second of a run behind `begin`."""
    backend, kind = _CPUS[cpu]
    code = access_loop("port_out", exits) if bare else _printing(exits // 2)
    with engine(kind or "native"), _machine(code, backend, bare) as machine:
        kept = begin(machine)
        began = time.thread_time()
        machine.run()
        seconds = time.thread_time() - began
        assert machine.accesses.total >= exits - 1
        del kept
    return exits / seconds


def _nothing(machine: Machine) -> None:
    return None


def _plain(machine: Machine) -> None:
    writer = TraceWriter(io.BytesIO(), Header(guest="g", backend="b", provenance="p"))
    machine.observe(writer)


def _recorder(looks: str, machine: Machine) -> TraceRecorder:
    return TraceRecorder(machine, limit=1_000_000, looks=looks)


def _cost(
    name: str, cpu: str, begin: Callable[[Machine], Any], goal: float | None, quick: bool
) -> list[Result]:
    backend = _CPUS[cpu][0]
    if why := unusable(backend):
        return [Result(name=name, unit="exits/s", backend=backend, skipped=why)]
    bare = "bare" in name
    exits = 400 if quick else 2_000 if "looks" in name else _EXITS[cpu]
    return [
        compare(
            name,
            lambda: _run(cpu, exits, begin, bare=bare),
            lambda: _run(cpu, exits, _nothing, bare=bare),
            unit="exits/s",
            goal=goal,
            backend=backend,
            clock=CPU,
            rounds=1 if quick else 9,
        )
    ]


def _recorded(exits: int) -> tuple[float, Trace]:
    """Seconds that the records take, and they."""
    with engine("native"), _machine(_printing(exits // 2), "unicorn", False) as machine:
        recorder = TraceRecorder(machine, limit=exits)
        end = machine.run()
        began = time.perf_counter()
        trace = recorder.finish(end)
        return time.perf_counter() - began, trace


def _expand(quick: bool) -> list[Result]:
    if why := unusable("unicorn"):
        return [Result(name="trace_expand", unit="exits/s", backend="unicorn", skipped=why)]
    exits = 1_000 if quick else _PAGE_EXITS
    seconds, trace = _recorded(exits)
    return [
        Result(
            name="trace_expand", unit="exits/s", value=len(trace.exits) / seconds, backend="unicorn",
            clock=WALL, of=f"{len(trace.exits)} exits",
        )
    ]  # fmt: skip


def _page(quick: bool) -> list[Result]:
    try:
        from vmmsim.explore import page
    except ImportError:
        return [Result(name="trace_page", unit="s", skipped="there is no exit explorer")]
    if why := unusable("unicorn"):
        return [Result(name="trace_page", unit="s", backend="unicorn", skipped=why)]
    _, trace = _recorded(1_000 if quick else _PAGE_EXITS)
    began = time.perf_counter()
    size = len(page(trace))
    seconds = time.perf_counter() - began
    return [
        Result(
            name="trace_page", unit="s", value=seconds, goal=f"value <= {_PAGE_SECONDS:g}",
            met=seconds <= _PAGE_SECONDS, backend="unicorn", clock=WALL,
            of=f"{len(trace.exits)} exits, {size >> 10} KiB",
        )
    ]  # fmt: skip


_WAYS: dict[str, tuple[Callable[[Machine], Any], float | None]] = {
    "record": (partial(_recorder, "none"), _GOAL),
    "bare": (partial(_recorder, "none"), None),
    "looks": (partial(_recorder, "auto"), None),
    "plain": (_plain, _GOAL),
}

BENCHMARKS: dict[str, Benchmark] = {
    **{
        f"trace_{way}_{cpu}": partial(_cost, f"trace_{way}_{cpu}", cpu, begin, goal)
        for way, (begin, goal) in _WAYS.items()
        for cpu in _CPUS
    },
    "trace_expand": _expand,
    "trace_page": _page,
}
