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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from unicorn import unicorn_const as uc_const
from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import Uc, UcError, uclib

from ..cpu.cpuid import cpuid
from ..cpu.msrs import (
    CSTAR,
    FS_BASE,
    GS_BASE,
    KERNEL_GS_BASE,
    LSTAR,
    SYSENTER_EIP,
    SYSENTER_ESP,
)
from ..cpu.state import CpuState, Registers
from ..cpu.validate import is_canonical, validate
from ..errors import NotSupported, UsageError
from ..exits import Access, Breakpoint, Exit, FetchUnmapped, ReadAccess, Shutdown, Unsupported
from .base import AccessHandler, unanswered
from .unicorn_context import ContextCodec
from .unicorn_glance import registers_of
from .unicorn_pins import FOREVER, UnicornPins
from .unicorn_trap_intercepts import ALL, HLT
from .unicorn_traps import AGAIN, HALTED, VMCB, VMCB_SIZE, GuestRam, Platform, TrapUnit, vmcb_bytes

if TYPE_CHECKING:
    from .quick import Quick
    from .unicorn import UnicornVm

__all__ = ["DB", "FOREVER", "GP", "INTERCEPTS", "PAGE", "PF", "UnicornVcpu", "check"]

PAGE = 4096
#: Vectors.
DB, GP, PF = 1, 13, 14
#: The guest has fetched from where no memory is.
_FETCHES = (uc_const.UC_ERR_FETCH_UNMAPPED, uc_const.UC_ERR_FETCH_PROT)
#: From here on a number of the INTR hook is no vector, but an intercept.
INTERCEPTS = 0x100


# Callbacks are declared with the leading arguments that they use: the caller cleans up.
_SYSCALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_BREAK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64)

#: MSRs that hold a linear address (SDM vol. 4).
_ADDRESSES = frozenset({LSTAR, CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE, SYSENTER_EIP, SYSENTER_ESP})


def check(status: int, doing: str) -> None:
    """NotSupported for a status that Unicorn gave for something that vmmsim relies on."""
    if status:
        raise NotSupported(
            f"Unicorn cannot {doing}: {UcError(status)}",
            hint="this may be a bug of vmmsim: see vmmsim doctor",
        )


