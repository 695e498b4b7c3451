"""`vmmsim receive`: wait for a machine that moves here, and run it to its end."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

import click

from ..budget import seconds
from ..errors import BackendUnavailable, DeviceError, MigrationError, UsageError
from ..exits import Exit
from ..memory import parse_size
from .common import Choices, Target, check_backend, json_option, parse_seconds, say_backend
from .moving import moving_options, progress_bar, shared_key
from .output import say
from .session import Stop, judge, open_serial, print_json, run_to_end, terminal, tracing

if TYPE_CHECKING:
    from ..snapshot.receive import Received
    from ..snapshot.wire import Listener
    from ..streams import Port

__all__ = ["command"]

#: Seconds between two looks whether waiting is still wanted.
_SLICE = 0.2


@click.command("receive")
@click.argument("url")
@click.option(
    "--backend",
    "-b",
    envvar="VMMSIM_BACKEND",
    default="auto",
    show_default=True,
    show_envvar=True,
    metavar="auto|kvm|unicorn",
    help="The CPU that runs it here.",
)
@click.option("--stdin", default=None, metavar="FILE|-|none", help="The guest's input from now on. [-]")
@click.option(
    "--serial",
    default="stdio",
    show_default=True,
    metavar="stdio|none|file:PATH|pty",
    help="Where the guest's characters go from now on.",
)
@click.option("--allow-remote", is_flag=True, help="Listen where other hosts can connect.")
@click.option("--once", is_flag=True, help="End, with code 125, when the first attempt comes to nothing.")
@click.option("--wait", metavar="TIME", help="End, with code 124, when nothing has come by then.")
@click.option("--max-memory", metavar="SIZE", help="Refuse a machine with more memory.")
@click.option("--timeout", metavar="TIME", help="Stop the guest when it has run here for this time.")
@click.option("--trace", metavar="FILE", help="Write each exit that it makes here to FILE as JSON Lines.")
@click.option("--quiet", "-q", is_flag=True, help="Do not say what is chosen and waited for.")
@moving_options
@json_option
def command(
    url: str,
    backend: str,
    stdin: str | None,
    serial: str,
    allow_remote: bool,
    once: bool,
    wait: str | None,
    max_memory: str | None,
    timeout: str | None,
    trace: str | None,
    quiet: bool,
    key_file: str | None,
    patience: str,
    as_json: bool,
) -> int:
    """Wait at URL (tcp://127.0.0.1:PORT or unix:PATH) for `vmmsim migrate`, then run what comes to its end.

    The guest's console is this terminal then. An attempt that comes to nothing is told, and the next one
    is waited for. Exit codes as for run.
    """  # fmt: skip
    from ..snapshot.wire import Address, Listener

    check_backend(backend)
    key = shared_key(key_file)
    address = Address.parse(url)
    address.check_key(key)
    most = None if max_memory is None else parse_size(max_memory)
    limits = () if timeout is None else (seconds(parse_seconds(timeout)),)
    deadline = None if wait is None else time.perf_counter() + parse_seconds(wait)
    stop = Stop()
    choices = Choices(guest="received", stdin=stdin, backend=backend, quiet=quiet)
    target = Target("received", None, False)
    if stdin == "example":
        raise UsageError("a machine that moves here comes with no input", hint="give --stdin FILE")
    with contextlib.ExitStack() as stack:
        port = open_serial(choices, target, serial, as_json, stop)
        stack.callback(port.close)
        if port.path is not None:
            say(f"the guest's serial port is {port.path}")
        listener = stack.enter_context(contextlib.closing(Listener(address, allow_remote=allow_remote)))
        if not quiet:
            say(f"waiting for a machine at {listener.address}")
        found = _wait(listener, port, key, backend, most, parse_seconds(patience), deadline, once)
        if found is None:
            say("nothing has come in time")
            return 124
        listener.close()
        machine = stack.enter_context(found.machine)
        stop.machine = machine
        if not quiet:
            say_backend(machine)
            _tell(found)
        choices.model = machine.config.model
        finish = stack.enter_context(tracing(machine, target, trace))
        end: Exit | DeviceError | None = None
        try:
            with terminal(serial, choices):
                end = run_to_end(lambda: machine.run(budget=limits))
        finally:
            finish(end)
        result = judge(machine, end, stop)
        if as_json:
            print_json(machine, target, end, result)
        return result.code


def _wait(
    listener: Listener,
    port: Port,
    key: bytes,
    backend: str,
    max_memory: int | None,
    patience: float,
    deadline: float | None,
    once: bool,
) -> Received | None:
    """The machine that came; None when none did in time."""
    from ..snapshot.receive import receive

    while deadline is None or time.perf_counter() < deadline:
        wire = listener.accept(patience, _SLICE)
        if wire is None:
            continue
        try:
            with progress_bar(sys.stderr is not None) as show:
                return receive(
                    wire, key=key, backend=backend, source=port.source, sink=port.sink,
                    max_memory=max_memory, patience=patience, progress=show,
                )  # fmt: skip
        except MigrationError as error:
            if isinstance(error.__cause__, BackendUnavailable):
                raise error.__cause__ from None
            if once:
                raise
            say(f"nothing came of it: {error.message}" + (f" ({error.hint})" if error.hint else ""))
    return None


def _tell(found: Received) -> None:
    say(
        f"received from {found.peer}: {found.rounds} rounds, {found.pages} pages, {found.bytes} bytes in "
        f"{found.seconds:.2f} s; its last part took {found.pause_seconds * 1000:.1f} ms here"
    )
