"""The whole CPU state through the bytes of a `uc_context`: exact, but beyond the documented API.

A context holds a header and then QEMU's own CPU structure, so hidden segment parts, the
interrupt shadow and the error code can be seen and set. Nobody promises that layout.
Therefore no offset is written down here: each is found once per process by putting
distinctive values in through documented calls and instructions and looking for them in
the bytes, and the first write is proved by a guest that uses what was written. Where that
fails, `context_usable` says why, and the backend cannot be used.
"""

from __future__ import annotations

import functools
import struct

from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import Uc, UcError

from ..cpu import msrs
from ..cpu.state import CpuState, Events, FpuState, Registers, Segment, Table
from ..errors import NotSupported
from .unicorn_glance import GLANCE_SIZE, HOOKED_SIZE
from .unicorn_probe import ContextBytes, Layout, find_layout, prove
from .unicorn_registers import RegisterAccess, quick, scratch_engine

__all__ = ["NOT_HELD", "ContextCodec", "context_usable"]

#: Fields of CpuState that the engine has no place for; the backend keeps them itself.
NOT_HELD = {
    "events.exception": "an exception is delivered by the backend, never pending in the engine",
    "events.error_code": "as events.exception",
    "events.nmi_pending": "the engine has no NMI input",
    "events.mov_ss_shadow": "the engine has one bit for both shadows; with IF set it reads as sti_shadow",
    "halted": "a halted vCPU belongs to the VMM",
}

_REGISTERS = struct.Struct("<17Q")  # GPRs in encoding order, RIP
_FLAGS = struct.Struct("<4QIiI")  # RFLAGS; lazy result, source, source 2, operation, direction; hidden flags
_SEGMENT = struct.Struct("<I4xQII")  # selector, base, limit, attributes as in a descriptor's second dword
_SEGMENTS = struct.Struct("<" + "I4xQII" * 10)  # ES CS SS DS FS GS LDTR TR GDTR IDTR
_QWORD = struct.Struct("<Q")
_INT = struct.Struct("<i")
_FPU = struct.Struct("<IHH8B")  # top of stack, status, control, tag of each physical register (1 is empty)
_FPU_POINTERS = struct.Struct("<H6xQQ")  # opcode, (selectors), instruction and data pointer
_DEBUG = struct.Struct("<8Q")
_X87 = struct.Struct("<QH")
_YMM = struct.Struct("<4Q")

_DR7_ENABLED = 0xFF  # L0, G0 to L3, G3
_LAZY_EFLAGS = 1  # "the source operand is the flags themselves"
_CC = 0x8D5  # OF SF ZF AF PF CF
_HIDDEN_INHIBIT = 1 << 3
_HIDDEN_NMI = 1 << 2  # in the second word of hidden flags
# SVM's virtual interrupt masking, in the same word. Without it MOV from CR8 reads 0 in Unicorn,
# with it what MOV to CR8 wrote; the only other effect is on an interrupt line that nobody drives.
_HIDDEN_CR8 = 1 << 3
_HIDDEN_KEPT = 0x7280000  # SMM, SVM guest, I/O breakpoints, MPX: not a function of CpuState


