"""Replaying a recording, on any CPU: each exit and each interrupt must be as it was recorded."""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from ..budget import Budget, exits
from ..exits import Access, BudgetSpent, Cancelled, Exit, GuestExit
from ..machine import Machine
from ..outcome import Outcome
from ..stops import made
from .format import Event, Input, InputEnd, Interrupt, Recording
from .recorder import tell_interrupts
from .sums import next_sum

if TYPE_CHECKING:
    from ..backends.base import Backend
    from ..devices.base import CharSink
    from .insn_trace import InsnTracer

__all__ = ["Derailed", "Replay", "ReplaySource", "ended_outside", "replay"]

#: Ends that came from outside the guest: where the replay stops then is only known by its exits.
_FROM_OUTSIDE = ("cancelled", "budget", "error")
_WORD = struct.Struct("<I")


class Derailed(msgspec.Struct, frozen=True):
    """Where a replay left the rails: at its `exit`-th exit (or behind it, if `what` says so). `rip` is where
    the vCPU stood then."""

    exit: int
    what: str
    rip: int = 0

    def __str__(self) -> str:
        return f"exit {self.exit}: {self.what} (rip {self.rip:#x})"


class Replay(msgspec.Struct, frozen=True):
    """What came of a replay. `derailed` is None if all was as recorded; `outcome` is the verdict on the run,
    as `Machine.outcome` gives it."""

    exits: int
    end: Exit
    provenance: str
    outcome: Outcome
    derailed: Derailed | None = None
    output: bytes = b""


class ReplaySource:
    """The recorded input: each byte is there from the exit on at which it was there first."""

    def __init__(self, events: list[Event], last: int) -> None:
        self._bytes = deque((e.exit, e.byte) for e in events if isinstance(e, Input))
        self._over = next((e.exit for e in events if isinstance(e, InputEnd)), last)
        self.exits = 0

    def get(self) -> int | None:
        return self._bytes.popleft()[1] if self.ready() else None

    def wait(self) -> int | None:
        return self._bytes.popleft()[1] if self._bytes else None

    def ready(self) -> bool:
        if not self._bytes:
            return False
        exit, byte = self._bytes[0]
        return byte is not None and exit <= self.exits

    @property
    def ended(self) -> bool:
        return not self._bytes and self.exits >= self._over

    #: A halted machine asks again at once: what is recorded is there, or never comes.
    def send(self, data: bytes) -> None:
        raise NotImplementedError


class _Checker:
    """Compares as the run goes on, and ends it where it first differs."""

    def __init__(self, machine: Machine, source: ReplaySource, recording: Recording) -> None:
        self._machine, self._source, self._sums = machine, source, recording.sums
        self._sum = 0
        self._interrupts = deque(e for e in recording.events if isinstance(e, Interrupt))
        self.last = recording.end.exits
        self.derailed: Derailed | None = None
        machine.observe(self._observe)
        for item in machine.processors:
            if item.board is not None:
                tell_interrupts(item.board, item.number, self._taken)

    @property
    def exits(self) -> int:
        return self._source.exits

    def fail(self, exit: int, what: str) -> None:
        if self.derailed is None:
            self.derailed = Derailed(exit, what)
            self._machine.request_stop(Cancelled())

    def _observe(self, cls: type[Access], address: int, size: int, value: int) -> None:
        self._source.exits = number = self._source.exits + 1
        if self.derailed is not None:
            return
        self._sum = next_sum(self._sum, cls, address, size, value)
        if number > self.last:
            what = f"{made(cls, address, size, value).describe()}, where the recorded run had ended"
            self.fail(number, what)
        elif self._sum != _WORD.unpack_from(self._sums, 4 * number - 4)[0]:
            self.fail(number, f"{made(cls, address, size, value).describe()} is not what was recorded")
        elif self._interrupts and self._interrupts[0].exit < number:
            first = self._interrupts[0]
            self.fail(
                first.exit,
                f"interrupt {first.vector:#04x} was taken behind it, and is not taken here before the next",
            )

    def _taken(self, vector: int, cpu: int) -> None:
        found = self._interrupts.popleft() if self._interrupts else None
        if found is None or (found.exit, found.vector, found.cpu) != (self.exits, vector, cpu):
            was = f"{found.vector:#04x} behind exit {found.exit}" if found is not None else "none any more"
            if self.derailed is None:
                self.derailed = Derailed(
                    self.exits, f"interrupt {vector:#04x} is taken behind it, recorded is {was}"
                )
                self._machine.processors.items[cpu].vcpu.attention()
                self._machine.cancel()


def replay(
    recording: Recording,
    *,
    backend: str | Backend = "unicorn",
    sink: CharSink | None = None,
    tracer: InsnTracer | None = None,
    budget: Budget | None = None,
) -> Replay:
    """Run `recording` again, to its end or to the first exit that is another.

    `tracer` is told of each instruction (Unicorn). Raises as `Machine.from_snapshot` does for a backend that
    cannot be what the recording begins with. A `budget` of seconds that is spent is the end of the replay.
    """
    source = ReplaySource(recording.events, recording.end.exits)
    with Machine.from_snapshot(recording.snapshot, backend=backend, source=source, sink=sink) as machine:
        checker = _Checker(machine, source, recording)
        limits = _limits(recording, budget)
        if not recording.end.exits and ended_outside(recording):
            end: Exit = Cancelled()
        elif tracer is not None:
            end = tracer.run(machine, recording.end.exits if ended_outside(recording) else None, budget)
        else:
            end = machine.run(budget=limits)
        rip = machine.vcpu.registers().rip
        derailed = checker.derailed
        if derailed is None and not (isinstance(end, BudgetSpent) and end.unit == "seconds"):
            derailed = _judge_end(recording, checker.exits, end, rip)
        if derailed is not None:
            derailed = msgspec.structs.replace(derailed, rip=rip)
        return Replay(
            checker.exits,
            end,
            machine.backend.provenance,
            machine.outcome(end),
            derailed,
            machine.output.data,
        )


def ended_outside(recording: Recording) -> bool:
    """Whether the recorded run was ended by a cancel, a budget or a device, and not by its guest."""
    return recording.end.kind in _FROM_OUTSIDE


def _limits(recording: Recording, budget: Budget | None) -> tuple[Budget, ...]:
    limits: tuple[Budget, ...] = (budget,) if budget is not None else ()
    if ended_outside(recording) and recording.end.exits:
        limits += (exits(recording.end.exits),)
    return limits


def _judge_end(recording: Recording, made: int, end: Exit, rip: int) -> Derailed | None:
    last = recording.end
    if made < last.exits:
        return Derailed(
            made, f"the run ended behind it with {end.describe()}, recorded are {last.exits} exits"
        )
    if ended_outside(recording):
        return None
    code = end.code if isinstance(end, GuestExit) else None
    if (end.kind, code) != (last.kind, last.code):
        return Derailed(made, f"the run ended with {end.describe()}, recorded is {last.detail}")
    if rip != last.rip:
        return Derailed(made, f"the run ended at rip {rip:#x}, recorded is {last.rip:#x}")
    return None
