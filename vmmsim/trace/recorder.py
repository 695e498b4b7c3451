"""Recording a detailed trace of a machine's runs.

The path of each exit only keeps what is gone afterwards: two times, the access, a glance at the registers,
and the number of the code window, which is found by RIP. It is all put flat into one list, of objects that
the garbage collector need not look at. What happens rarely (looks, interrupts, output, halts, jumps) goes
into another list, with its place in the first. `expand` makes the records of both when the run is over.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import DeviceError, VmmsimError
from ..exits import (
    Access,
    Exit,
    FetchUnmapped,
    GuestException,
    MmioRead,
    MmioWrite,
    MsrRead,
    MsrWrite,
    PortRead,
    PortWrite,
    Refused,
    Shutdown,
    Unsupported,
)
from ..record.recorder import tell_interrupts
from .code import CodeWindows
from .expand import WIDTH, Mark, expand
from .header import header_of
from .looks import LookBudget, Looks, all_registers
from .records import End, Trace

if TYPE_CHECKING:
    from ..cpu.state import CpuState
    from ..machine import Machine
    from ..processors import Processors
    from ..snapshot.values import Snapshot

__all__ = ["LIMIT", "TraceRecorder"]

#: Exits that are recorded where nothing else is asked for.
LIMIT = 200_000
#: Nanoseconds after which it is seen that the limit is reached; of code that is looked for, as of looks.
_CHECK = 20_000_000
_NEVER = 1 << 62
#: What is rare may be so many times as much as exits are recorded, and a little: a guest that is idle halts
#: and is interrupted for ever.
_MARKS, _MARKS_LEAST = 4, 10_000
_CODE_GRANT, _CODE_SHARE = 1_000_000_000, 4
#: Ends of a run that are an event of the CPU's.
_EVENTS = (FetchUnmapped, GuestException, Refused, Shutdown, Unsupported)


class _Current:
    """Of several vCPUs the one whose access is being answered."""

    def __init__(self, processors: Processors) -> None:
        self._processors = processors

    def glance(self) -> bytes:
        return self._processors.items[self._processors.current].vcpu.glance()


class TraceRecorder:
    """Records what `machine` does in `run` from now on; `finish` gives the trace.

    `limit` exits are recorded; what is behind them runs, unrecorded. `looks` is when the device, the system
    registers and memory are looked at: `all` exits, `none`, the first N, or `auto` (see `looks`).
    """

    def __init__(
        self, machine: Machine, *, guest: str = "", limit: int = LIMIT, looks: str | int = "auto"
    ) -> None:
        self._machine = machine
        self._limit = limit
        self._vcpus = [item.vcpu for item in machine.processors]
        state = machine.vcpu.state()
        self._header = header_of(machine, guest, state)
        self._raw: list[Any] = []
        self._marks: list[Mark] = []
        #: What was printed, each time behind the place in the list of exits at which it was.
        self._output: list[Any] = []
        self._codes = CodeWindows(machine.memory)
        self._codes.begin(state)
        self._looks = Looks(machine, memory=looks != "none")
        self._budget = LookBudget(looks)
        self._code_spent, self._began = 0, time.perf_counter_ns()
        #: The windows by the bytes of RIP, of each kind of access.
        self._known: dict[type[Access], dict[bytes, int]] = {
            cls: {} for cls in (PortRead, PortWrite, MmioRead, MmioWrite, MsrRead, MsrWrite)
        }
        #: No longer recording: the limit was reached.
        self.cut = False
        self._snapshots: dict[int, tuple[Any, int]] = {}
        self._taken = 0
        self._forget: list[Callable[[], None]] = [
            self._hear_output(),
            machine.observe_halts(self._halted),
            machine.observe_travel(self._travelled),
            self._hear_interrupts(),
            self._attach(),
        ]

    def begin(self) -> None:
        """The run begins now: the first exit's time is counted from here on."""
        self._began = time.perf_counter_ns()

    # -- the path of each exit

    def _attach(self) -> Callable[[], None]:
        processors = self._machine.processors
        vcpu: Any = self._vcpus[0] if len(self._vcpus) == 1 else _Current(processors)
        clock, extend = time.perf_counter_ns, self._raw.extend
        slow = self._slow
        #: When the next exit is to be looked at, and a place in a closure, where it is found fastest.
        gate = 0

        def wrap(cls: type[Access], answer: Callable[..., Any]) -> Callable[..., Any]:
            find = self._known[cls].get

            def read(address: int, size: int) -> int:
                nonlocal gate
                began = clock()
                value: int = answer(address, size)
                glance = vcpu.glance()
                code = find(glance[128:136])
                if code is None or began >= gate:
                    gate = slow(cls, began, clock(), glance, address, size, value)
                else:
                    extend((began, clock(), cls, processors.current, glance, code, address, size, value))
                return value

            def write(address: int, size: int, value: int) -> None:
                nonlocal gate
                began = clock()
                answer(address, size, value)
                glance = vcpu.glance()
                code = find(glance[128:136])
                if code is None or began >= gate:
                    gate = slow(cls, began, clock(), glance, address, size, value)
                else:
                    extend((began, clock(), cls, processors.current, glance, code, address, size, value))

            def rdmsr(index: int) -> int | None:
                began = clock()
                value: int | None = answer(index)
                if value is not None:  # else it is #GP, and no access
                    slow(cls, began, clock(), vcpu.glance(), index, 8, value)
                return value

            def wrmsr(index: int, value: int) -> bool:
                began = clock()
                taken: bool = answer(index, value)
                if taken:
                    slow(cls, began, clock(), vcpu.glance(), index, 8, value)
                return taken

            if cls.space == "msr":
                return wrmsr if cls.is_write else rdmsr
            return write if cls.is_write else read

        return self._machine.accesses.around(wrap)

    def _slow(
        self,
        cls: type[Access],
        began: int,
        ended: int,
        glance: bytes,
        address: int,
        size: int,
        value: int,
    ) -> int:
        """An exit that is looked at, whose code is not known yet, or at which the limit is. When the next
        is to be looked at."""
        if self.cut:
            return _NEVER
        if len(self._raw) >= self._limit * WIDTH:
            self._stop_recording()
            self._machine.between(self._detach)
            return _NEVER
        known, rip, cpu = self._known[cls], glance[128:136], self._machine.processors.current
        looked = began >= self._budget.at
        code = known.get(rip)
        spent = None
        if looked or (code is None and self._code_due(began)):
            state = self._state(cpu, glance)
            was, code = code, self._code(cls, state, address, size, value)
            if code != was:
                known[rip] = code
            if looked:
                mapping = self._find(cls, address)
                look = self._looks.look(state, mapping)
                self._budget.took(ended, time.perf_counter_ns())
                self._mark("look", cpu, look)
            else:
                self._code_spent += time.perf_counter_ns() - ended
            spent = ended
        self._raw.extend((began, ended, cls, cpu, glance, code or 0, address, size, value))
        now = time.perf_counter_ns()
        if spent is not None:
            self._mark("spent", cpu, now - spent)
        return min(self._budget.at, now + _CHECK)

    def _code_due(self, now: int) -> bool:
        return self._code_spent < _CODE_GRANT + (now - self._began) // _CODE_SHARE

    def _state(self, cpu: int, glance: bytes) -> CpuState:
        """Where the vCPU stands in the access: its segments, and the registers of the glance."""
        vcpu = self._vcpus[cpu]
        state, registers = vcpu.place(), vcpu.glanced(glance)
        for name in registers.__struct_fields__:
            setattr(state, name, getattr(registers, name))
        return state

    def _code(self, cls: type[Access], state: CpuState, address: int, size: int, value: int) -> int:
        exit = cls(address, size, value) if cls.is_write else cls(address, size)  # type: ignore[call-arg]
        # RDMSR and WRMSR are answered before they are done on every CPU.
        at = not self._vcpus[0].glances_behind or not cls.is_write or cls.space == "msr"
        return self._codes.of_access(state, exit, at=at)

    def _find(self, cls: type[Access], address: int) -> str:
        if cls.space == "msr":
            return "lapic"
        mapping = (self._machine.ports if cls.space == "port" else self._machine.mmio).find(address)
        return mapping.name if mapping is not None else ""

    # -- what is rare

    def _mark(self, what: str, cpu: int, value: Any) -> None:
        """`value` belongs behind what is in the list now, a `look` to what comes next."""
        self._marks.append((len(self._raw), what, cpu, value))
        if len(self._marks) >= self._limit * _MARKS + _MARKS_LEAST:
            self._stop_recording()

    def _stop_recording(self) -> None:
        self.cut = True
        for known in self._known.values():  # so that each access asks, and hears that it is over
            known.clear()

    def _hear_output(self) -> Callable[[], None]:
        """Of a guest that prints it is half of the exits: flat, too."""
        extend, place = self._output.extend, self._raw.__len__
        return self._machine.observe_output(lambda data: extend((place(), data)))

    def _halted(self, number: int) -> None:
        if not self.cut:
            self._event(number, "halt", "")

    def _event(self, number: int, kind: str, detail: str) -> None:
        began = time.perf_counter_ns()
        vcpu = self._vcpus[number]
        state = vcpu.place()
        code = self._codes.of_halt(state) if kind == "halt" else self._codes.of_place(state)
        look = None
        if began >= self._budget.at:
            look = self._looks.look(state, "")
            self._budget.took(began, time.perf_counter_ns())
        registers = all_registers(state)
        now = time.perf_counter_ns()
        self._mark("event", number, (kind, detail, registers, code, look, began, now))

    def _hear_interrupts(self) -> Callable[[], None]:
        heard = [
            tell_interrupts(item.board, item.number, self._interrupt)
            for item in self._machine.processors
            if item.board is not None
        ]

        def forget() -> None:
            for one in heard:
                one()

        return forget

    def _interrupt(self, vector: int, cpu: int) -> None:
        if not self.cut:
            self._mark("then", cpu, f"interrupt {vector:#04x}")

    def _travelled(self, what: str, snapshot: Snapshot) -> None:
        if what == "restore":
            # The boards are others, and so is all that code and memory were compared with.
            self._forget[3] = self._hear_interrupts()
            for known in self._known.values():
                known.clear()
        if self.cut:
            return
        if what == "snapshot":
            self._taken += 1
            self._number(snapshot, self._taken)
            self._mark("snapshot", 0, (self._taken, snapshot.provenance.comment))
            return
        began = time.perf_counter_ns()
        self._looks.restart()
        state = self._machine.vcpu.state()
        registers = all_registers(state)
        kept = self._snapshots.get(id(snapshot))
        number = kept[1] if kept is not None and kept[0]() is snapshot else 0
        self._mark("restore", 0, (number, snapshot.provenance.comment, registers, began))

    def _number(self, snapshot: Snapshot, number: int) -> None:
        self._snapshots[id(snapshot)] = weakref.ref(snapshot), number

    def _detach(self) -> None:
        """Take the recorder away, if no run is under way that would go on with it."""
        while self._forget:
            self._forget.pop()()

    # -- the end

    def finish(self, end: Exit | DeviceError | None, detail: str = "") -> Trace:
        """The trace; `end` is what the run ended with, None where it was cut short."""
        exit = end if isinstance(end, Exit) else None
        if isinstance(exit, _EVENTS) and not self.cut:
            self._event(self._machine.processors.current, exit.kind, exit.describe())
        self._detach()
        rip = None
        with contextlib.suppress(VmmsimError):  # the machine is undefined
            rip = self._machine.vcpu.registers().rip
        kind = exit.kind if exit is not None else "error"
        records, count, cut = expand(self, self._raw, self._marks, self._limit)
        self._looks.close()
        text = detail or (exit.describe() if exit is not None else "")
        return Trace(self._header, records, End(count, kind, text[:4096], rip, cut=cut))
