"""MachineConfig: one value that describes a machine. The command line only builds this."""

from __future__ import annotations

import msgspec

from . import layout
from .errors import UsageError
from .memory import PAGE_SIZE, format_size

__all__ = ["MachineConfig"]


class MachineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a machine is made of.

    `memory` is the size of RAM in bytes (the address where it ends: holes are inside),
    `model` names the set of devices, `extra_devices` adds to it, `without` leaves devices
    out. `seed` makes the random devices repeat; None takes a fresh one. `count_insns`
    keeps the count of retired instructions. `watchdog_seconds`: see `VmOptions`.
    """

    memory: int = layout.DEFAULT_MEMORY
    model: str = "bare"
    extra_devices: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    seed: int | None = None
    count_insns: bool = False
    watchdog_seconds: float | None = 5.0
    isa_debug_exit: bool = False

    def __post_init__(self) -> None:
        if self.memory <= 0:
            raise UsageError("a machine with no memory", hint="give at least 4K, for example -m 64M")
        if self.memory % PAGE_SIZE:
            raise UsageError(
                f"a memory of {self.memory} bytes is not a multiple of 4 KiB",
                hint=f"use {format_size(self.memory - self.memory % PAGE_SIZE + PAGE_SIZE)}",
            )
        if self.memory > layout.MAX_MEMORY:
            raise UsageError(
                f"a memory of {format_size(self.memory)} is more than vmmsim gives to a guest",
                hint=f"use at most {format_size(layout.MAX_MEMORY)}",
            )
