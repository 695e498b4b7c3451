"""Many clones of one snapshot file, each run to its end: in this process, in threads, in others.

The work is a function of one value, `run_clone(job)`, and both the job and its result can be pickled:
any `concurrent.futures.Executor` can spread it (dask's and others' too), as long as its workers see
the file under the same path. The file's pages are shared by all clones of a host, those of other
processes too; a clone has of its own what it stores to.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import TYPE_CHECKING

import msgspec

from ..budget import seconds
from ..errors import UsageError, VmmsimError
from ..exits import Cancelled
from ..streams import BytesSource
from .container import load
from .values import Identity

if TYPE_CHECKING:
    from ..backends.base import Backend
    from ..machine import Machine
    from .values import Snapshot

__all__ = ["CloneJob", "CloneResult", "cancel", "clones", "jobs", "run_clone"]

#: Snapshots and backends that a process keeps for further jobs.
_MOST_KEPT = 8
#: Jobs that an executor is given ahead of their results.
_AHEAD = 64

_Stamp = tuple[str, int, int, int, int]


class CloneJob(msgspec.Struct, frozen=True, kw_only=True):
    """What one clone is to do. `number` counts from 1; the clone's generation is the snapshot's plus it.

    `id` is the snapshot's, whose pages somebody has checked. `input` is what the guest reads next,
    `timeout` in seconds, `seed` begins its random source (each clone's another: the seed plus its
    number), `group` is what `cancel` takes.
    """

    path: str
    id: str
    number: int
    parents: tuple[str, ...] = ()
    backend: str = "auto"
    input: bytes = b""
    timeout: float | None = None
    seed: int | None = None
    same_random: bool = False
    group: str = ""


class CloneResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a clone ended. `end` is the kind of the exit, or `error`; `code` as `vmmsim run` would end.

    `ready_seconds` is from the job's begin to the clone's first instruction, `seconds` to its end;
    `exits` counts accesses. `output` is what this clone printed, at least its last 16 MiB.
    """

    number: int
    generation: int
    end: str
    detail: str
    code: int
    output: bytes
    exits: int
    ready_seconds: float
    seconds: float
    provenance: str
    process: int


class _Group:
    """The clones of a run of `clones` that are alive in this process."""

    def __init__(self) -> None:
        self.machines: set[Machine] = set()
        self.cancelled = False


_lock = threading.Lock()
_groups: dict[str, _Group] = {}
_snapshots: dict[tuple[str, tuple[str, ...]], tuple[_Stamp, Snapshot]] = {}
_backends: dict[str, Backend] = {}


def _backend(name: str) -> Backend:
    with _lock:
        if name not in _backends:
            from ..backends import open_backend

            if not _backends:
                atexit.register(_close_backends)
            _backends[name] = open_backend(name)[0]
        return _backends[name]


def _close_backends() -> None:
    while _backends:
        _backends.popitem()[1].close()


def _snapshot(job: CloneJob) -> Snapshot:
    """The job's snapshot, which this process may have loaded already. Raises SnapshotError."""
    key = job.path, job.parents
    try:
        status = os.stat(job.path)
    except (OSError, ValueError):
        return load(job.path, parents=job.parents, verify=False, expect=job.id)  # says what is wrong
    stamp = job.id, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    with _lock:
        kept = _snapshots.get(key)
        if kept is None or kept[0] != stamp:
            found = load(job.path, parents=job.parents, verify=False, expect=job.id)
            if len(_snapshots) >= _MOST_KEPT:
                _snapshots.pop(next(iter(_snapshots)))
            kept = _snapshots[key] = stamp, found
        return kept[1]


def run_clone(job: CloneJob) -> CloneResult:
    """Make the clone, run it to its end, and say how that was. Not raised: what goes wrong with the
    clone is its result. KeyboardInterrupt is, and what a fault of vmmsim raises."""
    began = time.perf_counter()
    ready = began
    end, detail, code = "error", "", 125
    generation = exits = 0
    output, provenance = b"", ""
    try:
        snapshot = _snapshot(job)
        backend = _backend(job.backend)
        generation, provenance = snapshot.generation + job.number, backend.provenance
        identity = Identity(
            generation=generation,
            seed=None if job.seed is None else job.seed + job.number,
            same_random=job.same_random,
        )
        with snapshot.clone(
            backend=backend, source=BytesSource(job.input), rewind=False, identity=identity
        ) as machine:
            group = _enter(job.group, machine)
            try:
                ready = time.perf_counter()
                if not group.cancelled:
                    exit = machine.run(budget=seconds(job.timeout) if job.timeout is not None else None)
                else:
                    exit = Cancelled()
            finally:
                group.machines.discard(machine)
                output, exits = machine.output.data, machine.accesses.total
            verdict = machine.outcome(exit)
            end, detail, code = exit.kind, verdict.panicked or exit.describe(), verdict.code
    except VmmsimError as error:
        detail, code = error.message, error.exit_code
    return CloneResult(
        number=job.number,
        generation=generation,
        end=end,
        detail=detail,
        code=code,
        output=output,
        exits=exits,
        ready_seconds=ready - began,
        seconds=time.perf_counter() - began,
        provenance=provenance,
        process=os.getpid(),
    )


def _enter(name: str, machine: Machine) -> _Group:
    with _lock:
        group = _groups.setdefault(name, _Group()) if name else _Group()
        group.machines.add(machine)
        return group


def cancel(group: str) -> None:
    """From any thread: end the clones of the group that run in this process, and begin no others."""
    with _lock:
        found = _groups.setdefault(group, _Group())
        found.cancelled = True
        machines = list(found.machines)
    for machine in machines:
        machine.cancel()


def jobs(
    path: str | os.PathLike[str],
    count: int,
    *,
    parents: tuple[str, ...] = (),
    backend: str = "auto",
    input: bytes = b"",
    timeout: float | None = None,
    seed: int | None = None,
    same_random: bool = False,
    group: str = "",
) -> Iterator[CloneJob]:
    """The jobs of `count` clones. The file and its pages are checked first, once for them all.

    Raises SnapshotError, UsageError.
    """
    if count < 1:
        raise UsageError(f"{count} clones", hint="give 1 or more")
    name = os.path.abspath(path)
    elders = tuple(map(os.path.abspath, parents))
    snapshot = load(name, parents=elders)
    if snapshot.generation + count >= 1 << 63:
        raise UsageError(f"a generation beyond {snapshot.generation}", hint="generations are below 2**63")
    ident = snapshot.id or ""
    return (
        CloneJob(
            path=name, id=ident, number=number, parents=elders, backend=backend, input=input,
            timeout=timeout, seed=seed, same_random=same_random, group=group,
        )
        for number in range(1, count + 1)
    )  # fmt: skip


def clones(work: Iterator[CloneJob], executor: Executor | None = None) -> Iterator[CloneResult]:
    """The results of jobs as they come: one after the other here, or as `executor` is done with them.

    An executor is given some jobs ahead, not all at once. When the caller goes away (also by Ctrl-C)
    those that have not begun are called off. Raises what the executor raises (BrokenExecutor).
    """
    if executor is None:
        yield from map(run_clone, work)
        return
    waiting: set[Future[CloneResult]] = set()
    try:
        more = True
        while more or waiting:
            while more and len(waiting) < _AHEAD:
                job = next(work, None)
                if job is None:
                    more = False
                else:
                    waiting.add(executor.submit(run_clone, job))
            if waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
    finally:
        for future in waiting:
            future.cancel()
