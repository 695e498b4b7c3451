"""The exit explorer: how long 100,000 exits take to become a page, how large it is, how soon it can be used.

explore_page         seconds to make the page of a detailed trace of 100,000 exits, each with a look
explore_bytes        its size
explore_interactive  seconds from the navigation to a page that answers, as the page itself measures it, in
                     headless Chromium
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

from common import CPU, WALL, Benchmark, Result

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browser import browser, why_not
from explore_traces import detailed

from vmmsim.explore import page
from vmmsim.trace.records import Trace

_EXITS, _QUICK = 100_000, 2_000
_GOAL_PAGE, _GOAL_BYTES, _GOAL_READY = 5.0, 15_000_000, 2.0
_ROUNDS = 3


def _trace(quick: bool) -> Trace:
    return detailed(_QUICK if quick else _EXITS, jumps=5)


def _page(quick: bool) -> list[Result]:
    trace = _trace(quick)
    taken = []
    made = b""
    for _ in range(1 if quick else _ROUNDS):
        began = time.thread_time()
        made = page(trace)
        taken.append(time.thread_time() - began)
    of = f"best of {len(taken)}, {len(trace.exits):,} exits"
    return [
        Result(
            name="explore_page", unit="s", value=min(taken), goal=f"value <= {_GOAL_PAGE:g}",
            met=min(taken) <= _GOAL_PAGE, clock=CPU, of=of,
        ),
        Result(
            name="explore_bytes", unit="bytes", value=len(made), goal=f"value <= {_GOAL_BYTES}",
            met=len(made) <= _GOAL_BYTES, of=f"{len(trace.exits):,} exits",
        ),
    ]  # fmt: skip


def _interactive(quick: bool) -> list[Result]:
    missing = why_not()
    if missing:
        return [Result(name="explore_interactive", unit="s", skipped=missing)]
    made = page(_trace(quick))
    taken = []
    with browser() as chromium:
        for _ in range(1 if quick else _ROUNDS):
            chromium.open(made)
            code = "return performance.getEntriesByName('vmmsim-interactive')[0].startTime"
            taken.append(chromium.js(code) / 1000)
    value = median(taken)
    return [
        Result(
            name="explore_interactive", unit="s", value=value, goal=f"value <= {_GOAL_READY:g}",
            met=value <= _GOAL_READY, clock=WALL, of=f"median of {len(taken)}",
        )
    ]  # fmt: skip


BENCHMARKS: dict[str, Benchmark] = {"explore_page": _page, "explore_interactive": _interactive}
