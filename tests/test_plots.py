"""tools/plots.py: from the JSON of the benchmarks to pictures and tables, or a clear word why not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"
pytestmark = pytest.mark.skipif(not TOOLS.exists(), reason="an installed package has no tools")
if TOOLS.exists():
    sys.path.insert(0, str(TOOLS))
    import plots
    import plots_data

Json = dict[str, Any]


def result(name: str, value: float, **more: Any) -> Json:
    spread = {"low": value / 2, "high": value * 2, "baseline_low": 90.0, "baseline_high": 110.0}
    return {"name": name, "value": value, "baseline": 100.0, "skipped": "", "x": None, **spread, **more}


@pytest.fixture
def report() -> Json:
    """A whole report, with numbers that are easy to find again."""
    kinds = ("port_out", "port_in", "mmio_write", "mmio_read")
    results = [
        *(result(f"unicorn_{kind}", 500_000.0) for kind in kinds),
        *(result(f"portable_{kind}", 40_000.0) for kind in kinds),
        *(result(f"unicorn_run_exit_{kind}", 60_000.0) for kind in kinds),
        *(result(name, 12_345.0) for name in ("kvm_port", "kvm_port_in", "kvm_mmio", "kvm_mmio_read")),
        *(result(f"restore_curve_{b}_{x}", 7.0 * x, x=x) for b in ("unicorn", "kvm") for x in (1, 100)),
        *(
            result(f"clones_alive_{b}_{x}", 1 << 19, x=x, low=None, high=None)
            for b in ("unicorn", "kvm")
            for x in (10, 2)
        ),
    ]
    machine = {"cpu": "A CPU", "cpus": 3, "memory_mib": 1, "system": "Linux 6"}
    measured = {
        "date": "2026-01-02T03:04:05+00:00", "commit": "abcdef", "command": "python benchmarks/run.py --json",
        "machine": machine, "quick": False, "backends": {"kvm": "kvm/vmx"}, "load": [0.1, 0.2, 0.3],
        "python": "3.14.0",
    }  # fmt: skip
    return {"measured": measured, "results": results}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[object], Path]:
    def to_file(value: object) -> Path:
        path = tmp_path / "in.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return to_file


def test_pictures_have_their_texts_and_the_json_lies_beside(report: Json, write: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures are drawn with matplotlib, of the group docs")
    out = tmp_path / "pictures"
    assert plots.main([str(write(report)), "-o", str(out)]) == 0
    assert json.loads((out / "bench.json").read_text(encoding="utf-8")) == report
    texts = {
        "exits": ["Exits/s (logarithmic)", "MMIO read", "KVM from C, the same loop", "100,000"],
        "restore": ["Microseconds (logarithmic)", "4 KiB pages stored to", "copying 64 MiB"],
        "clones": ["MiB in all (logarithmic)", "clones alive", "64 MiB each (computed, not measured)"],
    }
    for name, wanted in texts.items():
        svg = (out / f"{name}.svg").read_text(encoding="utf-8")
        assert svg.startswith("<?xml")
        assert [text for text in wanted if text not in svg] == []


def test_the_same_json_makes_the_same_picture(report: Json, write: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures are drawn with matplotlib, of the group docs")
    for name in ("one", "two"):
        assert plots.main([str(write(report)), "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "one/exits.svg").read_bytes() == (tmp_path / "two/exits.svg").read_bytes()


def test_tables_have_the_numbers_and_their_spread(report: Json, write: Any) -> None:
    found = plots_data.read(write(report))
    exits, restore, clones = (figure(found).markdown() for figure in plots_data.FIGURES.values())
    assert "12,300 (6,170 to 24,700)" in exits
    assert "| IN | 100 (90 to 110) | 500,000 (250,000 to 1,000,000)" in exits
    assert "| 100 | 700 (350 to 1,400) | 100 (90 to 110) | 700 (350 to 1,400) |" in restore
    # Half a MiB for each clone: ten have 5 MiB, where whole copies would have 640.
    assert clones.splitlines()[4:6] == ["| 2 | 1 | 1 | 128 |", "| 10 | 5 | 5 | 640 |"]


def test_what_was_not_measured_is_said(report: Json, write: Any) -> None:
    for entry in report["results"]:
        if "kvm" in entry["name"]:
            entry |= {"value": None, "low": None, "high": None, "skipped": "there is no /dev/kvm"}
    report["results"] = [r for r in report["results"] if "kvm" not in r["name"] or r["x"] in (None, 1, 2)]
    found = plots_data.read(write(report))
    for figure in plots_data.FIGURES.values():
        text = figure(found).markdown()
        assert "vmmsim, KVM: not measured (there is no /dev/kvm)." in text
        assert "vmmsim, KVM |" not in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no JSON"),
        ("[]", "is no report of benchmarks/run.py"),
        ('{"measured": {}, "results": []}', "is no report of benchmarks/run.py (KeyError('date'))"),
        ("5", "is no report of benchmarks/run.py"),
    ],
)
def test_what_is_no_report(text: str, says: str, write: Any, tmp_path: Path, capsys: Any) -> None:
    assert plots.main([str(write(text)), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("plots: error: ")
    assert says in error
    assert "python benchmarks/run.py --json" in error
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there(tmp_path: Path, capsys: Any) -> None:
    assert plots.main([str(tmp_path / "nothing.json"), "-o", str(tmp_path)]) == 2
    assert "cannot be read: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("start", "remedy"),
    [
        ("portable_", "--only accesses"),
        ("kvm_port", "--only kvm"),
        ("restore_curve_kvm", "--only restore_curve"),
        ("clones_alive_unicorn", "--only clones_alive"),
    ],
)
def test_a_series_that_is_missing(
    start: str, remedy: str, report: Json, write: Any, tmp_path: Path, capsys: Any
) -> None:
    report["results"] = [r for r in report["results"] if not r["name"].startswith(start)]
    assert plots.main([str(write(report)), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert start in error
    assert remedy in error


def test_a_value_that_is_no_number(report: Json, write: Any) -> None:
    report["results"][0]["value"] = "fast"
    with pytest.raises(plots_data.BadReport, match="the value of unicorn_port_out is no number"):
        plots_data.read(write(report))


def test_a_page_without_a_place(report: Json, write: Any, tmp_path: Path, capsys: Any) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Nothing\n", encoding="utf-8")
    assert plots.main([str(write(report)), "-o", str(tmp_path / "out"), "--page", str(page)]) == 2
    assert "has no place for 'measured': write <!-- plots: measured -->" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == "# Nothing\n"


def test_the_page_shows_what_the_committed_json_says() -> None:
    """And every picture that it shows is there: make them again with tools/plots.py."""
    page, images = ROOT / "docs/performance.md", ROOT / "docs/images"
    report = plots_data.read(images / "bench.json")
    assert plots.write_page(page, report, "images") == page.read_text(encoding="utf-8")
    assert [name for name in plots_data.FIGURES if not (images / f"{name}.svg").is_file()] == []
