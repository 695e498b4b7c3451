"""Whether machine code is what its line says: decoded, and compared with the text.

Assemblers make other code than a line says without an error (findings/). So the bytes of each line
are decoded by capstone, and compared: the mnemonic, the registers, the size of what is in memory, numbers and
addresses (which must not have been cut), and where a branch goes. What the text leaves open may be
anything. Of x87 instructions, and of what capstone cannot read, less is compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .mnemonics import BRANCHES, PREFIXES, SIZED, STRINGS, same
from .numbers import evaluate
from .source import Statement

__all__ = ["problem", "widths_of_calls"]

_REGISTERS = re.compile(
    r"(?<![\w.$@])(r(?:[8-9]|1[0-5])[dwb]?|[re]?(?:[abcd]x|[sd]i|[sb]p)|[abcd][lh]|(?:si|di|sp|bp)l|[c-gs]s"
    r"|es|cr[0-8]|dr[0-7]|[xyz]?mm\d{1,2}|rip)(?![\w.$@])",
    re.IGNORECASE,
)
_SIZE = re.compile(r"\b(byte|word|dword|fword|qword|tbyte|tword|xword|oword|xmmword)\b", re.IGNORECASE)
_BYTES = {"byte": 1, "word": 2, "dword": 4, "fword": 6, "qword": 8, "tbyte": 10, "tword": 10, "xword": 10}
_BYTES |= {"oword": 16, "xmmword": 16}
_SMALL = frozenset(
    {"int", "in", "out", "shl", "shr", "sar", "sal", "rol", "ror", "rcl", "rcr", "shld", "shrd"}
)
_DEFAULT_SEGMENTS = frozenset({"ds", "ss"})
_REG, _IMM, _MEM = 1, 2, 3


def problem(statement: Statement, names: Mapping[str, int]) -> str:
    """Why the code of a statement that is an instruction is not what it says, or ""."""
    text = re.sub(r"\s+", " ", statement.text.strip())
    prefixes, word, operands = _split(text)
    if not statement.code:
        return "it became no code at all"
    decoded = list(_decoder(statement.bits).disasm(statement.code, statement.address))
    if sum(insn.size for insn in decoded) != len(statement.code):
        return "" if word not in SIZED and word not in BRANCHES else "its bytes are no instruction"
    if len(decoded) == 2 and decoded[0].mnemonic == "wait":  # FSTSW and the like have a WAIT before them
        decoded = decoded[1:]
    if len(decoded) != 1:
        return f"it became {len(decoded)} instructions"
    insn = decoded[0]
    name = insn.mnemonic.split()[-1]
    shown = f"{insn.mnemonic} {insn.op_str}".strip()
    if not same(word, name):
        return f"it became `{shown}`"
    wrong = _size_of_operation(word, insn, statement.bits)
    if wrong and not {"o16", "o32", "data16"} & set(prefixes):
        return wrong
    lost = [p for p in prefixes if p in PREFIXES and not PREFIXES[p] & set(bytes(insn.prefix))]
    if lost:
        return f"its prefix {lost[0]} is lost"
    if word in STRINGS or word.startswith("f"):
        return ""
    return _operands(text, word, operands, insn, shown, statement, names)


def widths_of_calls(found: Iterable[Statement]) -> str:
    """Near CALL and RET of 16- and 32-bit code push and take as many bytes: all of a mode must have one
    width, with or without an operand-size prefix. Which line has another, or ""."""
    first: dict[int, tuple[bool, Statement]] = {}
    for statement in found:
        _, word, operands = _split(re.sub(r"\s+", " ", statement.text.strip()))
        near = word in ("ret", "retn") or (word == "call" and not re.search(r"\bfar\b|:", " ".join(operands)))
        if not near or statement.bits == 64 or not statement.code:
            continue
        insn = next(iter(_decoder(statement.bits).disasm(statement.code, statement.address)), None)
        if insn is None:
            continue
        wide = insn.prefix[2] == 0x66
        had, other = first.setdefault(statement.bits, (wide, statement))
        if had != wide:
            return (
                f"line {statement.number}: `{statement.text}` has an operand size of "
                f"{(16 if statement.bits == 32 else 32) if wide else statement.bits} bits, and "
                f"`{other.text}` on line {other.number} another: what is pushed is not what is taken"
            )
    return ""


def _decoder(bits: int) -> Any:
    import capstone

    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    decoder = capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
    decoder.detail = True
    return decoder


def _split(text: str) -> tuple[list[str], str, list[str]]:
    """(prefixes, mnemonic, operands), all in lower case but names."""
    prefixes = []
    words = text.split(" ", 1)
    while words[0].lower() in PREFIXES and len(words) == 2:
        prefixes.append(words[0].lower())
        words = words[1].split(" ", 1)
    rest = words[1] if len(words) == 2 else ""
    operands = []
    depth, piece = 0, ""
    for char in rest:
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            operands.append(piece.strip())
            piece = ""
        else:
            piece += char
    if piece.strip():
        operands.append(piece.strip())
    return prefixes, words[0].lower(), operands


def _size_of_operation(word: str, insn: Any, bits: int) -> str:
    """PUSHF and the like, whose name says how wide they are, or that it is the mode's own width."""
    wanted = SIZED.get(word)
    if wanted is None:
        return ""
    other = 0x66 in insn.prefix
    width = {16: 32 if other else 16, 32: 16 if other else 32, 64: 16 if other else 64}[bits]
    if insn.rex & 8:
        width = 64
    elif bits == 64 and word in ("cwde", "cdq", "iretd", "iret") and not other:
        width = 32
    if (wanted or (32 if bits == 64 and word == "iret" else bits)) != width:
        return f"it has an operand size of {width} bits"
    return ""


