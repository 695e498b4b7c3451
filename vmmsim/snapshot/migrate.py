"""Moving a machine that runs to another process or host: the source's side.

The guest runs in the caller's thread; a worker talks to the destination (`_Mover`). Where the worker
needs the machine between two instructions it cancels the run, and the caller's thread does what it
asks for. What may be at which side at which time is in docs/migration.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from ..budget import Budget, seconds
from ..errors import DeviceError, MigrationError, MigrationInDoubt, VmmsimError
from ..exits import Cancelled, Exit
from .capture import capture
from .channel import Channel
from .dirty import Account, DirtyPages
from .encode import encode_manifest
from .pages import MemoryImage, MemoryRegion
from .stream import MOST_PAGES, Connected, Got, Loaded, Ready, Source, Taken
from .wire import Address, Wire, connect

if TYPE_CHECKING:
    from ..machine import Machine

__all__ = ["HANDSHAKE", "Migrated", "Progress", "Report", "migrate"]

#: Seconds for the handshake: a stranger must not hold up others for long.
HANDSHAKE = 10.0
#: Seconds between two signs of life while the guest's next instruction is waited for.
_PING = 5.0


class Progress(msgspec.Struct, frozen=True):
    """`phase` is "connect", "round" or "stop"; `pages` of `total` pages of this round are sent."""

    phase: str
    round: int = 0
    pages: int = 0
    total: int = 0


class Report(msgspec.Struct, frozen=True):
    """What a migration came to. `pause_seconds` is how long the guest stood still, from its last
    instruction here until the destination ran it; `begin_seconds` the longest that it stood at the
    beginning, for an account of its pages, which is made in pieces. `rounds` were sent while it ran."""

    live: bool
    rounds: int
    pages: int
    last_pages: int
    bytes: int
    seconds: float
    begin_seconds: float
    pause_seconds: float
    backend: str
    peer: str

    @property
    def bytes_per_second(self) -> float:
        """Of all that was sent, over the whole time; 0 without any."""
        return self.bytes / self.seconds if self.seconds else 0.0


class Migrated(msgspec.Struct, frozen=True):
    """`end` is None when the machine runs at the destination; else the guest ended here before
    it had moved, and there is no `report`."""

    end: Exit | None = None
    report: Report | None = None


def migrate(
    machine: Machine,
    to: str | Address | Wire,
    *,
    key: bytes = b"",
    live: bool = True,
    pause: float = 0.02,
    max_rounds: int = 30,
    patience: float = 30.0,
    timeout: float | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Migrated:
    """Move `machine` to the receiver at `to`; returns when it runs there.

    `live`: send memory in rounds while the guest runs, until the rest takes no more than
    `pause` seconds, or `max_rounds` were sent. Else the guest stands still from now on until all is
    sent: the machine moves exactly where it is.
    `patience`: seconds for which the other side may do nothing, and that all of the last,
    still phase may take. `timeout` limits it all, as `run`'s budget of seconds. `cancelled`
    is asked when a run was cancelled: whether the caller wanted that. `progress` is called in
    another thread.

    Raises MigrationError when it came to nothing, also what the destination said to it:
    the machine is where it was, and `machine.run()` goes on. MigrationInDoubt when the machine
    was given away and nobody confirmed it; then, and when it has moved, it can run here no more.
    UsageError or NotSupported for a machine that cannot move. KeyboardInterrupt: it has not moved.
    """
    if isinstance(to, Wire):
        wire, where = to, "the destination"
    else:
        address = Address.parse(to) if isinstance(to, str) else to
        address.check_key(key)
        where = str(address)
        wire = connect(address, patience)
    mover = _Mover(machine, wire, key, live, pause, max_rounds, patience, timeout, cancelled, progress)
    return mover.run(where)


class _Ended(Exception):
    """The caller's thread wants no migration any more."""


class _Job:
    """What the caller's thread is to do at the next boundary. `hold`: and not to run on then."""

    def __init__(self, call: Callable[[], Any], *, hold: bool) -> None:
        self.call = call
        self.hold = hold
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None
        #: time.perf_counter() when the guest stood still for it.
        self.began = self.ended = 0.0

    def run(self) -> None:
        self.began = time.perf_counter()
        try:
            self.result = self.call()
        except Exception as error:  # it is raised in the worker
            self.error = error
        self.ended = time.perf_counter()
        self.done.set()