class ContextCodec(RegisterAccess):
    """Reads and writes the state of one engine opened with UC_MODE_64.

    Everything may be called outside `emu_start`, and in INTR and INSN_INVALID hooks, where
    what is written takes effect at once. Elsewhere in a run only reads, and only of what
    `RegisterAccess` promises. Raises NotSupported when the layout is not the known one.
    """

    segment_state = "exact"

    def __init__(self, uc: Uc, layout: Layout | None = None) -> None:
        super().__init__(uc)
        reason = ""
        if layout is None:
            layout, reason = _layout()
        if layout is None:
            raise NotSupported(
                f"this Unicorn's context cannot be used: {reason}", hint="use unicorn 2.1.4, or backend kvm"
            )
        self.layout = layout
        self.context = ContextBytes(uc)
        begin = layout.registers
        self._glances = [self.context.data[begin : begin + size] for size in (GLANCE_SIZE, HOOKED_SIZE)]

    def lazy_source(self) -> int:
        """The source operand of the last operation that set flags; see `unicorn_lazy`."""
        source: int = _FLAGS.unpack_from(self.context.save(), self.layout.flags)[2]
        return source

    def glance(self, *, hooked: bool) -> bytes:
        """What `unicorn_glance` reads; `hooked`: a hook is called before each instruction."""
        quick.uc_context_save(self.engine, self.context._handle)
        return self._glances[hooked].tobytes()

    def write_registers(self, registers: Registers) -> None:
        """General registers, RIP and RFLAGS; in an INTR hook it does not end the run."""
        self.put_registers(self.context.save(), registers)
        self.context.restore()

    def read_state(self) -> CpuState:
        at = self.layout
        data = self.context.save()
        rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, rip = (
            _REGISTERS.unpack_from(data, at.registers)
        )
        hidden, hidden2 = struct.unpack_from("<II", data, at.flags + 40)
        rflags = self.read(x86.UC_X86_REG_RFLAGS)
        s = _SEGMENTS.unpack_from(data, at.segments)
        cr = struct.unpack_from("<9Q", data, at.cr)
        debug = _DEBUG.unpack_from(data, at.debug)
        return CpuState(
            rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp,
            r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags,
            es=_segment(*s[0:4]), cs=_segment(*s[4:8]), ss=_segment(*s[8:12]), ds=_segment(*s[12:16]),
            fs=_segment(*s[16:20]), gs=_segment(*s[20:24]), ldt=_segment(*s[24:28]),
            tr=_busy(_segment(*s[28:32])),
            gdt=Table(s[33], s[34]), idt=Table(s[37], s[38]),
            cr0=cr[0], cr2=cr[2], cr3=cr[3], cr4=cr[4], cr8=data[at.tpr],
            efer=_QWORD.unpack_from(data, at.efer)[0],
            xcr0=_QWORD.unpack_from(data, at.xcr0)[0],
            dr=list(debug[:4]), dr6=debug[6], dr7=debug[7],
            msrs={index: _msr(index, data, offset) for index, offset in at.msr.items()},
            fpu=self.fpu(data),
            events=_events(rflags, hidden & _HIDDEN_INHIBIT, hidden2),
        )  # fmt: skip

    def write_state(self, state: CpuState) -> None:
        """Replace everything but what `NOT_HELD` names. An MSR that `state.msrs` lacks is reset,
        and a CS.base in 64-bit mode, which means nothing there, becomes 0.

        Breakpoints in DR7 are kept but not armed until the guest writes DR7 itself. Raises
        NotSupported when the guest has armed some and `state` has others.
        """
        at, s = self.layout, state
        data = self.context.save()
        self._check_armed(data, s)
        old = (*struct.unpack_from("<5Q", data, at.cr), _QWORD.unpack_from(data, at.efer)[0])
        self.put_registers(data, s)
        hidden, hidden2 = struct.unpack_from("<II", data, at.flags + 40)
        hidden2 = hidden2 & ~_HIDDEN_NMI | (_HIDDEN_NMI if s.events.nmi_masked else 0) | _HIDDEN_CR8
        struct.pack_into("<II", data, at.flags + 40, hidden_flags(s) | hidden & _HIDDEN_KEPT, hidden2)
        # QEMU adds CS.base in 64-bit mode too, where the CPU ignores it.
        cs = s.cs if s.mode != "l64" else Segment(s.cs.selector, 0, s.cs.limit, s.cs.attr)
        _SEGMENTS.pack_into(
            data, at.segments, *_raw(s.es), *_raw(cs), *_raw(s.ss), *_raw(s.ds), *_raw(s.fs), *_raw(s.gs),
            *_raw(s.ldt), *_raw(_not_busy(s.tr)),
            0, s.gdt.base, s.gdt.limit, 0, 0, s.idt.base, s.idt.limit, 0,
        )  # fmt: skip
        struct.pack_into("<9Q", data, at.cr, s.cr0, 0, s.cr2, s.cr3, s.cr4, 0, 0, 0, s.cr8)
        data[at.tpr] = s.cr8
        _QWORD.pack_into(data, at.efer, s.efer)
        _QWORD.pack_into(data, at.xcr0, s.xcr0)
        _DEBUG.pack_into(data, at.debug, *s.dr, 0, 0, s.dr6, s.dr7)
        _INT.pack_into(data, at.old_exception, -1)
        for index, offset in at.msr.items():
            value = s.msrs.get(index, msrs.STATE_MSRS[index])
            if index == msrs.SYSENTER_CS:
                struct.pack_into("<I", data, offset, value & 0xFFFFFFFF)
            else:
                _QWORD.pack_into(data, offset, value)
        self.put_fpu(data, s.fpu)
        self.context.restore()
        # The rounding and precision that arithmetic uses are only derived in these two calls.
        self.write(x86.UC_X86_REG_FPCW, s.fpu.fcw)
        self.write(x86.UC_X86_REG_MXCSR, s.fpu.mxcsr)
        if old != (s.cr0, 0, s.cr2, s.cr3, s.cr4, s.efer):
            self.flush_tlb()

    def _check_armed(self, data: memoryview, state: CpuState) -> bool:
        """Whether the guest has armed breakpoints: those of `state`, else NotSupported."""
        debug = _DEBUG.unpack_from(data, self.layout.debug)
        if not any(data[self.layout.breakpoints : self.layout.breakpoints + 32]):
            return False
        if (*debug[:4], debug[7]) != (*state.dr, state.dr7):
            raise NotSupported(
                f"the guest has armed breakpoints (DR7 {debug[7]:#x}), which Unicorn cannot replace",
                hint="let the guest clear DR7 first, or set the state in a new machine",
            )
        return True

    def check_breakpoints(self, state: CpuState) -> None:
        """NotSupported where `write_state` would lose breakpoints, or refuse `state` for those that the
        guest has armed."""
        if not self._check_armed(self.context.save(), state) and state.dr7 & _DR7_ENABLED:
            raise NotSupported(
                f"the state has armed breakpoints (DR7 {state.dr7:#x}), which Unicorn arms only when the "
                "guest itself writes DR7",
                hint="use backend kvm, or a snapshot from before they were armed",
            )

    def put_registers(self, data: memoryview, r: Registers) -> None:
        """Into the bytes of a context: general registers, RIP and RFLAGS."""
        at = self.layout
        _REGISTERS.pack_into(
            data, at.registers, r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi,
            r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rip,
        )  # fmt: skip
        # Outside a run the engine takes the arithmetic flags from RFLAGS, inside from the
        # lazy source operand: both are given.
        flags = r.rflags | 2
        struct.pack_into(
            "<4QIi", data, at.flags, flags, 0, flags & _CC, 0, _LAZY_EFLAGS, -1 if flags & 1 << 10 else 1
        )

    def fpu(self, data: memoryview) -> FpuState:
        """From the bytes of a context, but MXCSR, which the engine is asked for."""
        at = self.layout
        top, fsw, fcw, *empty = _FPU.unpack_from(data, at.fpu)
        fop, fip, fdp = _FPU_POINTERS.unpack_from(data, at.fpu_pointers)
        x87 = [_X87.unpack_from(data, at.x87 + 16 * ((top + i) & 7)) for i in range(8)]
        ymm = [_YMM.unpack_from(data, at.xmm + 64 * i) for i in range(16)]
        return FpuState(
            fcw=fcw,
            fsw=fsw & ~0x3800 | (top & 7) << 11,
            ftw=sum((not flag) << i for i, flag in enumerate(empty)),
            fop=fop, fip=fip, fdp=fdp,
            mxcsr=self.read(x86.UC_X86_REG_MXCSR) & 0xFFFFFFFF,
            st=[low | high << 64 for low, high in x87],
            xmm=[q[0] | q[1] << 64 for q in ymm],
            ymmh=[q[2] | q[3] << 64 for q in ymm],
        )  # fmt: skip

    def put_fpu(self, data: memoryview, fpu: FpuState) -> None:
        """Into the bytes of a context, but MXCSR; softfloat's view of the control word is not there."""
        at, mask = self.layout, (1 << 64) - 1
        top = fpu.fsw >> 11 & 7
        empty = [1 - (fpu.ftw >> i & 1) for i in range(8)]
        _FPU.pack_into(data, at.fpu, top, fpu.fsw & ~0x3800, fpu.fcw, *empty)
        _FPU_POINTERS.pack_into(data, at.fpu_pointers, fpu.fop, fpu.fip, fpu.fdp)
        for i, value in enumerate(fpu.st):
            _X87.pack_into(data, at.x87 + 16 * ((top + i) & 7), value & mask, value >> 64)
        for i, (low, high) in enumerate(zip(fpu.xmm, fpu.ymmh, strict=True)):
            _YMM.pack_into(data, at.xmm + 64 * i, low & mask, low >> 64, high & mask, high >> 64)


