"""Free code: no hooks, and still exact ends.

While code is free, `no_exit_request` is set (`stop`), so a stop from any thread takes effect at the
start of a block. What else has to end a run, or may have to, comes without hooks, too:

* **IN and OUT** are answered in their callbacks. Where one must be the last instruction of the run,
  the callback plants a breakpoint of I/O in DR0 and DR7, which QEMU looks for behind each IN and OUT
  (`HF_IOBPT`). Its #DB comes to the hook for exceptions, which takes the breakpoint away. The guest
  never sees it: its own debug registers are back before anything else can look.
* **MMIO and stores to ROM** are nested page faults (`nested`), before the instruction has done anything.
  It is then executed alone, with the flag that holds interrupts off, as STI does for one instruction,
  and without the nested tables; its callback asks to leave at the next block, which begins behind it.

A guest that arms breakpoints itself is counted as long as they are.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
import threading
from typing import TYPE_CHECKING, Any

from unicorn import UC_CTL_IO_WRITE, UC_CTL_TLB_FLUSH, UC_ERR_FETCH_PROT, x86_const
from unicorn.unicorn_py3.unicorn import Uc, UcError, uclib

from ...errors import NotSupported, VmmsimError
from ..ticker import TICK_SECONDS, hurry, watch
from ..unicorn_cut import STRING
from ..unicorn_lazy import CC_EFLAGS, STATUS, asks_first, settled_already
from ..unicorn_trap_intercepts import ALL, ARMING, DR7_WRITE
from ..unicorn_traps import VMCB
from ..unicorn_vcpu import DB, INTERCEPTS, PAGE, check
from .accesses import DRAIN, PortableAccesses
from .nested import FETCH, NPF, NPT, NestedTables
from .phases import Phases
from .stop import no_exit_offset

if TYPE_CHECKING:
    from ..unicorn import UnicornVm

__all__ = ["FreeCode", "free_usable"]

#: Hidden flags: the shadow of STI; QEMU is to look for breakpoints of I/O; 64-bit code.
_INHIBIT, _IOBPT, _CODE64, _CODE32 = 1 << 3, 1 << 24, 1 << 15, 1 << 4
_TF, _ZF = 1 << 8, 1 << 6
_DR6_BS = 1 << 14
#: EXITINFO2 of SVM's control block: the address of a nested page fault.
_EXITINFO2 = VMCB + 0x80
_COMPARING = b"\xa6\xa7\xae\xaf"
#: Bytes of the longest instruction (SDM vol. 2, 2.3.11); capstone's number of EFLAGS.
_LONGEST, _EFLAGS = 15, 25
_LOW, _M64 = 0xFFFFFFFF, (1 << 64) - 1
_FLUSH_TLB = UC_CTL_IO_WRITE << 30 | UC_CTL_TLB_FLUSH


class FreeCode(PortableAccesses):
    """A vCPU whose code can be free."""

    def __init__(self, vm: UnicornVm) -> None:
        super().__init__(vm)
        self._phases = Phases()
        self._free = False
        #: The guest has armed breakpoints; free code has made too many accesses: both end freedom.
        self._armed = self._busy = False
        # Reentrant: a signal handler of the thread that holds it may call cancel().
        self._kick_lock = threading.RLock()
        self._free_running = False
        self._free_starts = 0
        #: DR0, DR6 and DR7 of the guest while a breakpoint is planted, and RIP of its instruction.
        self._planted: tuple[int, int, int, int] | None = None
        #: The address of a nested page fault: its instruction is to be executed alone, or is now.
        self._fault: int | None = None
        self._alone = False
        #: A fetch found no memory.
        self._fetch_failed = False
        self._tables: NestedTables | None = None
        self._exit_info = ctypes.create_string_buffer(8)

    def open(self, uc: Uc) -> None:
        super().open(uc)
        self._free = False
        self._traps.mend_begun = self._mend_begun
        self._traps.fetches.mend_perhaps = self._mend_perhaps
        self._tables = None
        self.reserved = ()
        if not self._counting and (_testing or free_usable()[0]):
            try:
                self._tables = tables = NestedTables(self.vm.regions)
            except LookupError:
                pass
            else:
                self._keep.append(tables)
                self.reserved = ((tables.gpa, tables.size),)
                uc.mem_map_ptr(tables.gpa, tables.size, tables.rights, tables.address)
                self._no_exit = ctypes.c_uint8.from_address((self._address or 0) + no_exit_offset())

    # -- phases

    def _may_be_free(self) -> bool:
        return self._tables is not None and not (self._counting or self._breakpoints or self._armed)

    def _wants_counting(self) -> bool:
        return self._free and not self._may_be_free()

    def _set_free(self, free: bool) -> None:
        """Change the phase; if the engine runs, and waits in a callback, before it runs again."""
        if free == self._free or self._executing:
            return
        assert self._tables is not None
        cpu, intercepts = self._traps.cpu, self._traps.intercepts
        self._free = free
        self._traps.hooked = not free
        self._no_exit.value = free
        self._traps.arm(ALL | {DR7_WRITE} if free else ALL)
        cpu.save()
        self._tables.use(cpu.words, intercepts.svm)
        hidden = cpu.words[cpu.hidden] & ~(NPT | _IOBPT)
        cpu.words[cpu.hidden] = hidden | (NPT | _IOBPT if free else 0)
        cpu.restore()
        self._flush_tlb()
        self._tell_truth(not free)
        if free:
            self._phases.freed(self._mmio_accesses)
        self._flush()

    def _settle_phase(self) -> None:
        """Before the engine starts: code is free if it may be, unless it makes too many accesses."""
        if self._free:
            if self._busy or not self._may_be_free():
                self._busy = False
                self._set_free(False)
        elif self._busy is False and self._first_start and self._may_be_free():
            self._set_free(True)
        self._first_start = False

    #: The engine has not started yet.
    _first_start = True

    def _end_of_slice(self) -> None:
        """Of counted code."""
        if self._armed:
            cpu = self._traps.cpu
            cpu.save()
            self._armed = any(cpu.words[cpu.debug + 8 + n] for n in range(4))
        if self._phases.quiet(self._mmio_accesses) and self._may_be_free():
            self._set_free(True)

    # -- what the ticker asks: see `backends.ticker`

    @property
    def tick_seconds(self) -> float:
        soon = self._cancelled or self._look or self._want
        return 0.001 if soon and self._free_running else TICK_SECONDS

    def signs_of_life(self) -> tuple[bool, int]:
        return self._free_running, self._free_starts

    def kick(self) -> None:
        """Stop free code at its next block. A stop that comes just before the engine has started is
        lost; the ticker repeats it."""
        with self._kick_lock:
            if self._free_running:
                self._leave()

    def _kick(self) -> None:
        if self._counting:
            self._limit = 0
        self.kick()
        if self._free_running:
            hurry()

    # -- running

    def _run_free(self) -> int:
        cpu = self._traps.cpu
        cpu.save()
        wanted = NPT | _IOBPT
        if cpu.words[cpu.hidden] & wanted != wanted:  # a task switch or a state that was set
            cpu.words[cpu.hidden] |= wanted
            cpu.restore()
        watch(self)
        self._free_starts += 1
        self._free_running = True
        try:
            status = self._execute()
            while self._fault is not None and not status:
                status = self._execute_alone()
                if status or not self._goes_on():
                    break
                status = self._execute()
        finally:
            with self._kick_lock:
                self._free_running = False
        return status

    def _goes_on(self) -> bool:
        """Behind an instruction that was executed alone: nothing ends the run."""
        return not (
            self._cancelled or self._look or self._stop or self._error or self._hlt or self._denied
            or self._shutdown or self._at_boundary or self._want_flush or self._busy or self._mode is DRAIN
            or self._traps.fetches.alone_at is not None
        )  # fmt: skip

    def _execute(self) -> int:
        if self._cancelled or self._look:
            return 0
        status: int = uclib.uc_emu_start(self._handle, self.codec.read_rip(), 0, 0, 0)
        if self._planted is not None:  # its #DB has not come
            self._unplant()
        if self._fetch_failed:
            self._fetch_failed = False
            return UC_ERR_FETCH_PROT
        return status

    def _execute_alone(self) -> int:
        """Execute the instruction of the nested page fault."""
        gpa, self._fault = self._fault or 0, None
        cpu = self._traps.cpu
        words = cpu.words
        cpu.save()
        rip, shadow = words[cpu.rip], words[cpu.hidden] & _INHIBIT
        words[cpu.hidden] = (words[cpu.hidden] | _INHIBIT) & ~NPT
        cpu.restore()
        self._flush_tlb()
        self._forget_pieces()
        self._skip = 0
        if not gpa % PAGE:  # it may have begun in the page before
            self._tell_truth(True)
        self._alone = True
        try:
            status: int = uclib.uc_emu_start(self._handle, rip, 0, 0, 0)
        finally:
            self._alone = False
        self._tell_truth(False)
        cpu.save()
        if words[cpu.rip] == rip and not shadow and self._traps.fetches.alone_at is None:
            words[cpu.hidden] &= ~_INHIBIT  # it has not retired
        words[cpu.hidden] |= NPT
        cpu.restore()
        self._flush_tlb()
        if words[cpu.rip] != rip and not self._goes_on():
            self._last_pass(rip)
        self._busy = self._phases.busy(self._mmio_accesses)
        return status

    def _last_pass(self, began: int) -> None:
        """A REP whose count has become 0 ends when it is executed once more and does nothing; KVM shows it
        so, and Unicorn does it so, but for an instruction translated alone."""
        cpu = self._traps.cpu
        length = cpu.words[cpu.rip] - began
        if not 0 < length < 16:
            return
        repeat, opcode = self._opcode(length)
        if not repeat or opcode not in STRING:
            return
        if opcode in _COMPARING and cpu.rflags() >> 6 & 1 != (repeat == 0xF3):
            return  # the comparison ended it, not the count
        cpu.words[cpu.rip] = began
        cpu.restore()

    def _flush_tlb(self) -> None:
        check(uclib.uc_ctl(self._handle, _FLUSH_TLB), "flush the TLB")

    # -- stops behind an access

    def _stop_behind(self) -> None:
        if not self._free:
            self._stop_counted()
        elif self._alone or self._io is None:
            self._leave()
        elif self._planted is None:
            self._plant(*self._io)

    def _look_soon(self) -> None:
        """Where no clock counts it is enough to stop at the next block."""
        if self._free and not self.vm.options.exact_interrupts and not self._in_trap:
            self._leave()
        else:
            super()._look_soon()

    def _stop_counted(self) -> None:
        raise NotImplementedError

    def _plant(self, port: int, size: int) -> None:
        """In the callback of an IN or OUT: have #DB come behind it."""
        codec = self.codec
        dr0, dr6, dr7 = (
            codec.read(number)
            for number in (x86_const.UC_X86_REG_DR0, x86_const.UC_X86_REG_DR6, x86_const.UC_X86_REG_DR7)
        )
        self._planted = dr0, dr6, dr7, codec.read_rip()
        codec.write(x86_const.UC_X86_REG_DR0, port)
        # Enabled, of I/O, for one byte: that is enough to be hit.
        codec.write(x86_const.UC_X86_REG_DR7, dr7 & ~0xF0003 | 1 | 2 << 16)

    def _unplant(self) -> int:
        """Outside translated code. The RIP of the instruction that it was planted in."""
        assert self._planted is not None
        cpu = self._traps.cpu
        cpu.save()
        words, at = cpu.words, cpu.debug
        words[at], words[at + 6], words[at + 7], rip = self._planted
        self._planted = None
        cpu.ints[cpu.old_exception] = -1
        cpu.restore()
        return rip

    def _behind_io(self) -> None:
        """In the hook for the #DB that was planted: QEMU is behind the whole instruction, also where it
        is repeated and has been executed once."""
        cpu = self._traps.cpu
        words = cpu.words
        rip = self._unplant()
        length = words[cpu.rip] - rip & _M64
        repeat, opcode = self._opcode(length)
        if repeat and opcode in STRING:
            width = self._count_bits(length)
            words[cpu.rip] = rip
            at = cpu.registers + 1
            mask = (1 << width) - 1
            count = (words[at] & mask) - 1 & mask
            words[at] = count if width == 32 else words[at] & ~mask & _M64 | count
        own = self._own_breakpoints()
        if own or words[cpu.flags] & _TF:
            words[cpu.debug + 6] |= own | (_DR6_BS if words[cpu.flags] & _TF else 0)
            self._after_trap(self._traps.deliver_saved(DB, None, "trap"))
        else:
            cpu.restore()
        self._at_boundary = True

    def _count_bits(self, back: int) -> int:
        """How many bits of RCX the repeated instruction that ends at RIP counts in."""
        code, code64 = self._code(back)
        hidden = self._traps.cpu.words[self._traps.cpu.hidden]
        other = 0x67 in code[: back - 1]  # an INS or OUTS has nothing but prefixes before its opcode
        if code64:
            return 32 if other else 64
        return 32 if bool(hidden & _CODE32) != other else 16

    def _own_breakpoints(self) -> int:
        """Bits of DR6 for the guest's own breakpoints of I/O that the access at hand hits."""
        words, at = self._traps.cpu.words, self._traps.cpu.debug
        assert self._io is not None
        port, size = self._io
        dr7, hit = words[at + 7], 0
        for n in range(4):
            if dr7 >> 2 * n & 3 and dr7 >> 16 + 4 * n & 3 == 2:
                reach = (1, 2, 8, 4)[dr7 >> 18 + 4 * n & 3]
                if port + size > words[at + n] and port < words[at + n] + reach:
                    hit |= 1 << n
        return hit

    def _begin_mmio(self) -> None:
        super()._begin_mmio()
        if self._alone:
            self._leave()

    # -- in the hook for exceptions

    def _trapped(self, number: int) -> str | None:
        if not self._free:
            return self._trapped_counted(number)
        if number == INTERCEPTS + NPF:
            self._nested_fault()
            return None
        if number == DB and self._planted is not None:
            self._behind_io()
            return None
        if self._alone:
            self._at_boundary = True
        result = super()._trapped(number)
        if result == ARMING:
            self._armed = self._at_boundary = True
            return None
        return result

    def _trapped_counted(self, number: int) -> str | None:
        return super()._trapped(number)

    def _nested_fault(self) -> None:
        cpu = self._traps.cpu
        cpu.save()
        check(uclib.uc_mem_read(self._handle, _EXITINFO2, self._exit_info, 8), "read memory")
        gpa = int.from_bytes(self._exit_info.raw, "little")
        if cpu.words[cpu.error] & FETCH:
            self._fetch_failed = True
        else:
            self._mend_begun()
            cpu.restore()
            self._fault = gpa
        self._at_boundary = True

    def _mend_begun(self) -> None:
        """On words just saved, in the hook for a fault of an instruction of free code: see `unicorn_lazy`.
        Where only QEMU's translator knew whether the flags were computed, what they look like decides,
        and the instruction before."""
        asked = self._asked()
        if asked or (asked is None and self._looks_settled() and not self._flags_just_set()):
            self._take_for_flags()

    def _mend_perhaps(self) -> None:
        """The same where the fault may be of a later fetch: then the instruction at RIP is not begun. It is
        of a load where the block ends before the page does."""
        if self._asked() and self._block_ends_in_page():
            self._take_for_flags()

    def _asked(self) -> bool | None:
        """Whether the instruction at RIP, being begun, has put the flags where an operand was."""
        cpu = self._traps.cpu
        words, at = cpu.words, cpu.flags
        source, operation = words[at + 2], words[at + 4]
        if source & ~STATUS or operation & _LOW == CC_EFLAGS:
            return False
        return asks_first(self._traps.code(), bool(words[cpu.hidden] & _CODE64), operation, source)

    def _looks_settled(self) -> bool:
        words, at = self._traps.cpu.words, self._traps.cpu.flags
        return settled_already(words[at + 4], words[at + 2], words[at + 1])

    def _take_for_flags(self) -> None:
        words, at = self._traps.cpu.words, self._traps.cpu.flags
        words[at + 4] = words[at + 4] & ~_LOW | CC_EFLAGS

    def _flags_just_set(self) -> bool:
        """Whether the bytes before RIP are an instruction that sets flags: then it is of the same block."""
        decoder, linear = self._decoder()
        decoder.detail = True
        for size in range(1, _LONGEST + 1):
            found = next(decoder.disasm(self._traps.memory.peek(linear - size, size), 0, 1), None)
            if found is not None and found.size == size and _EFLAGS in found.regs_access()[1]:
                return True
        return False

    def _block_ends_in_page(self) -> bool:
        """Whether code from RIP on has a branch before the page ends."""
        import capstone

        decoder, linear = self._decoder()
        decoder.detail = True
        ends = (capstone.CS_GRP_JUMP, capstone.CS_GRP_CALL, capstone.CS_GRP_RET, capstone.CS_GRP_IRET)
        code = self._traps.memory.peek(linear, PAGE - linear % PAGE)
        return any(insn.group(end) for insn in decoder.disasm(code, 0) for end in ends)

    def _decoder(self) -> tuple[Any, int]:
        """For the code at RIP, as of the last save, and its linear address."""
        import capstone

        cpu = self._traps.cpu
        hidden = cpu.words[cpu.hidden]
        mode = capstone.CS_MODE_32 if hidden & _CODE32 else capstone.CS_MODE_16
        mode = capstone.CS_MODE_64 if hidden & _CODE64 else mode
        self._traps.use_memory(0)
        return capstone.Cs(capstone.CS_ARCH_X86, mode), cpu.linear(cpu.words[cpu.rip])

    # -- the rest

    def glance(self) -> bytes:
        return self.codec.glance(hooked=self._traps.hooked)

    def set_breakpoints(self, addresses: frozenset[int]) -> None:
        super().set_breakpoints(addresses)
        if addresses and self._free:
            self._set_free(False)


@functools.cache
def free_usable() -> tuple[bool, str]:
    """(whether code can be free with this Unicorn, why). Runs once a process; never raises."""
    global _testing
    from .selftest import self_test

    if sys.platform == "darwin" and platform.machine() == "arm64":
        # uc_emu_stop counts how deep it is in the API, without a lock; the last out switches the right to
        # write translated code, of its own thread. From a second thread that is a race.
        return False, "uc_emu_stop from another thread is not safe on Apple silicon"
    try:
        no_exit_offset()
    except NotSupported as error:
        return False, str(error)
    _testing = True
    try:
        return self_test()
    except (UcError, VmmsimError, AssertionError, OSError) as error:
        return False, f"the self-test of free code ended with: {error}"
    finally:
        _testing = False


#: The self-test is under way, which makes a vCPU that is free unproved.
_testing = False
