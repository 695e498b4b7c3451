"""The first instruction behind which two sides differ, between two exits.

Three ways, by what the CPUs can do:

walk    both sides make one instruction at a time: Unicorn by a budget of instructions, KVM where it
        can single-step. What counts is the difference that stays: flags that an instruction leaves
        undefined differ until the next one that sets them, and are no divergence.
halve   both sides can be told to run n instructions (two Unicorns): they are restored from a snapshot
        and run halfway, until two neighbours are left. Memory is compared as well.
trap    one side is a KVM that cannot single-step here (64-bit code at CPL 3 on kvm_pvm). From a
        snapshot it is run to an instruction that the other side came to: UD2 is written there and
        its IDT is empty, so that it ends in a triple fault, with its registers as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from ..budget import insns
from ..cpu.state import CpuState
from ..errors import VmmsimError
from ..exits import Refused
from ..machine import Machine
from ..snapshot.cow import image_of
from ..snapshot.pages import differences
from . import look
from .report import FieldPair, StepResult
from .trap import trap
from .walk import Walker, masked

if TYPE_CHECKING:
    from ..snapshot.values import Snapshot

__all__ = ["first_difference", "first_instruction"]

#: Instructions that are walked, at most; and with different RIPs, before the ways are taken for parted.
_MOST_STEPS = 200_000
_PARTED = 64
#: How far ahead the exit is looked for at first, and at most, in instructions.
_FIRST_REACH, _LAST_REACH = 256, 1 << 36
_NO_INTERRUPTS = "single steps of KVM take no interrupts: what differs may be one that the other side took"

Open = Callable[[], tuple[Machine, Machine]]


def first_difference(open_both: Open, exits: int, differ: Callable[[Machine, Machine], bool]) -> StepResult:
    """Of two runs whose `exits` exits are all the same, but not what they come to: halve between the
    exits by `differ`, which compares two machines, and then between instructions."""
    low, high = 0, exits + 1  # the end, if they are the same at the last exit
    tries = 0
    while high - low > 1:
        middle = (low + high) // 2
        tries += 1
        both = tuple(Walker(machine, exits) for machine in open_both())
        try:
            for side in both:
                side.run_to(middle)
            if differ(both[0].machine, both[1].machine):
                high = middle
            else:
                low = middle
        finally:
            for side in both:
                side.machine.close()
    found = first_instruction(open_both, low)
    where = f"they are the same at exit {low} and differ " + (
        f"at exit {high}" if high <= exits else "at the end"
    )
    note = f"{where}, found in {tries} runs"
    if found.number is not None:
        note = f"{found.note}; {note}" if found.note else note
    return msgspec.structs.replace(found, note=note)


def first_instruction(open_both: Open, equal: int) -> StepResult:
    """Find it between exit `equal`, the last that was the same, and the one behind it."""
    return msgspec.structs.replace(_between(open_both, equal), exit=equal)


def _between(open_both: Open, equal: int) -> StepResult:
    both = _at_the_last_equal(open_both, equal)
    if both is None:
        return StepResult(
            number=None,
            how=("not gone through",) * 2,
            note="the sides cannot be stopped at one place: an instruction makes several exits there",
        )
    a, b = both
    try:
        if len(a.machine.processors.items) > 1 or len(b.machine.processors.items) > 1:
            return StepResult(
                number=None,
                how=("not gone through",) * 2,
                note="instructions of several vCPUs are in no order that both sides have",
            )
        start = look.registers(masked(a.state()), masked(b.state()))
        if start:
            return StepResult(
                number=0,
                how=("run to the last exit that was the same",) * 2,
                note="they differ already behind the instruction of the last exit that was the same",
                address=a.state().linear_rip,
                a=a.code(),
                b=b.code(),
                registers=start,
            )
        return _search(a, b)
    finally:
        a.machine.close()
        b.machine.close()


def _at_the_last_equal(open_both: Open, equal: int) -> tuple[Walker, Walker] | None:
    for back in (0, 1, 64, 1024, equal):
        target = max(equal - back, 0)
        both = tuple(Walker(machine, equal) for machine in open_both())
        for side in both:
            side.run_to(target)
        if both[0].count == both[1].count and both[0].count <= equal:
            return both[0], both[1]
        for side in both:
            side.machine.close()
    return None


def _search(a: Walker, b: Walker) -> StepResult:
    snapshots = _snapshots(a, b)
    if snapshots is not None and a.counts and b.counts:
        return _halve(a, b, snapshots, _length(a, snapshots[0]))
    return _walk(a, b)


def _snapshots(a: Walker, b: Walker) -> tuple[Snapshot, Snapshot] | None:
    """None where a device cannot be restored."""
    try:
        return a.machine.snapshot(), b.machine.snapshot()
    except VmmsimError:
        return None


def _back(a: Walker, b: Walker, snapshots: tuple[Snapshot, Snapshot], count: int | None = None) -> None:
    for side, snapshot in zip((a, b), snapshots, strict=True):
        side.machine.restore(snapshot)
        side.end = None
        side.count = side.equal if count is None else count


# -- walking


class _Place(msgspec.Struct):
    """Where a streak of differences began: the instruction's number, the sides before and behind it."""

    number: int
    before: CpuState
    code: tuple[str, str]
    registers: tuple[FieldPair, ...]


