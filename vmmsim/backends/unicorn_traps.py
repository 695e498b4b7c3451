"""The trap unit: exceptions, interrupts, system calls and intercepts of a guest on Unicorn.

Unicorn never uses the guest's IDT: it hands each exception to a hook. Here it is delivered,
as SDM vol. 3, chapter 6 says, in every mode of the CPU. An exception that the delivery
itself meets is delivered in its place, or becomes #DF, or a triple fault (6.15, table 6-5).

`TrapUnit.raised` is what an INTR hook calls. It is quick for what 64-bit guests do all day
(an interrupt or trap gate to 64-bit code, from the same CPL or from CPL 3, by IST, too):
some words of the CPU structure and of the guest's tables are looked at and set. All that is
not plain there is `unicorn_trap_gates`'.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ..cpu.vectors import ERROR_CODE_VECTORS, vector_name
from .unicorn_trap_calls import Calls
from .unicorn_trap_cpu import CS, SS, TR, CpuWords
from .unicorn_trap_fetch import AGAIN, FetchFaults
from .unicorn_trap_gates import Gates, image
from .unicorn_trap_intercepts import ALL, HALTED, VMCB, VMCB_SIZE, Intercepts, vmcb_bytes
from .unicorn_trap_memory import GuestFault, GuestRam, LinearMemory
from .unicorn_trap_msrs import Platform
from .unicorn_trap_tasks import switch_task

if TYPE_CHECKING:
    from .unicorn_context import ContextCodec

__all__ = ["AGAIN", "HALTED", "VMCB", "VMCB_SIZE", "GuestRam", "Platform", "TrapUnit", "vmcb_bytes"]

_DB, _UD, _DF, _GP, _PF = 1, 6, 8, 13, 14
_DR7_GD = 1 << 13
_CONTRIBUTORY = frozenset({0, 10, 11, 12, 13})
_TF, _IF, _NT, _RF, _VM = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17
_LMA = 1 << 14
#: Hidden flags: interrupts are held off; CPL, and what the code and the stack segment decide.
_CODE64 = 1 << 4 | 1 << 15
_FOLLOWS = 3 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 15
_SS32 = 1 << 5
#: In the upper half of the word of hidden flags: NMIs are held off.
_NMI_MASKED = 1 << 34
_VMEXIT = 0x100

_FRAME = struct.Struct("<5Q")
_FRAME_ERROR = struct.Struct("<6Q")
_QWORD = struct.Struct("<Q")
#: Decoded gates are forgotten when there are more: a guest that rewrites its IDT all the time.
_MOST_PLANS = 1024


class TrapUnit:
    """Delivers events to the guest of one engine, into `memory`.

    Everything may be called outside `emu_start`, and in INTR and INSN_INVALID hooks, where it
    takes effect at once; `syscall` and `sysenter` only in theirs. Each method returns None when
    the guest can go on, at its handler or behind the instruction, else a text for people: why
    the CPU shuts down (a triple fault). `platform` answers what is not the CPU's: see `Platform`.
    """

    def __init__(self, codec: ContextCodec, memory: GuestRam, platform: Platform | None = None) -> None:
        self.cpu = CpuWords(codec)
        self.memory = LinearMemory(memory)
        self.gates = Gates(self.cpu, self.memory)
        self.calls = Calls(self)
        self.intercepts = Intercepts(self, platform or Platform())
        self.fetches = FetchFaults(self.cpu, self.code)
        self._plans: dict[tuple[int, int, int], tuple | None] = {}
        #: Whether what was `raised` last is a fault of an instruction that was begun, and has not retired.
        self.was_fault = False
        #: A hook is called before each instruction: see `unicorn_lazy`.
        self.hooked = False
        #: Where none is, and nobody else mends the flags of a fault: does it, on words just saved.
        self.mend_begun: Callable[[], None] = lambda: None

    # -- what hooks and the run loop call

    def raised(self, number: int) -> str | None:
        """The INTR hook's `number`: an exception, a software interrupt, or 0x100 and an intercept.

        Where HLT is intercepted it answers HALTED, with RIP behind it: to halt is the caller's. It
        answers AGAIN where the fault came too early and no instruction is begun.
        """
        cpu = self.cpu
        cpu.save()
        self.was_fault = False
        if number == _PF and self.fetches.again(hooked=self.hooked):
            return AGAIN
        fetching = self.fetches.fetching(number)
        if self.fetches.alone_at is not None:
            self.fetches.settle()
        if self.hooked:
            cpu.mend_flags(begun=number != _DB and not fetching)
        elif number < _VMEXIT and number != _DB and not fetching:
            self.mend_begun()
        if self.intercepts.let_through and self.intercepts.rearm(number):
            return None
        if number >= _VMEXIT:
            return self.intercepts.handle(number - _VMEXIT)
        how = cpu.words[cpu.error]
        # Or the next intercept, too, would be taken for an INT, and RIP set to where that ended.
        cpu.words[cpu.error] = how & 0xFFFFFFFF
        self.was_fault = not how >> 32 and number != _DB and not fetching
        if how >> 32:
            return self.deliver_saved(number, None, "soft")
        error = how & 0xFFFFFFFF if number in ERROR_CODE_VECTORS else None
        return self.deliver_saved(number, error, "trap" if number == _DB else "fault")

    def deliver(self, vector: int, *, error: int | None = None, kind: str) -> str | None:
        """Deliver `vector` with its `error` code, None for an event that has none.

        `kind` is `fault` (RIP is at the instruction), `trap` (behind it), `soft` (INT n, INT3 or
        INTO, which the engine has passed), `icebp`, `hard` (external) or `nmi`, which also masks
        further NMIs until IRET. For #PF CR2 is set already.
        """
        self.cpu.save()
        if self.intercepts.let_through:
            self.intercepts.rearm(None)
        return self.deliver_saved(vector, error, kind)

    def undefined(self) -> str | None:
        """In the INSN_INVALID hook: #UD, or the #DB of ICEBP (INT1), which the engine does not know."""
        cpu = self.cpu
        cpu.save()
        if self.fetches.alone_at is not None:
            self.fetches.settle()
        if self.hooked:
            cpu.mend_flags()
        if self.intercepts.let_through:
            self.intercepts.rearm(None)
        how = cpu.words[cpu.error]
        cpu.words[cpu.error] = how & 0xFFFFFFFF
        if how >> 32:  # INT 6
            return self.deliver_saved(_UD, None, "soft")
        if self.code(1) == b"\xf1":
            cpu.words[cpu.rip] += 1
            return self.deliver_saved(_DB, None, "icebp")
        return self.deliver_saved(_UD, None, "fault")

    def forget_int(self) -> None:
        """In the hook, before `deliver`: what was raised is no longer the engine's to look at."""
        self.cpu.save()
        self.cpu.words[self.cpu.error] &= 0xFFFFFFFF
        self.cpu.restore()

    def mark_loaded(self) -> None:
        """In the hook, behind QEMU's own delivery: see `Gates.mark_loaded`."""
        self.cpu.save()
        self.use_memory(0)
        self.gates.mark_loaded()
        self.cpu.restore()

    def intercept(self, code: int) -> str | None:
        """Emulate the instruction of an armed intercept: `code` is SVM's (number - 0x100)."""
        self.cpu.save()
        return self.intercepts.handle(code)

    def syscall(self) -> str | None:
        """In the SYSCALL hook. Outside 64-bit code, or without EFER.SCE, delivers #UD."""
        self.cpu.save()
        return self.calls.syscall()

    def sysenter(self) -> str | None:
        """In the SYSENTER hook. With a null IA32_SYSENTER_CS, delivers #GP(0)."""
        self.cpu.save()
        return self.calls.sysenter()

    def arm(self, codes: Iterable[int] = ALL) -> None:
        """Have `codes` (SVM's exit codes, see `unicorn_trap_intercepts`) come to `raised`. The
        memory that `vmcb_bytes` describes must be mapped."""
        self.intercepts.arm(codes)

    def read_msr(self, index: int) -> int | None:
        """An MSR that the CPU itself has, None for another. With MSR intercepts armed the engine's
        own function for it, which `codec.read_msr` calls, takes the process down."""
        self.cpu.save()
        return self.intercepts.msrs.read(index)

    def write_msr(self, index: int, value: int) -> bool | None:
        """The same for a write: False where the guest would have got #GP. Outside a run, or in an
        INTR or INSN_INVALID hook."""
        self.cpu.save()
        done = self.intercepts.msrs.write(index, value)
        if done:
            self.cpu.restore()
            self.cpu.codec.flush_tlb()  # EFER.NXE
        return done

    def code(self, size: int = 15) -> bytes:
        """Up to `size` bytes at RIP, as of the last save, as far as they can be read."""
        cpu, memory = self.cpu, self.memory
        words = cpu.words
        linear = cpu.linear(words[cpu.rip])
        if words[cpu.hidden] & _LMA and (linear & 0xFFF) + size <= 0x1000:
            space = memory.space(words[cpu.cr + 3], words[cpu.cr + 4], words[cpu.efer])
            page = memory.find(space, linear, 0)
            if page is not None:
                at = page[14] + (linear & 0xFFF)
                return bytes(page[12][at : at + size])
        self.use_memory(0)
        return memory.peek(linear, size)

    # -- delivery

    def use_memory(self, rflags: int) -> None:
        """Translate by the control registers as of the last save."""
        cpu, words = self.cpu, self.cpu.words
        cr = cpu.cr
        cpl = words[cpu.hidden] & 3
        self.memory.use(words[cr], words[cr + 3], words[cr + 4], words[cpu.efer], rflags, cpl)

    def deliver_saved(self, vector: int, error: int | None, kind: str) -> str | None:
        """`deliver` of words just saved, and edited since: the quick way if it can be gone."""
        cpu = self.cpu
        if vector == _DB and kind in ("fault", "trap"):  # the handler may use the debug registers
            cpu.words[cpu.debug + 7] &= ~_DR7_GD
        if cpu.words[cpu.hidden] & _LMA and self._quick(vector, error, kind):
            cpu.restore()
            return None
        return self.deliver_fully(vector, error, kind)

    def deliver_fully(self, vector: int, error: int | None, kind: str, *, restore: bool = True) -> str | None:
        """`deliver` by the complete way, on the words as they are, without the restore if told so."""
        cpu, words = self.cpu, self.cpu.words
        rflags = cpu.rflags()
        rip = words[cpu.rip]
        self.use_memory(rflags)
        at = rip
        first = vector_name(vector)
        while True:
            try:
                task = self.gates.deliver(vector, error, kind, at, rflags)
                if task is not None:
                    switch_task(self, task, error, kind, at, image(vector, kind, rflags))
                break
            except GuestFault as fault:
                if kind == "soft":  # the INT itself failed, and is what the handler returns to
                    at = rip - self._soft_length(vector, rip)
                if fault.address is not None:
                    words[cpu.cr + 2] = fault.address
                second = vector_name(fault.vector)
                if vector == _DF and kind == "fault":
                    self._drop()
                    return (
                        f"{first} at rip {at:#x}, then {second} (error code {fault.error:#x}) "
                        "while #DF was delivered"
                    )
                escalates = kind == "fault" and (
                    (vector == _PF and (fault.vector == _PF or fault.vector in _CONTRIBUTORY))
                    or (vector in _CONTRIBUTORY and fault.vector in _CONTRIBUTORY)
                )
                if escalates:
                    vector, error = _DF, 0
                else:
                    vector, error = fault.vector, fault.error
                kind = "fault"
        words[cpu.hidden] |= _NMI_MASKED if kind == "nmi" else 0
        cpu.ints[cpu.old_exception] = -1
        if restore:
            cpu.restore()
        return None

    def _drop(self) -> None:
        """End a delivery that failed: of the words only CR2 and the engine's memory of an earlier
        exception have changed."""
        self.cpu.ints[self.cpu.old_exception] = -1
        self.cpu.restore()

    def _soft_length(self, vector: int, rip: int) -> int:
        """The length of the INT n, INT3 or INTO that ends at `rip`. A prefix is not seen."""
        code = self.memory.peek(self.cpu.linear(rip - 2), 2)
        return 1 if code[1:] in (b"\xcc", b"\xce") and vector in (3, 4) else 2

    def _quick(self, vector: int, error: int | None, kind: str) -> bool:
        """Deliver through a 64-bit gate where nothing is unusual. False: nothing has been done."""
        cpu, memory = self.cpu, self.memory
        words = cpu.words
        hidden = words[cpu.hidden]
        offset = vector << 4
        entry = words[cpu.idt] + offset
        if entry & 15 or offset + 15 > words[cpu.idt + 1] & 0xFFFFFFFF:
            return False
        space = memory.space(words[cpu.cr + 3], words[cpu.cr + 4], words[cpu.efer])
        page = memory.find(space, entry, 0)
        if page is None:
            return False
        at = page[14] + (entry & 0xFFF) >> 3
        gate, upper = page[13][at], page[13][at + 1]
        at = words[cpu.gdt] + (gate >> 16 & 0xFFF8)
        if at & 7 or gate >> 16 & 0xFFFF | 7 > words[cpu.gdt + 1] & 0xFFFFFFFF:
            return False
        page = memory.find(space, at, 0)
        if page is None:
            return False
        descriptor = page[13][page[14] + (at & 0xFFF) >> 3]
        key = gate, upper, descriptor
        try:
            plan = self._plans[key]
        except KeyError:
            plan = self._plan(gate, upper, descriptor)
        if plan is None:
            return False
        target, selector, attributes, dpl, gate_dpl, stack, kept = plan
        cpl = hidden & 3
        if dpl > cpl or (kind == "soft" and gate_dpl < cpl):
            return False
        old_rsp = rsp = words[cpu.rsp]
        if not stack and dpl < cpl:
            stack = 4 + 8 * dpl
        segments = cpu.segments
        if stack:
            tss = segments + 3 * TR
            if stack + 7 > words[tss + 2] & 0xFFFFFFFF:
                return False
            at = words[tss + 1] + stack
            if at & 0xFFF > 0xFF8:
                return False
            page = memory.find(space, at, 0)
            if page is None:
                return False
            rsp = _QWORD.unpack_from(page[12], page[14] + (at & 0xFFF))[0]
            if rsp == 1 << 47:  # the only one that is not canonical while its frame is
                return False
        rsp &= ~15
        bottom = rsp - 40 if error is None else rsp - 48
        if bottom < 0 or bottom >> 12 != rsp - 1 >> 12:
            return False
        page = memory.find(space, bottom, 1)
        if page is None:
            return False
        image = cpu.rflags() & ~_RF
        if kind == "fault" and vector != 1 and vector != _DF and vector != 18:
            image |= _RF
        code_at, stack_at = segments + 3 * CS, segments + 3 * SS
        at = page[14] + (bottom & 0xFFF)
        if error is None:
            _FRAME.pack_into(
                page[12],
                at,
                words[cpu.rip],
                words[code_at] & 0xFFFF,
                image,
                old_rsp,
                words[stack_at] & 0xFFFF,
            )
        else:
            _FRAME_ERROR.pack_into(
                page[12], at, error, words[cpu.rip], words[code_at] & 0xFFFF, image, old_rsp,
                words[stack_at] & 0xFFFF,
            )  # fmt: skip
        words[cpu.rsp] = bottom
        words[cpu.rip] = target
        words[code_at] = selector
        words[code_at + 1] = 0
        words[code_at + 2] = attributes
        hidden = hidden & ~_FOLLOWS | dpl | _CODE64
        if dpl < cpl:
            words[stack_at] = dpl
            words[stack_at + 1] = 0
            words[stack_at + 2] = dpl << 45
            hidden &= ~_SS32
        words[cpu.hidden] = hidden | _NMI_MASKED if kind == "nmi" else hidden
        words[cpu.flags] &= kept
        cpu.ints[cpu.old_exception] = -1
        return True

    def _plan(self, gate: int, upper: int, descriptor: int) -> tuple | None:
        """What a gate to 64-bit code comes down to, or None where it is not the usual kind:
        present, not conforming, accessed, in the GDT, and not of CPL 3."""
        plan = None
        target = gate & 0xFFFF | gate >> 32 & 0xFFFF0000 | (upper & 0xFFFFFFFF) << 32
        dpl = descriptor >> 45 & 3
        usual = (
            gate >> 41 & 0x47 == 0x47  # present, and one of the types 14 and 15
            and gate >> 44 & 1 == 0
            and gate >> 16 & 0xFFF8
            and not gate >> 18 & 1
            and descriptor >> 40 & 0x9D == 0x99  # present code, not conforming, accessed
            and descriptor >> 53 & 3 == 1
            and dpl != 3
            and target >> 47 in (0, 0x1FFFF)
        )
        if usual:
            limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
            if descriptor >> 55 & 1:
                limit = limit << 12 | 0xFFF
            ist = gate >> 32 & 7
            gone = _TF | _NT | _RF | _VM | (0 if gate >> 40 & 1 else _IF)
            plan = (
                target,
                gate >> 16 & 0xFFF8 | dpl,
                limit | (descriptor >> 32 & 0xF0FF00) << 32,
                dpl,
                gate >> 45 & 3,
                0x1C + 8 * ist if ist else 0,
                ~gone,
            )
        if len(self._plans) >= _MOST_PLANS:
            self._plans.clear()
        self._plans[gate, upper, descriptor] = plan
        return plan
