"""Drawing with matplotlib, on a light grey ground: legible on a light page and on a dark one."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from plots_data import Curve, FigureData, Point

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = ["save"]

#: Okabe and Ito's colours, which colour-blind people can tell apart (jfly.uni-koeln.de/color, 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_GREYS = ("#777777", "#333333")
_MARKERS = ("o", "s", "^", "D")
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and scaled
    "svg.hashsalt": "vmmsim",  # the same data make the same file
    "font.family": "sans-serif",
    "font.size": 10,
    "figure.facecolor": "#f4f4f2",
    "axes.facecolor": "#fcfcfb",
    "axes.grid": True,
    "grid.color": "#d8d8d4",
    "axes.axisbelow": True,
}


def save(data: FigureData, path: Path) -> None:
    """Draw `data` into the file `path` (its name's end says the format: svg, png)."""
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
        ours = greys = 0
        for curve in data.curves:
            if curve.baseline:
                look, greys = (_GREYS[greys % 2], "x", "--"), greys + 1
            else:
                look, ours = (_COLOURS[ours % 4], _MARKERS[ours % 4], "-"), ours + 1
            (_dots if data.kind == "dots" else _line)(axes, data, curve, *look)
        if data.kind == "dots":
            kinds = _kinds(data)
            axes.set_yticks(range(len(kinds)), kinds)
            axes.set_ylim(len(kinds) - 0.5, -0.5)
            axes.grid(visible=False, axis="y")
            for between in range(len(kinds) - 1):
                axes.axhline(between + 0.5, color=_STYLE["grid.color"], linewidth=1)
            axes.set_xscale("log")
            _plain_numbers(axes.xaxis, (1.0, 2.0, 5.0))
            axes.set_xlabel(f"{data.y_label} (logarithmic)")
        else:
            axes.set_xscale("log")
            axes.set_yscale("log")
            _plain_numbers(axes.xaxis, (1.0,))
            _plain_numbers(axes.yaxis, (1.0,))
            axes.set_xlabel(f"{data.x_label} (logarithmic)")
            axes.set_ylabel(f"{data.y_label} (logarithmic)")
        axes.set_title(data.title, loc="left", fontweight="bold")
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def _plain_numbers(axis: Axis, subs: tuple[float, ...]) -> None:
    """Of a logarithmic axis: plain numbers at the powers of ten times `subs`."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _at: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def _kinds(data: FigureData) -> list[str]:
    return list(dict.fromkeys(str(point.x) for curve in data.curves for point in curve.points))


def _spread(points: list[Point]) -> list[list[float]]:
    """How far the rounds lie below and above each point."""
    below = [point.y - (point.y if point.low is None else point.low) for point in points]
    above = [(point.y if point.high is None else point.high) - point.y for point in points]
    return [below, above]


def _dots(axes: Axes, data: FigureData, curve: Curve, colour: str, marker: str, line: str) -> None:
    kinds, at = _kinds(data), data.curves.index(curve)
    offset = (at - (len(data.curves) - 1) / 2) * 0.8 / max(1, len(data.curves))
    y = [kinds.index(str(point.x)) + offset for point in curve.points]
    x = [point.y for point in curve.points]
    axes.errorbar(
        x, y, xerr=_spread(curve.points), fmt=marker, color=colour, capsize=2, elinewidth=1, label=curve.label
    )


def _line(axes: Axes, data: FigureData, curve: Curve, colour: str, marker: str, line: str) -> None:
    x, y = [float(point.x) for point in curve.points], [point.y for point in curve.points]
    axes.plot(x, y, line, marker=marker, color=colour, label=curve.label, markersize=5)
    if all(point.low is not None for point in curve.points):
        low, high = [p.low or p.y for p in curve.points], [p.high or p.y for p in curve.points]
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
