"""The generated pages of docs/ say what the code says."""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import click
import pytest

import vmmsim
from vmmsim.backends.base import CAPABILITY_TABLE, Capabilities
from vmmsim.cli.main import VERBS
from vmmsim.diff import divergences
from vmmsim.exits import EXITS

TOOL = Path(__file__).resolve().parent.parent / "tools" / "gen_docs.py"
sys.path.insert(0, str(TOOL.parent))  # gen_docs.py is a program: what it imports lies beside it


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_docs", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", sorted(tool().PAGES))
def test_page_is_up_to_date(page: str) -> None:
    gen_docs = tool()
    written = (gen_docs.DOCS / page).read_text(encoding="utf-8")
    assert written == gen_docs.PAGES[page](), "stale: run python tools/gen_docs.py"


def test_a_stale_page_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gen_docs = tool()
    monkeypatch.setattr(gen_docs, "DOCS", tmp_path)
    assert gen_docs.main(["--check"]) == 1
    assert gen_docs.main([]) == 0
    assert gen_docs.main(["--check"]) == 0
    (tmp_path / "exits.md").write_text("old")
    assert gen_docs.main(["--check"]) == 1


def test_the_pages_have_every_exit_capability_and_divergence() -> None:
    pages = {name: make() for name, make in tool().PAGES.items()}
    for exit in EXITS:
        assert f"### {exit.__name__}" in pages["exits.md"]
        assert exit.kvm in pages["exits.md"]
    for id in divergences():
        assert f"## {id}\n" in pages["divergences.md"]
    assert set(CAPABILITY_TABLE) == set(Capabilities.__struct_fields__)
    for name in CAPABILITY_TABLE:
        assert f"`{name}`" in pages["capabilities.md"]


@pytest.mark.parametrize("verb", VERBS)
def test_the_reference_has_every_option_with_its_help(verb: str) -> None:
    page = tool().cli()
    command = import_module(f"vmmsim.cli.{VERBS[verb][0]}").command
    section = page.partition(f"## `vmmsim {verb}`\n")[2].partition("\n## `vmmsim ")[0]
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert len(options) == section.count("\n| `")
    for option in options:
        row = next(line for line in section.splitlines() if re.match(rf"\| .*`{option.opts[-1]}[ `]", line))
        assert all(f"`{name}" in row for name in option.opts)
        assert not option.help or option.help.split()[0] in row
    if isinstance(command, click.Group):
        assert [verb for verb in command.commands if f"## `vmmsim snapshot {verb}`\n" not in page] == []


def test_an_option_says_its_default_what_it_may_be_and_its_environment() -> None:
    rows = {line.split("`")[1]: line for line in tool().cli().splitlines() if line.startswith("| `--")}
    assert "| 64M |" in rows["--memory"]
    assert "VMMSIM_BACKEND" in rows["--backend"]
    assert "1 to 255." in rows["--cpus N"]
    assert "May be repeated." in rows["--device NAME"]
    assert r"`--then run\|stop` | run |" in rows[r"--then run\|stop"]
    assert "| required |" in rows["--to URL"]


def _public_packages() -> list[str]:
    """vmmsim and its packages that give out names. The command line gives out none."""
    packages = [m.name for m in pkgutil.walk_packages(vmmsim.__path__, "vmmsim.") if m.ispkg]
    return ["vmmsim", *(name for name in packages if getattr(import_module(name), "__all__", None))]


@pytest.mark.parametrize("package", _public_packages())
def test_the_reference_has_every_public_name_of_a_package(package: str) -> None:
    pages = "".join(text() for name, text in tool().PAGES.items() if name.startswith("reference/api-"))
    section = pages.partition(f"## {package}\n")[2].partition("\n## ")[0]
    assert section, f"{package} is not in tools/docs_api.py"
    assert [n for n in import_module(package).__all__ if f"| `{n}` |" not in section] == []


def test_what_is_public_says_what_it_is() -> None:
    silent = []
    for _title, modules in tool().GROUPS.values():
        for module in modules:
            for name in import_module(module).__all__:
                value = getattr(import_module(module), name)
                if (inspect.isclass(value) or inspect.isfunction(value)) and not value.__doc__:
                    silent.append(f"{module}.{name}")
    assert silent == []
