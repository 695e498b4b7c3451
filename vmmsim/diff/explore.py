"""Both sides of a comparison as detailed traces, for a page that shows them side by side.

The sides are run once more, so that a comparison whose result nobody explores costs nothing more. What is
recorded ends a little behind the first difference, and begins some thousand exits before it.
"""

from __future__ import annotations

from ..budget import exits, seconds
from ..errors import DeviceError, NotSupported, VmmsimError
from ..exits import BudgetSpent, Exit
from ..trace.recorder import TraceRecorder
from ..trace.records import Trace
from .sides import Side, Workload

__all__ = ["explored"]

#: Exits that are recorded before the first difference, and behind it; seconds that each part of a run may
#: take.
_BEFORE, _BEHIND = 20_000, 64
_SECONDS = 60.0


def explored(workload: Workload, a: Side, b: Side, equal: int) -> tuple[Trace, Trace]:
    """Traces of both sides around the end of their first `equal` exits. Raises as `Workload.open` does, and
    NotSupported for a side that did not come as far again."""
    first, second = (_trace(workload, side, equal) for side in (a, b))
    return first, second


def _trace(workload: Workload, side: Side, equal: int) -> Trace:
    machine = workload.open(side)
    try:
        skipped = max(0, equal - _BEFORE)
        if skipped:
            end = machine.run(budget=(exits(skipped), seconds(_SECONDS)))
            if not isinstance(end, BudgetSpent) or end.unit != "exits":
                raise NotSupported(
                    f"{side.name} did not come to exit {skipped} again: {end.describe()}",
                    hint="a run that is not the same each time cannot be explored",
                )
        name = f"{workload.name}, from exit {skipped} on" if skipped else workload.name
        recorder = TraceRecorder(machine, guest=name)
        recorder.begin()
        ended: Exit | DeviceError | None = None
        try:
            ended = machine.run(budget=(exits(equal - skipped + _BEHIND), seconds(_SECONDS)))
        except DeviceError as error:
            ended = error
        except VmmsimError as error:
            return recorder.finish(None, error.message)
        detail = ended.message if isinstance(ended, DeviceError) else ended.describe()
        return recorder.finish(ended, detail)
    finally:
        machine.close()
