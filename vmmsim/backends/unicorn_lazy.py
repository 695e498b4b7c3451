"""A fault of QEMU's with lazy flags, in instructions that are left in their middle.

QEMU keeps the last operation and its operands, and computes the arithmetic flags from them when they are
asked for; it puts what comes out where the source operand was, and notes that the last operation is now
"the flags themselves". When an instruction asks before it accesses memory, and is then left there (a fault,
an intercept, an access that stops the run), QEMU says that the last operation is again the one from before,
but the operand is gone: CF, OF and AF would be computed once more, from the flags (translate.c of QEMU 5.0,
`gen_compute_eflags` and `restore_state_to_opc`). Two cases:

* RCL, RCR and most SETcc with an operand in memory ask by themselves, on any QEMU. A program whose SETL
  meets a page that is not there yet would store the wrong byte.
* Where there is a hook for each instruction, Unicorn 2.1.4 asks before each. From then on, until the
  instruction sets flags of its own, which is behind all its accesses, the source operand is the flags.

The result of the operation does not tell: QEMU does not need it once the flags are computed, and may not
have stored it.
"""

from __future__ import annotations

from ..cpu.prefixes import LEGACY_PREFIXES

__all__ = ["CC_EFLAGS", "MAY_ASK", "STATUS", "asks_first", "settled_already"]

#: OF SF ZF AF PF CF.
STATUS = 0x8D5
#: CC_OP: the source operand is the flags.
CC_EFLAGS = 1
_OF_RESULT = 0xC4  # SF ZF PF
#: QEMU's CC_OP numbers: each kind for 1, 2, 4 and 8 bytes; from _MUL on, without logic, INC and DEC,
#: whose flags come out right, and without ADCX and its like from _OTHERS on.
_MUL, _SUB, _SBB, _LOGIC, _SHL, _OTHERS = 2, 14, 18, 22, 34, 46
#: CC_OP of a XOR of a register with itself. It has no operands, so nothing of it can be lost.
_CLEARED = 49

_ROTATES = b"\xc0\xc1\xd0\xd1\xd2\xd3"
#: What an instruction that `asks_first` is of begins with, outside 64-bit code.
MAY_ASK = LEGACY_PREFIXES | frozenset(_ROTATES + b"\x0f")
#: Half of a SETcc's condition: SETO, SETB, SETBE, SETP, and SETL, SETLE.
_O, _B, _BE, _P, _L = 0, 1, 3, 5, 6


def settled_already(operation: int, source: int, result: int) -> bool:
    """Whether the lazy source operand `source` looks like the flags, though `operation` (CC_OP) says
    that it is an operand: it has no other bits, and those that follow from `result` are right."""
    operation &= 0xFFFFFFFF
    if source & ~STATUS or not (_MUL <= operation < _LOGIC or _SHL <= operation < _OTHERS):
        return False
    bits = 8 << (operation - _MUL & 3)
    result &= (1 << bits) - 1
    flags = (not result) << 6 | (result >> bits - 1) << 7 | (not (result & 0xFF).bit_count() & 1) << 2
    return source & _OF_RESULT == flags


def asks_first(code: bytes, code64: bool, operation: int, source: int) -> bool | None:
    """Whether the instruction `code`, left at an access of its own, has put the flags where the source
    operand was, `operation` (CC_OP) being the last one. Bytes that cannot be read are missing from `code`.

    None for SETZ and SETS, and for SETBE, SETL and SETLE behind SUB and CMP: they ask only where QEMU's
    translator did not know the last operation, as at the start of a block."""
    operation &= 0xFFFFFFFF
    if source & ~STATUS or operation in (CC_EFLAGS, _CLEARED):
        return False
    at = 0
    while at < len(code) and (code[at] in LEGACY_PREFIXES or (code64 and code[at] >> 4 == 4)):
        at += 1
    code = code[at : at + 3]
    if len(code) > 1 and code[0] in _ROTATES:
        return code[1] < 0xC0 and code[1] >> 3 & 7 in (2, 3)
    if len(code) < 3 or code[0] != 0x0F or code[1] >> 4 != 9 or code[2] >= 0xC0:
        return False
    condition = code[1] >> 1 & 7
    if condition == _B:  # it asks for CF alone, which goes elsewhere
        return False
    if condition == _P or (condition == _O and operation < _OTHERS):
        return True
    if condition in (_BE, _L, _L + 1) and not _SUB <= operation < _SBB:
        return True
    return None
