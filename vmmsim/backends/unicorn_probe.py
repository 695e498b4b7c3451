"""Finding the CPU structure inside a `uc_context`, and proving that writing it works.

A scratch engine gets distinctive values by the documented register API, and runs a few
instructions that fill what has no register number (hidden segment parts, XCR0, CR8, an
error code). Each value is then looked for in the context's bytes. Fields beside a found
one are not searched but must hold what they should.
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, NamedTuple

from unicorn import UC_ERR_EXCEPTION
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import Uc, UcError, uclib

from ..cpu import msrs
from ..cpu.descriptors import pack_descriptor
from ..cpu.state import CpuState, Segment
from .unicorn_registers import RegisterAccess, check

if TYPE_CHECKING:
    from .unicorn_context import ContextCodec

__all__ = ["ContextBytes", "Layout", "find_layout", "prove"]

_PAGE = 0x1000
_GDT = _PAGE
_CODE = _PAGE + 0x100
_BAD_SELECTOR = 0x7F8

# In 64-bit mode at CPL 0 without paging, as a new engine is:
#   mov eax, 0x08; mov es, eax      mov al, 0x10; mov ds, eax
#   mov al, 0x18; mov fs, eax       mov al, 0x20; mov gs, eax
#   mov al, 0x28; mov ss, eax       mov al, 5; mov cr8, rax
#   xor ecx, ecx; xor edx, edx; mov al, 3; xsetbv
#   push 0x30; push 0x1140; retfq   ; CS = 0x30, whose base QEMU adds in 64-bit mode too
# 1140: std; mov eax, 0x7f8; mov ds, eax     ; #GP(0x7f8): beyond the GDT's limit
_LOAD = bytes.fromhex(
    "b8080000008ec0b0108ed8b0188ee0b0208ee8b0288ed0b005440f22c031c931d2b0030f01d16a30684011000048cb"
)
_FAULT = bytes.fromhex("fdb8f80700008ed8")
_FAULT_RIP = 0x1140 + 6

# In 16-bit protected mode: mov ax, [0]; push ax; hlt
_PROOF = bytes.fromhex("a1000050f4")


class Layout(NamedTuple):
    """Where things are, in bytes from the start of the CPU structure."""

    registers: int
    flags: int
    segments: int
    cr: int
    efer: int
    fpu: int
    x87: int
    fpu_pointers: int
    xmm: int
    msr: dict[int, int]
    xcr0: int
    error_code: int
    debug: int
    breakpoints: int
    old_exception: int
    tpr: int


class ContextBytes:
    """One uc_context of an engine and a view of the CPU structure in it."""

    def __init__(self, uc: Uc) -> None:
        self._engine = uc._uch
        self._context = uc.context_save()  # owns the memory that `data` shows
        self._handle = self._context.context
        total = uclib.uc_context_size(self._engine)
        size = ctypes.c_size_t.from_address(self._handle.value).value  # the header's first word
        if not 0 < total - size <= 256:
            raise LookupError(f"a context of {total} bytes says that {size} of them are the CPU's")
        start = self._handle.value + total - size
        self.data = memoryview((ctypes.c_ubyte * size).from_address(start)).cast("B")

    def save(self) -> memoryview:
        """The engine's state now, to look at or to edit."""
        check(uclib.uc_context_save(self._engine, self._handle))
        return self.data

    def restore(self) -> None:
        """Make the edited bytes the engine's state."""
        check(uclib.uc_context_restore(self._engine, self._handle))


def find_layout(uc: Uc) -> Layout:
    """The layout of `uc`'s contexts. Uses up the engine. LookupError when it is not as known."""
    access = RegisterAccess(uc)
    _plant(uc, access)
    try:
        uc.emu_start(_CODE, 0)
    except UcError as error:
        if error.errno != UC_ERR_EXCEPTION or access.read_rip() != _FAULT_RIP:
            raise LookupError(f"the probe stopped at {access.read_rip():#x}: {error}") from None
    else:
        raise LookupError("the probe's fault was not seen")
    return _search(bytes(ContextBytes(uc).data), access)


def _mark(number: int) -> int:
    """A 64-bit value that nothing else in the structure has; canonical as an address."""
    return 0x00005A7E_C3000000 | number << 16 | 0xB1D7


def _mark32(number: int) -> int:
    return 0x6B00_0D10 | number << 16


_DESCRIPTORS = tuple(
    # (base, limit with G = 0, attr): ES DS FS GS SS CS
    (0x1B3C_0000 | n << 12 | 0x5A0, 0x1_2000 | n << 4, attr)
    for n, attr in enumerate((0x93, 0x1093, 0x4093, 0xF3, 0x4093, 0x209B), start=1)
)
_FSW, _FCW, _FPTAG = 0x6A45, 0x1B7F, 0xC3CF
_MXCSR = 0x3FA2
_WIDE_MSRS = tuple(index for index in msrs.STATE_MSRS if index != msrs.SYSENTER_CS)
_TSC_AUX = 0xC0000103


