"""A snapshot file in the place of a guest: `vmmsim run FILE`, `vmmsim exits FILE`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..memory import format_size, parse_size

if TYPE_CHECKING:
    from ..config import MachineConfig
    from ..devices.base import CharSink, CharSource
    from ..machine import Machine
    from ..snapshot.values import Snapshot
    from .common import Choices, Target

__all__ = ["is_snapshot", "resume", "snapshot_target"]

_FIRST = b"vmmsim-snapshot "
_PACKED = b"vmmsim-snapshot-pack "


def is_snapshot(path: str) -> bool:
    """Whether the file begins as every version's snapshots do. UsageError for a packed one."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            head = file.read(len(_PACKED))
    except (OSError, ValueError):
        return False
    if head == _PACKED:
        raise UsageError(
            f"'{path}' is a packed snapshot", hint=f"vmmsim snapshot unpack {path} -o FILE, and run that"
        )
    return head.startswith(_FIRST)


def snapshot_target(choices: Choices) -> Target:
    """The machine in a snapshot file. Raises SnapshotError, UsageError for options that contradict it."""
    from ..snapshot.container import load
    from .common import Target

    snapshot = load(choices.guest)
    _check(choices, snapshot.config)
    return Target(os.path.basename(choices.guest), None, False, snapshot=snapshot)


def _check(choices: Choices, config: MachineConfig) -> None:
    for option, given in (("--load", choices.load), ("--mode", choices.mode), ("--entry", choices.entry)):
        if given is not None:
            raise UsageError(
                f"{option} with a snapshot, which goes on where it was", hint=f"leave {option} away"
            )
    wanted: list[tuple[str, Any, Any]] = [
        ("--memory", choices.memory and parse_size(choices.memory), config.memory),
        ("--machine", choices.model, config.model),
        ("--cpus", choices.cpus, config.cpus),
        ("--clock", choices.clock, config.clock),
        ("--without", choices.without and sorted(choices.without), sorted(config.without)),
        ("--device", choices.extra_devices and sorted(choices.extra_devices), sorted(config.extra_devices)),
        ("--isa-debug-exit", choices.isa_debug_exit or None, config.isa_debug_exit),
    ]
    for option, given, had in wanted:
        if given and given != had:
            raise UsageError(
                f"{option} contradicts the snapshot, whose machine has {_text(option, had)}",
                hint=f"leave {option} away: a snapshot brings its machine with it",
            )


def _text(option: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if isinstance(value, bool):
        return "it not"  # it can only be given, not taken away
    return format_size(value) if option == "--memory" else str(value)


def resume(
    choices: Choices, snapshot: Snapshot, *, source: CharSource | None, sink: CharSink | None
) -> Machine:
    """The machine of the snapshot, on the backend of the options; `source` has what is typed next."""
    from ..machine import Machine
    from .common import say_backend

    machine = Machine.from_snapshot(
        snapshot,
        backend=choices.backend,
        source=source,
        sink=sink,
        rewind=False,
        count_insns=choices.count_insns or choices.max_insns is not None,
    )
    if choices.seed is not None:
        machine.random.seed(choices.seed)
    if not choices.quiet:
        say_backend(machine)
    return machine
