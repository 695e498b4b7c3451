"""Whole processes, against a bare interpreter start (`python -c pass`). Wall time, medians.

`ratio` is value / baseline; the goal is of the difference, in milliseconds.
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

from common import WALL, Benchmark, Result, unusable


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    return time.perf_counter() - began


def _vmmsim(*arguments: str) -> list[str]:
    """The installed command where there is one, as a user types it."""
    script = Path(sys.executable).with_name("vmmsim")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "vmmsim"]
    return [*start, *arguments]


def _run(name: str, command: list[str], limit: float, backend: str, quick: bool) -> list[Result]:
    if backend and (why := unusable(backend)):
        return [Result(name=name, unit="ms", backend=backend, skipped=why)]
    rounds = 1 if quick else 15
    bare = [sys.executable, "-c", "pass"]
    _seconds(command)  # compiles what is not compiled yet
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        times[0].append(_seconds(command) * 1e3)
        times[1].append(_seconds(bare) * 1e3)
    value, baseline = median(times[0]), median(times[1])
    return [
        Result(
            name=name,
            unit="ms",
            value=value,
            baseline=baseline,
            ratio=value / baseline,
            goal=f"value <= baseline + {limit:g}",
            met=value <= baseline + limit,
            backend=backend,
            clock=WALL,
            of=f"median of {rounds}",
        )
    ]


BENCHMARKS: dict[str, Benchmark] = {
    "import_vmmsim": partial(_run, "import_vmmsim", [sys.executable, "-c", "import vmmsim"], 60, ""),
    **{
        f"run_loop_{backend}": partial(
            _run, f"run_loop_{backend}", _vmmsim("run", "loop", "--backend", backend), 250, backend
        )
        for backend in ("unicorn", "kvm")
    },
}
