"""`vmmsim step`: the KVM_RUN loop with a person in it, in the terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .common import Choices, Target, choose_input, count_time, guest_options, open_machine, resolve

if TYPE_CHECKING:
    from ..machine import Machine

__all__ = ["command"]


@click.command("step")
@guest_options
def command(**options: Any) -> int:
    """Go through GUEST or FILE exit by exit, in the terminal: you are the VMM.

    At each exit the guest waits: let the device answer (s goes on to the next), or answer by
    hand (a). i is one instruction, c goes on to a breakpoint (b), u goes back. ? has all keys,
    q quits. Time is counted, so that going back is exact, unless --clock says otherwise.
    """
    choices = Choices(**options)
    _check_terminal()
    if choices.timeout is not None:
        raise UsageError(
            "--timeout limits a run, and here a person steps", hint="leave it away; Escape stops a run"
        )
    target = resolve(choices)
    counted = count_time(choices, target)
    from ..tui.keyboard import Console, Keyboard

    keyboard = Keyboard() if choices.stdin in (None, "-") else None
    console = Console()
    with contextlib.ExitStack() as stack:
        source: Any = keyboard or choose_input(choices, target)
        stack.callback(getattr(source, "close", lambda: None))
        machine = stack.enter_context(open_machine(choices, target, source=source, sink=console))
        return _show(machine, console, keyboard, target, counted)


def _check_terminal() -> None:
    """UsageError where nothing can be shown."""
    if find_spec("textual") is None:
        raise UsageError(
            "vmmsim step needs textual, which is not installed", hint="pip install 'vmmsim[tui]'"
        )
    ends = (sys.__stdin__, sys.__stdout__, sys.__stderr__)  # textual draws on stderr
    if not all(end is not None and not end.closed and end.isatty() for end in ends):
        raise UsageError(
            "vmmsim step needs a terminal: its input or output is redirected",
            hint="vmmsim exits lists the exits of a guest without one",
        )
    if os.environ.get("TERM") == "dumb":
        raise UsageError(
            "the terminal is a dumb one (TERM=dumb)", hint="vmmsim exits needs no more than that"
        )


def _show(machine: Machine, console: Any, keyboard: Any, target: Target, counted: bool) -> int:
    from ..tui.app import StepApp
    from ..tui.stepper import Stepper

    symbols = target.image.symbols if target.image is not None else {}
    stepper = Stepper(machine, console, keyboard, symbols)
    clock = machine.config.clock
    title = f"vmmsim step {target.name}  {machine.backend.provenance}  {machine.config.model}, clock {clock}"
    greeting = "s: to the first exit   ?: all keys"
    if counted and machine.config.model == "pc":
        greeting += f"   time is counted in {clock}, so that u goes back exactly"
    app = StepApp(stepper, title, greeting)
    code = app.run()
    if app.failed is not None:
        raise app.failed
    return app.return_code or 0 if code is None else code
