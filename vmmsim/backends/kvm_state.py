"""Between CpuState and the structs of KVM, both ways. Pure: no file descriptor here.

Each pair of functions is a round trip: what `to_x` writes, `from_x` reads back. The XSAVE
image is the standard format (SDM vol. 1, 13.4): the legacy area as FXSAVE64 has it, the
header at 512, the high halves of YMM at the offset that CPUID leaf 0xD says.
"""

from __future__ import annotations

import struct
from typing import Any

from ..cpu.msrs import STATE_MSRS
from ..cpu.state import SEGMENT_NAMES, CpuState, Events, FpuState, Registers, Segment, Table
from . import kvm_abi as abi

__all__ = [
    "REGS",
    "XSAVE_SIZE",
    "events_from",
    "events_to",
    "fpu_from",
    "fpu_to",
    "msrs_from",
    "msrs_to",
    "no_msrs",
    "registers_from",
    "registers_to",
    "sregs_from",
    "sregs_to",
]

#: struct kvm_regs: the fields of `Registers`, in its order.
REGS = struct.Struct("<18Q")
XSAVE_SIZE = 4096

_SEGMENTS = (*SEGMENT_NAMES, "tr", "ldt")
#: struct kvm_segment: base, limit, selector, then a byte each. kvm_sregs begins with CS, DS, ES, FS, GS,
#: SS, TR and LDT.
_SEGMENT = struct.Struct("<QIH9Bx")
_MSR = struct.Struct("<I4xQ")
_SEGMENTS_END = 8 * _SEGMENT.size
#: FXSAVE64: FCW, FSW, FTW, a pad, FOP, FIP, FDP, MXCSR, MXCSR_MASK.
_LEGACY = struct.Struct("<HHBxHQQII")
_BV_AT = 512
_X87, _SSE, _AVX = 1, 2, 4


def registers_from(data: bytes | bytearray | memoryview, offset: int = 0) -> Registers:
    """The registers of a struct kvm_regs."""
    return Registers(*REGS.unpack_from(data, offset))


def registers_to(registers: Registers) -> bytes:
    """A struct kvm_regs."""
    r = registers
    return REGS.pack(
        r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp,
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rip, r.rflags,
    )  # fmt: skip


def _segment_from(
    base: int, limit: int, selector: int,
    type: int, present: int, dpl: int, db: int, s: int, long: int, g: int, avl: int, unusable: int,
) -> Segment:  # fmt: skip
    """A segment; KVM keeps the attributes as one byte each.

    What a null selector loaded is unusable (SDM vol. 3, 24.4.1); kvm_pvm only says not present.
    """
    unusable = unusable or not (present or selector & 0xFFFC)
    attr = (
        type | s << 4 | dpl << 5 | present << 7
        | avl << 12 | long << 13 | db << 14 | g << 15 | unusable << 16
    )  # fmt: skip
    return Segment(selector, base, limit, attr)


def _segment_to(segment: Segment, s: abi.Segment) -> None:
    attr = segment.attr
    s.selector, s.base, s.limit = segment.selector, segment.base, segment.limit
    s.type, s.s, s.dpl, s.present = attr & 15, attr >> 4 & 1, attr >> 5 & 3, attr >> 7 & 1
    s.avl, s.l, s.db, s.g, s.unusable = (attr >> bit & 1 for bit in (12, 13, 14, 15, 16))


def sregs_from(sregs: abi.Sregs, state: CpuState) -> None:
    """Fill the segments, tables, control registers and EFER of `state`."""
    segments = (_segment_from(*fields) for fields in _SEGMENT.iter_unpack(bytes(sregs)[:_SEGMENTS_END]))
    state.cs, state.ds, state.es, state.fs, state.gs, state.ss, state.tr, state.ldt = segments
    state.gdt = Table(sregs.gdt.base, sregs.gdt.limit)
    state.idt = Table(sregs.idt.base, sregs.idt.limit)
    state.cr0, state.cr2, state.cr3, state.cr4 = sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4
    state.cr8, state.efer = sregs.cr8, sregs.efer


def sregs_to(state: CpuState, sregs: abi.Sregs) -> None:
    """Write them into `sregs`, whose APIC base stays as it is."""
    for name in _SEGMENTS:
        _segment_to(getattr(state, name), getattr(sregs, name))
    for name in ("gdt", "idt"):
        table, native = getattr(state, name), getattr(sregs, name)
        native.base, native.limit = table.base, table.limit
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
        setattr(sregs, name, getattr(state, name))
    for at in range(4):
        sregs.interrupt_bitmap[at] = 0


