"""Snapshot: all that a machine is between two instructions, as a value.

Neutral of backends and of files. `vmmsim.snapshot.encode` makes text of it and back,
`vmmsim.snapshot.container` keeps it in a file. Nothing here knows a running machine.
"""

from __future__ import annotations

import random
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ..clock import SECOND
from ..config import MachineConfig
from ..cpu.state import CpuState
from ..errors import UsageError
from .pages import MemoryImage

if TYPE_CHECKING:
    from ..backends.base import Backend
    from ..devices.base import CharSink, CharSource
    from ..machine import Machine

__all__ = ["ClockState", "CpuSnapshot", "Identity", "Provenance", "RandomState", "Snapshot"]

_WORDS = struct.Struct("<625I")
#: random.Random's own version of its state: that of the Mersenne twister since Python 3.2.
_TWISTER = 3


def _counts(value: Any, name: str) -> None:
    number = getattr(value, name)
    if number is not None and not 0 <= number < 1 << 63:
        raise UsageError(f"{name}={number}", hint="counts are from 0 to 2**63 - 1")


class CpuSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One vCPU: its registers, and what it was doing.

    `run_state` is `halted` exactly when `state.halted` is set; `wait_sipi` is an application
    processor that has not been started. `insns` counts retired instructions, None where
    nobody counted.
    """

    state: CpuState
    run_state: Literal["running", "halted", "wait_sipi"] = "running"
    insns: int | None = None

    def __post_init__(self) -> None:
        if (self.run_state == "halted") != self.state.halted:
            raise UsageError(
                f"run_state is {self.run_state}, but the CPU's halted is {self.state.halted}",
                hint="a halted CPU has both",
            )
        _counts(self, "insns")


class ClockState(msgspec.Struct, frozen=True, kw_only=True):
    """A clock (vmmsim.clock). `now_ns` is what devices see.

    `step` is the exits clock's, in ns; `rate` the insns clock's, in instructions a second,
    and `insns` how many had retired: together they keep the fraction of a nanosecond that
    `now_ns` has lost. `exits` counts the exits made so far. None: the clock has no such thing.
    """

    kind: Literal["host", "insns", "exits"] = "host"
    now_ns: int = 0
    insns: int | None = None
    exits: int | None = None
    step: int | None = None
    rate: int | None = None

    def __post_init__(self) -> None:
        for name in ("now_ns", "insns", "exits", "step", "rate"):
            _counts(self, name)
        if self.rate == 0:
            raise UsageError("a clock of 0 instructions a second", hint="give a number greater than 0")
        if self.kind == "insns" and (self.rate is None or self.insns is None):
            raise UsageError("an insns clock without rate or insns", hint="give both")

    @property
    def base_ns(self) -> int:
        """`now_ns` less the time of the instructions counted: the insns clock's own base."""
        if self.rate is None or self.insns is None:
            return self.now_ns
        return self.now_ns - self.insns * SECOND // self.rate


class RandomState(msgspec.Struct, frozen=True):
    """The state of a `random.Random`: 625 words of 32 bits, little-endian, and `gauss_next`."""

    words: bytes
    gauss: float | None = None

    def __post_init__(self) -> None:
        # The last word is the index of the next number among the 624 that are ready.
        if len(self.words) != _WORDS.size or not 1 <= _WORDS.unpack(self.words)[624] <= 624:
            raise UsageError("this is no state of a Mersenne twister", hint="use RandomState.of(random)")

    @classmethod
    def of(cls, source: random.Random) -> RandomState:
        """The state of `source` as it is now."""
        version, words, gauss = source.getstate()
        if version != _TWISTER:
            raise UsageError(f"a random source of version {version}", hint="give a random.Random")
        return cls(_WORDS.pack(*words), gauss)

    def put(self, target: random.Random) -> None:
        """Let `target` go on from here."""
        target.setstate((_TWISTER, _unpacked(self.words), self.gauss))


@lru_cache(maxsize=8)
def _unpacked(words: bytes) -> tuple[int, ...]:
    """A machine goes back to the same snapshot again and again."""
    return _WORDS.unpack(words)


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where a snapshot comes from. For people: nothing depends on it.

    `backend` is what executed, `version` vmmsim's, `host` the system and its CPU, `created`
    seconds since 1970 (UTC; 0: not told), `comment` free text.
    """

    backend: str = ""
    version: str = ""
    host: str = ""
    created: int = 0
    comment: str = ""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """In what a clone is another machine than that of the snapshot, where a guest can tell.

    `generation` is what the guest reads at the snapshot port; None: one more than the snapshot's.
    `seed` begins its random source, None: by chance. With `same_random` that goes on as the snapshot's.
    """

    generation: int | None = None
    seed: int | None = None
    same_random: bool = False

    def __post_init__(self) -> None:
        _counts(self, "generation")
        if self.same_random and self.seed is not None:
            raise UsageError("a seed for a random source that goes on", hint="give one of the two")

    def of(self, snapshot: Snapshot) -> int:
        """The clone's generation."""
        return snapshot.generation + 1 if self.generation is None else self.generation

    def shuffle(self, source: random.Random) -> None:
        """Begin the clone's random source."""
        if not self.same_random:
            source.seed(self.seed)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, weakref=True):
    """A machine at an instruction boundary.

    `devices` maps a device's name to the value that its `state()` gave; what a part of a
    device keeps is under `name.part` (vmmsim.models). `input_position` counts the characters of
    the input that the guest has taken. `generation` is 0 for a machine that was never cloned;
    a clone's is higher, and the guest can read it. `current` is the number of the CPU whose turn
    it is, where CPUs take turns. `memory` is shared, not copied: it must not
    change any more.
    """

    config: MachineConfig
    cpus: tuple[CpuSnapshot, ...]
    memory: MemoryImage
    devices: dict[str, Any] = msgspec.field(default_factory=dict)
    clock: ClockState = ClockState()
    input_position: int = 0
    random_state: RandomState | None = None
    generation: int = 0
    current: int = 0
    provenance: Provenance = Provenance()

    def __post_init__(self) -> None:
        if not self.cpus:
            raise UsageError("a snapshot without a CPU", hint="give at least one CpuSnapshot")
        _counts(self, "input_position")
        _counts(self, "generation")
        if not 0 <= self.current < len(self.cpus):
            raise UsageError(f"current={self.current}", hint="it is the number of one of the CPUs")

    @property
    def id(self) -> str | None:
        """The hash that names the file it was loaded from, 64 hexadecimal digits; else None."""
        return self.memory.id

    def clone(
        self,
        *,
        backend: str | Backend = "auto",
        source: CharSource | None = None,
        sink: CharSink | None = None,
        rewind: bool = True,
        identity: Identity | None = None,
    ) -> Machine:
        """A machine of its own that goes on here: its memory is this one's pages until it stores to them.

        Without an `identity` its generation is one more than the snapshot's and its random source
        begins by chance. `Machine.from_snapshot` makes the same machine once more instead.
        """
        from ..machine import Machine

        return Machine.from_snapshot(
            self, backend=backend, source=source, sink=sink, rewind=rewind, identity=identity or Identity()
        )
