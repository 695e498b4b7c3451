"""Assemble 16-, 32- and 64-bit x86, and check that the bytes are what the lines say.

The assembler is keystone, in the syntax that the guests of guests/ are written in, NASM in its own, or GNU
as in Intel's syntax. Whichever it is, its code is decoded and compared with the source line by line: each
of them makes other code than a line says at times, without an error (docs/guests.md).

For keystone the syntax is Intel's as LLVM takes it, with two liberties that are taken away before keystone
sees the text: a comment starts with `;` or `#`, and a quoted text may hold both. Sources of several modes
switch by `.code16`, `.code32` and `.code64` on a line of their own; labels are seen across the blocks, since
it is one assembly. `.org` fails (use `.balign` or `.zero`), a label as an operand is the address (there is no
`offset`), a far jump is `ljmp selector:label`, and CALL and RET in 16-bit code get a 32-bit operand size (in
pairs, so it works).
"""

from __future__ import annotations

import contextlib
import re

from ..errors import ImageError, UsageError
from .check import problem, widths_of_calls
from .source import Statement, marked, statements, strip_comments
from .tools import MOST_TEXT, TOOLS, Failed, Tool, tool_for

__all__ = ["assemble", "choose_tool", "strip_comments"]

#: What NASM's sources have and the others' have not.
_OF_NASM = re.compile(
    r"^\s*(?:\[?\s*(?:bits|org|section|global|extern|default)\b|%\w+|(?:[\w.$]+:?\s+)?(?:d[bwdqt]|res[bwdq]|times|equ)\s)",
    re.IGNORECASE | re.MULTILINE,
)
_HINT = {
    "keystone": "the syntax is Intel's as keystone takes it; NASM's own is for --with nasm",
    "nasm": "the syntax is NASM's",
    "as": "the syntax is GNU as's, `.intel_syntax noprefix`; a label as a number is `offset NAME` there",
}
_ASSEMBLERS = ("auto", *TOOLS)


def choose_tool(source: str, name: str = "auto") -> Tool:
    """The assembler of a name, or for `auto` by what the source looks like: NASM for NASM's directives, else
    keystone. Raises NotSupported when it is not installed, UsageError for another name."""
    if name not in _ASSEMBLERS:
        raise UsageError(f"there is no assembler '{name}'", hint="they are " + ", ".join(_ASSEMBLERS))
    if name == "auto":
        name = "nasm" if _OF_NASM.search(strip_comments(source, ";")) else "keystone"
    return tool_for(name)


def assemble(
    source: str, bits: int, address: int = 0, *, tool: str | Tool = "keystone", check: bool = True
) -> bytes:
    """The machine code of `source`, which starts in `bits`-bit mode (16, 32 or 64) and is to
    lie at `address` (guest-linear, in bytes). `check`: compare the code with each line.

    Raises NotSupported when the assembler is not installed, UsageError for other `bits` or a
    negative address, and ImageError for a source that does not assemble or became other code than it says,
    naming the line.
    """
    if bits not in (16, 32, 64) or address < 0:
        raise UsageError(f"{bits}-bit code at {address:#x}", hint="bits are 16, 32 or 64")
    if len(source) > MOST_TEXT:
        raise ImageError(f"a source of {len(source)} characters", hint=f"at most {MOST_TEXT}")
    used = choose_tool(source, tool) if isinstance(tool, str) else tool
    text = strip_comments(source, used.dialect.comments)
    try:
        code = used.assemble(text, bits, address)
    except Failed as error:
        raise ImageError(
            f"the source does not assemble: {error}{_place(used, error, text, bits)}", hint=_HINT[used.name]
        ) from error
    if check:
        _check(used, text, bits, address, code)
    return code


def _check(tool: Tool, text: str, bits: int, address: int, code: bytes) -> None:
    """Raises ImageError for the first line that became other code than it says."""
    found, names, macros = statements(text, bits, tool.dialect)
    if not code:
        instructions = [s for s in found if _is_instruction(s, macros)]
        if instructions:
            raise _wrong(_lost(tool, instructions), "the source became no code at all, without an error")
        return
    size = 8 if bits == 64 else 4
    try:
        whole = tool.assemble(marked(text, found, names, size, tool.dialect), bits, address)
    except Failed:
        # A name that is no number, or a place where no label may be: without names, then not at all.
        try:
            names = []
            whole = tool.assemble(marked(text, found, names, size, tool.dialect), bits, address)
        except Failed:
            return
    if whole[: len(code)] != code:
        return
    table = whole[len(whole) - size * (len(found) + 1 + len(names)) :]
    values = [int.from_bytes(table[at : at + size], "little") for at in range(0, len(table), size)]
    known = dict(zip(names, (_signed(v, size) for v in values[len(found) + 1 :]), strict=True))
    for at, statement in enumerate(found):
        statement.address = values[at]
        statement.code = code[values[at] - values[0] : values[at + 1] - values[0]]
    instructions = [s for s in found if _is_instruction(s, macros)]
    for statement in instructions:
        why = problem(statement, known)
        if why:
            raise _wrong(statement, why)
    why = widths_of_calls(instructions)
    if why:
        raise ImageError(f"the code is not what the source says: {why}", hint="write both the same way")


def _lost(tool: Tool, found: list[Statement]) -> Statement:
    """The first statement that the assembler takes alone and makes nothing of; else the first."""
    for statement in found:
        with contextlib.suppress(Failed):
            if not tool.assemble(statement.text + "\n", statement.bits, 0):
                return statement
    return found[0]


def _signed(value: int, size: int) -> int:
    return value - (1 << 8 * size) if value >> 8 * size - 1 and size == 8 else value


def _is_instruction(statement: Statement, macros: set[str]) -> bool:
    word = statement.word
    if not word or word[0] in ".%[" or word in macros or re.match(r"\w+\s*=", statement.text):
        return False
    if _OF_NASM.match(statement.text) or word in (
        "bits",
        "use16",
        "use32",
        "use64",
        "cpu",
        "align",
        "alignb",
    ):
        return False
    return not re.match(r"[\w.$]+\s+(?:equ|d[bwdqt]|res[bwdq])\b", statement.text, re.IGNORECASE)


def _wrong(statement: Statement, why: str) -> ImageError:
    code = f" [{statement.code.hex(' ')}]" if statement.code else ""
    return ImageError(
        f"line {statement.number}: `{statement.text}`: {why}{code}",
        hint="write it another way, or take another assembler with --with; --no-check keeps such code",
    )


def _place(tool: Tool, error: Failed, text: str, bits: int) -> str:
    """` at line N: ...`. Keystone names no line: each is tried alone, after the constants and macros before
    it. A symbol that is missing is no error of a line on its own."""
    lines = text.splitlines()
    if error.line:
        shown = lines[error.line - 1].strip() if error.line <= len(lines) else ""
        return f" at line {error.line}: {shown}"
    if tool.name != "keystone":
        return ""
    prelude = ""
    inside = False
    for number, line in enumerate(lines, 1):
        word = line.split(maxsplit=1)[0] if line.split() else ""
        bits = {".code16": 16, ".code32": 32, ".code64": 64}.get(word, bits)
        inside = inside or word in (".macro", ".rept")
        if inside or " = " in line:
            prelude += line + "\n"
            inside = inside and word not in (".endm", ".endr")
            continue
        try:
            tool.assemble(prelude + line, bits, 0)
        except Failed as failed:
            if not failed.missing:
                return f" at line {number}: {line.strip()}"
    return ""
