"""What surrounds a vCPU: its interrupt controller, its clock, and who waits when it halts.

The clock tells when something is due; how the vCPU hears of it depends on the clock. With
`exits` each exit is a tick, with `insns` the vCPU stops at an instruction, and with `host` a
thread waits for the time. In each case the vCPU comes to a boundary between two instructions
and calls `service`, in its own thread: devices know no other.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from .clock import Clock, ExitClock, HostClock, InsnClock

if TYPE_CHECKING:
    from .backends.base import Vcpu
    from .exits import Access

__all__ = ["InterruptBoard"]

#: Seconds between two looks at whether input has come, with the host's clock.
_INPUT_SECONDS = 0.02


class InterruptBoard:
    """`backends.base.Board` for a machine with an interrupt controller `pic`.

    `inputs` are devices with a `poll()`, which take what their source has; `source` is where
    that comes from. A context manager around each run, which starts what watches the clock.
    """

    def __init__(self, vcpu: Vcpu, pic: Any, clock: Clock, inputs: list[Any], source: Any) -> None:
        self._vcpu = vcpu
        self._pic = pic
        self._clock = clock
        self._inputs = inputs
        self._source = source
        self._wake = threading.Event()
        self._alarm: _Alarm | None = None
        if isinstance(clock, InsnClock):
            clock.insns = lambda: vcpu.insns or 0
            clock.changed = self._aim
            self._aim()
        vcpu.connect(self)

    # -- what the vCPU asks

    def service(self) -> None:
        for device in self._inputs:
            device.poll()
        self._clock.run_due()

    def pending(self) -> bool:
        return bool(self._pic.pending)

    def acknowledge(self) -> int:
        return int(self._pic.acknowledge())

    def cr8_written(self, value: int, /) -> None:
        """There is no APIC: nobody's priority."""

    def tsc(self) -> int:
        """A counter of 1 GHz."""
        if isinstance(self._clock, ExitClock):  # it is an exit here: a guest that waits must get on
            self._clock.tick()
        return self._clock.now()

    # -- the clock

    def _aim(self) -> None:
        clock = self._clock
        assert isinstance(clock, InsnClock)
        self._vcpu.set_alarm(None if clock.deadline is None else clock.insn_at(clock.deadline))

    def observe(self, cls: type[Access], address: int, size: int, value: int) -> None:
        """An exit was made: an observer of the machine's, for the clock of exits."""
        clock = self._clock
        clock.tick()  # type: ignore[attr-defined]
        if clock.deadline is not None and clock.deadline <= clock.now():
            self._vcpu.attention()

    def __enter__(self) -> InterruptBoard:
        self._wake.clear()
        if isinstance(self._clock, HostClock):
            self._alarm = _Alarm(self._clock, self._vcpu, bool(self._inputs) and self._source is not None)
        return self

    def __exit__(self, *ended: object) -> None:
        if self._alarm is not None:
            self._alarm.stop()
            self._alarm = None

    # -- a halted vCPU

    def wake(self) -> None:
        """End `wait`: the run is cancelled."""
        self._wake.set()

    def wait(self) -> bool:
        """The vCPU has halted with interrupts on: wait until one is pending, or for `wake`.

        False when nothing is left that could wake it.
        """
        clock = self._clock
        if isinstance(clock, ExitClock):
            clock.tick()
        while not self._wake.is_set():
            self.service()
            if self.pending():
                return True
            input_left = bool(self._inputs) and not self._source.ended
            if not clock.deterministic:
                if clock.deadline is None and not input_left:
                    return False
                pause = _INPUT_SECONDS if input_left else 3600.0
                if clock.deadline is not None:
                    pause = min(pause, (clock.deadline - clock.now()) / 1e9)
                if pause > 0:
                    self._wake.wait(pause)
            elif clock.deadline is not None:
                clock.skip_to(clock.deadline)  # type: ignore[attr-defined]
            elif input_left and hasattr(self._source, "send"):
                return False  # input that the caller sends, who must have a turn
            elif input_left:
                self._wake.wait(_INPUT_SECONDS)
            else:
                return False
        return True


class _Alarm:
    """A thread that has the vCPU look at its board when the host's clock says so, and now and
    then for input."""

    def __init__(self, clock: HostClock, vcpu: Vcpu, input: bool) -> None:
        self._clock = clock
        self._vcpu = vcpu
        self._pause = _INPUT_SECONDS if input else None
        self._changed = threading.Event()
        self._over = False
        clock.changed = self._changed.set
        self._thread = threading.Thread(target=self._run, name="vmmsim-alarm", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over:
            deadline, pause = self._clock.deadline, self._pause
            if deadline is not None:
                ahead = (deadline - self._clock.now()) / 1e9
                if ahead <= 0:
                    self._vcpu.attention()
                    ahead = 0.001  # the vCPU is on its way; if it is not heard it is told again
                pause = ahead if pause is None else min(pause, ahead)
            if not self._changed.wait(pause) and pause == self._pause:
                self._vcpu.attention()
            self._changed.clear()

    def stop(self) -> None:
        self._over = True
        self._clock.changed = None
        self._changed.set()
        self._thread.join()