def fpu_from(image: bytes | bytearray, avx_at: int) -> FpuState:
    """The x87, SSE and AVX state of an XSAVE image. A component that XSTATE_BV leaves out is
    in its reset state. `avx_at` is the offset of the YMM halves, 0 when there are none."""
    fpu = FpuState()
    have = int.from_bytes(image[_BV_AT : _BV_AT + 8], "little")
    fcw, fsw, ftw, fop, fip, fdp, mxcsr, _ = _LEGACY.unpack_from(image)
    if have & _X87:
        fpu.fcw, fpu.fsw, fpu.ftw, fpu.fop, fpu.fip, fpu.fdp = fcw, fsw, ftw, fop, fip, fdp
        fpu.st = [int.from_bytes(image[32 + 16 * i : 42 + 16 * i], "little") for i in range(8)]
    if have & (_SSE | _AVX):
        fpu.mxcsr = mxcsr
    if have & _SSE:
        fpu.xmm = [int.from_bytes(image[at : at + 16], "little") for at in range(160, 416, 16)]
    if have & _AVX and avx_at:
        fpu.ymmh = [int.from_bytes(image[at : at + 16], "little") for at in range(avx_at, avx_at + 256, 16)]
    return fpu


def fpu_to(fpu: FpuState, avx_at: int) -> bytearray:
    """An XSAVE image of `XSAVE_SIZE` bytes."""
    image = bytearray(XSAVE_SIZE)
    _LEGACY.pack_into(image, 0, fpu.fcw, fpu.fsw, fpu.ftw, fpu.fop, fpu.fip, fpu.fdp, fpu.mxcsr, 0xFFFF)
    for i, value in enumerate(fpu.st):
        image[32 + 16 * i : 42 + 16 * i] = value.to_bytes(10, "little")
    image[160:416] = b"".join(value.to_bytes(16, "little") for value in fpu.xmm)
    have = _X87 | _SSE
    if avx_at:
        have |= _AVX
        image[avx_at : avx_at + 256] = b"".join(value.to_bytes(16, "little") for value in fpu.ymmh)
    image[_BV_AT : _BV_AT + 8] = have.to_bytes(8, "little")
    return image


def events_from(events: abi.VcpuEvents) -> Events:
    """What is pending. KVM tells an exception that it has queued as injected."""
    exception = events.exception
    queued = exception.injected or exception.pending
    return Events(
        exception=exception.nr if queued else None,
        error_code=exception.error_code if queued and exception.has_error_code else None,
        nmi_pending=bool(events.nmi.pending or events.nmi.injected),
        nmi_masked=bool(events.nmi.masked),
        sti_shadow=bool(events.interrupt.shadow & abi.X86_SHADOW_INT_STI),
        mov_ss_shadow=bool(events.interrupt.shadow & abi.X86_SHADOW_INT_MOV_SS),
        # An INT n whose delivery was broken off has RIP still at it, and is made anew.
        interrupt=events.interrupt.nr if events.interrupt.injected and not events.interrupt.soft else None,
    )


def events_to(events: Events, *, triple_fault_event: bool = True) -> abi.VcpuEvents:
    """A struct kvm_vcpu_events that replaces all of it. With `triple_fault_event` (the
    capability of that name) also a triple fault that waits in KVM is taken back."""
    native = abi.VcpuEvents()
    if events.exception is not None:
        native.exception.injected = 1
        native.exception.nr = events.exception
        if events.error_code is not None:
            native.exception.has_error_code = 1
            native.exception.error_code = events.error_code
    if events.interrupt is not None:
        native.interrupt.injected = 1
        native.interrupt.nr = events.interrupt
    native.nmi.pending = events.nmi_pending
    native.nmi.masked = events.nmi_masked
    native.interrupt.shadow = (
        events.sti_shadow * abi.X86_SHADOW_INT_STI | events.mov_ss_shadow * abi.X86_SHADOW_INT_MOV_SS
    )
    native.flags = abi.VCPUEVENT_VALID_NMI_PENDING | abi.VCPUEVENT_VALID_SHADOW
    if triple_fault_event:
        native.flags |= abi.VCPUEVENT_VALID_TRIPLE_FAULT
    return native


def no_msrs() -> Any:
    """A struct kvm_msrs that asks for all of STATE_MSRS."""
    return type(_RESET).from_buffer_copy(_RESET)


def msrs_from(msrs: Any) -> dict[int, int]:
    """Number and value of each entry of a struct kvm_msrs."""
    return dict(_MSR.iter_unpack(bytes(msrs)[8:]))


def msrs_to(values: dict[int, int]) -> Any:
    """A struct kvm_msrs with all of STATE_MSRS; one that `values` lacks has its reset value."""
    native = abi.msrs(len(STATE_MSRS))
    for at, (index, reset) in enumerate(STATE_MSRS.items()):
        native.entries[at].index = index
        native.entries[at].data = values.get(index, reset)
    return native


_RESET = msrs_to({})
