"""Comparing two runs: how many exits a second, and that memory stays flat.

diff_traces  exits compared a second, the comparison alone: chunks as `vmmsim diff` makes them,
             of a trace that is made up. The baseline is comparing the same chunks as lists.
diff_memory  bytes that the process has grown by while 10^7 exits (2 x 10^7 in both traces) were
             compared
diff_guest   exits a second of a whole comparison, both guests included; the baseline is one run alone
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from common import CPU, Benchmark, Result, access_loop, compare, unusable

from vmmsim import MachineConfig
from vmmsim.diff.lockstep import Step, TraceComparer
from vmmsim.diff.session import diff
from vmmsim.diff.sides import Side, Workload
from vmmsim.loaders.flat import load_flat

_CHUNK = 8192
_GOAL_RATE = 500_000
#: Bytes: chunks, the window and what the allocator keeps.
_GOAL_GROWTH = 8 << 20


def trace(exits: int, first: int = 0) -> Iterator[list[Step]]:
    """Chunks of a made-up trace: each exit another value, as a device's registers have."""
    for at in range(first, exits, _CHUNK):
        count = min(_CHUNK, exits - at)
        yield [(n & 3, 0x3F8 + (n & 7), 1, n * 7 & 0xFF) for n in range(at, at + count)]


def _traces(quick: bool) -> list[Result]:
    exits = 20_000 if quick else 1_000_000
    # Two traces: what is one object is the same without a look.
    chunks, others = list(trace(exits)), list(trace(exits))

    def ours() -> float:
        pairs = [(list(mine), list(theirs)) for mine, theirs in zip(chunks, others, strict=True)]
        comparer = TraceComparer()
        began = time.thread_time()
        for left, right in pairs:
            assert comparer.feed(left, right)
        return exits / (time.thread_time() - began)

    def baseline() -> float:
        began = time.thread_time()
        assert all(left == right for left, right in zip(chunks, others, strict=True))
        return exits / (time.thread_time() - began)

    result = compare(
        "diff_traces", ours, baseline, unit="exits/s", goal=None, backend="", clock=CPU, rounds=3
    )
    result.goal = f"value >= {_GOAL_RATE:,}"
    result.met = (result.value or 0) >= _GOAL_RATE
    return [result]


def _memory(quick: bool) -> list[Result]:
    exits = 40_000 if quick else 10_000_000
    comparer = TraceComparer()
    before = None
    for number, (left, right) in enumerate(zip(trace(exits), trace(exits), strict=True)):
        assert comparer.feed(left, right)
        if number == 1:  # what is kept at all is there now
            before = _resident()
    assert comparer.count == exits
    now = _resident()
    if before is None or now is None:
        return [Result(name="diff_memory", unit="bytes", skipped="/proc/self/statm is not there")]
    grown = max(now - before, 0)
    return [
        Result(
            name="diff_memory", unit="bytes", value=grown, goal=f"value <= {_GOAL_GROWTH}",
            met=grown <= _GOAL_GROWTH, of=f"{exits} exits",
        )
    ]  # fmt: skip


def _resident() -> int | None:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return None


def _guest(quick: bool) -> list[Result]:
    reason = unusable("unicorn")
    if reason:
        return [Result(name="diff_guest", unit="exits/s", backend="unicorn", skipped=reason)]
    exits = 2_000 if quick else 200_000
    load = Workload(
        name="loop",
        config=MachineConfig(memory=1 << 20),
        image=load_flat(access_loop("port_out", exits), name="loop"),
    )
    side = Side(backend="unicorn")

    def ours() -> float:
        began = time.thread_time()
        assert diff(load, side, side).same
        return exits / (time.thread_time() - began)

    def baseline() -> float:
        began = time.thread_time()
        with load.open(side) as machine:
            machine.run()
        return exits / (time.thread_time() - began)

    return [
        compare(
            "diff_guest", ours, baseline, unit="exits/s", goal=None, backend="unicorn", clock=CPU, rounds=2
        )
    ]


BENCHMARKS: dict[str, Benchmark] = {"diff_traces": _traces, "diff_memory": _memory, "diff_guest": _guest}
