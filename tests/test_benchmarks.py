"""benchmarks/run.py works, with tiny sizes. How fast things are is not tested here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vmmsim.testing.slow import time_limit

RUN = Path(__file__).parents[1] / "benchmarks" / "run.py"
#: What the issue's speed section names.
EXPECTED = {
    "guest_code_alu", "guest_code_mix", "unicorn_port_in", "unicorn_port_out", "unicorn_mmio_read",
    "unicorn_mmio_write", "unicorn_run_exit", "kvm_port", "kvm_mmio", "import_vmmsim", "run_loop_unicorn",
    "run_loop_kvm", "machines_unicorn", "machines_kvm",
    "snapshot_restore_100_pages_unicorn", "snapshot_restore_1_page_unicorn", "snapshot_cpu_state_kvm",
    "clone_first_instruction_unicorn", "clone_first_instruction_kvm", "clones_alive_unicorn_20",
    "snapshot_file", "snapshot_file_pack",
}  # fmt: skip
FIELDS = {"name", "value", "unit", "baseline", "ratio", "goal", "backend", "clock", "skipped"}

pytestmark = pytest.mark.skipif(not RUN.exists(), reason="an installed package has no benchmarks")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RUN), "--quick", *arguments]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        out, err = child.communicate(timeout=time_limit(100))
    except BaseException:
        # With the processes of its pools, which would wait for work for ever.
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        child.communicate()
        raise
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def test_every_figure_of_the_issue_as_json() -> None:
    ran = run("--json")
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["measured"].keys() >= {"date", "finished", "commit", "command", "machine", "quick", "load"}
    results = report["results"]
    assert {r["name"] for r in results} >= EXPECTED
    for result in results:
        assert result.keys() >= FIELDS
        if result["skipped"]:
            assert result["value"] is None
            continue
        # What a process has grown by: less than nothing when its allocator gave pages back.
        assert result["value"] >= 0 or result["name"].startswith("clones_alive_"), result
        if result["baseline"]:
            assert result["ratio"] == pytest.approx(result["value"] / result["baseline"])


def test_only_one_and_as_a_table() -> None:
    ran = run("--only", "unicorn_port_in")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("name")
    assert [line.split()[0] for line in lines[1:]] == ["unicorn_port_in"]


def test_a_group() -> None:
    results = json.loads(run("--json", "--only", "startup").stdout)["results"]
    assert [r["name"] for r in results] == ["import_vmmsim", "run_loop_unicorn", "run_loop_kvm"]


def test_a_name_that_does_not_exist() -> None:
    ran = run("--only", "nothing")
    assert ran.returncode == 2
    assert "no benchmark is named nothing" in ran.stderr


def test_curves_have_their_points_and_their_spread() -> None:
    ran = run("--json", "--only", "restore_curve_unicorn", "--only", "portable_port_in")
    results = json.loads(ran.stdout)["results"]
    assert [r["x"] for r in results] == [None, 1, 64, 1024]
    assert {r["x_unit"] for r in results[1:]} == {"pages"}
    for result in results:
        assert result["low"] <= result["value"] <= result["high"]
        assert result["baseline_low"] <= result["baseline"] <= result["baseline_high"]
