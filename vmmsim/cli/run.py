"""`vmmsim run`: run a guest to its end; its serial port is the terminal."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from ..errors import DeviceError, UsageError
from ..exits import Cancelled, Exit
from ..outcome import Outcome, outcome
from .common import Choices, Target, budgets, choose_input, guest_options, json_option, open_machine, resolve
from .debug import Debugging
from .kernel import after_panic
from .output import end_line, note, out, say
from .record import recording_source, start_recording
from .taker import Taker

if TYPE_CHECKING:
    from ..guests import Cheat
    from ..machine import Machine
    from ..streams import Port

__all__ = ["command"]


@click.command("run")
@guest_options
@click.option(
    "--serial",
    default="stdio",
    show_default=True,
    metavar="stdio|none|file:PATH|pty",
    help="Where the guest's characters go; input is stdin for stdio and file, the pty for pty.",
)
@click.option("--max-insns", type=int, metavar="N", help="Stop after N instructions (not on KVM).")
@click.option("--max-exits", type=int, metavar="N", help="Stop after N accesses to devices.")
@click.option("--trace", metavar="FILE", help="Write each exit to FILE as JSON Lines.")
@click.option("--record", metavar="FILE", help="Keep the run in FILE, for vmmsim replay.")
@click.option("-s", "gdb_default", is_flag=True, help="Wait for gdb at tcp:127.0.0.1:1234, as QEMU does.")
@click.option("--gdb", metavar="ADDR", help="Wait for gdb at tcp:HOST:PORT or unix:PATH.")
@click.option("-S", "--freeze", is_flag=True, help="With gdb: do not start before it says so.")
@click.option("--reverse", is_flag=True, help="With gdb: keep a history, so that it can go back in time.")
@click.option("--gdb-remote", is_flag=True, help="With gdb: allow an address that other hosts reach.")
@click.option("--count-insns", is_flag=True, help="Count instructions for --json (slower; not on KVM).")
@click.option("--cheat", is_flag=True, help="When the guest says that the game is lost, go back in time.")
@click.option(
    "--snapshot-on",
    "when",
    metavar="WHEN",
    help="When to write a snapshot: guest (it asks), exit:N, insns:N (not on KVM), serial:REGEX.",
)
@click.option("-o", "--output", "file", metavar="FILE", help="The snapshot file to write.")
@click.option(
    "--then",
    type=click.Choice(["run", "stop"]),
    default="run",
    show_default=True,
    help="What to do behind the snapshot.",
)
@json_option
def command(
    serial: str,
    trace: str | None,
    record: str | None,
    count_insns: bool,
    as_json: bool,
    cheat: bool,
    when: str | None,
    file: str | None,
    then: str,
    gdb_default: bool,
    gdb: str | None,
    freeze: bool,
    reverse: bool,
    gdb_remote: bool,
    **options: Any,
) -> int:
    """Run GUEST (a name of `vmmsim guests`) or FILE: an ELF, a flat binary, or a snapshot, which goes on.

    A built-in name is the built-in guest; write ./NAME for a file of that name. The guest's
    characters are on stdout and come from stdin; on a terminal, Ctrl-a x stops it.

    With --json stdout has one object instead, with the output in base64.
    """  # fmt: skip
    taker = Taker.of(when, file, then)
    choices = Choices(**options, count_insns=count_insns or taker.insns > 0)
    limits = budgets(choices)
    debugging = Debugging.of(gdb_default, gdb, freeze, reverse, gdb_remote, limits)
    target = resolve(choices)
    if cheat and target.cheat is None:
        raise UsageError(
            f"'{target.name}' says nothing of how it is lost, so nobody can cheat",
            hint="a built-in guest has [cheat] in its guest.toml, as guess does; see guests/README.md",
        )
    if debugging is not None:
        debugging.settle(choices, target)
    stop = _Stop()
    with contextlib.ExitStack() as stack:
        port = _open_port(choices, target, serial, as_json, stop)
        stack.callback(port.close)
        source = port.source if record is None else recording_source(record, port.source)
        machine = stack.enter_context(open_machine(choices, target, source=source, sink=port.sink))
        stop.machine = machine
        if port.path is not None:
            say(f"the guest's serial port is {port.path}")
        server = None if debugging is None else stack.enter_context(debugging.open(choices.quiet))
        finish = stack.enter_context(_tracing(machine, target, trace))
        taker.arm(machine)
        if cheat and target.cheat is not None:
            stack.callback(_cheat(machine, target.cheat))
        keep = start_recording(machine, target, record)
        end: Exit | DeviceError | None = None
        try:
            with _terminal(serial, choices):
                if debugging is None or server is None:
                    end = _run(lambda: taker.run(machine, limits))
                else:
                    serve = debugging.serve
                    end = _run(lambda: serve(server, machine, lambda: stop.asked))
        finally:
            # Also when stdout is gone or a signal ends it: the file says how far it came.
            finish(end)
            keep(end)
        taker.say_missing()
        result = taker.judge(end) or _judge(machine, end, stop, choices)
        if as_json:
            _print_json(machine, target, end, result)
        return result.code


class _Stop:
    """Ctrl-a x: remembered, and passed to the machine once there is one."""

    def __init__(self) -> None:
        self.asked = False
        self.machine: Machine | None = None

    def __call__(self) -> None:
        self.asked = True
        if self.machine is not None:
            self.machine.cancel()


def _keys(stop: _Stop) -> Callable[[bytes], bytes]:
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


def _open_port(choices: Choices, target: Target, serial: str, as_json: bool, stop: _Stop) -> Port:
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
def _terminal(serial: str, choices: Choices) -> Iterator[None]:
    """The terminal, if the guest's input is typed there, gives each key at once."""
    from ..terminal import BANNER, RawTerminal

    typed = choices.stdin == "-" or (choices.stdin is None and (serial == "stdio" or serial[:5] == "file:"))
    if not typed:
        yield
        return
    with RawTerminal(signals=choices.machine != "pc") as terminal:
        if terminal.active and not choices.quiet:
            note(BANNER)
        yield


