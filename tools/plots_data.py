"""From the JSON of benchmarks/run.py to what a picture shows: points, and the same as a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["FIGURES", "BadReport", "Curve", "FigureData", "Point", "Report", "provenance_text", "read"]

_MIB = 1 << 20


class BadReport(Exception):
    """The JSON cannot be used; the message says what it lacks and how to get it."""


@dataclass(frozen=True)
class Report:
    """`measured` is where and how, `results` are by name, `text` is the file."""

    measured: dict[str, Any]
    results: dict[str, dict[str, Any]]
    text: str


@dataclass(frozen=True)
class Point:
    """`x` is a number or a category; `low` and `high` the spread, None where there is none."""

    x: float | str
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """One line of a figure. `baseline`: what the others are compared with, drawn in grey."""

    label: str
    points: list[Point]
    baseline: bool = False


@dataclass(frozen=True)
class FigureData:
    """What one picture shows. `kind` is dots (categories) or lines (both axes logarithmic)."""

    title: str
    kind: str
    x_label: str
    y_label: str
    curves: list[Curve]
    notes: list[str] = field(default_factory=list)

    def alt(self) -> str:
        """For who does not see the picture; the table has the numbers."""
        names = "; ".join(curve.label for curve in self.curves)
        return (
            f"{self.title}. {self.y_label} over {self.x_label}: {names}. The numbers are in the table below."
        )

    def markdown(self) -> str:
        """The numbers: a row for each x, a column for each curve, `value (low to high)`."""
        xs: list[float | str] = []
        for curve in self.curves:
            xs += [point.x for point in curve.points if point.x not in xs]
        if self.kind == "lines":
            xs.sort(key=float)
        rows = [[self.x_label, *(curve.label for curve in self.curves)]]
        for x in xs:
            cells = [next((p for p in curve.points if p.x == x), None) for curve in self.curves]
            rows.append([x if isinstance(x, str) else f"{x:,.0f}", *map(_cell, cells)])
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        lines.insert(1, "|---" + "|---:" * len(self.curves) + "|")
        return "\n".join([f"{self.y_label}:", "", *lines, *(f"\n{note}" for note in self.notes)])


def _cell(point: Point | None) -> str:
    if point is None:
        return "not measured"
    if point.low is None or point.high is None or point.low == point.high:
        return _number(point.y)
    return f"{_number(point.y)} ({_number(point.low)} to {_number(point.high)})"


def _number(value: float) -> str:
    """Three digits are more than these figures are good for."""
    if value >= 1000:
        scale = 10 ** (len(str(int(value))) - 3)
        return f"{round(value / scale) * scale:,.0f}"
    return f"{value:.3g}"


def read(path: Path) -> Report:
    """The report in `path`. Raises BadReport for what is no JSON of benchmarks/run.py."""
    how = "write it with: python benchmarks/run.py --json"
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text)
    except OSError as error:
        raise BadReport(f"{path} cannot be read: {error.strerror}; {how}") from error
    except ValueError as error:
        raise BadReport(f"{path} is no JSON ({error}); {how}") from error
    try:
        measured, results = found["measured"], {entry["name"]: entry for entry in found["results"]}
        for name in ("date", "commit", "command", "machine", "quick", "backends", "load"):
            measured[name]
        for entry in results.values():
            if not entry["skipped"] and not isinstance(entry["value"], (int, float)):
                raise TypeError(f"the value of {entry['name']} is no number")
    except (KeyError, TypeError) as error:
        raise BadReport(f"{path} is no report of benchmarks/run.py ({error!r}); {how}") from error
    return Report(measured, results, text)


def provenance_text(report: Report) -> str:
    """Where, when and how: a paragraph in Markdown."""
    m, machine = report.measured, report.measured["machine"]
    load = "" if not m["load"] else f", load average {m['load'][0]:.1f}"
    backends = "; ".join(f"{name}: {what}" for name, what in m["backends"].items())
    when = m["date"].replace("T", " ").partition("+")[0]
    lines = [
        f"Measured on {when} UTC, commit `{m['commit'] or 'unknown'}`, on {machine['cpus']} CPUs",
        f"({machine['cpu']}), {machine['system']}{load}, Python {m['python']}.",
        f"Backends: {backends}.",
        f"Command: `{m['command']}`.",
    ]
    if m["quick"]:
        lines.insert(0, "**Quick figures, of tiny sizes: they show that it works, not how fast it is.**")
    return "\n".join(lines)


def _wanted(report: Report, name: str, of: str) -> dict[str, Any]:
    if name not in report.results:
        raise BadReport(f"the report lacks {name}: measure it with --only {of}")
    return report.results[name]


def _points(
    report: Report, start: str, of: str, scale: Callable[[dict[str, Any]], float]
) -> list[Point] | str:
    """The points of the curve whose results' names begin with `start`, or why there are none."""
    mine = [r for name, r in report.results.items() if name.startswith(start)]
    if not mine:
        raise BadReport(f"the report lacks the series {start}*: measure it with --only {of}")
    if mine[0]["skipped"]:
        return str(mine[0]["skipped"])
    if any(r.get("x") is None for r in mine):
        raise BadReport(f"the results {start}* have no x: they are of an older benchmark, measure them again")
    return sorted(
        (
            Point(r["x"], *(None if r[k] is None else r[k] * scale(r) for k in ("value", "low", "high")))
            for r in mine
        ),
        key=lambda point: point.x,
    )


