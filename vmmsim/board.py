"""What surrounds a machine's vCPUs: interrupt controllers, the clock, and who waits at a halt.

The clock tells when something is due; how a vCPU hears of it depends on the clock. With
`exits` each exit is a tick, with `insns` the vCPU stops at an instruction, and with `host` a
thread waits for the time. In each case a vCPU comes to a boundary between two instructions
and calls `service`, in its own thread, under `Chipset.lock`: devices know no other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from .clock import Clock, ExitClock, HostClock
from .exits import Access

__all__ = ["Chipset", "Controller", "InterruptBoard", "MachineTime"]

#: Seconds between two looks at whether input has come, with the host's clock.
_INPUT_SECONDS = 0.02


class Controller(Protocol):
    """A vCPU's interrupt controller: its local APIC, or the pair of 8259A."""

    def pending(self) -> bool: ...
    def acknowledge(self) -> int: ...


class MachineTime:
    """The clock as the vCPUs of a machine see it, also of one without interrupts: what RDTSC reads where
    that is ours to answer (Unicorn), and the exits that move a clock of exits."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def tsc(self) -> int:
        """A counter of 1 GHz."""
        if isinstance(self.clock, ExitClock):  # it is an exit here: a guest that waits must get on
            self.clock.tick()
        return self.clock.now()

    def observe(self, cls: type[Access], address: int, size: int, value: int) -> None:
        """An exit was made: an observer of the machine's, for clocks that only the machine moves."""
        if isinstance(self.clock, ExitClock):
            self.clock.tick()

    def halted(self) -> None:
        """A vCPU has executed HLT: an exit, for the clock of exits."""
        if isinstance(self.clock, ExitClock):
            self.clock.tick()


class Chipset(MachineTime):
    """The clock and the input, which a machine's vCPUs share.

    `inputs` are devices with a `poll()`, which take what their source has; `source` is where
    that comes from. `call` has the vCPU that runs look at its board. A context manager around
    each run, which starts what watches the clock.
    """

    def __init__(self, clock: Clock, inputs: list[Any], source: Any, call: Callable[[], None]) -> None:
        super().__init__(clock)
        #: Held by whoever touches a device while several vCPUs run at once.
        self.lock = threading.RLock()
        self._inputs = inputs
        self._source = source
        self._call = call
        self._wake = threading.Event()
        self._alarm: _Alarm | None = None
        #: The vCPUs' INTR pins: whether each is high. Each vCPU's board adds its own.
        self.intr: list[Callable[[], bool]] = []
        if isinstance(clock, HostClock):
            clock.reached = call
            clock.waits = lambda: any(high() for high in self.intr)

    def service(self) -> None:
        """Run what is due."""
        with self.lock:
            if not self.clock.deterministic:
                self._poll()
            self.clock.run_due()

    def look(self) -> None:
        """A vCPU waits: run what is due, and take what input there is."""
        with self.lock:
            self._poll()
            self.clock.run_due()

    def _poll(self) -> None:
        for device in self._inputs:
            device.poll()

    def observe(self, cls: type[Access], address: int, size: int, value: int) -> None:
        """An exit was made, which may be the tick at which something is due. Input is looked for here,
        too: when `service` is called depends on the CPU, and on where a machine was restored."""
        clock = self.clock
        if isinstance(clock, ExitClock):
            clock.tick()
            if clock.deadline is not None and clock.deadline <= clock.now():
                self._call()
        self._poll()

    def __enter__(self) -> Chipset:
        if isinstance(self.clock, HostClock):
            self.clock.go_on()
            self._alarm = _Alarm(self.clock, self._call, bool(self._inputs) and self._source is not None)
        return self

    def __exit__(self, *ended: object) -> None:
        if self._alarm is not None:
            self._alarm.stop()
            self._alarm = None
        if isinstance(self.clock, HostClock):
            self.clock.stop()

    # -- when every vCPU waits

    def wake(self) -> None:
        """Have `wait` look again: the run is cancelled, or a vCPU has something to do. From any thread."""
        self._wake.set()

    def wait(self, ready: Callable[[], bool]) -> bool:
        """No vCPU runs: wait until `ready`, which `wake` has looked at again. False when nothing is
        left that could wake one."""
        while True:
            self._wake.clear()
            self.look()
            if ready():
                return True
            pause = self.advance()
            if pause is None:
                return False
            if pause > 0:
                self._wake.wait(pause)

    def advance(self) -> float | None:
        """No vCPU runs: bring a clock that only the machine moves to the next deadline. Seconds to
        wait before the next look; None when nothing is left to wait for."""
        clock = self.clock
        input_left = bool(self._inputs) and not self._source.ended
        if isinstance(clock, HostClock):
            clock.idle()
            ahead = clock.due_in()
            if ahead is None and not input_left:
                return None
            pause = _INPUT_SECONDS if input_left else 3600.0
            if ahead is not None:
                pause = min(pause, clock.source.seconds(ahead))
            return max(0.0, pause)
        if clock.deadline is not None:
            clock.skip_to(clock.deadline)  # type: ignore[attr-defined]
            return 0.0
        if input_left and not hasattr(self._source, "send"):
            return _INPUT_SECONDS
        return None  # or it is input that the caller sends, who must have a turn


class InterruptBoard:
    """`backends.base.Board` of one vCPU, whose interrupt controller is `controller`, which
    `cr8_written` tells of the vCPU's task priority."""

    def __init__(
        self, chipset: Chipset, controller: Controller, cr8_written: Callable[[int], None] | None = None
    ) -> None:
        self._lock = chipset.lock
        self._controller = controller
        self._cr8_written = cr8_written
        chipset.intr.append(controller.pending)
        self._taken = chipset.clock.taken if isinstance(chipset.clock, HostClock) else None
        self.service = chipset.service

    def pending(self) -> bool:
        with self._lock:
            return self._controller.pending()

    def acknowledge(self) -> int:
        with self._lock:
            if self._taken is not None:
                self._taken()
            return self._controller.acknowledge()

    def cr8_written(self, value: int, /) -> None:
        if self._cr8_written is not None:
            with self._lock:
                self._cr8_written(value)


class _Alarm:
    """A thread that has a vCPU look at its board when the host's clock says so, and now and
    then for input."""

    def __init__(self, clock: HostClock, call: Callable[[], None], input: bool) -> None:
        self._clock = clock
        self._call = call
        self._pause = _INPUT_SECONDS if input else None
        self._changed = threading.Event()
        self._over = False
        clock.changed = self._changed.set
        self._thread = threading.Thread(target=self._run, name="vmmsim-alarm", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over:
            due, pause = self._clock.due_in(), self._pause
            if due is not None:
                ahead = self._clock.source.seconds(due)
                if ahead <= 0:
                    self._call()
                    ahead = 0.001  # the vCPU is on its way; if it is not heard it is told again
                pause = ahead if pause is None else min(pause, ahead)
            if not self._changed.wait(pause) and pause == self._pause:
                self._call()
            self._changed.clear()

    def stop(self) -> None:
        self._over = True
        self._clock.changed = None
        self._changed.set()
        self._thread.join()
