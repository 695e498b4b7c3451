"""A fault of Unicorn's with lazy flags, where a hook is called before each instruction.

QEMU keeps the last operation and its operands, and computes the arithmetic flags when they are asked for.
Unicorn asks before each hook for an instruction, and puts the result where the source operand was (2.1.4,
`sync_eflags`). When that same instruction is then left in its middle (a fault, an intercept, an access that
stops the run), QEMU says that the last operation is again the one from before. Its flags would be computed
once more, with the flags themselves for an operand: CF, OF and AF come out wrong.
"""

from __future__ import annotations

__all__ = ["CC_EFLAGS", "STATUS", "settled_already"]

#: OF SF ZF AF PF CF.
STATUS = 0x8D5
#: CC_OP: the source operand is the flags.
CC_EFLAGS = 1
_OF_RESULT = 0xC4  # SF ZF PF
#: QEMU's CC_OP numbers: each kind for 1, 2, 4 and 8 bytes; from _MUL on, without logic, INC and DEC,
#: whose flags come out right, and without ADCX and its like from _OTHERS on.
_MUL, _LOGIC, _SHL, _OTHERS = 2, 22, 34, 46


def settled_already(operation: int, source: int, result: int) -> bool:
    """Whether the lazy source operand `source` is the flags themselves, though `operation` (CC_OP) says
    that it is an operand: it has no other bits, and those that follow from `result` are right."""
    operation &= 0xFFFFFFFF
    if source & ~STATUS or not (_MUL <= operation < _LOGIC or _SHL <= operation < _OTHERS):
        return False
    bits = 8 << (operation - _MUL & 3)
    result &= (1 << bits) - 1
    flags = (not result) << 6 | (result >> bits - 1) << 7 | (not (result & 0xFF).bit_count() & 1) << 2
    return source & _OF_RESULT == flags
