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
from collections import deque
from typing import TYPE_CHECKING, Any

from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.unicorn import Uc, uclib

from ..errors import NotSupported, UsageError
from ..exits import (
    Access,
    BudgetSpent,
    Cancelled,
    Exit,
    Halt,
    MmioRead,
    MmioWrite,
    PortRead,
    PortWrite,
    ReadAccess,
)
from ..cpu.paging import linear_to_gpa
from .unicorn_context import ContextCodec, context_usable
from .unicorn_thunks import Shared, Thunks
from .unicorn_vcpu import PAGE, UnicornVcpu, check, quick

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
_INS = b"\x6c\x6d"
_PREFIXES = b"\xf2\xf3\x66\x67\x26\x2e\x36\x3e\x64\x65\xf0"
_MASK = [(1 << 8 * n) - 1 for n in range(9)]

_IN = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int)
_OUT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32)
_READ = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int)
_WRITE = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_uint64
)
_PIECE = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint)
_TRUTH = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_uint64
)

# How a run treats an access.
_INLINE, _ONE, _DRAIN = "inline", "one", "drain"


class _Crossing:
    """An access that runs over the end of a page: what is left for the second page."""

    __slots__ = ("is_write", "rest", "token", "value")

    def __init__(self, token: tuple[int, int], is_write: bool, rest: int, value: int) -> None:
        self.token = token
        self.is_write = is_write
        self.rest = rest
        self.value = value


