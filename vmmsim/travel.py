"""What a machine can do in time: snapshots, going back, and what is done between two instructions.

The machine's part of `vmmsim.snapshot`, which is loaded when it is first asked for.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar

from .chassis import Chassis
from .dispatch import ByHand
from .errors import UsageError
from .exits import Access, Exit

if TYPE_CHECKING:
    from .backends.base import AccessHandler, Backend, Vcpu
    from .budget import Budget
    from .devices.base import CharSource
    from .processors import Processors
    from .snapshot.history import History, Returned
    from .snapshot.values import Snapshot
    from .stops import Until
    from .streams import TeeSink
    from .wiring import Wiring

__all__ = ["Gate", "Pause", "TimeTravel"]


class Pause(Exit):
    """A run stops to do what `between` has, and goes on, or ends with what else was asked for."""

    kind: ClassVar[str] = "pause"
    then: Exit | None = None


class Gate:
    """The guest's end of its output."""

    def __init__(self, machine: TimeTravel, sink: TeeSink) -> None:
        self._machine = machine
        self._sink = sink
        self.interrupt = sink.interrupt
        self.rearm = sink.rearm

    def put(self, data: bytes, /) -> None:
        if not self._machine.muted:
            self._sink.put(data)


class TimeTravel(Chassis):
    """Base of Machine."""

    backend: Backend
    processors: Processors
    vcpu: Vcpu
    source: CharSource
    last_exit: Exit | None
    _running: bool
    _inline: bool
    _answering: bool
    _stop: Exit | None

    def _begin_time(self) -> None:
        #: 0 for a machine that is no clone; the guest can read it (devices.snapshot_port).
        self.generation = 0
        #: Given the snapshot that the guest asks for at the snapshot port; None: nobody listens.
        self.on_snapshot: Callable[[Snapshot], None] | None = None
        #: The snapshot that the machine fits without a question, having been in it; and its shape then.
        self._proven: tuple[Snapshot, tuple[object, ...]] | None = None
        #: What is to be done between two instructions of a run; why the machine cannot run.
        self._between: list[Callable[[], None]] = []
        self._poisoned: str | None = None
        self._history: History | None = None
        self._travel_observers: list[Callable[[str, Snapshot], None]] = []
        #: What the guest prints reaches nobody.
        self.muted = False
        #: How often devices were replaced: an exit from before is nobody's any more.
        self._restored = 0

    @abstractmethod
    def run(
        self, *, until: Until | None = None, budget: Budget | tuple[Budget, ...] | None = None
    ) -> Exit: ...

    @abstractmethod
    def request_stop(self, exit: Exit) -> None: ...

    @abstractmethod
    def _connect(self) -> None: ...

    @abstractmethod
    def _check_idle(self) -> None: ...

    @property
    @abstractmethod
    def halts(self) -> int: ...

    def between(self, action: Callable[[], None]) -> None:
        """For devices and observers, in a run: do `action` behind the instruction that is being
        answered, and run on. There the machine may be looked at, snapshotted and restored.

        Between the exits of `exits()` it is done when the instruction has made all of its accesses,
        outside a run at once.
        """
        if not (self._inline or self._answering):
            action()
            return
        self._between.append(action)
        if self._inline:
            self.request_stop(Pause())

    def _finish_between(self) -> None:
        """Behind an answer: do it if that was the instruction's last access."""
        if self._between and self.whole():
            self._do_between()

    def _do_between(self) -> None:
        actions, self._between = self._between, []
        for action in actions:
            action()

    def whole(self) -> bool:
        """Whether no vCPU is in the middle of an instruction."""
        for item in self.processors:
            item.vcpu.settle()
        return all(item.vcpu.whole for item in self.processors)

    def _asked(self, tag: int) -> None:
        """The guest asks for a snapshot."""
        give = self.on_snapshot
        if give is not None:
            self.between(lambda: give(self.snapshot(comment=f"the guest asked for it (tag {tag:#x})")))

    def snapshot(self, *, comment: str = "") -> Snapshot:
        """The machine as it is, between two instructions: registers, memory, devices, clock.

        In a run: `between(machine.snapshot)`. Raises UsageError while a run is under way or an
        access is half done, and for devices that cannot be restored.
        """
        from .snapshot.capture import capture

        self._check_idle()
        snapshot = capture(self, comment=comment)
        for observer in self._travel_observers:
            observer("snapshot", snapshot)
        return snapshot

    def restore(self, snapshot: Snapshot, *, rewind: bool = True, copy: bool = False) -> None:
        """Go back (or over) to `snapshot`, which may come from another backend.

        `rewind`: the input, too, goes on where it was, if its source can (a terminal cannot). `copy`:
        bring memory back page by page instead of by mapping it. Raises UsageError for a snapshot
        of another machine, NotSupported for what this CPU cannot hold: nothing has changed
        then. After a HostError the machine can only be restored again, or closed.
        """
        from .snapshot.capture import restore

        if self._running:
            raise UsageError("the machine is running", hint="use machine.between(lambda: ...)")
        restore(self, snapshot, rewind=rewind, copy=copy)
        for observer in self._travel_observers:
            observer("restore", snapshot)

    def observe_travel(self, observer: Callable[[str, Snapshot], None]) -> Callable[[], None]:
        """Tell `observer` of each `snapshot` and each `restore`, by these words, once it is done. Returns
        what takes it away again."""
        self._travel_observers.append(observer)
        return lambda: self._travel_observers.remove(observer)

    def history(self, every: Budget, *, keep: int = 64) -> History:
        """From now on keep a ring of `keep` snapshots, one each `every` (`exits(n)` or `insns(n)`), and
        record the input, so that `back` can be used. The last history is the one that counts."""
        from .snapshot.history import History

        if self._history is not None:
            self._history.stop()
        self._history = History(self, every, keep)
        return self._history

    def back(self, count: int, unit: str = "exits") -> Returned:
        """Go back `count` exits (accesses), or instructions (Unicorn, when they are counted).

        What it returns says whether the way was exact: see `vmmsim.snapshot.history`. What the guest
        had printed stays printed; on the way nothing is printed twice. Raises UsageError
        without a history, and for a moment before its first snapshot.
        """
        if self._history is None:
            raise UsageError("the machine has no history", hint="call machine.history(exits(1000)) before")
        self._check_idle()
        return self._history.back(count, unit)

    def answer_by_hand(self, exit: Access, value: int | None = None) -> None:
        """Answer an exit of `step_exit` in the place of the devices, which see nothing of it: a read with
        `value`; a write is kept from them. With a history, `back` gives the same answer again on its way
        forward. Raises UsageError for a value that does not fit."""
        self._forget_answers()
        if exit.is_write:
            exit.reply()  # type: ignore[attr-defined]
        else:
            exit.reply(value)  # type: ignore[attr-defined]
        if self._history is not None:
            self._history.answers[self._history.exits] = value
        self._answering = True
        try:
            self.accesses.by_hand(type(exit), exit.address, exit.size, exit.value)  # type: ignore[attr-defined]
        finally:
            self._answering = False
        self._finish_between()

    def _answers(self) -> AccessHandler:
        """What answers a run's accesses: the devices, and on a way forward that was gone before what was
        answered by hand."""
        if not self.muted:
            self._forget_answers()
        if self._history is None or not self._history.answers:
            return self.accesses
        return ByHand(self.accesses, self._history)

    def _forget_answers(self) -> None:
        """What follows is new: answers that were given by hand further on are nobody's."""
        if self._history is not None and not self.muted:
            self._history.forget_answers()

    @property
    def restored(self) -> int:
        """How often the machine went to a snapshot."""
        return self._restored

    @contextlib.contextmanager
    def unheard(self) -> Iterator[None]:
        """Within, nothing of what the guest prints reaches anybody: it has been printed before."""
        self.muted, before = True, self.muted
        try:
            yield
        finally:
            self.muted = before

    def replace_devices(self, wiring: Wiring) -> None:
        """Give the machine the devices that `Chassis.prepare` made."""
        self.furnish(wiring)
        self._connect()
        self._restored += 1
        self._stop = None
        self.last_exit = None

    def prove(self, snapshot: Snapshot) -> None:
        """The machine is what `snapshot` says."""
        self._proven = snapshot, self.shape()

    def proves(self, snapshot: Snapshot) -> bool:
        """Whether the machine has just been in `snapshot`, and can be in it again."""
        return self._proven is not None and self._proven[0] is snapshot and self._proven[1] == self.shape()

    def poison(self, reason: str | None) -> None:
        """The machine is undefined, and must not run; None: no longer."""
        self._poisoned = reason
