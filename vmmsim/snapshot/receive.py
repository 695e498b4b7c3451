"""Taking a machine that moves here: the destination's side. See docs/migration.md."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from ..backends.base import Backend
from ..errors import MigrationError, NotSupported, UsageError, VmmsimError
from ..memory import format_size
from .channel import Channel
from .dirty import Landing
from .encode import decode_manifest
from .migrate import HANDSHAKE, Progress
from .stream import (
    Committed,
    Connected,
    Destination,
    Manifest,
    Offer,
    Pages,
    Round,
)
from .wire import Wire

if TYPE_CHECKING:
    from ..devices.base import CharSink, CharSource
    from ..machine import Machine

__all__ = ["Received", "receive"]


class Received(msgspec.Struct, frozen=True):
    """`machine` is this side's and can run; the caller closes it. `pause_seconds` is from the source's
    manifest, which comes with the guest standing still, until here."""

    machine: Machine
    rounds: int
    pages: int
    bytes: int
    seconds: float
    pause_seconds: float
    peer: str


def receive(
    wire: Wire,
    *,
    key: bytes = b"",
    backend: str | Backend = "auto",
    source: CharSource | None = None,
    sink: CharSink | None = None,
    max_memory: int | None = None,
    patience: float = 30.0,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Received:
    """Take the machine that comes over `wire`, which is closed then.

    `source` and `sink` are the ends of the guest's characters from now on; where the source can
    seek (a terminal cannot) it goes on where the guest was in its input. `max_memory`: refuse a machine
    with more bytes. `cancelled` is asked now and then: True gives it up.

    Raises MigrationError when nothing came of it: the machine is then still at the source, or was
    lost with it, and does not run here.
    """
    side = Destination(key)

    def check() -> None:
        if cancelled():
            raise MigrationError("the receiver was stopped")

    channel = Channel(side, wire, check)
    taking = _Taking(channel, side, backend, source, sink, max_memory, patience, progress)
    linger = 0.1
    try:
        return taking.run()
    except BaseException as error:
        taking.drop()
        reason = getattr(error, "message", "it was stopped")
        if channel.abort(reason):
            linger = 1.0
        if isinstance(error, VmmsimError) and not isinstance(error, MigrationError):
            raise MigrationError(f"the machine cannot run here: {reason}", hint=error.hint) from error
        raise
    finally:
        channel.close(linger=linger)


class _Taking:
    def __init__(
        self,
        channel: Channel,
        side: Destination,
        backend: str | Backend,
        source: CharSource | None,
        sink: CharSink | None,
        max_memory: int | None,
        patience: float,
        progress: Callable[[Progress], None],
    ) -> None:
        self._channel, self._side = channel, side
        self._backend, self._input, self._output = backend, source, sink
        self._max_memory, self._patience = max_memory, patience
        self._progress = progress
        self._machine: Machine | None = None
        self._rounds = self._pages = 0

    def drop(self) -> None:
        """It has come to nothing."""
        if self._machine is not None:
            self._machine.close()
            self._machine = None

    def run(self) -> Received:
        channel, side = self._channel, self._side
        began = time.perf_counter()
        channel.flush()
        self._progress(Progress("connect"))
        peer = channel.wait(Connected, HANDSHAKE).peer
        channel.flush()
        machine, landing = self._prepare(channel.wait(Offer, self._patience))
        side.ready(machine.backend.provenance)
        channel.flush()
        data = self._gather(landing)
        stopped = time.perf_counter()
        manifest = decode_manifest(data)
        machine.restore(manifest.snapshot(landing.image()))
        side.loaded()
        channel.flush()
        channel.wait(Committed, self._patience)
        # It is here now, whatever becomes of the word that says so.
        side.taken()
        try:
            channel.flush()
        except MigrationError:
            pass
        now = time.perf_counter()
        return Received(
            machine=machine,
            rounds=self._rounds,
            pages=self._pages,
            bytes=channel.bytes_received,
            seconds=now - began,
            pause_seconds=now - stopped,
            peer=peer,
        )

    def _prepare(self, offer: Offer) -> tuple[Machine, Landing]:
        """The machine as it was offered, in its first state, and where its pages land."""
        from ..machine import Machine

        size = max(offer.config.memory, sum(region.size for region in offer.regions))
        if self._max_memory is not None and size > self._max_memory:
            raise UsageError(
                f"the machine has {format_size(size)} of memory, and {format_size(self._max_memory)} "
                "are allowed here",
                hint="see --max-memory",
            )
        machine = self._machine = Machine(
            offer.config, backend=self._backend, source=self._input, sink=self._output
        )
        there = {region.gpa for region in machine.memory.regions}
        for region in offer.regions:
            if region.gpa not in there:  # a ROM, or what the caller added
                machine.memory.add(region.gpa, region.size, readonly=region.readonly, name=region.name)
        mine = [(r.gpa, r.size, r.readonly) for r in machine.memory.regions]
        if mine != [(r.gpa, r.size, r.readonly) for r in offer.regions]:
            raise NotSupported(
                "the machine has other regions of memory here", hint="use the same vmmsim on both sides"
            )
        return machine, Landing(offer.regions)

    def _gather(self, landing: Landing) -> bytes:
        """Pages, until the manifest comes."""
        while True:
            event = self._channel.next(self._patience)
            if isinstance(event, Pages):
                landing.put(event.pages)
                self._pages += len(event.pages)
                self._progress(Progress("round", self._rounds, self._pages))
            elif isinstance(event, Round):
                self._rounds = event.number
                self._side.got(event.number)
                self._channel.flush()
            else:
                assert isinstance(event, Manifest), event
                return event.data