def _plant(uc: Uc, access: RegisterAccess) -> None:
    gdt = [0, *(pack_descriptor(*entry) for entry in _DESCRIPTORS)]
    uc.mem_map(_PAGE, 0x1000)
    uc.mem_write(_GDT, struct.pack(f"<{len(gdt)}Q", *gdt))
    uc.mem_write(_CODE, _LOAD)
    fault = _DESCRIPTORS[-1][0] + _FAULT_RIP - 6
    uc.mem_map(fault & ~0xFFF, 0x1000)
    uc.mem_write(fault, _FAULT)
    for n in range(8):
        access.write(getattr(x86, f"UC_X86_REG_R{n + 8}"), _mark(n))
        access.write_wide(x86.UC_X86_REG_FP0 + n, 10, _mark(16 + n) | 0x3FF1 + n << 64)
    for n in range(16):
        access.write_wide(x86.UC_X86_REG_YMM0 + n, 32, _mark(32 + n) | _mark(48 + n) << 128)
    for n in range(4):
        access.write(x86.UC_X86_REG_DR0 + n, _mark(64 + n))
    for n, index in enumerate(_WIDE_MSRS):
        access.write_msr(index, _mark(80 + n))
    access.write_msr(msrs.SYSENTER_CS, 0x5B17)
    access.write_msr(_TSC_AUX, _mark32(8))
    access.write_msr(msrs.EFER, 0x901)  # SCE, LME, NXE; LMA is there already
    access.write(x86.UC_X86_REG_CR2, _mark(100))
    access.write(x86.UC_X86_REG_CR3, _mark(101))
    access.write(x86.UC_X86_REG_CR4, 0x40220)  # OSXSAVE, OSFXSR, PAE
    access.write(x86.UC_X86_REG_FIP, _mark(102))
    access.write(x86.UC_X86_REG_FDP, _mark(103))
    access.write(x86.UC_X86_REG_FOP, 0x5D3)
    access.write(x86.UC_X86_REG_FPCW, _FCW)
    access.write(x86.UC_X86_REG_FPSW, _FSW)
    access.write(x86.UC_X86_REG_FPTAG, _FPTAG)
    access.write(x86.UC_X86_REG_MXCSR, _MXCSR)
    access.write(x86.UC_X86_REG_RSP, _PAGE + 0x1000)
    access.write(x86.UC_X86_REG_RFLAGS, 2)
    access.write_table(x86.UC_X86_REG_LDTR, 0x5C18, _mark(104), _mark32(1), 0x8200)
    access.write_table(x86.UC_X86_REG_TR, 0x5C28, _mark(105), _mark32(2), 0x8B00)
    access.write_table(x86.UC_X86_REG_IDTR, 0, _mark(106), 0x5E7F, 0)
    access.write_table(x86.UC_X86_REG_GDTR, 0, _GDT, 8 * len(gdt) - 1, 0)


