"""A closer look: a machine brought once more to a certain exit, and what it is like there.

The same run again, inline until shortly before, then one exit at a time, so that registers can
be looked at where the exit is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec

from ..cpu.state import CpuState
from ..disasm import CodeReader, ExitLocator, Insn
from ..errors import DeviceError, VmmsimError
from ..exits import Access, Exit
from ..machine import Machine
from ..postmortem import access_line
from ..snapshot.compare import field_differences, unequal
from .divergences import ignored_bits
from .lockstep import Step, step_line, step_of
from .report import Change, CodeLine, FieldPair, MemoryRange, OutputDifference

__all__ = [
    "LEADS",
    "View",
    "changes",
    "code_lines",
    "devices",
    "history",
    "look",
    "memory",
    "output",
    "plain",
    "registers",
]

#: So many exits are gone one at a time. The second is for guests that make many exits in one
#: instruction, which an inline run goes beyond.
LEADS = (64, 4096)
_BLOCK = 1 << 16
_MOST_RANGES = 256
_CODE_BEFORE, _CODE_AFTER = 96, 4


class View(msgspec.Struct):
    """One side at the exit behind `equal`. `before` and `at` are the registers at the last exit that
    was the same (or at the start) and at the one behind it, `event` that exit or the end; `repeated` whether
    the exits before it came as the first time. At a read RIP is at the instruction."""

    before: CpuState | None = None
    at: CpuState | None = None
    event: str = ""
    step: Step | None = None
    insn: Insn | None = None
    accesses: tuple[str, ...] = ()
    ended: bool = False
    repeated: bool = True


class _Trace:
    def __init__(self, machine: Machine) -> None:
        self.count = 0
        self.last: Step | None = None
        self.forget = machine.observe(self._record)

    def _record(self, cls: type[Access], address: int, size: int, value: int) -> None:
        self.count += 1
        self.last = step_of(cls, address, size, value)


def look(machine: Machine, equal: int, lead: int = LEADS[0]) -> View | None:
    """Run a fresh machine to the exit number `equal + 1`. None: `lead` exits before were too few to
    stop there, and it is to be tried again with another machine and a greater lead."""
    from ..budget import exits

    trace = _Trace(machine)
    view = View()
    locator = ExitLocator(machine.memory)
    start = machine.vcpu.state()
    locator.learn(start.linear_rip)
    if equal == 0:
        view.before = start
    if equal > lead:
        end: Exit | None = None
        with contextlib.suppress(DeviceError):
            end = machine.run(budget=exits(equal - lead))
        if trace.count > equal:
            return None
        if end is None or end.kind != "budget":
            view.repeated = False
            return view
    last: Exit | None = None
    try:
        for exit in machine.exits():
            last = exit
            state = machine.processors.items[machine.processors.current].vcpu.state()
            if not isinstance(exit, Access):
                view.at = state
                continue
            insn = locator.instruction(state, exit)
            before = trace.count
            try:
                stop = machine.answer(exit)
            except DeviceError as error:
                view.at, view.event, view.insn, view.ended = state, error.message, insn, True
                break
            if trace.count == equal and trace.count > before:
                view.before = state
            if trace.count > equal:
                view.at, view.insn, view.step = state, insn, trace.last
                view.event = step_line(trace.last) if trace.last else exit.describe()
                break
            if stop is not None:
                view.at, view.event, view.ended = state, stop.describe(), True
                break
        else:
            view.event, view.ended = last.describe() if last is not None else "", True
    finally:
        trace.forget()
    view.repeated = (view.ended and trace.count == equal) or trace.count == equal + 1
    view.accesses = history(machine)
    return view


def history(machine: Machine) -> tuple[str, ...]:
    """The last accesses to devices, a line each."""
    return tuple(access_line(machine, *record) for record in machine.accesses.history)


def registers(a: CpuState, b: CpuState, prefix: str = "") -> tuple[FieldPair, ...]:
    """The registers that differ, without what divergences.toml leaves out."""
    return tuple(
        FieldPair(prefix + name, plain(mine), plain(theirs)) for name, mine, theirs in _counted(a, b)
    )


def _counted(a: CpuState, b: CpuState) -> Iterator[tuple[str, object, object]]:
    masks = ignored_bits()
    for name, mine, theirs in a.diff(b):
        mask = masks.get(name, 0)
        if mask == -1:
            continue
        if isinstance(mine, int) and isinstance(theirs, int) and not (mine ^ theirs) & ~mask:
            continue
        yield name, mine, theirs


def plain(value: object) -> object:
    """A register's value as a report holds it: a number, or text."""
    return value if value is None or isinstance(value, (int, str)) else str(value)


