"""What the verbs that run a guest to its end share: its console, its trace, how it ended and is told."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import DeviceError, UsageError
from ..exits import Cancelled, Exit
from ..outcome import Outcome
from .common import Choices, Target, choose_input
from .output import end_line, note, out, say

if TYPE_CHECKING:
    from ..machine import Machine
    from ..streams import Port

__all__ = [
    "Stop",
    "cheating",
    "check_cheat",
    "detail_of",
    "judge",
    "open_serial",
    "print_json",
    "run_to_end",
    "terminal",
    "tracing",
]


class Stop:
    """Ctrl-a x: remembered, and passed to the machine once there is one."""

    def __init__(self) -> None:
        self.asked = False
        self.machine: Machine | None = None

    def __call__(self) -> None:
        self.asked = True
        if self.machine is not None:
            self.machine.cancel()


def _keys(stop: Stop) -> Callable[[bytes], bytes]:
    """What a person types, without the Ctrl-a escapes, which act at once."""
    from ..terminal import HELP, EscapeFilter

    escapes = EscapeFilter()

    def keys(data: bytes) -> bytes:
        kept, commands = escapes.feed(data)
        for word in commands:
            if word == "quit":
                stop()
            else:
                note("\n" + HELP)
        return kept

    return keys


def open_serial(choices: Choices, target: Target, serial: str, as_json: bool, stop: Stop) -> Port:
    """The guest's serial port as `--serial` has it, with the input that was chosen."""
    from ..streams import NullSink, open_port, open_stdin

    keys = _keys(stop)
    source: Any = choose_input(choices, target, keys)
    if source is None and serial.startswith("file:"):
        source = open_stdin(keys)
    if as_json and serial == "stdio":
        from ..streams import Port

        return Port(source or open_stdin(keys), NullSink())
    return open_port(serial, source=source, filter=keys)


@contextlib.contextmanager
def terminal(serial: str, choices: Choices) -> Iterator[None]:
    """The terminal, if the guest's input is typed there, gives each key at once."""
    from ..terminal import open_terminal

    typed = choices.stdin == "-" or (choices.stdin is None and (serial == "stdio" or serial[:5] == "file:"))
    raw = open_terminal(keys=typed, signals=choices.machine != "pc")
    if raw is None:
        yield
        return
    with raw:
        if raw.banner and not choices.quiet:
            note(raw.banner)
        yield


@contextlib.contextmanager
def tracing(
    machine: Machine, target: Target, path: str | None
) -> Iterator[Callable[[Exit | DeviceError | None], None]]:
    """Trace to `path`; gives what writes the end record."""
    if path is None:
        yield lambda end: None
        return
    from ..trace import Header, TraceWriter

    try:
        # Unbuffered: closing it has nothing left to write, and nothing that could fail.
        file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise UsageError(
            f"the trace '{path}' cannot be written: {error.strerror}", hint="choose another file for --trace"
        ) from error
    with file:
        header = Header(
            guest=target.name, backend=machine.backend.name, provenance=machine.backend.provenance
        )
        writer = TraceWriter(file, header)
        broken = False

        def trying(write: Callable[..., None], *arguments: Any, **named: Any) -> None:
            """What is traced is worth more than its trace: the guest runs on without it."""
            nonlocal broken
            if broken:
                return
            try:
                write(*arguments, **named)
            except OSError as error:
                broken = True
                say(f"warning: the trace '{path}' is not complete: {error.strerror}")

        remove = machine.observe(lambda *access: trying(writer, *access))

        def finish(end: Exit | DeviceError | None) -> None:
            remove()
            exit = end if isinstance(end, Exit) else None
            trying(writer.end, exit, detail=detail_of(end), rip=machine.vcpu.registers().rip)

        yield finish


def run_to_end(run: Callable[[], Exit | DeviceError]) -> Exit | DeviceError:
    """What `run` comes to: Ctrl-C and a device that raised are ends, too."""
    try:
        return run()
    except KeyboardInterrupt:
        return Cancelled()
    except DeviceError as error:
        return error


def cheating(machine: Machine, target: Target) -> Callable[[], None]:
    """`--cheat`: back in time whenever the game is lost. UsageError for a guest that does not say when it
    is. Returns what ends it."""
    from ..snapshot.cheat import TimeMachine

    check_cheat(target)
    assert target.cheat is not None

    def told(times: int) -> None:
        end_line(machine.output)
        say(f"that game was lost: back in time to before it ({times})")

    return TimeMachine(machine, begin=target.cheat.begin, lost=target.cheat.lost, on_back=told).close


def check_cheat(target: Target) -> None:
    """UsageError for a guest that does not say when it is lost."""
    if target.cheat is None:
        raise UsageError(
            f"'{target.name}' says nothing of how it is lost, so nobody can cheat",
            hint="a built-in guest has [cheat] in its guest.toml, as guess does; see guests/README.md",
        )


def detail_of(end: Exit | DeviceError | None) -> str:
    """How a run ended, for people."""
    if end is None:
        return "the run was cut short"
    return end.describe() if isinstance(end, Exit) else end.message


def judge(machine: Machine, end: Exit | DeviceError, stop: Stop) -> Outcome:
    """Say on stderr how it ended, where that was not as it should be."""
    result = machine.outcome(end)
    end_line(machine.output)
    if isinstance(end, Cancelled):
        if stop.asked:
            say("stopped by Ctrl-a x")
            return result
        # A guest is most often interrupted because it hangs: show where.
        result = msgspec.structs.replace(result, abnormal=True, note="stopped by Ctrl-C")
    if result.abnormal:
        from ..postmortem import postmortem

        note(postmortem(machine, end))
    if result.note:
        say(result.note)
    return result


def print_json(machine: Machine, target: Target, end: Exit | DeviceError, result: Outcome) -> None:
    """The one object of `--json`."""
    report = {
        "guest": target.name,
        "backend": machine.backend.name,
        "provenance": machine.backend.provenance,
        "reason": machine.backend_choice,
        "exit": end.kind if isinstance(end, Exit) else "device_error",
        "detail": detail_of(end),
        "exit_code": result.code,
        "panicked": result.panicked or None,
        "guest_code": getattr(end, "code", None) if isinstance(end, Exit) else None,
        "rip": machine.vcpu.registers().rip,
        "insns": machine.vcpu.insns,
        "exits": machine.counts(),
        "serial": base64.b64encode(machine.output.data).decode("ascii"),
        "serial_dropped": machine.output.dropped,
        "seconds": round(machine.seconds, 6),
        "unclaimed": {
            bus.name.lower(): {"reads": bus.unclaimed_reads, "writes": bus.unclaimed_writes}
            for bus in (machine.ports, machine.mmio)
        },
    }
    out(msgspec.json.encode(report))
