"""What both of Unicorn's ways have in common: a vCPU's engine, its hooks, its faults.

Unicorn reports accesses in its own pieces: MMIO as aligned pieces of at most 4 bytes, an
unaligned store as single bytes, an INS with a store of 0 before it. `AccessCutter` makes
of these the accesses that the guest made, by the rules of `vmmsim.exits`. How an access
is answered, and how the vCPU stops exactly behind an instruction, is what differs: see
`unicorn_native` (stop, and execute the instruction again) and `unicorn_portable`
(a hook before each instruction).
"""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec
from unicorn import unicorn_const as uc_const
from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import Uc, UcError, uclib

from ..cpu.cpuid import cpuid
from ..cpu.msrs import (
    CSTAR,
    EFER,
    FS_BASE,
    GS_BASE,
    KERNEL_GS_BASE,
    LSTAR,
    STATE_MSRS,
    SYSENTER_EIP,
    SYSENTER_ESP,
)
from ..cpu.paging import linear_to_gpa
from ..cpu.state import CpuState, Registers
from ..cpu.validate import is_canonical, validate
from ..cpu.vectors import ERROR_CODE_VECTORS, vector_name
from ..errors import NotSupported, UsageError
from ..exits import (
    Access,
    Exit,
    FetchUnmapped,
    GuestException,
    ReadAccess,
    Refused,
    Shutdown,
    Unsupported,
)
from .base import AccessHandler, Vcpu

if TYPE_CHECKING:
    from .unicorn import UnicornVm

__all__ = ["PAGE", "UnicornVcpu", "check", "quick"]

PAGE = 4096

#: The library without the release of the GIL around each call: for calls that only take
#: nanoseconds. `uc_emu_start` goes through `uclib`, which releases it.
quick = ctypes.PyDLL(uclib._name)
quick.uc_emu_stop.argtypes = (ctypes.c_void_p,)
quick.uc_reg_read.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)

# Callbacks are declared with the leading arguments that they use: the caller cleans up.
_INTR = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32)
_INVALID = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
_SYSCALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_CPUID = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)

#: MSRs that hold a linear address (SDM vol. 4).
_ADDRESSES = frozenset({LSTAR, CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE, SYSENTER_EIP, SYSENTER_ESP})
_CPUID_REGISTERS = tuple(getattr(x86_const, f"UC_X86_REG_{name}") for name in ("RAX", "RBX", "RCX", "RDX"))
_UD = 6
_DF = 8
_GP = 13


def check(status: int, doing: str) -> None:
    """NotSupported for a status that Unicorn gave for something that vmmsim relies on."""
    if status:
        raise NotSupported(
            f"Unicorn cannot {doing}: {UcError(status)}",
            hint="this may be a bug of vmmsim: see vmmsim doctor",
        )


