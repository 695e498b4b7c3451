"""Every example in README.md and docs/ does what the page says, on each backend.

A page is run from top to bottom in an empty directory. What a fence holds decides:

    pycon     a doctest; the page's examples share their names
    python    a program of its own; a `text` fence that follows "It prints" is its output
    console   `$ command` lines for bash, each with its output below; `...` stands for anything,
              and `# exit code N` behind a command says how it ends if that is not 0
    sh        commands with nothing to compare; only the quick start, which .ci/run runs

A comment `<!-- file: NAME -->` before a fence stores its text as NAME (a .py is not run then),
`<!-- on: NAME -->` keeps an example to one backend, and `<!-- needs: COMMAND -->` to hosts that have
that command. Where a page says "unicorn" the run on KVM says "kvm".
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vmmsim.testing.slow import time_limit

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(
    r"(?P<notes>(?:^<!-- [^\n]* -->\n)*)^```(?P<lang>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_NOTE = re.compile(r"<!-- (on|file|needs): (\S+) -->")
_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_RUN = ("pycon", "python", "console")


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix().removeprefix("docs/")


class Example(NamedTuple):
    """A fence: its language and text, the page's line where its text begins, and its notes."""

    lang: str
    text: str
    line: int
    notes: dict[str, str]
    prints: str | None


def examples(page: Path) -> Iterator[Example]:
    content = page.read_text(encoding="utf-8")
    fences = list(_FENCE.finditer(content))
    for fence, after in zip_longest(fences, fences[1:]):
        prints = None
        if after is not None and after["lang"] == "text":
            between = content[fence.end() : after.start()].strip()
            if between.startswith("It prints") and "\n\n" not in between:
                prints = after["text"]
        yield Example(
            fence["lang"],
            fence["text"],
            content.count("\n", 0, fence.start("text")) + 1,
            dict(_NOTE.findall(fence["notes"])),
            prints,
        )


def agrees(want: str, got: str) -> bool:
    return doctest.OutputChecker().check_output(want, got, _OPTIONS)


def run_doctest(example: Example, text: str, names: dict[str, Any], page: Path) -> str | None:
    test = doctest.DocTestParser().get_doctest(text, names, page.name, str(page), example.line - 1)
    assert test.examples, f"{page.name}:{example.line}: no >>> in a pycon fence"
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=_OPTIONS)
    runner.run(test, out=report.append, clear_globs=False)
    names.update(test.globs)
    return "".join(report) or None


def run_program(example: Example, text: str, names: dict[str, Any], page: Path) -> str | None:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(text, f"{page.name}:{example.line}", "exec"), {"__name__": "__main__"})
    except (Exception, SystemExit):
        return traceback.format_exc()
    if example.prints is not None and not agrees(example.prints, printed.getvalue()):
        return f"expected:\n{example.prints}\nprinted:\n{printed.getvalue()}"
    return None


def run_console(example: Example, text: str, names: dict[str, Any], page: Path) -> str | None:
    lines = text.replace("\\\n", "").splitlines(keepends=True)
    assert lines[0].startswith("$ "), f"{page.name}:{example.line}: a console fence begins with $"
    at = 0
    while at < len(lines):
        command = lines[at][2:].rstrip("\n")
        end = at + 1
        while end < len(lines) and not lines[end].startswith("$ "):
            end += 1
        want = "".join(lines[at + 1 : end])
        found = re.search(r"# exit code (\d+)", command)
        code = int(found[1]) if found else 0
        done = subprocess.run(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=time_limit(60),
            env=names["environment"],
            check=False,
        )
        if done.returncode != code:
            return f"$ {command}\nexit code {done.returncode}, not {code}:\n{done.stdout}"
        if want and not agrees(want, done.stdout):
            return f"$ {command}\nexpected:\n{want}\nprinted:\n{done.stdout}"
        at = end
    return None


_RUNNERS = {"pycon": run_doctest, "python": run_program, "console": run_console}


def _pages_with_examples() -> list[Path]:
    return [page for page in PAGES if any(e.lang in _RUN for e in examples(page))]


@pytest.mark.skipif(os.name != "posix", reason="the pages' commands are for a POSIX shell")
@pytest.mark.timeout(110)
@pytest.mark.parametrize("page", _pages_with_examples(), ids=page_id)
def test_examples(page: Path, backend_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(examples(page))
    if any("vmmsim asm" in example.text for example in found if example.lang == "console"):
        pytest.importorskip("keystone", reason="the page assembles, and keystone is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VMMSIM_BACKEND", backend_name)
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    names: dict[str, Any] = {"environment": environment}

    for example in found:
        if "file" in example.notes:
            (tmp_path / example.notes["file"]).write_text(example.text, encoding="utf-8")
            if example.notes["file"].endswith(".py"):  # a module, for the commands that follow
                continue
        if example.lang not in _RUN or example.notes.get("on", backend_name) != backend_name:
            continue
        if "needs" in example.notes and shutil.which(example.notes["needs"]) is None:
            continue
        text = re.sub(r'(open_backend\(|backend=)"unicorn"', rf'\1"{backend_name}"', example.text)
        problem = _RUNNERS[example.lang](example, text, names, page)
        assert problem is None, f"{page.name}:{example.line}\n{problem}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_fence_says_what_it_is(page: Path) -> None:
    known = {*_RUN, "sh", "text", "nasm", "yaml", "{toctree}", "{eval-rst}"}
    assert [e.line for e in examples(page) if e.lang not in known] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_a_wrong_example_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```pycon\n>>> 1 + 1\n3\n```\n```console\n$ echo one\ntwo\n```\n```console\n$ false\n```\n"
    )
    names: dict[str, Any] = {"environment": dict(os.environ)}
    results = [_RUNNERS[e.lang](e, e.text, dict(names), page) for e in examples(page)]
    assert len(results) == 3
    assert all(results)