def _operands(
    text: str,
    word: str,
    operands: list[str],
    insn: Any,
    shown: str,
    statement: Statement,
    names: Mapping[str, int],
) -> str:
    plain = [op for op in operands if "[" not in op]
    in_memory = [op for op in operands if "[" in op]
    memory = [op for op in insn.operands if op.type == _MEM]
    size = _SIZE.search(re.sub(r"'[^']*'", "", text))
    if size and in_memory and memory and word not in ("lea", "nop"):
        wanted, has = _BYTES[size[1].lower()], memory[0].size
        if has != wanted and not (wanted in (4, 6, 8, 10) and word in ("call", "jmp", "lcall", "ljmp")):
            return f"it became `{shown}`: {has} bytes in memory, and the line says {wanted}"
    if in_memory and not memory:
        return f"it became `{shown}`, without its operand in memory"
    if word in BRANCHES and not in_memory and len(operands) == 1:
        wrong = _branch(operands[0], insn, shown, statement.bits, names)
        return f"it became `{shown}`{wrong}" if wrong else ""
    for operand in in_memory:
        wrong = _memory(operand, memory[0], insn, statement, names)
        if wrong:
            return f"it became `{shown}`: {wrong}"
    wanted_registers = sorted(set(_registers(" ".join(plain))))
    has_registers = set(_registers(re.sub(r"\S*\[[^]]*\]", "", insn.op_str)))
    if insn.mnemonic == "mov" and statement.bits == 64:
        # A number below 2^32 in a 64-bit register: NASM takes the shorter form, which clears the upper half.
        has_registers |= {_wide(r) for r in has_registers}
    missing = [r for r in wanted_registers if r not in has_registers]
    if missing:
        return f"it became `{shown}`, without {missing[0].upper()}"
    return _numbers(plain, word, insn, shown, names, explicit=bool(in_memory))


def _registers(text: str) -> list[str]:
    return [name.lower() for name in _REGISTERS.findall(re.sub(r"'[^']*'", "", text))]


def _wide(register: str) -> str:
    """The 64-bit register of a 32-bit one."""
    return f"r{register[1:]}" if register.startswith("e") else register.removesuffix("d")


def _branch(operand: str, insn: Any, shown: str, bits: int, names: Mapping[str, int]) -> str:
    text = re.sub(r"^(?:short|near|far)\s+", "", operand, flags=re.IGNORECASE)
    if _registers(text) == [text.lower()]:
        has = _registers(insn.op_str)
        return "" if has == [text.lower()] else f", without {text.upper()}"
    parts = [evaluate(part, names) for part in text.split(":")]
    immediates = [op.imm for op in insn.operands if op.type == _IMM]
    if None in parts:
        return ""
    if len(immediates) != len(parts):
        return ""
    mask = (1 << bits) - 1
    if insn.mnemonic in ("ljmp", "lcall"):
        if [v & 0xFFFFFFFF for v in parts if v is not None] != [v & 0xFFFFFFFF for v in immediates]:
            return f", and the line says {text}"
        return ""
    if (immediates[0] ^ (parts[0] or 0)) & mask:
        return f", and the line branches to {parts[0]:#x}"
    return ""