class UnicornVcpu(Vcpu):
    """One Unicorn engine in 64-bit mode, which runs guests of every mode (see the facts)."""

    codec: Any

    def __init__(self, vm: UnicornVm) -> None:
        self.vm = vm
        self._fault: int | None = None
        self._refused: str | None = None
        self._cancelled = False
        self._halted = False
        #: An inline run, or the finishing of an instruction, is under way.
        self._running = False
        #: What a handler asked for, or raised, while it answered an access of the run.
        self._stop: Exit | None = None
        self._error: BaseException | None = None
        self._want_flush = False
        #: The exit of `run` whose instruction is not finished.
        self._pending: Access | None = None
        #: `_pending` came up while state was looked at: the caller has not seen it yet.
        self._unseen = False
        #: Writes that were made while state was looked at.
        self._queue: deque[Access] = deque()

    def open(self, uc: Uc) -> None:
        """Take `uc` as the engine: at first, and again when memory was added or removed."""
        self._uc = uc
        self._handle: Any = uc._uch
        self._address = ctypes.cast(self._handle, ctypes.c_void_p).value
        self._keep: list[Any] = []
        self._hook(uc_const.UC_HOOK_INTR, _INTR(self._on_interrupt))
        self._hook(uc_const.UC_HOOK_INSN_INVALID, _INVALID(self._on_invalid))
        self._hook(uc_const.UC_HOOK_INSN, _SYSCALL(self._on_syscall), x86_const.UC_X86_INS_SYSCALL)
        self._hook(uc_const.UC_HOOK_INSN, _SYSCALL(self._on_syscall), x86_const.UC_X86_INS_SYSENTER)
        self._hook(uc_const.UC_HOOK_INSN, _CPUID(self._on_cpuid), x86_const.UC_X86_INS_CPUID)

    # -- hooks

    def _hook(
        self, kind: int, callback: Any, insn: int | None = None, *, user: int = 0, bounds: Any = (1, 0)
    ) -> Any:
        """Install a raw callback (a ctypes function or an address); it is kept alive here."""
        self._keep.append(callback)
        handle = ctypes.c_size_t()
        pointer = callback if isinstance(callback, int) else ctypes.cast(callback, ctypes.c_void_p)
        extra = () if insn is None else (ctypes.c_int(insn),)
        status = uclib.uc_hook_add(
            self._handle, ctypes.byref(handle), kind, pointer, ctypes.c_void_p(user),
            ctypes.c_uint64(bounds[0]), ctypes.c_uint64(bounds[1]), *extra,
        )  # fmt: skip
        check(status, "install a hook")
        return handle

    def _unhook(self, handle: Any) -> None:
        check(uclib.uc_hook_del(self._handle, handle), "remove a hook")

    def move(self, uc: Uc) -> None:
        """Go on in another engine. UsageError while a read waits for its answer."""
        self._check_settable()
        state = self.codec.read_state()
        self.close()
        self.open(uc)
        self.codec.write_state(state)

    @abstractmethod
    def _leave(self) -> None:
        """In a hook: leave the engine as soon as it can."""

    def _on_interrupt(self, _uc: int, vector: int) -> None:
        self._fault = vector
        self._leave()

    def _on_invalid(self, _uc: int) -> bool:
        self._fault = _UD
        return False

    def _on_syscall(self, _uc: int) -> None:
        self._refused = "SYSCALL and SYSENTER are not executed by this version on Unicorn"
        self._leave()

    def _on_cpuid(self, _uc: int) -> int:
        read, write = self.codec.read, self.codec.write
        leaf = read(_CPUID_REGISTERS[0]) & 0xFFFFFFFF
        subleaf = read(_CPUID_REGISTERS[2]) & 0xFFFFFFFF
        for register, value in zip(_CPUID_REGISTERS, cpuid(leaf, subleaf), strict=True):
            write(register, value)
        return 1  # Unicorn's own CPUID is skipped

    # -- what the end of a run means

    def _fault_exit(self) -> Exit:
        """The exit for the exception that the engine stopped at: through which of the guest's
        gates would it go? None left is a triple fault (SDM vol. 3, 6.15, interrupt 8)."""
        vector = self._fault
        self._fault = None
        assert vector is not None
        code = self.codec.error_code() if vector in ERROR_CODE_VECTORS else None
        self.codec.clear_old_exception()
        state = self._read_state()
        if self._gate_usable(state, vector):
            return GuestException(vector, code, self._code_at(state))
        table = f"the IDT (base {state.idt.base:#x}, limit {state.idt.limit:#x})"
        first = f"{vector_name(vector)} at rip {state.rip:#x}, and {table} has no gate for it"
        if vector != _DF:
            if vector != _GP and self._gate_usable(state, _GP):
                return GuestException(_GP, vector * 8 + 2 if state.cr0 & 1 else None, self._code_at(state))
            if self._gate_usable(state, _DF):
                return GuestException(_DF, 0, self._code_at(state))
        return Shutdown(first)

    def _gate_usable(self, state: CpuState, vector: int) -> bool:
        if not state.cr0 & 1:
            return vector * 4 + 3 <= state.idt.limit
        size = 16 if state.efer >> 10 & 1 else 8
        if vector * size + size - 1 > state.idt.limit:
            return False
        gpa = linear_to_gpa(state, state.idt.base + vector * size, self.vm.read_physical)
        if gpa is None or not self.vm.holds(gpa, size):
            return False
        access = self.vm.read_physical(gpa, size)[5]
        kinds = (0xE, 0xF) if size == 16 else (0x5, 0x6, 0x7, 0xE, 0xF)
        return bool(access & 0x80) and access & 0x1F in kinds

    def _code_at(self, state: CpuState) -> bytes:
        """Up to 15 bytes at RIP, as far as they are memory."""
        return self._code(state, state.linear_rip, 15)

    def _code(self, state: CpuState, linear: int, size: int) -> bytes:
        """`size` bytes of guest code by linear address, as far as they are memory."""
        code = b""
        while size:
            count = min(size, PAGE - linear % PAGE)
            gpa = linear_to_gpa(state, linear, self.vm.read_physical)
            if gpa is None or not self.vm.holds(gpa, count):
                break
            code += self.vm.read_physical(gpa, count)
            linear += count
            size -= count
        return code

    def _error_exit(self, status: int) -> Exit:
        """The exit for a status of `uc_emu_start` other than OK."""
        if self._fault is not None:
            return self._fault_exit()
        state = self._read_state()
        if status in (uc_const.UC_ERR_FETCH_UNMAPPED, uc_const.UC_ERR_FETCH_PROT):
            return FetchUnmapped(state.linear_rip)
        if status in (uc_const.UC_ERR_READ_UNMAPPED, uc_const.UC_ERR_WRITE_UNMAPPED):
            return Shutdown(f"a page table of CR3 {state.cr3:#x} lies where there is no memory")
        return Unsupported(status)

    def _refused_exit(self) -> Exit:
        reason, self._refused = self._refused, None
        registers = self.codec.read_registers()
        registers.rip -= 2  # the hook is called when the instruction is done
        self.codec.write_registers(registers)
        return Refused(reason or "", self._code_at(self._read_state()))

    # -- state

    def _read_state(self) -> CpuState:
        state: CpuState = self.codec.read_state()
        state.halted = self._halted
        if state.tr.type in (1, 9):  # the CPU has marked the TSS busy; Unicorn only did in memory
            state.tr = msgspec.structs.replace(state.tr, attr=state.tr.attr | 2)
        return state

    @abstractmethod
    def _quiesce(self) -> None:
        """Finish the instruction in flight, unless a read of it waits for its answer."""

    def _answer_unseen(self, handler: AccessHandler) -> None:
        """Before an inline run: let the handler have what no `run` has returned yet."""
        while self._queue:
            exit = self._queue.popleft()
            write = handler.port_write if exit.space == "port" else handler.mmio_write
            write(exit.address, exit.size, exit.value)  # type: ignore[attr-defined]
        pending = self._pending
        if self._unseen and isinstance(pending, ReadAccess) and not pending.answered:
            read = handler.port_read if pending.space == "port" else handler.mmio_read
            try:
                pending.reply(read(pending.address, pending.size))
            except BaseException:
                pending.reply((1 << 8 * pending.size) - 1)
                raise

    def _use(self, handler: AccessHandler) -> None:
        """Let `handler` answer the accesses of inline runs."""
        self._port_read = handler.port_read
        self._port_write = handler.port_write
        self._mmio_read = handler.mmio_read
        self._mmio_write = handler.mmio_write

    def _check_open(self) -> None:
        """UsageError once it is closed: the engine's memory is another's then."""
        if self._handle is None:
            raise UsageError("the vCPU is closed", hint="its VM was closed; make another")

    def _check_answered(self) -> None:
        """Before a run: UsageError while a read waits for its answer, within a run, or at all
        once the vCPU is closed."""
        self._check_open()
        if self._running:
            raise UsageError("the vCPU is running", hint="let the handler return first")
        pending = self._pending
        if isinstance(pending, ReadAccess) and not pending.answered:
            raise UsageError(
                f"the exit '{pending.describe()}' was not answered",
                hint="call exit.reply(value), or machine.answer(exit), before the vCPU runs on",
            )

    def _check_settable(self) -> None:
        """UsageError while an instruction is half done: a read of it waits for its answer."""
        if self._running:
            raise UsageError(
                "the vCPU is in the middle of an instruction", hint="let the handler return first"
            )
        if self._pending is not None:
            raise UsageError(
                f"the exit '{self._pending.describe()}' waits for its answer",
                hint="reply to a read before registers are set",
            )

    def settle(self) -> None:
        self._check_open()
        self._quiesce()

    def registers(self) -> Registers:
        self.settle()
        return self.codec.read_registers()

    def set_registers(self, registers: Registers) -> None:
        self.settle()
        self._check_settable()
        self.codec.write_registers(registers)

    def state(self) -> CpuState:
        self.settle()
        return self._read_state()

    def set_state(self, state: CpuState) -> None:
        validate(state)
        if state.events.exception is not None or state.events.nmi_pending:
            raise NotSupported(
                "this version of the Unicorn backend holds no pending exception or NMI",
                hint="take the state at a boundary where nothing is pending",
            )
        if state.mode == "v86":
            raise NotSupported("virtual-8086 mode cannot be set on Unicorn", hint="use mode real")
        self.settle()
        self._check_settable()
        self.codec.write_state(state)
        self._halted = state.halted

    def read_msr(self, index: int) -> int:
        self.settle()
        self._check_msr(index)
        return self.codec.read_msr(index)

    def write_msr(self, index: int, value: int) -> None:
        self.settle()
        self._check_settable()
        self._check_msr(index)
        if not 0 <= value < 1 << 64:
            raise UsageError(f"MSR {index:#x} cannot be {value:#x}", hint="an MSR has 64 bits")
        if index in _ADDRESSES and not is_canonical(value):
            raise UsageError(
                f"MSR {index:#x} cannot be {value:#x}, which is not canonical",
                hint="bits 63 to 47 of an address are equal",
            )
        self.codec.write_msr(index, value)

    @staticmethod
    def _check_msr(index: int) -> None:
        if index not in STATE_MSRS and index not in (EFER, FS_BASE, GS_BASE):
            raise NotSupported(
                f"the Unicorn backend has no MSR {index:#x}", hint="see vmmsim.cpu.msrs for those that it has"
            )

    @abstractmethod
    def _stop_soon(self) -> None:
        """In a handler: end the run behind the instruction whose access is being answered."""

    def stop_here(self, exit: Exit) -> None:
        if self._stop is None:
            self._stop = exit
        self._stop_soon()

    def _asked_for(self) -> Exit | None:
        """At the boundary: raise what a handler raised, or return the stop that it asked for."""
        error, exit = self._error, self._stop
        self._error = self._stop = None
        if error is not None:
            raise error
        return exit

    def cancel(self) -> None:
        self._cancelled = True
        self._kick()

    def uncancel(self) -> None:
        self._cancelled = False

    @abstractmethod
    def _kick(self) -> None: ...

    @abstractmethod
    def map_hole(self, gpa: int, size: int) -> None:
        """Make a range without memory MMIO."""

    def host_wrote(self, gpa: int, size: int) -> None:
        """The host changed guest memory: translations may be stale."""
        if self._running:  # by a device, which is answering an access
            self._want_flush = True
            self._stop_soon()
        else:
            self._flush()

    def _flush_if_wanted(self) -> None:
        if self._want_flush:
            self._want_flush = False
            self._flush()

    def _flush(self) -> None:
        """Forget all translations."""
        check(uclib.uc_ctl(self._handle, uc_const.UC_CTL_IO_WRITE << 30 | uc_const.UC_CTL_TB_FLUSH), "flush")

    def close(self) -> None:
        """Free the engine now, without waiting for the garbage collector."""
        if self._running:
            raise UsageError("the vCPU is running", hint="end the run with cancel() before closing")
        if self._handle is not None:
            self._uc._Uc__finalizer()  # type: ignore[attr-defined] # the binding's own way, brought forward
            self._handle = None
            self._keep.clear()