def hidden_flags(state: CpuState) -> int:
    """The translation flags that QEMU keeps beside EFLAGS, as its own segment and control
    register loads would leave them. TF, IOPL, RF, VM and AC have a place in that word too, but
    it must stay 0: the translator takes them from EFLAGS and would see them for ever."""
    cs, ss = state.cs, state.ss
    protected = state.cr0 & 1
    flags = state.cpl | protected << 7 | (state.cr0 & 0xE) << 8
    if state.events.sti_shadow or state.events.mov_ss_shadow:
        flags |= _HIDDEN_INHIBIT
    long = state.efer >> 10 & 1
    code64 = long & cs.l
    code32 = code64 | cs.db
    flags |= code32 << 4 | ss.db << 5 | long << 14 | code64 << 15
    bases = state.ds.base | state.es.base | ss.base
    if not code64 and (not protected or state.rflags & 1 << 17 or not code32 or bases):
        flags |= 1 << 6  # segment bases are added
    flags |= (state.efer >> 12 & 1) << 20 | (state.cr4 >> 9 & 1) << 22 | (state.cr4 >> 21 & 1) << 23
    return flags


@functools.cache
def context_usable() -> tuple[bool, str]:
    """(whether the context bytes can be used, why). About 1 ms, once a process; never raises."""
    layout, reason = _layout()
    return layout is not None, reason


