"""A set of vectors run on a backend, as a table: by opcode how many passed, and why others did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from ..backends.base import Backend
from .vector_misses import reason_of
from .vector_run import Miss, VectorRunner
from .vectors import Vector

__all__ = ["OpcodeRow", "PassTable", "pass_table"]

_FINDINGS_KEPT = 100


class OpcodeRow(msgspec.Struct):
    """`misses` are the reasons' ids with their counts, "" for what no reason explains."""

    opcode: str
    total: int = 0
    passed: int = 0
    misses: Counter[str] = msgspec.field(default_factory=Counter)


class PassTable(msgspec.Struct):
    """`findings` are the first misses that no reason explains."""

    cpu: str
    provenance: str
    rows: dict[str, OpcodeRow] = msgspec.field(default_factory=dict)
    findings: list[Miss] = msgspec.field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(row.total for row in self.rows.values())

    @property
    def passed(self) -> int:
        return sum(row.passed for row in self.rows.values())

    @property
    def misses(self) -> Counter[str]:
        """Of all opcodes."""
        return sum((row.misses for row in self.rows.values()), Counter())


def pass_table(
    backend: Backend,
    cpu: str,
    vectors: Iterable[Vector],
    *,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> PassTable:
    """Run `vectors`, at most `limit` of each opcode; `progress` is told how many were run."""
    table = PassTable(cpu, backend.provenance)
    name = backend.provenance.partition("/")[0].partition("-")[0]
    with VectorRunner(backend, cpu) as runner:
        for number, vector in enumerate(vectors, 1):
            row = table.rows.setdefault(vector.op, OpcodeRow(vector.op))
            if limit is not None and row.total >= limit:
                continue
            row.total += 1
            miss = runner.run(vector)
            if miss is None:
                row.passed += 1
            else:
                again = runner.run(vector, wrap=True) if cpu == "8086" else miss
                reason = reason_of(again or miss, cpu, name, wraps=again is None)
                row.misses[reason] += 1
                if not reason and len(table.findings) < _FINDINGS_KEPT:
                    table.findings.append(again or miss)
            if progress is not None and not number % 100:
                progress(number)
    return table
