"""Recording a run: its beginning as a snapshot, then what comes to it from outside.

What the guest sees follows from its beginning, from the input and from time. Random devices go on from the
generator that the snapshot has. With the clocks `exits` and `insns`, or without timers and interrupts, time
follows from the guest. So what is kept is the input: which byte was there at which exit. The rest is to
check a replay: a sum for each exit, and each interrupt with the exit behind which it was taken.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..exits import Access, Exit, GuestExit
from .format import End, Event, Header, Input, InputEnd, Interrupt, Recording, check_recordable
from .sums import next_sum

if TYPE_CHECKING:
    from ..devices.base import CharSource
    from ..machine import Machine

__all__ = ["Recorder", "RecordingSource", "tell_interrupts"]

_SUM = struct.Struct("<I").pack


class RecordingSource:
    """A source of input that tells when each byte was first there. What else `inner` has (`interrupt`,
    `close`) is its own."""

    def __init__(self, inner: CharSource) -> None:
        self._inner = inner
        self._seen = False
        self._over = False
        #: Where it goes: set by the recorder.
        self.events: list[Event] = []
        self.exits = 0

    def __getattr__(self, name: str) -> Any:
        if name in ("record", "seek"):  # a recording does not go back
            raise AttributeError(name)
        return getattr(self._inner, name)

    def get(self) -> int | None:
        byte = self._inner.get()
        if byte is not None:
            self._came(byte)
        return byte

    def wait(self) -> int | None:
        byte = self._inner.wait()
        if byte is not None:
            self._came(byte)
        elif not self._inner.ended:
            self.events.append(Input(self.exits, None))
        return byte

    def ready(self) -> bool:
        found = self._inner.ready()
        if found and not self._seen:
            self._seen, self._since = True, self.exits
        return found

    @property
    def ended(self) -> bool:
        over = self._inner.ended
        if over and not self._over:
            self._over = True
            self.events.append(InputEnd(self.exits))
        return over

    def _came(self, byte: int) -> None:
        # It goes where it was seen first, before what came since: events are in order.
        exit = self._since if self._seen else self.exits
        self._seen = False
        at = len(self.events)
        while at and self.events[at - 1].exit > exit:
            at -= 1
        self.events.insert(at, Input(exit, byte))


class Recorder:
    """Records the runs of `machine` from now on, until `finish`. Its source must be a RecordingSource.

    UsageError for a machine that could not be replayed: timers by the host's clock, vCPUs that run at once.
    """

    def __init__(self, machine: Machine, *, guest: str = "") -> None:
        source = machine.source
        if not isinstance(source, RecordingSource):
            raise check_recordable("its input is not a RecordingSource")
        interrupts = machine.processors.items[0].board is not None
        if interrupts and not machine.clock.deterministic:
            raise check_recordable("its timers come by the host's clock, at places that nobody can tell")
        if len(machine.processors.items) > 1 and machine.backend.capabilities.parallel_vcpus:
            raise check_recordable("its vCPUs run at once")
        self._machine = machine
        self._source = source
        self._header = Header(
            guest=guest, backend=machine.backend.name, provenance=machine.backend.provenance
        )
        self._start = machine.snapshot(comment=f"the beginning of a recording of {guest}" if guest else "")
        self._sum = 0
        self._sums = bytearray()
        source.events, source.exits = [], 0
        self._restored = machine.restored
        self._remove = [machine.observe(self._observe)]
        for item in machine.processors:
            if item.board is not None:
                self._remove.append(tell_interrupts(item.board, item.number, self._taken))

    def _observe(self, cls: type[Access], address: int, size: int, value: int) -> None:
        self._sum = next_sum(self._sum, cls, address, size, value)
        self._sums += _SUM(self._sum)
        self._source.exits += 1

    def _taken(self, vector: int, cpu: int) -> None:
        self._source.events.append(Interrupt(self._source.exits, vector, cpu))

    def finish(self, end: Exit | None) -> Recording:
        """The recording; `end` is what the run ended with, None if it was cut short. UsageError when the
        machine went to another snapshot meanwhile."""
        for remove in self._remove:
            remove()
        self._remove.clear()
        if self._machine.restored != self._restored:
            raise check_recordable("the machine was restored to a snapshot meanwhile")
        kind, detail = ("error", "the run was cut short") if end is None else (end.kind, end.describe())
        code = end.code if isinstance(end, GuestExit) else None
        last = End(self._source.exits, kind, detail, self._machine.vcpu.registers().rip, code)
        return Recording(
            header=self._header,
            snapshot=self._start,
            events=list(self._source.events),
            sums=bytes(self._sums),
            end=last,
        )


def tell_interrupts(board: Any, cpu: int, told: Callable[[int, int], None]) -> Callable[[], None]:
    """Have `told(vector, cpu)` called whenever the board's interrupt is acknowledged, until what this returns
    is called."""
    acknowledge = board.acknowledge

    def telling() -> int:
        vector: int = acknowledge()
        told(vector, cpu)
        return vector

    board.acknowledge = telling

    def forget() -> None:
        board.acknowledge = acknowledge

    return forget
