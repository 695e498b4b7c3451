"""Accesses of the portable way: each is made in its callback, once.

For `run`, which gives each access to the caller, the engine runs in a thread of its own, whose
callback waits until the caller has answered: nothing is ever executed twice.
"""

from __future__ import annotations

import ctypes
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from unicorn import unicorn_const as uc_const
from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import Uc, uclib

from ...exits import Access, MmioRead, PortRead, PortWrite
from ..unicorn_cut import MASK, AccessCutter
from ..unicorn_registers import quick
from ..unicorn_vcpu import FOREVER, PAGE, check

if TYPE_CHECKING:
    from ...cpu.state import Registers
    from ..unicorn import UnicornVm

__all__ = ["DRAIN", "INLINE", "ONE", "PortableAccesses"]

#: For a hook that is never called.
_NOWHERE = (1 << 64) - 1
#: How far an access reaches beyond its first byte.
_REACH = 7
_CODE64 = 1 << 15

_INT, _U32, _U64, _PTR = ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
INSN = ctypes.CFUNCTYPE(None)
_INTR = ctypes.CFUNCTYPE(None, _PTR, _U32)
_INVALID = ctypes.CFUNCTYPE(ctypes.c_bool, _PTR)
_IN = ctypes.CFUNCTYPE(_U32, _PTR, _U32, _INT)
_OUT = ctypes.CFUNCTYPE(None, _PTR, _U32, _INT, _U32)
_READ = ctypes.CFUNCTYPE(ctypes.c_bool, _PTR, _INT, _U64, _INT)
_WRITE = ctypes.CFUNCTYPE(ctypes.c_bool, _PTR, _INT, _U64, _INT, _U64)
_PIECE = ctypes.CFUNCTYPE(_U64, _PTR, _U64, _INT)
_TRUTH = ctypes.CFUNCTYPE(None, _PTR, _INT, _U64, _INT, _U64)

#: How a run treats an access: a handler answers it; the caller of `run` does; the instruction is
#: only to be finished, so writes are queued.
INLINE, ONE, DRAIN = "inline", "one", "drain"


class _Paging(NamedTuple):
    """The control registers of a page walk."""

    cr0: int
    cr3: int
    cr4: int
    efer: int


