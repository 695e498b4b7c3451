"""Why a vector recorded from an 8086 or 80286 comes out otherwise on a later CPU: each reason has a name.

Reasons are tried in the order of the table; the first that fits a miss names it. Where KVM or Unicorn differ
from the architecture it has the name of an entry of divergences.toml, if there is one; `8086-...` and
`80286-...` are the architecture's own changes since that CPU. A miss that no reason fits is a finding.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from .vector_run import Miss

__all__ = ["REASONS", "WRAP", "Reason", "reason_of"]

_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\xf0\xf2\xf3")
_CF, _AF, _OF = 0x001, 0x010, 0x800
#: The reason of a miss that goes away when the first 64 KiB are there once more at 1 MiB.
WRAP = "a20"


class Reason(msgspec.Struct, frozen=True):
    """`cpus` are the sets in which it counts, `on` the backend (`kvm`, `unicorn` or "" for both)."""

    id: str
    title: str
    fits: Callable[[Miss], bool]
    cpus: tuple[str, ...] = ("80286", "8086")
    on: str = ""


def _opcode_at(code: bytes) -> int:
    at = 0
    while at < len(code) - 1 and code[at] in _PREFIXES:
        at += 1
    return at


def _code(miss: Miss) -> tuple[frozenset[int], int, int]:
    """Prefixes, opcode, and the byte behind it (-1 for none)."""
    code = miss.vector.code
    at = _opcode_at(code)
    return frozenset(code[:at]), code[at], code[at + 1] if at + 1 < len(code) else -1


def _reg(miss: Miss) -> int:
    return _code(miss)[2] >> 3 & 7


def _opcodes(*opcodes: int) -> Callable[[Miss], bool]:
    return lambda miss: _code(miss)[1] in opcodes


def _recorded(*vectors: int) -> Callable[[Miss], bool]:
    def fits(miss: Miss) -> bool:
        return miss.vector.exception is not None and miss.vector.exception.vector in vectors

    return fits


def _only_flags(mask: int) -> Callable[[Miss], bool]:
    """No register but FLAGS differs, in bits of `mask`, and no memory."""

    def fits(miss: Miss) -> bool:
        return not (miss.memory or miss.end) and all(
            name == "flags" and not (theirs ^ ours) & ~mask & 0xFFF for name, theirs, ours in miss.registers
        )

    return fits


def _count(miss: Miss) -> int:
    """By how many bits a shift or rotate of C0, C1, D2 and D3 goes; 0 for another instruction."""
    code = miss.vector.code
    _, opcode, modrm = _code(miss)
    if opcode in (0xD2, 0xD3):
        return miss.vector.init.regs["cx"] & 0x1F
    if opcode in (0xC0, 0xC1):
        mod, rm = modrm >> 6, modrm & 7
        displacement = 0 if mod == 3 else 2 if mod == 2 or (mod == 0 and rm == 6) else mod
        at = _opcode_at(code) + 2 + displacement
        return code[at] & 0x1F if at < len(code) else 0
    return 0


def _rotated(miss: Miss) -> bool:
    return _count(miss) > 1 and _reg(miss) < 4 and _only_flags(_OF)(miss)


def _shifted(miss: Miss) -> bool:
    """AF, and OF for a count above 1; CF of SHL and SHR for one not below the operand's size (SDM vol. 2)."""
    count, reg = _count(miss), _reg(miss)
    size = 8 if _opcodes(0xC0, 0xD2)(miss) else 16
    undefined = _AF | (_OF if count > 1 else 0) | (_CF if count >= size and reg != 7 else 0)
    return count > 0 and reg > 3 and _only_flags(undefined)(miss)


def _locked(miss: Miss) -> bool:
    return 0xF0 in _code(miss)[0]


def _test_alias(miss: Miss) -> bool:
    return _opcodes(0xF6, 0xF7)(miss) and _reg(miss) == 1


def _too_long(miss: Miss) -> bool:
    """More than 10 bytes before the HLT, which the vectors of an 80286 bring (80286 Programmer's Reference
    Manual, 9.6: exception 13). Since the 80386 it is more than 15 (SDM vol. 3, 6.15)."""
    return _recorded(13)(miss) and len(miss.vector.code) - 1 > 10


_STRINGS = (*range(0x6C, 0x70), *range(0xA4, 0xA8), *range(0xAA, 0xB0))


def _limits_then(miss: Miss) -> bool:
    """#GP where it is #SS today, so that another handler runs; or a string instruction, of which an 80286
    had moved SI, DI or CX when it faulted. Today they stay where the iteration began (SDM vol. 2, REP)."""
    names = {name for name, _, _ in miss.registers}
    moved = {"si", "di", "cx"} if _opcodes(*_STRINGS)(miss) else set()
    return _recorded(13)(miss) and not (miss.memory or miss.end) and _handled(names - moved)


def _handled(names: set[str]) -> bool:
    """Nothing, or another handler, differs."""
    return not names or names == {"cs", "ip"}


def _far_return_wraps(miss: Miss) -> bool:
    return _opcodes(0xCA, 0xCB)(miss) and miss.vector.init.regs["sp"] >= 0xFFFD


