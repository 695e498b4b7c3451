"""`vmmsim trace`: record what a guest does in detail, and show traces in other formats."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..errors import DeviceError, UsageError
from ..exits import Exit
from .common import Choices, budgets, guest_options, open_machine, resolve
from .output import end_line, say
from .session import Stop, cheating, check_cheat, detail_of, judge, open_serial, run_to_end, terminal
from .written import check_writable, write_file

if TYPE_CHECKING:
    from ..trace import Trace

__all__ = ["command"]

#: Exits: `vmmsim.trace.recorder.LIMIT`, and at most.
_LIMIT, _MOST = 200_000, 2_000_000


@click.command("trace")
@guest_options
@click.argument("other", metavar="[TRACE2]", required=False, default="")
@click.option("-o", "--output", "file", metavar="FILE", help="The file to write: .html .jsonl .json .vcd.")
@click.option(
    "--format",
    "chosen",
    type=click.Choice(["html", "jsonl", "perfetto", "vcd"]),
    help="The format, where the file's name does not say it.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, _MOST),
    default=_LIMIT,
    show_default=True,
    metavar="N",
    help="Record N exits at most; the guest runs on behind them.",
)
@click.option(
    "--looks",
    default="auto",
    show_default=True,
    metavar="auto|all|none|N",
    help="At which exits device, memory and system registers are looked at.",
)
@click.option(
    "--serial",
    default="stdio",
    show_default=True,
    metavar="stdio|none|file:PATH|pty",
    help="Where the guest's characters go, as for run.",
)
@click.option("--max-insns", type=int, metavar="N", help="Stop after N instructions (not on KVM).")
@click.option("--max-exits", type=int, metavar="N", help="Stop after N accesses to devices.")
@click.option("--cheat", is_flag=True, help="When the guest says that the game is lost, go back in time.")
def command(
    other: str,
    file: str | None,
    chosen: str | None,
    limit: int,
    looks: str,
    serial: str,
    cheat: bool,
    **options: Any,
) -> int:
    """Run GUEST or FILE and write a trace of it: each exit with its registers, code, device and times.

    A saved trace (.jsonl) in the place of a guest is written in another format, or as a page;
    two of them become a page that shows both side by side.

    \b
    vmmsim trace guess --cheat -o guess.html
    vmmsim trace hello64 -o hello.jsonl
    vmmsim trace hello.jsonl -o hello.json     # for ui.perfetto.dev
    vmmsim trace one.jsonl two.jsonl -o both.html
    """
    from ..trace import is_trace
    from ..trace.formats import check_format, format_of, rendered

    choices = Choices(**options)
    if file is None:
        raise UsageError("nobody says where the trace goes", hint="add -o FILE.html (or .jsonl, .json, .vcd)")
    format = format_of(file, chosen)
    check_format(format)
    check_writable(file, "-o")
    wanted = _looks(looks)
    if other or is_trace(choices.guest):
        first, second = _saved(choices.guest, other, format)
        write_file(file, rendered(format, first, second))
        say(f"{file}: {_count(first)}" + (f", and {_count(second)}" if second is not None else ""))
        return 0

    def write(trace: Trace) -> None:
        write_file(file, rendered(format, trace))
        say(f"{file}: {_count(trace)}")

    return _record(choices, serial, cheat, limit, wanted, write)


def _looks(text: str) -> str | int:
    if text in ("auto", "all", "none"):
        return text
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    raise UsageError(f"--looks {text}", hint="write auto, all, none, or the number of exits to look at")


def _count(trace: Trace) -> str:
    exits = trace.end.n if trace.end is not None else len(trace.exits)
    text = f"{exits} exits of {_shown(trace.header.guest)} on {_shown(trace.header.provenance)}"
    if trace.end is None:
        return f"{text}, and no end: the run was cut short"
    return f"{text}; what came behind them is not recorded (--limit)" if trace.end.cut else text


def _shown(text: str) -> str:
    """Text that may have come from a file, without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text[:100])


def _saved(one: str, other: str, format: str) -> tuple[Trace, Trace | None]:
    """The traces in these files. Raises UsageError, TraceError."""
    from ..trace import is_trace, read_trace

    if not other:
        return read_trace(one), None
    if format != "html":
        raise UsageError(f"two traces as {format}", hint="two are shown side by side on a page: -o FILE.html")
    for name in (one, other):
        if os.path.isfile(name) and not is_trace(name):
            raise UsageError(
                f"'{name}' is no trace", hint="record it first: vmmsim trace GUEST -o FILE.jsonl"
            )
    return read_trace(one), read_trace(other)


def _record(
    choices: Choices,
    serial: str,
    cheat: bool,
    limit: int,
    looks: str | int,
    write: Callable[[Trace], None],
) -> int:
    """Run the guest as `run` does, and give its trace to `write`; its exit code."""
    from ..trace.recorder import TraceRecorder

    limits = budgets(choices)
    target = resolve(choices)
    if cheat:
        check_cheat(target)
    stop = Stop()
    with contextlib.ExitStack() as stack:
        port = open_serial(choices, target, serial, False, stop)
        stack.callback(port.close)
        machine = stack.enter_context(open_machine(choices, target, source=port.source, sink=port.sink))
        stop.machine = machine
        if port.path is not None:
            say(f"the guest's serial port is {port.path}")
        recorder = TraceRecorder(machine, guest=target.name, limit=limit, looks=looks)
        if cheat:
            stack.callback(cheating(machine, target))
        end: Exit | DeviceError | None = None
        try:
            with terminal(serial, choices):
                recorder.begin()
                end = run_to_end(lambda: machine.run(budget=limits))
        finally:
            # Also when stdout is gone or a signal ends it: the trace says how far it came.
            end_line(machine.output)
            write(recorder.finish(end, detail_of(end)))
        return judge(machine, end, stop).code
