"""`diff`: run two sides, find the first difference, look at it closely, and report.

The first pass runs both in turn and compares exits (lockstep). If they differ, both are run once
more to that exit, where their registers, memory and devices are looked at (look). With
`step` they are run a third time, to the last exit that was the same, and from there by instructions
(step).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ..errors import VmmsimError
from ..machine import Machine
from ..snapshot.cow import image_of
from ..snapshot.pages import differences
from . import look
from .explain import Scene, explain
from .lockstep import Lockstep, Runner, TraceComparer, step_line
from .report import Change, CodeLine, Explanation, FieldPair, MemoryRange, OutputDifference, Report, SideView
from .sides import Side, Workload, check_side, usable
from .step import first_difference, first_instruction

__all__ = ["diff"]


def diff(
    workload: Workload,
    a: Side,
    b: Side,
    *,
    limit: int | None = None,
    timeout: float | None = None,
    step: bool = False,
    only_available: bool = False,
    command: str = "",
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Compare what `a` and `b` make of `workload`, for `limit` exits and `timeout` seconds at most.

    A side whose backend is not available is an error (BackendUnavailable), unless `only_available`:
    the other side is run alone then. `progress` is told how many exits were the same so far.
    Raises UsageError, NotSupported, BackendUnavailable, KeyboardInterrupt.
    """
    for side in (a, b):
        check_side(workload, side)
    if only_available:
        for side in (a, b):
            found, reason, remedy = usable(side.backend)
            if not found:
                return _alone(workload, a, b, side, reason, remedy, limit, timeout, command)
    with _runners(workload, a, b) as (left, right):
        lockstep = Lockstep(left, right, TraceComparer())
        same = lockstep.run(limit=limit, timeout=timeout, progress=progress)
        if same:
            return _judge_ends(workload, a, b, lockstep, step, command)
        events = tuple(_event(side, other) for side, other in ((left, right), (right, left)))
        counted = lockstep.comparer
        ends = tuple(side.end.detail if side.end is not None else "" for side in (left, right))
    return _located(workload, a, b, counted, events, ends, step, command)


@contextlib.contextmanager
def _runners(workload: Workload, a: Side, b: Side) -> Iterator[tuple[Runner, Runner]]:
    with contextlib.ExitStack() as stack:
        runners = []
        for side in (a, b):
            runner = Runner(workload.open(side))
            stack.callback(runner.close)
            runners.append(runner)
        yield runners[0], runners[1]


def _event(side: Runner, other: Runner) -> str:
    if side.pending:
        return step_line(side.pending[0])
    if side.end is not None:
        return side.end.detail
    return "no exit in the time that the other side took to its end" if other.end else "no exit"


def _side(side: Side, machine: Machine | None, **fields: object) -> SideView:
    provenance = machine.backend.provenance if machine is not None else ""
    return SideView(name=side.name, provenance=provenance, **fields)  # type: ignore[arg-type]


def _alone(
    workload: Workload,
    a: Side,
    b: Side,
    gone: Side,
    reason: str,
    remedy: str,
    limit: int | None,
    timeout: float | None,
    command: str,
) -> Report:
    """Run what is there; nothing is compared."""
    views = []
    exits = 0
    for side in (a, b):
        there, why, mend = (False, reason, remedy) if side is gone else usable(side.backend)
        if not there:
            views.append(SideView(name=side.name, missing=why, remedy=mend))
            continue
        runner = Runner(workload.open(side))
        try:
            runner.advance(limit or 1 << 62, timeout)
            exits = runner.count
            end = runner.end.detail if runner.end else "stopped"
            views.append(_side(side, runner.machine, exits=exits, end=end))
        finally:
            runner.close()
    notes = tuple(f"to have {view.name}: {view.remedy}" for view in views if view.remedy)
    return Report(
        verdict="stopped",
        workload=workload.name,
        exits=exits,
        a=views[0],
        b=views[1],
        notes=(*notes, "nothing was compared: one side ran alone"),
        command=command,
    )


# -- the exits were the same


def _judge_ends(workload: Workload, a: Side, b: Side, lockstep: Lockstep, step: bool, command: str) -> Report:
    left, right, counted = lockstep.left, lockstep.right, lockstep.comparer
    machines = (left.machine, right.machine)
    registers: tuple[FieldPair, ...] = ()
    memory: tuple[MemoryRange, ...] = ()
    fields: tuple[FieldPair, ...] = ()
    printed: OutputDifference | None = None
    notes: list[str] = []
    comparable = left.count == right.count and not (left.late or right.late)
    states = tuple(machine.vcpu.state() for machine in machines)
    if comparable:
        registers = _all_registers(*machines)
        memory, note = look.memory(*machines)
        fields, notes = look.devices(*machines)
        printed = look.output(*machines)
        notes += [note] if note else []
    if lockstep.stopped:
        notes.insert(0, lockstep.stopped)
        if not comparable:
            notes.append("registers and memory were not compared: the sides are not at the same exit")
    found = {"registers": registers, "memory": memory, "devices": fields, "output": printed}
    what = next((name for name, value in found.items() if value), "")
    result = None
    if what and step:
        result = first_difference(lambda: (workload.open(a), workload.open(b)), counted.count, _differ)
    explanations: tuple[Explanation, ...] = ()
    if what:
        scene = Scene(
            provenances=(machines[0].backend.provenance, machines[1].backend.provenance),
            states=(states[0], states[1]),
            fields=registers,
            insns=_texts(result.a, result.b) if result is not None and result.number is not None else (),
            exact=True,
        )
        explanations = explain(scene)
    views = []
    for side, runner, state in zip((a, b), (left, right), states, strict=True):
        view = look.View(at=state)
        views.append(
            _side(
                side,
                runner.machine,
                exits=runner.count,
                end=runner.end.detail if runner.end is not None else "",
                rip=state.rip,
                mode=state.mode,
                registers=_register_values(state) if what else {},
                code=look.code_lines(runner.machine, view) if what else (),
                accesses=look.history(runner.machine) if what else (),
            )
        )
    return Report(
        verdict="diverged" if what else "stopped" if not comparable else "same",
        what=what,
        workload=workload.name,
        exits=counted.count,
        trace_hash=counted.digest(),
        before=tuple(map(step_line, counted.window)) if what else (),
        a=views[0],
        b=views[1],
        registers=registers,
        memory=memory,
        devices=fields,
        output=printed,
        explanations=explanations,
        step=result,
        notes=tuple(notes),
        command=command,
    )