def _hangs(miss: Miss) -> bool:
    _, opcode, behind = _code(miss)
    return opcode == 0xCD and behind >= 0x80 and "cancelled" in miss.end


def _adjusted(miss: Miss) -> bool:
    return _opcodes(0xD4, 0xD5)(miss) and _only_flags(0x8D5)(miss)


def _refused(miss: Miss) -> bool:
    return "refused by the host" in miss.end


def _another_instruction(miss: Miss) -> bool:
    _, opcode, _ = _code(miss)
    if opcode in (*range(0x60, 0x70), 0xC0, 0xC1, 0xC8, 0xC9, 0x0F):
        return True
    if opcode in (0xD0, 0xD1, 0xD2, 0xD3):
        return _reg(miss) == 6  # SETMO; SHL on later CPUs
    if opcode in (0x8C, 0x8E):  # bit 2 of the field is not looked at; MOV CS
        return _reg(miss) > 3 or (opcode == 0x8E and _reg(miss) == 1)
    if opcode in (0x8F, 0xC6, 0xC7):
        return _reg(miss) != 0
    if opcode in (0xFE, 0xFF):
        return _reg(miss) == 7
    return False


def _long_shift(miss: Miss) -> bool:
    return _opcodes(0xD2, 0xD3)(miss) and miss.vector.init.regs["cx"] & 0xFF > 31


def _images(miss: Miss) -> bool:
    """Only the upper byte of a word in memory differs, in the bits that are always 1 on an 8086."""
    return (
        not (miss.registers or miss.end)
        and len(miss.memory) == 1
        and (miss.memory[0][1] ^ miss.memory[0][2]) & 0x0F == 0
    )


def _divided(miss: Miss) -> bool:
    return _opcodes(0xF6, 0xF7, 0xD4)(miss) and (_reg(miss) in (6, 7) or _code(miss)[1] == 0xD4)


def _sized(miss: Miss) -> bool:
    return _opcodes(*range(0xD8, 0xE0), 0x9B)(miss)


def _into_itself(miss: Miss) -> bool:
    regs, code = miss.vector.final.regs, miss.vector.code
    return "cs" not in regs and 0 <= regs.get("ip", -1) - miss.vector.init.regs["ip"] < len(code)


_NEW, _OLD = ("80286",), ("8086",)

REASONS: tuple[Reason, ...] = (
    Reason(WRAP, "addresses wrap at 1 MiB there; there is no A20 gate here", lambda miss: False, _OLD),
    Reason("kvm-refuses", "this host's KVM cannot emulate the instruction", _refused, on="kvm"),
    Reason("int-n-hang", "INT 80h to FFh hangs in kvm_pvm's emulator", _hangs, on="kvm"),
    Reason("8086-opcodes", "another instruction, or none, since the 80186", _another_instruction, _OLD),
    Reason("into-itself", "it jumps into itself, where no HLT can stop it", _into_itself, _OLD),
    Reason("8086-esc", "an ESC for no coprocessor; later CPUs have x87", _sized, _OLD),
    Reason("8086-push-sp", "PUSH SP stored SP as it is behind the push", _opcodes(0x54), _OLD),
    Reason("8086-shift-count", "shifts took all 8 bits of CL; later CPUs take 5", _long_shift, _OLD),
    Reason("8086-flags-image", "bits 12 to 15 of FLAGS are stored as 1", _images, _OLD),
    Reason("8086-divide", "#DE, its return address and IDIV of the smallest", _divided, _OLD),
    Reason("test-alias", "F6 /1 and F7 /1 are TEST; Unicorn has #UD", _test_alias, on="unicorn"),
    Reason("flags-of-rotates", "OF of a rotate by more than 1 is undefined", _rotated),
    Reason("flags-of-shifts", "AF of a shift, OF by more than 1, CF by all bits: undefined", _shifted),
    Reason("aam-and-aad", "flags of AAM and AAD from another result", _adjusted, on="kvm"),
    Reason("80286-lock", "#UD: LOCK is for stores of some instructions only, since the 80386", _locked),
    Reason("retf-stack-wrap", "far RET does not wrap at the stack's end", _far_return_wraps, on="unicorn"),
    Reason("80286-length", "#GP for more than 10 bytes; since the 80386 for more than 15", _too_long, _NEW),
    Reason("80286-limits", "#GP for the stack too; strings moved first", _limits_then, _NEW, "kvm"),
    Reason("segment-limits", "a word at offset FFFFh is over the limit", _recorded(12, 13), _NEW, "unicorn"),
    Reason("reserved-forms", "a form without a meaning, which was #UD, is executed", _recorded(6), _NEW),
)  # fmt: skip


def reason_of(miss: Miss, cpu: str, backend: str, *, wraps: bool = False) -> str:
    """The id of the reason, or "" for a finding. `wraps`: it passes with `VectorRunner.run(wrap=True)`."""
    if wraps:
        return WRAP
    for reason in REASONS:
        if cpu in reason.cpus and reason.on in ("", backend) and reason.fits(miss):
            return reason.id
    return ""
