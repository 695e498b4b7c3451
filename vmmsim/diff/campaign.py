"""Many cases, in ranges of seeds, given to any concurrent.futures Executor.

A range is a value, its result is a value, and a worker keeps nothing that matters: so it does
not matter who runs a range, in which order, or how often. A range whose worker died is run
again; the same seeds give the same findings, whatever the executor.

`Corpus` is the directory where a campaign's ranges and findings are kept, so that it can go on:

    campaign.json    what was run, by mode, and the table
    NAME.json        a finding's program: `vmmsim fuzz --replay NAME.json`
    NAME.vsnap       the machine at its start: `vmmsim diff NAME.vsnap`
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import UsageError, VmmsimError
from .case import MODE_NAMES, Case, encode_case
from .findings import Finding, examine
from .generate import generate

if TYPE_CHECKING:
    from .runner import Pair

__all__ = ["Corpus", "InlineExecutor", "Range", "Report", "executor_factory", "merge", "run_campaign", "work"]

#: Cases in a range: some tenths of a second of work.
RANGE = 250
#: Seconds between two looks at whether to stop.
_LOOK = 0.2
#: How often a range may lose its worker before the campaign gives up.
_MOST_DEATHS = 3
_CORPUS = "campaign.json"


class Range(msgspec.Struct, frozen=True):
    """Cases `first` to `first + count - 1` of `mode`, on the backends `left` and `right`."""

    mode: str
    first: int
    count: int
    left: str = "kvm"
    right: str = "unicorn"


class Report(msgspec.Struct, kw_only=True):
    """What a range, or a campaign, found: by cause, in the order of their first seeds."""

    cases: int = 0
    refused: int = 0
    differed: int = 0
    findings: dict[str, Finding] = msgspec.field(default_factory=dict)

    @property
    def new(self) -> list[Finding]:
        """The findings that no divergence explains."""
        return [f for f in self.findings.values() if not f.known]


def merge(into: Report, other: Report) -> None:
    """Add `other`. Of two findings of one cause the lower seed's program stays, so the order of
    merging does not matter."""
    into.cases += other.cases
    into.refused += other.refused
    into.differed += other.differed
    for key, theirs in other.findings.items():
        mine = into.findings.get(key)
        if mine is None:
            into.findings[key] = theirs
            continue
        first = mine if mine.seed <= theirs.seed else theirs
        into.findings[key] = msgspec.structs.replace(first, count=mine.count + theirs.count)


#: What each thread of this process has open.
_open = threading.local()


def _pair(left: str, right: str) -> Pair:
    """This thread's pair of backends; they stay open."""
    from ..backends import open_backend
    from .runner import Pair

    key = (os.getpid(), left, right)
    if getattr(_open, "key", None) != key:  # another process's, after a fork, is not ours to close
        _open.pair = Pair(open_backend(left)[0], open_backend(right)[0])
        _open.key = key
    pair: Pair = _open.pair
    return pair


def work(job: Range) -> Report:
    """Run a range, in this process. Where a worker is sent."""
    return work_with(_pair(job.left, job.right), job)


def work_with(pair: Pair, job: Range) -> Report:
    """Run a range on an open `runner.Pair`."""
    report = Report()
    for seed in range(job.first, job.first + job.count):
        case = generate(job.mode, seed)
        verdict = pair.run(case)
        report.cases += 1
        if verdict.refused:
            report.refused += 1
        elif verdict.fields:
            report.differed += 1
            finding = examine(pair, case, verdict)
            if finding is not None:
                key = f"{finding.mode} {finding.known or finding.cause}"
                merge(report, Report(findings={key: finding}))
    return report


class InlineExecutor(Executor):
    """Runs what is submitted at once, in this process: the executor of `--executor none`."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _ignore_ctrl_c() -> None:
    """In a worker: Ctrl-C is the campaign's, which ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def executor_factory(text: str | None) -> tuple[Callable[[], Executor], int]:
    """From `--executor`: what makes the executor, and how many ranges to keep it busy with.

    None: this process. `process:N`: N processes. `module:factory`: the callable `factory` of the
    module, called without arguments (a dask client's `get_executor`, say). UsageError else.
    """
    if text is None:
        return InlineExecutor, 1
    kind, _, rest = text.partition(":")
    if kind == "process":
        if not rest.isdigit() or not 1 <= int(rest) <= 1024:
            raise UsageError(f"--executor {text}: how many processes?", hint="for example process:2")
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        def make() -> Executor:
            return ProcessPoolExecutor(int(rest), get_context("spawn"), _ignore_ctrl_c)

        return make, 2 * int(rest)
    try:
        factory = getattr(importlib.import_module(kind), rest)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--executor {text}: {error}", hint="give process:N, or module:factory") from error
    if not callable(factory):
        raise UsageError(
            f"--executor {text}: it cannot be called", hint="give a function that makes an Executor"
        )
    return factory, 16


