"""CPU vectors recorded from hardware (the SingleStepTests sets for 8086 and 80286): the reader.

A file `80286.jsonl.gz` or `8086.jsonl.gz`, or without `.gz`, has a JSON object a line: an instruction
with registers and memory before and after it. The name says which CPU it was recorded from. What is not as
the format says is a VectorError that names file and line. `vector_run` runs them,
`vector_misses` judges misses.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from ..errors import ImageError

__all__ = ["CPUS", "Fault", "Vector", "VectorError", "VectorSide", "read_vectors", "vector_files"]

#: The CPUs there are sets of, by the beginning of the file's name.
CPUS = ("80286", "8086")
REGISTERS = frozenset(
    ("ax", "bx", "cx", "dx", "cs", "ss", "ds", "es", "sp", "bp", "si", "di", "ip", "flags"),
)
#: Addresses that real mode can make end here: FFFF:FFFF.
SPACE = 0x10FFF0
_MOST_BYTES = 4096
_LONGEST_LINE = 1 << 20


class VectorError(ImageError):
    """A file of vectors that breaks the format; the message names the line and the rule."""


class VectorSide(msgspec.Struct, frozen=True):
    """Registers by name, and bytes as (physical address, value)."""

    regs: dict[str, int]
    ram: list[tuple[int, int]] = []


class Fault(msgspec.Struct, frozen=True):
    """The instruction faults: by which vector, and where the pushed FLAGS are (physical)."""

    vector: int
    flags_address: int


class Vector(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded instruction. `final` has what changed. `flags_mask` are the bits of FLAGS that are defined
    for the opcode, `mask` those of other registers where given."""

    op: str
    i: int
    name: str
    hex: str = msgspec.field(name="bytes")
    flags_mask: int = 0xFFFF
    init: VectorSide
    final: VectorSide
    mask: dict[str, int] = {}
    exception: Fault | None = None

    @property
    def code(self) -> bytes:
        return bytes.fromhex(self.hex)

    def __str__(self) -> str:
        return f"{self.op} #{self.i} {self.name}"


def vector_files(directory: str | Path) -> list[tuple[str, Path]]:
    """The (CPU, path) of each set in `directory`, or of the one file that it is.

    Raises VectorError where there is none, or the path cannot be read.
    """
    path = Path(directory)
    try:
        if not path.exists():
            raise VectorError(
                f"there is no '{path}'", hint="give a directory with 80286.jsonl.gz or 8086.jsonl.gz"
            )
        names = [path] if path.is_file() else sorted(p for p in path.rglob("*.jsonl*") if p.is_file())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VectorError(f"'{path}' cannot be read: {reason}", hint="check the path") from error
    found = []
    for name in names:
        cpu = next((cpu for cpu in CPUS if name.name.startswith(cpu + ".jsonl")), None)
        if cpu is not None:
            found.append((cpu, name))
    return found


def read_vectors(path: str | Path) -> Iterator[Vector]:
    """The vectors of a file, one after the other. Raises VectorError at the first that is none."""
    name = str(path)
    decoder = msgspec.json.Decoder(Vector)
    number = 0
    try:
        opened = gzip.open(name, "rb") if name.endswith(".gz") else open(name, "rb")  # noqa: SIM115
        with opened as stream:
            file = cast(BinaryIO, stream)
            while line := file.readline(_LONGEST_LINE + 1):
                number += 1
                if len(line) > _LONGEST_LINE:
                    raise _broken(name, number, f"longer than {_LONGEST_LINE} bytes")
                try:
                    vector = decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise _broken(name, number, f"not a vector: {error}") from error
                _check(vector, name, number)
                yield vector
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise VectorError(
            f"'{name}' is damaged behind line {number}: {error}", hint="get the file again"
        ) from error
    except OSError as error:
        raise VectorError(f"'{name}' cannot be read: {error.strerror}", hint="check the path") from error
    if not number:
        raise VectorError(f"'{name}' is empty", hint="get the file again")


def _check(vector: Vector, name: str, line: int) -> None:
    try:
        code = vector.code
    except ValueError:
        code = b""
    if not 1 <= len(code) <= 16:
        raise _broken(name, line, f"'{vector.hex[:40]}' is no instruction in hexadecimal")
    if set(vector.init.regs) != REGISTERS:
        wrong = sorted(set(vector.init.regs) ^ REGISTERS)
        raise _broken(name, line, f"init.regs must have each register once: see {', '.join(wrong)[:80]}")
    if not set(vector.final.regs) <= REGISTERS or not set(vector.mask) <= REGISTERS:
        raise _broken(name, line, "a register that a real-mode CPU does not have")
    values = (
        *vector.init.regs.values(), *vector.final.regs.values(), *vector.mask.values(), vector.flags_mask,
    )  # fmt: skip
    if any(not 0 <= value <= 0xFFFF for value in values):
        raise _broken(name, line, "a register of more than 16 bits")
    for side in (vector.init, vector.final):
        if len(side.ram) > _MOST_BYTES:
            raise _broken(name, line, f"{len(side.ram)} bytes of memory; at most {_MOST_BYTES}")
        if any(not 0 <= at < SPACE or not 0 <= value <= 0xFF for at, value in side.ram):
            raise _broken(name, line, f"memory must be bytes at addresses below {SPACE:#x}")
    if vector.exception is not None and not (
        0 <= vector.exception.vector <= 0xFF and 0 <= vector.exception.flags_address < SPACE - 1
    ):
        raise _broken(name, line, "an exception that cannot be")


def _broken(name: str, line: int, rule: str) -> VectorError:
    return VectorError(f"{name}, line {line}: {rule}", hint="the format is in docs/vectors.md")
