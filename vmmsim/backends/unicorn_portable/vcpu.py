"""The portable way to drive Unicorn: documented calls, the bytes of a context, and one flag.

Code runs in one of two phases.

* **Free**, at the engine's own speed, without hooks: see `free`.
* **Counted**, as long as instructions are counted or breakpoints are set, where free code makes
  many accesses to MMIO, and where this Unicorn did not prove what freedom needs. The engine runs with
  a count of instructions. It then calls hooks before each instruction, and may leave there: exactly
  between two. A run is cut into slices, between which a cancel and signal handlers have their turn.
  To stop behind the instruction whose access is being answered, a hook for all addresses is added
  in the callback: it is called before the next instruction. (Unicorn looks hooks up again at each call
  when there is more than one; so one that is never called is there from the start.)

HLT is an intercept, which comes before it is executed (see `unicorn_traps`). Exceptions are delivered
in the hook that Unicorn calls for them. An interrupt is delivered between two runs of the engine.
When one is pending that the guest cannot take yet, free code is single-stepped up to where it can
(see `steps`), and slices of counted code are of one instruction, or short where it need not be exact.

An access is answered inside its callback: see `accesses`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from unicorn import unicorn_const as uc_const
from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import Uc, uclib

from ...cpu.state import CpuState, Registers
from ...errors import UsageError
from ...exits import Access, BudgetSpent, Cancelled, Exit, Halt, ReadAccess, Shutdown
from ..unicorn_lazy import STATUS
from ..unicorn_vcpu import DB, FOREVER, GP, INTERCEPTS, PAGE, PF
from .accesses import DRAIN, INLINE, INSN, ONE
from .steps import WindowSteps

if TYPE_CHECKING:
    from ..base import AccessHandler
    from ..quick import Quick
    from ..unicorn import UnicornVm

__all__ = ["PortableVcpu"]

#: Instructions in the first slice of a run, and in the longest: some milliseconds. With a board
#: a slice is as late as an interrupt can be.
_FIRST_SLICE = 20_000
_SLICE, _SLICE_WITH_BOARD = 500_000, 50_000


class PortableVcpu(WindowSteps):
    """See the module. Works wherever the unicorn package does."""

    def __init__(self, vm: UnicornVm) -> None:
        super().__init__(vm)
        self._budget = 0
        #: The run was ended by a hook before an instruction.
        self._stopped = False
        #: The slice while an interrupt is waited for.
        self._short = 1
        #: CR2 as of the start of the engine, or of the last exception.
        self._cr2 = 0
        self.open(vm.uc)
        self.codec.write_state(CpuState())
        self._arm(hlt=True)

    def open(self, uc: Uc) -> None:
        super().open(uc)
        self._traps.hooked = True
        self._traps.fetches.old_cr2 = lambda: self._cr2
        self._stop_callback = INSN(self._on_stop)
        self._first_start = True
        if self._counting:
            self._count()
        self._tell_truth(True)

    def _count(self) -> None:
        """Count instructions from now on."""
        self._counting = True
        me = self

        def on_insn() -> None:
            if me._begun >= me._limit:
                me._on_stop()
            else:
                me._begun += 1

        self._count_hook = self._hook(uc_const.UC_HOOK_CODE, INSN(on_insn))
        self._set_free(False)

    def _count_no_more(self) -> None:
        self._counts_for_steps = self._counting = False
        self._unhook(self._count_hook)
        self._flush()
        self._first_start = True

    def _in_flight(self) -> bool:
        # Nothing is executed again, but where an instruction is only being finished its run ends anyhow.
        return self._mode is DRAIN

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

    def _stop_counted(self) -> None:
        if self._counting:
            self._limit = 0
        elif self._stopper is None:
            self._stopper = self._hook(uc_const.UC_HOOK_CODE, self._stop_callback)
            self._keep.pop()

    def _trapped(self, number: int) -> str | None:
        if number == DB and self._stepped and self._planted is None:
            self._step_done()
            return None
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

    # -- running

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
        if not self._traps.hooked:
            return rflags
        return rflags & ~STATUS | self.codec.lazy_source() & STATUS

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
        self._mode = INLINE
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
        self._mode = ONE
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
        self._stopped = self._hlt = False
        self._settle_phase()
        self._flush_if_wanted()
        if self._traps.fetches.wanted_at is not None:
            self._traps.fetches.begin()
        self._cr2 = self.codec.read(x86_const.UC_X86_REG_CR2)
        self._executing = self._translated = True
        try:
            status = self._run_free() if self._free else self._run_counted()
        finally:
            self._executing = False
        return self._settle_fetch(status)

    def _run_counted(self) -> int:
        self._limit = min(self._max_insns, self._alarm)
        if self._cancelled or self._look:
            self._limit = 0
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
        status: int = uclib.uc_emu_start(self._handle, self.codec.read_rip(), 0, 0, count)
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
            self._unseen = self._mode is DRAIN
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
        if not self._free and not self._parked:
            self._end_of_slice()
        return None

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
        self._mode = DRAIN
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
        self._mode = DRAIN
        while self._parked:
            self._orders.put(0)
            self._parked = isinstance(self._events.get(), Access)
        self._denied = self._at_boundary = self._hlt = False
        self._shutdown = self._fault = None

    def quick(self) -> Quick:
        # Which of many programs makes an access must not matter to the next.
        self._first_start = False
        self._set_free(False)
        return super().quick()

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
        if self._tables is not None:
            self._tables.close()
            self._tables = None
