"""What the verbs that run a guest share: their options, and from options to a machine."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from .. import layout
from ..backends import REGISTRY
from ..budget import Budget, exits, insns, seconds
from ..config import MachineConfig
from ..errors import ImageNotFound, UsageError
from ..memory import format_size, parse_size
from .output import say
from .resume import is_snapshot, resume, snapshot_target

if TYPE_CHECKING:
    from ..devices.base import CharSink, CharSource
    from ..guests import Cheat
    from ..loaders import LoadedImage
    from ..machine import Machine
    from ..snapshot.values import Snapshot

__all__ = [
    "Choices",
    "Target",
    "budgets",
    "check_backend",
    "choose_input",
    "count_time",
    "guest_options",
    "json_option",
    "machine_config",
    "open_machine",
    "parse_address",
    "parse_seconds",
    "resolve",
    "say_backend",
]

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")

_OPTIONS: tuple[Callable[[F], F], ...] = (
    click.argument("guest", metavar="[GUEST|FILE]", required=False, default=""),
    click.option(
        "--backend", "-b", envvar="VMMSIM_BACKEND", default="auto", show_default=True, show_envvar=True,
        metavar="auto|kvm|unicorn", help="The CPU. auto takes KVM where it is usable, else Unicorn.",
    ),
    click.option(
        "--memory", "-m", metavar="SIZE", help="Size of RAM: 64M, 1G, 512KiB; a bare number is MiB. [64M]"
    ),
    click.option(
        "--machine", "-M", "model", metavar="bare|pc",
        help="Which devices there are: the talk's, or a PC's. "
        "[the guest's own; bare; pc with --kernel and --bios]",
    ),
    click.option(
        "--cpus", type=click.IntRange(1, layout.MAX_CPUS), metavar="N",
        help="Number of vCPUs; more than one needs the pc machine. [the guest's own; 1]",
    ),
    click.option("--without", multiple=True, metavar="NAME", help="Leave a device out."),
    click.option(
        "--clock", metavar="host|insns|exits",
        help="The time that devices see: real, or counted in instructions (not on KVM) or exits. "
        "[the guest's own; host]",
    ),
    click.option("--kernel", metavar="FILE", help="Boot a kernel: bzImage, ELF by PVH or Multiboot."),
    click.option("--initrd", metavar="FILE", help="Its initial RAM disk; for Multiboot: FILE ARGS,FILE2."),
    click.option("--append", default="", metavar="TEXT", help="Its command line."),
    click.option("--bios", metavar="FILE", help="Start firmware: a ROM image that ends at 4 GiB."),
    click.option("--load", metavar="ADDR", help="Where a flat binary goes (guest-physical). [0x7c00]"),
    click.option("--mode", metavar="MODE", help="State at the start: real, reset, p16, p32, l64, l64u."),
    click.option("--entry", metavar="ADDR|SYMBOL", help="First instruction: linear address or ELF symbol."),
    click.option(
        "--stdin", default=None, metavar="FILE|-|none|example",
        help="The guest's input; - is stdin, example the input that a built-in guest comes with. [-]",
    ),
    click.option("--timeout", metavar="TIME", help="Stop after this time: 10, 1.5s, 200ms, 2m."),
    click.option("--seed", type=int, metavar="N", help="Make the random devices repeat."),
    click.option("--device", "extra_devices", multiple=True, metavar="NAME", help="Add a device."),
    click.option("--isa-debug-exit", is_flag=True, help="QEMU's exit codes: value * 2 + 1 (mod 256)."),
    click.option("--quiet", "-q", is_flag=True, help="Do not say which backend was chosen."),
)  # fmt: skip


def guest_options(function: F) -> F:
    """The argument and the options of `run` and `exits`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


class Choices(msgspec.Struct, kw_only=True):
    """The values of `guest_options`, as the user gave them."""

    guest: str = ""
    model: str | None = None
    without: tuple[str, ...] = ()
    clock: str | None = None
    cpus: int | None = None
    kernel: str | None = None
    initrd: str | None = None
    append: str = ""
    bios: str | None = None
    backend: str = "auto"
    memory: str | None = None
    load: str | None = None
    mode: str | None = None
    entry: str | None = None
    stdin: str | None = None
    timeout: str | None = None
    max_insns: int | None = None
    max_exits: int | None = None
    seed: int | None = None
    extra_devices: tuple[str, ...] = ()
    isa_debug_exit: bool = False
    count_insns: bool = False
    quiet: bool = False

    @property
    def machine(self) -> str:
        """The machine model: what `--machine` says, or what fits the guest."""
        return self.model or ("bare" if self.kernel is None and self.bios is None else "pc")


