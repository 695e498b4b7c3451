"""A run in a few lines of HTML, for a browser that runs no scripts, and the page's heading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..trace.records import ExitRecord, Jump, Trace
from .text import escaped

__all__ = ["heading", "summary"]


def heading(traces: Sequence[Trace]) -> str:
    """The page's heading: `guess`, `guess: kvm/pvm and unicorn/2.1.4`, or `hello64 and hello32`."""
    names = list(dict.fromkeys(trace.header.guest for trace in traces))
    if len(traces) == 1 or len(names) > 1:
        return " and ".join(names)
    return f"{names[0]}: " + " and ".join(trace.header.provenance for trace in traces)


def summary(traces: Sequence[Trace]) -> str:
    """Markup: each run's origin, its accesses by kind and device, its jumps, its end."""
    return "".join(_run(trace) for trace in traces)


def _run(trace: Trace) -> str:
    header, end = trace.header, trace.end
    exits = [record for record in trace.records if isinstance(record, ExitRecord)]
    kinds = Counter(exit.kind for exit in exits)
    devices = Counter(exit.device or "nobody" for exit in exits)
    jumps = Counter(record.what for record in trace.records if isinstance(record, Jump))
    rows = [
        ("Guest", header.guest),
        ("CPU", header.provenance or header.backend),
        ("Accesses", f"{len(exits):,}"),
        *((kind, f"{count:,}") for kind, count in kinds.most_common()),
    ]
    if header.detailed:
        rows += [(f"answered by {name}", f"{count:,}") for name, count in devices.most_common(20)]
    rows += [(what + "s", f"{count:,}") for what, count in jumps.items()]
    rows.append(("End", "the run was cut short" if end is None else f"{end.kind} {end.detail}".strip()))
    lines = "".join(
        f"<tr><th scope=row>{escaped(name)}</th><td>{escaped(value)}</td></tr>" for name, value in rows
    )
    return f"<table>{lines}</table>"
