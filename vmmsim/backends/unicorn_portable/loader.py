"""Hidden segment parts without touching undocumented bytes: let a guest load them.

Unicorn's register API writes selectors only. So a second engine of the same kind, with
one page of its own memory, runs a few real instructions that load the wanted bases, limits
and attributes from a scratch GDT and end in the wanted mode and privilege level; its
context is then restored in the engine that wants them, which unicorn.h allows between
engines of the same architecture and mode. The guest's memory, hooks and translations are
never involved.
"""

from __future__ import annotations

import functools
import struct
import threading
from typing import NamedTuple

from unicorn import UC_ERR_FETCH_UNMAPPED
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import UcContext, UcError

from ...cpu import msrs
from ...cpu.descriptors import pack_descriptor
from ...cpu.state import CpuState, Segment
from ...errors import NotSupported
from ..unicorn_registers import RegisterAccess, scratch_engine

__all__ = ["HiddenState", "SegmentLoader", "hidden_state", "shared_loader"]

# The page of the loader engine; below 4 GiB for the 32-bit modes.
_PAGE = 0x7000_0000
_OPERANDS = _PAGE + 0x80
_XSETBV_AT = _PAGE + 0x100
_SAME_CPL_AT = _PAGE + 0x200
_OUTER_CPL_AT = _PAGE + 0x280
_STI_AT = _PAGE + 0x300
_STACK = _PAGE + 0x1000

#: Encodings that mean the same in 32-bit and in 64-bit code. EBX points at the operands.
STUB = bytes.fromhex(
    "8e5314"  # mov ss, [ebx+20]  flat, so that the stack is where ESP says
    "8e23"  # mov fs, [ebx]     limit and attributes
    "8e6b02"  # mov gs, [ebx+2]
    "b810000000"  # mov eax, 0x10
    "0f22c0"  # mov cr0, eax      real mode: now MOV changes the selector, and limit and attributes stay
    "8e6304"  # mov fs, [ebx+4]
    "8e6b06"  # mov gs, [ebx+6]
    "b011"  # mov al, 0x11
    "0f22c0"  # mov cr0, eax      protected mode again
    "8e4308"  # mov es, [ebx+8]
)
STUB_SAME_CPL = bytes.fromhex(
    "8e530c"  # mov ss, [ebx+12]
    "8e5b0a"  # mov ds, [ebx+10]
    "2eff6b0e"  # jmp far cs:[ebx+14]
)
STUB_OUTER_CPL = bytes.fromhex(
    "8e5b0a"  # mov ds, [ebx+10]
    "cf"  # iretd             loads CS and SS and goes to the outer ring
)
XSETBV = bytes.fromhex("31c90f01d1f4")  # xor ecx, ecx; xsetbv; hlt
_STI = b"\xfb"

_ES, _DS, _SS, _CS, _FLAT = 0x18, 0x20, 0x28, 0x30, 0x38
_FLAT_DATA = 0x00CF93000000FFFF
_CACHED = 64


class _Hidden(NamedTuple):
    """A segment as a descriptor: base below 2^32, limit in bytes, attr; None loads a null selector."""

    base: int
    limit: int
    attr: int


class HiddenState(NamedTuple):
    """Everything of a CpuState that no register write can set."""

    protected: bool
    long: bool
    cpl: int
    cs: _Hidden
    ss: _Hidden | None
    ds: _Hidden | None
    es: _Hidden | None
    fs: _Hidden | None
    gs: _Hidden | None
    fs_selector: int
    gs_selector: int
    xcr0: int
    shadow: bool


def hidden_state(state: CpuState) -> HiddenState:
    """What must be loaded for `state`. Raises NotSupported for virtual-8086 mode and for
    segments that no instruction could have loaded."""
    if state.mode == "v86":
        raise NotSupported("virtual-8086 state cannot be set by documented means", hint="use the native path")
    protected, long = bool(state.cr0 & 1), bool(state.efer & 1 << 10)
    code64 = state.mode == "l64"
    if protected and (state.cs.unusable or not state.cs.present or state.cs.type < 8):
        raise NotSupported(f"cs.attr: {state.cs.attr:#x} is not a code segment in protected mode")
    cs = _descriptor_of(state.cs, protected, 0x9B)
    ss = _descriptor_of(state.ss, protected, 0x93)
    if ss is None and not (code64 and state.cpl < 3):
        ss = _Hidden(0, 0xFFFF, 0x93 | state.cpl << 5)  # no instruction loads a null SS here
    assert cs is not None
    if code64:
        cs = cs._replace(base=0)
    return HiddenState(
        protected=protected,
        long=long,
        cpl=state.cpl,
        cs=cs,
        ss=ss,
        ds=_descriptor_of(state.ds, protected, 0x93),
        es=_descriptor_of(state.es, protected, 0x93),
        # Their bases have register numbers, and more than 32 bits.
        fs=_descriptor_of(Segment(0, 0, state.fs.limit, state.fs.attr), protected, 0x93),
        gs=_descriptor_of(Segment(0, 0, state.gs.limit, state.gs.attr), protected, 0x93),
        fs_selector=state.fs.selector,
        gs_selector=state.gs.selector,
        xcr0=state.xcr0,
        shadow=state.events.sti_shadow or state.events.mov_ss_shadow,
    )


