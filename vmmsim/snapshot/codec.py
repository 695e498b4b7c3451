"""Typed values to and from JSON, strictly and without loss.

JSON's numbers are safe up to 2**53 only, and registers have up to 128 bits: a larger
integer is the string of its hexadecimal digits, `"0x..."`, and so are all integers of the types
in `HEX_TYPES`. Bytes are base64. Structs are objects that have every field and no other. What does
not fit its type is a SnapshotError that names the place; nothing is guessed or dropped.
"""

from __future__ import annotations

import base64
import binascii
import re
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from ..cpu.state import CpuState, FpuState, Segment, Table
from ..errors import SnapshotError, UsageError

__all__ = ["HEX_TYPES", "LATER_FIELDS", "decode", "encode", "printable"]

#: Structs whose integers are always strings: those that hold what registers hold.
HEX_TYPES: frozenset[type] = frozenset({CpuState, FpuState, Segment, Table})
#: Struct -> fields that older files of format 1 do not have, and that then take their default. Add
#: here every field that a struct of a snapshot gets; the golden file fails until it is.
LATER_FIELDS: dict[type, frozenset[str]] = {}

_SAFE = 1 << 53
_HEX = re.compile(r"-?0x(?:0|[1-9a-f][0-9a-f]{0,31})", re.ASCII)
Decoder = Callable[[Any, str], Any]


def encode(value: Any, *, hexadecimal: bool = False) -> Any:
    """`value` as what JSON has: dict, list, str, int, float, bool, None.

    Raises UsageError for a value of another kind than snapshots are made of.
    """
    if value is None or isinstance(value, bool | str | float):
        return value
    if isinstance(value, int):
        if hexadecimal or not -_SAFE < value < _SAFE:
            if abs(value) >> 128:
                raise UsageError(f"an integer of {value.bit_length()} bits", hint="snapshots have up to 128")
            return hex(value)
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list | tuple):
        return [encode(item, hexadecimal=hexadecimal) for item in value]
    if isinstance(value, dict):
        return {
            hex(key) if isinstance(key, int) else key: encode(item, hexadecimal=hexadecimal)
            for key, item in value.items()
        }
    if isinstance(value, msgspec.Struct):
        wide = type(value) in HEX_TYPES
        return {f: encode(getattr(value, f), hexadecimal=wide) for f in value.__struct_fields__}
    raise UsageError(f"a snapshot cannot keep a {type(value).__name__}", hint="states are plain values")


def decode(raw: Any, kind: Any, where: str = "") -> Any:
    """The value of type `kind` that `raw` is, which `encode` has made.

    `where` is what an error calls the place. Raises SnapshotError.
    """
    return _decoder(kind)(raw, where)


