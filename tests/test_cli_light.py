"""What starting costs, and what works on hosts that lack things."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_tools import environment
from cli_tools import vmmsim as vmmsim_run

import vmmsim
from vmmsim.testing.slow import time_limit

HEAVY = ("unicorn", "capstone", "elftools", "rich", "keystone")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=time_limit(50),
        env=environment(),
        check=False,
    )


def test_import_loads_no_cpu_library() -> None:
    result = python(
        "import sys, vmmsim\n"
        "vmmsim.Machine, vmmsim.MachineConfig\n"
        f"print([n for n in {(*HEAVY, 'fcntl', 'ctypes', 'click')!r} if n in sys.modules])"
    )

    assert result.stdout.strip() == "[]", result.stdout + result.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["exits", "--help"], ["snapshot", "--help"], ["--version"]]
)
def test_help_loads_no_cpu_library(arguments: list[str]) -> None:
    result = python(
        "import sys\n"
        "from vmmsim.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"print([n for n in {(*HEAVY, 'ctypes')!r} if n in sys.modules], file=sys.stderr)",
        *arguments,
    )

    assert result.stderr.strip() == "[]"


HIDDEN = """
import sys
for name in ("fcntl", "termios", "tty", "unicorn", "ctypes", "_ctypes", "capstone", "keystone"):
    sys.modules[name] = None
import vmmsim
from vmmsim import Machine, MachineConfig, BackendUnavailable, guests
from vmmsim.cli.main import cli
import vmmsim.cli.run, vmmsim.cli.exits, vmmsim.cli.doctor, vmmsim.cli.demo
guests.load("loop").image
try:
    Machine(backend="auto")
except BackendUnavailable as error:
    print("unavailable", error.hint)
"""


def test_everything_but_the_backends_works_without_fcntl_termios_unicorn_and_ctypes() -> None:
    result = python(HIDDEN)

    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "unavailable see: vmmsim doctor"


def test_doctor_works_where_no_backend_does() -> None:
    result = python(
        "import sys\n"
        "sys.modules.update(fcntl=None, unicorn=None, ctypes=None)\n"
        "from vmmsim.cli.main import main\n"
        "main(['doctor'])"
    )

    assert result.returncode == 126, result.stderr
    assert "No backend is usable" in result.stdout
    assert "Traceback" not in result.stderr


def test_the_disassembly_is_missed_but_nothing_breaks_without_capstone() -> None:
    result = python(
        "import sys\n"
        "sys.modules.update(capstone=None)\n"
        "from vmmsim.cli.main import main\n"
        "main(['exits', 'lwn', '-b', 'unicorn', '-q'])"
    )

    assert result.returncode == 0, result.stderr
    assert "port_write" in result.stdout


def test_what_runs_no_guest_works_without_unicorn_and_capstone(tmp_path: Path) -> None:
    """As pip leaves them out on Windows on ARM: traces, snapshots, the explorer; doctor says so."""
    trace, snapshot, page = (str(tmp_path / name) for name in ("lwn.jsonl", "lwn.vsnap", "lwn.html"))
    for made in (
        vmmsim_run("trace", "lwn", "-q", "-b", "unicorn", "-o", trace),
        vmmsim_run("run", "lwn", "-q", "-b", "unicorn", "--snapshot-on", "exit:1", "-o", snapshot),
    ):
        assert made.returncode == 0, made.stderr
    for verb, code, said in (
        (["trace", trace, "-o", page], 0, ""),
        (["snapshot", "show", snapshot], 0, "uart"),
        (["guests"], 0, "hello64"),
        (["doctor"], None, "unicorn: not usable: the unicorn package is missing"),
        (["run", "lwn", "-b", "unicorn"], 126, ""),
    ):
        result = python(
            "import sys\n"
            "sys.modules.update(unicorn=None, capstone=None)\n"
            "from vmmsim.cli.main import main\n"
            "main(sys.argv[1:])",
            *verb,
        )
        assert "internal error" not in result.stderr
        assert said in result.stdout
        assert code is None or result.returncode == code, result.stderr
    assert "<html" in Path(page).read_text(encoding="utf-8")


def test_asm_without_keystone_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "a.asm").write_text("nop\n")
    result = python(
        "import sys\nsys.modules.update(keystone=None)\nfrom vmmsim.cli.main import main\nmain(sys.argv[1:])",
        "asm",
        str(tmp_path / "a.asm"),
    )

    assert result.returncode == 125
    assert "pip install vmmsim[asm]" in result.stderr


def test_the_unicorn_backend_as_a_script_does_not_import_itself() -> None:
    script = Path(vmmsim.__file__).parent / "backends" / "unicorn.py"
    result = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=time_limit(50),
        env=environment(),
        check=False,
    )

    # It is no script; what must not happen is that `import unicorn` finds this file.
    assert "circular import" not in result.stderr
    assert "module 'unicorn' has no attribute" not in result.stderr
    assert "partially initialized" not in result.stderr


def _best(command: list[str], runs: int = 5) -> float:
    """The least CPU time of some runs, in seconds: a busy host does not make it much longer."""
    times = []
    for _ in range(runs):
        before, began = os.times(), time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, timeout=time_limit(50), env=environment())
        after = os.times()
        mine = (before.children_user + before.children_system, after.children_user + after.children_system)
        # Windows does not tell what children have spent; there it is the time of the clock.
        times.append(mine[1] - mine[0] if any(mine) else time.perf_counter() - began)
    return min(times)


def test_starting_is_fast() -> None:
    """Generous: the figures that count are those of benchmarks/, on a quiet host."""
    bare = _best([sys.executable, "-c", ""])
    light = _best([sys.executable, "-m", "vmmsim", "--help"]) - bare
    whole = _best([sys.executable, "-m", "vmmsim", "run", "loop", "-q"]) - bare

    assert light < time_limit(0.2)
    assert whole < time_limit(0.6)