def _descriptor_of(segment: Segment, protected: bool, real_attr: int) -> _Hidden | None:
    if not protected:
        # Type and DPL mean nothing in real mode; KVM for one shows CS there as data.
        return _Hidden(segment.base & 0xFFFFFFFF, segment.limit, real_attr | segment.attr & 0xD000)
    if segment.unusable or not segment.present:
        return None
    return _Hidden(segment.base & 0xFFFFFFFF, segment.limit, segment.attr & 0xF0FF)


class SegmentLoader:
    """The engine that loads. Any thread may ask; contexts may be restored in any engine."""

    def __init__(self) -> None:
        self._uc = scratch_engine()
        self._uc.mem_map(_PAGE, 0x1000)
        self._uc.mem_write(_XSETBV_AT, XSETBV)
        self._uc.mem_write(_STI_AT, _STI)
        self._uc.mem_write(_SAME_CPL_AT, STUB + STUB_SAME_CPL)
        self._uc.mem_write(_OUTER_CPL_AT, STUB + STUB_OUTER_CPL)
        self._access = access = RegisterAccess(self._uc)
        access.write(x86.UC_X86_REG_CR4, 1 << 18)  # OSXSAVE, for XSETBV
        access.write_table(x86.UC_X86_REG_GDTR, 0, _PAGE, 0x3F, 0)
        access.write(x86.UC_X86_REG_RBX, _OPERANDS)
        access.write_msr(msrs.PAT, msrs.STATE_MSRS[msrs.PAT])
        self._long = self._uc.context_save()
        # A new engine is in 64-bit code without paging. Turning paging on and off leaves long
        # mode, as on a CPU, for 32-bit protected mode.
        access.write(x86.UC_X86_REG_CR0, 0x80000011)
        access.write(x86.UC_X86_REG_CR0, 0x11)
        access.write_msr(msrs.EFER, 0)
        self._legacy = self._uc.context_save()
        self._lock = threading.Lock()
        self._contexts: dict[HiddenState, UcContext] = {}

    def context(self, wanted: HiddenState) -> UcContext:
        """A context that has `wanted`; every other register in it is to be overwritten."""
        with self._lock:
            found = self._contexts.pop(wanted, None)
            if found is None:
                found = self._load(wanted)
                if len(self._contexts) >= _CACHED:
                    del self._contexts[next(iter(self._contexts))]
            self._contexts[wanted] = found  # at the end: the one used last
            return found

    def _load(self, w: HiddenState) -> UcContext:
        uc, access = self._uc, self._access
        uc.context_restore(self._long if w.long else self._legacy)
        access.flush_tlb()
        access.write(x86.UC_X86_REG_RAX, w.xcr0 & 0xFFFFFFFF)
        access.write(x86.UC_X86_REG_RDX, w.xcr0 >> 32)
        self._run(_XSETBV_AT, None, f"XCR0 {w.xcr0:#x}")
        # CS.base + offset must not be in the loader's page: the fetch there is to fail.
        offset = 0x8000 if _PAGE <= w.cs.base < _PAGE + 0x1000 else 0
        slots = (w.fs, w.gs, w.es, w.ds, w.ss, w.cs)
        uc.mem_write(_PAGE, struct.pack("<8Q", 0, *map(_encode, slots), _FLAT_DATA))
        uc.mem_write(
            _OPERANDS,
            struct.pack(
                "<7HIHH", 8 if w.fs else 0, 16 if w.gs else 0, w.fs_selector, w.gs_selector,
                _ES if w.es else 0, _DS if w.ds else 0, _SS if w.ss else 0, offset, _CS, _FLAT,
            ),
        )  # fmt: skip
        frame = struct.pack("<5I", offset, _CS | w.cpl, 2, 0, _SS | w.cpl)
        uc.mem_write(_STACK - len(frame), frame)
        access.write(x86.UC_X86_REG_RSP, _STACK - len(frame))
        self._run(_OUTER_CPL_AT if w.cpl else _SAME_CPL_AT, offset, f"segments with {w}")
        if not w.protected:
            access.write(x86.UC_X86_REG_CR0, 0x10)
        if w.shadow:
            access.write(x86.UC_X86_REG_RFLAGS, 0x3002)  # STI is allowed at any level
            uc.emu_start((_STI_AT - w.cs.base) & 0xFFFFFFFF, 0, count=1)
        return uc.context_save()

    def _run(self, begin: int, end: int | None, what: str) -> None:
        """Run from `begin` to the HLT, or to the failing fetch at offset `end`."""
        try:
            self._uc.emu_start(begin, 0)
        except UcError as error:
            if end is not None and error.errno == UC_ERR_FETCH_UNMAPPED and self._access.read_rip() == end:
                return
        else:
            if end is None:
                return
        raise NotSupported(f"no instruction loads {what}", hint="use the native path of the unicorn backend")


@functools.cache
def shared_loader() -> SegmentLoader:
    """The loader of this process, made when it is first needed (about 0.5 ms)."""
    return SegmentLoader()


def _encode(segment: _Hidden | None) -> int:
    if segment is None:
        return 0
    base, limit, attr = segment
    if attr & 0x8000:
        limit >>= 12
    return pack_descriptor(base, limit, attr)