def printable(text: str) -> str:
    """Text that has come from a file, without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _bad(where: str, what: str) -> SnapshotError:
    place = printable(where.lstrip("."))[:100]
    return SnapshotError(
        f"{place or 'the manifest'}: {printable(what)}",
        hint="the file is damaged, or made by something else than vmmsim",
    )


def _shown(raw: Any) -> str:
    text = repr(raw)
    return text if len(text) <= 40 else text[:37] + "..."


def _bool(raw: Any, where: str) -> bool:
    if not isinstance(raw, bool):
        raise _bad(where, f"{_shown(raw)} is not true or false")
    return raw


def _int(raw: Any, where: str) -> int:
    """A safe integer as itself, a larger one as a string."""
    if isinstance(raw, int) and not isinstance(raw, bool) and -_SAFE < raw < _SAFE:
        return raw
    number = _hex(raw, where)
    if -_SAFE < number < _SAFE:
        raise _bad(where, f"{_shown(raw)} is a string, but small")
    return number


def _hex(raw: Any, where: str) -> int:
    if not isinstance(raw, str) or not _HEX.fullmatch(raw) or raw == "-0x0":
        raise _bad(where, f"{_shown(raw)} is not an integer")
    return int(raw, 16)


def _float(raw: Any, where: str) -> float:
    if not isinstance(raw, float | int) or isinstance(raw, bool):
        raise _bad(where, f"{_shown(raw)} is not a number")
    return float(raw)


def _str(raw: Any, where: str) -> str:
    if not isinstance(raw, str):
        raise _bad(where, f"{_shown(raw)} is not a string")
    return raw


def _bytes(raw: Any, where: str) -> bytes:
    try:
        data = base64.b64decode(_str(raw, where).encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise _bad(where, f"{_shown(raw)} is not base64") from None
    if base64.b64encode(data).decode() != raw:
        raise _bad(where, f"{_shown(raw)} has bits behind its last byte")
    return data


def _none(raw: Any, where: str) -> None:
    if raw is not None:
        raise _bad(where, f"{_shown(raw)} is not null")


_PLAIN: dict[Any, Decoder] = {
    bool: _bool, int: _int, float: _float, str: _str, bytes: _bytes, type(None): _none,
}  # fmt: skip


@cache
def _decoder(kind: Any, hexadecimal: bool = False) -> Decoder:
    if kind is int and hexadecimal:
        return _hex
    if kind in _PLAIN:
        return _PLAIN[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        return _optional(kind, arguments, hexadecimal)
    if origin is Literal:
        return _literal(arguments)
    if origin is tuple and arguments[1:] != (...,):
        return _fixed(tuple(_decoder(item, hexadecimal) for item in arguments))
    if origin in (list, tuple):
        return _sequence(origin, _decoder(arguments[0], hexadecimal))
    if origin is dict:
        return _mapping(arguments[0] is int, _decoder(arguments[1], hexadecimal))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _struct(kind)
    raise UsageError(f"a snapshot cannot hold the type {kind}", hint="states are plain values")


def _optional(kind: Any, arguments: tuple[Any, ...], hexadecimal: bool) -> Decoder:
    inner = [item for item in arguments if item is not type(None)]
    if len(inner) != 1 or len(arguments) != 2:
        raise UsageError(f"a snapshot cannot hold the type {kind}", hint="only `X | None`")
    decoder = _decoder(inner[0], hexadecimal)
    return lambda raw, where: None if raw is None else decoder(raw, where)


def _literal(values: tuple[Any, ...]) -> Decoder:
    def read(raw: Any, where: str) -> Any:
        if not isinstance(raw, str) or raw not in values:
            raise _bad(where, f"{_shown(raw)} is none of {', '.join(values)}")
        return raw

    return read


def _list(raw: Any, where: str) -> list[Any]:
    if not isinstance(raw, list):
        raise _bad(where, f"{_shown(raw)} is not an array")
    return raw


def _fixed(items: tuple[Decoder, ...]) -> Decoder:
    def read(raw: Any, where: str) -> tuple[Any, ...]:
        if len(_list(raw, where)) != len(items):
            raise _bad(where, f"{len(raw)} items, not {len(items)}")
        return tuple(item(r, f"{where}[{at}]") for at, (item, r) in enumerate(zip(items, raw, strict=True)))

    return read


def _sequence(make: Any, item: Decoder) -> Decoder:
    return lambda raw, where: make(item(r, f"{where}[{at}]") for at, r in enumerate(_list(raw, where)))


def _mapping(int_keys: bool, item: Decoder) -> Decoder:
    def read(raw: Any, where: str) -> dict[Any, Any]:
        if not isinstance(raw, dict):
            raise _bad(where, f"{_shown(raw)} is not an object")
        return {(_hex(k, where) if int_keys else k): item(r, f"{where}.{k}") for k, r in raw.items()}

    return read


def _struct(kind: type[msgspec.Struct]) -> Decoder:
    hints = typing.get_type_hints(kind)
    fields = {f: _decoder(hints[f], kind in HEX_TYPES) for f in kind.__struct_fields__}
    needed = set(fields) - LATER_FIELDS.get(kind, frozenset())

    def read(raw: Any, where: str) -> Any:
        if not isinstance(raw, dict):
            raise _bad(where, f"{_shown(raw)} is not an object")
        if unknown := raw.keys() - fields.keys():
            raise _bad(where, f"this vmmsim knows no field {_shown(min(unknown))}")
        if missing := needed - raw.keys():
            raise _bad(where, f"the field '{min(missing)}' is missing")
        values = {name: fields[name](value, f"{where}.{name}") for name, value in raw.items()}
        try:
            return kind(**values)
        except UsageError as error:
            raise _bad(where, error.message) from error

    return read
