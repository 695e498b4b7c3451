"""A machine's vCPUs: which of them run, which wait, and whose turn it is.

Where the backend's vCPUs can run at once (`Capabilities.parallel_vcpus`) `run` gives each a
thread (`cpu_threads`). Elsewhere they take turns of `SLICE` instructions, always in the same
order, so that a run repeats.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .backends.base import AccessHandler
from .clock import HostClock, InsnClock
from .cpu_threads import CpuThreads
from .exits import BudgetSpent, Cancelled, Exit, Halt
from .processor import HALTED, RUNS, WAITS, Processor

if TYPE_CHECKING:
    from .board import Chipset, MachineTime

__all__ = ["SLICE", "Processors"]

#: Instructions of a turn, where vCPUs take turns.
SLICE = 10_000
#: Seconds of a turn, where they cannot be counted and one exit at a time is wanted.
_SLICE_SECONDS = 0.002


class Processors:
    """All vCPUs of a machine; `current` is the number of the one that runs, or ran last, and
    whose accesses devices answer. `on_halt` is told of each HLT in `run` and which vCPU's it is, whether
    the run goes on or not."""

    def __init__(
        self,
        items: list[Processor],
        *,
        parallel: bool,
        on_halt: Callable[[Exit, int], None],
    ) -> None:
        self.items = items
        self.current = 0
        self._time: MachineTime
        self._chipset: Chipset | None = None
        self._parallel = parallel and len(items) > 1
        self._on_halt = on_halt
        #: A cancel that no run has taken note of yet.
        self.cancelled = False
        self._threads: CpuThreads | None = None

    def connect(self, time: MachineTime, chipset: Chipset | None) -> None:
        """What the vCPUs share. `chipset` is `time` again, None in a machine without interrupts."""
        self._time, self._chipset = time, chipset
        for item in self.items:
            if not item.vcpu.keep_time(time.tsc) and isinstance(time.clock, HostClock):
                time.clock.stay_close()
        if isinstance(time.clock, InsnClock):
            time.clock.insns = self.insns
            if chipset is not None:
                time.clock.changed = self._aim
                self._aim()

    def __iter__(self) -> Iterator[Processor]:
        return iter(self.items)

    def insns(self) -> int:
        """Instructions retired by all vCPUs, as far as they are counted."""
        return sum(item.vcpu.insns or 0 for item in self.items)

    def started(self) -> None:
        """The machine begins anew: the first vCPU runs, the others wait for STARTUP."""
        self.current = 0
        for item in self.items:
            item.begin(WAITS if item.number else RUNS)

    # -- what interrupt controllers ask, for the vCPU `number`

    def attention(self, number: int) -> None:
        """Its interrupt line may have risen."""
        item = self.items[number]
        item.vcpu.attention()
        self._rouse(item)

    def nmi(self, number: int) -> None:
        item = self.items[number]
        item.nmi = True
        item.vcpu.nmi()
        self._rouse(item)

    def set_cr8(self, number: int, value: int) -> None:
        self.items[number].vcpu.set_cr8(value)

    def init(self, number: int) -> None:
        item = self.items[number]
        item.init, item.startup = True, None
        if number == self.current:
            item.vcpu.stop_here(Cancelled())
        elif self._threads is not None:
            item.vcpu.cancel()
        self._rouse(item)

    def startup(self, number: int, vector: int) -> None:
        item = self.items[number]
        if item.init or item.status is WAITS:  # it is ignored otherwise
            item.startup = vector
            self._rouse(item)

    def _rouse(self, item: Processor) -> None:
        item.wake.set()
        if self._chipset is not None and self._threads is None:
            self._chipset.wake()

    def call(self) -> None:
        """Have the vCPU that runs look at its board. From any thread."""
        item = self.items[0 if self._threads is not None else self.current]
        item.vcpu.attention()
        item.wake.set()

    def _aim(self) -> None:
        """The next deadline of a clock of instructions is another, or another vCPU's turn begins."""
        assert self._chipset is not None
        clock, vcpu = self._chipset.clock, self.items[self.current].vcpu
        assert isinstance(clock, InsnClock)
        if clock.deadline is None:
            vcpu.set_alarm(None)
        else:
            vcpu.set_alarm((vcpu.insns or 0) + clock.insn_at(clock.deadline) - self.insns())

    # -- stopping

    def stop_here(self, exit: Exit) -> None:
        """For a device that answers: end the run behind the instruction at hand."""
        self.items[self.current].vcpu.stop_here(exit)

    def cancel(self) -> None:
        """From any thread or signal handler: end the run, or the next one."""
        self.cancelled = True
        if len(self.items) == 1:
            self.items[0].vcpu.cancel()
        else:
            for item in self.items:
                item.vcpu.cancel()
                item.wake.set()
        if self._chipset is not None:
            self._chipset.wake()

    def uncancel(self) -> None:
        self.cancelled = False
        for item in self.items:
            item.vcpu.uncancel()

    # -- running

    def run(self, handler: AccessHandler, max_insns: int | None) -> Exit:
        """Run with `handler` answering, until an end that is no halt, or no vCPU can go on."""
        chipset = self._chipset
        if self._parallel and max_insns is None and chipset is not None:
            self._threads = CpuThreads(self, chipset, handler, on_halt=self._on_halt)
            try:
                return self._threads.run()
            finally:
                self._threads = None
        alone = len(self.items) == 1
        if alone:
            self._go_on(self.items[0])
        left = max_insns
        while True:
            item = self._next()
            if item is None:
                return Halt()
            turn = left if alone else SLICE if left is None else min(SLICE, left)
            before = item.vcpu.insns
            exit = item.vcpu.run_inline(handler, max_insns=turn)
            if left is not None:
                left -= (item.vcpu.insns or 0) - (before or 0)
            if isinstance(exit, BudgetSpent) and exit.unit == "insns":
                self._pass_on()
                if left is not None and left <= 0:
                    return BudgetSpent("insns", max_insns or 0)
            elif isinstance(exit, Halt):
                self._halt(item)
                self._pass_on()
                self._on_halt(exit, item.number)
                if item.board is None and alone:
                    return exit
                if left is not None and left <= 0 and item.can_wake():
                    return BudgetSpent("insns", max_insns or 0)
            elif self._is_end(item, exit):
                return exit

    def run_one(self, number: int, handler: AccessHandler | None) -> Exit:
        """One instruction of vCPU `number`: see `Machine.step`; without a handler, `Machine.step_exit`."""
        item = self.items[number]
        interrupts = self._chipset is not None and self._chipset.clock.deterministic
        if not item.ready() and item.status is HALTED and item.board is not None:
            if self._chipset is None or not item.can_wake():
                return Halt()
            self._chipset.wait(lambda: self.cancelled or item.ready())
            interrupts = True  # which has woken it, and is taken
        elif item.board is None and item.status is HALTED:
            item.status = RUNS  # a run behind a halt goes on there
        if self.cancelled:
            self.uncancel()
            return Cancelled()
        item.obey()
        if item.status is not RUNS:
            return BudgetSpent("insns", 1)
        self._turn_to(item)
        self.current = number
        exit = item.vcpu.step(handler, interrupts=interrupts)
        if isinstance(exit, Halt):
            self._halt(item)
            if handler is None:
                return exit
            self._on_halt(exit, item.number)
            if item.board is not None and item.can_wake():
                return BudgetSpent("insns", 1)
        elif isinstance(exit, Cancelled):
            self.uncancel()
        return exit

    def step_single(self) -> Exit:
        """As `step`, but no further than behind one instruction of the current vCPU: BudgetSpent."""
        return self.run_one(self.current, None)

    def set_breakpoints(self, addresses: frozenset[int]) -> None:
        """Of all vCPUs: see `Vcpu.set_breakpoints`."""
        for item in self.items:
            item.vcpu.set_breakpoints(addresses)

    def step(self) -> Exit:
        """Run to the next exit, whatever it is, unanswered. `current` made it."""
        if len(self.items) == 1:
            item = self.items[0]
            item.obey()
            self._go_on(item)
            exit = item.vcpu.run()
            if isinstance(exit, Halt):
                self._halt(item)
            elif isinstance(exit, Cancelled):
                self.cancelled = False
            return exit
        while True:
            if (next_one := self._next()) is None:
                return Halt()
            item = next_one
            exit = self._step_turn(item)
            if isinstance(exit, BudgetSpent):
                self._pass_on()
            elif isinstance(exit, Halt):
                self._halt(item)
                return exit
            elif self._is_end(item, exit):
                return exit

    def _is_end(self, item: Processor, exit: Exit) -> bool:
        """Whether `exit` ends the run. If not, the vCPU was stopped for INIT."""
        if isinstance(exit, Cancelled):
            if item.init and not self.cancelled:
                return False
            self.uncancel()
        return True

    def _step_turn(self, item: Processor) -> Exit:
        """One exit of `item`, or BudgetSpent at the end of its turn."""
        if not self._parallel:
            return item.vcpu.run(max_insns=SLICE)
        timer = threading.Timer(_SLICE_SECONDS, item.vcpu.cancel)
        timer.start()
        exit = item.vcpu.run()
        timer.cancel()
        timer.join()
        item.vcpu.uncancel()
        if isinstance(exit, Cancelled) and not self.cancelled and not item.init:
            return BudgetSpent("seconds", _SLICE_SECONDS)
        return exit

    def _go_on(self, item: Processor) -> None:
        """Before the run of the only vCPU: if it is halted, wait for what wakes it, as in the run that was
        cancelled there or in the machine that it is restored from. Where nothing can, a run behind a
        halt goes on there."""
        if item.status is not RUNS and not self._await_any():
            item.status = RUNS

    def goes_on(self, exit: Exit) -> bool:
        """Behind a halt of `step`: whether a vCPU can go on, which is waited for."""
        return isinstance(exit, Halt) and self._await_any()

    def _next(self) -> Processor | None:
        """The vCPU whose turn it is, or the next one that can run; waits until there is one."""
        while not self.cancelled:
            ready = self._first_ready()
            if ready is not None:
                ready.obey()
                if ready.status is RUNS:  # else INIT alone has come: it waits for STARTUP
                    self._turn_to(ready)
                    return ready
            elif not self._await_any():
                return None
        return self.items[self.current]  # whose run ends at once

    def _first_ready(self) -> Processor | None:
        items, at = self.items, self.current
        for item in (*items[at:], *items[:at]):
            if item.ready():
                return item
        return None

    def _turn_to(self, item: Processor) -> None:
        if item.number == self.current and len(self.items) == 1:
            return
        self.current = item.number
        if self._chipset is not None and isinstance(self._chipset.clock, InsnClock):
            self._aim()

    def _pass_on(self) -> None:
        self.current = (self.current + 1) % len(self.items)

    def _await_any(self) -> bool:
        """Wait until a vCPU can go on. False if nothing is left that could wake one."""
        if self._first_ready() is not None:
            return True
        if self._chipset is None or not any(item.can_wake() for item in self.items):
            return False
        return self._chipset.wait(lambda: self.cancelled or self._first_ready() is not None)

    def _halt(self, item: Processor) -> None:
        item.halt()
        self._time.halted()
