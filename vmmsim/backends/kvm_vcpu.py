"""KvmVcpu: the KVM_RUN loop.

The loop reads struct kvm_run through memoryviews of 1, 2, 4 and 8 bytes and makes no
object for an exit. The indices below are offsets of `kvm_abi.Run` over the view's width.
How KVM_RUN is called, so that a signal ends it, is in kvm_run.py.

An exit is *taken* once it is dealt with; the loop then writes `_TAKEN` over the page's
exit reason. So an exit that a KeyboardInterrupt got in front of is still there for the
next run, and none is lost or made twice.

Interrupts cost an exit nothing: who wants the board looked at sets `immediate_exit`, KVM_RUN
comes back with EINTR behind the instruction in flight, and `kvm_pins` does the rest there.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..cpu.state import CpuState, Registers
from ..cpu.validate import validate, validate_registers
from ..errors import HostError, NotSupported, UsageError
from ..exits import (
    Access,
    Breakpoint,
    BudgetSpent,
    Cancelled,
    Exit,
    MmioRead,
    MmioWrite,
    MsrRead,
    MsrWrite,
    PortRead,
    PortWrite,
    ReadAccess,
)
from . import kvm_abi as abi
from . import kvm_exits, kvm_kick, kvm_msrs, ticker
from .base import AccessHandler, Board, Vcpu, VmOptions, WrappedHandler, unanswered
from .kvm_fd import BREAKPOINTS, VcpuFd
from .kvm_pins import Pins
from .kvm_run import failure
from .kvm_step import Stepper

if TYPE_CHECKING:
    from .kvm import KvmVm
    from .quick import Quick

__all__ = ["KvmVcpu"]

_IO, _MMIO = abi.EXIT_IO, abi.EXIT_MMIO
#: No exit reason of KVM: the exit in the page has been dealt with.
_TAKEN = 0xFFFF_FFFF
#: What the page may say that is no exit for anybody: after EINTR; and those of kvm_pins: a
#: window comes again as long as it is asked for, CR8 shows a new priority, a step is over.
_NO_EXIT = frozenset(
    {_TAKEN, abi.EXIT_INTR, abi.EXIT_UNKNOWN, abi.EXIT_IRQ_WINDOW_OPEN, abi.EXIT_SET_TPR, abi.EXIT_DEBUG}
)

_IMMEDIATE_EXIT = 1  # u8
_REASON = 2  # u32
_DIRECTION, _IO_SIZE, _PORT, _COUNT, _DATA = 32, 33, 17, 9, 5  # u8, u8, u16, u32, u64
_GPA, _MMIO_DATA, _MMIO_SIZE, _MMIO_WRITES = 4, 5, 12, 52  # u64, u64, u32, u8
_MSR_ERROR, _MSR_REASON, _MSR_INDEX, _MSR_DATA = 32, 10, 11, 6  # u8, u32, u32, u64
_CR8 = 2  # u64
_RFLAGS = (abi.Run.s.offset + 8 * 17) // 8  # u64
_IF = 1 << 9
_MASKS = tuple((1 << 8 * size) - 1 for size in range(9))

_MOVING = (b"", 0.0)

#: Accesses that KVM has done with when they are shown; the others wait for an answer.
_DONE = (PortWrite, MmioWrite)

#: An access that KVM has made, not yet shown to anybody: its exit class, address, size, and
#: the value of a write or the place in the page where the answer to a read goes.
_Item = tuple[type[Access], int, int, int]

_STEPPED = BudgetSpent("insns", 1)


def _once(vcpu: KvmVcpu, handler: AccessHandler) -> AccessHandler:
    """The handler of one step: behind the instruction whose access is answered the run is over.
    KVM makes the exit of the access instead of that of the step."""

    def around(answer: Callable[..., Any]) -> Callable[..., Any]:
        def enter(*access: int) -> Any:
            if vcpu._stop is None:
                vcpu.stop_here(_STEPPED)
            return answer(*access)

        return enter

    return WrappedHandler(handler, around)


class KvmVcpu(Vcpu):
    """One vCPU. Made by `KvmVm.create_vcpu`."""

    glances_behind = True

    def __init__(self, vm: KvmVm, cpu: VcpuFd, options: VmOptions, *, late_windows: bool) -> None:
        self._vm = vm
        self._cpu = cpu
        self._pins = Pins(cpu, vm, late=late_windows, exact=options.exact_interrupts)
        self._msrs = options.msrs
        self._u8, self._u16, self._u32, self._u64 = cpu.u8, cpu.u16, cpu.u32, cpu.u64
        self._queue: deque[_Item] = deque()
        self._last: tuple[Access, int] | None = None
        #: Element size while KVM holds answers of a REP INS that it has not stored yet.
        self._batch = 0
        #: No instruction is in flight, as far as KVM was asked.
        self._settled = True
        self._halted = False
        self._stop: Exit | None = None
        self._cancel = False
        self._exits = 0
        self._thread = 0
        # Reentrant: a signal handler of the thread that holds it may call cancel().
        self._kick_lock = threading.RLock()
        self._kick_signal = kvm_kick.install_kick_signal()
        self._watchdog = options.watchdog_seconds
        self._watched = False
        #: The registers that the watchdog saw last, and since when they stand still.
        self._still = _MOVING
        self.tick_seconds = min(ticker.TICK_SECONDS, (options.watchdog_seconds or 1.0) / 4)
        self._u32[_REASON] = _TAKEN
        self.glance = cpu.register_bytes  # type: ignore[method-assign] # KVM_CAP_SYNC_REGS has them there
        #: A debugger's step is under way; what makes it, and whether KVM steps in no odd ways.
        self._stepping = False
        self._stepper = Stepper(cpu, vm)
        self._steps_plainly = not late_windows
        cpu.set_state(CpuState())

    # -- running

    def run(self, *, max_insns: int | None = None) -> Exit:
        self._prepare(max_insns)
        if self._batch:
            self._settle()
        if self._queue:
            return self._deliver(self._queue.popleft())
        enter, u32, u64, pins = self._cpu.enter, self._u32, self._u64, self._pins
        try:
            self._enter()
            while True:
                if u32[_REASON] == _TAKEN:
                    try:
                        if enter():
                            raise failure()
                    except OSError as error:
                        ended = self._interrupted(error)
                        if ended is not None:
                            return ended
                        continue
                    self._exits += 1
                    if u64[_CR8] != pins.watch:
                        pins.look()
                if not self._collect():
                    if self._for_pins():
                        continue
                    return self._other()
                if self._queue:
                    return self._deliver(self._queue.popleft())
        except BaseException:
            if self._last is not None:  # the caller has not got the exit: show it again
                exit, place = self._last
                self._last = None
                self._queue.appendleft((type(exit), exit.address, exit.size, place))
            raise
        finally:
            self._thread = 0
            self._leave()

    def run_inline(self, handler: AccessHandler, *, max_insns: int | None = None) -> Exit:
        self._prepare(max_insns)
        if self._batch:
            self._settle()
        enter, masks, pins = self._cpu.enter, _MASKS, self._pins
        u8, u16, u32, u64 = self._u8, self._u16, self._u32, self._u64
        port_read, port_write = handler.port_read, handler.port_write
        mmio_read, mmio_write = handler.mmio_read, handler.mmio_write
        self._stop = None
        exits = self._exits
        asking = False
        try:
            self._enter()
            if self._queue:
                asking = True
                self._answer_queue(handler)
                asking = False
            while True:
                if u32[_REASON] == _TAKEN:
                    try:
                        if enter():
                            raise failure()
                    except OSError as error:
                        ended = self._interrupted(error)
                        if ended is not None:
                            return ended
                        continue
                    self._exits = exits = exits + 1
                    if u64[_CR8] != pins.watch:
                        pins.look()
                reason = u32[_REASON]
                if reason == _IO and u32[_COUNT] == 1:
                    at = u64[_DATA]
                    size = u8[_IO_SIZE]
                    if u8[_DIRECTION]:
                        value = u8[at] if size == 1 else u16[at >> 1] if size == 2 else u32[at >> 2]
                        u32[_REASON] = _TAKEN
                        asking = True
                        port_write(u16[_PORT], size, value)
                    else:
                        asking = True
                        if size == 1:
                            u8[at] = port_read(u16[_PORT], 1)
                        elif size == 2:
                            u16[at >> 1] = port_read(u16[_PORT], 2)
                        else:
                            u32[at >> 2] = port_read(u16[_PORT], size)
                        u32[_REASON] = _TAKEN
                    asking = False
                elif reason == _MMIO:
                    size = u32[_MMIO_SIZE]
                    if u8[_MMIO_WRITES]:
                        value = u64[_MMIO_DATA] & masks[size]
                        u32[_REASON] = _TAKEN
                        asking = True
                        mmio_write(u64[_GPA], size, value)
                    else:
                        asking = True
                        u64[_MMIO_DATA] = mmio_read(u64[_GPA], size)
                        u32[_REASON] = _TAKEN
                    asking = False
                elif self._collect():
                    asking = True
                    self._answer_queue(handler)
                    asking = False
                elif self._stop is not None:
                    return self._stop
                elif not self._for_pins():
                    return self._other()
        except BaseException:
            if asking:
                self._drain()
            raise
        finally:
            self._thread = 0
            self._leave()

    def _prepare(self, max_insns: int | None) -> None:
        if max_insns is not None:
            raise NotSupported(
                "KVM does not count instructions", hint="use a budget in exits or seconds, or backend unicorn"
            )
        self._cpu.check_open()
        if self._thread:
            raise UsageError("the vCPU is running", hint="a vCPU runs in one thread at a time")
        if self._last is not None and not self._reply():
            raise unanswered(self._last[0])
        if self._u32[_REASON] in _NO_EXIT:
            self._u32[_REASON] = _TAKEN

    def _enter(self) -> None:
        self._thread = threading.get_ident()
        self._settled = False
        self._still = _MOVING
        if not self._watched:
            self._watched = True
            ticker.watch(self)

    def _leave(self) -> None:
        with self._kick_lock:
            pass  # who is kicking this thread has done so: it may end now
        self._stop = None
        self._pins.leave()
        self._arm()

    def _arm(self) -> None:
        """Let KVM_RUN run again, unless a cancel or the board is waiting: who wants something sets
        its flag first."""
        self._u8[_IMMEDIATE_EXIT] = 0
        if self._cancel or self._pins.due:
            self._u8[_IMMEDIATE_EXIT] = 1

    def _interrupted(self, error: OSError) -> Exit | None:
        """KVM_RUN ended with an errno. The exit that ends the run, or None to go on."""
        if error.errno != errno.EINTR:
            raise HostError(
                f"KVM_RUN failed: {os.strerror(error.errno or 0)}",
                hint="see dmesg for what the kernel says",
            ) from error
        self._u32[_REASON] = _TAKEN
        if self._stop is not None:
            self._settled = True
            return self._stop
        if self._cancel:
            self._cancel = False
            self._settled = True
            return Cancelled()
        ended = None if self._watchdog is None else self._look(self._watchdog)
        if ended is None:
            if self._u64[_CR8] != self._pins.watch:
                self._pins.look()
            if self._pins.due:
                self._pins.attend()
            self._arm()
        return ended

    def _look(self, limit: float) -> Exit | None:
        """The watchdog: kicked without a reason. See whether the guest will ever come out."""
        now = time.monotonic()
        registers = self._cpu.register_bytes() + self._exits.to_bytes(8, "little")
        if registers != self._still[0]:
            self._still = (registers, now)
            return None
        if now - self._still[1] < limit:
            return None
        refused = kvm_exits.livelocked(self._cpu, self._vm)
        self._settled = refused is not None
        return refused

    # -- exits

    def _collect(self) -> bool:
        """Take an access exit from the page into the queue. False: it is another exit, which
        stays in the page."""
        u8, u32, u64 = self._u8, self._u32, self._u64
        reason = u32[_REASON]
        if reason == _IO:
            at, size, port, count = u64[_DATA], u8[_IO_SIZE], self._u16[_PORT], u32[_COUNT]
            for place in range(at, at + size * count, size):
                if u8[_DIRECTION]:
                    value = int.from_bytes(u8[place : place + size], "little")
                    self._queue.append((PortWrite, port, size, value))
                else:
                    self._queue.append((PortRead, port, size, place))
            self._batch = size if count > 1 and not u8[_DIRECTION] else 0
        elif reason == _MMIO:
            gpa, size = u64[_GPA], u32[_MMIO_SIZE]
            if not u8[_MMIO_WRITES]:
                self._queue.append((MmioRead, gpa, size, 8 * _MMIO_DATA))
            else:
                # REP INS into MMIO: this KVM stores all that it read ahead at once.
                piece = self._batch or size
                for done in range(0, size, piece):
                    step = min(piece, size - done)
                    value = u64[_MMIO_DATA] >> 8 * done & _MASKS[step]
                    self._queue.append((MmioWrite, gpa + done, step, value))
        elif reason in (abi.EXIT_X86_RDMSR, abi.EXIT_X86_WRMSR):
            self._collect_msr(reason == abi.EXIT_X86_WRMSR)
        else:
            return False
        u32[_REASON] = _TAKEN
        return True

    def _collect_msr(self, is_write: bool) -> None:
        index = self._u32[_MSR_INDEX]
        if self._u32[_MSR_REASON] != abi.MSR_EXIT_REASON_FILTER and not kvm_msrs.owned(self._msrs, index):
            self._u8[_MSR_ERROR] = 1  # nobody's: #GP
        elif is_write:
            self._queue.append((MsrWrite, index, 8, self._u64[_MSR_DATA]))
        else:
            self._queue.append((MsrRead, index, 8, 8 * _MSR_DATA))

    def _for_pins(self) -> bool:
        """Deal with an exit that is about interrupts. False: it is another, and stays in the page."""
        reason = self._u32[_REASON]
        if reason == abi.EXIT_DEBUG and (self._stepping or self._at_breakpoint()):
            return False
        if reason in (abi.EXIT_IRQ_WINDOW_OPEN, abi.EXIT_DEBUG):
            self._u32[_REASON] = _TAKEN
            self._pins.attend(stepped=reason == abi.EXIT_DEBUG)
            self._arm()
        elif reason == abi.EXIT_SET_TPR:  # VMX and SVM: CR8 was lowered, which was noted above
            self._u32[_REASON] = _TAKEN
        else:
            return False
        return True

    def _deliver(self, item: _Item) -> Exit:
        """An Exit of an access. A read, or an MSR, keeps the vCPU where it is until it is answered."""
        cls, address, size, value = item
        exit = cls(address, size, value) if cls.is_write else cls(address, size)  # type: ignore[call-arg]
        if cls not in _DONE:
            self._last = (exit, value)
        return exit

    def _reply(self) -> bool:
        """Put the answer to the last read into the page. False while there is none."""
        if self._last is not None:
            exit, place = self._last
            if not exit.answered:
                return False
            faulted = isinstance(exit, (MsrRead, MsrWrite)) and exit.faulted
            if faulted:
                self._u8[_MSR_ERROR] = 1
            elif isinstance(exit, ReadAccess):
                self._u8[place : place + exit.size] = exit.value.to_bytes(exit.size, "little")
            self._last = None
        return True

    def _answer_queue(self, handler: AccessHandler) -> None:
        """Let `handler` answer what is queued, with the accesses that REP INS makes of it."""
        while True:
            while self._queue:
                cls, address, size, value = self._queue[0]
                port = cls.space == "port"
                if cls.space == "msr":
                    self._answer_msr(handler, address, value, cls.is_write)
                elif cls.is_write:
                    self._queue.popleft()
                    (handler.port_write if port else handler.mmio_write)(address, size, value)
                else:
                    answer = (handler.port_read if port else handler.mmio_read)(address, size)
                    self._u8[value : value + size] = answer.to_bytes(size, "little")
                    self._queue.popleft()
            if not self._batch:
                return
            self._finish()

    def _answer_msr(self, handler: AccessHandler, index: int, value: int, is_write: bool) -> None:
        if is_write:
            self._queue.popleft()
            self._u8[_MSR_ERROR] = not handler.msr_write(index, value)
            return
        answer = handler.msr_read(index)
        if answer is None:
            self._u8[_MSR_ERROR] = 1
        else:
            self._u64[_MSR_DATA] = answer
        self._queue.popleft()

    def _drain(self) -> None:
        """A handler raised: finish the instruction. Reads answer all ones, writes count as made."""
        while True:
            if self._u32[_REASON] not in _NO_EXIT and not self._collect():
                return
            for cls, _, size, place in self._queue:
                if not cls.is_write:
                    self._u8[place : place + size] = b"\xff" * size
            self._queue.clear()
            if self._settled:
                return
            self._finish()

    @property
    def whole(self) -> bool:
        return self._settled and not self._queue and self._last is None

    def abandon(self) -> None:
        self._cpu.check_open()
        if self._last is not None:
            exit, place = self._last
            self._last = None
            if exit.space == "msr":
                self._u8[_MSR_ERROR] = 1
            elif not exit.is_write:
                self._u8[place : place + exit.size] = b"\xff" * exit.size
        self._drain()
        self._queue.clear()
        self._batch = 0
        self._cancel = False

    def _settle(self) -> bool:
        """Finish the instruction in flight. False when it waits for the answer to a read.
        UsageError once the vCPU is closed."""
        self._cpu.check_open()
        if self._thread:
            if self._thread != threading.get_ident():
                raise UsageError("the vCPU is running", hint="stop it with cancel() before you look at it")
            return False  # a handler looks: the access that it answers is half done
        if not self._reply():
            return False
        if self._u32[_REASON] not in _NO_EXIT:
            self._collect()
        while not self._settled and all(item[0] in _DONE for item in self._queue):
            self._finish()
        return all(item[0] in _DONE for item in self._queue)

    def _finish(self) -> None:
        """KVM_RUN with immediate_exit: KVM completes the instruction and runs no further one.

        It comes back with EINTR when the instruction is done, or with its next access, which
        goes to the queue. Any other exit (the rest could not be emulated) stays in the page.
        """
        self._u8[_IMMEDIATE_EXIT] = 1
        try:
            if self._cpu.enter():
                raise failure()
        except InterruptedError:
            self._u32[_REASON] = _TAKEN
            self._batch = 0
            self._settled = True
        except OSError as error:
            raise HostError(f"KVM_RUN failed: {os.strerror(error.errno or 0)}") from error
        else:
            if not self._collect():
                self._settled = True
        finally:
            if self._stop is None:
                self._arm()

    def _other(self) -> Exit:
        """The exit in the page that is no access."""
        reason = self._u32[_REASON]
        self._u32[_REASON] = _TAKEN
        self._settled = True
        return kvm_exits.decode(reason, self._cpu, self._vm)

    # -- debugging

    def _at_breakpoint(self) -> bool:
        breakpoints = self._cpu.breakpoints
        return bool(breakpoints) and self._cpu.place().linear_rip in breakpoints

    def set_breakpoints(self, addresses: frozenset[int]) -> None:
        self._settle()
        if len(addresses) > BREAKPOINTS:
            raise NotSupported(
                f"{len(addresses)} breakpoints", hint=f"this CPU has registers for {BREAKPOINTS}"
            )
        if addresses != set(self._cpu.breakpoints):
            self._cpu.breakpoints = tuple(sorted(addresses))
            self._cpu.guest_debug(abi.GuestDebug())

    def step(self, handler: AccessHandler | None, *, interrupts: bool = False) -> Exit:
        self._prepare(None)
        self._settle()
        if self._queue:
            if handler is None:
                return self._deliver(self._queue.popleft())
            self._answer_queue(handler)
        cpu, pins = self._cpu, self._pins
        breakpoints, cpu.breakpoints = cpu.breakpoints, ()
        board, pins.board = pins.board, None
        due, pins.due = pins.due, False
        self._arm()
        self._stepping = True
        try:
            if self._steps_plainly:
                self._stepper.plainly()
            elif not self._stepper.step(cpu.events()):
                raise NotSupported(
                    "this host's KVM runs 64-bit code at CPL 3 natively, where it has no single step",
                    hint="set a breakpoint at CPL 0 and continue; or use backend unicorn",
                )
            exit = self.run() if handler is None else self.run_inline(_once(self, handler))
            return _STEPPED if isinstance(exit, Breakpoint) else exit
        finally:
            self._stepping = False
            cpu.breakpoints = breakpoints
            self._stepper.leave()
            pins.board, pins.due = board, due or pins.due
            self._arm()

    # -- stopping

    def stop_here(self, exit: Exit) -> None:
        self._stop = exit
        self._u8[_IMMEDIATE_EXIT] = 1

    def cancel(self) -> None:
        if self._cpu.fd < 0:
            return
        self._cancel = True
        self._u8[_IMMEDIATE_EXIT] = 1
        self.kick()

    def uncancel(self) -> None:
        self._cancel = False
        if self._cpu.fd >= 0:
            self._arm()

    def kick(self) -> None:
        """Interrupt KVM_RUN, if a thread is in it."""
        with self._kick_lock:
            if self._thread and self._thread != threading.get_ident():
                signal.pthread_kill(self._thread, self._kick_signal)

    def signs_of_life(self) -> tuple[bool, int]:
        return bool(self._thread), self._exits

    # -- interrupts

    def connect(self, board: Board) -> None:
        self._cpu.check_open()
        self._pins.board = board
        self.attention()

    def attention(self) -> None:
        if self._cpu.fd < 0:
            return
        self._pins.want()
        self.kick()

    def nmi(self) -> None:
        self._pins.nmi = True
        self.attention()

    def set_cr8(self, value: int) -> None:
        """Raises UsageError for a value that is no priority, 0-15."""
        self._cpu.check_open()
        if not 0 <= value <= 15:
            raise UsageError(f"{value:#x} is not a task priority", hint="give 0 to 15")
        self._pins.set_cr8(value)

    @property
    def interruptible(self) -> bool:
        self._cpu.check_open()
        return bool(self._u64[_RFLAGS] & _IF)

    # -- state

    def registers(self) -> Registers:
        self._settle()
        return self._cpu.registers()

    def set_registers(self, registers: Registers) -> None:
        self._check_settled()
        wide = bool(registers.rip >> 32) and self._cpu.place().mode == "l64"
        validate_registers(registers, long_mode=wide)
        self._cpu.set_registers(registers)

    def state(self) -> CpuState:
        self._settle()
        state = self._cpu.state()
        state.halted = self._halted
        state.events.nmi_pending |= self._pins.nmi
        return state

    def place(self) -> CpuState:
        self._settle()
        return self._cpu.place()

    def quick(self) -> Quick:
        from .kvm_quick import KvmQuick

        self.settle()
        return KvmQuick(self, self._cpu)

    def set_state(self, state: CpuState) -> None:
        validate(state)
        self._check_settled()
        before = self._cpu.state()
        try:
            self._cpu.set_state(state)
        except HostError:
            self._cpu.set_state(before)
            raise
        self._halted = state.halted
        self._pins.restored(state.cr8)

    def set_proven(self, state: CpuState) -> None:
        self._check_settled()
        self._cpu.put_back(state)
        self._halted = False
        self._pins.restored(state.cr8)

    def _check_settled(self) -> None:
        if not self._settle():
            raise UsageError(
                "the vCPU is in the middle of an instruction: it waits for the answer to a read",
                hint="call exit.reply(value), or let the handler return, before registers are set",
            )

    def read_msr(self, index: int) -> int:
        self._settle()
        return self._cpu.read_msr(index)

    def write_msr(self, index: int, value: int) -> None:
        self._check_settled()
        self._cpu.write_msr(index, value)

    @property
    def insns(self) -> int | None:
        return None

    def close(self) -> None:
        """Called by the VM."""
        self._cpu.close()
