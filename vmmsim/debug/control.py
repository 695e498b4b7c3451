"""How a machine runs under a debugger: steps, breakpoints, watchpoints, and why it stopped.

Where the CPU keeps the breakpoints the guest runs at full speed. More breakpoints than it has, and
watchpoints, are looked at between single steps: exact, and some ten thousand instructions a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..cpu.paging import is_user_page
from ..errors import DeviceError, NotSupported, UsageError
from ..exits import (
    Breakpoint,
    BudgetSpent,
    Cancelled,
    Exit,
    FetchUnmapped,
    Refused,
    Shutdown,
    Unsupported,
)
from .memory import read_linear

if TYPE_CHECKING:
    from ..cpu.state import CpuState
    from ..machine import Machine

__all__ = ["SIGINT", "SIGTRAP", "Controller", "Stop"]

#: gdb's numbers of signals.
SIGINT, SIGILL, SIGTRAP, SIGBUS, SIGSEGV, SIGTERM = 2, 4, 5, 10, 11, 15
#: Bytes that one watchpoint may have, and how many watchpoints and breakpoints are kept.
_WATCH_MAX, _POINTS_MAX = 64, 4096
_CR4_SMEP = 1 << 20


class Stop(NamedTuple):
    """Why the machine stopped: `signal` for gdb, `why` in the words of a stop reply ("" or
    `swbreak:`), `text` for people. `end`: the guest has ended so; there is no more to run."""

    signal: int
    why: str = ""
    text: str = ""
    end: Exit | DeviceError | None = None


class _Watch(NamedTuple):
    address: int
    size: int


class Controller:
    """Runs `machine` and stops it. `heed` is called between slow steps; True: stop."""

    def __init__(self, machine: Machine, heed: Callable[[], bool] = lambda: False) -> None:
        self.machine = machine
        self.heed = heed
        #: Address -> the kinds that gdb set it as: 0 software, 1 hardware.
        self._breakpoints: dict[int, set[int]] = {}
        self._watches: dict[_Watch, bytes] = {}
        self._state: CpuState | None = None
        self._state_of = 0
        self.ended: Exit | DeviceError | None = None

    # -- what there is to see

    @property
    def current(self) -> int:
        """The vCPU that ran last."""
        return self.machine.processors.current

    def state(self, cpu: int) -> CpuState:
        """A vCPU's registers while the machine stands."""
        if self._state is None or self._state_of != cpu:
            self._state = self.machine.processors.items[cpu].vcpu.state()
            self._state_of = cpu
        return self._state

    def set_state(self, cpu: int, state: CpuState) -> None:
        """Raises UsageError, NotSupported: nothing has changed then."""
        self._state = None
        self.machine.processors.items[cpu].vcpu.set_state(state)

    def forget(self) -> None:
        """What was read of the CPU is old."""
        self._state = None

    # -- points

    def add_breakpoint(self, kind: int, address: int) -> None:
        """Raises NotSupported where the CPU would not see it: see `_is_native`."""
        if len(self._breakpoints) >= _POINTS_MAX:
            raise UsageError(f"{_POINTS_MAX} breakpoints", hint="remove some")
        if self._is_native(address):
            raise NotSupported(
                f"a breakpoint at {address:#x}: this host's KVM runs 64-bit code at CPL 3 natively, and "
                "would not see it",
                hint="set one at CPL 0; or use backend unicorn",
            )
        self._breakpoints.setdefault(address, set()).add(kind)

    def _is_native(self, address: int) -> bool:
        """Whether the code at `address` runs on the host's CPU itself, as far as it can be known: the page
        is user code's, and the guest is in such, or its CPL 0 cannot execute any (SMEP)."""
        if not self.machine.backend.capabilities.native_user_code:
            return False
        state = self.state(self.current)
        if state.cpl != 3 and not state.cr4 & _CR4_SMEP:
            return False
        return is_user_page(state, address, self.machine.memory.read)

    def remove_breakpoint(self, kind: int, address: int) -> None:
        kinds = self._breakpoints.get(address, set())
        kinds.discard(kind)
        if not kinds:
            self._breakpoints.pop(address, None)

    def add_watchpoint(self, address: int, size: int) -> None:
        """Stop behind an instruction that changes these bytes. UsageError for too many."""
        if not 0 < size <= _WATCH_MAX or len(self._watches) >= _POINTS_MAX:
            raise UsageError(f"a watchpoint of {size} bytes", hint=f"at most {_WATCH_MAX}")
        self._watches[_Watch(address, size)] = b""

    def remove_watchpoint(self, address: int, size: int) -> None:
        self._watches.pop(_Watch(address, size), None)

    def clear(self) -> None:
        """No points: the debugger is gone."""
        self._breakpoints.clear()
        self._watches.clear()
        self.machine.processors.set_breakpoints(frozenset())

    @property
    def slow(self) -> bool:
        """Whether the guest can only run in single steps, with these points."""
        most = self.machine.backend.capabilities.breakpoints
        return bool(self._watches) or len(self._breakpoints) > most

    def arm(self) -> None:
        """Give the CPU the breakpoints. Before each run."""
        points = frozenset() if self.slow else frozenset(self._breakpoints)
        self.machine.processors.set_breakpoints(points)

    def disarm(self) -> None:
        self.machine.processors.set_breakpoints(frozenset())

    # -- running

    def step(self, cpu: int) -> Stop:
        """One instruction of `cpu`; the others stand still."""
        return self._run(lambda: self.machine.step(cpu))

    def step_range(self, cpu: int, start: int, end: int) -> Stop:
        """Steps as long as `cpu` is at an address from `start` to `end` - 1."""
        self.begin_looking()
        while True:
            stop = self.step(cpu)
            if stop.signal != SIGTRAP or stop.why:
                return stop
            changed = self.changed()
            if changed:
                return changed
            rip = self._where(cpu)
            if rip in self._breakpoints:
                return self._stop_at(rip)
            if not start <= rip < end:
                return stop
            if self.heed():
                return Stop(SIGINT)

    def go(self) -> Stop:
        """All vCPUs, until something stops them."""
        if self.slow:
            return self._go_slowly()
        return self._run(self._go)

    def _go(self) -> Exit:
        self.arm()
        return self.machine.run()

    def _go_slowly(self) -> Stop:
        """A step of each vCPU in turn."""
        self.begin_looking()
        while True:
            for item in self.machine.processors:
                if not (item.ready() or len(self.machine.processors.items) == 1):
                    continue
                rip = self._where(item.number)
                if rip in self._breakpoints:
                    self.machine.processors.current = item.number
                    return self._stop_at(rip)
                stop = self.step(item.number)
                if stop.signal != SIGTRAP or stop.why:
                    return stop
                changed = self.changed()
                if changed:
                    return changed
            if self.heed():
                return Stop(SIGINT)

    def _where(self, cpu: int) -> int:
        """The linear address of the next instruction."""
        return self._place(cpu).linear_rip

    def _place(self, cpu: int) -> CpuState:
        return self.machine.processors.items[cpu].vcpu.place()

    def begin_looking(self) -> None:
        """Remember what watchpoints are set on, before the first of several steps."""
        for watch in self._watches:
            self._watches[watch] = self._value(watch)

    def _value(self, watch: _Watch) -> bytes:
        return read_linear(self._place(self.current), self.machine.memory, watch.address, watch.size)

    def changed(self) -> Stop | None:
        """The stop of a watchpoint whose bytes the last step has changed."""
        if not self._watches:
            return None
        self.forget()
        for watch, before in self._watches.items():
            now = self._value(watch)
            if now != before:
                self._watches[watch] = now
                return Stop(SIGTRAP, f"watch:{watch.address:x};")
        return None

    def _run(self, run: Callable[[], Exit]) -> Stop:
        """Run, and say what the exit means."""
        self.forget()
        try:
            exit = run()
        except DeviceError as error:
            return Stop(SIGBUS, text=error.message, end=error)
        except NotSupported as error:
            return Stop(0, text=str(error))
        return self.stopped(exit)

    def stopped(self, exit: Exit) -> Stop:
        """The stop that a run's `exit` is."""
        self.forget()
        if isinstance(exit, Breakpoint):
            return self._stop_at(exit.address)
        if isinstance(exit, BudgetSpent):
            return Stop(SIGTRAP)
        if isinstance(exit, Cancelled):
            return Stop(SIGINT)
        if isinstance(exit, (Shutdown, FetchUnmapped)):
            return Stop(SIGSEGV, text=exit.describe(), end=exit)
        if isinstance(exit, (Refused, Unsupported)):
            return Stop(SIGILL, text=exit.describe(), end=exit)
        return Stop(SIGTERM, text=f"the guest has ended: {exit.describe()}", end=exit)

    def point_at(self, cpu: int) -> Stop | None:
        """The stop of a breakpoint at the next instruction of `cpu`."""
        rip = self._where(cpu)
        return self._stop_at(rip) if rip in self._breakpoints else None

    def _stop_at(self, address: int) -> Stop:
        kinds = self._breakpoints.get(address, {0})
        return Stop(SIGTRAP, "hwbreak:;" if 0 not in kinds else "swbreak:;")
