"""The pages of docs/ cover what is there: every file, every option, every page reachable."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli_tools import vmmsim

from vmmsim.cli.main import VERBS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_the_code_map_has_every_file_once() -> None:
    listed = re.findall(r"^\| `(vmmsim/\S+\.py)` \| \S", read("architecture.md"), re.MULTILINE)
    there = [path.relative_to(ROOT).as_posix() for path in (ROOT / "vmmsim").rglob("*.py")]
    assert set(there) - set(listed) == set(), "add a line to the code map of docs/architecture.md"
    assert sorted(listed) == sorted(there)


def test_files_named_in_the_walk_exist() -> None:
    walk = read("architecture.md").partition("## Code map")[0]
    names = set(re.findall(r"\b((?:[a-z_]+/)*[a-z_0-9]+\.py)\b", walk))
    there = {path.as_posix() for path in (ROOT / "vmmsim").rglob("*.py")}
    assert [name for name in names if not any(path.endswith(f"/{name}") for path in there)] == [
        name for name in names if name == "tools/gen_docs.py"
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_explained(verb: str) -> None:
    assert re.search(rf"^## .*`vmmsim {verb}\b", read("cli.md"), re.MULTILINE)


def test_options_are_listed_once() -> None:
    """In reference/cli.md, which is made from the commands."""
    assert "| option |" not in read("cli.md")


@pytest.mark.timeout(60)
def test_the_reference_has_every_key_of_the_json_object(backend_name: str) -> None:
    table = read("cli.md").partition("The object of `--json`:")[2].partition("```")[0]
    keys = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    result = vmmsim("run", "loop", "--json", "-q", "--backend", backend_name)
    assert sorted(json.loads(result.stdout)) == sorted(keys)


def test_every_page_is_in_the_contents() -> None:
    contents = [
        (page.parent / entry).relative_to(DOCS).as_posix()
        for page in DOCS.rglob("*.md")
        for fence in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
        for entry in re.findall(r"^([a-z0-9/-]+)$", fence, re.M)
    ]
    pages = [page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")]
    assert sorted([*contents, "index"]) == sorted(pages)


def test_the_comparison_is_fair_and_sourced() -> None:
    """Each peer: what it does better, and a source of its own; and when it was looked at."""
    page = read("comparison.md")
    assert re.search(r"It was written in \w+ 20\d\d", page)
    sections = re.split(r"^### ", page, flags=re.MULTILINE)[1:]
    assert len(sections) >= 10
    for section in sections:
        name = section.splitlines()[0]
        assert "**Better than vmmsim:**" in section, name
        assert re.search(r"\]\(https://[^)]+\)", section), name