_KINDS = {"port_out": "OUT", "port_in": "IN", "mmio_write": "MMIO write", "mmio_read": "MMIO read"}
_KVM = {
    "port_out": "kvm_port",
    "port_in": "kvm_port_in",
    "mmio_write": "kvm_mmio",
    "mmio_read": "kvm_mmio_read",
}
#: label, whether it is the baseline's value, and the result of each kind of access.
_EXITS: list[tuple[str, bool, str, dict[str, str]]] = [
    ("Unicorn's Python binding, empty callback", True, "accesses", {k: f"unicorn_{k}" for k in _KINDS}),
    ("vmmsim, Unicorn, native engine", False, "accesses", {k: f"unicorn_{k}" for k in _KINDS}),
    ("vmmsim, Unicorn, portable engine", False, "accesses", {k: f"portable_{k}" for k in _KINDS}),
    ("vmmsim, Unicorn, one exit at a time", False, "accesses", {k: f"unicorn_run_exit_{k}" for k in _KINDS}),
    ("KVM from C, the same loop", True, "kvm", _KVM),
    ("vmmsim, KVM", False, "kvm", _KVM),
]


def exits(report: Report) -> FigureData:
    """Exits a second by backend."""
    curves, notes = [], []
    for label, baseline, of, names in _EXITS:
        found = {kind: _wanted(report, name, of) for kind, name in names.items()}
        why = [entry["skipped"] for entry in found.values() if entry["skipped"]]
        if why:
            notes.append(f"{label}: not measured ({why[0]}).")
            continue
        keys = ("baseline", "baseline_low", "baseline_high") if baseline else ("value", "low", "high")
        points = [Point(_KINDS[kind], *(entry.get(key) for key in keys)) for kind, entry in found.items()]
        curves.append(Curve(label, points, baseline))
    if not curves:
        raise BadReport("nothing of the exits was measured: " + " ".join(notes))
    return FigureData("Exits a second, by CPU", "dots", "access", "Exits/s", curves, notes)


def restore(report: Report) -> FigureData:
    """How long going back to a snapshot takes, over the pages that were stored to."""
    curves, notes = [], []
    for backend, label in (("unicorn", "vmmsim, Unicorn"), ("kvm", "vmmsim, KVM")):
        points = _points(report, f"restore_curve_{backend}", "restore_curve", lambda r: 1.0)
        if isinstance(points, str):
            notes.append(f"{label}: not measured ({points}).")
            continue
        curves.append(Curve(label, points))
        mine = [r for name, r in report.results.items() if name.startswith(f"restore_curve_{backend}")]
        copies = [Point(r["x"], *(r[f"baseline{k}"] for k in ("", "_low", "_high"))) for r in mine]
        if len(curves) == 1:
            curves.append(Curve("copying 64 MiB", sorted(copies, key=lambda p: p.x), True))
    if not curves:
        raise BadReport("no restore was measured: " + " ".join(notes))
    return FigureData(
        "Going back to a snapshot of 64 MiB", "lines", "4 KiB pages stored to since the snapshot",
        "Microseconds", curves, notes,
    )  # fmt: skip


def clones(report: Report) -> FigureData:
    """Private memory of many clones of one snapshot."""
    curves, notes = [], []
    for backend, label in (("unicorn", "vmmsim, Unicorn"), ("kvm", "vmmsim, KVM")):
        points = _points(report, f"clones_alive_{backend}", "clones_alive", lambda r: r["x"] / _MIB)
        if isinstance(points, str):
            notes.append(f"{label}: not measured ({points}).")
            continue
        curves.append(Curve(label, points))
    if not curves:
        raise BadReport("no clones were measured: " + " ".join(notes))
    counts = sorted({float(point.x) for curve in curves for point in curve.points})
    curves.append(Curve("64 MiB each (computed, not measured)", [Point(n, n * 64) for n in counts], True))
    return FigureData(
        "Private memory of clones of a machine of 64 MiB",
        "lines",
        "clones alive",
        "MiB in all",
        curves,
        notes,
    )


FIGURES: dict[str, Callable[[Report], FigureData]] = {"exits": exits, "restore": restore, "clones": clones}