def changes(before: CpuState | None, now: CpuState | None) -> tuple[Change, ...]:
    """The registers of one side that are not what they were."""
    if before is None or now is None:
        return ()
    return tuple(Change(name, plain(old), plain(new)) for name, old, new in before.diff(now))


def code_lines(machine: Machine, view: View) -> tuple[CodeLine, ...]:
    """The instructions around the exit, from that of the last exit on if it is near."""
    state = view.at
    if state is None:
        return ()
    reader = CodeReader(machine.memory)
    here = view.insn.address if view.insn is not None else state.linear_rip
    start = here
    if view.before is not None and 0 <= here - view.before.linear_rip <= _CODE_BEFORE:
        start = view.before.linear_rip
    size = here - start + 15 * _CODE_AFTER
    found = reader.decode(state, start, size=size, count=64)
    after = 0
    lines = []
    for insn in found:
        lines.append(CodeLine(insn.address, insn.code.hex(), insn.text, insn.address == here))
        after += insn.address > here
        if after >= _CODE_AFTER:
            break
    return tuple(lines)


def memory(a: Machine, b: Machine) -> tuple[tuple[MemoryRange, ...], str]:
    """Ranges that differ (at most 256), and a note if the memories cannot be compared."""
    shapes = [[(r.gpa, r.size) for r in machine.memory.regions] for machine in (a, b)]
    if shapes[0] != shapes[1]:
        return (), "the machines have other memory regions, which were not compared"
    found: list[MemoryRange] = []
    for mine, theirs in zip(a.memory.regions, b.memory.regions, strict=True):
        for at in range(0, mine.size, _BLOCK):
            p, q = bytes(mine.buffer[at : at + _BLOCK]), bytes(theirs.buffer[at : at + _BLOCK])
            if p == q:
                continue
            for start, length in unequal(p, q):
                end = min(start + length, start + 16)
                found.append(
                    MemoryRange(mine.gpa + at + start, length, p[start:end].hex(), q[start:end].hex())
                )
                if len(found) == _MOST_RANGES:
                    return tuple(found), f"only the first {_MOST_RANGES} ranges of memory are listed"
    return tuple(found), ""


def devices(a: Machine, b: Machine) -> tuple[tuple[FieldPair, ...], list[str]]:
    """Fields of device states that differ; notes on devices that could not be compared."""
    found: list[FieldPair] = []
    notes = []
    for name in a.devices.keys() ^ b.devices.keys():
        notes.append(f"only one side has the device '{name}'")
    for name, device in a.devices.items():
        other = b.devices.get(name)
        if other is None:
            continue
        states = []
        for one in (device, other):
            try:
                states.append(one.state())  # type: ignore[attr-defined]
            except (AttributeError, VmmsimError):
                states.append(None)
        if None in states or type(states[0]) is not type(states[1]):
            notes.append(f"the states of '{name}' were not compared: they are of two kinds, or there is none")
            continue
        found += [FieldPair(d.name, d.a, d.b) for d in field_differences(name, *states)]
    halts = [machine.counts().get("halt", 0) for machine in (a, b)]
    if halts[0] != halts[1]:
        found.append(FieldPair("halts", *halts))
    return tuple(found), notes


def output(a: Machine, b: Machine) -> OutputDifference | None:
    """Where what was printed differs."""
    mine, theirs = a.output.data, b.output.data
    if mine == theirs and len(a.output) == len(b.output):
        return None
    both = min(len(mine), len(theirs))
    at = next((i for i in range(both) if mine[i] != theirs[i]), both)
    return OutputDifference(
        at + a.output.dropped, mine[at : at + 64].decode("latin-1"), theirs[at : at + 64].decode("latin-1")
    )
