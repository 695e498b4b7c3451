"""Machines made, run to HLT and destroyed: how many a second, and what stays behind.

Growth is counted from the 1,000th machine to the last: the allocator, which the process's
other benchmarks have used, has its size then. (In a process of its own, 15,000 machines leave
resident memory where it was.) File descriptors and threads must be as many as before; of
resident memory 2 MiB more are allowed in all, 0.4 KiB a machine over 5,000.
"""

from __future__ import annotations

import gc
import os
import time
from functools import partial
from pathlib import Path

from common import WALL, Benchmark, Result, machine_with, unusable

_WARM, _WARM_QUICK = 1_000, 100
_RSS_LIMIT = 2 << 20


def _held() -> tuple[int, int, int]:
    """File descriptors, threads and resident bytes of this process. Linux only."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return (
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
        pages * os.sysconf("SC_PAGESIZE"),
    )


def _one(backend: str) -> None:
    with machine_with(b"\xf4", backend) as machine:
        exit = machine.run()
        assert exit.kind == "halt", exit


def _run(backend: str, quick: bool) -> list[Result]:
    name = f"machines_{backend}"
    why = unusable(backend) or ("" if Path("/proc/self/statm").exists() else "there is no /proc")
    if why:
        return [Result(name=name, unit="machines/s", backend=backend, skipped=why)]
    count = 200 if quick else 5_000
    for _ in range(_WARM_QUICK if quick else _WARM):
        _one(backend)
    before = _held()
    began = time.perf_counter()
    for _ in range(count):
        _one(backend)
    seconds = time.perf_counter() - began
    after = _held()
    results = [
        Result(
            name=name, unit="machines/s", value=count / seconds, backend=backend, clock=WALL, of=f"{count}"
        )
    ]
    for what, unit, was, now, more in zip(
        ("fds", "threads", "rss"), ("", "", "bytes"), before, after, (0, 0, _RSS_LIMIT), strict=True
    ):
        results.append(
            Result(
                name=f"{name}_{what}",
                unit=unit or what,
                value=now,
                baseline=was,
                ratio=now / was,
                goal=f"value <= baseline + {more}" if more else "value <= baseline",
                met=now <= was + more,
                backend=backend,
                of=f"after {count} machines, before",
            )
        )
    return results


BENCHMARKS: dict[str, Benchmark] = {
    "machines_unicorn": partial(_run, "unicorn"),
    "machines_kvm": partial(_run, "kvm"),
}