class NativeVcpu(UnicornVcpu):
    """See the module. x86-64 Linux only."""

    def __init__(self, vm: UnicornVm, uc: Uc) -> None:
        self._running = False
        super().__init__(vm, uc)
        self.codec = ContextCodec(uc)
        self._thunks = Thunks()
        self._words = self._thunks.words
        self._piece_thunk = self._thunks.make("piece")
        self._find_cpu()
        self._handler: AccessHandler | None = None
        self._mode = _INLINE
        #: Anything but the plain way is going on: the callbacks then take their long form.
        self._special = False
        self._log: list[int] = []
        self._log_token = (-1, -1)
        self._cursor = 0
        self._restart = False
        self._pending: Access | None = None
        self._queue: deque[Access] = deque()
        self._stop: Exit | None = None
        self._error: BaseException | None = None
        self._want_truth = self._want_flush = False
        self._truthful = False
        self._crossing: _Crossing | None = None
        self._insb: tuple[int, int] | None = None
        self._skip = 0
        self._counting = False
        self._truth = _TRUTH(self._on_truth)
        self._install()
        if vm.options.count_insns:
            self._count()
        self.codec.write_state(_reset_state())

    # -- setting up

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
            (uc_const.UC_HOOK_INSN, on_in, _x86("IN")),
            (uc_const.UC_HOOK_INSN, on_out, _x86("OUT")),
            (uc_const.UC_HOOK_MEM_READ_PROT, on_read, None),
            (uc_const.UC_HOOK_MEM_WRITE_PROT, on_write, None),
        )
        for kind, callback, insn in kinds:
            self._keep.append(callback)
            self._hook(kind, self._thunks.make("call", _pointer(callback)), insn)
        piece = _PIECE(self._on_piece)
        self._keep.append(piece)
        self._slow_piece = self._thunks.make("call", _pointer(piece))

    def _callbacks(self) -> tuple[Any, Any, Any, Any]:
        """The four callbacks for accesses. The plain way is written out in each: this is the
        path of every access of `run_inline`."""
        me = self
        words, rip, log = self._words, self._rip, self._log
        read, write = self._cut_read, self._cut_write

        def on_in(_uc: int, port: int, size: int) -> int:
            if me._special:
                return me._access(PortRead, port, size, 0)
            try:
                value = me._port_read(port, size)
            except BaseException as error:
                return me._failed(error, size)
            if me._special:
                me._note(value)
            return value

        def on_out(_uc: int, port: int, size: int, value: int) -> None:
            if me._special:
                me._access(PortWrite, port, size, value)
                return
            try:
                me._port_write(port, size, value)
            except BaseException as error:
                me._failed(error, 0)
            if me._special:
                me._note(0)

        def on_read(_uc: int, _kind: int, gpa: int, size: int) -> bool:
            if me._special or (gpa & 4095) + size > 4096:
                read(gpa, size)
                return True
            token = (words[2], rip[0])
            if token != me._log_token:
                log.clear()
                me._log_token = token
            try:
                words[9] = value = me._mmio_read(gpa, size)
            except BaseException as error:
                me._failed(error, size)
                return True
            log.append(value)
            words[7] = gpa - 8 & _M64
            return True

        def on_write(_uc: int, _kind: int, gpa: int, size: int, value: int) -> bool:
            if me._skip:
                me._skip -= 1
                return True
            value &= _MASK[size]
            if me._special or not value or not gpa & 4095 or (gpa & 4095) + size > 4096:
                write(gpa, size, value)
                return True
            token = (words[2], rip[0])
            if token != me._log_token:
                log.clear()
                me._log_token = token
            log.append(0)
            try:
                me._mmio_write(gpa, size, value)
            except BaseException as error:
                log.pop()
                me._failed(error, 0)
            if gpa & size - 1:
                me._skip = size
            return True

        return _IN(on_in), _OUT(on_out), _READ(on_read), _WRITE(on_write)

    def map_hole(self, gpa: int, size: int) -> None:
        """Make a range MMIO, with no rights: so each access is shown whole before it is cut."""
        hole = (ctypes.c_uint64 * 3)(gpa, self._thunks.shared, self._slow_piece)
        self._keep.append(hole)
        address = ctypes.addressof(hole)
        check(
            uclib.uc_mmio_map(self._handle, gpa, size, self._piece_thunk, address, None, None), "map MMIO"
        )
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

    def _same(self) -> None:
        """Drop the log unless it is of the instruction that is executing now."""
        token = self._token()
        if self._restart:
            self._restart = False
            self._log_token = token
            self._cursor = 0
        elif token != self._log_token:
            self._log.clear()
            self._log_token = token
            self._cursor = 0
            self._special = self._mode is not _INLINE

    def _note(self, value: int) -> None:
        """After the plain way of a port access whose device asked to stop: log it."""
        self._same()
        self._log.append(value)

    def _failed(self, error: BaseException, size: int) -> int:
        """A device raised: the access counts as made, a read gives all ones."""
        self._same()
        self._error = error
        value = _MASK[size]
        self._log.append(value)
        self._special = True
        self._leave()
        return value

    def _access(self, cls: type[Access], address: int, size: int, value: int) -> int:
        self._same()
        log = self._log
        if self._cursor < len(log):
            answer = log[self._cursor]
            self._cursor += 1
            return answer
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
                self._error = error
                answer = _MASK[size]
                self._leave()
            log.append(answer)
            self._cursor += 1
            return answer
        exit = cls(address, size, value) if cls.is_write else cls(address, size)  # type: ignore[call-arg]
        if self._mode is _DRAIN and cls.is_write:
            self._queue.append(exit)
            log.append(0)
            self._cursor += 1
            return 0
        self._pending = exit
        self._leave()
        return 0

    def _cut_read(self, gpa: int, size: int) -> None:
        words = self._words
        first = min(size, PAGE - gpa % PAGE)
        value = self._access(MmioRead, gpa, first, 0)
        if first == size:
            words[Shared.WINDOW] = gpa - 8 & _M64
            words[Shared.DATA + 1] = value
            return
        # The window ends with the page, so that the second page comes to _on_piece.
        self._crossing = _Crossing(self._token(), False, size - first, 0)
        words[Shared.WINDOW] = gpa + first - 24 & _M64
        words[Shared.DATA + 2] = value << 8 * (8 - first) & _M64

    def _on_piece(self, _uc: int, gpa: int, size: int) -> int:
        """A load that no protection hook announced: the second page of one that crosses, or
        the CPU's own walk through page tables, which finds all ones in a hole."""
        if gpa % PAGE == 0:
            crossing, self._crossing = self._crossing, None
            if crossing is not None and not crossing.is_write and crossing.token == self._token():
                value = self._access(MmioRead, gpa, crossing.rest, 0)
                self._words[Shared.WINDOW] = gpa - 8 & _M64
                self._words[Shared.DATA + 1] = value
                return value & _MASK[size]
            if not self._truthful:
                self._ask_for_truth()
        return _MASK[size]

    def _cut_write(self, gpa: int, size: int, value: int) -> None:
        if size == 1 and gpa % PAGE == 0:
            crossing, self._crossing = self._crossing, None
            if crossing is not None and crossing.is_write and crossing.token == self._token():
                self._skip = crossing.rest - 1
                self._access(MmioWrite, gpa, crossing.rest, crossing.value)
                return
            if not self._truthful:
                self._ask_for_truth()
                return
        first = min(size, PAGE - gpa % PAGE)
        self._skip = first if first < size or gpa & size - 1 else 0
        if first < size:
            self._crossing = _Crossing(self._token(), True, size - first, value >> 8 * first)
        if value == 0 and self._insb != self._token() and self._is_ins():
            # INS first stores 0, to see whether it may, then reads the port.
            self._same()
            self._insb = self._token()
            self._special = True
            self._crossing = None
            return
        self._access(MmioWrite, gpa, first, value & _MASK[first])

    def _is_ins(self) -> bool:
        """Whether the instruction at RIP is INSB, INSW or INSD (SDM vol. 2A)."""
        linear = self._rip[0]
        if not self._hidden[0] & _CODE64:
            linear = (linear + self._cs_base[0]) & 0xFFFFFFFF
        for at in range(linear, linear + 15):
            gpa = linear_to_gpa(self._paging, at, self.vm.read_physical)  # type: ignore[arg-type]
            if gpa is None or not self.vm.holds(gpa, 1):
                return False
            byte = self.vm.read_physical(gpa, 1)[0]
            if byte in _INS:
                return True
            if byte not in _PREFIXES and not (self._hidden[0] & _CODE64 and byte >> 4 == 4):
                return False
        return False

    def _ask_for_truth(self) -> None:
        """An access came without its true size: begin the instruction anew, with hooks on all
        of memory that tell where an access started."""
        self._same()
        self._want_truth = True
        self._leave()

    def _on_truth(self, _uc: int, kind: int, gpa: int, size: int, value: int) -> None:
        first = PAGE - gpa % PAGE
        if first < size and self.vm.holds(gpa, 1):
            is_write = kind == uc_const.UC_MEM_WRITE
            rest = (value & _MASK[size]) >> 8 * first
            self._crossing = _Crossing(self._token(), is_write, size - first, rest)

    # -- running

    def _leave(self) -> None:
        quick.uc_emu_stop(self._address)

    def _kick(self) -> None:
        self._words[Shared.LIMIT] = 0

    def stop_here(self, exit: Exit) -> None:
        self._stop = exit
        self._special = True
        self._leave()

    def run_inline(self, handler: AccessHandler, *, max_insns: int | None = None) -> Exit:
        self._port_read = handler.port_read
        self._port_write = handler.port_write
        self._mmio_read = handler.mmio_read
        self._mmio_write = handler.mmio_write
        self._take_answer()
        while self._queue:
            self._give(self._queue.popleft())
        return self._run(_INLINE, max_insns)

    def _give(self, exit: Access) -> None:
        """Show the handler a write that was made while state was looked at."""
        write = self._port_write if exit.space == "port" else self._mmio_write
        write(exit.address, exit.size, exit.value)  # type: ignore[attr-defined]

    def run(self, *, max_insns: int | None = None) -> Exit:
        if self._queue:
            return self._queue.popleft()
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
                self._special = mode is not _INLINE or self._restart
                words[Shared.LIMIT] = words[Shared.BYTES] + _SLICE
                if self._cancelled:  # it was set after the test above, before the limit
                    continue
                status = self._start()
                exit = self._ended(status)
                if exit is not None:
                    if isinstance(exit, BudgetSpent):
                        exit.amount = max_insns or 0
                    return exit
        finally:
            self._running = False
            words[Shared.INSN_LIMIT] = _FOREVER

    def _start(self) -> int:
        self._skip = 0
        self._crossing = self._insb = None
        self._words[Shared.REASON] = 0
        return uclib.uc_emu_start(self._handle, self._rip[0], 0, 0, 0)

    def _ended(self, status: int) -> Exit | None:
        """What the end of an `emu_start` is; None to go on."""
        if self._pending is not None:
            self._uncount()
            return self._pending
        if self._want_truth or self._want_flush or self._stop is not None or self._error is not None:
            self._uncount()
            self._finish()
            if self._error is not None:
                error, self._error, self._stop = self._error, None, None
                raise error
            if self._stop is not None:
                exit, self._stop = self._stop, None
                return exit
            return self._pending
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
        retired = False
        self._special = True
        self._restart = True
        try:
            while True:
                if self._want_flush:
                    self._want_flush = False
                    self._flush()
                hooks = self._tell_truth() if self._want_truth else []
                began = words[Shared.BYTES]
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
                    self._forget()
                    return
                if self._fault is not None or status:
                    # The exception comes again, and is dealt with, when the vCPU runs on.
                    self._fault = None
                    self.codec.clear_old_exception()
                    self._forget()
                    return
                self._uncount()
                if self._pending is not None:
                    return
                self._restart = True
        finally:
            if not retired and not shadow:
                hidden[0] &= ~_INHIBIT
            words[Shared.INSN_LIMIT] = limit

    def _tell_truth(self) -> list[Any]:
        self._want_truth = False
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
            self._special = True
            self._leave()
        else:
            self._flush()

    def close(self) -> None:
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
    code = {ctypes.c_uint64: "Q", ctypes.c_uint32: "I"}[kind]
    return memoryview((kind * count).from_address(address)).cast("B").cast(code)


def _pointer(callback: Any) -> int:
    return ctypes.cast(callback, ctypes.c_void_p).value or 0


def _x86(name: str) -> int:
    from unicorn import x86_const

    return getattr(x86_const, f"UC_X86_INS_{name}")


def _reset_state() -> Any:
    from ..cpu.state import CpuState

    return CpuState()


@functools.cache
def native_usable() -> tuple[bool, str]:
    """(whether the native way can be used here, why). Runs once a process; never raises."""
    if sys.platform != "linux" or sys.maxsize < 1 << 32 or _machine() != "x86_64":
        return False, "the thunks are for x86-64 Linux"
    usable, reason = context_usable()
    if not usable:
        return False, reason
    from .unicorn_selftest import self_test

    return self_test()


def _machine() -> str:
    import platform

    return platform.machine()
