"""When a snapshot is taken in a run: when the guest asks, at an exit, an instruction, or a text.

A trigger takes one snapshot, always behind an instruction, and the run goes on (or ends there).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from ..errors import UsageError
from ..exits import Access

if TYPE_CHECKING:
    from ..machine import Machine
    from .values import Snapshot

__all__ = ["OutputWatch", "Trigger", "arm", "parse_trigger", "pattern"]

#: Bytes of output that are looked through again with each new one.
_LONGEST = 4096
_HINT = "write guest, exit:N, insns:N or serial:REGEX"


class Trigger(msgspec.Struct, frozen=True):
    """`kind` is guest, exit, insns or serial; `count` the N of exit and insns."""

    kind: str
    count: int = 0
    regex: str = ""


def parse_trigger(text: str, *, hint: str = _HINT) -> Trigger:
    """A Trigger from `guest`, `exit:N`, `insns:N` or `serial:REGEX`. Raises UsageError, with `hint`."""
    kind, colon, rest = text.partition(":")
    if kind == "guest" and not colon:
        return Trigger(kind)
    if kind in ("exit", "insns") and rest.isascii() and rest.isdigit() and 0 < int(rest[:20]) < 1 << 63:
        return Trigger(kind, count=int(rest[:20]))
    if kind == "serial" and rest:
        pattern(rest)
        return Trigger(kind, regex=rest)
    raise UsageError(f"'{text}' is no moment of a run", hint=hint)


def pattern(text: str) -> re.Pattern[bytes]:
    """The regular expression `text`, for bytes: `.` is a newline too. Raises UsageError."""
    try:
        return re.compile(text.encode(), re.DOTALL)
    except (re.error, UnicodeEncodeError) as error:
        raise UsageError(f"'{text}' is no regular expression: {error}", hint="see Python's re") from error


class OutputWatch:
    """An observer that looks for patterns in the guest's output, each from where it last matched on.

    What matches has at most 4096 bytes. `found(name)` is called behind the access that completed
    a match of the pattern `name`.
    """

    def __init__(
        self, machine: Machine, patterns: dict[str, re.Pattern[bytes]], found: Callable[[str], None]
    ) -> None:
        self._output = machine.output
        self._patterns = patterns
        self._found = found
        self._seen = len(self._output)
        self._from = dict.fromkeys(patterns, self._seen)

    def __call__(self, cls: type[Access], address: int, size: int, value: int) -> None:
        if len(self._output) == self._seen:
            return
        before, self._seen = self._seen, len(self._output)
        for name, wanted in self._patterns.items():
            start = max(self._from[name], before - _LONGEST)
            match = wanted.search(self._output.since(start))
            if match is not None:
                self._from[name] = start + max(match.end(), 1)
                self._found(name)


def arm(machine: Machine, trigger: Trigger, take: Callable[[Snapshot], None]) -> Callable[[], None]:
    """Have `take` given one snapshot when `trigger` says; returns what takes the trigger away.

    Not for `insns`, which is a budget: `machine.run(budget=insns(n))`, then `machine.snapshot()`.
    """
    if trigger.kind == "guest":
        machine.on_snapshot = lambda snapshot: once(lambda: snapshot)

        def disarm() -> None:
            machine.on_snapshot = None
    elif trigger.kind == "exit":
        left = trigger.count

        def count(cls: type[Access], address: int, size: int, value: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                fire()

        disarm = machine.observe(count)
    elif trigger.kind == "serial":
        watch = OutputWatch(machine, {"text": pattern(trigger.regex)}, lambda name: fire())
        disarm = machine.observe(watch)
    else:
        raise UsageError(f"a trigger of {trigger.kind}", hint="run with a budget of insns instead")
    taken = False

    def fire() -> None:
        if not taken:
            machine.between(lambda: once(machine.snapshot))

    def once(make: Callable[[], Snapshot]) -> None:
        nonlocal taken
        if not taken:
            taken = True
            take(make())

    return disarm
