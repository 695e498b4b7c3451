"""Which known divergence may be behind a difference.

An entry of divergences.toml can explain what differs between the CPUs that it is about, never
what differs between two runs on one CPU. What speaks for it: the instructions at the difference are
of the kind that its title names, or the machine is in the situation that the entry is about, or
the bits that differ are those that it leaves out of comparisons.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import msgspec

from ..cpu.state import CpuState
from .divergences import Divergence, divergences
from .report import Explanation, FieldPair

__all__ = ["Scene", "explain"]

_RF, _AC, _VM = 1 << 16, 1 << 18, 1 << 17
#: Words in capitals of a title that are no instructions.
_NO_MNEMONICS = (
    *("CPU", "KVM", "RFLAGS", "MXCSR", "FSW", "MSR", "IDT", "GDT", "TSS", "CPL", "DPL"),
    *("ROM", "RAM", "MMIO", "SSE", "AVX", "VEX", "FPU", "APIC", "PIC", "A20", "NMI", "CR8"),
)
_MNEMONIC = re.compile(r"\b(?:REP )?[A-Z][A-Z0-9]{2,}\b|\bINT n\b")


class Scene(msgspec.Struct, kw_only=True):
    """What there is to judge by: `insns` the instructions at the difference as text (`exact` if they
    are the one that differs), `events` both sides' exits or ends, `fields` the registers that differ."""

    provenances: tuple[str, str]
    insns: tuple[str, ...] = ()
    exact: bool = False
    events: tuple[str, str] = ("", "")
    states: tuple[CpuState | None, CpuState | None] = (None, None)
    fields: tuple[FieldPair, ...] = ()


def _one_faults(scene: Scene) -> bool:
    faults = ["triple fault" in event for event in scene.events]
    return faults[0] != faults[1]


def _state(scene: Scene, test: Callable[[CpuState], object]) -> bool:
    return any(state is not None and bool(test(state)) for state in scene.states)


#: id -> the situation that the entry is about, for those that are about no instruction.
_SITUATIONS: dict[str, tuple[Callable[[Scene], bool], str]] = {
    "real-mode-idt-limit": (
        lambda s: _one_faults(s) and _state(s, lambda c: c.mode == "real" and c.idt.limit < 0x3FF),
        "real mode with a short IDT, and one side has a triple fault",
    ),
    "alignment-check": (
        lambda s: _state(s, lambda c: c.rflags & _AC and c.cr0 & _AC and c.cpl == 3),
        "user code with CR0.AM and RFLAGS.AC",
    ),
    "simd-exception": (
        lambda s: _state(s, lambda c: c.fpu.mxcsr & 0x1F80 != 0x1F80 and c.cr4 & 1 << 10),
        "MXCSR has exceptions that are not masked",
    ),
    "x87-unmasked": (
        lambda s: (
            _state(s, lambda c: c.fpu.fcw & 0x3F != 0x3F)
            and any(p.name.startswith("fpu.") for p in s.fields)
        ),
        "the x87 control word has exceptions that are not masked",
    ),
    "virtual-8086-mode": (lambda s: _state(s, lambda c: c.rflags & _VM), "RFLAGS.VM is set"),
    "segment-limits": (
        lambda s: _one_faults(s) and _state(s, lambda c: c.mode != "l64" and c.mode != "real"),
        "one side has a fault, in a mode with segment limits",
    ),
    "resume-flag": (
        lambda s: any(p.name == "rflags" and _only_bits(p, _RF) for p in s.fields),
        "only RFLAGS.RF differs",
    ),
}  # fmt: skip


def _only_bits(pair: FieldPair, mask: int) -> bool:
    return isinstance(pair.a, int) and isinstance(pair.b, int) and not (pair.a ^ pair.b) & ~mask


def explain(scene: Scene) -> tuple[Explanation, ...]:
    """The entries that may explain what differs, those with more to speak for them first."""
    kinds = [provenance.split("-")[0] for provenance in scene.provenances]
    if kinds[0] == kinds[1] and not {"native", "portable"} <= {
        p.rpartition("/")[2] for p in scene.provenances
    }:
        return ()
    found: list[tuple[int, Explanation]] = []
    for entry in divergences().values():
        if entry.on(scene.provenances[0]) == entry.on(scene.provenances[1]):
            continue
        if entry.only and not any(entry.applies_to(p, *entry.only) for p in scene.provenances):
            continue
        if masked := _masked(entry, scene.fields):
            found.append((0, Explanation(entry.id, entry.title, f"it leaves out {masked}")))
        elif insn := _named(entry, scene.insns):
            where = "the instruction is" if scene.exact else "near it is"
            found.append((1, Explanation(entry.id, entry.title, f"{where} '{insn}'")))
        elif entry.id in _SITUATIONS and _SITUATIONS[entry.id][0](scene):
            found.append((2, Explanation(entry.id, entry.title, _SITUATIONS[entry.id][1])))
    return tuple(explanation for _, explanation in sorted(found, key=lambda pair: pair[0]))


def _masked(entry: Divergence, fields: Iterable[FieldPair]) -> str:
    hit = [p.name for p in fields if p.name in entry.ignore and _only_bits(p, entry.ignore[p.name])]
    return ", ".join(hit)


def _named(entry: Divergence, insns: Iterable[str]) -> str:
    """The first of `insns` that the entry's title names, or ""."""
    for wanted in _MNEMONIC.findall(entry.title):
        if wanted in _NO_MNEMONICS:
            continue
        # A string instruction has its width at the end: REP INS is rep insb.
        pattern = r"int\b" if wanted == "INT n" else rf"{wanted.lower()}[bwdq]?\b"
        for insn in insns:
            if re.match(pattern, insn):
                return insn
    return ""
