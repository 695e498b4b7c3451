"""`assert_same_behaviour`: two sides make the same of a guest, or the report says where not."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import MachineConfig
from ..diff.session import diff
from ..diff.sides import Side, Workload
from ..errors import BackendUnavailable, UsageError, VmmsimError
from ..exits import Access
from ..loaders import LoadedImage, load_file, load_flat
from ..snapshot.values import Snapshot
from .artifacts import keep_side
from .script import script_image
from .slow import time_limit

__all__ = ["assert_same_behaviour", "workload"]

Guest = str | Path | bytes | LoadedImage | Snapshot | Sequence[Access]


def assert_same_behaviour(
    guest: Guest,
    a: str | Side = "kvm",
    b: str | Side = "unicorn",
    *,
    input: bytes | None = None,
    step: bool = True,
    max_exits: int | None = None,
    timeout: float | None = 60.0,
    **fields: Any,
) -> None:
    """Fail (AssertionError) unless `a` and `b` make the same exits, registers, memory, device states
    and output of `guest`; the message is the report of `vmmsim diff`.

    `guest`: the name of a built-in guest, a Path or a name with a slash for an image, bytes of
    real-mode code, a LoadedImage, a Snapshot, or a device script: a list of accesses, such as
    `[PortWrite(0x3F8, 1, 0x41), PortRead(0x3FD, 1)]` (vmmsim.exits). `a` and `b`: names of
    backends (kvm, unicorn, unicorn-portable), or a `Side`. `input` is what is typed, for a built-in
    guest its example unless told. `fields` are those of MachineConfig. With `step` the first
    instruction that differs is looked for. `timeout` is in seconds, times VMMSIM_SLOW; None is no limit.
    When it fails, the trace and a snapshot of each side are kept as files, which the message names.
    Raises UsageError; BackendUnavailable where there is no such CPU, which under pytest skips the test,
    or fails it by --vmm-require.
    """
    __tracebackhide__ = True
    sides = tuple(Side(backend=side) if isinstance(side, str) else side for side in (a, b))
    load = workload(guest, input=input, **fields)
    try:
        seconds = None if timeout is None else time_limit(timeout)
        report = diff(load, *sides, limit=max_exits, timeout=seconds, step=step, command=_command())
    except BackendUnavailable as error:
        plugin = _plugin()
        if plugin is not None:
            plugin.lacks(error.backend, error.reason)
        raise
    if report.same or (report.verdict == "stopped" and max_exits is not None and report.exits >= max_exits):
        return
    kept = _keep(load, sides, (report.exit or report.exits) or 1)
    files = "".join(f"\n  {path}" for path in kept)
    raise AssertionError(report.text() + (f"\nkept{files}" if kept else ""))


def workload(guest: Guest, *, input: bytes | None = None, **fields: Any) -> Workload:
    """What both sides run, from any of the forms of `assert_same_behaviour`."""
    from .. import guests

    if isinstance(guest, Snapshot):
        if fields:
            raise UsageError("fields of MachineConfig with a snapshot", hint="a snapshot has its own machine")
        return Workload(name="snapshot", config=guest.config, snapshot=guest, input=input or b"")
    if isinstance(guest, str) and guest in guests.names():
        found = guests.load(guest)
        config = MachineConfig(**{**found.machine, "clock": "exits", **fields})
        return Workload(
            name=guest, config=config, image=found.image, input=found.input if input is None else input
        )
    if isinstance(guest, (str, Path)):
        image = load_file(str(guest))
    elif isinstance(guest, bytes):
        image = load_flat(guest, name="code")
    elif isinstance(guest, LoadedImage):
        image = guest
    else:
        image = script_image(guest)
    config = MachineConfig(**{"clock": "exits", **fields})
    return Workload(name=image.name, config=config, image=image, input=input or b"")


def _plugin() -> Any:
    """vmmsim.testing.plugin, if it runs a test."""
    plugin: Any = sys.modules.get("vmmsim.testing.plugin")
    return plugin if plugin is not None and plugin.running() else None


def _command() -> str:
    """How this test is run again, under pytest."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    return f"python -m pytest '{test}'" if test else ""


def _keep(load: Workload, sides: tuple[Side, ...], exits: int) -> list[Path]:
    plugin = _plugin()
    folder = plugin.folder() if plugin is not None else Path(tempfile.mkdtemp(prefix="vmmsim-"))
    kept: list[Path] = []
    for letter, side in zip("ab", sides, strict=True):
        name = re.sub(r"[^\w.-]+", "-", f"{load.name}-{letter}-{side.backend}")
        # What is kept helps; the report is what matters.
        try:
            kept += keep_side(load.open(side), folder / f"{name}.jsonl", load.name, exits)
        except (VmmsimError, OSError):
            continue
    return kept