def _search(data: bytes, access: RegisterAccess) -> Layout:
    def find(what: str, pattern: bytes) -> int:
        at = data.find(pattern)
        if at < 0 or data.find(pattern, at + 1) >= 0:
            raise LookupError(f"{what} is not there exactly once")
        return at

    def expect(what: str, at: int, layout: str, *values: int) -> None:
        found = struct.unpack_from(layout, data, at) if 0 <= at <= len(data) - struct.calcsize(layout) else ()
        if found != values:
            raise LookupError(f"{what} is {[hex(v) for v in found]}, not {[hex(v) for v in values]}")

    names = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI")
    gpr = [access.read(getattr(x86, f"UC_X86_REG_{name}")) for name in names]
    registers = find("R8", struct.pack("<Q", _mark(0))) - 64
    expect("the block of general registers", registers, "<17Q", *gpr, *map(_mark, range(8)), _FAULT_RIP)
    flags = registers + 136
    # RFLAGS: ZF and PF from XOR, DF from STD. The hidden flags follow from mode and segments.
    expect("RFLAGS", flags, "<Q", 0x446)
    expect("the direction", flags + 36, "<i", -1)
    expect("the hidden flags", flags + 40, "<I", 0x40C0B0)

    order = (0, 5, 4, 1, 2, 3)  # ES CS SS DS FS GS
    selectors = (0x08, 0x30, 0x28, 0x10, 0x18, 0x20)
    segments = find("ES.base", struct.pack("<Q", _DESCRIPTORS[0][0])) - 8
    for place, (number, selector) in enumerate(zip(order, selectors, strict=True)):
        base, limit, attr = _DESCRIPTORS[number]
        where = segments + 24 * place
        expect("a segment", where, "<I4xQI", selector, base, limit)
        expect("a segment's attributes", where + 21, "<H", attr | (limit >> 16 & 15) << 8)
    tables = segments + 144
    expect("LDTR", tables, "<I4xQII", 0x5C18, _mark(104), _mark32(1), 0x8200)
    expect("TR", tables + 24, "<I4xQII", 0x5C28, _mark(105), _mark32(2), 0x8B00)
    expect("GDTR", tables + 56, "<QI", _GDT, 8 * len(_DESCRIPTORS) + 7)
    expect("IDTR", tables + 80, "<QI", _mark(106), 0x5E7F)

    cr = find("CR2", struct.pack("<QQ", _mark(100), _mark(101))) - 16
    expect("CR0", cr, "<Q", access.read(x86.UC_X86_REG_CR0))
    expect("CR4", cr + 32, "<Q", 0x40220)
    efer = find("EFER", struct.pack("<Q", 0xD01))
    fpu = find(
        "the x87 control block",
        struct.pack(
            "<IHH8B", _FSW >> 11 & 7, _FSW & ~0x3800, _FCW, *((_FPTAG >> 2 * i & 3) == 3 for i in range(8))
        ),
    )
    x87 = find("an x87 register", struct.pack("<Q", _mark(16)))
    for n in range(8):
        expect("an x87 register", x87 + 16 * n, "<QH", _mark(16 + n), 0x3FF1 + n)
    fpu_pointers = find("the x87 pointers", struct.pack("<QQ", _mark(102), _mark(103))) - 8
    expect("the x87 opcode", fpu_pointers, "<H", 0x5D3)
    xmm = find("XMM0", struct.pack("<Q", _mark(32)))
    for n in range(16):
        expect("a YMM register", xmm + 64 * n, "<4Q", _mark(32 + n), 0, _mark(48 + n), 0)

    msr = {
        index: find(f"MSR {index:#x}", struct.pack("<Q", _mark(80 + n))) for n, index in enumerate(_WIDE_MSRS)
    }
    msr[msrs.SYSENTER_CS] = msr[msrs.SYSENTER_ESP] - 8
    expect("SYSENTER_CS", msr[msrs.SYSENTER_CS], "<I", 0x5B17)
    xcr0 = find("TSC_AUX", struct.pack("<Q", _mark32(8))) + 8
    expect("XCR0", xcr0, "<Q", 3)
    debug = find("DR0", struct.pack("<4Q", *(_mark(64 + n) for n in range(4))))
    expect("DR6", debug + 48, "<QQ", 0xFFFF0FF0, 0x400)
    expect("the error code", debug - 16, "<ii", _BAD_SELECTOR, 0)
    expect("the breakpoints", debug + 64, "<4Q", 0, 0, 0, 0)
    expect("the old exception", debug + 96, "<i", 13)
    expect("the SVM fields", debug + 104, "<QQQHHHHI4xQI", *(0,) * 10)
    expect("CR8", debug + 156, "<B", 5)
    return Layout(
        registers=registers, flags=flags, segments=segments, cr=cr, efer=efer, fpu=fpu, x87=x87,
        fpu_pointers=fpu_pointers, xmm=xmm, msr={i: msr[i] for i in msrs.STATE_MSRS}, xcr0=xcr0,
        error_code=debug - 16, debug=debug, breakpoints=debug + 64, old_exception=debug + 96, tpr=debug + 156,
    )  # fmt: skip


def prove(codec: ContextCodec) -> None:
    """Write a 16-bit protected state with three odd bases and run a guest that needs them."""
    page = 2 * _PAGE
    code, data, stack = page + 0x10, page + 0x120, page + 0x230
    codec.uc.mem_map(page, 0x1000)
    codec.uc.mem_write(code, _PROOF)
    codec.uc.mem_write(data, b"\x3c\xa5")
    state = CpuState(rsp=0x1_0040, cr0=0x11)
    state.cs = Segment(0x08, code, 0xFFFF, 0x9B)
    state.ds = Segment(0x10, data, 0xFFFF, 0x93)
    state.ss = Segment(0x18, stack, 0xFFFF, 0x93)
    codec.write_state(state)
    codec.uc.emu_start(0, 0)
    after = codec.read_state()
    # A 16-bit stack wraps within SP: the upper half of ESP stays as it was.
    if (after.rax, after.rsp, after.rip) != (0xA53C, 0x1_003E, 5):
        raise LookupError(f"written segments did not take effect: {after.rax:x} {after.rsp:x} {after.rip:x}")
    if bytes(codec.uc.mem_read(stack + 0x3E, 2)) != b"\x3c\xa5":
        raise LookupError("the written stack segment did not take effect")
    state.rax, state.rsp, state.rip = after.rax, after.rsp, after.rip
    if differences := state.diff(after):
        raise LookupError(f"a written state reads differently: {differences[:3]}")
