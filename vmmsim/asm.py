"""Assemble 16-, 32- and 64-bit x86 with keystone, as the guests of guests/ are written.

The syntax is Intel's as keystone (LLVM) takes it, with two liberties that are taken away
before keystone sees the text: a comment starts with `;` or `#`, and a quoted text may hold
both. Sources of several modes switch by `.code16`, `.code32` and `.code64` on a line of
their own; labels are seen across the blocks, since it is one assembly.

Keystone 0.9.2 has habits to know: `.org` fails (use `.balign` or `.zero`), an immediate
that is too wide is cut without a word, a label as an operand is the address (there is no
`offset`), a far jump is `ljmp selector:label`, and CALL and RET in 16-bit code get a 32-bit
operand size (in pairs, so it works). In 32-bit code LGDT and LIDT load 24 bits of the base
(keep the table below 16 MiB) and `ljmp` has 16 bits of offset; IRET and PUSHF work with
16-bit frames in 32- and 64-bit code (write IRETD, IRETQ, PUSHFD, PUSHFQ).

Where keystone would make another instruction than the text says, in silence, there is an
error instead: it drops RSP as the second register of an address (`[rax+rsp]`), and a scaled
register that stands alone in 16-bit code (`[eax*4]`); and an
engine made after one with NASM's syntax was freed reads 10 as 10h (findings/keystone-*.sh).
"""

from __future__ import annotations

import re
from typing import Any

from .errors import ImageError, NotSupported, UsageError

__all__ = ["assemble", "strip_comments"]

_ADDRESS = re.compile(r"\[([^\]]*)\]")
_QUOTED = re.compile(r"\"(?:\\.|[^\"])*\"|'(?:\\.|[^'])*'")
#: A register of an address with 32 or 64 bits, and its scale.
_REGISTER = re.compile(r"\b([er](?:[abcd]x|[sd]i|[sb]p)|r(?:[89]|1[0-5])d?)\b(?:\s*(\*))?", re.IGNORECASE)


def strip_comments(source: str) -> str:
    """`source` without its comments; the lines stay, so that numbers agree."""
    return "\n".join(_strip(line) for line in source.splitlines()) + "\n"


def _strip(line: str) -> str:
    quote = ""
    skip = False
    for at, char in enumerate(line):
        if skip:
            skip = False
        elif quote:
            if char == "\\":
                skip = True
            elif char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        elif char in ";#":
            return line[:at].rstrip()
    return line.rstrip()


def assemble(source: str, bits: int, address: int = 0) -> bytes:
    """The machine code of `source`, which starts in `bits`-bit mode (16, 32 or 64) and is to
    lie at `address` (guest-linear, in bytes).

    Raises NotSupported when keystone is not installed, UsageError for other `bits` or a
    negative address, and ImageError for a source that does not assemble, naming the line.
    """
    try:
        import keystone
    except ImportError as error:
        raise NotSupported(
            "the assembler keystone-engine is not installed", hint="pip install vmmsim[asm]"
        ) from error
    modes = {16: keystone.KS_MODE_16, 32: keystone.KS_MODE_32, 64: keystone.KS_MODE_64}
    if bits not in modes or address < 0:
        raise UsageError(f"{bits}-bit code at {address:#x}", hint="bits are 16, 32 or 64")
    text = strip_comments(source)
    _refuse_what_is_lost(text, bits)
    engine = keystone.Ks(keystone.KS_ARCH_X86, modes[bits])
    if engine.asm("mov al, 10", as_bytes=True)[0] != b"\xb0\x0a":
        raise UsageError(
            "keystone reads all numbers as hexadecimal: one with NASM's syntax was freed in this process",
            hint="assemble in a process of its own",
        )
    try:
        code, _ = engine.asm(text, address, as_bytes=True)
    except keystone.KsError as error:
        raise ImageError(
            f"the source does not assemble: {_first_line(str(error))}{_culprit(keystone, text, bits)}",
            hint="the syntax is Intel's as keystone takes it; see vmmsim/asm.py for its habits",
        ) from error
    return bytes(code) if code is not None else b""


def _refuse_what_is_lost(text: str, bits: int) -> None:
    """Raises ImageError for an address of which keystone would drop a register."""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split(maxsplit=1)
        if words and words[0] in (".code16", ".code32", ".code64"):
            bits = int(words[0][5:])
        for inside in _ADDRESS.findall(_QUOTED.sub("", line)):
            registers = [(name.lower(), bool(scale)) for name, scale in _REGISTER.findall(inside)]
            stack = [at for at, (name, _) in enumerate(registers) if name in ("esp", "rsp")]
            if any(registers[at][1] or not all(scaled for _, scaled in registers[:at]) for at in stack):
                what, hint = "the stack pointer", "write it first and without a scale, as in [rsp+rax]"
            elif bits == 16 and [scaled for _, scaled in registers] == [True]:
                what, hint = f"{registers[0][0].upper()}", "give it a base register, or no scale"
            else:
                continue
            raise ImageError(
                f"keystone would leave {what} out of the address at line {number}: {line.strip()}", hint=hint
            )


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else "unknown error"


def _culprit(keystone: Any, text: str, bits: int) -> str:
    """` at line N: ...`, found by assembling line by line, since keystone names no line.

    Each line is tried behind the constants and macros before it. A symbol that is missing
    is no error of a line on its own.
    """
    modes = {".code16": keystone.KS_MODE_16, ".code32": keystone.KS_MODE_32, ".code64": keystone.KS_MODE_64}
    mode = modes[f".code{bits}"]
    prelude = ""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        word = line.split(maxsplit=1)[0] if line.split() else ""
        mode = modes.get(word, mode)
        inside = inside or word in (".macro", ".rept")
        if inside or " = " in line:
            prelude += line + "\n"
            inside = inside and word not in (".endm", ".endr")
            continue
        try:
            keystone.Ks(keystone.KS_ARCH_X86, mode).asm(prelude + line, 0)
        except keystone.KsError as error:
            if error.errno != keystone.KS_ERR_ASM_SYMBOL_MISSING:
                return f" at line {number}: {line.strip()}"
    return ""
