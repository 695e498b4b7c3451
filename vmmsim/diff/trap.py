"""The way of `--step` where a KVM cannot single-step: halving from a snapshot, with traps.

64-bit code at CPL 3 on kvm_pvm, and IRET to it, make no exit behind an instruction. So from a
snapshot KVM is run to an instruction that the other side came to: UD2 is written there and its IDT
is empty, so that it ends in a triple fault, with the registers as they were. Only the first
time at an instruction can be trapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..budget import exits, seconds
from ..cpu.paging import linear_to_gpa
from ..cpu.state import CpuState, Table
from ..errors import DeviceError
from ..exits import Exit, Shutdown
from . import look
from .report import FieldPair, StepResult
from .walk import Walker, masked

if TYPE_CHECKING:
    from ..snapshot.values import Snapshot

__all__ = ["trap"]

#: Seconds for KVM to come to a trap.
_SECONDS = 5.0
_UD2 = b"\x0f\x0b"
_MOST_PLACES = 20_000


def trap(other: Walker, stuck: Walker, held: Snapshot, number: int, reason: str, *, swap: bool) -> StepResult:
    """`stuck` cannot be stepped from `held` on, which is where both are, `number` instructions behind
    the last exit that was the same, for `reason`; `other` can, and leads. `swap`: `stuck` is side a."""
    places, codes = _lead(other)
    # Only the first time at an instruction can be trapped.
    first: dict[int, int] = {}
    for at, state in enumerate(places):
        first.setdefault(state.linear_rip, at)
    candidates = sorted(first.values())
    low, high, tries = 0, len(candidates), 0
    worst: tuple[FieldPair, ...] = ()
    while high - low > 1:
        middle = (low + high) // 2
        tries += 1
        found = _trapped(stuck, held, places[candidates[middle]])
        if found is None:
            candidates.pop(middle)
            high -= 1
        elif found:
            high, worst = middle, found
        else:
            low = middle
    where = places[candidates[low]]
    way = f"walked, {number} instructions; {reason}; from there trapped, {tries} runs from a snapshot"
    how = [other.how(len(places)), way]
    if swap:
        how.reverse()
    if high == len(candidates):
        last = len(places) - 1
        return StepResult(
            number=None, how=(how[0], how[1]),
            note=f"the registers are the same up to {where.linear_rip:#x}, "
            f"{last - candidates[low]} instructions before the exit",
        )  # fmt: skip
    code = codes[candidates[low]]
    between = candidates[high] - candidates[low]
    return StepResult(
        number=number + candidates[low] + 1, how=(how[0], how[1]), address=where.linear_rip, a=code, b=code,
        registers=worst,
        note="" if between == 1 else f"or one of the {between - 1} behind it: code that is executed again",
    )  # fmt: skip


def _lead(other: Walker) -> tuple[list[CpuState], list[str]]:
    places, codes = [masked(other.state())], [other.code()]
    while not other.over and len(places) < _MOST_PLACES:
        other.step()
        if not other.over:
            places.append(masked(other.state()))
            codes.append(other.code())
    return places, codes


def _trapped(stuck: Walker, held: Snapshot, wanted: CpuState) -> tuple[FieldPair, ...] | None:
    """Run to `wanted`'s instruction: the registers that differ there. None: it cannot be trapped."""
    machine = stuck.machine
    machine.restore(held)
    gpa = linear_to_gpa(wanted, wanted.linear_rip, machine.memory.read)
    second = linear_to_gpa(wanted, wanted.linear_rip + 1, machine.memory.read)
    if gpa is None or second != gpa + 1 or not machine.memory.contains(gpa, 2):
        return None
    vcpu = machine.processors.items[machine.processors.current].vcpu
    state = vcpu.state()
    kept, state.idt = state.idt, Table(0, 0)
    vcpu.set_state(state)
    machine.memory.write(gpa, _UD2)
    try:
        # There is no exit between here and there, unless KVM has gone another way.
        end: Exit | None = machine.run(budget=(exits(1), seconds(_SECONDS)))
    except DeviceError:
        end = None
    there = masked(vcpu.state())
    if isinstance(end, Shutdown) and there.rip != wanted.rip:
        return None  # an exception or an interrupt, which the guest would have taken
    if not isinstance(end, Shutdown):
        return (FieldPair("rip", there.rip, wanted.rip),)
    there.idt, there.cr2 = kept, wanted.cr2
    there.events = wanted.events
    return look.registers(there, wanted)