class Target(msgspec.Struct):
    """What to run: the image, and what a built-in guest's manifest adds (None for files)."""

    name: str
    image: LoadedImage | None
    builtin: bool
    machine: dict[str, Any] = {}
    example: bytes | None = None
    #: What a snapshot file has; the image is None then, and the other way round.
    snapshot: Snapshot | None = None
    cheat: Cheat | None = None

    @property
    def memory(self) -> int:
        """The least RAM in bytes that a built-in guest says it needs; 0 for a file."""
        return int(self.machine.get("memory", 0))


def parse_address(text: str, what: str) -> int:
    """A number as Python writes it: 0x7c00, 31744, 0o17. Raises UsageError."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise UsageError(f"{what}: '{text}' is not an address", hint="write 0x7c00 or 31744")
    return value


def parse_seconds(text: str) -> float:
    """Seconds from `10`, `1.5s`, `200ms`, `2m`. Raises UsageError."""
    body, factor = text.strip().lower(), 1.0
    for suffix, scale in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)):
        if body.endswith(suffix):
            body, factor = body.removesuffix(suffix), scale
            break
    try:
        value = float(body) * factor
    except ValueError:
        value = 0.0
    # threading's limit for a timer is that of its lock, some 292 years.
    if not 0 < value < 1e9:
        raise UsageError(f"'{text}' is not a time", hint="write 10, 1.5s, 200ms or 2m")
    return value


def check_backend(name: str) -> None:
    """Raises UsageError, with the nearest name, unless `name` is auto or registered."""
    if name == "auto" or name in REGISTRY:
        return
    known = ["auto", *REGISTRY]
    near = difflib.get_close_matches(name, known, 1)
    raise UsageError(
        f"there is no backend '{name}'",
        hint=f"did you mean '{near[0]}'?" if near else "backends are: " + ", ".join(known),
    )


def resolve(choices: Choices) -> Target:
    """Find the guest: a built-in name is the guest, everything else a file.

    A name with a slash is always a file, so `./loop` is the file and `loop` the guest,
    whatever lies in the current directory. Raises ImageNotFound, ImageError, UsageError.
    """
    from .. import guests

    name = choices.guest
    check_backend(choices.backend)  # before any file is opened for writing
    if choices.kernel is not None or choices.bios is not None:
        from . import kernel

        return kernel.bios_target(choices) if choices.kernel is None else kernel.kernel_target(choices)
    for option, value in (("--initrd", choices.initrd), ("--append", choices.append)):
        if value:
            raise UsageError(f"{option} without a kernel", hint="give it with --kernel FILE")
    if not name:
        raise UsageError(
            "missing argument: nothing to run",
            hint="name a guest, a file, or --kernel FILE; see: vmmsim run --help",
        )
    load = parse_address(choices.load, "--load") if choices.load is not None else None
    if name in guests.names():
        if os.path.isfile(name) and not choices.quiet:
            say(f"'{name}' is the built-in guest; for the file write ./{name}")
        guest = guests.load(name)
        if load is not None or choices.mode is not None:
            raise UsageError(
                f"'{name}' is a built-in guest, which says itself where it goes and in which mode",
                hint="--load and --mode are for files",
            )
        target = Target(
            name,
            guest.image,
            True,
            machine=guest.machine,
            example=guest.input,
            cheat=guest.manifest.cheat,
        )
    elif is_snapshot(name):
        return snapshot_target(choices)
    else:
        from ..loaders import load_file

        try:
            image = load_file(name, load_address=load, mode=_check_mode(choices.mode))
        except ImageNotFound as error:
            near = difflib.get_close_matches(name, guests.names(), 1)
            if not near:
                raise
            raise ImageNotFound(
                f"there is no guest and no image '{name}'", hint=f"did you mean '{near[0]}'?"
            ) from error
        target = Target(name, image, False)
    if choices.entry is not None:
        assert target.image is not None
        target.image.entry = _entry(target.image, choices.entry)
    return target


def _check_mode(mode: str | None) -> str | None:
    from ..cpu.modes import MODES

    if mode is not None and mode not in MODES:
        near = difflib.get_close_matches(mode, MODES, 1)
        raise UsageError(
            f"there is no mode '{mode}'",
            hint=f"did you mean '{near[0]}'?" if near else "modes are: " + ", ".join(MODES),
        )
    return mode


def _entry(image: LoadedImage, text: str) -> int:
    if text in image.symbols:
        return image.symbols[text]
    if text[:1].isdigit():
        return parse_address(text, "--entry")
    near = difflib.get_close_matches(text, image.symbols, 1)
    raise UsageError(
        f"{image.name} has no symbol '{text}'",
        hint=f"did you mean '{near[0]}'?" if near else "give an address, or a symbol of an ELF file",
    )


def count_time(choices: Choices, target: Target) -> bool:
    """The guest is to run the same way each time: counted time, in instructions where this CPU counts
    them, if neither the user nor the guest has said which. Whether that was chosen here."""
    from ..backends import open_backend

    backend, _ = open_backend(choices.backend)
    counts = backend.capabilities.insn_budget
    backend.close()
    choices.count_insns = choices.count_insns or counts
    if choices.clock is not None or target.snapshot is not None:
        return False
    if target.machine.get("clock", "host") != "host":
        return False
    choices.clock = "insns" if counts else "exits"
    return True


def choose_input(
    choices: Choices, target: Target, filter: Callable[[bytes], bytes] | None = None
) -> CharSource | None:
    """The source that `--stdin` asks for; None when it was not given and the port decides."""
    from ..streams import BytesSource, open_source

    if choices.stdin is None:
        return None
    if choices.stdin == "example":
        if target.example is None:
            raise UsageError(
                f"'{target.name}' is a file, which comes with no input of its own",
                hint="--stdin example is for the built-in guests",
            )
        return BytesSource(target.example)
    return open_source(choices.stdin, filter)


def budgets(choices: Choices) -> tuple[Budget, ...]:
    """The limits given, each in its unit."""
    found = []
    if choices.timeout is not None:
        found.append(seconds(parse_seconds(choices.timeout)))
    if choices.max_insns is not None:
        found.append(insns(choices.max_insns))
    if choices.max_exits is not None:
        found.append(exits(choices.max_exits))
    return tuple(found)


def machine_config(choices: Choices, memory: int, guest: dict[str, Any] | None = None) -> MachineConfig:
    """What the options say of the machine, with `memory` bytes; `guest` has what a built-in guest
    wants where they say nothing."""
    fields: dict[str, Any] = {"model": choices.machine, **(guest or {})}
    given = {"model": choices.model, "clock": choices.clock, "cpus": choices.cpus}
    fields |= {name: value for name, value in given.items() if value is not None}
    fields |= {
        "memory": memory,
        "without": choices.without,
        "extra_devices": (*fields.get("extra_devices", ()), *choices.extra_devices),
        "seed": choices.seed,
        "count_insns": choices.count_insns or choices.max_insns is not None,
        "isa_debug_exit": choices.isa_debug_exit,
    }
    return MachineConfig(**fields)


def open_machine(
    choices: Choices, target: Target, *, source: CharSource | None, sink: CharSink | None
) -> Machine:
    """The machine that the options describe, with the image loaded. The caller closes it."""
    from ..machine import Machine

    if target.snapshot is not None:
        return resume(choices, target.snapshot, source=source, sink=sink)
    assert target.image is not None
    memory = max(layout.DEFAULT_MEMORY, target.memory)
    if choices.memory is not None:
        memory = parse_size(choices.memory)
        if 0 < memory < target.memory:
            raise UsageError(
                f"guest '{target.name}' needs a memory of {format_size(target.memory)}",
                hint=f"give it -m {-(-target.memory >> 10)}K, or leave -m away",
            )
    config = machine_config(choices, memory, target.machine)
    machine = Machine(config, backend=choices.backend, source=source, sink=sink)
    try:
        if not choices.quiet:
            say_backend(machine)
            for warning in target.image.warnings:
                say(f"warning: {warning}")
        machine.load(target.image)
    except BaseException:
        machine.close()
        raise
    return machine


def say_backend(machine: Machine) -> None:
    """Which CPU it is and why: a fallback is never silent."""
    say(f"backend {machine.backend_choice}")
