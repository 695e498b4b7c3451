"""Two machines run in turn, some exits each, and their traces compared as they grow.

A trace is the accesses that the machine's devices answer, as (kind, address, size, value). What was
compared is forgotten but for a hash and the last `WINDOW` exits, so memory is bounded however
long the runs are. One instruction may make several exits, and a machine stops behind it: the
sides can be some exits apart, which wait to be compared.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from ..budget import Budget, exits, seconds
from ..errors import DeviceError
from ..exits import Access, BudgetSpent, Exit, MmioRead, MmioWrite, MsrRead, MsrWrite, PortRead, PortWrite
from ..machine import Machine

__all__ = ["WINDOW", "End", "Lockstep", "Runner", "Step", "TraceComparer", "step_line", "step_of"]

#: How many of the exits that were the same are kept to be shown.
WINDOW = 32

_KINDS: tuple[type[Access], ...] = (PortRead, PortWrite, MmioRead, MmioWrite, MsrRead, MsrWrite)
_CODES = {cls: code for code, cls in enumerate(_KINDS)}

#: One exit of a trace: index of the kind in `_KINDS`, address, size, value.
Step = tuple[int, int, int, int]

_FIRST_CHUNK, _LAST_CHUNK = 256, 8192
#: When one side has ended, how long the other may take to its next exit or its end: at least so
#: many seconds, and so many times what the first took altogether.
_GRACE, _GRACE_FACTOR = 5.0, 10.0


def step_of(cls: type[Access], address: int, size: int, value: int) -> Step:
    """The step of an observer's call (`Machine.observe`)."""
    return _CODES[cls], address, size, value


def step_line(step: Step) -> str:
    """A step for people: `port_write 0x3f8 size 1 = 0x41`."""
    code, address, size, value = step
    return f"{_KINDS[code].kind} {address:#x} size {size} = {value:#0{2 + 2 * size}x}"


class TraceComparer:
    """Compares two growing traces. `count` is how many exits were the same, `window` the last of
    them, `digest()` a hash of all of them (BLAKE2b, 16 bytes)."""

    def __init__(self) -> None:
        self.count = 0
        self.window: deque[Step] = deque(maxlen=WINDOW)
        self._hash = hashlib.blake2b(digest_size=16)
        self._encode = msgspec.msgpack.Encoder().encode

    def feed(self, left: list[Step], right: list[Step]) -> bool:
        """Compare as far as both go, and take what is the same off both. False: the first steps
        that are left differ."""
        both = min(len(left), len(right))
        mine = left if len(left) == both else left[:both]
        theirs = right if len(right) == both else right[:both]
        same = both
        if mine != theirs:
            same = next(at for at in range(both) if mine[at] != theirs[at])
            mine = mine[:same]
        if same:
            self.window.extend(mine[-WINDOW:])
            self.count += same
            # Without the array's header, so that the hash knows nothing of chunks.
            self._hash.update(memoryview(self._encode(mine))[_header(same) :])
            del left[:same]
            del right[:same]
        return same == both

    def digest(self) -> str:
        return self._hash.hexdigest()


def _header(length: int) -> int:
    """Bytes of the header of a MessagePack array."""
    return 1 if length < 16 else 3 if length < 1 << 16 else 5


class End(msgspec.Struct, frozen=True):
    """How a side ended. `key` is what two ends have in common if they are the same."""

    kind: str
    detail: str
    key: tuple[Any, ...] = ()

    @classmethod
    def of(cls, exit: Exit | DeviceError) -> End:
        if isinstance(exit, DeviceError):
            return cls("device_error", exit.message, ("device_error", exit.device, exit.access))
        names = [name for name in exit.__struct_fields__ if name not in ("cause", "reason", "insn")]
        values = tuple(getattr(exit, name) for name in names if not name.startswith("_"))
        return cls(exit.kind, exit.describe(), (exit.kind, *values))


class Runner:
    """One side under way: its machine, the steps not compared yet, how many it made, its end."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.pending: list[Step] = []
        self.count = 0
        self.end: End | None = None
        #: It had no time left.
        self.late = False
        append, codes = self.pending.append, _CODES

        def record(cls: type[Access], address: int, size: int, value: int) -> None:
            append((codes[cls], address, size, value))

        self._forget = machine.observe(record)
        self._seen = 0

    def advance(self, target: int, limit: float | None) -> None:
        """Run until `target` exits were made, within `limit` seconds; soon behind it at the latest."""
        deadline = None if limit is None else time.perf_counter() + limit
        while self.end is None and self.count < target:
            budget: tuple[Budget, ...] = (exits(target - self.count),)
            if deadline is not None:
                budget += (seconds(max(deadline - time.perf_counter(), 0.001)),)
            before = len(self.pending)
            try:
                exit: Exit | DeviceError = self.machine.run(budget=budget)
            except DeviceError as error:
                exit = error
            self.count += len(self.pending) - before
            if isinstance(exit, BudgetSpent):
                if exit.unit == "exits":
                    continue
                self.late = True
                return
            self.end = End.of(exit)

    def close(self) -> None:
        self._forget()
        self.machine.close()


class Lockstep(msgspec.Struct):
    """Two sides from their first exit on. `run` says what came out."""

    left: Runner
    right: Runner
    comparer: TraceComparer
    #: Why no verdict could be given; "" if there is one.
    stopped: str = ""

    def run(
        self,
        *,
        limit: int | None = None,
        timeout: float | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> bool:
        """Run both until they differ (False), both ended alike, `limit` exits were made, or
        `timeout` seconds are over (True; `stopped` says which)."""
        began = time.perf_counter()
        chunk = _FIRST_CHUNK
        target = chunk
        sides = (self.left, self.right)
        while True:
            if limit is not None:
                target = min(target, limit)
            for side in sides:
                side.advance(target, self._time(began, timeout))
            if not self.comparer.feed(self.left.pending, self.right.pending):
                return False
            if progress is not None:
                progress(self.comparer.count)
            ended = [side for side in sides if side.end is not None]
            if len(ended) == 2:
                return self._same_end()
            if ended:
                other = self.left if ended[0] is self.right else self.right
                if ended[0].count < other.count:
                    return False
                if limit is not None and other.count >= limit:
                    self.stopped = f"the limit of {limit} exits is reached"
                    return True
                if other.late:
                    if timeout is not None and time.perf_counter() - began >= timeout:
                        self.stopped = "the time is spent"
                        return True
                    return False
                target = ended[0].count + 1
                continue
            if any(side.late for side in sides):
                self.stopped = "the time is spent"
                return True
            if limit is not None and self.comparer.count + len(self._waiting()) >= limit:
                self.stopped = f"the limit of {limit} exits is reached"
                return True
            chunk = min(2 * chunk, _LAST_CHUNK)
            target = max(side.count for side in sides) + chunk

    def _waiting(self) -> list[Step]:
        return self.left.pending or self.right.pending

    def _same_end(self) -> bool:
        if self._waiting():
            return False
        assert self.left.end is not None
        assert self.right.end is not None
        return self.left.end.key == self.right.end.key

    def _time(self, began: float, timeout: float | None) -> float | None:
        """Seconds that the next side may run."""
        used = time.perf_counter() - began
        left = None if timeout is None else max(timeout - used, 0.001)
        if self.left.end is None and self.right.end is None:
            return left
        grace = max(_GRACE, _GRACE_FACTOR * used)
        return grace if left is None else min(grace, left)
