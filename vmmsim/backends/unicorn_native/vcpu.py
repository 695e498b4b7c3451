"""The native way to drive Unicorn: leave at once, and execute the instruction again.

An access reaches a Python callback with its true address and size. When the vCPU must
stop there (an exit for `run`, or a device that ends the run), the thunk around the
callback leaves the engine; the guest is then as it was before the instruction, which is
executed again with its log (`replay`). To finish an instruction and stop behind
it, it is translated alone, by setting the flag that holds interrupts off: QEMU then ends
the block after one instruction and clears the flag.
"""

from __future__ import annotations

import functools
import threading
import time
from typing import TYPE_CHECKING, Any

from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.unicorn import UcError

from ...cpu.state import CpuState
from ...errors import NotSupported
from ...exits import BudgetSpent, Cancelled, Exit, Halt, ReadAccess, Shutdown
from ..ticker import TICK_SECONDS, hurry, watch
from ..unicorn_context import context_usable
from ..unicorn_vcpu import FOREVER, GP
from .host import assembly, seen_on_hardware
from .offsets import engine_offsets
from .replay import DRAIN, INLINE, ONE, ReplayCutter
from .thunks import FLAG_SPECIAL, Shared

if TYPE_CHECKING:
    from ..base import AccessHandler
    from ..quick import Quick
    from ..unicorn import UnicornVm

__all__ = ["NativeVcpu", "native_usable"]

#: Code bytes after which the engine comes back to Python, so that signal handlers run
#: even when nobody watches for signals. Some milliseconds of ordinary code.
_SLICE = 16 << 20
# Of the path of each exit: a module's names are found faster than a class's attributes.
_BYTES, _LIMIT, _END, _SPECIAL = Shared.BYTES, Shared.LIMIT, Shared.END, Shared.SPECIAL
_INHIBIT = 1 << 3  # HF_INHIBIT_IRQ
#: Freedom shorter than this many seconds was not worth its price; at most so many slices
#: without an access are waited for before the next.
_BRIEF, _MOST_PATIENCE = 0.2, 64
#: Free code may make so many accesses to ports before Python has looked around: several times a
#: second, and at each tick of a timer. Fewer a second than the other number are no reason to
#: watch.
_FREE_ACCESSES, _SPARSE = 16, 4000
#: How often in a row free code is asked again whether it takes an interrupt.
_MISSES = 3


