"""`vmmsim fuzz`: small random programs on two CPUs, and what differs."""

from __future__ import annotations

import contextlib
import itertools
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import check_backend, parse_seconds
from .output import note, out, say, table

if TYPE_CHECKING:
    from ..diff.campaign import Corpus, Range, Report

__all__ = ["command"]

_DIFFER = 122
_DEFAULT_CASES = 20_000
#: Seconds between two writes of the corpus.
_SAVE = 2.0


@click.command("fuzz")
@click.option("--mode", "modes", multiple=True, metavar="16|32|64|64u", help="Mode, one or more. [all four]")
@click.option("--cases", type=click.IntRange(1), metavar="N", help="How many in each mode. [20000]")
@click.option("--seconds", metavar="TIME", help="How long, shared by the modes, instead of --cases.")
@click.option("--seed", type=click.IntRange(0), default=0, metavar="S", help="Of the first case. [0]")
@click.option(
    "--executor", metavar="process:N|module:factory", help="Who does the work: N processes, or any Executor."
)
@click.option("-o", "--output", metavar="DIR", help="Keep findings and progress there, and go on from it.")
@click.option("--replay", metavar="FILE", help="Run the program of a finding once, and say what differs.")
@click.option("--a", "left", default="kvm", metavar="BACKEND", help="The one CPU. [kvm]")
@click.option("--b", "right", default="unicorn", metavar="BACKEND", help="The other. [unicorn]")
def command(
    modes: tuple[str, ...],
    cases: int | None,
    seconds: str | None,
    seed: int,
    executor: str | None,
    output: str | None,
    replay: str | None,
    left: str,
    right: str,
) -> int:
    """Run random programs on both CPUs and list in what they differ, by cause.

    \b
    vmmsim fuzz --mode 64u --seconds 60 --executor process:2 -o corpus
    vmmsim fuzz --replay corpus/NAME.json

    Differences that divergences.toml explains are counted by its entry. Exit code 122 when there is
    one that it does not explain.
    """
    for name in (left, right):
        check_backend(name)
    if replay is not None:
        return _replay(replay, left, right)
    return _campaign(modes, cases, seconds, seed, executor, output, left, right)


def _replay(path: str, left: str, right: str) -> int:
    from ..backends import open_backend
    from ..diff.case import decode_case
    from ..diff.findings import explanation, listing
    from ..diff.runner import Pair
    from ..errors import ImageNotFound

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageNotFound(f"'{path}' cannot be read: {error.strerror}", hint="give a .json file") from error
    case = decode_case(data, path)
    out(f"; {case.mode}-bit code" if case.mode != "64u" else "; 64-bit code at CPL 3")
    out(listing(case))
    with Pair(open_backend(left)[0], open_backend(right)[0]) as pair:
        verdict = pair.run(case)
        if verdict.refused:
            sides = (f"{p} {end}" for p, end in zip(pair.provenances, verdict.ends, strict=True))
            out(f"cannot be compared: {', '.join(sides)}")
            return 0
        if not verdict.fields:
            out("no difference")
            return 0
        out(f"differs, {pair.provenances[0]} | {pair.provenances[1]}:")
        for field in verdict.fields:
            out(f"  {field}")
        known = explanation(case, verdict, pair.provenances)
    out(f"explained by {known}" if known else "NEW: no divergence explains it")
    return 0 if known else _DIFFER


def _campaign(
    modes: tuple[str, ...],
    cases: int | None,
    seconds: str | None,
    seed: int,
    executor: str | None,
    output: str | None,
    left: str,
    right: str,
) -> int:
    from ..backends import open_backend
    from ..diff.campaign import Corpus, Report, check_mode, executor_factory, merge, run_campaign
    from ..diff.case import MODE_NAMES

    chosen = tuple(map(check_mode, modes)) or MODE_NAMES
    make, window = executor_factory(executor)
    for name in (left, right):  # say now, not in a worker, that one is missing
        open_backend(name)[0].close()
    corpus = Corpus(output) if output is not None else None
    until = None if seconds is None else time.perf_counter() + parse_seconds(seconds)
    count = cases if cases is not None else (None if seconds is not None else _DEFAULT_CASES)
    jobs = _ranges(chosen, seed, count, corpus, left, right)
    total = Report()
    saved = time.perf_counter()
    with _progress(None if count is None else count * len(chosen)) as advance:

        def done(job: Range, report: Report) -> None:
            nonlocal saved
            merge(total, report)
            if corpus is not None:
                corpus.add(job, report)
                if time.perf_counter() - saved > _SAVE:
                    corpus.save()
                    saved = time.perf_counter()
            advance(job.count, len(total.new))

        with _ctrl_c() as pressed:
            run_campaign(jobs, make, window=window, done=done, until=until, stop=lambda: bool(pressed))
    code = _close(corpus, total)
    if pressed:
        raise KeyboardInterrupt
    return code


@contextlib.contextmanager
def _ctrl_c() -> Iterator[list[int]]:
    """What is given gets an element when Ctrl-C is pressed: an exception in the middle of a case would be
    lost in a callback. A second one ends the process as ever."""
    pressed: list[int] = []

    def note_it(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note_it)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _ranges(
    modes: tuple[str, ...], seed: int, count: int | None, corpus: Corpus | None, left: str, right: str
) -> Iterator[Range]:
    from ..diff.campaign import RANGE, Range

    def of(mode: str) -> Iterator[Range]:
        starts = itertools.count(seed, RANGE) if count is None else range(seed, seed + count, RANGE)
        for first in starts:
            size = RANGE if count is None else min(RANGE, seed + count - first)
            spans = [(first, size)] if corpus is None else corpus.missing(mode, first, size)
            for start, length in spans:
                yield Range(mode, start, length, left, right)

    if count is not None:
        for mode in modes:
            yield from of(mode)
        return
    sources = [of(mode) for mode in modes]
    while True:
        for source in sources:
            yield next(source)


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr where that is a terminal, else nothing."""
    import sys

    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda count, new: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("cases", total=total)

        def advance(count: int, new: int) -> None:
            bar.update(task, advance=count, description=f"cases, {new} new" if new else "cases")

        yield advance


def _close(corpus: Corpus | None, total: Report) -> int:
    """The corpus, the table, the exit code."""
    from ..diff.findings import listing

    report = total
    if corpus is not None:
        corpus.save()
        report = corpus.report
    findings = sorted(report.findings.values(), key=lambda f: (bool(f.known), -f.count, f.cause))
    rows = [
        (
            f.mode,
            f.cause if not f.known else f"such as {f.cause}",
            str(f.count),
            f.known or "NEW",
            str(f.seed),
        )
        for f in findings
    ]
    if rows:
        table(("mode", "cause", "count", "divergence", "seed"), rows)
    for finding in report.new[:20]:
        note(f"\nNEW, mode {finding.mode}, seed {finding.seed}: {finding.cause}")
        note(listing(finding.case))
        note("\n".join(f"  {line}" for line in finding.report))
    say(
        f"{report.cases} cases, {report.refused} refused by a CPU, {report.differed} differ, "
        f"{len(report.new)} causes are new"
    )
    return _DIFFER if report.new else 0