@functools.cache
def _layout() -> tuple[Layout | None, str]:
    try:
        uc = scratch_engine()
        layout = find_layout(uc)
        prove(ContextCodec(uc, layout))
    # Where the structures are others, ctypes may miss a symbol, and on Windows a bad access is an OSError.
    except (UcError, LookupError, NotSupported, struct.error, AttributeError, OSError, ValueError) as error:
        return None, f"the layout of the CPU structure is not the known one: {error}"
    return layout, "every offset was found and checked in this process"


def _segment(selector: int, base: int, limit: int, flags: int) -> Segment:
    attr = flags >> 8 & 0xF0FF
    return Segment(selector, base, limit, attr if attr & 0x80 else attr | 0x10000)


def _busy(tr: Segment) -> Segment:
    """TR as the CPU has it: LTR marks the TSS busy. QEMU only does so in memory,"""
    return Segment(tr.selector, tr.base, tr.limit, tr.attr | 2) if tr.type in (1, 9) else tr


def _not_busy(tr: Segment) -> Segment:
    """and its change of rings aborts the process where the register says busy, too."""
    return Segment(tr.selector, tr.base, tr.limit, tr.attr & ~2) if tr.type in (3, 11) else tr


def _raw(segment: Segment) -> tuple[int, int, int, int]:
    attr = segment.attr & (0xF07F if segment.unusable else 0xF0FF)
    return segment.selector, segment.base, segment.limit, attr << 8


def _events(rflags: int, shadow: int, hidden2: int) -> Events:
    # One bit stands for both shadows, but that of STI is there only with IF set.
    sti = bool(shadow and rflags & 1 << 9)
    return Events(
        sti_shadow=sti, mov_ss_shadow=bool(shadow) and not sti, nmi_masked=bool(hidden2 & _HIDDEN_NMI)
    )


def _msr(index: int, data: memoryview, offset: int) -> int:
    if index == msrs.SYSENTER_CS:
        return struct.unpack_from("<I", data, offset)[0]
    return _QWORD.unpack_from(data, offset)[0]
