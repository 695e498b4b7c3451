"""A source as statements: what stands on each line, and labels of our own that tell where its bytes are.

Before each statement a label is put, and after the end a table of all labels' addresses. So one assembly
gives the code, and for each line the bytes that it became, whatever the assembler made of its jumps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

__all__ = ["NASM", "UNIX", "Dialect", "Statement", "marked", "statements", "strip_comments"]

_LABEL = re.compile(r"\s*([A-Za-z_.$?@][\w.$?@]*|\d+)\s*:(?!:)")
_CONSTANT = re.compile(r"\s*([A-Za-z_.$][\w.$]*)\s*=(?!=)")
_NAME = re.compile(r"[A-Za-z_][\w]*\Z")


class Dialect(msgspec.Struct, frozen=True):
    """How an assembler wants a label of ours and a number of 4 or 8 bytes; words that begin and end a part
    without statements of its own (a macro, a repetition)."""

    label: str
    words: dict[int, str]
    begin: frozenset[str]
    end: frozenset[str]
    comments: str


#: Keystone, and GNU as in Intel's syntax.
UNIX = Dialect(
    "__vmmsim_{}:",
    {4: ".long", 8: ".quad"},
    frozenset({".macro", ".rept", ".irp", ".irpc", ".if", ".ifdef", ".ifndef"}),
    frozenset({".endm", ".endr", ".endif"}),
    ";#",
)
#: Labels that begin with `..@` leave NASM's local labels where they belong.
NASM = Dialect(
    "..@vmmsim_{}:",
    {4: "dd", 8: "dq"},
    frozenset({"%macro", "%imacro", "%rep", "%if", "%ifdef", "%ifndef", "struc"}),
    frozenset({"%endmacro", "%endrep", "%endif", "endstruc"}),
    ";",
)


class Statement(msgspec.Struct):
    """What stands on line `number` (from 1) after its labels: `text`, without the comment. `bits` is the mode
    there. `code` and `address` are known when it was assembled."""

    number: int
    text: str
    bits: int
    code: bytes = b""
    address: int = 0

    @property
    def word(self) -> str:
        """Its first word, in lower case."""
        words = self.text.split(maxsplit=1)
        return words[0].lower() if words else ""


def strip_comments(source: str, comments: str = ";#") -> str:
    """`source` without its comments; the lines stay, so that numbers agree. A quoted text may hold the
    characters that begin a comment."""
    return "\n".join(_strip(line, comments) for line in source.splitlines()) + "\n"


def _strip(line: str, comments: str) -> str:
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
        elif char in comments:
            return line[:at].rstrip()
    return line.rstrip()


def statements(text: str, bits: int, dialect: Dialect) -> tuple[list[Statement], list[str], set[str]]:
    """(statements, names of labels and constants, names of macros) of a source without comments. What is
    inside a macro's definition, a repetition or a condition is no statement: only its first line is."""
    found: list[Statement] = []
    names: list[str] = []
    macros: set[str] = set()
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        rest = line
        while depth == 0 and (label := _LABEL.match(rest)) and not rest[label.end() :].startswith("="):
            if _NAME.match(label[1]):
                names.append(label[1])
            rest = rest[label.end() :]
        constant = _CONSTANT.match(rest)
        if constant is not None and depth == 0 and _NAME.match(constant[1]):
            names.append(constant[1])
        words = rest.split()
        word = words[0].lower() if words else ""
        if word in dialect.begin:
            if word in (".macro", "%macro", "%imacro") and len(words) > 1:
                macros.add(words[1].rstrip(",").lower())
            if depth == 0:
                found.append(Statement(number, rest.strip(), bits))
            depth += 1
        elif word in dialect.end:
            depth = max(0, depth - 1)
        elif depth == 0 and rest.strip():
            bits = _mode(rest, bits)
            if len(words) > 2 and words[1].lower() == "equ" and _NAME.match(words[0]):
                names.append(words[0])
            found.append(Statement(number, rest.strip(), bits))
    return found, list(dict.fromkeys(names)), macros


def _mode(text: str, bits: int) -> int:
    change = re.match(r"\s*(?:\.code|\[?\s*(?:bits|use)\s*)(16|32|64)\b", text, re.IGNORECASE)
    return int(change[1]) if change else bits


def marked(text: str, found: Sequence[Statement], names: Sequence[str], size: int, dialect: Dialect) -> str:
    """`text` with a label before each statement's line and one at the end, then a table with `size` bytes for
    each: the labels' addresses, and the values of `names`."""
    before = {statement.number: dialect.label.format(at) for at, statement in enumerate(found)}
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if number in before:
            lines.append(before[number])
        lines.append(line)
    labels = [dialect.label.format(at) for at in range(len(found) + 1)]
    lines.append(labels[-1])
    word = dialect.words[size]
    lines += [f"{word} {label[:-1]}" for label in labels]
    lines += [f"{word} {name}" for name in names]
    return "\n".join(lines) + "\n"
