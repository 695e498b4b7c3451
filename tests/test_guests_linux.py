"""guests/linux: the configurations and the script are sound, and no guest that runs by name.

The build itself takes minutes and Debian's kernel sources; `build.sh --config-only` checks that
kconfig keeps every line.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vmmsim import guests
from vmmsim.testing.slow import time_limit

FOLDER = Path(__file__).resolve().parent.parent / "guests" / "linux"
FRAGMENTS = sorted(FOLDER.glob("*.config"))

needs_shell = pytest.mark.skipif(shutil.which("sh") is None, reason="no sh here")


def build(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(FOLDER / "build.sh"), *arguments],
        capture_output=True,
        text=True,
        timeout=time_limit(20),
        check=False,
    )


def test_it_is_no_guest_by_name() -> None:
    assert "linux" not in guests.names()


def test_each_option_is_said_once() -> None:
    assert [path.name for path in FRAGMENTS] == ["32.config", "64.config", "base.config", "smp.config"]
    lines = [line for path in FRAGMENTS for line in path.read_text().splitlines() if line[:1] != "#"]
    assert [line for line in lines if not re.fullmatch(r'CONFIG_[A-Z0-9_]+=(y|\d+|"[^"]*")', line)] == []
    names = [line.partition("=")[0] for line in lines]
    assert len(names) == len(set(names))


def test_the_programs_that_init_runs_are_in_the_initramfs() -> None:
    script = (FOLDER / "build.sh").read_text()
    (links,) = re.findall(r"^for name in (.*); do$", script, re.MULTILINE)
    used = {
        "sh",
        "mount",
        "uname",
        "cat",
        "sleep",
        "sha256sum",
        "awk",
        "grep",
        "setsid",
        "reboot",
        "poweroff",
    }
    init = (FOLDER / "init").read_text()
    assert all(re.search(rf"\b{name}\b", init) for name in used)
    assert used <= set(links.split())


@needs_shell
def test_the_script_says_what_it_takes_and_refuses_the_rest() -> None:
    assert (
        subprocess.run(["sh", "-n", str(FOLDER / "build.sh")], check=False, timeout=time_limit(20)).returncode
        == 0
    )
    assert build("--help").stdout.startswith("usage: build.sh 64|32")
    for arguments in ([], ["16"], ["64", "--out"]):
        done = build(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert "build.sh" in done.stderr
