"""What the checkers share: they import an answer, and say what is wrong in plain words.

python -m pytest docs/exercises/2-mailbox                     checks starter.py of that folder
python -m pytest docs/exercises/2-mailbox --answer FILE       checks FILE
python -m pytest docs/exercises/2-mailbox --answer DIR        checks each .py of DIR, and lists how they did
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from checking import wrong


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--answer", metavar="PATH", help="a file to check, or a folder of them (default: starter.py)"
    )


def _chosen(config: pytest.Config) -> Path | None:
    option = config.getoption("--answer")
    return config.invocation_params.dir / option if option else None


def pytest_configure(config: pytest.Config) -> None:
    chosen = _chosen(config)
    if chosen is None:
        return
    if not chosen.exists():
        raise pytest.UsageError(f"--answer: there is no file {chosen}")
    if chosen.is_dir():
        if not any(chosen.glob("*.py")):
            raise pytest.UsageError(f"--answer: there is no .py file in {chosen}")
        config.option.maxfail = 0  # one answer's mistake must not hide another's


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "answer" not in metafunc.fixturenames:
        return
    chosen = _chosen(metafunc.config)
    if chosen is None:
        paths = [metafunc.definition.path.parent / "starter.py"]
    else:
        paths = sorted(chosen.glob("*.py")) if chosen.is_dir() else [chosen]
    metafunc.parametrize("answer", paths, ids=lambda path: path.name, indirect=True)


@pytest.fixture
def answer(request: pytest.FixtureRequest) -> ModuleType:
    """The student's file as a module, imported anew for each check."""
    path: Path = request.param
    request.node.user_properties.append(("answer", path.name))
    spec = importlib.util.spec_from_file_location("answer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["answer"] = module  # where msgspec looks up a struct's annotations
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        wrong(f"{path.name}, line {error.lineno}: {error.msg}")
    return module


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:
        wrong(f"not written yet: {error}")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Of a folder of answers: a line each, with the first thing that is wrong."""
    chosen = _chosen(config)
    if chosen is None or not chosen.is_dir():
        return
    passed: dict[str, int] = {}
    failed: dict[str, list[str]] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            name = dict(report.user_properties).get("answer")
            if name is None:
                continue
            passed.setdefault(name, 0)
            failed.setdefault(name, [])
            if outcome == "passed":
                passed[name] += 1
            else:
                crash = getattr(report.longrepr, "reprcrash", None)
                message = str(crash.message if crash else report.longrepr)
                failed[name].append(" ".join(message.split()).removeprefix("Failed: "))
    terminalreporter.section("answers")
    for name in sorted(passed):
        said = f"   {failed[name][0]}" if failed[name] else ""
        terminalreporter.write_line(f"{name}: {passed[name]} of {passed[name] + len(failed[name])}{said}")
