"""When the records of a trace were made, for viewers that draw time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .records import Event, ExitRecord, Jump, Trace

__all__ = ["Moment", "moments", "timed"]

#: Nanoseconds of an exit of a trace without times.
_STEP = 1000


class Moment(NamedTuple):
    """A record with its times in nanoseconds since the beginning: the guest ran from `began` to `left`, and
    the VMM from there to `resumed`. A jump has one time."""

    record: ExitRecord | Event | Jump
    began: int
    left: int
    resumed: int


def timed(trace: Trace) -> bool:
    """Whether the trace has times. One that has none counts a microsecond an exit."""
    return any(isinstance(r, ExitRecord | Event) and (r.guest_ns or r.vmm_ns) for r in trace.records)


def moments(trace: Trace) -> Iterator[Moment]:
    """In the order of the records; each vCPU has a time of its own, that goes on."""
    step = 0 if timed(trace) else _STEP
    now = [0] * trace.header.cpus
    for record in trace.records:
        if isinstance(record, Jump):
            at = max(now)
            yield Moment(record, at, at, at)
        elif isinstance(record, ExitRecord | Event):
            began = now[record.cpu]
            left = began + record.guest_ns
            resumed = now[record.cpu] = left + record.vmm_ns + step
            yield Moment(record, began, left, resumed)
