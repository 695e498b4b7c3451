"""`vmmsim clone`: many machines from one snapshot, each run to its end."""

from __future__ import annotations

import base64
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .common import check_backend, json_option, parse_seconds
from .output import out, say, table

if TYPE_CHECKING:
    from ..snapshot.clone import CloneResult

__all__ = ["command"]

_MOST = 1_000_000
_CTRL_C = 130


@click.command("clone")
@click.argument("file")
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1, _MOST),
    default=1,
    show_default=True,
    metavar="N",
    help="How many clones.",
)
@click.option("--jobs", "-j", type=click.IntRange(1, 1024), metavar="N", help="The same as processes:N.")
@click.option(
    "--executor",
    metavar="WHERE",
    help="serial (one after the other), threads:N, processes:N, or module:factory of an Executor. [serial]",
)
@click.option(
    "--backend",
    "-b",
    envvar="VMMSIM_BACKEND",
    default="auto",
    show_default=True,
    show_envvar=True,
    metavar="auto|kvm|unicorn",
    help="The CPU.",
)
@click.option("--stdin", metavar="FILE|-", help="What each clone is given to read. [nothing]")
@click.option("--timeout", metavar="TIME", help="Stop each clone after this time: 10, 1.5s, 200ms, 2m.")
@click.option(
    "--seed", type=int, metavar="N", help="Begin the random source of clone K with N + K. [by chance]"
)
@click.option("--same-random", is_flag=True, help="Let random sources go on as the snapshot's.")
@click.option("--parent", "parents", multiple=True, metavar="FILE", help="Where a parent of FILE is.")
@json_option
def command(
    file: str, count: int, jobs: int | None, executor: str | None, backend: str, stdin: str | None,
    timeout: str | None, as_json: bool, **options: Any,
) -> int:  # fmt: skip
    """Make N machines from the snapshot FILE and run each to its end.

    Each has the snapshot's pages until it stores to them, its own random source, and its own
    generation: clone K that of the snapshot plus K. A table says how they ended. The exit code is
    0 if all clones ended with 0, else that of the first clone, by its number, that did not.
    """
    from ..snapshot import clone, executors

    if jobs is not None and executor is not None:
        raise UsageError("--jobs and --executor", hint="--jobs N is --executor processes:N")
    where = executors.check(executor or (f"processes:{jobs}" if jobs else "serial"))
    check_backend(backend)
    group = f"{os.getpid()}-{time.perf_counter_ns()}"
    work = clone.jobs(
        file, count, backend=backend, input=_input(stdin),
        timeout=parse_seconds(timeout) if timeout is not None else None, group=group, **options,
    )  # fmt: skip
    results: list[CloneResult] = []
    began = time.perf_counter()
    stopped = False
    try:
        with executors.opened(where, lambda: clone.cancel(group)) as pool, _progress(count) as step:
            for result in clone.clones(work, pool):
                results.append(result)
                step()
    except KeyboardInterrupt:
        stopped = True
    seconds = time.perf_counter() - began
    results.sort(key=lambda result: result.number)
    if as_json:
        _print_json(results, file, count, seconds, where)
    else:
        _print_table(results)
    say(_summary(results, count, seconds, where))
    if stopped:
        say(f"stopped by Ctrl-C: {len(results)} of {count} clones had ended")
        return _CTRL_C
    return next((result.code for result in results if result.code), 0)


def _input(path: str | None) -> bytes:
    if path is None:
        return b""
    try:
        if path == "-":
            return sys.stdin.buffer.read() if sys.stdin is not None else b""
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"the input '{path}' cannot be read: {error.strerror}") from error


@contextmanager
def _progress(count: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, if that is a terminal."""
    if count < 2 or sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("clones"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("clones", total=count)
        yield lambda: bar.advance(task)


def _print_table(results: list[CloneResult]) -> None:
    """One row for each way in which clones ended, the most frequent first."""
    ways = Counter((r.end, r.detail, r.code) for r in results)
    rows = []
    for (end, detail, code), number in ways.most_common():
        mine = [r for r in results if (r.end, r.detail, r.code) == (end, detail, code)]
        text = end if detail in ("", end) else f"{end}: {detail}"
        rows.append(
            (
                text, str(code), str(number), f"{median(r.seconds for r in mine) * 1e3:.2f} ms",
                f"{median(r.ready_seconds for r in mine) * 1e3:.2f} ms", str(len({r.output for r in mine})),
            )
        )  # fmt: skip
    table(("ended with", "code", "clones", "time each", "to first instruction", "outputs"), rows)


def _summary(results: list[CloneResult], count: int, seconds: float, where: str) -> str:
    provenances = ", ".join(sorted({r.provenance for r in results if r.provenance})) or "no backend"
    return f"{len(results)} of {count} clones in {seconds:.2f} s on {provenances} ({where})"


def _print_json(results: list[CloneResult], file: str, count: int, seconds: float, where: str) -> None:
    import msgspec

    report = {
        "file": file,
        "count": count,
        "executor": where,
        "seconds": round(seconds, 6),
        "clones": [
            {
                **{name: getattr(r, name) for name in r.__struct_fields__ if name != "output"},
                "output": base64.b64encode(r.output).decode("ascii"),
            }
            for r in results
        ],
    }
    out(msgspec.json.encode(report))
