"""The generated pages of docs/ say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from vmmsim.backends.base import CAPABILITY_TABLE, Capabilities
from vmmsim.diff import divergences
from vmmsim.exits import EXITS

TOOL = Path(__file__).resolve().parent.parent / "tools" / "gen_docs.py"


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_docs", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["exits.md", "capabilities.md", "divergences.md"])
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
