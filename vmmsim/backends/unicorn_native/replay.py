"""Accesses of the native way: short callbacks, and a log for what is executed again.

What the accesses of the executing instruction have answered so far is in a log. When the
engine was left in the middle of the instruction and it is executed again, they are
answered from the log, so that each is made once.

That an access belongs to the same execution of an instruction as the one before it is
known by the number of blocks entered and RIP: within one entry of a block no instruction
is executed twice. The thunks count the accesses of an execution (`Shared.INDEX`).
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from unicorn import unicorn_const as uc_const
from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import Uc, uclib

from ...cpu.vectors import ERROR_CODE_VECTORS
from ...errors import NotSupported
from ...exits import Access, MmioRead, MmioWrite, PortRead, PortWrite
from ..unicorn_cut import MASK, STRING, AccessCutter
from ..unicorn_glance import GLANCE_SIZE, HOOKED_SIZE
from ..unicorn_traps import VMCB
from ..unicorn_vcpu import DB, INTERCEPTS, PAGE, PF, check
from .flags import LazyFlags
from .offsets import engine_offsets
from .thunks import (
    FLAG_CROSSES,
    FLAG_INDEX,
    FLAG_TAIL,
    FLAG_UNUSUAL,
    FLAG_USER,
    Shared,
    Thunks,
)
from .tlb import StoreGuard

if TYPE_CHECKING:
    from ..base import AccessHandler
    from ..unicorn import UnicornVm

__all__ = ["DRAIN", "INLINE", "ONE", "ReplayCutter"]

_CODE64 = 1 << 15  # HF_CS64
#: IN and OUT.
_PORT_OPCODES = b"\xe4\xe5\xe6\xe7\xec\xed\xee\xef"
_COMPARING = b"\xa6\xa7\xae\xaf"
_M64 = (1 << 64) - 1
#: Behind the VMCB: bytes that are no instruction.
_NOTHING = VMCB + 0x1000
#: In Shared.DELIVERING: each exception comes to Python, which mends the flags first.
_ALWAYS = 2
#: Added to a vector: the trap thunk asks for the fault's flags to be mended.
_FAULT = 0x10000
#: Instead of a vector: a #PF of a fetch may have come too early. The answer tells whether it has.
_FETCHED = 0x30000
#: Instead of a vector: QEMU has loaded CS or SS from a descriptor that is not marked as accessed.
_DELIVERED = 0x20000

_TLB_FLUSH = uc_const.UC_CTL_IO_WRITE << 30 | uc_const.UC_CTL_TLB_FLUSH
_BLOCKS = Shared.BLOCKS  # a module's name is found faster than a class's attribute

# What the thunks call: see `thunks`.
_INT, _U32, _U64 = ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64
_IN = ctypes.CFUNCTYPE(_U32, _U32, _INT, _INT)
_OUT = ctypes.CFUNCTYPE(None, _U32, _INT, _U32, _INT)
_READ = ctypes.CFUNCTYPE(_U64, _U64, _INT, _INT)
_WRITE = ctypes.CFUNCTYPE(None, _U64, _INT, _U64, _INT)
_PIECE = ctypes.CFUNCTYPE(_U64, _U64, _INT)
# What Python calls. _STOP keeps the GIL: it takes nanoseconds.
_START = ctypes.CFUNCTYPE(_INT)
_STOP = ctypes.PYFUNCTYPE(None)
_TRUTH = ctypes.CFUNCTYPE(None, ctypes.c_void_p, _INT, _U64, _INT, _U64)
_TRAP = ctypes.CFUNCTYPE(_INT, _U32)
_INVALID = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)

#: How a run treats an access: a handler answers it; the caller of `run` does; writes are
#: queued, since the caller only wants the instruction finished.
INLINE, ONE, DRAIN = "inline", "one", "drain"


class ReplayCutter(AccessCutter):
    """A vCPU driven by thunks whose accesses are logged. `NativeVcpu` adds the running."""

    OWN = (*AccessCutter.OWN, "_log", "_log_token", "_restart", "_made")

    def __init__(self, vm: UnicornVm) -> None:
        super().__init__(vm)
        self._mode = INLINE
        #: What the accesses of the instruction at hand have answered, and which it is.
        self._log: list[int] = []
        self._log_token = (-1, -1)
        #: The next `emu_start` executes again the instruction that the log is of.
        self._restart = False
        #: Whether the access at which the engine was left is made.
        self._made = False
        self._want_truth = self._want_watch = False
        #: How many accesses free code may still make before it is watched.
        self._free_accesses = 0
        #: An instruction is being executed alone.
        self._alone = False
        self._truthful = False
        #: The next instruction faults because a page table is in MMIO.
        self._walking = False
        self._counting = vm.options.count_insns or vm.options.vcpus > 1
        self._counted = 0
        self._truth = _TRUTH(self._on_truth)

    # -- setting up

    def open(self, uc: Uc) -> None:
        super().open(uc)
        engine, offsets = self._address or 0, engine_offsets()
        self._thunks = Thunks(engine, self.codec.layout, offsets.recursion, self._make_callbacks())
        self._recursion = _view(ctypes.c_uint32, engine + offsets.recursion)
        self._no_exit = memoryview(ctypes.c_uint8.from_address(engine + offsets.no_exit)).cast("B")
        self._words = self._thunks.words
        self._start_engine = _START(self._thunks.at["start"])
        self._stop_engine = _STOP(self._thunks.at["stop"])
        self._tail_hook: Any = None
        self._watched = False
        self._guard: StoreGuard | None = None
        self._watch(True)
        self._find_cpu()
        self._guard_stores()
        self._traps.fetches.by_load = self._by_load
        self._traps.fetches.old_cr2 = self._old_cr2
        self._install()
        if self._counting:
            self._counting = False
            self._count()
            self._words[Shared.INSNS] = self._counted
        else:
            self._watch(False)

    def _find_cpu(self) -> None:
        """Learn where the CPU structure is, from a run that ends before its first instruction."""
        words = self._words
        words[Shared.LIMIT] = words[Shared.END] = 0
        self._translated = True
        # There the permission map is, all ones, which is no instruction: a block with nothing in it.
        # One of hundreds of instructions would cost 0.3 ms, and the engine keeps what it took.
        check(uclib.uc_emu_start(self._handle, _NOTHING, 0, 0, 0), "start")
        address = words[Shared.ENV]
        layout = self.codec.layout
        if not address:
            raise NotSupported("Unicorn's block hook was not called")
        words[Shared.CPU] = ctypes.c_uint64.from_address((self._address or 0) + engine_offsets().cpu).value
        self._rip = _view(ctypes.c_uint64, address + layout.registers + 16 * 8)
        self._hidden = _view(ctypes.c_uint32, address + layout.flags + 40)
        begin = address + layout.registers
        self._glances = [_bytes(begin, size).tobytes for size in (GLANCE_SIZE, HOOKED_SIZE)]
        self.glance = self._glances[0]  # type: ignore[method-assign]
        self._flags = _view(ctypes.c_uint64, address + layout.flags, 5)
        self._lazy = LazyFlags(self._thunks, self._flags, self._rip, self._code, self._first_byte)
        self._cs_base = _view(ctypes.c_uint64, address + layout.segments + 24 + 8)
        self._paging = _Paging(address + layout.cr, address + layout.efer)
        self._engine_halted = _view(ctypes.c_uint32, address + engine_offsets().halted)

    def _guard_stores(self) -> None:
        """Make stores quick where no code is. `_NOTHING` is what was executed just now."""
        end = max((region.end for region in self.vm.regions), default=0)
        guard = StoreGuard((end + PAGE - 1) // PAGE)
        if guard.install(self._thunks, _NOTHING):
            self._guard = guard
            self._flush()

    def _flush(self) -> None:
        super()._flush()
        if self._guard is not None:
            check(uclib.uc_ctl(self._handle, _TLB_FLUSH), "flush the TLB")
            self._guard.forget()

    def _by_load(self) -> bool:
        """Whether the last miss of the TLB is known to be no fetch's."""
        return self._guard is not None and self._words[Shared.WALKED] != 0

    def _old_cr2(self) -> int | None:
        return self._words[Shared.OLD_CR2] if self._guard is not None else None

    def _watch(self, watched: bool) -> None:
        """Change between running watched, with the block hook, and running free, without.

        Free code has no check for a stop behind loads and stores either: it is only stopped
        between two blocks, from any thread, and costs nothing. But only watched code can be
        left in an access and go on exactly, so at the first access it is watched again."""
        if watched == self._watched:
            return
        if watched:
            self._block_hook = self._hook_thunk("block", uc_const.UC_HOOK_BLOCK)
        else:
            self._unhook(self._block_hook)
        self._no_exit[0] = not watched
        self._watched = watched
        self._flush()

    def _make_callbacks(self) -> dict[str, int]:
        """The Python callbacks of the thunks: their addresses."""
        on_in, on_out, on_read, on_write = self._callbacks()
        callbacks = {
            "in": on_in,
            "out": on_out,
            "read": on_read,
            "write": on_write,
            "trap": _TRAP(self._on_native_trap),
            "piece": _PIECE(self._on_piece),
        }
        self._keep.extend(callbacks.values())
        return {name: _pointer(callback) for name, callback in callbacks.items()}

    def _install(self) -> None:
        for name, kind, insn in (
            ("in", uc_const.UC_HOOK_INSN, x86_const.UC_X86_INS_IN),
            ("out", uc_const.UC_HOOK_INSN, x86_const.UC_X86_INS_OUT),
            ("read", uc_const.UC_HOOK_MEM_READ_PROT, None),
            ("write", uc_const.UC_HOOK_MEM_WRITE_PROT, None),
            ("trap", uc_const.UC_HOOK_INTR, None),
        ):
            self._hook_thunk(name, kind, insn)
        self._hook(uc_const.UC_HOOK_INSN_INVALID, _INVALID(self._on_invalid))

    def _hook_thunk(self, name: str, kind: int, insn: int | None = None) -> Any:
        """Install a thunk as a hook."""
        return self._hook(kind, self._thunks.at[name], insn, user=self._thunks.shared)

    def _callbacks(self) -> tuple[Any, Any, Any, Any]:
        """The four callbacks for accesses, in their short form: the first access of an
        instruction, with nothing unusual about it. This is the path of most accesses of
        `run_inline`; Shared.ANSWER is what the long form needs to know of it. The handler's
        functions are variables of the closures: they are found faster there."""
        me = self
        port_read: Any = None
        port_write: Any = None
        mmio_read: Any = None
        mmio_write: Any = None

        def aim(handler: AccessHandler) -> None:
            nonlocal port_read, port_write, mmio_read, mmio_write
            port_read, port_write = handler.port_read, handler.port_write
            mmio_read, mmio_write = handler.mmio_read, handler.mmio_write

        self._aim = aim

        def on_in(port: int, size: int, flags: int) -> int:
            if flags:
                if flags & FLAG_USER and me._port_denied(port, size):
                    return 0
                if not me._watched:
                    return me._free_access(PortRead, port, size, 0)
                return me._access(PortRead, port, size, 0, flags & FLAG_INDEX)
            try:
                return port_read(port, size)
            except BaseException as error:
                return me._failed(error, size)

        def on_out(port: int, size: int, value: int, flags: int) -> None:
            if flags:
                if flags & FLAG_USER and me._port_denied(port, size):
                    return
                if not me._watched:
                    me._free_access(PortWrite, port, size, value)
                    return
                me._access(PortWrite, port, size, value, flags & FLAG_INDEX)
                return
            try:
                port_write(port, size, value)
            except BaseException as error:
                me._failed(error, 0)

        def on_read(gpa: int, size: int, flags: int) -> int:
            if flags:
                if not me._watched:
                    return me._be_watched()
                if flags & FLAG_CROSSES:
                    return me._cut_read(gpa, size)
                return me._access(MmioRead, gpa, size, 0, flags & FLAG_INDEX)
            try:
                return mmio_read(gpa, size)
            except BaseException as error:
                return me._failed(error, size)

        def on_write(gpa: int, size: int, value: int, flags: int) -> None:
            if flags:
                if not me._watched:
                    me._want_watch = True
                    me._leave_store(size)
                elif not flags & FLAG_UNUSUAL:
                    me._access(MmioWrite, gpa, size, value, flags & FLAG_INDEX)
                elif not flags & FLAG_TAIL:
                    me._cut_write(gpa, size, value)
                elif not me._cut_tail(gpa) and not me._truthful:
                    me._ask_for_truth(made=False)
                return
            try:
                mmio_write(gpa, size, value)
            except BaseException as error:
                me._failed(error, 0)

        return _IN(on_in), _OUT(on_out), _READ(on_read), _WRITE(on_write)

    def _use(self, handler: AccessHandler) -> None:
        super()._use(handler)
        self._aim(handler)

    def map_hole(self, gpa: int, size: int) -> None:
        """Make a range MMIO, with no rights: so each access is shown whole before it is cut."""
        hole = (ctypes.c_uint64 * 2)(gpa, self._thunks.shared)
        self._keep.append(hole)
        address, piece = ctypes.addressof(hole), self._thunks.at["piece"]
        check(uclib.uc_mmio_map(self._handle, gpa, size, piece, address, None, None), "map MMIO")
        check(uclib.uc_mem_protect(self._handle, gpa, size, uc_const.UC_PROT_NONE), "protect MMIO")

    def _count(self) -> None:
        """Count instructions from now on: a hook before each. It stays: taking it away and
        putting it back would throw away all translated code each time."""
        if not self._counting:
            self._watch(True)
            self._counting = self._traps.hooked = True
            self.glance = self._glances[1]  # type: ignore[method-assign]
            self._words[Shared.DELIVERING] = _ALWAYS
            self._count_hook = self._hook_thunk("insn", uc_const.UC_HOOK_CODE)
            self._flush()

    def _count_no_more(self) -> None:
        self._counts_for_steps = self._counting = self._traps.hooked = False
        self.glance = self._glances[0]  # type: ignore[method-assign]
        self._words[Shared.DELIVERING] = 0
        self._unhook(self._count_hook)
        self._flush()

    # -- accesses, the long form

    def _token(self) -> tuple[int, int]:
        return self._words[Shared.BLOCKS], self._rip[0]

    def _same(self, made: bool = False, index: int = -1) -> int:
        """Make the log that of the instruction that is executing now. Returns the index of its
        last access, which is in the log already if it is `made`; -1 if it has made none.
        `index` is given where the thunk has told it."""
        words, log = self._words, self._log
        token = words[_BLOCKS], self._rip[0]
        if self._restart:
            self._restart = False
            self._log_token = token
        elif token != self._log_token:
            log.clear()
            self._log_token = token
            if self._mode is INLINE:
                words[Shared.SPECIAL] = 0
        if index < 0:
            if token != (words[Shared.TOKEN_BLOCKS], words[Shared.TOKEN_RIP]):
                return -1
            index = words[Shared.INDEX]
        if index + made > len(log):  # its first access was made in the short form
            log.append(words[Shared.ANSWER])
        return index

    def _failed(self, error: BaseException, size: int) -> int:
        """A device raised: the access counts as made, a read gives all ones."""
        if self._error is None:
            self._error = error
        self._stop_soon()
        return MASK[size]

    def _access(self, cls: type[Access], address: int, size: int, value: int, index: int = -1) -> int:
        index = self._same(False, index)
        log = self._log
        if index < len(log):
            return log[index]
        if self._mode is INLINE:
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
        if self._mode is DRAIN and cls.is_write:
            self._queue.append(exit)
            log.append(0)
            return 0
        self._pending = exit
        self._unseen = self._mode is DRAIN
        if cls is MmioWrite and (size == 1 or index):
            self._leave_store(size)
        else:
            self._lazy.plain = cls is not MmioRead
            self._stop_engine()
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
        if not self._watched:
            if self._recursion[0] and self._tail_hook is None:
                # There is no check behind this load: a hook behind it leaves the engine.
                self._be_watched()
                self._tail_hook = self._hook_thunk("leave", uc_const.UC_HOOK_MEM_READ_AFTER)
            return MASK[size]
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

    def _free_access(self, cls: type[Access], port: int, size: int, value: int) -> int:
        """IN or OUT in free code. A few are made there: a timer's handler must not cost a guest its
        freedom. If the engine is left in it, it is in the log, and the rest of the instruction is
        executed in watched code. INS and OUTS access memory, too, and are not for free code."""
        words = self._words
        words[Shared.MADE], words[Shared.INDEX] = 1, 0
        if not self._free_accesses or self._opcode()[1] not in _PORT_OPCODES:
            words[Shared.MADE] = 0
            return self._be_watched()
        self._free_accesses -= 1
        try:
            if cls is PortRead:
                return self._port_read(port, size)
            self._port_write(port, size, value)
        except BaseException as error:
            return self._failed(error, size)
        return 0

    def _be_watched(self) -> int:
        """An access in free code: leave before it is made, to meet it again in watched code."""
        self._want_watch = True
        self._stop_engine()
        return 0

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

    def _leave(self) -> None:
        self._stop_engine()

    def _stop_behind(self) -> None:
        """Leave in the access, which counts as made. An instruction that is executed alone ends
        by itself, and must: its store may have reached RAM."""
        self._made = True
        if self._executing and not self._alone:
            self._leaving = True
            self._leave()

    def _look_soon(self) -> None:
        """Where no clock counts it is enough to stop at the next block."""
        if self.vm.options.exact_interrupts or self._in_trap:
            self._stop_soon()
        elif self._words[Shared.MADE]:
            self._words[Shared.BEHIND] = 1
        else:
            self._words[Shared.LIMIT] = self._words[Shared.END] = 0
            if not self._watched:
                self._stop_engine()

    def _trapped(self, number: int) -> str | None:
        """An intercept; or QEMU's own delivery met a fault, and nothing of the guest has changed:
        then the exception is delivered anew, by what knows such cases exactly."""
        words = self._words
        if not words[Shared.DELIVERING]:
            return super()._trapped(number)
        if words[Shared.DELIVERING] == _ALWAYS:
            if number == PF and self._end_before_fetch():
                return None
            result = super()._trapped(number)
            if number < INTERCEPTS:
                words[Shared.TRAPS] += 1
                if self._traps.was_fault:  # it has not retired
                    words[Shared.INSNS] = words[Shared.INSNS] - 1 & _M64
            return result
        words[Shared.DELIVERING] = 0
        words[Shared.TRAPS] += 1
        vector = words[Shared.VECTOR]
        self._traps.forget_int()
        if words[Shared.SOFT]:
            return self._traps.deliver(vector, kind="soft")
        error = words[Shared.ERROR] if vector in ERROR_CODE_VECTORS else None
        return self._traps.deliver(vector, error=error, kind="trap" if vector == DB else "fault")

    def _end_before_fetch(self) -> bool:
        """In the hook for a #PF: end the run, if it is to end here, and the fault is of a fetch."""
        words = self._words
        ended = words[Shared.BYTES] >= words[Shared.END]
        spent = self._counting and words[Shared.INSNS] >= words[Shared.INSN_LIMIT]
        if not (ended or spent) or not self._traps.fetches.forget():
            return False
        words[Shared.REASON] = 2 if spent else 1
        self._leave()
        return True

    def _leave_store(self, size: int) -> None:
        if not self._counting:
            self._lazy.leaving(size)
        self._stop_engine()

    def _on_native_trap(self, number: int) -> int:
        """The hook for an exception. From _FAULT on QEMU's own delivery follows, or has been."""
        if number < _FAULT:
            return self._on_trap(number)
        try:
            if number == _FETCHED:
                if self._end_before_fetch():
                    return 1
                self._traps.cpu.save()
                early = self._traps.fetches.again(hooked=False)
                if early:
                    self._give_way()
                return early
            if number == _DELIVERED:
                self._traps.mark_loaded()
            elif number != _FAULT + PF or self._guard is None or self._by_load():
                self._lazy.faulted()
        except BaseException as error:
            self._error = error
            self._at_boundary = True
            self._leave()
        return 1

    def _on_invalid(self, uc: int) -> bool:
        words = self._words
        words[Shared.INSNS] = words[Shared.INSNS] - 1 & _M64
        words[Shared.TRAPS] += 1
        return super()._on_invalid(uc)

    def _forget(self) -> None:
        """No instruction is in flight."""
        self._log.clear()
        self._log_token = (-1, -1)
        self._restart = False


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
    return _bytes(address, count * ctypes.sizeof(kind)).cast(
        {ctypes.c_uint64: "Q", ctypes.c_uint32: "I"}[kind]
    )


def _bytes(address: int, size: int) -> Any:
    return memoryview((ctypes.c_uint8 * size).from_address(address)).cast("B")


def _pointer(callback: Any) -> int:
    return ctypes.cast(callback, ctypes.c_void_p).value or 0
