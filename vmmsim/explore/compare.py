"""Two traces beside each other: where they differ first, and at which accesses at all.

What counts as the same is `vmmsim.diff.lockstep`'s rule: kind, address, size and value of each access,
and at last how the runs ended. Registers are shown, not counted.
"""

from __future__ import annotations

from typing import Any

from ..trace.records import ExitRecord, Trace

__all__ = ["compare"]


def compare(left: Trace, right: Trace) -> dict[str, Any]:
    """`same`: how many accesses are alike before the first that differs. `first`: the number of that one,
    one more than the last when the ends differ, or None. `why`: one sentence for people. `differ`: the
    numbers of all accesses that differ, as flat pairs of a first number and a length."""
    from ..diff.lockstep import TraceComparer, step_line, step_of
    from ..exits import ACCESS_EXITS

    kinds = {cls.kind: cls for cls in ACCESS_EXITS}

    def steps(trace: Trace) -> list[tuple[int, int, int, int]]:
        return [
            step_of(kinds[exit.kind], exit.address, exit.size, exit.value)
            for exit in trace.records
            if isinstance(exit, ExitRecord)
        ]

    a, b = steps(left), steps(right)
    differ = _runs([x != y for x, y in zip(a, b, strict=False)])
    comparer = TraceComparer()
    rest = (list(a), list(b))
    alike = comparer.feed(*rest)
    same = comparer.count
    ends = _end(left), _end(right)
    first: int | None = None
    if not alike:
        first = same + 1
        why = f"access {first} differs: {step_line(rest[0][0])} in A, {step_line(rest[1][0])} in B"
    elif len(a) != len(b):
        end, name, other = (ends[0], "A", "B") if len(a) < len(b) else (ends[1], "B", "A")
        if end:
            first = same + 1
            why = f"{name} ended after {same:,} accesses ({end}), {other} went on"
        else:
            why = f"no difference in the {same:,} accesses that both traces have; {name}'s stops there"
    elif not all(ends):
        why = f"no difference in {same:,} accesses; not both runs were recorded to their end"
    elif ends[0] != ends[1]:
        first = same + 1
        why = f"all {same:,} accesses are the same, but A ended with {ends[0]}, B with {ends[1]}"
    else:
        why = f"both runs are the same: {same:,} accesses, then {ends[0]}"
    return {"same": same, "first": first, "why": why, "differ": differ}


def _end(trace: Trace) -> str:
    """How the run ended; "" where it went on, or could have, behind what was recorded."""
    from ..exits import BudgetSpent, Cancelled

    end = trace.end
    if end is None or end.cut or end.kind in (BudgetSpent.kind, Cancelled.kind):
        return ""
    return end.kind


def _runs(flags: list[bool]) -> list[int]:
    """The numbers (from 1) of those that are true, as pairs of a first and a length."""
    found: list[int] = []
    for number, flag in enumerate(flags, 1):
        if flag and found and found[-2] + found[-1] == number:
            found[-1] += 1
        elif flag:
            found += [number, 1]
    return found
