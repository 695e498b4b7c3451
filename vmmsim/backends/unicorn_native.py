"""The native way to drive Unicorn: leave at once, and execute the instruction again.

An access reaches a Python callback with its true address and size. When the vCPU must
stop there (an exit for `run`, or a device that ends the run), the thunk around the
callback leaves the engine; the guest is then as it was before the instruction. What the
instruction's accesses have answered so far is in a log: when it is executed again, they
are answered from the log and made only once. To finish an instruction and stop behind it,
it is translated alone, by setting the flag that holds interrupts off (QEMU then ends the
block after one instruction and clears the flag).

That an access belongs to the same execution of an instruction as the one before it is
known by the number of blocks entered and RIP: within one entry of a block no instruction
is executed twice.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import TYPE_CHECKING, Any

from unicorn import unicorn_const as uc_const
from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import Uc, uclib

from ..cpu.state import CpuState
from ..errors import NotSupported, UsageError
from ..exits import (
    Access,
    BudgetSpent,
    Cancelled,
    Exit,
    Halt,
    MmioRead,
    PortRead,
    PortWrite,
    ReadAccess,
)
from .unicorn_context import ContextCodec, context_usable
from .unicorn_cut import MASK, STRING, AccessCutter
from .unicorn_thunks import FLAG_SPECIAL, FLAG_TAIL, Shared, Thunks, recursion_offset
from .unicorn_vcpu import PAGE, check, quick

if TYPE_CHECKING:
    from .base import AccessHandler
    from .unicorn import UnicornVm

__all__ = ["NativeVcpu", "native_usable"]

_FOREVER = 1 << 62
#: A page above all guest memory, for a moment at start-up.
_SPARE = 0xF000000000000
#: Code bytes after which the engine comes back to Python, so that signal handlers run
#: even when nobody watches for signals. Some milliseconds of ordinary code.
_SLICE = 16 << 20
_INHIBIT = 1 << 3  # HF_INHIBIT_IRQ
_CODE64 = 1 << 15  # HF_CS64
_STRING = b"\x6c\x6d\x6e\x6f\xa4\xa5\xa6\xa7\xaa\xab\xac\xad\xae\xaf"
_COMPARING = b"\xa6\xa7\xae\xaf"

# What the thunks call: see unicorn_thunks.
_INT, _U32, _U64 = ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64
_IN = ctypes.CFUNCTYPE(_U32, _U32, _INT, _INT)
_OUT = ctypes.CFUNCTYPE(None, _U32, _INT, _U32, _INT)
_READ = ctypes.CFUNCTYPE(_U64, _U64, _INT, _INT)
_WRITE = ctypes.CFUNCTYPE(None, _U64, _INT, _U64, _INT)
_PIECE = ctypes.CFUNCTYPE(_U64, _U64, _INT)
_TRUTH = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_uint64)

# How a run treats an access.
_INLINE, _ONE, _DRAIN = "inline", "one", "drain"


class NativeVcpu(AccessCutter):
    """See the module. x86-64 Linux only."""

    def __init__(self, vm: UnicornVm) -> None:
        super().__init__(vm)
        self._running = False
        self._mode = _INLINE
        #: What the accesses of the instruction at hand have answered, and which it is.
        self._log: list[int] = []
        self._log_token = (-1, -1)
        #: The answer of the last access in short form, which is not in the log.
        self._first = 0
        #: The next `emu_start` executes again the instruction that the log is of.
        self._restart = False
        #: Whether the access at which the engine was left is made.
        self._made = False
        self._stop: Exit | None = None
        self._error: BaseException | None = None
        self._want_truth = self._want_flush = False
        #: An instruction is being executed alone.
        self._alone = False
        self._truthful = False
        #: The next instruction faults because a page table is in MMIO.
        self._walking = False
        self._counting = vm.options.count_insns
        self._counted = 0
        self._truth = _TRUTH(self._on_truth)
        self.open(vm.uc)
        self.codec.write_state(CpuState())

    # -- setting up

    def open(self, uc: Uc) -> None:
        super().open(uc)
        self.codec = ContextCodec(uc)
        self._thunks = Thunks(self.codec.layout.registers + 16 * 8, recursion_offset())
        self._words = self._thunks.words
        self._find_cpu()
        self._install()
        if self._counting:
            self._counting = False
            self._count()
            self._words[Shared.INSNS] = self._counted

    def _find_cpu(self) -> None:
        """Learn where the CPU structure is, from a run that ends before its first instruction."""
        self._hook(uc_const.UC_HOOK_BLOCK, self._thunks.make("block"), user=self._thunks.shared)
        check(uclib.uc_mem_map(self._handle, _SPARE, PAGE, uc_const.UC_PROT_ALL), "map a page")
        self._words[Shared.LIMIT] = 0
        check(uclib.uc_emu_start(self._handle, _SPARE, 0, 0, 0), "start")
        check(uclib.uc_mem_unmap(self._handle, _SPARE, PAGE), "unmap a page")
        address = self._words[Shared.ENV]
        layout = self.codec.layout
        if not address:
            raise NotSupported("Unicorn's block hook was not called")
        self._rip = _view(ctypes.c_uint64, address + layout.registers + 16 * 8)
        self._hidden = _view(ctypes.c_uint32, address + layout.flags + 40)
        self._cs_base = _view(ctypes.c_uint64, address + layout.segments + 24 + 8)
        self._paging = _Paging(address + layout.cr, address + layout.efer)

    def _install(self) -> None:
        on_in, on_out, on_read, on_write = self._callbacks()
        kinds = (
            ("in", uc_const.UC_HOOK_INSN, on_in, x86_const.UC_X86_INS_IN),
            ("out", uc_const.UC_HOOK_INSN, on_out, x86_const.UC_X86_INS_OUT),
            ("read", uc_const.UC_HOOK_MEM_READ_PROT, on_read, None),
            ("write", uc_const.UC_HOOK_MEM_WRITE_PROT, on_write, None),
        )
        for name, kind, callback, insn in kinds:
            self._keep.append(callback)
            self._hook(kind, self._thunks.make(name, _pointer(callback)), insn, user=self._thunks.shared)
        piece = _PIECE(self._on_piece)
        self._keep.append(piece)
        self._piece_thunk = self._thunks.make("piece", _pointer(piece))

    def _callbacks(self) -> tuple[Any, Any, Any, Any]:
        """The four callbacks for accesses, in their short form: the first access of an
        instruction, with nothing unusual about it. This is the path of most accesses of
        `run_inline`; `_first` is what the long form needs to know of it."""
        me = self

        def on_in(port: int, size: int, flags: int) -> int:
            if flags:
                return me._access(PortRead, port, size, 0)
            try:
                me._first = value = me._port_read(port, size)
                return value
            except BaseException as error:
                return me._failed(error, size)

        def on_out(port: int, size: int, value: int, flags: int) -> None:
            if flags:
                me._access(PortWrite, port, size, value)
                return
            try:
                me._port_write(port, size, value)
            except BaseException as error:
                me._failed(error, 0)

        def on_read(gpa: int, size: int, flags: int) -> int:
            if flags:
                return me._cut_read(gpa, size)
            try:
                me._first = value = me._mmio_read(gpa, size)
                return value
            except BaseException as error:
                return me._failed(error, size)

        def on_write(gpa: int, size: int, value: int, flags: int) -> None:
            if flags:
                if not flags & FLAG_TAIL:
                    me._cut_write(gpa, size, value)
                elif not me._cut_tail(gpa) and not me._truthful:
                    me._ask_for_truth(made=False)
                return
            try:
                me._mmio_write(gpa, size, value)
            except BaseException as error:
                me._failed(error, 0)

        return _IN(on_in), _OUT(on_out), _READ(on_read), _WRITE(on_write)

    def map_hole(self, gpa: int, size: int) -> None:
        """Make a range MMIO, with no rights: so each access is shown whole before it is cut."""
        hole = (ctypes.c_uint64 * 2)(gpa, self._thunks.shared)
        self._keep.append(hole)
        address = ctypes.addressof(hole)
        check(uclib.uc_mmio_map(self._handle, gpa, size, self._piece_thunk, address, None, None), "map MMIO")
        check(uclib.uc_mem_protect(self._handle, gpa, size, uc_const.UC_PROT_NONE), "protect MMIO")

    def _count(self) -> None:
        """Count instructions from now on: a hook before each. It stays: taking it away and
        putting it back would throw away all translated code each time."""
        if not self._counting:
            self._counting = True
            self._hook(uc_const.UC_HOOK_CODE, self._thunks.make("insn"), user=self._thunks.shared)
            self._flush()

    # -- accesses, the long form

    def _token(self) -> tuple[int, int]:
        return self._words[Shared.BLOCKS], self._rip[0]

    def _same(self, made: bool = False) -> int:
        """Make the log that of the instruction that is executing now. Returns the index of its
        last access, which is in the log already if it is `made`; -1 if it has made none."""
        words, log = self._words, self._log
        token = self._token()
        if self._restart:
            self._restart = False
            self._log_token = token
        elif token != self._log_token:
            log.clear()
            self._log_token = token
            if self._mode is _INLINE:
                words[Shared.SPECIAL] = 0
        if token != (words[Shared.TOKEN_BLOCKS], words[Shared.TOKEN_RIP]):
            return -1
        index = words[Shared.INDEX]
        if index + made > len(log):  # its first access was made in the short form
            log.append(self._first)
        return index

    def _failed(self, error: BaseException, size: int) -> int:
        """A device raised: the access counts as made, a read gives all ones."""
        if self._error is None:
            self._error = error
        self._first = MASK[size]
        self._leave_made()
        return self._first

    def _access(self, cls: type[Access], address: int, size: int, value: int) -> int:
        index = self._same()
        log = self._log
        if index < len(log):
            return log[index]
        if self._mode is _INLINE:
            answer = 0
            try:
                if cls is PortRead:
                    answer = self._port_read(address, size)
                elif cls is MmioRead:
                    answer = self._mmio_read(address, size)
                elif cls is PortWrite:
                    self._port_write(address, size, value)
                else:
                    self._mmio_write(address, size, value)
            except BaseException as error:
                answer = self._failed(error, size)
            log.append(answer)
            return answer
        exit = cls(address, size, value) if cls.is_write else cls(address, size)  # type: ignore[call-arg]
        if self._mode is _DRAIN and cls.is_write:
            self._queue.append(exit)
            log.append(0)
            return 0
        self._pending = exit
        self._unseen = self._mode is _DRAIN
        self._leave()
        return 0

    def _show(self, gpa: int, size: int, value: int, *, to_page_end: bool) -> None:
        words = self._words
        if to_page_end:  # the window ends with the page, so that the next comes to _on_piece
            words[Shared.WINDOW] = gpa + size - 24 & _M64
            words[Shared.DATA + 2] = value << 8 * (8 - size) & _M64
        else:
            words[Shared.WINDOW] = gpa - 8 & _M64
            words[Shared.DATA + 1] = value

    def _on_piece(self, gpa: int, size: int) -> int:
        """A load that no protection hook announced: the second page of one that crosses, or
        the CPU's own walk through page tables, which finds all ones in a hole."""
        crossing = self._second_page(gpa, False)
        if crossing is not None:
            self._one_more()
            value = self._access(MmioRead, gpa, crossing.rest, 0)
            self._show(gpa, crossing.rest, value, to_page_end=False)
            return value & MASK[size]
        if gpa % PAGE == 0 and not self._truthful and not self._walking:
            self._ask_for_truth(made=True)
        return MASK[size]

    def _one_more(self) -> None:
        """Count an access that no thunk has counted."""
        words = self._words
        token = self._token()
        if token == (words[Shared.TOKEN_BLOCKS], words[Shared.TOKEN_RIP]):
            words[Shared.INDEX] += 1
        else:
            words[Shared.TOKEN_BLOCKS], words[Shared.TOKEN_RIP] = token
            words[Shared.INDEX] = 0

    def _skip_bytes(self, count: int) -> None:
        self._words[Shared.SKIP] = count

    def _ins_probe(self) -> None:
        self._same()
        self._words[Shared.INDEX] = self._words[Shared.INDEX] - 1 & _M64

    def _instruction(self) -> tuple[int, bool, Any]:
        rip = self._rip[0]
        code64 = bool(self._hidden[0] & _CODE64)
        return rip if code64 else (rip + self._cs_base[0]) & 0xFFFFFFFF, code64, self._paging

    def _ask_for_truth(self, *, made: bool) -> None:
        """An access came without its true size: begin the instruction anew, with hooks on all
        of memory that tell where an access started. `made`: the last one counted is made."""
        self._want_truth = True
        self._made = made
        self._leave()

    def _last_pass(self, began: int) -> None:
        """A REP whose count has become 0 ends when it is executed once more and does nothing;
        KVM shows it so, and Unicorn does it so, but for an instruction translated alone."""
        repeat, opcode = self._opcode(self._rip[0] - began)
        if not repeat or opcode not in STRING or self._rip[0] == began:
            return
        if opcode in _COMPARING:
            zero = self.codec.read_registers().rflags >> 6 & 1
            if zero != (repeat == 0xF3):
                return  # the comparison ended it, not the count
        self._rip[0] = began

    # -- running

    def _leave(self) -> None:
        quick.uc_emu_stop(self._address)

    def _leave_made(self) -> None:
        """Leave in an access that is made. An instruction that is executed alone ends by
        itself, and must: its store may have reached RAM."""
        self._made = True
        if not self._alone:
            self._leave()

    def _kick(self) -> None:
        self._words[Shared.LIMIT] = 0

    def stop_here(self, exit: Exit) -> None:
        if self._stop is None:
            self._stop = exit
        self._leave_made()

    def run_inline(self, handler: AccessHandler, *, max_insns: int | None = None) -> Exit:
        self._port_read = handler.port_read
        self._port_write = handler.port_write
        self._mmio_read = handler.mmio_read
        self._mmio_write = handler.mmio_write
        self._answer_unseen(handler)
        self._take_answer()
        return self._run(_INLINE, max_insns)

    def run(self, *, max_insns: int | None = None) -> Exit:
        if self._queue:
            return self._queue.popleft()
        if self._unseen and self._pending is not None:
            self._unseen = False
            return self._pending
        self._take_answer()
        return self._run(_ONE, max_insns)

    def _take_answer(self) -> None:
        pending = self._pending
        if pending is None:
            return
        if isinstance(pending, ReadAccess):
            if not pending.answered:
                raise UsageError(
                    f"the exit '{pending.describe()}' was not answered",
                    hint="call exit.reply(value), or machine.answer(exit), before the vCPU runs on",
                )
            self._log.append(pending.value)
        else:
            self._log.append(0)
        self._pending = None
        self._restart = True

    def _run(self, mode: str, max_insns: int | None) -> Exit:
        words = self._words
        if max_insns is not None:
            self._count()
            words[Shared.INSN_LIMIT] = words[Shared.INSNS] + max_insns
        self._running = True
        try:
            while True:
                if self._cancelled:
                    self._cancelled = False
                    return Cancelled()
                self._mode = mode
                words[Shared.SPECIAL] = FLAG_SPECIAL if mode is not _INLINE or self._restart else 0
                words[Shared.LIMIT] = words[Shared.BYTES] + _SLICE
                if self._cancelled:  # it was set after the test above, before the limit
                    continue
                status = self._start()
                exit = self._ended(status)
                if exit is not None:
                    if isinstance(exit, BudgetSpent) and exit.unit == "insns":
                        exit.amount = max_insns or 0
                    return exit
        finally:
            self._running = False
            words[Shared.INSN_LIMIT] = _FOREVER

    def _start(self) -> int:
        words = self._words
        self._forget_pieces()
        words[Shared.REASON] = words[Shared.ARMED] = words[Shared.SKIP] = 0
        return uclib.uc_emu_start(self._handle, self._rip[0], 0, 0, 0)

    def _ended(self, status: int) -> Exit | None:
        """What the end of an `emu_start` is; None to go on."""
        if self._pending is not None:
            self._uncount()
            return self._pending
        if self._want_truth or self._want_flush or self._stop is not None or self._error is not None:
            self._uncount()
            self._same(self._made)
            self._finish()
            if self._error is not None:
                error, self._error, self._stop = self._error, None, None
                raise error
            if self._stop is not None:
                exit, self._stop = self._stop, None
                return exit
            if self._queue:
                return self._queue.popleft()
            self._unseen = False
            return self._pending
        self._walking = False
        if self._fault is not None or status:
            self._forget()
            return self._error_exit(status)
        if self._refused is not None:
            return self._refused_exit()
        reason = self._words[Shared.REASON]
        if reason == 2:
            return BudgetSpent("insns", 0)
        return None if reason else Halt()

    def _uncount(self) -> None:
        if self._counting:
            self._words[Shared.INSNS] -= 1

    def _forget(self) -> None:
        self._log.clear()
        self._log_token = (-1, -1)
        self._restart = False

    def _finish(self) -> None:
        """Execute the instruction in flight to its end, answering from the log what it has
        done. It stays in flight if a read waits for its answer or if it faults."""
        words, hidden = self._words, self._hidden
        limit, words[Shared.INSN_LIMIT] = words[Shared.INSN_LIMIT], _FOREVER
        shadow = hidden[0] & _INHIBIT
        retired = truthful = False
        words[Shared.SPECIAL] = FLAG_SPECIAL
        self._restart = self._alone = True
        if self._mode is _ONE:
            self._mode = _DRAIN
        try:
            while True:
                self._flush_if_wanted()
                truthful |= self._want_truth
                self._want_truth = False
                hooks = self._tell_truth() if truthful else []
                began = words[Shared.BYTES]
                rip = self._rip[0]
                words[Shared.LIMIT] = began + 1
                hidden[0] |= _INHIBIT
                status = self._start()
                for hook in hooks:
                    self._unhook(hook)
                self._truthful = False
                if words[Shared.REASON] == 1:
                    if words[Shared.BYTES] == began:  # a cancel came before its first byte
                        continue
                    retired = True
                    self._last_pass(rip)
                    self._flush_if_wanted()
                    self._forget()
                    return
                if self._fault is not None or status:
                    # The exception comes again, and is dealt with, when the vCPU runs on. If no
                    # access crossed into MMIO, the CPU's walk met a page table there: let it.
                    self._walking = truthful
                    self._fault = None
                    self.codec.clear_old_exception()
                    self._forget()
                    return
                self._uncount()
                if self._pending is not None:
                    return
                self._same(self._made)
                self._restart = True
        finally:
            self._alone = False
            if not retired and not shadow:
                hidden[0] &= ~_INHIBIT
            words[Shared.INSN_LIMIT] = limit

    def _flush_if_wanted(self) -> None:
        if self._want_flush:
            self._want_flush = False
            self._flush()

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
        self._mode = _DRAIN
        try:
            self._finish()
        finally:
            self._running = False

    def _check_settable(self) -> None:
        if self._pending is not None:
            raise UsageError(
                f"the exit '{self._pending.describe()}' waits for its answer",
                hint="reply to a read before registers are set",
            )
        self._forget()

    @property
    def insns(self) -> int | None:
        return self._words[Shared.INSNS] if self._counting else None

    def host_wrote(self, gpa: int, size: int) -> None:
        if self._running:  # by a device, which is answering an access
            self._want_flush = True
            self._leave_made()
        else:
            self._flush()

    def close(self) -> None:
        self._counted = self._words[Shared.INSNS]
        super().close()
        self._thunks.close()


