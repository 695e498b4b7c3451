"""Names of instructions that mean the same, and those whose name says a size."""

from __future__ import annotations

__all__ = ["BRANCHES", "PREFIXES", "SIZED", "STRINGS", "same"]

_CONDITIONS = (
    ("o",), ("no",), ("b", "c", "nae"), ("ae", "nb", "nc"), ("e", "z"), ("ne", "nz"), ("be", "na"),
    ("a", "nbe"), ("s",), ("ns",), ("p", "pe"), ("np", "po"), ("l", "nge"), ("ge", "nl"), ("le", "ng"),
    ("g", "nle"),
)  # fmt: skip
_GROUPS = [
    *([stem + c for c in group] for group in _CONDITIONS for stem in ("j", "set", "cmov")),
    ["shl", "sal"],
    ["ret", "retn", "retw", "retd", "retq"],
    ["retf", "lret", "retfq", "retfd", "retfw"],
    ["iret", "iretw", "iretd", "iretq"],
    ["pushf", "pushfw", "pushfd", "pushfq"],
    ["popf", "popfw", "popfd", "popfq"],
    ["pusha", "pushaw", "pushal", "pushad"],
    ["popa", "popaw", "popal", "popad"],
    ["cbw", "cwde", "cdqe"],
    ["cwd", "cdq", "cqo"],
    ["mov", "movabs"],
    ["jmp", "ljmp"],
    ["call", "lcall"],
    ["xlat", "xlatb"],
    ["wait", "fwait"],
    ["int1", "icebp"],
    ["ud2", "ud2a"],
    ["loope", "loopz"],
    ["loopne", "loopnz"],
    ["sysret", "sysretq", "sysretl"],
    ["sysexit", "sysexitq", "sysexitl"],
    ["test", "testb"],
    ["xchg", "nop"],
    ["lgdt", "lgdtd", "lgdtw"],
    ["lidt", "lidtd", "lidtw"],
    ["int3", "int"],
]
_CLASS = {name: number for number, group in enumerate(_GROUPS) for name in group}

#: Branches whose operand is where they go.
BRANCHES = frozenset(
    ["jmp", "call", "ljmp", "lcall", "loop", "loope", "loopz", "loopne", "loopnz", "jcxz", "jecxz", "jrcxz"]
    + ["j" + c for group in _CONDITIONS for c in group]
)
#: Operand sizes in bits that a name says; 0: the mode's own.
SIZED = {
    "pushf": 0, "popf": 0, "iret": 0, "pusha": 0, "popa": 0,
    "pushfw": 16, "popfw": 16, "iretw": 16, "pushaw": 16, "popaw": 16, "cbw": 16, "cwd": 16,
    "pushfd": 32, "popfd": 32, "iretd": 32, "pushad": 32, "popad": 32, "pushal": 32, "popal": 32,
    "cwde": 32, "cdq": 32,
    "pushfq": 64, "popfq": 64, "iretq": 64, "cdqe": 64, "cqo": 64,
}  # fmt: skip
#: Without operands in the text, and with registers in a listing.
STRINGS = frozenset(
    stem + size for stem in ("movs", "cmps", "scas", "lods", "stos", "ins", "outs") for size in "bwdq"
) | {"xlat", "xlatb"}
#: Words before a mnemonic, and the bytes that they may be.
PREFIXES: dict[str, set[int]] = {
    "lock": {0xF0}, "rep": {0xF3, 0xF2}, "repe": {0xF3}, "repz": {0xF3}, "repne": {0xF2}, "repnz": {0xF2},
    "data16": {0x66}, "o16": {0x66, 0}, "o32": {0x66, 0}, "addr32": {0x67},
    "a32": {0x67, 0}, "a16": {0x67, 0},
}  # fmt: skip


def same(text: str, listed: str) -> bool:
    """Whether a mnemonic of a source and one of a listing are one instruction."""
    if text == listed:
        return True
    number = _CLASS.get(text)
    if number is not None and _CLASS.get(listed) == number:
        return True
    # FSTSW is FNSTSW with a WAIT before it, and x87's names have forms with a size.
    return text[:1] == listed[:1] == "f" and text.replace("fn", "f") == listed.replace("fn", "f")
