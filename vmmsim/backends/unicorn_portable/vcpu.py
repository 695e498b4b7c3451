"""The portable way to drive Unicorn: documented calls, and the bytes of a context.

The engine always runs with a count of instructions. Unicorn then calls hooks before each
instruction, and may leave there: exactly between two instructions. Three things follow.

* A run is cut into slices, between which a cancel and signal handlers have their turn.
* To stop behind the instruction whose access is being answered, a hook for all addresses
  is added in the callback: it is called before the next instruction. (Unicorn looks hooks
  up again at each call when there is more than one; so one that is never called is there
  from the start.)
* HLT is an intercept, which comes before it is executed (see `unicorn_traps`).
* Exceptions are delivered in the hook that Unicorn calls for them. An interrupt is delivered
  between two slices. When one is pending that the guest cannot take yet, slices are of one
  instruction, or short where it need not be exact.

An access is answered inside its callback. For `run`, which gives each access to the
caller, the engine runs in a thread of its own, whose callback waits until the caller has
answered. Nothing is ever executed twice.

Where instructions are to be counted, a Python hook before each does it: some millions a
second, where slices do some tens of millions.
"""

from __future__ import annotations

import ctypes
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from unicorn import unicorn_const as uc_const
from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import Uc, uclib

from ...cpu.state import CpuState, Registers
from ...errors import UsageError
from ...exits import (
    Access,
    BudgetSpent,
    Cancelled,
    Exit,
    Halt,
    MmioRead,
    PortRead,
    PortWrite,
    ReadAccess,
    Shutdown,
)
from ..unicorn_cut import MASK, AccessCutter
from ..unicorn_lazy import STATUS
from ..unicorn_registers import quick
from ..unicorn_vcpu import FOREVER, GP, INTERCEPTS, PAGE, PF, check

if TYPE_CHECKING:
    from ..base import AccessHandler
    from ..unicorn import UnicornVm

__all__ = ["PortableVcpu"]

#: Instructions in the first slice of a run, and in the longest: some milliseconds. With a board
#: a slice is as late as an interrupt can be.
_FIRST_SLICE = 20_000
_SLICE, _SLICE_WITH_BOARD = 500_000, 50_000
#: For a hook that is never called.
_NOWHERE = (1 << 64) - 1
#: How far an access reaches beyond its first byte.
_REACH = 7

_INT, _U32, _U64, _PTR = ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
_INSN = ctypes.CFUNCTYPE(None)
_INTR = ctypes.CFUNCTYPE(None, _PTR, _U32)
_INVALID = ctypes.CFUNCTYPE(ctypes.c_bool, _PTR)
_IN = ctypes.CFUNCTYPE(_U32, _PTR, _U32, _INT)
_OUT = ctypes.CFUNCTYPE(None, _PTR, _U32, _INT, _U32)
_READ = ctypes.CFUNCTYPE(ctypes.c_bool, _PTR, _INT, _U64, _INT)
_WRITE = ctypes.CFUNCTYPE(ctypes.c_bool, _PTR, _INT, _U64, _INT, _U64)
_PIECE = ctypes.CFUNCTYPE(_U64, _PTR, _U64, _INT)
_TRUTH = ctypes.CFUNCTYPE(None, _PTR, _INT, _U64, _INT, _U64)

# How a run treats an access.
_INLINE, _ONE, _DRAIN = "inline", "one", "drain"