class PortableAccesses(AccessCutter):
    """A vCPU whose callbacks answer at once, or wait for the caller's answer."""

    def __init__(self, vm: UnicornVm) -> None:
        super().__init__(vm)
        self._mode = INLINE
        self._counting = vm.options.count_insns or vm.options.vcpus > 1
        #: Instructions begun, and at which of them the run ends; only while counting.
        self._begun = 0
        self._limit = FOREVER
        #: A hook for all instructions, added to end the run before the next.
        self._stopper: Any = None
        #: The registers before an IN or OUT that was denied.
        self._before: Registers | None = None
        #: The instruction that has read MMIO last, since the last exception: a fault there is a load's.
        self._read_at: int | None = None
        #: Which access this is; the accesses of one INS share a number. How many were of MMIO.
        self._serial = self._mmio_accesses = 0
        #: The port and size of the IN or OUT at hand; None in an access to memory.
        self._io: tuple[int, int] | None = None
        self._skip = 0
        self._data = (0, 0, -1, 0)
        #: A run in the engine's thread is under way: it waits in a callback.
        self._parked = False
        self._thread: threading.Thread | None = None
        self._orders: SimpleQueue[int | None] = SimpleQueue()
        self._events: SimpleQueue[Access | int] = SimpleQueue()
        self._truth = _TRUTH(self._on_truth)
        self._truth_hooks: list[Any] = []
        self._forget_pieces()

    def open(self, uc: Uc) -> None:
        super().open(uc)
        self._truth_hooks.clear()  # they are gone with the engine
        cpu = self._traps.cpu
        self._traps.fetches.by_load = lambda: self._read_at == cpu.words[cpu.rip]
        self._hook(uc_const.UC_HOOK_INTR, _INTR(lambda _uc, vector: self._on_trap(vector)))
        self._hook(uc_const.UC_HOOK_INSN_INVALID, _INVALID(self._on_invalid))
        self._hook(uc_const.UC_HOOK_CODE, INSN(lambda: None), bounds=(_NOWHERE, _NOWHERE))
        self._hook(uc_const.UC_HOOK_INSN, _IN(self._on_in), x86_const.UC_X86_INS_IN)
        self._hook(uc_const.UC_HOOK_INSN, _OUT(self._on_out), x86_const.UC_X86_INS_OUT)
        self._hook(uc_const.UC_HOOK_MEM_READ_PROT, _READ(self._on_read))
        self._hook(uc_const.UC_HOOK_MEM_WRITE_PROT, _WRITE(self._on_write))

    def map_hole(self, gpa: int, size: int) -> None:
        callback = _PIECE(lambda _uc, offset, piece: self._on_piece(gpa + offset, piece))
        self._keep.append(callback)
        pointer = ctypes.cast(callback, _PTR)
        check(uclib.uc_mmio_map(self._handle, gpa, size, pointer, None, None, None), "map MMIO")
        check(uclib.uc_mem_protect(self._handle, gpa, size, uc_const.UC_PROT_NONE), "protect MMIO")

    def _tell_truth(self, told: bool) -> None:
        """Have hooks at the last bytes of each region, or have them no more: they tell where an access
        began that ends in a hole. While they are there, each access takes the slow way."""
        kinds = uc_const.UC_HOOK_MEM_READ | uc_const.UC_HOOK_MEM_WRITE
        if told and not self._truth_hooks:
            for region in self.vm.regions:
                bounds = (region.end - _REACH, region.end - 1)
                self._truth_hooks.append(self._hook(kinds, self._truth, bounds=bounds))
                self._keep.pop()  # it is kept anyhow
        elif not told:
            for hook in self._truth_hooks:
                self._unhook(hook)
            self._truth_hooks.clear()

    # -- what the cutter asks

    def _token(self) -> int:
        return self._serial

    def _skip_bytes(self, count: int) -> None:
        self._skip = count

    def _show(self, gpa: int, size: int, value: int, *, to_page_end: bool) -> None:
        end = gpa - gpa % PAGE + PAGE if to_page_end else gpa + size
        self._data = (gpa, value, self._serial, end)

    def _instruction(self) -> tuple[int, bool, Any]:
        cpu = self._traps.cpu
        cpu.save()
        words, cr = cpu.words, cpu.cr
        paging = _Paging(words[cr], words[cr + 3], words[cr + 4], words[cpu.efer])
        return cpu.linear(words[cpu.rip]), bool(words[cpu.hidden] & _CODE64), paging

    def _next_access(self) -> None:
        """Another instruction's access, unless an INS has stored its 0."""
        if self._ins_seen != self._serial:
            self._serial += 1

    # -- callbacks

    def _may(self, port: int, size: int) -> bool:
        """Whether the IN or OUT at hand has a right to its port. If not it is undone behind it:
        Unicorn cannot be left before."""
        if not self.codec.read(x86_const.UC_X86_REG_CS) & 3 or self._port_allowed(port, size):
            return True
        if not self._denied:
            self._denied, self._before = True, self._guest_registers()
            self._stop_behind()
        return False

    def _guest_registers(self) -> Registers:
        return self.codec.read_registers()

    def _on_in(self, _uc: int, port: int, size: int) -> int:
        self._io = port, size
        if not self._may(port, size):
            return 0
        self._next_access()
        return self._access(PortRead, port, size, 0)

    def _on_out(self, _uc: int, port: int, size: int, value: int) -> None:
        self._io = port, size
        if not self._may(port, size):
            return
        self._next_access()
        self._access(PortWrite, port, size, value & MASK[size])

    def _on_read(self, _uc: int, _kind: int, gpa: int, size: int) -> bool:
        self._begin_mmio()
        cpu = self._traps.cpu
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
        self._begin_mmio()
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

    def _begin_mmio(self) -> None:
        """An access to MMIO, or a store to ROM: the words of the CPU are saved."""
        self._io = None
        self._mmio_accesses += 1
        if self._traps.hooked:
            self._traps.cpu.settle_flags()
        else:
            self._traps.cpu.save()

    def _on_piece(self, gpa: int, size: int) -> int:
        """A piece of a load from MMIO, or a page walk of the CPU, which finds all ones there."""
        start, value, token, end = self._data
        crossing = self._second_page(gpa, False)
        if crossing is not None:
            self._begin_mmio()
            start, value = gpa, self._access(MmioRead, gpa, crossing.rest, 0)
            self._show(start, crossing.rest, value, to_page_end=False)
        elif token != self._serial or not start - _REACH <= gpa < end:
            return MASK[size]
        shift = 8 * (gpa - start)
        return (value >> shift if shift >= 0 else value << -shift) & MASK[size]

    def _access(self, cls: type[Access], address: int, size: int, value: int) -> int:
        if self._mode is INLINE:
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
                    self._look_soon()
            return 0
        exit = cls(address, size, value) if cls.is_write else cls(address, size)  # type: ignore[call-arg]
        if self._mode is DRAIN and cls.is_write:
            self._queue.append(exit)
            return 0
        self._events.put(exit)
        answer = self._orders.get() or 0
        if self._mode is DRAIN or self._cancelled or self._look or self._wants_counting():
            self._stop_behind()
        return answer

    def _wants_counting(self) -> bool:
        """Whether the phase is to change before the next instruction."""
        return False

    def _leave(self) -> None:
        quick.uc_emu_stop(self._address)
