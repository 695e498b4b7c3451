"""`vmmsim migrate`: run a guest, and move it to a receiver while it runs."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ..budget import Budget, exits, insns, seconds
from ..errors import DeviceError, MigrationError, MigrationInDoubt, SnapshotError, UsageError
from ..exits import BudgetSpent, Cancelled, Exit
from .common import (
    Choices,
    guest_options,
    json_option,
    open_machine,
    parse_seconds,
    resolve,
)
from .moving import moving_options, progress_bar, shared_key
from .output import out, say
from .session import Stop, judge, open_serial, run_to_end, terminal

if TYPE_CHECKING:
    from ..machine import Machine
    from ..snapshot.migrate import Migrated, Report

__all__ = ["command"]

_HINT = "write exit:100, insns:5000, seconds:1.5 or serial:login:"


@click.command("migrate")
@guest_options
@click.option("--to", required=True, metavar="URL", help="The receiver: tcp://HOST:PORT or unix:PATH.")
@click.option(
    "--after",
    default=None,
    metavar="WHEN",
    help="Run it here first: exit:N, insns:N (not on KVM), seconds:S, serial:REGEX. [at once]",
)
@click.option("--stop", "still", is_flag=True, help="Stop it, then move it: it moves exactly where it is.")
@click.option(
    "--max-rounds",
    default=30,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Rounds of memory while it runs, before it is stopped for the rest.",
)
@click.option(
    "--pause",
    default="20ms",
    show_default=True,
    metavar="TIME",
    help="How long it may stand still, as a goal.",
)
@click.option("--keep", metavar="FILE", help="Save it to FILE if it is not known where it runs.")
@click.option(
    "--serial",
    default="stdio",
    show_default=True,
    metavar="stdio|none|file:PATH|pty",
    help="Where the guest's characters go while it is here.",
)
@moving_options
@json_option
def command(
    to: str,
    after: str | None,
    still: bool,
    max_rounds: int,
    pause: str,
    keep: str | None,
    serial: str,
    key_file: str | None,
    patience: str,
    as_json: bool,
    **options: Any,
) -> int:
    """Run GUEST, an image FILE or a snapshot FILE, and move it to `vmmsim receive` at URL.

    \b
    vmmsim receive unix:/tmp/here                      # in one terminal
    vmmsim migrate guess --to unix:/tmp/here --after exit:100   # in another

    It ends with code 0 when the machine runs there. When it comes to nothing, the guest runs on here, and the
    code is as run's; 125 when nobody knows where it runs.
    """  # fmt: skip
    from ..snapshot.migrate import migrate
    from ..snapshot.wire import Address

    key = shared_key(key_file)
    address = Address.parse(to)
    address.check_key(key)
    moment = _Moment(after)
    counted = moment.budget is not None and moment.budget.unit == "insns"
    choices = Choices(**options, count_insns=counted)
    timeout = None if choices.timeout is None else parse_seconds(choices.timeout)
    stop = Stop()
    with contextlib.ExitStack() as stack:
        target = resolve(choices)
        port = open_serial(choices, target, serial, as_json, stop)
        stack.callback(port.close)
        machine = stack.enter_context(open_machine(choices, target, source=port.source, sink=port.sink))
        stop.machine = machine
        moment.watch(machine)
        if port.path is not None:
            say(f"the guest's serial port is {port.path}")
        moved: Migrated | None = None
        end: Exit | DeviceError | None
        with terminal(serial, choices):
            try:
                end = _before(machine, moment, timeout, stop)
                if end is None:
                    with progress_bar(serial != "stdio" or still) as show:
                        moved = migrate(
                            machine,
                            address,
                            key=key,
                            live=not still,
                            pause=parse_seconds(pause),
                            max_rounds=max_rounds,
                            patience=parse_seconds(patience),
                            timeout=_left(machine, timeout),
                            cancelled=lambda: stop.asked,
                            progress=show,
                        )
                    end = moved.end
            except MigrationInDoubt as error:
                _keep(machine, keep)
                raise error
            except MigrationError as error:
                say(f"not moved: {error.message}" + (f" ({error.hint})" if error.hint else ""))
                say("the guest runs on here")
                left = _left(machine, timeout)
                limits = () if left is None else (seconds(left),)
                end = run_to_end(lambda: machine.run(budget=limits))
            except KeyboardInterrupt:
                end = Cancelled()
            except DeviceError as error:
                end = error
        if moved is not None and moved.report is not None:
            _tell(moved.report, str(address), as_json)
            return 0
        assert end is not None
        result = judge(machine, end, stop)
        if as_json:
            out(msgspec.json.encode({"moved": False, "to": str(address), "exit_code": result.code}))
        return result.code


class _Moment:
    """What `--after` means: `budget`, or `wanted` in what the guest prints; neither is at once."""

    def __init__(self, text: str | None) -> None:
        from ..snapshot.triggers import Trigger, parse_trigger, pattern

        self.budget: Budget | None = None
        self.wanted: re.Pattern[bytes] | None = None
        self.seen = False
        if text is None:
            return
        kind, _, rest = text.partition(":")
        if kind == "seconds":
            self.budget = seconds(parse_seconds(rest))
            return
        trigger = parse_trigger(text, hint=_HINT)
        match trigger:
            case Trigger("serial"):
                self.wanted = pattern(trigger.regex)
            case Trigger("guest"):
                raise UsageError("--after 'guest' is no moment to move at", hint=_HINT)
            case _:
                self.budget = (exits if trigger.kind == "exit" else insns)(trigger.count)

    def watch(self, machine: Machine) -> None:
        """End a run when `wanted` has been printed."""
        from ..snapshot.triggers import OutputWatch

        def found(name: str) -> None:
            if not self.seen:
                self.seen = True
                machine.request_stop(Cancelled())

        if self.wanted is not None:
            machine.observe(OutputWatch(machine, {"after": self.wanted}, found))


def _before(machine: Machine, moment: _Moment, timeout: float | None, stop: Stop) -> Exit | None:
    """Run up to the point where it is to move. None: it is there; else the end that came first."""
    limit = moment.budget
    if limit is None and moment.wanted is None:
        return None
    budgets = [limit] if limit is not None else []
    if timeout is not None and (limit is None or limit.unit != "seconds"):
        budgets.append(seconds(timeout))
    exit = machine.run(budget=tuple(budgets))
    if isinstance(exit, BudgetSpent) and limit is not None and exit.unit == limit.unit:
        return None
    if isinstance(exit, Cancelled) and moment.seen and not stop.asked:
        return None
    return exit


def _left(machine: Machine, timeout: float | None) -> float | None:
    return None if timeout is None else max(0.001, timeout - machine.seconds)


def _keep(machine: Machine, path: str | None) -> None:
    from ..snapshot.capture import capture
    from ..snapshot.container import save

    if path is None:
        return
    try:
        save(capture(machine, comment="it was given away in a migration that nobody confirmed"), path)
    except (UsageError, SnapshotError) as error:
        say(f"it cannot be saved to {path}: {error.message}")
        return
    say(f"the machine as it was given away is in {path}: run it only if it does not run there")


def _tell(report: Report, where: str, as_json: bool) -> None:
    fields = msgspec.structs.asdict(report)
    if as_json:
        out(
            msgspec.json.encode(
                {"moved": True, "to": where, **fields, "bytes_per_second": report.bytes_per_second}
            )
        )
    rounds = f"{report.rounds} rounds" if report.live else "stop and copy"
    say(
        f"moved to {where} ({report.backend}): {rounds}, {report.pages} pages, {report.bytes} bytes in "
        f"{report.seconds:.2f} s ({report.bytes_per_second / 1e6:.1f} MB/s)"
    )
    begin = f", and {report.begin_seconds * 1000:.1f} ms at the beginning" if report.live else ""
    say(f"the guest stood still for {report.pause_seconds * 1000:.1f} ms ({report.last_pages} pages){begin}")
