"""`vmmsim diff`: two sides run the same, and the first difference between them."""

from __future__ import annotations

import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from .. import layout
from ..errors import BackendUnavailable, UsageError
from ..memory import parse_size
from .common import Choices, json_option, machine_config, parse_seconds, resolve
from .output import fancy, out, say
from .written import check_writable, write_file

if TYPE_CHECKING:
    from ..diff.report import Report
    from ..diff.sides import Side, Workload

__all__ = ["command"]

_DIFFER, _SPENT, _CTRL_C = 122, 124, 130
#: Seconds between two lines of progress on a terminal.
_PROGRESS_SECONDS = 1.0

_STYLES = {"head": "bold", "part": "bold cyan", "a": "blue", "b": "red", "here": "bold yellow", "note": "dim"}


@click.command("diff")
@click.argument("guest", metavar="[GUEST|FILE|SNAPSHOT]", required=False, default="")
@click.option("--a", "a", default="kvm", show_default=True, metavar="BACKEND", help="One side's CPU.")
@click.option(
    "--b",
    "b",
    default="unicorn",
    show_default=True,
    metavar="BACKEND",
    help="The other's: kvm, unicorn or unicorn-portable; it may be the same.",
)
@click.option("--a-device", multiple=True, metavar="NAME=MODULE:CLASS", help="Another class for a device.")
@click.option("--b-device", multiple=True, metavar="NAME=MODULE:CLASS", help="The same for side b.")
@click.option("--a-set", multiple=True, metavar="FIELD=VALUE", help="Another value of MachineConfig.")
@click.option("--b-set", multiple=True, metavar="FIELD=VALUE", help="The same for side b.")
@click.option("--step", is_flag=True, help="Find the first instruction that differs, too.")
@click.option("--html", "html_file", metavar="FILE", help="Write the report to FILE as a page.")
@click.option("--explore", "explore_file", metavar="FILE", help="Write both runs to FILE as a page.")
@click.option("--only-available", is_flag=True, help="Run one side alone where the other cannot run.")
@click.option("--max-exits", type=click.IntRange(min=1), metavar="N", help="Compare N exits at most.")
@click.option("--timeout", metavar="TIME", help="Stop after this time: 10, 1.5s, 200ms, 2m.")
@click.option("--memory", "-m", metavar="SIZE", help="Size of RAM: 64M, 1G; a bare number is MiB. [64M]")
@click.option("--machine", "-M", "model", metavar="bare|pc", help="Which devices there are.")
@click.option("--cpus", type=click.IntRange(1, layout.MAX_CPUS), metavar="N", help="Number of vCPUs.")
@click.option("--without", multiple=True, metavar="NAME", help="Leave a device out.")
@click.option("--device", "extra_devices", multiple=True, metavar="NAME", help="Add a device.")
@click.option("--kernel", metavar="FILE", help="A kernel, as for run.")
@click.option("--initrd", metavar="FILE", help="Its initial RAM disk.")
@click.option("--append", default="", metavar="TEXT", help="Its command line.")
@click.option("--bios", metavar="FILE", help="Firmware, as for run.")
@click.option("--load", metavar="ADDR", help="Where a flat binary goes. [0x7c00]")
@click.option("--mode", metavar="MODE", help="State at the start: real, reset, p16, p32, l64, l64u.")
@click.option("--entry", metavar="ADDR|SYMBOL", help="First instruction.")
@click.option(
    "--stdin",
    default="example",
    show_default=True,
    metavar="FILE|-|none|example",
    help="The input that both sides get; - reads stdin to its end.",
)
@click.option("--seed", type=int, metavar="N", help="Of the random devices, the same on both. [1]")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@json_option
def command(
    a: str,
    b: str,
    a_device: tuple[str, ...],
    b_device: tuple[str, ...],
    a_set: tuple[str, ...],
    b_set: tuple[str, ...],
    step: bool,
    html_file: str | None,
    explore_file: str | None,
    only_available: bool,
    timeout: str | None,
    max_exits: int | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Run GUEST, FILE or a SNAPSHOT on two sides and find the first difference.

    Both have the clock of exits and the same input. Exits are compared as they are made, then
    registers, memory, devices and what was printed. Exit code 0: the same; 122: not.

    \b
    vmmsim diff guess
    vmmsim diff serial-echo --a unicorn --b unicorn --b-device serial=mymod:MySerial
    """
    from ..diff.session import diff

    sides = (_side(a, a_device, a_set, "--a"), _side(b, b_device, b_set, "--b"))
    if explore_file is not None:
        check_writable(explore_file, "--explore")
    choices = Choices(quiet=True, **options)
    workload = _workload(choices)
    progress = _Progress(not quiet and sys.stderr is not None and sys.stderr.isatty())
    try:
        report = diff(
            workload,
            *sides,
            limit=max_exits,
            timeout=None if timeout is None else parse_seconds(timeout),
            step=step,
            only_available=only_available,
            command=_again(step),
            progress=progress,
        )
    except KeyboardInterrupt:
        say(f"stopped by Ctrl-C; {progress.exits} exits were the same until there")
        return _CTRL_C
    except BackendUnavailable as error:
        error.hint = f"{error.hint}; --only-available runs the other side alone"
        raise
    if html_file is not None:
        _write_html(report, html_file)
    if as_json:
        out(report.json())
    else:
        _show(report)
    if any(side.missing for side in (report.a, report.b)):
        return 0
    if explore_file is not None:
        _explore(workload, sides, report, explore_file)
    return {"same": 0, "diverged": _DIFFER}.get(report.verdict, _stopped(report))


def _stopped(report: Report) -> int:
    """A limit that the user has set is no failure; time that is spent is."""
    return _SPENT if any("time" in note for note in report.notes) else 0


class _Progress:
    """How many exits were the same, told now and then."""

    def __init__(self, shown: bool) -> None:
        self.exits = 0
        self._shown = shown
        self._next = time.perf_counter() + _PROGRESS_SECONDS

    def __call__(self, exits: int) -> None:
        self.exits = exits
        if self._shown and time.perf_counter() >= self._next:
            self._next = time.perf_counter() + _PROGRESS_SECONDS
            say(f"{exits} exits are the same so far")


def _side(backend: str, devices: tuple[str, ...], fields: tuple[str, ...], option: str) -> Side:
    from ..diff.sides import Side

    return Side(
        backend=backend,
        devices=dict(_pair(text, f"{option}-device", "serial=mymod:MySerial") for text in devices),
        settings=dict(_pair(text, f"{option}-set", "memory=16M") for text in fields),
    )


def _pair(text: str, option: str, example: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise UsageError(f"{option} {text}", hint=f"write {option} {example}")
    return name, value


def _workload(choices: Choices) -> Workload:
    from ..diff.sides import Workload

    snapshot = _snapshot(choices)
    if snapshot is not None:
        _check_alone(choices)
        return Workload(
            name=choices.guest, config=snapshot.config, snapshot=snapshot, input=_input(choices, None)
        )
    target = resolve(choices)
    memory = max(layout.DEFAULT_MEMORY, target.memory)
    if choices.memory is not None:
        memory = parse_size(choices.memory)
    config = machine_config(choices, memory, target.machine)
    config = msgspec.structs.replace(config, clock="exits")
    return Workload(
        name=target.name, config=config, image=target.image, input=_input(choices, target.example)
    )


def _snapshot(choices: Choices) -> Any:
    """The snapshot, if GUEST is the file of one."""
    from .. import guests

    name = choices.guest
    if not name or name in guests.names():
        return None
    from ..snapshot.container import load
    from ..snapshot.format import MAGIC
    from ..snapshot.pack import PACK_MAGIC

    try:
        with open(name, "rb") as file:
            head = file.read(4096)
    except (OSError, ValueError):
        return None  # said better where images are loaded
    if MAGIC not in head and PACK_MAGIC not in head:
        return None
    return load(name)


def _check_alone(choices: Choices) -> None:
    given = {
        "--kernel": choices.kernel, "--bios": choices.bios, "--load": choices.load, "--mode": choices.mode,
        "--entry": choices.entry, "--memory": choices.memory, "--machine": choices.model,
        "--cpus": choices.cpus, "--without": choices.without, "--device": choices.extra_devices,
    }  # fmt: skip
    for option, value in given.items():
        if value:
            raise UsageError(
                f"{option} with a snapshot", hint="a snapshot says itself what its machine is: leave it out"
            )


def _input(choices: Choices, example: bytes | None) -> bytes:
    from ..loaders import read_file

    if choices.stdin in (None, "example"):
        return example or b""
    if choices.stdin == "none":
        return b""
    if choices.stdin == "-":
        return sys.stdin.buffer.read() if sys.stdin is not None else b""
    return read_file(choices.stdin or "", "input")


def _again(step: bool) -> str:
    arguments = [argument for argument in sys.argv[1:] if argument not in ("-q", "--quiet", "--json")]
    if not step:
        arguments.append("--step")
    return shlex.join(["vmmsim", *arguments])


def _write_html(report: Report, path: str) -> None:
    from ..diff.html import html

    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(html(report))
    except OSError as error:
        raise UsageError(
            f"the report '{path}' cannot be written: {error.strerror}", hint="choose another file for --html"
        ) from error


def _explore(workload: Workload, sides: tuple[Side, Side], report: Report, path: str) -> None:
    """Both runs on one page, up to a little behind the first difference."""
    from ..diff.explore import explored
    from ..explore import page

    a, b = explored(workload, *sides, report.exits)
    write_file(path, [page(a, b)])
    say(f"{path}: both runs, side by side")


def _show(report: Report) -> None:
    if not fancy():
        out(report.text())
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for kind, text in report.lines():
        console.print(Text(text, style=_STYLES.get(kind, "")), soft_wrap=True)
