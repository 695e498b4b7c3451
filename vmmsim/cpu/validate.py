"""Which CpuStates an x86-64 CPU can be in.

Both backends call `validate` before they touch anything, so that a state which no CPU can
hold is the same UsageError on both, and a half-set vCPU cannot happen. The rules are those
of MOV CR, WRMSR and a VMX entry on the guest state (SDM vol. 3, 2.5, 4.1.1, 24.3.1);
what a particular host lacks is not checked here, it is the backend's NotSupported.
"""

from __future__ import annotations

from ..errors import UsageError
from .msrs import CSTAR, KERNEL_GS_BASE, LSTAR, PAT, STATE_MSRS, SYSENTER_EIP, SYSENTER_ESP
from .state import GPR_NAMES, SEGMENT_NAMES, CpuState, Registers, Segment
from .vectors import ERROR_CODE_VECTORS, vector_name

__all__ = ["is_canonical", "validate", "validate_registers"]

_PE, _ET, _NW, _CD, _PG = 1, 1 << 4, 1 << 29, 1 << 30, 1 << 31
_CR0_DEFINED = 0xE005003F
_PAE, _LA57, _PCIDE = 1 << 5, 1 << 12, 1 << 17
#: Bits 15 and 26 up are reserved; 19 (KL) and 25 (UINTR) belong to features of later CPUs.
_CR4_DEFINED = 0x03F77FFF & ~(1 << 19 | 1 << 25)
_LME, _LMA = 1 << 8, 1 << 10
_EFER_DEFINED = 0xFD01
_RFLAGS_DEFINED = 0x003F7FD7
_VM, _IF = 1 << 17, 1 << 9
_ATTR_DEFINED = 0x1F0FF
_PAT_TYPES = frozenset({0, 1, 4, 5, 6, 7})
_CANONICAL_MSRS = (LSTAR, CSTAR, KERNEL_GS_BASE, SYSENTER_ESP, SYSENTER_EIP)


def is_canonical(address: int) -> bool:
    """Whether bits 63-47 of a 64-bit `address` are equal (SDM vol. 1, 3.3.7.1)."""
    return (address >> 47) in (0, 0x1FFFF)


def _fail(field: str, what: str, hint: str) -> UsageError:
    return UsageError(f"{field}: {what}", hint=hint)


def _width(field: str, value: object, bits: int) -> None:
    if not isinstance(value, int) or value < 0 or value >> bits:
        shown = f"{value:#x}" if isinstance(value, int) else repr(value)
        raise _fail(field, f"{shown} does not fit", f"give an integer of {bits} bits, not negative")


def _list(field: str, values: object, count: int, bits: int) -> None:
    if not isinstance(values, list) or len(values) != count:
        raise _fail(field, "wrong length", f"give a list of {count} integers")
    for at, value in enumerate(values):
        _width(f"{field}{at}", value, bits)


def _defined(field: str, value: int, mask: int) -> None:
    if value & ~mask:
        raise _fail(field, f"{value:#x} sets reserved bits", f"clear {value & ~mask:#x}")


def validate_registers(registers: Registers, *, long_mode: bool) -> None:
    """Check the general registers, RIP and RFLAGS. `long_mode`: 64-bit code runs next.

    Raises UsageError naming the register.
    """
    for name in (*GPR_NAMES, "rip", "rflags"):
        _width(name, getattr(registers, name), 64)
    _defined("rflags", registers.rflags, _RFLAGS_DEFINED)
    if not registers.rflags & 2:
        raise _fail("rflags", f"{registers.rflags:#x} has bit 1 clear", "bit 1 is always 1: set 2")
    if not long_mode:
        if registers.rip >> 32:
            raise _fail("rip", f"{registers.rip:#x} has more than 32 bits", "only 64-bit code has such a RIP")
    elif not is_canonical(registers.rip):
        raise _fail("rip", f"{registers.rip:#x} is not canonical", "bits 63-47 of a 64-bit RIP are equal")


def _segment(name: str, segment: Segment, *, long_mode: bool) -> None:
    _width(f"{name}.selector", segment.selector, 16)
    _width(f"{name}.base", segment.base, 64)
    _width(f"{name}.limit", segment.limit, 32)
    _width(f"{name}.attr", segment.attr, 17)
    _defined(f"{name}.attr", segment.attr, _ATTR_DEFINED)
    if not long_mode or name in ("cs", "ds", "es", "ss"):
        if segment.base >> 32:
            raise _fail(f"{name}.base", f"{segment.base:#x} has more than 32 bits", "use a base below 4 GiB")
    elif not is_canonical(segment.base):
        raise _fail(f"{name}.base", f"{segment.base:#x} is not canonical", "bits 63-47 are equal")
    if segment.unusable:
        return
    if segment.g and segment.limit & 0xFFF != 0xFFF:
        raise _fail(
            f"{name}.limit",
            f"{segment.limit:#x} is not a page's end, but G is set",
            "limit is in bytes, already scaled: with G its low 12 bits are ones",
        )
    if not segment.g and segment.limit >> 20:
        raise _fail(
            f"{name}.limit", f"{segment.limit:#x} needs the G bit", "set bit 15 of attr, or a smaller limit"
        )


