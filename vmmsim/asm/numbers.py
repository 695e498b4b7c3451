"""Numbers in a source: literals as assemblers write them, and expressions over them and its names."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping

__all__ = ["evaluate"]

_TOKEN = re.compile(
    r"\s*(?:(?P<hexh>\d[0-9a-f_]*h\b)|(?P<hex>0x[0-9a-f_]+)|(?P<bin>0b[01_]+)|(?P<dec>\d[\d_]*)|'(?P<char>(?:\\.|[^'])+)'"
    r"|(?P<name>[a-z_.$?@][\w.$?@]*)|(?P<op><<|>>|//|[-+*/%&|^~()]))",
    re.IGNORECASE,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "b": "\b", "f": "\f"}
_OPERATORS: dict[type[ast.AST], Callable[..., int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_, ast.BitXor: operator.xor, ast.LShift: operator.lshift,
    ast.RShift: operator.rshift, ast.UAdd: operator.pos, ast.USub: operator.neg, ast.Invert: operator.invert,
}  # fmt: skip
_LONGEST = 200


def evaluate(text: str, names: Mapping[str, int]) -> int | None:
    """The value of `text`, a literal, a name or an expression; None for what is none of these."""
    if not text.strip() or len(text) > _LONGEST:
        return None
    python = ""
    at = 0
    while at < len(text.rstrip()):
        token = _TOKEN.match(text, at)
        if token is None:
            return None
        at = token.end()
        number = _number(token, names)
        if token["op"]:
            python += f" {token['op']} "
        elif number is None:
            return None
        else:
            python += f" ({number}) "
    try:
        return _value(ast.parse(python.strip(), mode="eval").body)
    except (SyntaxError, ArithmeticError, ValueError, RecursionError):
        return None


def _number(token: re.Match[str], names: Mapping[str, int]) -> int | None:
    if token["hexh"]:
        return int(token["hexh"][:-1].replace("_", ""), 16)
    for kind, base in (("hex", 16), ("bin", 2), ("dec", 10)):
        if token[kind]:
            return int(token[kind].replace("_", "").removeprefix("0x" if kind == "hex" else "0b"), base)
    if token["char"]:
        char = token["char"]
        if char[0] == "\\":
            char = _ESCAPES.get(char[1], char[1])
        return int.from_bytes(char.encode(), "little")
    return names.get(token["name"] or "")


def _value(node: ast.AST) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp):
        right = _value(node.right)
        if isinstance(node.op, (ast.LShift, ast.RShift)) and not 0 <= right < 64:
            raise ValueError("a shift")
        return _OPERATORS[type(node.op)](_value(node.left), right)
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_value(node.operand))
    raise ValueError("no number")