_M64 = (1 << 64) - 1


class _Paging:
    """The control registers of a page walk, read from the CPU structure when asked."""

    def __init__(self, cr: int, efer: int) -> None:
        self._cr = _view(ctypes.c_uint64, cr, 5)
        self._efer = _view(ctypes.c_uint64, efer)

    @property
    def cr0(self) -> int:
        return self._cr[0]

    @property
    def cr3(self) -> int:
        return self._cr[3]

    @property
    def cr4(self) -> int:
        return self._cr[4]

    @property
    def efer(self) -> int:
        return self._efer[0]


def _view(kind: Any, address: int, count: int = 1) -> Any:
    """`count` words of the CPU structure, as they are at any time."""
    data: Any = memoryview((kind * count).from_address(address)).cast("B")
    return data.cast({ctypes.c_uint64: "Q", ctypes.c_uint32: "I"}[kind])


def _pointer(callback: Any) -> int:
    return ctypes.cast(callback, ctypes.c_void_p).value or 0


@functools.cache
def native_usable() -> tuple[bool, str]:
    """(whether the native way can be used here, why). Runs once a process; never raises."""
    if sys.platform != "linux" or sys.maxsize < 1 << 32 or _machine() != "x86_64":
        return False, "the thunks are for x86-64 Linux"
    usable, reason = context_usable()
    if not usable:
        return False, reason
    try:
        recursion_offset()
    except NotSupported as error:
        return False, error.message
    from .unicorn_selftest import self_test

    return self_test()


def _machine() -> str:
    import platform

    return platform.machine()