def run_campaign(
    jobs: Iterable[Range],
    make: Callable[[], Executor] = InlineExecutor,
    *,
    window: int = 4,
    worker: Callable[[Range], Report] = work,
    done: Callable[[Range, Report], None] = lambda job, report: None,
    until: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Run `jobs` by executors of `make`, at most `window` at a time; what they found together.

    `done` is told of each range. A range is taken again when its worker has died, by a new
    executor; UsageError when that happens to one range time after time. After `until`
    (time.perf_counter) no more ranges are begun. When `stop` says so, what is under way is given up: what
    `done` was told of is whole.
    """
    total = Report()
    source = iter(jobs)
    again: list[Range] = []
    deaths: dict[Range, int] = {}
    running: dict[Future[Report], Range] = {}
    executor = make()
    try:
        while True:
            while (
                not stop()
                and len(running) < window
                and (until is None or time.perf_counter() < until or again)
            ):
                job = again.pop() if again else next(source, None)
                if job is None:
                    break
                try:
                    running[executor.submit(worker, job)] = job
                except BrokenExecutor:
                    again.append(job)
                    break
            if stop() or not (running or again):
                return total
            finished = wait(running, timeout=_LOOK, return_when=FIRST_COMPLETED).done if running else set()
            broken = not running
            for future in sorted(finished, key=lambda f: running[f].first):
                job = running.pop(future)
                try:
                    report = future.result()
                except (BrokenExecutor, CancelledError) as error:
                    broken = True
                    again.append(_once_more(job, deaths, error))
                    continue
                except Exception as error:
                    if isinstance(error, VmmsimError) or type(error).__name__ not in _LOST:
                        raise
                    again.append(_once_more(job, deaths, error))
                    continue
                merge(total, report)
                done(job, report)
            if broken:
                again += running.values()
                running.clear()
                _end(executor)
                executor = make()
    finally:
        for future in running:
            future.cancel()
        _end(executor)


def _end(executor: Executor) -> None:
    try:
        executor.shutdown(wait=False, cancel_futures=True)
    except TypeError:  # dask's, of Python 3.8
        executor.shutdown(wait=False)


#: What dask.distributed raises for a worker that died too often.
_LOST = frozenset({"KilledWorker", "CommClosedError"})


def _once_more(job: Range, deaths: dict[Range, int], error: BaseException) -> Range:
    deaths[job] = deaths.get(job, 0) + 1
    if deaths[job] > _MOST_DEATHS:
        last = job.first + job.count - 1
        raise UsageError(
            f"the workers die of the cases {job.first} to {last} in mode {job.mode}: {error}",
            hint=f"see: vmmsim fuzz --mode {job.mode} --seed {job.first} --cases {job.count}",
        ) from error
    return job


# -- the corpus


class _State(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    version: int = 1
    done: dict[str, list[tuple[int, int]]] = msgspec.field(default_factory=dict)
    report: Report = msgspec.field(default_factory=Report)


class Corpus:
    """The directory of a campaign. UsageError for one that holds something else, or is damaged."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.state = _State()
        self._changed: set[str] = set()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            data = (self.path / _CORPUS).read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(f"the corpus '{path}': {error.strerror}", hint="-o is a directory") from error
        try:
            self.state = msgspec.json.decode(data, type=_State)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UsageError(
                f"the corpus '{path}' is damaged: {_CORPUS}: {error}",
                hint="give another directory, or remove it",
            ) from error

    @property
    def report(self) -> Report:
        """All that the campaign has found."""
        return self.state.report

    def missing(self, mode: str, first: int, count: int) -> Iterator[tuple[int, int]]:
        """The (first, count) of the cases of `mode` in that span that were not run yet."""
        at, end = first, first + count
        for start, size in sorted(self.state.done.get(mode, [])):
            if start >= end:
                break
            if at < start:
                yield at, start - at
            at = max(at, start + size)
        if at < end:
            yield at, end - at

    def add(self, job: Range, report: Report) -> None:
        """Keep what a range found; on the disk when `save` is called."""
        spans = sorted([*self.state.done.get(job.mode, []), (job.first, job.count)])
        joined: list[tuple[int, int]] = []
        for start, size in spans:
            if joined and joined[-1][0] + joined[-1][1] >= start:
                last = joined[-1]
                joined[-1] = (last[0], max(last[1], start + size - last[0]))
            else:
                joined.append((start, size))
        self.state.done[job.mode] = joined
        merge(self.state.report, report)
        self._changed |= set(report.findings)

    def save(self) -> None:
        """Write the findings that came since, then the table: each file is whole or not there."""
        from ..snapshot.atomic import replacing

        for key in sorted(self._changed):
            finding = self.state.report.findings[key]
            name = file_name(finding)
            with replacing(self.path / f"{name}.json") as file:
                file.write(encode_case(finding.case))
            if not finding.known:
                save_snapshot(finding.case, self.path / f"{name}.vsnap")
        self._changed.clear()
        with replacing(self.path / _CORPUS) as file:
            file.write(msgspec.json.format(msgspec.json.encode(self.state), indent=1) + b"\n")


def file_name(finding: Finding) -> str:
    """A file's name for a finding: mode, what it is, seed."""
    what = re.sub("[^a-z0-9]+", "-", (finding.known or finding.cause).lower()).strip("-")[:60]
    return f"{finding.mode}-{what}-{finding.seed}"


def save_snapshot(case: Case, path: str | Path) -> None:
    """The machine that `case` starts in, as a snapshot file that `vmmsim diff` can run."""
    from ..config import MachineConfig
    from ..machine import Machine
    from ..snapshot.container import save
    from .case import RAM

    with Machine(MachineConfig(memory=RAM, model="bare"), backend="unicorn") as machine:
        for gpa, data in case.writes():
            machine.memory.write(gpa, data)
        machine.vcpu.set_state(case.state())
        save(machine.snapshot(comment=f"vmmsim fuzz --mode {case.mode} --seed {case.seed}"), path)


def check_mode(mode: str) -> str:
    """UsageError for a mode that the fuzzer has not."""
    if mode not in MODE_NAMES:
        raise UsageError(f"there is no mode '{mode}'", hint=f"choose from {', '.join(MODE_NAMES)}")
    return mode
