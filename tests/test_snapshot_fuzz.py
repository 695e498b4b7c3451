"""tools/fuzz_snapshot.py: some thousand of its cases, and that it would see a fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import environment

from vmmsim.testing.slow import time_limit

TOOL = Path(__file__).resolve().parent.parent / "tools" / "fuzz_snapshot.py"

pytest.importorskip("resource", reason="the fuzzer limits its memory, which needs POSIX")


def fuzz(*arguments: str, patch: str = "") -> subprocess.CompletedProcess[str]:
    code = (
        f"import runpy, sys\nsys.argv = {['fuzz', *arguments]!r}\n{patch}\n"
        f"runpy.run_path({str(TOOL)!r}, run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=time_limit(110),
        env=environment(),
        check=False,
    )


def test_mutated_files_are_refused_or_good() -> None:
    result = fuzz("--cases", "4000")

    assert result.returncode == 0, result.stdout + result.stderr
    assert "4000 cases, 0 failed" in result.stdout
    for kind in ("damage", "forged-header", "forged-table", "forged-manifest", "packed"):
        assert f"{kind}: refused" in result.stdout
    for kind in ("forged-table", "forged-manifest"):
        assert f"{kind}: loaded" in result.stdout, "the forged files meet no rule but the hash"


@pytest.mark.parametrize(
    "patch",
    [
        # pages that are not hashed
        "import vmmsim.snapshot.container as c; c.SnapshotFile.check_pages = lambda self, again=False: None",
        # an error of another kind
        "import vmmsim.snapshot.container as c\n"
        "real, calls = c.parse_table, []\n"
        "def parse(*a, **k):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 9: raise ValueError('x')\n"
        "    return real(*a, **k)\n"
        "c.parse_table = parse",
    ],
)
def test_the_fuzzer_sees_a_fault(patch: str) -> None:
    result = fuzz("--cases", "300", patch=patch)

    assert result.returncode == 1, result.stdout
    assert "failed: python tools/fuzz_snapshot.py --cases 1 --seed" in result.stdout
