"""From an exit to an exit code: what the end of a run means for a process.

Neutral: the command line, the pytest plugin and scripts use the same table.

    0-119  the guest's own code; 0 also for a guest that halts, powers off or resets
    120    triple fault
    121    an exit that nobody handles (the command line: also a kernel that panicked)
    124    the budget, or the time, is spent
    125    usage, a device model or vmmsim itself
    126    the backend is not available
    127    no such image
    130    Ctrl-C (128 + SIGINT), or Ctrl-a x
"""

from __future__ import annotations

import msgspec

from .exits import BudgetSpent, Cancelled, Exit, GuestExit, Halt, Shutdown, SystemEvent

__all__ = ["GUEST_CODES", "UNHANDLED", "Outcome", "exit_code", "outcome"]

#: A guest's codes are below this; more is told and becomes the largest.
GUEST_CODES = 120

_TRIPLE_FAULT = 120
#: The process's exit code for an exit that nobody handles.
UNHANDLED = 121
_SPENT = 124
_INTERRUPTED = 130


class Outcome(msgspec.Struct, frozen=True):
    """`code` for the process; `abnormal` when a post-mortem is due; `note` for people, or ""."""

    code: int
    abnormal: bool = False
    note: str = ""


def outcome(exit: Exit) -> Outcome:
    """What a run that ended with `exit` comes to. An access left over is nobody's: 121."""
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