def _memory(operand: str, memory: Any, insn: Any, statement: Statement, names: Mapping[str, int]) -> str:
    inner = operand[operand.index("[") + 1 : operand.rindex("]")]
    before = operand[: operand.index("[")] + (inner.split(":")[0] + ":" if ":" in inner else "")
    inner = inner.rpartition(":")[2]
    wanted_segments = [s for s in _registers(before) if s not in _DEFAULT_SEGMENTS]
    mem = memory.mem
    segment = insn.reg_name(mem.segment) or ""
    if wanted_segments and segment != wanted_segments[0] and insn.mnemonic != "lea":
        return f"the line's segment is {wanted_segments[0].upper()}"
    registers, number, known = _terms(inner, names)
    has: dict[str, int] = {}
    for register, scale in ((insn.reg_name(mem.base), 1), (insn.reg_name(mem.index), mem.scale)):
        if register and register not in ("riz", "eiz"):
            has[register] = has.get(register, 0) + scale
    displacement = mem.disp
    if "rip" in has:
        # [NAME] and [rip + NAME] are the place of the name, [rip + 8] is 8 bytes on.
        if "rip" not in registers or re.search(r"[A-Za-z_.]", re.sub(r"(?i)rip|0x[0-9a-f]+", "", inner)):
            displacement += statement.address + insn.size
        if "rip" not in registers:
            del has["rip"]
    if has != registers:
        return "the line's registers are " + (", ".join(sorted(registers)).upper() or "none")
    if not known:
        return ""
    width = 8 * insn.addr_size
    if (displacement - number) & (1 << min(width, 64)) - 1 or not -(1 << width) < number < 1 << width:
        return f"its address is {displacement & (1 << width) - 1:#x}, and the line's {number:#x}"
    return ""


def _terms(inner: str, names: Mapping[str, int]) -> tuple[dict[str, int], int, bool]:
    """(registers with their scales, the sum of the rest, whether that is known)."""
    registers: dict[str, int] = {}
    rest = ""
    for sign, term in re.findall(r"([-+]?)\s*((?:\([^)]*\)|[^-+()])+)", inner):
        factors = [factor.strip() for factor in term.split("*")]
        named = [f for f in factors if _registers(f) == [f.lower()]]
        if len(named) == 1:
            scale = evaluate("*".join(f for f in factors if f != named[0]) or "1", names) or 1
            registers[named[0].lower()] = registers.get(named[0].lower(), 0) + scale
        else:
            rest += f"{sign or '+'}{term}"
    value = evaluate(rest, names) if rest else 0
    return registers, value or 0, value is not None


def _numbers(
    plain: list[str], word: str, insn: Any, shown: str, names: Mapping[str, int], *, explicit: bool
) -> str:
    """Numbers among the operands: each is there, and has not lost bits."""
    immediates = [op for op in insn.operands if op.type == _IMM]
    wide = 8 * max([op.size for op in insn.operands] or [8])
    for operand in plain:
        text = re.sub(
            r"^(?:offset|byte|word|dword|qword|strict|ptr|short)\s+", "", operand, flags=re.IGNORECASE
        )
        value = evaluate(re.sub(r"^(?:offset|ptr)\s+", "", text, flags=re.IGNORECASE), names)
        if value is None or _registers(operand):
            continue
        if not immediates:
            if any(op.type == _MEM for op in insn.operands) and not explicit:
                return f"it became `{shown}`: the number is read from memory (`offset NAME` is a number)"
            continue  # shl x, 1 and the like
        width = 8 if word in _SMALL else 16 if word in ("ret", "retn", "enter") else wide
        mask = (1 << width) - 1
        if not -(1 << width - 1) <= value <= mask or not any(
            (op.imm - value) & mask == 0 for op in immediates
        ):
            return f"it became `{shown}`, and the line's number is {value:#x}"
    return ""
