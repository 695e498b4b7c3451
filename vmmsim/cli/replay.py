"""`vmmsim replay`: a recorded run once more, each exit compared with the recording."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

import click

from ..errors import UsageError
from .common import check_backend, json_option, parse_seconds
from .output import out, say

if TYPE_CHECKING:
    from ..record import Recording, Replay

__all__ = ["command"]

_DIFFER = 122
_SPENT = 124


@click.command("replay")
@click.argument("file", metavar="FILE")
@click.option(
    "--backend", "-b", envvar="VMMSIM_BACKEND", default="unicorn", show_default=True, show_envvar=True,
    metavar="auto|kvm|unicorn", help="The CPU; any will do, whatever the run was recorded on.",
)  # fmt: skip
@click.option("--insn-trace", metavar="OUT", help="Write a line for each instruction to OUT (not on KVM).")
@click.option("--timeout", metavar="TIME", help="Stop after this time: 10, 1.5s, 200ms, 2m.")
@json_option
def command(file: str, backend: str, insn_trace: str | None, timeout: str | None, as_json: bool) -> int:
    """Run a recording (made with run --record FILE) again. The guest's characters are on stdout.

    Each exit, each interrupt and the end must be as they were recorded. Exit code 122, and the
    first exit that is another, when they are not; 123 for a file that is no recording. Else the
    code that the recorded run ended with: the guest's own, 120 or 121; 0 if it was stopped from outside.
    """
    from ..budget import seconds
    from ..exits import BudgetSpent
    from ..record import load, replay
    from ..record.replayer import ended_outside
    from ..streams import NullSink, StdoutSink

    check_backend(backend)
    budget = seconds(parse_seconds(timeout)) if timeout is not None else None
    recording = load(file)
    with _tracing(insn_trace) as trace:
        tracer = None
        if trace is not None:
            from ..record.insn_trace import InsnTracer

            tracer = InsnTracer(trace)
        result = replay(
            recording,
            backend=backend,
            sink=NullSink() if as_json else StdoutSink(),
            tracer=tracer,
            budget=budget,
        )
    if as_json:
        _print_json(recording, result, tracer.count if tracer is not None else None)
    if result.derailed is None and isinstance(result.end, BudgetSpent) and result.end.unit == "seconds":
        say(f"the time is spent behind exit {result.exits} of {recording.end.exits}; so far as recorded")
        return _SPENT
    if result.derailed is not None:
        say(f"the replay left the rails at {result.derailed}")
        say(f"{recording.header.provenance} recorded it, {result.provenance} ran it")
        return _DIFFER
    say(f"{result.exits} exits as recorded on {recording.header.provenance}, by {result.provenance}")
    if ended_outside(recording):
        return 0
    if result.outcome.note:
        say(result.outcome.note)
    return result.outcome.code


@contextlib.contextmanager
def _tracing(path: str | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
        return
    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"the trace '{path}' cannot be written: {reason}", hint="choose another file for --insn-trace"
        ) from error
    with file:
        yield file


def _print_json(recording: Recording, result: Replay, insns: int | None) -> None:
    import msgspec

    out(
        msgspec.json.encode(
            {
                "guest": recording.header.guest,
                "recorded_on": recording.header.provenance,
                "provenance": result.provenance,
                "exits": result.exits,
                "recorded_exits": recording.end.exits,
                "end": result.end.kind,
                "recorded_end": recording.end.kind,
                "same": result.derailed is None,
                "derailed": result.derailed,
                "exit_code": result.outcome.code,
                "panicked": result.outcome.panicked or None,
                "insns_traced": insns,
                "serial": base64.b64encode(result.output).decode("ascii"),
            }
        )
    )
