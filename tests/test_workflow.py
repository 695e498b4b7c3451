"""The CI workflow, and those of the documentation: valid by their schemas, each command is there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from test_docs_examples import ROOT, examples

from vmmsim.cli.main import VERBS
from vmmsim.testing.slow import time_limit

WORKFLOW = ROOT / ".github/workflows/tests.yml"
CI = ROOT / ".ci/run"
pytestmark = pytest.mark.skipif(not WORKFLOW.exists(), reason="an installed package has no workflow")

SCHEMAS = {"github": "vendor.github-workflows", "gitlab": "vendor.gitlab-ci"}


def shown() -> list[tuple[str, str, str]]:
    """(page and line, kind, text) of the whole workflows in docs/."""
    found = []
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for example in examples(page):
            if example.lang == "yaml":
                before = text.splitlines()[example.line - 3]
                kind = re.fullmatch(r"<!-- workflow: (\w+) -->", before)
                if kind:  # others are a part of one
                    found.append((f"{page.name}:{example.line}", kind[1], example.text))
    return found


def problems(kind: str, path: Path) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[kind], str(path)],
        capture_output=True,
        text=True,
        timeout=time_limit(60),
        check=False,
    )
    return "" if ran.returncode == 0 else ran.stdout + ran.stderr


def commands(text: str) -> list[str]:
    """Each command of the workflow: `run:` with one, folded, or a block of lines."""
    found: list[str] = []
    for match in re.finditer(r"^( *)(?:- )?run: (\||>|.+)\n((?:\1 +.*\n|\n)*)", text, re.MULTILINE):
        lines = [line.strip() for line in match[3].splitlines() if line.strip()]
        if match[2] == ">":
            found.append(" ".join(lines))
        elif match[2] == "|":
            found += lines
        else:
            found.append(match[2])
    return found


def test_the_workflow_is_valid_by_githubs_schema() -> None:
    pytest.importorskip(
        "check_jsonschema", reason="the schemas come with check-jsonschema, of the group lint"
    )
    assert problems("github", WORKFLOW) == ""


@pytest.mark.parametrize(("where", "kind", "text"), shown(), ids=[item[0] for item in shown()])
def test_a_workflow_of_the_documentation_is_valid(where: str, kind: str, text: str, tmp_path: Path) -> None:
    pytest.importorskip(
        "check_jsonschema", reason="the schemas come with check-jsonschema, of the group lint"
    )
    (tmp_path / "workflow.yml").write_text(text, encoding="utf-8")
    assert problems(kind, tmp_path / "workflow.yml") == ""


def test_what_is_not_valid_is_found(tmp_path: Path) -> None:
    pytest.importorskip(
        "check_jsonschema", reason="the schemas come with check-jsonschema, of the group lint"
    )
    text = WORKFLOW.read_text(encoding="utf-8").replace("runs-on: ubuntu-latest", "runs-in: ubuntu-latest")
    (tmp_path / "workflow.yml").write_text(text, encoding="utf-8")
    assert "runs-in" in problems("github", tmp_path / "workflow.yml")


def test_the_commands_are_found() -> None:
    found = commands(WORKFLOW.read_text(encoding="utf-8"))
    assert "mypy" in found
    assert "sudo udevadm settle" in found
    assert any(line.startswith("python -m pytest -q -n auto") and "--vmm-artifacts" in line for line in found)


@pytest.mark.parametrize("command", commands(WORKFLOW.read_text("utf-8")) if WORKFLOW.exists() else [])
def test_each_command_of_the_workflow_is_there(command: str) -> None:
    """Its tool is a dependency, a verb or the runner's; what else it names exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    words = command.split()
    tools = {re.split(r"[<>=]", str(d))[0] for group in project["dependency-groups"].values() for d in group}
    programs = {"sphinx-build": "sphinx"}
    if words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2])
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[0] == "vmmsim":
        assert words[1] in VERBS
    else:
        assert programs.get(words[0], words[0]) in tools | {"sudo", "echo", "test"}
    for group in re.findall(r"--group (\w+)", command):
        assert group in project["dependency-groups"]
    for extra in re.findall(r"'\.\[(\w+)\]'", command):
        assert extra in project["project"]["optional-dependencies"]
    for path in re.findall(r"\b(?:tests|tools|docs)/[\w./]+", command):
        assert (ROOT / path).exists()
    plugin = (ROOT / "vmmsim/testing/plugin.py").read_text(encoding="utf-8")
    for option in re.findall(r"--vmm-[a-z]+", command):
        assert f'"{option}"' in plugin


def test_the_workflow_checks_what_ci_run_checks() -> None:
    """Each command of .ci/run's part for lint, types and documentation is in the workflow, too."""
    lines = [line.strip() for line in CI.read_text(encoding="utf-8").splitlines()]
    wanted = [line.removeprefix(".venv/bin/") for line in lines if line.startswith(".venv/bin/")]
    wanted = [re.sub(r" --extend-exclude '\S+'", "", line) for line in wanted if not line.startswith("pip ")]
    wanted = [line.replace('"$work/html"', "build/html") for line in wanted]
    assert len(wanted) >= 5
    assert [line for line in wanted if line not in commands(WORKFLOW.read_text(encoding="utf-8"))] == []


def test_every_action_is_pinned_to_a_major_version_and_nothing_may_be_written() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    used = re.findall(r"uses: (\S+)", text)
    assert used
    assert [action for action in used if not re.fullmatch(r"actions/[a-z-]+@v\d+", action)] == []
    assert "permissions:\n  contents: read\n" in text
    assert text.count("timeout-minutes:") == text.count("runs-on:")


def test_the_pythons_are_those_of_the_package() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=")
    named = {c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)}
    tested = set(re.findall(r'python(?:-version)?: "(3\.\d+)"', text))
    assert oldest in tested
    assert named == tested
