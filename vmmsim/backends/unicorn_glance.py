"""The general registers in the middle of a run, from a copy of some words of QEMU's CPU structure.

While an access is answered, RIP and the general registers are in the structure, but the arithmetic flags are
not: QEMU keeps the last operation and its operands, and computes the flags when they are asked for
(target/i386/cc_helper.c). To ask costs more than the copy does; so it is copied, and computed here, later.

Where a hook is called before each instruction Unicorn has asked before it, and the source operand is the
flags, whatever the operation says: see `unicorn_lazy`. A copy that is some bytes longer says so.
"""

from __future__ import annotations

import struct

from ..cpu.state import Registers
from .unicorn_lazy import CC_EFLAGS, STATUS

__all__ = ["GLANCE_SIZE", "HOOKED_SIZE", "registers_of", "status_flags"]

#: Bytes from the first general register on; where a hook is called before each instruction.
GLANCE_SIZE, HOOKED_SIZE = 180, 184

#: GPRs in encoding order, RIP; RFLAGS, lazy result, source, source 2, operation, direction.
_WORDS = struct.Struct("<17Q4QIi")
_DF = 1 << 10
_CF, _PF, _AF, _ZF, _SF, _OF = 0x1, 0x4, 0x10, 0x40, 0x80, 0x800
#: QEMU's CC_OP numbers, each of the first for 1, 2, 4 and 8 bytes.
_MUL, _ADD, _ADC, _SUB, _SBB, _LOGIC, _INC, _DEC, _SHL, _SAR, _BMILG = range(2, 46, 4)
_ADCX, _ADOX, _ADCOX, _CLR, _POPCNT = range(46, 51)


def registers_of(glance: bytes) -> Registers:
    """What a copy of GLANCE_SIZE or HOOKED_SIZE bytes says."""
    (
        rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, rip,
        flags, result, source, source2, operation, direction,
    ) = _WORDS.unpack_from(glance)  # fmt: skip
    if len(glance) == HOOKED_SIZE:
        operation = CC_EFLAGS
    rflags = flags & ~(STATUS | _DF) | status_flags(operation, result, source, source2)
    if direction < 0:
        rflags |= _DF
    return Registers(
        rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags
    )


def status_flags(operation: int, result: int, source: int, source2: int) -> int:
    """OF SF ZF AF PF CF by QEMU's rules (cc_helper_template.h): `operation` is a CC_OP."""
    if operation == CC_EFLAGS:
        return source & STATUS
    if operation < _ADCX:
        return _of_result(operation, result, source, source2)
    if operation == _ADCX:
        return source & STATUS & ~_CF | result & 1
    if operation == _ADOX:
        return source & STATUS & ~_OF | (source2 & 1) << 11
    if operation == _ADCOX:
        return source & STATUS & ~(_CF | _OF) | result & 1 | (source2 & 1) << 11
    if operation == _CLR:
        return _ZF | _PF
    return 0 if source else _ZF  # POPCNT


def _of_result(operation: int, result: int, source: int, source2: int) -> int:
    bits = 8 << (operation - _MUL & 3)
    kind = operation - (operation - _MUL & 3)
    mask, sign = (1 << bits) - 1, 1 << bits - 1
    r, a, carry = result & mask, source & mask, source2 & mask
    flags = (not r) << 6 | (r >> bits - 1) << 7 | (not (r & 0xFF).bit_count() & 1) << 2
    borrowed: int | bool = 0
    overflow: int | bool = 0
    other: int | None = None  # with `a` and `r`: what AF follows from
    if kind == _MUL:
        borrowed = overflow = source != 0
    elif kind in (_ADD, _ADC):
        with_carry = carry if kind == _ADC else 0
        other = r - a - with_carry & mask
        borrowed = r <= a if with_carry else r < a
        overflow = ~(a ^ other) & (a ^ r) & sign
    elif kind in (_SUB, _SBB):
        with_carry = carry if kind == _SBB else 0
        other = r + a + with_carry & mask
        borrowed = other <= a if with_carry else other < a
        overflow = (other ^ a) & (other ^ r) & sign
    elif kind == _INC:
        borrowed, overflow, other, a = source & 1, r == sign, r - 1 & mask, 1
    elif kind == _DEC:
        borrowed, overflow, other, a = source & 1, r == sign - 1, r + 1 & mask, 1
    elif kind == _SHL:
        borrowed, overflow = a & sign, (a ^ r) & sign
    elif kind == _SAR:
        borrowed, overflow = a & 1, (a ^ r) & sign
    elif kind == _BMILG:
        borrowed = not a
        flags &= ~_PF
    if other is not None:
        flags |= (r ^ a ^ other) & _AF
    return flags | (_CF if borrowed else 0) | (_OF if overflow else 0)
