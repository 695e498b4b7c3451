"""All benchmarks: `python benchmarks/run.py [--json] [--only NAME]... [--quick]`.

Each figure is measured against its baseline in the same run, in turn; see common.py. A
goal that is missed is shown and changes the exit code only with --check.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from datetime import UTC, datetime
from typing import Any

from common import Benchmark, Result
from provenance import provenance

_GROUPS = (
    "bench_guest_code",
    "bench_accesses",
    "bench_kvm",
    "bench_startup",
    "bench_machines",
    "bench_traps",
    "bench_engines",
    "bench_pc",
    "bench_linux",
    "bench_migrate",
    "bench_snapshot",
    "bench_gdb",
    "bench_diff",
    "bench_trace",
    "bench_fuzz",
    "bench_explore",
)


def collect(only: list[str]) -> dict[str, Benchmark]:
    """Benchmarks by name. Each of `only` is the start of some names, or a group (`accesses`)."""
    found: dict[str, Benchmark] = {}
    for group in _GROUPS:
        benchmarks: dict[str, Benchmark] = importlib.import_module(group).BENCHMARKS
        whole = not only or group in only or group.removeprefix("bench_") in only
        found.update({n: run for n, run in benchmarks.items() if whole or n.startswith(tuple(only))})
    return found


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if value >= 1e6 and unit != "bytes":
        return f"{value / 1e6:,.2f} M"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _print_table(results: list[Result]) -> None:
    head = ("name", "value", "baseline", "unit", "ratio", "goal", "", "measured")
    rows = [head]
    for r in results:
        if r.skipped:
            rows.append((r.name, "-", "-", r.unit, "-", "", "skipped", r.skipped))
            continue
        ratio = "-" if r.ratio is None else f"{r.ratio:.3f}"
        mark = {True: "met", False: "MISSED", None: ""}[r.met]
        how = ", ".join(filter(None, (r.clock and f"{r.clock} time", r.of)))
        rows.append(
            (r.name, _figure(r.value, r.unit), _figure(r.baseline, r.unit), r.unit, ratio, r.goal, mark, how)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            text.rjust(width) if i in (1, 2, 4) else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of a table")
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        default=[],
        help="the benchmarks whose name starts so, or a group; may be repeated",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: that it works, not how fast")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a goal is missed")
    arguments = parser.parse_args()
    benchmarks = collect(arguments.only)
    for name in arguments.only:
        if not collect([name]):
            parser.error(f"no benchmark is named {name}; there are: {', '.join(collect([]))}")
    measured: dict[str, Any] = provenance(sys.argv)
    results: list[Result] = []
    for name, benchmark in benchmarks.items():
        print(f"{name} ...", file=sys.stderr)
        results += benchmark(arguments.quick)
    if arguments.json:
        measured["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        print(json.dumps({"measured": measured, "results": [r.json() for r in results]}, indent=2))
    else:
        _print_table(results)
    return 1 if arguments.check and any(r.met is False for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