class PortableVcpu(AccessCutter):
    """See the module. Works wherever the unicorn package does."""

    def __init__(self, vm: UnicornVm) -> None:
        super().__init__(vm)
        self._mode = _INLINE
        self._counting = vm.options.count_insns or vm.options.vcpus > 1
        #: Instructions begun, and at which of them the run ends; only while counting.
        self._begun = 0
        self._limit = FOREVER
        self._budget = 0
        #: The run was ended by a hook before an instruction.
        self._stopped = False
        self._stopper: Any = None
        #: The slice while an interrupt is waited for, and the registers before an IN or OUT that
        #: was denied.
        self._short = 1
        self._before: Registers | None = None
        #: The instruction that has read MMIO last, since the last exception: a fault there is a load's.
        self._read_at: int | None = None
        #: CR2 as of the start of the engine, or of the last exception.
        self._cr2 = 0
        #: Which access this is; the accesses of one INS share a number.
        self._serial = 0
        self._skip = 0
        self._data = (0, 0, -1, 0)
        #: A run in the engine's thread is under way: it waits in a callback.
        self._parked = False
        self._thread: threading.Thread | None = None
        self._orders: SimpleQueue[int | None] = SimpleQueue()
        self._events: SimpleQueue[Access | int] = SimpleQueue()
        self._forget_pieces()
        self.open(vm.uc)
        self.codec.write_state(CpuState())
        self._arm(hlt=True)

    def open(self, uc: Uc) -> None:
        super().open(uc)
        self._traps.hooked = True
        cpu = self._traps.cpu
        self._traps.fetches.by_load = lambda: self._read_at == cpu.words[cpu.rip]
        self._traps.fetches.old_cr2 = lambda: self._cr2
        self._stop_callback = _INSN(self._on_stop)
        self._hook(uc_const.UC_HOOK_INTR, _INTR(lambda _uc, vector: self._on_trap(vector)))
        self._hook(uc_const.UC_HOOK_INSN_INVALID, _INVALID(self._on_invalid))
        self._hook(uc_const.UC_HOOK_CODE, _INSN(lambda: None), bounds=(_NOWHERE, _NOWHERE))
        if self._counting:
            self._count()
        self._hook(uc_const.UC_HOOK_INSN, _IN(self._on_in), x86_const.UC_X86_INS_IN)
        self._hook(uc_const.UC_HOOK_INSN, _OUT(self._on_out), x86_const.UC_X86_INS_OUT)
        self._hook(uc_const.UC_HOOK_MEM_READ_PROT, _READ(self._on_read))
        self._hook(uc_const.UC_HOOK_MEM_WRITE_PROT, _WRITE(self._on_write))
        # What begins in RAM and ends in a hole: seen at the last bytes of each region.
        truth = _TRUTH(self._on_truth)
        for region in self.vm.regions:
            kinds = uc_const.UC_HOOK_MEM_READ | uc_const.UC_HOOK_MEM_WRITE
            self._hook(kinds, truth, bounds=(region.end - _REACH, region.end - 1))

    def map_hole(self, gpa: int, size: int) -> None:
        callback = _PIECE(lambda _uc, offset, piece: self._on_piece(gpa + offset, piece))
        self._keep.append(callback)
        pointer = ctypes.cast(callback, _PTR)
        check(uclib.uc_mmio_map(self._handle, gpa, size, pointer, None, None, None), "map MMIO")
        check(uclib.uc_mem_protect(self._handle, gpa, size, uc_const.UC_PROT_NONE), "protect MMIO")

    def _count(self) -> None:
        """Count instructions from now on."""
        self._counting = True
        me = self

        def on_insn() -> None:
            if me._begun >= me._limit:
                me._on_stop()
            else:
                me._begun += 1

        self._count_hook = self._hook(uc_const.UC_HOOK_CODE, _INSN(on_insn))

    def _count_no_more(self) -> None:
        self._counts_for_steps = self._counting = False
        self._unhook(self._count_hook)
        self._flush()

    def _in_flight(self) -> bool:
        # Nothing is executed again, but where an instruction is only being finished its run ends anyhow.
        return self._mode is _DRAIN

    def _spent(self) -> bool:
        spent = self._counting and self._begun >= self._limit
        self._stopped |= spent
        return spent

    def _uncount_begun(self) -> None:
        self._begun -= self._counting

    # -- callbacks

    def _on_stop(self) -> None:
        self._stopped = True
        self._leave()

    def _stop_behind(self) -> None:
        if self._counting:
            self._limit = 0
        elif self._stopper is None:
            self._stopper = self._hook(uc_const.UC_HOOK_CODE, self._stop_callback)
            self._keep.pop()

    def _trapped(self, number: int) -> str | None:
        if number == PF:
            stopping = self._stopper is not None or (self._counting and self._begun >= self._limit)
            if stopping and self._traps.fetches.forget():
                self._on_stop()
                return None
            # Where an access that crosses a page was left for a fault, Unicorn forgets that it is in none
            # any more. It would not call the hooks for loads until the engine is started again.
            self._at_boundary |= not self.codec.read(x86_const.UC_X86_REG_CR2) & PAGE - 1
        before = self._begun
        result = super()._trapped(number)
        if self._counting and number < INTERCEPTS and self._traps.was_fault:  # it has not retired
            self._begun = before - 1
        if number < INTERCEPTS:
            self._cr2 = self.codec.read(x86_const.UC_X86_REG_CR2)
            self._read_at = None
        return result

    def _on_invalid(self, uc: int) -> bool:
        self._begun -= self._counting
        return super()._on_invalid(uc)

    def _token(self) -> int:
        return self._serial

    def _next_access(self) -> None:
        """Another instruction's access, unless an INS has stored its 0."""
        if self._ins_seen != self._serial:
            self._serial += 1

    def _may(self, port: int, size: int) -> bool:
        """Whether the IN or OUT at hand has a right to its port. If not it is undone behind it:
        Unicorn cannot be left before."""
        if not self.codec.read(x86_const.UC_X86_REG_CS) & 3 or self._port_allowed(port, size):
            return True
        if not self._denied:
            self._denied, self._before = True, self.codec.read_registers()
            self._stop_behind()
        return False

    def _on_in(self, _uc: int, port: int, size: int) -> int:
        if not self._may(port, size):
            return 0
        self._next_access()
        return self._access(PortRead, port, size, 0)

    def _on_out(self, _uc: int, port: int, size: int, value: int) -> None:
        if not self._may(port, size):
            return
        self._next_access()
        self._access(PortWrite, port, size, value & MASK[size])

    def _on_read(self, _uc: int, _kind: int, gpa: int, size: int) -> bool:
        cpu = self._traps.cpu
        cpu.settle_flags()
        self._read_at = cpu.words[cpu.rip]
        self._next_access()
        value = self._cut_read(gpa, size)
        if gpa % PAGE + size <= PAGE:
            self._show(gpa, size, value, to_page_end=False)
        return True

    def _on_write(self, _uc: int, _kind: int, gpa: int, size: int, value: int) -> bool:
        if self._skip:
            self._skip -= 1
            return True
        self._traps.cpu.settle_flags()
        if size == 1 and gpa % PAGE == 0 and self._cut_tail(gpa):
            return True
        if gpa & size - 1:
            self._skip = size
        self._next_access()
        ins = self._ins_seen == self._serial
        self._cut_write(gpa, size, value & MASK[size])
        if ins:  # that was the store of what it has read
            self._serial += 1
        return True

    def _show(self, gpa: int, size: int, value: int, *, to_page_end: bool) -> None:
        end = gpa - gpa % PAGE + PAGE if to_page_end else gpa + size
        self._data = (gpa, value, self._serial, end)

    def _on_piece(self, gpa: int, size: int) -> int:
        """A piece of a load from MMIO, or a page walk of the CPU, which finds all ones there."""
        start, value, token, end = self._data
        crossing = self._second_page(gpa, False)
        if crossing is not None:
            start, value = gpa, self._access(MmioRead, gpa, crossing.rest, 0)
            self._show(start, crossing.rest, value, to_page_end=False)
        elif token != self._serial or not start - _REACH <= gpa < end:
            return MASK[size]
        shift = 8 * (gpa - start)
        return (value >> shift if shift >= 0 else value << -shift) & MASK[size]

    def _skip_bytes(self, count: int) -> None:
        self._skip = count

    def _instruction(self) -> tuple[int, bool, Any]:
        state = self.codec.read_state()
        return state.linear_rip, state.mode == "l64", state

    def _access(self, cls: type[Access], address: int, size: int, value: int) -> int:
        if self._mode is _INLINE:
            try:
                if cls is PortRead:
                    return self._port_read(address, size) & MASK[size]
                if cls is MmioRead:
                    return self._mmio_read(address, size) & MASK[size]
                if cls is PortWrite:
                    self._port_write(address, size, value)
                else:
                    self._mmio_write(address, size, value)
            except BaseException as error:
                self._error = error
                self._stop_behind()
                return MASK[size]
            finally:
                # While the device waited for a key: not to wait for another. And a guest that polls
                # is not to wait for its timer until the slice is over.
                if self._cancelled or (self._look and not self._want):
                    self._stop_behind()
            return 0
        exit = cls(address, size, value) if cls.is_write else cls(address, size)  # type: ignore[call-arg]
        if self._mode is _DRAIN and cls.is_write:
            self._queue.append(exit)
            return 0
        self._events.put(exit)
        answer = self._orders.get() or 0
        if self._mode is _DRAIN or self._cancelled or self._look:
            self._stop_behind()
        return answer

    # -- running

    def _leave(self) -> None:
        quick.uc_emu_stop(self._address)

    def registers(self) -> Registers:
        registers = super().registers()
        if self._parked:
            registers.rflags = self._settled(registers.rflags)
        return registers

    def _read_state(self) -> CpuState:
        state = super()._read_state()
        if self._parked:
            state.rflags = self._settled(state.rflags)
        return state

    def _settled(self, rflags: int) -> int:
        """RFLAGS as read in a callback: see `unicorn_lazy`."""
        return rflags & ~STATUS | self.codec.lazy_source() & STATUS

    def glance(self) -> bytes:
        return self.codec.glance()

    def _kick(self) -> None:
        if self._counting:
            self._limit = 0

    def run_inline(self, handler: AccessHandler, *, max_insns: int | None = None) -> Exit:
        if self._counts_for_steps and max_insns is None:
            self._count_no_more()
        self._answer_unseen(handler)
        self._check_answered()
        self._quiesce()
        while self._pending is not None:  # the instruction has made another read
            self._answer_unseen(handler)
            self._quiesce()
        self._answer_unseen(handler)
        stop = self._asked_for()  # just now, before the engine has started
        if stop is not None:
            return stop
        self._use(handler)
        self._mode = _INLINE
        self._aim(max_insns)
        self._run_thread = threading.get_ident()
        self._running = True
        try:
            while True:
                if self._cancelled:
                    self._cancelled = False
                    return Cancelled()
                if self._look:
                    exit = self._attend()
                    if exit is not None:
                        return exit
                    continue
                exit = self._ended(self._start())
                if exit is not None:
                    return exit
        finally:
            self._running = False

    def run(self, *, max_insns: int | None = None) -> Exit:
        if self._queue:
            return self._queue.popleft()
        if self._unseen and self._pending is not None:
            self._unseen = False
            return self._pending
        self._check_answered()
        self._mode = _ONE
        self._aim(max_insns)
        while True:
            if self._cancelled:
                self._cancelled = False
                return Cancelled()
            if self._look and not self._parked:
                exit = self._attend()
                if exit is not None:
                    return exit
                continue
            exit = self._next_event()
            if exit is not None:
                return exit

    def _aim(self, max_insns: int | None) -> None:
        self._slice = _FIRST_SLICE
        if max_insns is not None and not self._counting:
            self._count()
        self._max_insns = FOREVER if max_insns is None else self._begun + max_insns
        self._budget = max_insns or 0

    def _start(self) -> int:
        self._forget_pieces()
        self._skip = 0
        self._stopped = False
        self._limit = min(self._max_insns, self._alarm)
        if self._cancelled or self._look:
            self._limit = 0
        self._flush_if_wanted()
        self._hlt = False
        count = FOREVER
        if self._want:
            # How often it is looked for, where it need not be exact, goes down with the time it takes.
            count = self._short
            if not self.vm.options.exact_interrupts:
                self._short = min(2 * count, _SLICE_WITH_BOARD)
            self._look = True
        elif not self._counting:
            count = self._slice
            self._slice = min(2 * count, _SLICE if self._board is None else _SLICE_WITH_BOARD)
        if self._traps.fetches.wanted_at is not None:
            self._traps.fetches.begin()
        self._cr2 = self.codec.read(x86_const.UC_X86_REG_CR2)
        self._executing = True
        try:
            self._translated = True
            status: int = uclib.uc_emu_start(self._handle, self.codec.read_rip(), 0, 0, count)
        finally:
            self._executing = False
        status = self._settle_fetch(status)
        if self._stopper is not None:
            self._unhook(self._stopper)
            self._stopper = None
        return status

    def _next_event(self) -> Exit | None:
        """Let the engine's thread go on, until its next access or its end."""
        if self._parked:
            pending, self._pending = self._pending, None
            self._limit = self._max_insns
            self._orders.put(pending.value if isinstance(pending, ReadAccess) else 0)
        else:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="vmmsim-unicorn", daemon=True)
                self._thread.start()
            self._orders.put(0)
            self._parked = True
        event = self._events.get()
        if isinstance(event, Access):
            self._pending = event
            self._unseen = self._mode is _DRAIN
            return event
        self._parked = False
        return self._ended(event)

    def _work(self) -> None:
        while self._orders.get() is not None:
            self._events.put(self._start())

    def _ended(self, status: int) -> Exit | None:
        """What the end of an `emu_start` is; None to go on."""
        if self._shutdown is not None or status:
            return self._failed_exit(status)
        if self._denied:
            assert self._before is not None
            self._denied = False
            self.codec.write_registers(self._before)
            if self._counting:
                self._begun -= 1
            cause = self._traps.deliver(GP, error=0, kind="fault")
            return None if cause is None else Shutdown(cause)
        self._at_boundary = False
        exit = self._asked_for()
        if exit is not None:
            return exit
        if self._hlt:
            return Halt()
        if self._stopped and self._begun >= self._max_insns:
            return BudgetSpent("insns", self._budget)
        if self._begun >= self._alarm:
            self._alarm, self._look = FOREVER, True
        return None  # the end of a slice

    def _attend(self) -> Exit | None:
        exit = super()._attend()
        if not self._want:
            self._short = 1
        return exit

    def set_alarm(self, insns: int | None) -> None:
        self._alarm = FOREVER if insns is None else insns
        self._limit = min(self._limit, self._alarm)

    def _quiesce(self) -> None:
        if self._running or not self._parked:
            return
        pending = self._pending
        if isinstance(pending, ReadAccess) and not pending.answered:
            return
        self._mode = _DRAIN
        # Still parked then: another read of the same instruction waits for its answer. A triple
        # fault comes again, and is dealt with, when the vCPU runs on.
        self._next_event()

    def check_whole(self, number: int) -> None:
        super().check_whole(number)
        if self._parked:
            raise UsageError(
                f"vCPU {number} waits for the answer to a read",
                hint="answer its exit before you look at another vCPU",
            )

    def _discard(self) -> None:
        self._mode = _DRAIN
        while self._parked:
            self._orders.put(0)
            self._parked = isinstance(self._events.get(), Access)
        self._denied = self._at_boundary = self._hlt = False
        self._shutdown = None

    def set_insns(self, count: int) -> None:
        self._begun = count

    @property
    def insns(self) -> int | None:
        return self._begun if self._counting else None

    def close(self) -> None:
        if self._thread is not None:
            self._discard()
            self._orders.put(None)
            self._thread.join()
            self._thread = None
        super().close()
