"""From the end of a run to its verdict: what it means for a process, and whether the guest's kernel panicked.

Neutral: `Machine.outcome`, the command line, the pytest plugin and scripts use the same table, however
the run was started.

    0-119  the guest's own code; 0 also for a guest that halts, powers off or resets
    120    triple fault
    121    an exit that nobody handles, or a kernel that panicked
    124    the budget, or the time, is spent
    125    usage, a device model or vmmsim itself
    126    the backend is not available
    127    no such image
    130    Ctrl-C (128 + SIGINT), or Ctrl-a x
"""

from __future__ import annotations

import re

import msgspec

from .errors import DeviceError
from .exits import BudgetSpent, Cancelled, Exit, GuestExit, Halt, Shutdown, SystemEvent

__all__ = ["GUEST_CODES", "UNHANDLED", "Outcome", "exit_code", "outcome", "panic_text"]

#: A guest's codes are below this; more is told and becomes the largest.
GUEST_CODES = 120

_TRIPLE_FAULT = 120
#: The process's exit code for an exit that nobody handles.
UNHANDLED = 121
_SPENT = 124
_INTERRUPTED = 130


#: What Linux prints when it panics (kernel/panic.c), after the time of the line, if that is shown.
_PANIC = re.compile(rb"^(?:\[ *\d+\.\d+\] )?(Kernel panic - not syncing[^\r\n]*)", re.MULTILINE)


class Outcome(msgspec.Struct, frozen=True):
    """`code` for the process; `abnormal` when a post-mortem is due; `note` for people, or "";
    `panicked` is what a kernel that panicked said, or ""."""

    code: int
    abnormal: bool = False
    note: str = ""
    panicked: str = ""


def panic_text(output: bytes) -> str:
    """The line with which Linux panicked, the last one in what a guest printed; "" for none.

    Linux that panics resets the machine (`panic=-1`) or stands still; only its console tells that it was
    no wish of a user's. So this finds nothing in a guest whose console is elsewhere, and it finds the
    line of a panic that anybody else printed.
    """
    found = _PANIC.findall(output)
    return found[-1].decode("utf-8", "replace") if found else ""


def outcome(end: Exit | DeviceError, output: bytes = b"") -> Outcome:
    """What a run comes to that ended with `end` and printed `output`. A panic never has code 0."""
    result = _of_exit(end) if isinstance(end, Exit) else Outcome(end.exit_code, abnormal=True)
    text = panic_text(output)
    if not text:
        return result
    note = f"the kernel panicked: {text}"
    return Outcome(result.code or UNHANDLED, abnormal=True, note=note, panicked=text)


def _of_exit(exit: Exit) -> Outcome:
    """By the exit alone. An access left over is nobody's: 121."""
    if isinstance(exit, GuestExit):
        if 0 <= exit.code < GUEST_CODES:
            return Outcome(exit.code)
        last = GUEST_CODES - 1
        return Outcome(
            last, note=f"the guest ended with code {exit.code}, shown as {last} (codes are 0-{last})"
        )
    if isinstance(exit, Halt):
        return Outcome(0)
    if isinstance(exit, SystemEvent):
        return Outcome(0, note=exit.describe())
    if isinstance(exit, Shutdown):
        return Outcome(_TRIPLE_FAULT, abnormal=True)
    if isinstance(exit, BudgetSpent):
        return Outcome(_SPENT, abnormal=True)
    if isinstance(exit, Cancelled):
        return Outcome(_INTERRUPTED, note="stopped by the user")
    return Outcome(UNHANDLED, abnormal=True)


def exit_code(exit: Exit) -> int:
    """The process exit code for `exit`."""
    return outcome(exit).code