class UnicornVcpu(UnicornPins):
    """One Unicorn engine in 64-bit mode, which runs guests of every mode (see the facts)."""

    codec: ContextCodec
    #: Attributes that are the vCPU's and not the engine's: where several take turns, each has its own.
    OWN: tuple[str, ...] = (
        "_board", "_cancelled", "_halted", "_look", "_nmi", "_want", "_stop", "_pending", "_unseen", "_queue",
        "_exception", "_interrupt", "_cr8", "_alarm",
    )  # fmt: skip

    #: What the engine has for itself behind the guest's memory: (gpa, size), ascending.
    reserved: tuple[tuple[int, int], ...] = ()

    def __init__(self, vm: UnicornVm) -> None:
        super().__init__()
        self.vm = vm
        #: Which of the VM's vCPUs executes.
        self.number = 0
        #: Why the guest's last exception, which its own tables could not take, is a triple fault.
        self._shutdown: str | None = None
        self._cancelled = False
        self._halted = False
        #: An inline run, or the finishing of an instruction, is under way; in which thread; and
        #: whether the engine executes now, and then whether it is in a hook for an exception or an
        #: intercept, which is a boundary between two instructions.
        self._running = False
        self._run_thread = 0
        self._executing = self._in_trap = False
        #: What a handler asked for, or raised, while it answered an access of the run.
        self._stop: Exit | None = None
        self._error: BaseException | None = None
        #: The engine is being left for that, or for the board: in the middle of an instruction, or
        #: at a boundary.
        self._leaving = self._at_boundary = False
        self._want_flush = False
        #: The exit of `run` whose instruction is not finished.
        self._pending: Access | None = None
        #: `_pending` came up while state was looked at: the caller has not seen it yet.
        self._unseen = False
        #: Writes that were made while state was looked at.
        self._queue: deque[Access] = deque()
        #: HLT was executed.
        self._hlt = False
        #: Breakpoints, each with its hook; not while an instruction is stepped.
        self._breakpoints: dict[int, Any] = {}
        self._stepping = False
        #: Instructions are counted only because one was stepped.
        self._counts_for_steps = False
        self._break_callback = _BREAK(self._on_breakpoint)

    # -- taking turns: see `unicorn_bank`

    @property
    def uc(self) -> Uc:
        return self._uc

    def check_whole(self, number: int) -> None:
        """Finish the instruction in flight. UsageError where another vCPU than `number`, which is in
        the engine, cannot have its place."""
        self._check_open()
        if self._running:
            raise UsageError(
                f"vCPU {number} is running", hint="of vCPUs that take turns, look at others when it has ended"
            )
        self._quiesce()

    def put_aside(self) -> dict[str, Any]:
        """What is known of the vCPU that leaves the engine."""
        return {name: getattr(self, name) for name in self.OWN} | {"insns": self.insns}

    def take_up(self, kept: dict[str, Any], number: int) -> None:
        """Another vCPU's registers are in the engine: know of it what was `put_aside`."""
        for name in self.OWN:
            setattr(self, name, kept[name])
        self.set_insns(kept["insns"] or 0)
        self.number = number
        self.codec.flush_tlb()

    def moving_state(self) -> CpuState:
        """The engine's state, to be set in another. UsageError while a read waits for its answer."""
        self._check_settable()
        return self.codec.read_state()

    def open(self, uc: Uc) -> None:
        """Take `uc` as the engine: at first, and again when memory was added or removed."""
        self._uc = uc
        #: The engine was started since all translations were last forgotten.
        self._translated = False
        self._handle: Any = uc._uch
        self._address = ctypes.cast(self._handle, ctypes.c_void_p).value
        self._keep: list[Any] = []
        self.codec = ContextCodec(uc)
        self._ram = GuestRam(self.vm.regions)
        platform = Platform(
            cpuid=self._cpuid,
            tsc=lambda: self._tsc(),
            read_msr=self._msr_read,
            write_msr=self._msr_write,
            cr8=lambda: self._cr8,
            set_cr8=self._cr8_written,
        )
        self._traps = TrapUnit(self.codec, self._ram, platform)
        check(uclib.uc_mem_map(self._handle, VMCB, VMCB_SIZE, uc_const.UC_PROT_ALL), "map a page")
        check(uclib.uc_mem_write(self._handle, VMCB, vmcb_bytes(), VMCB_SIZE), "write memory")
        self._hook(uc_const.UC_HOOK_INSN, _SYSCALL(self._on_syscall), x86_const.UC_X86_INS_SYSCALL)
        self._hook(uc_const.UC_HOOK_INSN, _SYSCALL(self._on_sysenter), x86_const.UC_X86_INS_SYSENTER)

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
        state = self.moving_state()
        self.close()
        armed = self._traps.intercepts.armed
        breakpoints = frozenset(self._breakpoints)
        self._breakpoints.clear()  # their hooks are gone with the engine
        self.open(uc)
        self.codec.write_state(state)
        self._traps.arm(armed)
        self.set_breakpoints(breakpoints)

    def _on_trap(self, number: int) -> int:
        """The hook for an exception that Python delivers, or an intercept (from 0x100 on). Either
        way the guest goes on when it is dealt with, unless there is no more to go on with."""
        self._in_trap = True
        try:
            self._after_trap(self._trapped(number))
        except BaseException as error:
            self._error = error
            self._at_boundary = True
        finally:
            self._in_trap = False
        if self._at_boundary:
            self._leave()
        return 1

    def _trapped(self, number: int) -> str | None:
        """In the hook: deal with it. Why there is no more to go on with, or None."""
        return self._traps.raised(number)

    def _after_trap(self, result: str | None) -> None:
        if result == AGAIN:
            self._give_way()
        elif result == HALTED:
            self._hlt = True
            self._leave()
        elif result is not None:
            self._shutdown = result
            self._leave()

    def _on_invalid(self, _uc: int) -> bool:
        self._after_trap(self._traps.undefined())
        return True

    def _on_syscall(self, _uc: int) -> None:
        self._in_helper(self._traps.syscall)

    def _on_sysenter(self, _uc: int) -> None:
        self._in_helper(self._traps.sysenter)

    def _in_helper(self, act: Callable[[], str | None]) -> None:
        try:
            self._after_trap(act())
        except BaseException as error:
            self._error = error
            self._at_boundary = True
            self._leave()

    # -- the platform, as instructions see it

    def _cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        return cpuid(leaf, subleaf, table=self.vm.cpuid_table(self.number))

    def _msr_read(self, index: int) -> int | None:
        if not self.vm.owns_msr(index):
            return None
        return self._handler.msr_read(index)

    def _msr_write(self, index: int, value: int) -> bool:
        return self.vm.owns_msr(index) and self._handler.msr_write(index, value)

    def _arm(self, *, hlt: bool) -> None:
        """Have the engine ask for what is not its business; `hlt`: for HLT, too."""
        self._traps.arm(ALL if hlt else ALL - {HLT})

    # -- what the end of a run means

    def _settle_fetch(self, status: int) -> int:
        """The engine has stopped with `status`, which is 0 where it was for a fetch that it made too early:
        then, or where the next instruction was to be executed alone, see `unicorn_trap_fetch`."""
        failed, fetches = status in _FETCHES, self._traps.fetches
        if not failed and fetches.alone_at is None:
            return status
        early = fetches.ended(failed=failed)
        return 0 if early or (failed and self._spent()) else status

    @abstractmethod
    def _spent(self) -> bool:
        """Behind a fetch that failed: whether the run is to end before it, at a count of instructions."""

    def _failed_exit(self, status: int) -> Exit:
        """The exit for a triple fault, or a status of `uc_emu_start` other than OK."""
        if self._shutdown is not None:
            cause, self._shutdown = self._shutdown, None
            return Shutdown(cause)
        state = self._read_state()
        if status in _FETCHES:
            linear = state.linear_rip
            # An instruction that begins in memory ends where none is.
            return FetchUnmapped((linear | PAGE - 1) + 1 if self._traps.code(1) else linear)
        if status in (uc_const.UC_ERR_READ_UNMAPPED, uc_const.UC_ERR_WRITE_UNMAPPED):
            return Shutdown(f"a page table of CR3 {state.cr3:#x} lies where there is no memory")
        return Unsupported(status)

    # -- state

    def _read_state(self) -> CpuState:
        state: CpuState = self.codec.read_state()
        state.halted = self._halted
        if self._exception is not None:
            state.events.exception, state.events.error_code = self._exception
        state.events.nmi_pending = self._nmi
        state.events.interrupt = self._interrupt
        state.cr8 = self._cr8
        if self._traps.fetches.alone_at is not None:  # of a handler: the shadow is not the guest's
            state.events.sti_shadow = state.events.mov_ss_shadow = False
        return state

    @property
    def whole(self) -> bool:
        return self._pending is None and not self._queue

    def abandon(self) -> None:
        self._check_open()
        self._discard()
        self._pending, self._unseen = None, False
        self._queue.clear()
        self._stop = self._error = None
        self._cancelled = False

    @abstractmethod
    def _discard(self) -> None:
        """Bring the engine out of the instruction in flight, whatever it does."""

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
        self._handler = handler

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
            raise unanswered(pending)

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

    def glanced(self, glance: bytes) -> Registers:
        return registers_of(glance)

    def set_registers(self, registers: Registers) -> None:
        self.settle()
        self._check_settable()
        self.codec.write_registers(registers)

    def state(self) -> CpuState:
        self.settle()
        return self._read_state()

    def check_state(self, state: CpuState) -> None:
        self._check_possible(state)
        self.codec.check_breakpoints(state)

    def _check_possible(self, state: CpuState) -> None:
        validate(state)
        if state.mode == "v86":
            raise NotSupported("virtual-8086 mode cannot be set on Unicorn", hint="use mode real")

    def quick(self) -> Quick:
        from .unicorn_quick import UnicornQuick

        self.settle()
        return UnicornQuick(self, self.codec)

    def set_state(self, state: CpuState) -> None:
        self._check_possible(state)
        self.settle()
        self._check_settable()
        self._put(state)
        self._halted = state.halted

    def set_proven(self, state: CpuState) -> None:
        self.settle()
        self._check_settable()
        self._put(state)
        self._halted = False

    def _put(self, state: CpuState) -> None:
        self.codec.write_state(state)
        events = state.events
        self._exception = None if events.exception is None else (events.exception, events.error_code)
        self._nmi = events.nmi_pending
        self._interrupt = events.interrupt
        self._cr8 = state.cr8
        self._want = False
        self._look = True

    def read_msr(self, index: int) -> int:
        self.settle()
        return self._own_msr(index)

    def write_msr(self, index: int, value: int) -> None:
        self.settle()
        self._check_settable()
        self._own_msr(index)
        if not 0 <= value < 1 << 64:
            raise UsageError(f"MSR {index:#x} cannot be {value:#x}", hint="an MSR has 64 bits")
        if index in _ADDRESSES and not is_canonical(value):
            raise UsageError(
                f"MSR {index:#x} cannot be {value:#x}, which is not canonical",
                hint="bits 63 to 47 of an address are equal",
            )
        if not self._traps.write_msr(index, value):
            raise NotSupported(f"MSR {index:#x} does not take {value:#x}", hint="see vmmsim.cpu.msrs")

    def _own_msr(self, index: int) -> int:
        value = self._traps.read_msr(index)
        if value is None:
            raise NotSupported(
                f"the Unicorn backend has no MSR {index:#x}", hint="see vmmsim.cpu.msrs for those that it has"
            )
        return value

    @abstractmethod
    def _stop_behind(self) -> None:
        """In a handler: end the run behind the instruction whose access is being answered."""

    def _stop_soon(self) -> None:
        """In a handler: end the run at the next boundary."""
        if self._in_trap:  # RDMSR and WRMSR are answered at one
            self._at_boundary = True
        else:
            self._stop_behind()

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

    # -- debugging

    def set_breakpoints(self, addresses: frozenset[int]) -> None:
        self._check_open()
        if addresses == self._breakpoints.keys():
            return
        for address in self._breakpoints.keys() - addresses:
            self._unhook(self._breakpoints.pop(address))
        for address in addresses - self._breakpoints.keys():
            kind = uc_const.UC_HOOK_CODE
            self._breakpoints[address] = self._hook(kind, self._break_callback, bounds=(address, address))
            self._keep.pop()  # which is kept anyhow
        self._flush()

    def _on_breakpoint(self, _uc: int, address: int) -> None:
        """The hook before the instruction at a breakpoint."""
        if self._stepping or self._stop is not None or self._error is not None or self._in_flight():
            return
        self._stop = Breakpoint(address)
        self._uncount_begun()
        self._at_boundary = True
        self._leave()

    @abstractmethod
    def _in_flight(self) -> bool:
        """In a hook before an instruction: whether that is one which is executed again."""

    @abstractmethod
    def _uncount_begun(self) -> None:
        """The instruction that is about to be executed, and was counted, is not."""

    def _count_no_more(self) -> None:
        """Take back the counting that steps have begun: the guest is to run at its full speed."""

    def step(self, handler: AccessHandler | None, *, interrupts: bool = False) -> Exit:
        self.settle()
        board, look = self._board, self._look
        counting = self.insns is not None
        self._stepping = True
        if not interrupts:
            self._board = None
        try:
            return self.run(max_insns=1) if handler is None else self.run_inline(handler, max_insns=1)
        finally:
            self._stepping = False
            if not interrupts:
                self._board, self._look = board, board is not None or look
            self._counts_for_steps = self._counts_for_steps or not counting

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
        """Forget all translations, if there are any."""
        if not self._translated:
            return
        self._translated = False
        check(uclib.uc_ctl(self._handle, uc_const.UC_CTL_IO_WRITE << 30 | uc_const.UC_CTL_TB_FLUSH), "flush")

    def close(self) -> None:
        """Free the engine now, without waiting for the garbage collector."""
        if self._running:
            raise UsageError("the vCPU is running", hint="end the run with cancel() before closing")
        if self._handle is not None:
            self._uc._Uc__finalizer()  # type: ignore[attr-defined] # the binding's own way, brought forward
            self._handle = None
            self._keep.clear()
            self._ram.close()
