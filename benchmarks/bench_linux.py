"""Linux to the end of busybox's script, against `qemu-system-x86_64 -accel tcg` (Debian's package).

Whole processes, by wall time, with the same kernel, initial RAM disk and command line; the
script sleeps for one second. vmmsim's bytecode is compiled before, as an installation has it,
also where PYTHONDONTWRITEBYTECODE is set. The kernels are those of ../shared/guests/linux, which not
every checkout has beside it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

from common import WALL, Benchmark, Result, unusable

_LINUX = Path(__file__).resolve().parents[2] / "shared" / "guests" / "linux"
_APPEND = "console=ttyS0 panic=-1 reboot=k"
#: bits -> (initial RAM disk, options of QEMU).
_GUESTS = {
    64: ("initrd-busybox64.cpio.gz", ()),
    32: ("initrd-hello32.cpio", ("-M", "isapc", "-cpu", "486")),
}


def _environment(way: str, bytecode: str) -> dict[str, str]:
    environment = {**os.environ, "VMMSIM_UNICORN": way, "PYTHONPYCACHEPREFIX": bytecode}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _seconds(command: list[str], environment: dict[str, str] | None = None) -> float:
    began = time.perf_counter()
    ran = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=True,
        env=environment,
    )
    assert b"Restarting system" in ran.stdout
    return time.perf_counter() - began


def _run(name: str, bits: int, way: str, goal: float, quick: bool) -> list[Result]:
    qemu = shutil.which("qemu-system-x86_64")
    why = unusable("unicorn") or (
        "takes seconds" if quick else
        "no qemu-system-x86_64 here (Debian: qemu-system-x86)" if qemu is None else
        "" if _LINUX.is_dir() else f"no kernels in {_LINUX}"
    )  # fmt: skip
    if why:
        return [Result(name=name, unit="seconds", backend=f"unicorn/{way}", skipped=why)]
    initrd, options = _GUESTS[bits]
    files = ["-m", "128M", "--kernel", str(_LINUX / f"bzImage-tiny{bits}-lz4")]
    files += ["--initrd", str(_LINUX / initrd), "--append", _APPEND]
    ours = [sys.executable, "-m", "vmmsim", "run", "--backend", "unicorn", "--stdin", "none", *files]
    # QEMU takes two dashes as well as one.
    theirs = [str(qemu), "-accel", "tcg", *options, "-display", "none", "-serial", "stdio", "-no-reboot"]
    theirs += files
    times: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as bytecode:
        environment = _environment(way, bytecode)
        _seconds(ours, environment)
        for _ in range(3):
            times[0].append(_seconds(ours, environment))
            times[1].append(_seconds(theirs))
    value, baseline = median(times[0]), median(times[1])
    return [
        Result(
            name=name,
            unit="seconds",
            value=value,
            baseline=baseline,
            ratio=value / baseline,
            goal=f"ratio <= {goal}",
            met=value / baseline <= goal,
            backend=f"unicorn/{way}",
            clock=WALL,
            of="median of 3",
        )
    ]


BENCHMARKS: dict[str, Benchmark] = {
    f"linux{bits}_{way}": partial(_run, f"linux{bits}_{way}", bits, way, goal)
    for bits, way, goal in (
        (64, "native", 1.3),
        (64, "portable", 2.0),
        (32, "native", 6.0),
        (32, "portable", 10.0),
    )
}
