"""A difference as a finding: shrunk, with its cause and the divergence that explains it.

The cause is what findings are counted by: the mode, the instructions of the shrunk program by
their mnemonics, and the kinds of fields that differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from ..cpu.vectors import vector_name
from .case import CODE, Case, disassemble
from .divergences import explain
from .runner import Pair, Verdict
from .shrink import shorten, shrink

__all__ = ["Finding", "cause_of", "examine", "listing"]

_FLAGS = {0: "CF", 2: "PF", 4: "AF", 6: "ZF", 7: "SF", 10: "DF", 11: "OF"}


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`case` is the shrunk program, `seed` the one it came from, `known` the id of the divergence
    that explains it, empty for a new one. `report` are the differing fields, a line each."""

    cause: str
    known: str = ""
    mode: str
    seed: int
    case: Case
    report: tuple[str, ...] = ()
    count: int = 1


def _end(end: str) -> str:
    return vector_name(int(end[1:])) if end[0] == "#" and end[1:].isdigit() else end


def _kinds(verdict: Verdict) -> list[str]:
    """What differs, register names and numbers taken away."""
    ends = verdict.ends
    if ends[0] != ends[1]:
        return [f"ends {_end(ends[0])} | {_end(ends[1])}"]
    kinds: set[str] = set()
    for field in verdict.fields:
        if field.name in ("rflags", "frame"):
            kinds |= {name for bit, name in _FLAGS.items() if field.bits >> bit & 1} or {"rflags"}
        elif field.name == "rip":
            kinds.add("rip")
        elif re.fullmatch("r[a-z0-9]+", field.name):
            kinds.add("register")
        else:
            kinds.add(re.sub(r"^fpu\.|\d+$", "", field.name) if field.name.startswith("fpu.") else field.name)
    return sorted(kinds)


def cause_of(case: Case, verdict: Verdict) -> str:
    """What a difference is counted by."""
    names = []
    for code, text in disassemble(case.mode, case.units):
        words = text.split()
        if words[0] in ("rep", "repne", "repe", "lock", "repz", "repnz") and len(words) > 1:
            words[0] += " " + words[1]
        names.append(code.hex() if text == "(bad)" else words[0])
    return f"{'; '.join(names) or 'nothing'}: {', '.join(_kinds(verdict))}"


def listing(case: Case) -> str:
    """The program for people: registers that are not 0, then bytes and assembly."""
    lines = []
    regs = [f"{n}={getattr(case.regs, n):#x}" for n in case.regs.__struct_fields__ if getattr(case.regs, n)]
    lines.append("; " + " ".join(regs))
    if case.fpu is not None:
        xmm = [f"xmm{i}={v:#x}" for i, v in enumerate(case.fpu.xmm) if v]
        st = [f"st{i}={v:#x}" for i, v in enumerate(case.fpu.st) if v]
        if xmm or st:
            lines.append("; " + " ".join(xmm + st))
        lines.append(f"; fcw={case.fpu.fcw:#x} mxcsr={case.fpu.mxcsr:#x}")
    lines += [f"; [{gpa:#x}] = {data.hex(' ')}" for gpa, data in case.memory]
    lines += [f"{code.hex(' '):<32}{text}" for code, text in disassemble(case.mode, case.units, CODE)]
    return "\n".join(lines)


def _shape(case: Case, verdict: Verdict) -> tuple[object, ...]:
    """What must stay while a case is shrunk: how it ends, or which kinds of fields differ."""
    kinds = _kinds(verdict)
    return tuple(kinds) if verdict.ends[0] != verdict.ends[1] else (verdict.ends[0] == "end", tuple(kinds))


def explanation(case: Case, verdict: Verdict, provenances: tuple[str, str]) -> str | None:
    """The divergence that explains what `case` shows."""
    fields = [(field.name, field.bits) for field in verdict.fields]
    return explain(disassemble(case.mode, case.units), case.mode, fields, verdict.ends, provenances)


def examine(pair: Pair, case: Case, verdict: Verdict) -> Finding | None:
    """Shrink `case`, which gave `verdict`, and say what it is. None where it differs only at times:
    then both runs of it by itself agree."""
    if not pair.run(case).fields:
        return None
    if len(case.units) == 1:  # the common cause needs no shrinking to be known
        known = explanation(case, verdict, pair.provenances)
        if known is not None:
            return _finding(case, verdict, case, known)
    one = _alone(pair, case)
    if one is not None:
        known = explanation(one[0], one[1], pair.provenances)
        if known is not None:
            return _finding(one[0], one[1], case, known)
    shape = _shape(case, verdict)
    shown = verdict

    def same(smaller: Case) -> bool:
        nonlocal shown
        found = pair.run(smaller)
        if not found.fields or found.refused:
            return False
        if _shape(smaller, found) != shape and len(smaller.units) >= len(case.units):
            return False
        if not _kept(shape, _shape(smaller, found)):
            return False
        shown = found
        return True

    small = shorten(case, same)
    known = explanation(small, shown, pair.provenances)
    if known is None:  # only what a person is going to read is made as plain as it goes
        small = shrink(small, same)
        known = explanation(small, shown, pair.provenances)
    return _finding(small, shown, case, known or "")


def _kept(shape: tuple[object, ...], now: tuple[object, ...]) -> bool:
    return shape == now


def _alone(pair: Pair, case: Case) -> tuple[Case, Verdict] | None:
    """The first unit that differs by itself, from the registers of the case."""
    if len(case.units) == 1:
        return None
    for unit in case.units:
        one = msgspec.structs.replace(case, units=(unit,))
        verdict = pair.run(one)
        if verdict.fields:
            return one, verdict
    return None


def _finding(small: Case, verdict: Verdict, case: Case, known: str) -> Finding:
    return Finding(
        cause=cause_of(small, verdict),
        known=known,
        mode=case.mode,
        seed=case.seed or 0,
        case=small,
        report=tuple(map(str, verdict.fields)),
    )


Examine = Callable[[Pair, Case, Verdict], Finding | None]