def _walk(a: Walker, b: Walker) -> StepResult:
    number = parted = 0
    streak: _Place | None = None
    mine, theirs = masked(a.state()), masked(b.state())
    while number < _MOST_STEPS and not (a.over and b.over) and parted < _PARTED:
        before, code = mine, (a.code(), b.code())
        same_before = mine == theirs
        for side in (a, b):
            side.step()
            if isinstance(side.end, Refused) and not side.counts:
                return _stuck(a, b, side, number, streak if not same_before else None)
        number += 1
        mine, theirs = masked(a.state()), masked(b.state())
        if mine != theirs and mine.rip != theirs.rip and not (a.over or b.over):
            mine, theirs = _realigned(a, b, mine, theirs)
        if mine == theirs:
            streak, parted = None, 0
            continue
        parted += mine.rip != theirs.rip
        if streak is None and (found := look.registers(mine, theirs)):
            streak = _Place(number, before, code, found)
    note = "" if number < _MOST_STEPS else f"walked no further than {_MOST_STEPS} instructions"
    return _found(a, b, streak, number, note)


def _stuck(a: Walker, b: Walker, stuck: Walker, number: int, streak: _Place | None) -> StepResult:
    """KVM does not single-step here: go on with traps, if the sides are the same still."""
    assert isinstance(stuck.end, Refused)
    reason = stuck.end.describe()
    if streak is not None:
        return _found(a, b, streak, number, f"{reason}: walked no further")
    stuck.end = None
    other = b if stuck is a else a
    try:
        held = stuck.machine.snapshot()
    except VmmsimError as error:
        return _found(a, b, None, number, f"{reason}, and from there it cannot be halved: {error.message}")
    return trap(other, stuck, held, number, reason, swap=stuck is a)


def _realigned(a: Walker, b: Walker, mine: CpuState, theirs: CpuState) -> tuple[CpuState, CpuState]:
    """An interrupt's delivery is a step for one CPU and a part of a step for the other: let one of
    them go a step ahead, if that makes them the same."""
    old = mine
    a.step()
    mine = masked(a.state())
    if mine == theirs or a.over:
        return mine, theirs
    b.step()
    theirs = masked(b.state())
    if theirs == old and not b.over:
        b.step()
        theirs = masked(b.state())
    return mine, theirs


def _found(a: Walker, b: Walker, streak: _Place | None, number: int, note: str) -> StepResult:
    how = (a.how(number), b.how(number))
    deaf = _NO_INTERRUPTS if a.deaf or b.deaf else ""
    if streak is None:
        ranges, _ = look.memory(a.machine, b.machine)
        note = note or (
            "the registers are the same behind each instruction up to the one that makes the exit: "
            + ("memory is what differs" if ranges else "the devices, or how the exit is made, differ")
        )
        return StepResult(number=None, how=how, note="; ".join(filter(None, (note, deaf))), memory=ranges)
    return StepResult(
        number=streak.number,
        how=how,
        note="; ".join(filter(None, (note, deaf))),
        address=streak.before.linear_rip,
        a=streak.code[0],
        b=streak.code[1],
        registers=streak.registers,
    )


# -- halving, where both can be told how far to run


def _length(a: Walker, snapshot: Snapshot) -> int:
    """A number of instructions that reaches the exit that differs."""
    length = _FIRST_REACH
    while True:
        a.run(insns(length))
        if a.over:
            return length
        a.machine.restore(snapshot)
        a.end, a.count = None, a.equal
        if length > _LAST_REACH:
            return length
        length *= 4


def _halve(a: Walker, b: Walker, snapshots: tuple[Snapshot, Snapshot], length: int) -> StepResult:
    tries = 0

    def differ(count: int) -> bool:
        nonlocal tries
        tries += 1
        _back(a, b, snapshots)
        if count:
            a.run(insns(count))
            b.run(insns(count))
        if a.over != b.over or a.over:
            return True
        if masked(a.state()) != masked(b.state()):
            return True
        return any(differences(image_of(a.machine.memory), image_of(b.machine.memory)))

    low, high = 0, length
    while high - low > 1:
        middle = (low + high) // 2
        if differ(middle):
            high = middle
        else:
            low = middle
    differ(low)
    before, code = a.state(), (a.code(), b.code())
    differ(high)
    how = (f"halved, {tries} runs from a snapshot",) * 2
    found = look.registers(a.state(), b.state())
    ranges, _ = look.memory(a.machine, b.machine)
    note = (
        ""
        if found or ranges
        else "it is the instruction that makes the exit: the devices, or the exit, differ"
    )
    return StepResult(
        number=high, how=how, note=note, address=before.linear_rip, a=code[0], b=code[1],
        registers=found, memory=ranges,
    )  # fmt: skip
