"""KVM exits through Machine, against the same guest under the run loop of kvm_loop.c.

The C program is compiled on the spot by gcc -O2. Wall time: most of an exit is the
kernel's. The device of either side takes the byte, or answers one. `kvm_port` and `kvm_mmio` are writes.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

from common import WALL, Benchmark, Result, access_loop, compare, machine_with, unusable

_SOURCE = Path(__file__).with_name("kvm_loop.c")
_GOAL = 0.85


def _machine(kind: str, count: int) -> float:
    with machine_with(access_loop(kind, count), "kvm") as machine:
        began = time.perf_counter()
        exit = machine.run()
        seconds = time.perf_counter() - began
        assert exit.kind == "halt", exit
        assert machine.accesses.total == count
    return count / seconds


def _run(name: str, kind: str, goal: float | None, quick: bool) -> list[Result]:
    unit = "exits/s"
    compiler = shutil.which("gcc")
    why = unusable("kvm") or ("" if compiler else "there is no gcc")
    if why:
        return [Result(name=name, unit=unit, backend="kvm", skipped=why)]
    assert compiler is not None
    count = 500 if quick else 40_000
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "kvm_loop")
        subprocess.run([compiler, "-O2", "-o", program, _SOURCE], check=True)

        def in_c() -> float:
            ran = subprocess.run(
                [program, kind, str(count)], check=True, capture_output=True, text=True, timeout=60
            )
            return float(ran.stdout)

        result = compare(
            name,
            lambda: _machine(kind, count),
            in_c,
            unit=unit,
            goal=goal,
            backend="kvm",
            clock=WALL,
            rounds=1 if quick else 15,
        )
    return [result]


BENCHMARKS: dict[str, Benchmark] = {
    name: partial(_run, name, kind, goal)
    for name, kind, goal in (
        ("kvm_port", "port_out", _GOAL),
        ("kvm_mmio", "mmio_write", _GOAL),
        ("kvm_port_in", "port_in", None),
        ("kvm_mmio_read", "mmio_read", None),
    )
}