def _differ(one: Machine, two: Machine) -> bool:
    """Whether two machines at one exit differ in anything."""
    return bool(
        _all_registers(one, two)
        or any(differences(image_of(one.memory), image_of(two.memory)))
        or look.devices(one, two)[0]
        or look.output(one, two)
    )


def _all_registers(one: Machine, two: Machine) -> tuple[FieldPair, ...]:
    found: tuple[FieldPair, ...] = ()
    several = len(one.processors.items) > 1
    for mine, theirs in zip(one.processors.items, two.processors.items, strict=False):
        prefix = f"cpu{mine.number}." if several else ""
        found += look.registers(mine.vcpu.state(), theirs.vcpu.state(), prefix)
    return found


def _register_values(state: object) -> dict[str, object]:
    return {name: look.plain(value) for name, value in state.fields()}  # type: ignore[attr-defined]


# -- they were not


def _located(
    workload: Workload,
    a: Side,
    b: Side,
    counted: TraceComparer,
    events: tuple[str, ...],
    ends: tuple[str, ...],
    step: bool,
    command: str,
) -> Report:
    equal = counted.count
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        views, machines = [], []
        for side in (a, b):
            machine, view = _closer(workload, side, equal)
            stack.callback(machine.close)
            machines.append(machine)
            views.append(view)
        for side, view in zip((a, b), views, strict=True):
            if not view.repeated:
                notes.append(
                    f"{side.name} did not make the same exits when it was run once more: what is shown of it "
                    "is from another run"
                )
        for event in events:
            if event.startswith("refused by the host"):
                notes.append("a refusal is this host's KVM's, not the guest's: 'vmmsim doctor' lists them")
        one, two = views
        registers: tuple[FieldPair, ...] = ()
        if one.at is not None and two.at is not None:
            registers = look.registers(one.at, two.at)
        memory, note = look.memory(*machines)
        fields, more = look.devices(*machines)
        notes += ([note] if note else []) + more
        result = None
        if step:
            result = first_instruction(lambda: (workload.open(a), workload.open(b)), equal)
        codes = tuple(look.code_lines(m, v) for m, v in zip(machines, views, strict=True))
        scene = Scene(
            provenances=(machines[0].backend.provenance, machines[1].backend.provenance),
            insns=_insns(codes) if result is None or result.number is None else _texts(result.a, result.b),
            exact=result is not None and result.number is not None,
            events=(events[0], events[1]),
            states=(one.at, two.at),
            fields=registers,
        )
        explanations = explain(scene)
        sides = tuple(
            _side(
                side,
                machine,
                exits=equal,
                event=event,
                end=end,
                rip=view.at.rip if view.at is not None else None,
                mode=view.at.mode if view.at is not None else "",
                registers=_register_values(view.at) if view.at is not None else {},
                changed=_changed(view),
                code=code,
                accesses=view.accesses,
            )
            for side, machine, view, event, end, code in zip(
                (a, b), machines, views, events, ends, codes, strict=True
            )
        )
    return Report(
        verdict="diverged",
        what="end" if all(ends) and not any("size" in event for event in events) else "exit",
        workload=workload.name,
        exits=equal,
        exit=equal + 1,
        trace_hash=counted.digest(),
        before=tuple(map(step_line, counted.window)),
        a=sides[0],
        b=sides[1],
        registers=registers,
        memory=memory,
        devices=fields,
        explanations=explanations,
        step=result,
        notes=tuple(notes),
        command=command,
    )


def _changed(view: look.View) -> tuple[Change, ...]:
    return look.changes(view.before, view.at)


def _closer(workload: Workload, side: Side, equal: int) -> tuple[Machine, look.View]:
    for lead in (*look.LEADS, equal):
        machine = workload.open(side)
        try:
            view = look.look(machine, equal, lead)
        except VmmsimError as error:
            view = look.View(event=str(error), repeated=False)
        except BaseException:
            machine.close()
            raise
        if view is not None:
            return machine, view
        machine.close()
    raise AssertionError  # from the start on there is nothing to go beyond


def _insns(codes: tuple[tuple[CodeLine, ...], ...]) -> tuple[str, ...]:
    """The instructions up to the exit's."""
    found: dict[str, None] = {}
    for lines in codes:
        for line in lines:
            found[line.text] = None
            if line.here:
                break
    return tuple(found)


def _texts(*lines: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line.rpartition("  ")[2] for line in lines))
