"""The README keeps its promises: a quick start of two commands, one program for both CPUs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_docs_examples import examples

import vmmsim
from vmmsim.cli.main import VERBS

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def test_the_quick_start_is_two_commands() -> None:
    blocks = [e.text.splitlines() for e in examples(README) if e.lang == "sh"]
    assert len(blocks) == 1
    demo, tests = blocks[0]
    assert demo.endswith("vmmsim demo")
    assert "pytest" in tests


def test_the_program_has_six_steps_and_names_its_backend_once() -> None:
    program = next(e for e in examples(README) if e.lang == "python")
    assert re.findall(r"^# (\d)\.", program.text, re.MULTILINE) == list("123456")
    assert program.text.count('"unicorn"') == 2  # the comment that explains, and the word to change
    assert program.prints


def test_every_verb_is_named() -> None:
    text = README.read_text(encoding="utf-8")
    assert [verb for verb in VERBS if f"`vmmsim {verb}" not in text] == []


def test_the_changelog_has_this_version() -> None:
    assert f"## {vmmsim.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_ci_run_is_a_sound_script() -> None:
    script = ROOT / ".ci" / "run"
    if not script.exists():
        pytest.skip("a source distribution has no .ci")
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    # The commands are read from the README, never repeated.
    assert "-m venv" not in script.read_text(encoding="utf-8")
