"""VMMSIM_SLOW=N: how many times longer than usual the time limits of tests are.

A test needs a limit so that a guest that hangs ends it, and a limit that an emulated, loaded or
debugged host does not keep says nothing about vmmsim. Every limit of `vmmsim.testing` and of the
project's own tests goes through `time_limit`, so that one setting fits them all to such a host. What
is no limit (how long a guest is left alone before it is stopped, say) stays as it is.
"""

from __future__ import annotations

import os

from ..errors import UsageError

__all__ = ["LONGEST", "slowness", "time_limit"]

#: The largest VMMSIM_SLOW: with it the usual 60 seconds of a test are most of a day.
LONGEST = 1000


def slowness() -> float:
    """How many times longer limits are: VMMSIM_SLOW, a number from 1 to `LONGEST`; 1 where it is not
    set or is empty. UsageError for anything else."""
    text = os.environ.get("VMMSIM_SLOW", "")
    if not text:
        return 1.0
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 1 <= factor <= LONGEST:  # no number (NaN) is not in it either
        raise UsageError(
            f"VMMSIM_SLOW is '{text}', and it is how many times longer time limits are: 1 to {LONGEST}",
            hint="set it to 10 for an emulated host, or not at all",
        )
    return factor


def time_limit(seconds: float) -> float:
    """The limit on this host, in seconds, of what takes less than `seconds` on an ordinary one."""
    return seconds * slowness()
