"""Mode presets: a vCPU that already is where a guest wants to start.

A preset gives a `ModeSetup`: the CpuState, and the bytes that this state needs in guest
memory (GDT, page tables, TSS). `MODES` has them by the names of `--mode`:

    real   16-bit real mode, flat at 0
    reset  the state after RESET: F000:FFF0 at physical FFFFFFF0 (SDM vol. 3, table 9-1)
    p16    protected mode, 16-bit code, no paging
    p32    protected mode, flat 32-bit code, no paging
    l64    64-bit code at CPL 0, the first 4 GiB mapped onto itself
    l64u   the same at CPL 3; all ports are open by the TSS's bitmap

Interrupts are off and the IDT is empty (limit 0), so an exception before the guest has
loaded its own IDT is a triple fault; real mode has its vectors at 0. SSE is enabled in l64
and l64u, FCW is 0x37F and MXCSR 0x1F80.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from .. import layout
from ..errors import UsageError
from .descriptors import (
    ATTR_CODE16,
    ATTR_CODE32,
    ATTR_CODE64,
    ATTR_DATA16,
    ATTR_DATA32,
    ATTR_TSS32_BUSY,
    encode_descriptor,
    encode_system64,
    with_dpl,
)
from .msrs import STATE_MSRS
from .paging import identity_4level
from .state import CpuState, Segment, Table

__all__ = [
    "CODE16",
    "CODE32",
    "CODE64",
    "DATA",
    "DATA16",
    "MODES",
    "TSS",
    "USER_CODE32",
    "USER_CODE64",
    "USER_DATA",
    "Mode",
    "ModeSetup",
    "long64",
    "protected16",
    "protected32",
    "real",
    "reset",
    "setup",
]

# Selectors of the presets' GDT. The 64-bit and the user ones are Linux's numbers, because
# kvm_pvm shows user code Linux's selectors whatever the guest loaded.
CODE32 = 0x08  #: 32-bit code, DPL 0.
CODE64 = 0x10  #: 64-bit code, DPL 0.
DATA = 0x18  #: Flat data, DPL 0.
USER_CODE32 = 0x23  #: 32-bit code, DPL 3.
USER_DATA = 0x2B  #: Flat data, DPL 3.
USER_CODE64 = 0x33  #: 64-bit code, DPL 3.
CODE16 = 0x38  #: 16-bit code of 64 KiB, DPL 0.
TSS = 0x40  #: The task state segment.
DATA16 = 0x50  #: Data of 64 KiB, DPL 0.

_CR0_REAL = 0x10  # ET, which is always 1
_CR0_PROTECTED = 0x31  # PE, ET, NE
_CR0_LONG = 0x80010033  # PG, WP, NE, ET, MP, PE
_CR4_LONG = 0x620  # PAE, OSFXSR, OSXMMEXCPT
_EFER_LONG = 0x500  # LME, LMA
_FLAT = 0xFFFFFFFF

_IO_BITMAP = 0x68
#: 104 bytes, a bit for each of 65,536 ports, and the byte of ones that ends the bitmap.
_TSS_SIZE = _IO_BITMAP + 8192 + 1


class ModeSetup(msgspec.Struct):
    """A start: `state`, and `writes`, the (gpa, bytes) that must be in guest memory for it."""

    state: CpuState
    writes: list[tuple[int, bytes]] = msgspec.field(default_factory=list)


class Mode(Protocol):
    """A preset: `entry` is the linear address of the first instruction, `stack` the initial
    stack pointer, `tables` where `layout.BOOT_TABLES_SIZE` bytes of tables may go."""

    def __call__(self, entry: int, *, stack: int = ..., tables: int = ...) -> ModeSetup: ...


def _state(**fields: object) -> CpuState:
    return CpuState(msrs=dict(STATE_MSRS), **fields)  # type: ignore[arg-type]


def _fits(entry: int, limit: int, mode: str) -> None:
    if not 0 <= entry <= limit:
        raise UsageError(
            f"the entry {entry:#x} is out of reach in mode {mode}",
            hint=f"enter below {limit + 1:#x}, or choose another --mode",
        )


def real(cs: int, ip: int, *, stack: int = layout.BOOT_STACK) -> ModeSetup:
    """Real mode at `cs`:`ip` (16 bits each), SS:SP = 0:`stack`, other segments 0, IVT at 0.

    Raises UsageError when a number does not fit 16 bits.
    """
    for value, name in ((cs, "CS"), (ip, "IP"), (stack, "SP")):
        if not 0 <= value <= 0xFFFF:
            raise UsageError(f"{name}={value:#x} in real mode", hint="real mode's registers have 16 bits")
    data = Segment(0, 0, 0xFFFF, ATTR_DATA16)
    state = _state(
        rip=ip,
        rsp=stack,
        cs=Segment(cs, cs << 4, 0xFFFF, ATTR_CODE16),
        ds=data,
        es=data,
        fs=data,
        gs=data,
        ss=data,
        gdt=Table(0, 0),
        idt=Table(0, 0x3FF),
        cr0=_CR0_REAL,
    )
    return ModeSetup(state)


def reset() -> ModeSetup:
    """The state after RESET: F000:FFF0 with the base of CS at FFFF0000."""
    state = _state(rip=0xFFF0, rdx=0x600)
    return ModeSetup(state)


def _gdt(tss: Segment, *, long: bool) -> bytes:
    slots = {
        CODE32: Segment(0, 0, _FLAT, ATTR_CODE32),
        CODE64: Segment(0, 0, _FLAT, ATTR_CODE64),
        DATA: Segment(0, 0, _FLAT, ATTR_DATA32),
        USER_CODE32 & ~3: Segment(0, 0, _FLAT, with_dpl(ATTR_CODE32, 3)),
        USER_DATA & ~3: Segment(0, 0, _FLAT, with_dpl(ATTR_DATA32, 3)),
        USER_CODE64 & ~3: Segment(0, 0, _FLAT, with_dpl(ATTR_CODE64, 3)),
        CODE16: Segment(0, 0, 0xFFFF, ATTR_CODE16),
        DATA16: Segment(0, 0, 0xFFFF, ATTR_DATA16),
    }
    table = bytearray(DATA16 + 8)
    for selector, segment in slots.items():
        table[selector : selector + 8] = encode_descriptor(segment)
    descriptor = encode_system64(tss) if long else encode_descriptor(tss)
    table[TSS : TSS + len(descriptor)] = descriptor
    return bytes(table)


def _tss(*, long: bool, stack: int, open_ports: bool) -> bytes:
    tss = bytearray(_TSS_SIZE)
    if long:
        tss[4:12] = stack.to_bytes(8, "little")  # RSP0
    else:
        tss[4:8] = stack.to_bytes(4, "little")  # ESP0
        tss[8:10] = DATA.to_bytes(2, "little")  # SS0
    tss[0x66:0x68] = _IO_BITMAP.to_bytes(2, "little")
    if not open_ports:
        tss[_IO_BITMAP:] = b"\xff" * (_TSS_SIZE - _IO_BITMAP)
    tss[-1] = 0xFF
    return bytes(tss)


def _protected(
    state: CpuState, tables: int, *, long: bool, stack: int, open_ports: bool = False
) -> ModeSetup:
    """Give `state` its GDT and TSS, and say what must be stored for them."""
    if tables % 0x1000:
        raise UsageError(f"tables at {tables:#x}", hint="the presets' tables are aligned to 4 KiB")
    gdt_at = tables + layout.BOOT_GDT - layout.BOOT_TABLES
    tss_at = tables + layout.BOOT_TSS - layout.BOOT_TABLES
    tss = Segment(TSS, tss_at, _TSS_SIZE - 1, ATTR_TSS32_BUSY)
    gdt = _gdt(tss, long=long)
    state.tr = tss
    state.gdt = Table(gdt_at, len(gdt) - 1)
    state.idt = Table(0, 0)
    return ModeSetup(state, [(gdt_at, gdt), (tss_at, _tss(long=long, stack=stack, open_ports=open_ports))])


def protected16(entry: int, *, stack: int = layout.BOOT_STACK, tables: int = layout.BOOT_TABLES) -> ModeSetup:
    """Protected mode, CPL 0, with 64 KiB segments based at 0: what a 16-bit extender has.

    Raises UsageError unless `entry` and `stack` are below 64 KiB.
    """
    _fits(entry, 0xFFFF, "p16")
    _fits(stack, 0xFFFF, "p16")
    data = Segment(DATA16, 0, 0xFFFF, ATTR_DATA16)
    code = Segment(CODE16, 0, 0xFFFF, ATTR_CODE16)
    state = _state(
        rip=entry, rsp=stack, cs=code, ds=data, es=data, fs=data, gs=data, ss=data, cr0=_CR0_PROTECTED
    )
    return _protected(state, tables, long=False, stack=stack)


def protected32(entry: int, *, stack: int = layout.BOOT_STACK, tables: int = layout.BOOT_TABLES) -> ModeSetup:
    """Protected mode, CPL 0, flat 4 GiB segments, no paging.

    Raises UsageError unless `entry` is below 4 GiB.
    """
    _fits(entry, _FLAT, "p32")
    data = Segment(DATA, 0, _FLAT, ATTR_DATA32)
    code = Segment(CODE32, 0, _FLAT, ATTR_CODE32)
    state = _state(
        rip=entry, rsp=stack, cs=code, ds=data, es=data, fs=data, gs=data, ss=data, cr0=_CR0_PROTECTED
    )
    return _protected(state, tables, long=False, stack=stack)


def long64(
    entry: int,
    *,
    stack: int = layout.BOOT_STACK,
    tables: int = layout.BOOT_TABLES,
    user: bool = False,
) -> ModeSetup:
    """64-bit mode with the first 4 GiB mapped onto itself by 2 MiB pages.

    At CPL 0, or with `user` at CPL 3: there the pages are the user's and the TSS opens every
    port. (kvm_pvm ignores IOPL for 64-bit user code, so the bitmap it is.) The stack of CPL 0
    for exceptions is `stack` too. Raises UsageError unless `entry` is below 4 GiB.
    """
    _fits(entry, _FLAT, "l64u" if user else "l64")
    if user:
        code = Segment(USER_CODE64, 0, _FLAT, with_dpl(ATTR_CODE64, 3))
        data = Segment(USER_DATA, 0, _FLAT, with_dpl(ATTR_DATA32, 3))
    else:
        code = Segment(CODE64, 0, _FLAT, ATTR_CODE64)
        data = Segment(DATA, 0, _FLAT, ATTR_DATA32)
    pages = tables + layout.BOOT_PAGE_TABLES - layout.BOOT_TABLES
    state = _state(
        rip=entry,
        rsp=stack,
        cs=code,
        ds=data,
        es=data,
        fs=data,
        gs=data,
        ss=data,
        cr0=_CR0_LONG,
        cr3=pages,
        cr4=_CR4_LONG,
        efer=_EFER_LONG,
    )
    setup = _protected(state, tables, long=True, stack=stack, open_ports=user)
    setup.writes.append((pages, identity_4level(pages, user=user)))
    return setup


def _real_entry(entry: int, *, stack: int = layout.BOOT_STACK, tables: int = layout.BOOT_TABLES) -> ModeSetup:
    # A boot sector is entered with CS=0; what lies higher gets the CS of its 64 KiB.
    _fits(entry, 0xFFFFF, "real")
    return real(entry >> 4 & 0xF000, entry & 0xFFFF, stack=stack)


def _reset_entry(
    entry: int, *, stack: int = layout.BOOT_STACK, tables: int = layout.BOOT_TABLES
) -> ModeSetup:
    return reset()


def _user64(entry: int, *, stack: int = layout.BOOT_STACK, tables: int = layout.BOOT_TABLES) -> ModeSetup:
    return long64(entry, stack=stack, tables=tables, user=True)


#: --mode name -> preset, called with a linear entry address (which `reset` has no use for).
MODES: dict[str, Mode] = {
    "real": _real_entry,
    "reset": _reset_entry,
    "p16": protected16,
    "p32": protected32,
    "l64": long64,
    "l64u": _user64,
}


def setup(
    mode: str, entry: int, memory_size: int | None = None, *, tables: int = layout.BOOT_TABLES
) -> ModeSetup:
    """The preset `mode` entered at the linear address `entry`.

    In a machine of `memory_size` bytes the stack starts at the end of memory when that lies
    below the usual place. Raises UsageError for a mode that does not exist, naming those
    that do, and for an entry that the mode cannot reach.
    """
    try:
        preset = MODES[mode]
    except KeyError:
        raise UsageError(f"there is no mode '{mode}'", hint=f"choose from {', '.join(MODES)}") from None
    stack = layout.BOOT_STACK if memory_size is None else min(layout.BOOT_STACK, memory_size)
    return preset(entry, stack=stack, tables=tables)