def _control(state: CpuState) -> None:
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "xcr0"):
        _width(name, getattr(state, name), 64)
    cr0, cr4, efer = state.cr0, state.cr4, state.efer
    _defined("cr0", cr0, _CR0_DEFINED)
    _defined("cr4", cr4, _CR4_DEFINED)
    _defined("efer", efer, _EFER_DEFINED)
    if not cr0 & _ET:
        raise _fail("cr0", f"{cr0:#x} has ET clear", "bit 4 is always 1: set 0x10")
    if cr0 & _PG and not cr0 & _PE:
        raise _fail("cr0", f"{cr0:#x} has PG without PE", "paging needs protected mode: set bit 0")
    if cr0 & _NW and not cr0 & _CD:
        raise _fail("cr0", f"{cr0:#x} has NW without CD", "set bit 30 or clear bit 29")
    active = bool(cr0 & _PG and efer & _LME)
    if active and not cr4 & _PAE:
        raise _fail("cr4", f"{cr4:#x} has PAE clear in long mode", "long mode needs PAE: set bit 5")
    if bool(efer & _LMA) != active:
        raise _fail(
            "efer", f"{efer:#x}: LMA does not follow", "LMA (bit 10) is 1 exactly when LME and CR0.PG are"
        )
    if cr4 & (_PCIDE | _LA57) and not active:
        raise _fail("cr4", f"{cr4:#x} has PCIDE or LA57", "both exist in long mode only")
    if state.cr3 >> 52:
        raise _fail("cr3", f"{state.cr3:#x} is beyond 2^52", "give the physical address of the top table")
    if not active and state.cr3 >> 32:
        raise _fail("cr3", f"{state.cr3:#x} has more than 32 bits", "so outside long mode: use a lower table")
    if state.cr8 > 15:
        raise _fail("cr8", f"{state.cr8:#x} is not a priority", "give 0 to 15")
    if not state.xcr0 & 1:
        raise _fail("xcr0", f"{state.xcr0:#x} has bit 0 clear", "x87 state is always enabled: set bit 0")
    if state.xcr0 & 4 and not state.xcr0 & 2:
        raise _fail("xcr0", f"{state.xcr0:#x} has AVX without SSE", "set bit 1 too")


def _modes(state: CpuState) -> None:
    active = bool(state.efer & _LMA)
    if active and not state.cs.unusable and state.cs.l and state.cs.db:
        raise _fail("cs.attr", f"{state.cs.attr:#x} has both L and D", "64-bit code has L set and D clear")
    if state.rflags & _VM and (not state.cr0 & _PE or active):
        raise _fail("rflags", "VM is set outside 32-bit protected mode", "clear bit 17")
    for name in ("gdt", "idt"):
        table = getattr(state, name)
        _width(f"{name}.base", table.base, 64)
        _width(f"{name}.limit", table.limit, 16)
        if active and not is_canonical(table.base):
            raise _fail(f"{name}.base", f"{table.base:#x} is not canonical", "bits 63-47 are equal")
        if not active and table.base >> 32:
            raise _fail(f"{name}.base", f"{table.base:#x} has more than 32 bits", "use a base below 4 GiB")


def _fpu(state: CpuState) -> None:
    fpu = state.fpu
    for name, bits in (("fcw", 16), ("fsw", 16), ("ftw", 8), ("fop", 11), ("fip", 64), ("fdp", 64)):
        _width(f"fpu.{name}", getattr(fpu, name), bits)
    # A reserved bit of MXCSR is #GP for FXRSTOR, XRSTOR and LDMXCSR (SDM vol. 1, 10.2.3).
    _width("fpu.mxcsr", fpu.mxcsr, 16)
    _list("fpu.st", fpu.st, 8, 80)
    _list("fpu.xmm", fpu.xmm, 16, 128)
    _list("fpu.ymmh", fpu.ymmh, 16, 128)


def _events(state: CpuState) -> None:
    events = state.events
    if events.exception is not None:
        _width("events.exception", events.exception, 5)
        if events.exception == 2:
            raise _fail("events.exception", "2 is the NMI", "use events.nmi_pending")
    if events.error_code is not None:
        _width("events.error_code", events.error_code, 32)
        if events.exception not in ERROR_CODE_VECTORS or not state.cr0 & _PE:
            raise _fail("events.error_code", "no such exception has one here", "give None")
    elif events.exception in ERROR_CODE_VECTORS and state.cr0 & _PE:
        raise _fail(
            "events.error_code",
            f"{vector_name(events.exception or 0)} pushes one in protected mode",
            "give an integer",
        )
    if events.interrupt is not None:
        _width("events.interrupt", events.interrupt, 8)
    if events.sti_shadow and (not state.rflags & _IF or events.mov_ss_shadow):
        raise _fail(
            "events.sti_shadow",
            "set with IF clear, or with the other shadow",
            "STI leaves IF set; one at a time",
        )


def validate(state: CpuState) -> None:
    """Check that an x86-64 CPU can be in `state`. Raises UsageError naming the field."""
    _control(state)
    active = bool(state.efer & _LMA)
    for name in (*SEGMENT_NAMES, "ldt", "tr"):
        _segment(name, getattr(state, name), long_mode=active)
    validate_registers(state, long_mode=state.mode == "l64")
    _modes(state)
    _list("dr", state.dr, 4, 64)
    for name in ("dr6", "dr7"):
        _width(name, getattr(state, name), 32)
    for index, value in state.msrs.items():
        if index not in STATE_MSRS:
            raise _fail(f"msr.{index:#x}", "is not part of a CpuState", "use vcpu.write_msr for others")
        _width(f"msr.{index:#x}", value, 64)
        if index in _CANONICAL_MSRS and not is_canonical(value):
            raise _fail(f"msr.{index:#x}", f"{value:#x} is not canonical", "bits 63-47 are equal")
        if index == PAT and any(byte not in _PAT_TYPES for byte in value.to_bytes(8, "little")):
            raise _fail(f"msr.{index:#x}", f"{value:#x} has an unknown memory type", "types are 0, 1, 4-7")
    _fpu(state)
    _events(state)
