"""A run of several vCPUs at once, a thread each: for backends whose vCPUs execute on the host's.

The first vCPU runs in the caller's thread. Devices are entered by one thread at a time, under
`Chipset.lock`, with `Processors.current` telling whose access it is. The run is over for all as
soon as it ends for one; a halt ends it for nobody until none is left that could be woken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .backends.base import WrappedHandler
from .exits import Cancelled, Exit, Halt
from .processor import RUNS, Processor

if TYPE_CHECKING:
    from .backends.base import AccessHandler
    from .board import Chipset
    from .processors import Processors

__all__ = ["CpuThreads"]

#: Seconds after which a vCPU that waits looks again by itself.
_LOOK_SECONDS = 0.5


class CpuThreads:
    """One run. `run` returns what ended it, or raises what a device or an observer raised."""

    def __init__(
        self,
        processors: Processors,
        chipset: Chipset,
        handler: AccessHandler,
        *,
        on_halt: Callable[[Exit, int], None],
    ) -> None:
        self._processors = processors
        self._chipset = chipset
        self._lock = chipset.lock
        self._handler = handler
        self._on_halt = on_halt
        self._over = False
        self._exit: Exit | None = None
        self._error: BaseException | None = None

    def run(self) -> Exit:
        first, *others = self._processors
        threads = [
            threading.Thread(target=self._work, args=(item,), name=f"vmmsim-vcpu{item.number}", daemon=True)
            for item in others
        ]
        for thread in threads:
            thread.start()
        self._work(first)
        for thread in threads:
            thread.join()
        self._processors.uncancel()
        if self._error is not None:
            raise self._error
        return self._exit or Cancelled()

    def _work(self, item: Processor) -> None:
        try:
            self._loop(item, _locked(self._processors, item.number, self._handler, self._lock))
        except BaseException as error:
            self._finish(None, error)

    def _loop(self, item: Processor, handler: AccessHandler) -> None:
        while not self._over:
            with self._lock:
                item.obey()
            if item.status is not RUNS and not self._await(item):
                continue
            if self._over or item.status is not RUNS:
                continue
            exit = item.vcpu.run_inline(handler)
            if isinstance(exit, Halt):
                with self._lock:
                    item.halt()
                    self._chipset.halted()
                    self._on_halt(exit, item.number)
            elif isinstance(exit, Cancelled) and not self._processors.cancelled and not self._over:
                pass  # INIT has come
            else:
                self._finish(exit, number=item.number)

    def _await(self, item: Processor) -> bool:
        """Wait until `item` has something to do. False when the run is over."""
        while not self._over:
            item.wake.clear()
            with self._lock:
                if self._processors.cancelled:
                    self._finish(Cancelled())
                    return False
                self._chipset.look()
                if item.ready():
                    return True
                pause = _LOOK_SECONDS if any(other.ready() for other in self._processors) else self._idle()
            if pause is None:
                self._finish(Halt())
            elif pause > 0 and not self._over:
                item.wake.wait(pause)
        return False

    def _idle(self) -> float | None:
        """All wait: seconds until the next look, or None if nothing could wake one."""
        if not any(item.can_wake() for item in self._processors):
            return None
        return self._chipset.advance()

    def _finish(
        self, exit: Exit | None, error: BaseException | None = None, *, number: int | None = None
    ) -> None:
        """End the run for all. Of several ends the first counts; `number` has made it."""
        with self._lock:
            if self._over:
                return
            self._over = True
            self._exit, self._error = exit, error
            if number is not None:
                self._processors.current = number
            for item in self._processors:
                item.vcpu.cancel()
                item.wake.set()


def _locked(
    processors: Processors, number: int, handler: AccessHandler, lock: threading.RLock
) -> AccessHandler:
    """The handler of one vCPU: its accesses are answered under the lock."""

    def around(answer: Callable[..., Any]) -> Callable[..., Any]:
        def enter(*access: int) -> Any:
            with lock:
                processors.current = number
                return answer(*access)

        return enter

    return WrappedHandler(handler, around)
