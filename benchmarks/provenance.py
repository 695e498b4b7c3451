"""Where and how figures were measured: what a reader of them must know."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import unusable

import vmmsim
from vmmsim.backends import open_backend

_ROOT = Path(__file__).resolve().parent.parent


def provenance(argv: list[str]) -> dict[str, Any]:
    """Date (UTC), commit, command, machine and load of this run, as values of JSON."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "command": " ".join(["python", "benchmarks/run.py", *argv[1:]]),
        "quick": "--quick" in argv,
        "vmmsim": vmmsim.__version__,
        "python": platform.python_version(),
        "unicorn": version("unicorn"),
        "backends": {name: _executes(name) for name in ("kvm", "unicorn")},
        "machine": {
            "cpu": _cpu(),
            "cpus": os.cpu_count(),
            "memory_mib": _memory() >> 20,
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
        #: Processes that wanted to run, over the last 1, 5 and 15 minutes, when it began.
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def _executes(name: str) -> str:
    if why := unusable(name):
        return f"not here: {why}"
    backend = open_backend(name)[0]
    try:
        return backend.provenance
    finally:
        backend.close()


def _commit() -> str:
    """The commit, with `+` behind it if files that git knows have changed; empty outside of a checkout."""
    try:
        ran = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return ran.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _memory() -> int:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
