"""VMMSIM_SLOW: one setting makes every time limit of tests longer, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vmmsim import UsageError
from vmmsim.backends import open_backend
from vmmsim.testing import assert_same_behaviour, bench, same
from vmmsim.testing.slow import time_limit

BAD = ["0", "-1", "x", "0.5", "1001", "nan", "inf", "10s", " "]


@pytest.mark.parametrize(("text", "factor"), [(None, 1), ("", 1), ("1", 1), ("10", 10), ("2.5", 2.5)])
def test_a_limit_is_so_many_times_as_long(
    monkeypatch: pytest.MonkeyPatch, text: str | None, factor: float
) -> None:
    monkeypatch.delenv("VMMSIM_SLOW", raising=False)
    if text is not None:
        monkeypatch.setenv("VMMSIM_SLOW", text)
    assert time_limit(20) == 20 * factor


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_factor_is_named_with_the_rule(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("VMMSIM_SLOW", text)
    with pytest.raises(UsageError) as caught:
        time_limit(20)
    assert f"VMMSIM_SLOW is '{text}'" in str(caught.value)
    assert "1 to 1000" in str(caught.value)
    assert "or not at all" in caught.value.hint


@pytest.mark.unicorn
def test_a_bench_is_stuck_only_when_its_longer_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BENCH_SECONDS", 0.05)
    monkeypatch.setenv("VMMSIM_SLOW", "4")
    with (
        bench.Bench(open_backend("unicorn")[0], "p32", b"\xeb\xfe") as spinning,
        pytest.raises(AssertionError, match=r"still running after 0\.2 s"),
    ):
        spinning.run()


def test_assert_same_behaviour_gives_both_sides_the_longer_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def diff(*_: Any, timeout: float | None, **__: Any) -> Any:
        given.append(timeout)
        raise UsageError("far enough")

    monkeypatch.setattr(same, "diff", diff)
    monkeypatch.setenv("VMMSIM_SLOW", "3")
    for timeout in (60.0, None):
        with pytest.raises(UsageError, match="far enough"):
            assert_same_behaviour("loop", timeout=timeout)
    assert given == [180.0, None]


# -- the plugin, in a project of its own


def plugin(folder: Path, slow: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(
        "import pytest\n"
        "def test_default(machine, request):\n"
        "    assert request.node.get_closest_marker('timeout').args == (180,)\n"
        "@pytest.mark.timeout(7)\n"
        "def test_own(machine, request):\n"
        "    assert request.node.get_closest_marker('timeout').args == (7,)\n",
        encoding="utf-8",
    )
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VMMSIM_", "PYTEST"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "vmmsim.testing.plugin", "--vmm-backend=unicorn"],
        cwd=folder,
        env={**kept, "VMMSIM_SLOW": slow},
        capture_output=True,
        text=True,
        timeout=time_limit(60),
        check=False,
    )


@pytest.mark.unicorn
def test_the_plugins_own_limit_is_longer_and_a_projects_is_its_own(tmp_path: Path) -> None:
    done = plugin(tmp_path, "3")
    assert "2 passed" in done.stdout, done.stdout


def test_the_plugin_says_at_the_start_what_is_no_factor(tmp_path: Path) -> None:
    done = plugin(tmp_path, "x")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "VMMSIM_SLOW is 'x'" in done.stderr
    assert "Traceback" not in done.stderr
