"""A host that is slower than this one, for tests: its time runs faster than what it does.

    with slow_host(10), Machine.for_guest("timer-real") as machine:
        machine.run()

To a guest, and to all of vmmsim that waits for time, a host with a tenth of the speed and a host whose
clock runs ten times as fast are the same; the test does not take longer. What is not scaled: the
interval at which threads of Python change, and the waits for input.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from ..clock import SECOND, HostClock, HostTime
from ..errors import UsageError

__all__ = ["SlowHost", "slow_host"]


class SlowHost(HostTime):
    """The time of a host with `1 / scale` of this one's speed. UsageError for a scale of 0 or less."""

    def __init__(self, scale: float) -> None:
        if scale <= 0:
            raise UsageError(f"a host that is {scale} times slower", hint="give a number greater than 0")
        self._scale = scale
        self._began = time.perf_counter_ns()

    def now_ns(self) -> int:
        return int((time.perf_counter_ns() - self._began) * self._scale)

    def seconds(self, ns: int) -> float:
        return ns / SECOND / self._scale


@contextlib.contextmanager
def slow_host(scale: float) -> Iterator[HostTime]:
    """Machines that are made meanwhile, with the host's clock, find a host that is `scale` times slower."""
    usual = HostClock.source
    HostClock.source = SlowHost(scale)
    try:
        yield HostClock.source
    finally:
        HostClock.source = usual