class NativeVcpu(ReplayCutter):
    """See the module."""

    def __init__(self, vm: UnicornVm) -> None:
        super().__init__(vm)
        # Reentrant: a signal handler of the thread that holds it may call cancel().
        self._kick_lock = threading.RLock()
        self._free_running = False
        self._free_starts = self._misses = 0
        #: Slices without an access, how many of them let the guest run free, and since when
        #: it does.
        self._quiet, self._patience, self._freed = 0, 1, 0.0
        #: Accesses to ports, other accesses, and the time, at the end of the last slice.
        self._last_slice: tuple[int, int, float] | None = None
        self.open(vm.uc)
        self.codec.write_state(CpuState())
        self._arm(hlt=False)

    def _kick(self) -> None:
        self._words[_END] = self._words[_LIMIT] = 0
        self.kick()
        if self._free_running:
            hurry()

    # What the ticker asks: see `backends.ticker`. A stop that comes just before the engine has
    # started is lost, so it is repeated; and signal handlers want their turn.

    @property
    def tick_seconds(self) -> float:
        soon = self._cancelled or self._look or self._want
        return 0.001 if soon and self._free_running else TICK_SECONDS

    def signs_of_life(self) -> tuple[bool, int]:
        return self._free_running, self._free_starts

    def kick(self) -> None:
        """Stop free code between two blocks. In an access that it makes, a stop would take effect
        there; one behind it may come too late, and is then asked for again by the ticker."""
        with self._kick_lock:
            if self._free_running:
                if self._words[Shared.MADE]:
                    self._words[Shared.BEHIND] = 1
                else:
                    self._stop_engine()

    def run_inline(self, handler: AccessHandler, *, max_insns: int | None = None) -> Exit:
        if self._counts_for_steps and max_insns is None:
            self._count_no_more()
        self._use(handler)
        self._answer_unseen(handler)
        self._take_answer()
        if self._stop is not None or self._look:  # asked for just now, before the engine has started
            self._mode = INLINE
            stop = self._after_finish()
            if stop is not None:
                return stop
        return self._run(INLINE, max_insns)

    def run(self, *, max_insns: int | None = None) -> Exit:
        if self._queue:
            return self._queue.popleft()
        if self._unseen and self._pending is not None:
            self._unseen = False
            return self._pending
        self._take_answer()
        if not self._watched:
            self._watch(True)
        if self._look and self._restart:
            self._mode = ONE
            exit = self._after_finish()
            if exit is not None:
                return exit
        return self._run(ONE, max_insns)

    def _take_answer(self) -> None:
        """Before a run: the instruction of the last exit goes on with its answer."""
        self._check_answered()
        pending, self._pending = self._pending, None
        if pending is not None:
            self._log.append(0 if pending.is_write else pending.value)  # type: ignore[attr-defined]
            self._restart = True

    def _run(self, mode: str, max_insns: int | None) -> Exit:
        words = self._words
        budget = FOREVER
        if max_insns is not None:
            self._count()
            budget = words[Shared.INSNS] + max_insns
        self._run_thread = threading.get_ident()
        self._running = True
        try:
            while True:
                if self._cancelled:
                    self._cancelled = False
                    return Cancelled()
                self._mode = mode
                if self._look:
                    exit = self._attend()
                    if exit is not None:
                        return exit
                    continue
                plain = mode is INLINE and not self._restart and self._watched
                words[_SPECIAL] = 0 if plain else FLAG_SPECIAL
                words[_END] = end = words[_BYTES] + _SLICE
                words[_LIMIT] = 0 if self._want else end
                if not self._want:
                    self._misses = 0
                if self._want and not self._watched:
                    self._await_window()
                if self._counting:
                    words[Shared.INSN_LIMIT] = min(budget, self._alarm)
                if self._cancelled or self._look:  # it was set after the tests above, before the limit
                    continue
                exit = self._ended(self._start())
                if exit is not None:
                    return exit
                if self._counting and words[Shared.REASON] == 2:
                    if words[Shared.INSNS] >= budget:
                        return BudgetSpent("insns", max_insns or 0)
                    self._alarm, self._look = FOREVER, True
        finally:
            self._running = False
            words[Shared.INSN_LIMIT] = FOREVER

    def _start(self) -> int:
        self._forget_pieces()
        if self._traps.fetches.wanted_at is not None:
            self._traps.fetches.begin()
        return self._settle_fetch(self._execute())

    def _execute(self) -> int:
        self._engine_halted[0] = 0
        self._executing = self._translated = True
        try:
            if self._watched:
                status: int = self._start_engine()
                return status
            watch(self)
            self._free_accesses = _FREE_ACCESSES
            self._free_starts += 1
            self._free_running = True
            try:
                return 0 if self._cancelled or self._look else self._start_engine()
            finally:
                with self._kick_lock:
                    self._free_running = False
        finally:
            self._executing = False

    def _ended(self, status: int) -> Exit | None:
        """What the end of an `emu_start` is; None to go on."""
        if self._want_watch:
            self._end_freedom()
            self._lazy.left(hooked=self._counting)
            return None
        if self._pending is not None:
            self._left_within()
            return self._pending
        if self._denied:
            self._denied = False
            self._left_within()
            self._forget()
            cause = self._traps.deliver(GP, error=0, kind="fault")
            return None if cause is None else Shutdown(cause)
        if self._words[Shared.MADE]:  # left in an access of free code
            self._words[Shared.MADE] = 0
            self._made = self._leaving = True
        if self._want_truth or self._want_flush or self._leaving:
            if not self._watched:
                self._end_freedom()
            self._leaving = False
            self._left_within()
            self._same(self._made)
            self._restart = True
            return self._after_finish()
        self._walking = False
        if self._shutdown is not None or status:
            self._forget()
            return self._failed_exit(status)
        if self._at_boundary:
            self._at_boundary = False
            self._forget()
            return self._asked_for()
        if self._engine_halted[0]:
            return Halt()
        reason = self._words[Shared.REASON]
        if reason == 3 or (self._want and not self._watched):
            self._look = True
        elif reason == 1 and not (self._look or self._cancelled):
            self._consider_freedom()
        return None

    def _end_freedom(self) -> None:
        """Free code has made an access, which is not made yet: watch it from here on."""
        self._want_watch = False
        if self._tail_hook is not None:
            self._unhook(self._tail_hook)
            self._tail_hook = None
        self._watch(True)
        brief = time.monotonic() - self._freed < _BRIEF
        self._patience = min(2 * self._patience, _MOST_PATIENCE) if brief else 1

    def _await_window(self) -> None:
        """An interrupt is pending that free code cannot take yet. Mostly it is in the handler of
        another: a millisecond later it has left that. Else only watched code knows when."""
        self._misses += 1
        if self._misses > _MISSES or self.vm.options.exact_interrupts:
            self._misses = 0
            self._end_freedom()
        else:
            hurry()

    def _consider_freedom(self) -> None:
        """At the end of a slice: code that makes few accesses need not be watched. Each change
        throws away all translated code, so freedom that did not last is given later."""
        words = self._words
        ports, others, now = words[Shared.PORTS], words[Shared.MMIO], time.monotonic()
        last, self._last_slice = self._last_slice, (ports, others, now)
        sparse = last is not None and others == last[1] and ports - last[0] <= _SPARSE * (now - last[2])
        self._quiet = self._quiet + 1 if sparse else 0
        bound = self._counting or self._restart or self._breakpoints
        if self._quiet >= self._patience and self._mode is INLINE and not bound:
            self._quiet = 0
            self._freed = time.monotonic()
            self._watch(False)

    def _after_finish(self) -> Exit | None:
        """Finish the instruction in flight; then what was asked for in it."""
        was_running, self._running = self._running, True
        try:
            if self._restart:
                self._finish()
        finally:
            self._running = was_running
        exit = self._asked_for()
        if exit is not None:
            return exit
        if self._queue:
            return self._queue.popleft()
        self._unseen = False
        return self._pending

    def set_breakpoints(self, addresses: frozenset[int]) -> None:
        if addresses:
            self._watch(True)  # free code cannot be left before an instruction
        super().set_breakpoints(addresses)

    def _in_flight(self) -> bool:
        return self._alone or self._restart

    def _spent(self) -> bool:
        words = self._words
        spent = self._counting and words[Shared.INSNS] >= words[Shared.INSN_LIMIT]
        if spent:
            words[Shared.REASON] = 2
        return spent

    def _give_way(self) -> None:
        if not self._in_flight():  # its log would be lost
            super()._give_way()

    def _uncount_begun(self) -> None:
        if self._counting:
            self._words[Shared.INSNS] -= 1

    def _left_within(self) -> None:
        """The engine was left in an instruction, at an access: it is not executed yet."""
        self._uncount_begun()
        self._lazy.left(hooked=self._counting)

    def _finish(self) -> None:
        """Execute the instruction in flight to its end, answering from the log what it has
        done. It stays in flight if a read waits for its answer or if it faults."""
        words, hidden = self._words, self._hidden
        limit, words[Shared.INSN_LIMIT] = words[Shared.INSN_LIMIT], FOREVER
        shadow = hidden[0] & _INHIBIT
        retired = truthful = False
        words[Shared.SPECIAL] = FLAG_SPECIAL
        self._restart = self._alone = True
        if self._mode is ONE:
            self._mode = DRAIN
        try:
            while True:
                self._flush_if_wanted()
                traps = words[Shared.TRAPS]
                truthful |= self._want_truth
                self._want_truth = False
                hooks = self._tell_truth() if truthful else []
                began = words[Shared.BYTES]
                rip = self._rip[0]
                words[_LIMIT] = words[_END] = began + 1
                hidden[0] |= _INHIBIT
                status = self._start()
                for hook in hooks:
                    self._unhook(hook)
                self._truthful = False
                if words[Shared.REASON] == 1:
                    if words[Shared.BYTES] == began:  # a cancel came before its first byte
                        continue
                    retired = True
                    if words[Shared.TRAPS] == traps:
                        self._last_pass(rip)
                    self._flush_if_wanted()
                    self._forget()
                    return
                if status or self._shutdown is not None or self._at_boundary or self._denied:
                    # It comes again, and is dealt with, when the vCPU runs on. If no access crossed
                    # into MMIO, the CPU's walk met a page table there: let it.
                    self._walking = truthful
                    self._shutdown, self._denied = None, False
                    self._forget()
                    return
                self._left_within()
                if self._pending is not None:
                    return
                self._same(self._made)
                self._restart = True
        finally:
            self._alone = False
            if not retired and not shadow:
                hidden[0] &= ~_INHIBIT
            words[Shared.INSN_LIMIT] = limit

    def _tell_truth(self) -> list[Any]:
        self._truthful = True
        kinds = (uc_const.UC_HOOK_MEM_READ, uc_const.UC_HOOK_MEM_WRITE)
        hooks = [self._hook(kind, self._truth) for kind in kinds]
        del self._keep[-len(hooks) :]
        return hooks

    def _quiesce(self) -> None:
        if self._running:
            return
        if isinstance(self._pending, ReadAccess) and not self._pending.answered:
            return
        self._take_answer()
        if not self._restart:
            return
        self._running = True
        self._mode = DRAIN
        try:
            self._finish()
        finally:
            self._running = False

    def set_alarm(self, insns: int | None) -> None:
        self._alarm = FOREVER if insns is None else insns
        if self._executing and not self._alone:
            words = self._words
            words[Shared.INSN_LIMIT] = min(words[Shared.INSN_LIMIT], self._alarm)

    def _check_settable(self) -> None:
        super()._check_settable()
        self._forget()

    def _discard(self) -> None:
        self._forget()

    def quick(self) -> Quick:
        # Code runs free until its first access; which of many programs has that must not matter.
        self._watch(True)
        return super().quick()

    def set_insns(self, count: int) -> None:
        self._words[Shared.INSNS] = count

    @property
    def insns(self) -> int | None:
        return self._words[Shared.INSNS] if self._counting else None

    def close(self) -> None:
        self._counted = self._words[Shared.INSNS]
        super().close()
        self._thunks.close()


@functools.cache
def native_usable() -> tuple[bool, str]:
    """(whether the native way can be used here, why). Runs once a process; never raises."""
    try:
        assembly()
    except NotSupported as error:
        return False, str(error)
    usable, reason = context_usable()
    if not usable:
        return False, reason
    if not seen_on_hardware():
        from .trial import in_a_child

        usable, reason = in_a_child(_prove)
        if not usable:
            return False, reason
    return _prove()


def _prove() -> tuple[bool, str]:
    try:
        engine_offsets()
    except (NotSupported, UcError) as error:
        return False, f"what it needs of Unicorn's structures was not found: {error}"
    from .selftest import self_test

    return self_test()
