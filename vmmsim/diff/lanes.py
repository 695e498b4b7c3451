"""A lane: one backend's VM, kept open, through which cases go one after another.

It uses the interface of `vmmsim.backends.base` and nothing else, so any backend has one. Where a
vCPU has a shortcut (`Vcpu.quick`) what a case cannot have changed is not read, and what it did not
change is not set again. Debug registers and MSRs are among that: no case of the fuzzer writes them.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from ..backends.base import Backend, Vcpu, VmOptions
from ..backends.quick import Quick
from ..cpu.state import CpuState, FpuState
from ..exits import Cancelled, Exit, Halt, Refused, Shutdown
from ..memory import GuestMemory
from .case import END_PORT, HANDLERS, HANDLERS_END, RAM, SLOT, Case, base_image, base_state, start_rip

__all__ = ["END", "HUNG", "NAMES", "REFUSED", "TOO_MANY", "Lane", "Outcome"]

#: How a run ended, beside `#13` for an exception and `shutdown`.
END, REFUSED, HUNG, TOO_MANY = "end", "refused", "hung", "accesses"
#: General registers in the order of `Outcome.regs`.
NAMES = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip

_MOST_ACCESSES = 64
#: A case is some microseconds; one that runs for longer than this hangs.
_SECONDS = 2.0


class Outcome:
    """What a run left: how it ended, the registers, the x87 and SSE state if the case has one,
    the whole state if anything but those changed, and the accesses outside RAM."""

    __slots__ = ("end", "fpu", "regs", "seen", "state")

    def __init__(
        self,
        end: str,
        regs: tuple[int, ...],
        state: CpuState | None,
        fpu: FpuState | None,
        seen: list[tuple[str, int, int, int]],
    ) -> None:
        self.end = end
        self.regs = regs
        self.state = state
        self.fpu = fpu
        self.seen = seen


class _Handler:
    """Answers what a program asks of the world outside RAM, the same on both sides."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self.seen: list[tuple[str, int, int, int]] = []

    def _note(self, kind: str, address: int, size: int, value: int) -> None:
        self.seen.append((kind, address, size, value))
        if len(self.seen) == _MOST_ACCESSES:
            self._vcpu.stop_here(Cancelled())

    def _answer(self, kind: str, address: int, size: int) -> int:
        value = (address * 0x9E3779B97F4A7C15 + 0x1234567) >> 9 & ((1 << 8 * size) - 1)
        self._note(kind, address, size, value)
        return value

    def port_read(self, port: int, size: int, /) -> int:
        return self._answer("port_read", port, size)

    def port_write(self, port: int, size: int, value: int, /) -> None:
        if port == END_PORT:
            self._vcpu.stop_here(Halt())
        else:
            self._note("port_write", port, size, value)

    def mmio_read(self, gpa: int, size: int, /) -> int:
        return self._answer("mmio_read", gpa, size)

    def mmio_write(self, gpa: int, size: int, value: int, /) -> None:
        self._note("mmio_write", gpa, size, value)

    def msr_read(self, index: int, /) -> int | None:
        return None

    def msr_write(self, index: int, value: int, /) -> bool:
        return False


class Lane:
    """One VM of `backend` with the bench of vmmsim.diff.case, in the mode of the last case."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.provenance = backend.provenance
        self.memory = GuestMemory()
        self.vm = backend.create_vm(VmOptions(watchdog_seconds=1.0))
        region = self.memory.add(0, RAM, name="RAM")
        self.ram = region.buffer
        self.memory.attach(self.vm, lambda: self.vcpu.settle())
        self.vcpu = self.vm.create_vcpu()
        self._handler = _Handler(self.vcpu)
        self._quick: Quick | None = None
        self._mode = ""
        self._image = b""
        self._fresh: set[int] = set()
        self.started = 0.0
        self._watch = threading.Thread(target=self._watchdog, daemon=True)
        self._closed = threading.Event()
        self._watch.start()

    def _watchdog(self) -> None:
        while not self._closed.wait(_SECONDS / 2):
            started = self.started
            if started and time.perf_counter() - started > _SECONDS:
                self.vcpu.cancel()

    # -- a case

    def enter(self, case: Case) -> None:
        """Put memory and registers in place."""
        if case.mode != self._mode:
            self._enter_mode(case.mode)
        place = case.place
        if place in self._fresh:  # its code was run, and may be translated
            self._fresh.clear()
            self.vm.memory_written(0, RAM)
        self._fresh.add(place)
        self.ram[place : place + SLOT] = case.image
        for gpa, data in case.memory:
            self.ram[gpa : gpa + len(data)] = data
        self._put(case)

    def _enter_mode(self, mode: str) -> None:
        self._mode = mode
        self._image = base_image(mode)
        self.ram[:] = self._image
        self._fresh.clear()
        self.vm.memory_written(0, RAM)
        self._reset()

    def _reset(self) -> None:
        self.vcpu.abandon()
        self.vcpu.set_state(base_state(self._mode))
        self._quick = self.vcpu.quick()

    def _put(self, case: Case) -> None:
        if self._quick is None:
            self.vcpu.abandon()
            self.vcpu.set_state(case.state())
            return
        r = case.regs
        self._quick.put(
            (
                r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp,
                r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, start_rip(case), r.rflags,
            ),
            case.fpu,
        )  # fmt: skip

    def run(self, case: Case) -> Outcome:
        """From `enter` to the end of the program."""
        seen: list[tuple[str, int, int, int]] = []
        self._handler.seen = seen
        self.started = time.perf_counter()
        try:
            exit = self.vcpu.run_inline(self._handler)
        finally:
            self.started = 0.0
        return self._outcome(case, self._end(exit, case), seen)

    def _outcome(self, case: Case, end: str, seen: list[Any]) -> Outcome:
        if self._quick is None:
            state = self.vcpu.state()
            regs = tuple(getattr(state, name) for name in NAMES)
            return Outcome(self._exception(end, regs), regs, state, state.fpu if case.fpu else None, seen)
        if end is not END:
            self.vcpu.settle()
        regs, changed, fpu = self._quick.get()
        end = self._exception(end, regs)
        full = self.vcpu.state() if changed else None
        if end is not END and end[0] != "#":
            self._reset()
        return Outcome(end, regs, full, fpu, seen)

    def _end(self, exit: Exit, case: Case) -> str:
        if isinstance(exit, Halt):
            return END
        if isinstance(exit, Shutdown):
            return "shutdown"
        if isinstance(exit, Cancelled):
            return TOO_MANY if len(self._handler.seen) >= _MOST_ACCESSES else HUNG
        return REFUSED if isinstance(exit, Refused) else exit.kind

    @staticmethod
    def _exception(end: str, regs: tuple[int, ...]) -> str:
        if end is END and HANDLERS < regs[16] <= HANDLERS_END:
            return f"#{(regs[16] - HANDLERS) >> 4}"
        return end

    def leave(self, case: Case) -> None:
        """Make memory again what it was before the case, its own code too: what a program reads at the
        places of others must not depend on which were run before."""
        self.ram[:] = self._image

    def close(self) -> None:
        """End the VM. May be called twice."""
        self._closed.set()
        self.vm.close()
        self.memory.close()