class _Mover:
    def __init__(
        self,
        machine: Machine,
        wire: Wire,
        key: bytes,
        live: bool,
        pause: float,
        max_rounds: int,
        patience: float,
        timeout: float | None,
        cancelled: Callable[[], bool],
        progress: Callable[[Progress], None],
    ) -> None:
        self._machine = machine
        self._source = Source(key)
        self._wire = wire
        self._channel = Channel(self._source, wire, self._check)
        self._live, self._pause, self._max_rounds, self._patience = live, pause, max_rounds, patience
        self._deadline = None if timeout is None else time.perf_counter() + timeout
        self._timeout = timeout
        self._cancelled = cancelled
        self._progress = progress
        self._lock = threading.Lock()
        self._job: _Job | None = None
        self._asked = threading.Event()
        self._ended: str = ""
        self._over = False
        self._error: BaseException | None = None
        self._report: Report | None = None
        self._pages = self._last_pages = self._rounds = 0
        self._round_pages = self._round_total = 0

    # -- the caller's thread

    def run(self, where: str) -> Migrated:
        worker = threading.Thread(target=self._work, name="vmmsim-migration", daemon=True)
        worker.start()
        end: Exit | None = None
        unobserve = self._machine.observe(self._accessed)
        try:
            end = self._run_guest(worker)
            worker.join()
        except BaseException:
            self._ended = self._ended or "it was stopped"
            worker.join()
            if self._source.owner == "here":
                self._machine.processors.uncancel()
                raise
        finally:
            unobserve()
        self._machine.processors.uncancel()  # the worker's last one may have ended no run
        owner = self._source.owner
        if owner == "there":
            self._machine.poison(f"it runs at {where} now")
            return Migrated(report=self._report)
        if owner == "unknown":
            self._machine.poison(f"whether it runs at {where} is not known")
            raise MigrationInDoubt(
                f"the machine was given to {where}, which has not confirmed it: {self._error}",
                hint="look whether it runs there; only if not, restore it here",
            ) from self._error
        if end is not None:
            return Migrated(end=end)
        error = self._error
        if isinstance(error, VmmsimError):
            raise error
        raise MigrationError(f"internal error: {type(error).__name__}: {error}") from error

    def _run_guest(self, worker: threading.Thread) -> Exit | None:
        """Until it has ended, or has moved, or cannot move. None for the last two."""
        if not self._live:
            while not self._asked.wait(0.05) and worker.is_alive():
                pass  # the guest stands still
            if self._job is not None:
                self._job.run()
            return None
        while True:
            try:
                exit = self._machine.run(budget=self._budget())
            except DeviceError:
                self._ended = "a device failed"
                raise
            with self._lock:
                job, self._job = self._job, None
                self._machine.processors.uncancel()  # if the access was quicker than it
                if isinstance(exit, Cancelled) and not self._cancelled() and (job or self._over):
                    pass
                else:
                    self._ended = f"the guest ended: {exit.describe()}"
            if self._ended:
                return exit
            if job is None:
                return None
            job.run()
            if job.hold and job.error is None:
                worker.join()
                return None

    def _accessed(self, *access: Any) -> None:
        """A guest that waits in device after device hardly runs: stop it at its access."""
        if self._job is not None:
            self._machine.request_stop(Cancelled())

    def _budget(self) -> Budget | None:
        if self._deadline is None:
            return None
        return seconds(max(0.001, self._deadline - time.perf_counter()))

    # -- the worker

    def _check(self) -> None:
        if self._ended and self._source.owner == "here":
            raise _Ended

    def _work(self) -> None:
        linger = 0.0
        try:
            self._move()
        except BaseException as error:
            self._error = error
            reason = self._ended if isinstance(error, _Ended) else getattr(error, "message", "internal error")
            if self._channel.abort(reason):
                linger = 1.0
        finally:
            self._channel.close(linger=linger)
            with self._lock:
                self._over = True
                if self._live and not self._ended:
                    self._machine.processors.cancel()

    def _move(self) -> None:
        machine, source, channel = self._machine, self._source, self._channel
        began = time.perf_counter()
        self._progress(Progress("connect"))
        channel.flush()
        peer = channel.wait(Connected, HANDSHAKE).peer
        regions = _regions(machine)
        source.offer(machine.config, regions)
        channel.flush()
        backend = channel.wait(Ready, self._patience).backend
        begin = 0.0
        if self._live:
            self._at_boundary(lambda: self._manifest(regions))  # what cannot move is found out first
            account, dirty = Account(machine.memory), None
            while dirty is None:
                job = self._at_boundary(account.step)
                dirty = job.result
                begin = max(begin, job.ended - job.began)
            self._send_rounds(dirty)
            job = self._at_boundary(lambda: (dirty.collect(), self._manifest(regions)), hold=True)
            pages: Iterable[Any] = job.result[0]
            manifest = job.result[1]
        else:
            job = self._at_boundary(lambda: (self._manifest(regions), DirtyPages(machine.memory)), hold=True)
            manifest, pages = job.result[0], job.result[1].first()
        until = time.perf_counter() + self._patience
        before = self._pages
        self._send_pages("stop", pages, until)
        self._last_pages = self._pages - before
        source.manifest(manifest)
        channel.flush(until=until)
        channel.wait(Loaded, max(0.1, until - time.perf_counter()))
        self._check()
        source.commit()
        channel.flush(until=until)
        channel.wait(Taken, self._patience)
        end = time.perf_counter()
        self._report = Report(
            live=self._live,
            rounds=self._rounds,
            pages=self._pages,
            last_pages=self._last_pages,
            bytes=channel.bytes_sent,
            seconds=end - began,
            begin_seconds=begin,
            pause_seconds=end - (job.began if self._live else began),
            backend=backend,
            peer=peer,
        )

    def _manifest(self, regions: tuple[MemoryRegion, ...]) -> bytes:
        return encode_manifest(capture(self._machine, memory=MemoryImage(regions)))

    def _send_rounds(self, dirty: DirtyPages) -> None:
        """Rounds while the guest runs, until the rest would take no more than half the pause."""
        began = time.perf_counter()
        self._send_round(dirty.first(), dirty.filled)
        rate = max(1.0, self._pages / (time.perf_counter() - began))
        while self._rounds < self._max_rounds:
            self._check()
            pages = dirty.collect()
            self._send_round(iter(pages), len(pages))
            if len(pages) / rate <= self._pause / 2:
                return

    def _send_round(self, pages: Iterator[tuple[int, Any]], total: int) -> None:
        self._rounds += 1
        self._round_total = total
        self._send_pages("round", pages)
        self._end_round()

    def _end_round(self) -> None:
        self._source.round(self._rounds)
        self._channel.flush()
        self._channel.wait(Got, self._patience)

    def _send_pages(self, phase: str, pages: Iterable[tuple[int, Any]], until: float | None = None) -> None:
        left = iter(pages)
        sent = 0
        while part := list(islice(left, MOST_PAGES)):
            self._source.pages(part)
            self._channel.flush(until=until)
            self._pages += len(part)
            sent += len(part)
            self._progress(Progress(phase, self._rounds, sent, self._round_total))

    def _at_boundary(self, call: Callable[[], Any], *, hold: bool = False) -> _Job:
        """Have the caller's thread do `call` with the guest between two instructions."""
        job = _Job(call, hold=hold)
        with self._lock:
            self._job = job
            self._asked.set()
            if self._live and not self._ended:
                # The processors alone: the machine's own cancel would have a device that waits
                # for a key answer that none came, and the guest would see that.
                self._machine.processors.cancel()
        told = time.perf_counter()
        while not job.done.wait(0.05):
            self._check()
            if time.perf_counter() > told + _PING:  # or the destination would give up waiting
                self._end_round()
                told = time.perf_counter()
        if job.error is not None:
            raise job.error
        return job


def _regions(machine: Machine) -> tuple[MemoryRegion, ...]:
    return tuple(MemoryRegion(r.gpa, r.size, r.readonly, r.name) for r in machine.memory.regions)
