"""The whole CPU state by the documented API alone: registers, contexts, and a loader engine.

Everything with a register number is read and written directly. Hidden segment parts are
written by `loader`. Of those, bases are read back by `observer`, but limits
and attributes cannot be: they are remembered as last written, or looked up in the guest's
descriptor tables when the guest has loaded others since.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Callable

from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import Uc, UcContext, UcError, uclib

from ...cpu import msrs
from ...cpu.descriptors import decode_descriptor
from ...cpu.paging import linear_to_gpa
from ...cpu.state import GPR_NAMES, SEGMENT_NAMES, CpuState, Events, FpuState, Segment, Table
from ...errors import NotSupported, UsageError
from ..unicorn_registers import RegisterAccess, check
from .loader import hidden_state, shared_loader
from .observer import Observed, shared_observer

__all__ = ["NOT_HELD", "PortableCodec"]

#: Fields of CpuState that cannot be read back here, and what they read as.
NOT_HELD = {
    "events.exception": "an exception is delivered by the backend, never pending in the engine",
    "events.error_code": "as events.exception",
    "events.nmi_pending": "the engine has no NMI input",
    "events.nmi_masked": "the engine's bit has no register number; reads False",
    "events.mov_ss_shadow": "the engine has one bit for both shadows; with IF set it reads as sti_shadow",
    "halted": "a halted vCPU belongs to the VMM",
    "xcr0": "written, but reads as last written: XSETBV by the guest is not seen",
    "cr8": "reads as last written: MOV to CR8 by the guest is not seen, and MOV from CR8 gives it 0",
}

#: MSRs outside CpuState that a guest sets and that must outlive `write_state`:
#: IA32_MISC_ENABLE, IA32_BNDCFGS, TSC_AUX, VM_HSAVE_PA.
_CARRIED_MSRS = (0x1A0, 0xD90, 0xC0000103, 0xC0010117)

# One batch moves all of these. CR4 comes before CR0: paging in long mode needs CR4.PAE.
_WORDS = (
    *("CR4", "CR0", "CR2", "CR3", "CR8", "DR0", "DR1", "DR2", "DR3", "DR6", "DR7"),
    *("FPCW", "FPSW", "FPTAG", "FIP", "FDP", "FOP", "MXCSR", "FS_BASE", "GS_BASE", "ES", "CS", "SS", "DS"),
    *(name.upper() for name in GPR_NAMES),
    *("RFLAGS", "RIP"),
)
_WIDE = (*(f"FP{i}" for i in range(8)), *(f"YMM{i}" for i in range(16)))
_READ_ONLY = ("FS", "GS")  # a write would load them from the guest's GDT
_NAMES = (*_WIDE, *_WORDS, *_READ_ONLY)
_SIZES = (*(16 for _ in range(8)), *(32 for _ in range(16)), *(8 for _ in (*_WORDS, *_READ_ONLY)))
_IDS = tuple(getattr(x86, f"UC_X86_REG_{name}") for name in _NAMES)
_WRITTEN = len(_WIDE) + len(_WORDS)
_BUFFER = struct.Struct(f"<{sum(_SIZES) // 8}Q")
_WIDE_QWORDS = 16 + 64
_LOW = (1 << 64) - 1
_NULL = 0xFFFC
_VM = 1 << 17

ReadPhysical = Callable[[int, int], bytes]


class PortableCodec(RegisterAccess):
    """Reads and writes the state of one engine opened with UC_MODE_64.

    `read_phys(gpa, size)` gives guest memory, for descriptor tables; UsageError from it
    means that there is none. Everything but `RegisterAccess` is for outside `emu_start`, or
    for an INTR or INSN_INVALID hook, where `write_state` makes the run go on at the new RIP.
    """

    segment_state = "tables"

    def __init__(self, uc: Uc, read_phys: ReadPhysical | None = None) -> None:
        super().__init__(uc)
        self._read_phys = read_phys or self._read_engine
        self._all = ctypes.create_string_buffer(_BUFFER.size)
        start, pointers = ctypes.addressof(self._all), []
        for size in _SIZES:
            pointers.append(start)
            start += size
        self._all_ids = (ctypes.c_int32 * len(_IDS))(*_IDS)
        self._all_pointers = (ctypes.c_void_p * len(_IDS))(*pointers)
        self._context: UcContext | None = None
        self._xcr0 = 1
        self._dr7 = 0x400
        self._protected = 1
        # name -> (the segment as last known, its descriptor in the guest's table then)
        self._known: dict[str, tuple[Segment, bytes | None]] = {
            name: (Segment(0, 0, 0, 0x10000), None) for name in SEGMENT_NAMES
        }

    def error_code(self) -> int | None:
        """None: the error code of an exception has no register number."""
        return None

    def clear_old_exception(self) -> None:
        """Forget the last exception, which Unicorn itself never does: the state goes out and
        in again, since a context from the loader has none. `write_state` does it by itself.

        Where the state cannot be written (virtual-8086 mode, armed breakpoints) nothing is
        done, and a page fault that follows a page fault arrives as a double fault."""
        with contextlib.suppress(NotSupported):
            self.write_state(self.read_state())

    def read_state(self) -> CpuState:
        check(uclib.uc_reg_read_batch(self.engine, self._all_ids, self._all_pointers, len(_IDS)))
        values = _BUFFER.unpack_from(self._all)
        word = dict(zip((*_WORDS, *_READ_ONLY), values[_WIDE_QWORDS:], strict=True))
        tables = {n: self.read_table(getattr(x86, f"UC_X86_REG_{n}")) for n in ("LDTR", "TR", "GDTR", "IDTR")}
        state = CpuState(
            rip=word["RIP"], rflags=word["RFLAGS"],
            ldt=_system_segment(*tables["LDTR"]), tr=_system_segment(*tables["TR"]),
            gdt=Table(*tables["GDTR"][1:3]), idt=Table(*tables["IDTR"][1:3]),
            cr0=word["CR0"], cr2=word["CR2"], cr3=word["CR3"], cr4=word["CR4"], cr8=word["CR8"],
            efer=self.read_msr(msrs.EFER), xcr0=self._xcr0,
            dr=[word[f"DR{i}"] for i in range(4)], dr6=word["DR6"], dr7=word["DR7"],
            msrs={index: self.read_msr(index) for index in msrs.STATE_MSRS},
            fpu=_fpu(values, word),
        )  # fmt: skip
        for name in GPR_NAMES:
            setattr(state, name, word[name.upper()])
        bases = {"fs": word["FS_BASE"], "gs": word["GS_BASE"]}
        if seen := self._observe():
            bases |= {"cs": seen.cs, "ds": seen.ds, "es": seen.es, "ss": seen.ss}
            sti = seen.shadow and bool(state.rflags & 1 << 9)
            state.events = Events(sti_shadow=sti, mov_ss_shadow=seen.shadow and not sti)
        for name in SEGMENT_NAMES:
            found = self._segment(name, word[name.upper()], state)
            base = bases.get(name, found.base)
            setattr(state, name, Segment(found.selector, base, found.limit, found.attr))
        self._remember(state)
        return state

    def write_state(self, state: CpuState) -> None:
        """Replace everything but what `NOT_HELD` names. An MSR that `state.msrs` lacks is reset,
        and a CS.base in 64-bit mode, which means nothing there, becomes 0.

        Raises NotSupported for virtual-8086 mode, for segments that no instruction loads, and
        when the guest has armed breakpoints, which would be lost.
        """
        dr7 = self.read(x86.UC_X86_REG_DR7)
        if dr7 & 0xFF and dr7 != self._dr7:
            raise NotSupported(
                f"the guest has armed breakpoints (DR7 {dr7:#x}), which Unicorn cannot replace",
                hint="let the guest clear DR7 first, or set the state in a new machine",
            )
        context = shared_loader().context(hidden_state(state))
        carried = [(index, self.read_msr(index)) for index in _CARRIED_MSRS]
        self.uc.context_restore(context)
        for index, value in carried:
            if value:
                self.write_msr(index, value)
        s, fpu = state, state.fpu
        top = fpu.fsw >> 11 & 7
        x87 = [fpu.st[(i - top) & 7] for i in range(8)]
        tag = sum((0 if fpu.ftw >> i & 1 else 3) << 2 * i for i in range(8))
        _BUFFER.pack_into(
            self._all, 0,
            *(part for v in x87 for part in (v & _LOW, v >> 64)),
            *(q for low, high in zip(fpu.xmm, fpu.ymmh, strict=True)
              for q in (low & _LOW, low >> 64, high & _LOW, high >> 64)),
            s.cr4, s.cr0, s.cr2, s.cr3, s.cr8, *s.dr, s.dr6, s.dr7,
            fpu.fcw, fpu.fsw, tag, fpu.fip, fpu.fdp, fpu.fop, fpu.mxcsr, s.fs.base, s.gs.base,
            s.es.selector, s.cs.selector, s.ss.selector, s.ds.selector,
            *(getattr(s, name) for name in GPR_NAMES), s.rflags | 2, s.rip, 0, 0,
        )  # fmt: skip
        check(uclib.uc_reg_write_batch(self.engine, self._all_ids, self._all_pointers, _WRITTEN))
        self.write_msr(msrs.EFER, s.efer)
        for index, reset in msrs.STATE_MSRS.items():
            value = s.msrs.get(index, reset)
            if value != reset:
                self.write_msr(index, value)
        self.write_table(x86.UC_X86_REG_GDTR, 0, s.gdt.base, s.gdt.limit, 0)
        self.write_table(x86.UC_X86_REG_IDTR, 0, s.idt.base, s.idt.limit, 0)
        for register, segment in ((x86.UC_X86_REG_LDTR, s.ldt), (x86.UC_X86_REG_TR, s.tr)):
            attr = segment.attr & (0xF07F if segment.unusable else 0xF0FF)
            self.write_table(register, segment.selector, segment.base, segment.limit, attr << 8)
        self.flush_tlb()
        self._xcr0, self._dr7 = s.xcr0, s.dr7
        self._remember(s)

    def interrupt_shadow(self) -> bool:
        """Whether STI or MOV SS holds interrupts off at this boundary."""
        seen = self._observe()
        return seen is not None and seen.shadow

    def _observe(self) -> Observed | None:
        if self._context is None:
            self._context = self.uc.context_save()
        else:
            self.uc.context_update(self._context)
        return shared_observer().observe(self._context)

    def _remember(self, state: CpuState) -> None:
        self._protected = state.cr0 & 1
        for name in SEGMENT_NAMES:
            segment = getattr(state, name)
            self._known[name] = (segment, self._descriptor(state, segment.selector))

    def _segment(self, name: str, selector: int, state: CpuState) -> Segment:
        known, then = self._known[name]
        same = selector == known.selector
        if not state.cr0 & 1:
            # In real mode a load changes the selector and the base, and leaves the rest.
            return known if same else Segment(selector, selector << 4, known.limit, known.attr)
        if state.rflags & _VM:
            return Segment(selector, selector << 4, 0xFFFF, 0xF3)
        now = self._descriptor(state, selector)
        if same and (now is None or (self._protected and now == then)):
            return known
        if now is not None:
            found = decode_descriptor(now, selector)
            if found.present and found.s:
                return Segment(selector, found.base, found.limit, found.attr | 1)
        return Segment(selector, 0, 0, 0x10000 | (selector & 3) << 5)

    def _descriptor(self, state: CpuState, selector: int) -> bytes | None:
        """The 8 bytes in the guest's GDT or LDT, or None for a null selector, one beyond the
        table, a table that is not in memory, and outside protected mode."""
        table: Table | Segment = state.ldt if selector & 4 else state.gdt
        offset = selector & ~7
        if not state.cr0 & 1 or not selector & _NULL or offset + 7 > table.limit:
            return None
        gpa = linear_to_gpa(state, table.base + offset, self._read_phys)
        if gpa is None:
            return None
        try:
            return bytes(self._read_phys(gpa, 8))
        except UsageError:
            return None

    def _read_engine(self, gpa: int, size: int) -> bytes:
        try:
            return bytes(self.uc.mem_read(gpa, size))
        except UcError as error:
            raise UsageError(f"no memory at {gpa:#x}") from error


def _fpu(values: tuple[int, ...], word: dict[str, int]) -> FpuState:
    top = word["FPSW"] >> 11 & 7
    x87 = [values[2 * i] | (values[2 * i + 1] & 0xFFFF) << 64 for i in range(8)]
    quads = [values[16 + 4 * i : 20 + 4 * i] for i in range(16)]
    return FpuState(
        fcw=word["FPCW"],
        fsw=word["FPSW"],
        ftw=sum((word["FPTAG"] >> 2 * i & 3 != 3) << i for i in range(8)),
        fop=word["FOP"],
        fip=word["FIP"],
        fdp=word["FDP"],
        mxcsr=word["MXCSR"],
        st=[x87[(top + i) & 7] for i in range(8)],
        xmm=[q[0] | q[1] << 64 for q in quads],
        ymmh=[q[2] | q[3] << 64 for q in quads],
    )


def _system_segment(selector: int, base: int, limit: int, flags: int) -> Segment:
    attr = flags >> 8 & 0xF0FF
    return Segment(selector, base, limit, attr if attr & 0x80 else attr | 0x10000)