@contextlib.contextmanager
def _tracing(
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
            trying(writer.end, exit, detail=_detail(end), rip=machine.vcpu.registers().rip)

        yield finish


def _cheat(machine: Machine, cheat: Cheat) -> Callable[[], None]:
    from ..snapshot.cheat import TimeMachine

    def told(times: int) -> None:
        end_line(machine.output)
        say(f"that game was lost: back in time to before it ({times})")

    return TimeMachine(machine, begin=cheat.begin, lost=cheat.lost, on_back=told).close


def _run(run: Callable[[], Exit | DeviceError]) -> Exit | DeviceError:
    try:
        return run()
    except KeyboardInterrupt:
        return Cancelled()
    except DeviceError as error:
        return error


def _detail(end: Exit | DeviceError | None) -> str:
    if end is None:
        return "the run was cut short"
    return end.describe() if isinstance(end, Exit) else end.message


def _judge(machine: Machine, end: Exit | DeviceError, stop: _Stop, choices: Choices) -> Outcome:
    """Say on stderr how it ended, where that was not as it should be."""
    result = outcome(end) if isinstance(end, Exit) else Outcome(end.exit_code, abnormal=True)
    if choices.kernel is not None:
        result = after_panic(result, machine.output.data)
    end_line(machine.output)
    if isinstance(end, Cancelled):
        if stop.asked:
            say("stopped by Ctrl-a x")
            return result
        # A guest is most often interrupted because it hangs: show where.
        result = Outcome(result.code, abnormal=True, note="stopped by Ctrl-C")
    if result.abnormal:
        from ..postmortem import postmortem

        note(postmortem(machine, end))
    if result.note:
        say(result.note)
    return result


def _print_json(machine: Machine, target: Target, end: Exit | DeviceError, result: Outcome) -> None:
    import msgspec

    report = {
        "guest": target.name,
        "backend": machine.backend.name,
        "provenance": machine.backend.provenance,
        "reason": machine.backend_choice,
        "exit": end.kind if isinstance(end, Exit) else "device_error",
        "detail": _detail(end),
        "exit_code": result.code,
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
