"""The tools for other hosts, on this one; and which hosts doctor says that vmmsim was tried on."""

from __future__ import annotations

import json
import mmap
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_tools import vmmsim

from vmmsim import hosts
from vmmsim.testing.slow import time_limit

TOOLS = Path(__file__).parents[1] / "tools" / "hosts"
sys.path.insert(0, str(TOOLS))
import checks  # noqa: E402 - a module of the tools

GUESTS = ("lwn", "hello32", "timer-real")


def inside(verb: str, folder: Path, *names: str, **env: str) -> str:
    done = checks.run(checks.HERE, checks.INSIDE, verb, str(folder), *names, seconds=time_limit(50), env=env)
    assert done.returncode == 0, done.stdout
    return done.stdout


# -- what runs inside a host


@pytest.mark.unicorn
def test_traces_have_exits_registers_and_memory_and_nothing_of_the_engine(tmp_path: Path) -> None:
    for engine in ("portable", "again"):
        inside("traces", tmp_path / engine, *GUESTS, VMMSIM_UNICORN="portable")
    for name in GUESTS:
        one, two = ((tmp_path / engine / f"{name}.jsonl").read_bytes() for engine in ("portable", "again"))
        assert one == two
        assert b"portable" not in one
    lines = (tmp_path / "portable" / "lwn.jsonl").read_bytes().splitlines()
    kinds = [json.loads(line).get("type") for line in lines[:5]]
    assert kinds == ["header", "exit", "exit", "end", None]
    assert json.loads(lines[4])["rbx"] == 2
    assert lines[-2:] == [b"4", b""]  # what it has printed


@pytest.mark.unicorn
def test_a_snapshot_that_goes_on_in_another_way_is_found(tmp_path: Path) -> None:
    inside("snapshots", tmp_path, *GUESTS)
    assert "3 of 3 snapshots go on in the same way" in inside("restore", tmp_path, *GUESTS)
    rest = tmp_path / "hello32.rest"
    first = rest.read_bytes()
    rest.write_bytes(first.replace(b'"value":', b'"value":1', 1))
    done = checks.run(checks.HERE, checks.INSIDE, "restore", str(tmp_path), seconds=time_limit(50))
    assert done.returncode == 1
    assert "hello32: goes on in another way" in done.stdout
    assert "2 of 3 snapshots" in done.stdout


# -- the checks


def test_a_check_that_hangs_ends_with_all_that_it_has_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    with pytest.raises(checks.Failed, match="not at its end after"):
        checks.run(checks.HERE, "-c", code, seconds=time_limit(5))
    child = int(note.read_text())
    for _ in range(500):  # it is killed, and becomes init's to bury
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    raise AssertionError("the child of the check still runs")


def test_one_failure_is_told_and_the_others_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> str:
        raise checks.Failed("for a reason")

    suite = checks.Checks(checks.HERE, tmp_path, 1.0)
    suite.check("first", fails)
    suite.check("second", lambda: "well")
    assert suite.end() == 1
    said = capsys.readouterr().out
    assert "FAILED  first: for a reason" in said
    assert "ok      second: well" in said
    assert "1 of the checks FAILED" in said


@pytest.mark.unicorn
def test_this_host_passes_its_own_checks(tmp_path: Path) -> None:
    suite = checks.Checks(checks.HERE, tmp_path, time_limit(1))
    assert "unicorn-2.1.4/" in suite.doctor()
    assert "10 of 10 guests make the same bytes" in suite.guests(checks.TEN_GUESTS)


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the tool is for Linux on x86-64"
)
def test_where_there_is_no_apt_arm64_is_skipped_with_the_reason(tmp_path: Path) -> None:
    for text in (("--quick",), ("--quick", "--root", str(tmp_path / "root"))):
        done = subprocess.run(
            [sys.executable, str(TOOLS / "arm64"), *text],
            env={**os.environ, "PATH": "/nonexistent"},
            capture_output=True,
            text=True,
            timeout=time_limit(50),
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("skipped: there is no apt-get")


# -- what was tried


def test_doctor_says_the_host_and_whether_such_ones_were_tried() -> None:
    text = vmmsim("doctor").stdout.decode()
    first, second, third = text.splitlines()[:3]
    assert first.endswith(f"{platform.machine()}, pages of {mmap.PAGESIZE >> 10} KiB")
    assert second == f"  tried on such a host: {hosts.tried_host()}"
    assert third == f"  tried with its pages: {hosts.tried_pages()}; with this Python: {hosts.tried_python()}"
    report = json.loads(vmmsim("doctor", "--json").stdout)
    assert report["pages"]["size"] == mmap.PAGESIZE
    assert report["tried"]["host"] == hosts.tried_host()


@pytest.mark.parametrize(
    ("system", "machine", "start"),
    [
        ("Linux", "x86_64", "the whole test suite"),
        ("Linux", "aarch64", "demo, guests"),
        ("Darwin", "arm64", "no, only Linux x86_64, Linux aarch64"),
    ],
)
def test_a_host_that_nobody_has_tried_is_said_to_be_one(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, start: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert hosts.tried_host().startswith(start)


def test_pages_and_pythons_that_nobody_has_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "PAGESIZE", 4096)
    assert hosts.tried_pages() == "yes"
    monkeypatch.setattr(mmap, "PAGESIZE", 16384)
    assert hosts.tried_pages().startswith("by a shim")
    monkeypatch.setattr(mmap, "PAGESIZE", 8192)
    assert hosts.tried_pages().startswith("no, only")
    monkeypatch.setattr(sys, "version_info", (3, 11, 0))
    monkeypatch.setattr(platform, "python_implementation", lambda: "CPython")
    assert hosts.tried_python() == "yes"
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    assert hosts.tried_python() == f"no, only {', '.join(hosts.PYTHONS)}"
    monkeypatch.setattr(platform, "python_implementation", lambda: "PyPy")
    assert "it is PyPy" in hosts.tried_python()
