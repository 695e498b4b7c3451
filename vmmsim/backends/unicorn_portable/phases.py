"""Which phase code runs in: free, or counted. The rules, without an engine.

Free code runs at Unicorn's own speed, but each of its accesses to MMIO costs what thirty do in
counted code. To change throws away all translated code. So code that makes many accesses is
counted until it has made few for a while; and longer, where the last freedom was short.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Phases"]

#: So many accesses to MMIO a second are too many for free code; it is asked after each group of accesses.
_MOST, _GROUP = 4_000, 64
#: So few are no reason to count.
_SPARSE = 2_000
#: Freedom shorter than this many seconds was not worth its price; at most so many slices in a row
#: with few accesses are waited for before the next.
_BRIEF, _MOST_PATIENCE = 0.2, 64


class Phases:
    """`mmio` arguments are numbers of accesses to MMIO that only grow. `clock` gives seconds, of CPU
    time: on a busy host each access takes long, and a guest that makes nothing else would look quiet."""

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self._clock = clock
        self._quiet, self._patience = 0, 1
        self._since = self._freed = clock()
        self._seen = 0

    def freed(self, mmio: int) -> None:
        """Code is free from now on."""
        self._since = self._freed = self._clock()
        self._seen = mmio

    def busy(self, mmio: int) -> bool:
        """At an access of free code: whether it makes too many."""
        if mmio - self._seen < _GROUP:
            return False
        now = self._clock()
        many = mmio - self._seen > _MOST * (now - self._since)
        self._since, self._seen = now, mmio
        if many:
            self._patience = min(2 * self._patience, _MOST_PATIENCE) if now - self._freed < _BRIEF else 1
            self._quiet = 0
        return many

    def quiet(self, mmio: int) -> bool:
        """At the end of a slice of counted code: whether it makes so few that it may be free."""
        now = self._clock()
        few = mmio - self._seen <= _SPARSE * (now - self._since)
        self._since, self._seen = now, mmio
        self._quiet = self._quiet + 1 if few else 0
        if self._quiet < self._patience:
            return False
        self._quiet = 0
        return True
