"""`vmmsim exits`: the KVM_RUN loop as a listing, one line for each exit."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..budget import Budget
from ..disasm import ExitLocator
from ..errors import DeviceError
from ..exit_text import kvm_name, owner, place
from ..exit_text import value as value_text
from ..exits import Access, BudgetSpent, Cancelled, Exit, Halt
from .common import Choices, Target, budgets, choose_input, guest_options, json_option, open_machine, resolve
from .output import note, out, say

if TYPE_CHECKING:
    from ..devices.base import CharSource
    from ..machine import Machine

__all__ = ["command"]

#: A line needs so many columns; a narrower terminal gets it in pieces.
_WIDE = 104
_INDENT = 7
_COLUMNS = (5, 10, 13, 28, 7, 10, 10, 0)
_HEAD = ("exit", "kind", "KVM's name", "where", "size", "value", "RIP", "instruction")


@click.command("exits")
@guest_options
@click.option(
    "--limit", "-n", type=click.IntRange(min=1), metavar="N", help="End after N exits, with code 0."
)
@json_option
def command(limit: int | None, as_json: bool, **options: Any) -> int:
    """Run GUEST or FILE one exit at a time and show each: what the CPU handed to the VMM.

    \b
    number  kind  KVM's name  where and which device  size  value  RIP  the instruction

    At a read, RIP is at the instruction, which waits for its answer; at a write RIP is
    already behind it. What the guest prints is in the values. With --json, a line is an
    object.
    """
    choices = Choices(**options)
    limits = budgets(choices)
    target = resolve(choices)
    with contextlib.ExitStack() as stack:
        source = _input(choices, target)
        stack.callback(getattr(source, "close", lambda: None))
        machine = stack.enter_context(open_machine(choices, target, source=source, sink=None))
        lister = _Lister(machine, source, as_json)
        lister.locator.learn(machine.vcpu.state().linear_rip)
        end: Exit | DeviceError | None
        with _deadline(machine, limits) as spent:
            try:
                end = lister.run(limit)
            except DeviceError as error:
                end = error
            except KeyboardInterrupt:
                end = Cancelled()
        if isinstance(end, Cancelled) and spent:
            end = BudgetSpent(spent[0].unit, spent[0].amount)
        return _finish(machine, lister, end)


def _input(choices: Choices, target: Target) -> CharSource:
    from ..streams import open_stdin

    chosen = choose_input(choices, target)
    return chosen if chosen is not None else open_stdin()


@contextlib.contextmanager
def _deadline(machine: Machine, limits: tuple[Budget, ...]) -> Iterator[list[Budget]]:
    """Cancel the machine when the time is up; the list then holds the budget."""
    spent: list[Budget] = []
    if not limits:
        yield spent
        return

    def out_of_time() -> None:
        spent.append(limits[0])
        machine.cancel()

    timer = threading.Timer(limits[0].amount, out_of_time)
    timer.daemon = True
    timer.start()
    try:
        yield spent
    finally:
        timer.cancel()


class _Lister:
    """Steps a machine and prints. `count` is the number of exits so far."""

    def __init__(self, machine: Machine, source: CharSource, as_json: bool) -> None:
        self.locator = ExitLocator(machine.memory)
        self.count = 0
        self._machine = machine
        self._source = source
        self._json = as_json
        self._width = shutil.get_terminal_size((_WIDE, 24)).columns
        self._typed = sys.__stdin__ is not None and sys.__stdin__.isatty()
        self._told = 0

    def run(self, limit: int | None) -> Exit | None:
        """The exit that ends it; None when `limit` does."""
        if not self._json and self._width >= _WIDE:
            out(_columns((_HEAD[0].rjust(_COLUMNS[0]), *_HEAD[1:])))
        end: Exit | None = None
        for exit in self._machine.exits():  # ends behind the first that is no access nor a halt to wait in
            if isinstance(exit, Cancelled):
                return exit
            processors = self._machine.processors
            state = processors.items[processors.current].vcpu.state()
            self.count += 1
            if not isinstance(exit, Access):
                insn = self.locator.halted(state) if isinstance(exit, Halt) else None
                self._print(exit, state.rip, insn.text if insn else "")
                end = exit
                if self.count == limit:
                    break
                continue
            found = self.locator.instruction(state, exit)
            self._prompt(exit)
            stop = self._machine.answer(exit)
            self._print(exit, state.rip, found.text if found else "")
            if stop is not None:
                self._machine.last_exit = stop
                return stop
            if self.count == limit:
                return None
        return end

    def _prompt(self, exit: Access) -> None:
        """Before a read that waits for somebody to type: say so, since no line can."""
        if exit.is_write or not self._typed or self._owner(exit) != "char-in":
            return
        if self._source.ready() or self._source.ended:
            return
        text = self._machine.output.since(self._told)
        self._told = len(self._machine.output)
        if text:
            say(f"the guest has printed: {_quoted(text)}")
        say(f"exit {self.count} waits for a character: type and press Enter (Ctrl-d: no more)")

    def _owner(self, exit: Access) -> str:
        return owner(self._machine, type(exit), exit.address)

    def _print(self, exit: Exit, rip: int, insn: str) -> None:
        if self._json:
            self._print_json(exit, rip, insn)
            return
        where = size = value = ""
        if isinstance(exit, Access):
            where = f"{place(type(exit), exit.address)} {self._owner(exit)}"
            size = f"{exit.size} byte" + ("s" if exit.size > 1 else "")
            value = value_text(exit.size, exit.value)  # type: ignore[attr-defined]
        elif exit.describe() != exit.kind:
            where = exit.describe()
        name = kvm_name(exit.kvm)
        parts = [f"{self.count:>5}", exit.kind, name, where, size, value, f"rip {rip:#06x}", insn]
        if self._width >= _WIDE and len(where) <= 28:
            line = _columns(parts)
        else:
            line = _packed([part for part in parts if part], self._width)
        out(line.rstrip())

    def _print_json(self, exit: Exit, rip: int, insn: str) -> None:
        import msgspec

        record: dict[str, Any] = {"n": self.count, "kind": exit.kind, "kvm": exit.kvm}
        if isinstance(exit, Access):
            record.update(
                address=exit.address,
                device=self._owner(exit),
                size=exit.size,
                value=exit.value,  # type: ignore[attr-defined]
            )
        else:
            record["detail"] = exit.describe()
        out(msgspec.json.encode({**record, "rip": rip, "insn": insn or None}))


def _columns(parts: Sequence[str]) -> str:
    return "  ".join(part.ljust(width) for part, width in zip(parts, _COLUMNS, strict=True))


def _packed(parts: list[str], width: int) -> str:
    """The parts in as many lines as the width needs; the next lines are indented."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += "  " + part
        else:
            lines.append(" " * _INDENT + part)
    return "\n".join(lines)


def _quoted(data: bytes) -> str:
    text = data.decode("latin-1")
    return repr(text if len(text) <= 200 else "..." + text[-200:])


def _finish(machine: Machine, lister: _Lister, end: Exit | DeviceError | None) -> int:
    counts = ", ".join(f"{kind} {number}" for kind, number in machine.counts().items())
    if end is None:
        say(f"{lister.count} exits shown, as --limit says; the guest has not ended ({counts})")
        return 0
    result = machine.outcome(end)
    if result.abnormal or isinstance(end, Cancelled):
        from ..postmortem import postmortem

        note(postmortem(machine, end))
    say(f"{lister.count} exits: {counts}" + (f"; {result.note}" if result.note else ""))
    if len(machine.output):
        say(f"the guest printed: {_quoted(machine.output.data)}")
    if not isinstance(end, Exit) or isinstance(end, (BudgetSpent, Cancelled)):
        return result.code
    say(f"it ended with {end.kind}: exit code {result.code}")
    return result.code
