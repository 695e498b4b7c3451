"""MachineConfig: one value that describes a machine. The command line only builds this."""

from __future__ import annotations

from functools import cache

import msgspec

from . import layout
from .errors import UsageError
from .memory import PAGE_SIZE, format_size

__all__ = ["MachineConfig"]


class MachineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a machine is made of.

    `memory` is the size of RAM in bytes: the address where it ends (holes are inside), but
    what is more than 3 GiB is from 4 GiB on (`vmmsim.models.ram`),
    `model` names the set of devices, `extra_devices` adds to it, `without` leaves devices
    out. `seed` makes the random devices repeat; None takes a fresh one. `count_insns`
    keeps the count of retired instructions. `clock` is the time that devices see: host,
    insns or exits (vmmsim.clock). `cpus` is the number of vCPUs. `watchdog_seconds`: see `VmOptions`. Raises
    UsageError for a field of another type or a memory that cannot be.
    """

    memory: int = layout.DEFAULT_MEMORY
    model: str = "bare"
    extra_devices: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    seed: int | None = None
    count_insns: bool = False
    watchdog_seconds: float | None = 5.0
    isa_debug_exit: bool = False
    clock: str = "host"
    cpus: int = 1

    def __post_init__(self) -> None:
        self._check_types()
        if self.clock not in ("host", "insns", "exits"):
            raise UsageError(f"there is no clock '{self.clock}'", hint="clocks are: host, insns, exits")
        if not 1 <= self.cpus <= layout.MAX_CPUS:
            raise UsageError(
                f"a machine with {self.cpus} vCPUs", hint=f"give 1 to {layout.MAX_CPUS}, for example --cpus 2"
            )
        if self.memory <= 0:
            raise UsageError("a machine with no memory", hint="give at least 4K, for example -m 64M")
        if self.memory % PAGE_SIZE:
            raise UsageError(
                f"a memory of {self.memory} bytes is not a multiple of 4 KiB",
                hint=f"use {(self.memory // PAGE_SIZE + 1) * PAGE_SIZE >> 10} KiB",
            )
        if self.memory > layout.MAX_MEMORY:
            raise UsageError(
                f"a memory of {format_size(self.memory)} is more than vmmsim gives to a guest",
                hint=f"use at most {format_size(layout.MAX_MEMORY)}",
            )

    def _check_types(self) -> None:
        for field in _fields(type(self)):
            value = getattr(self, field.name)
            name, wanted = field.name, _TYPES[field.type]
            try:
                msgspec.convert(value, field.type, strict=True)
            except msgspec.ValidationError:
                raise UsageError(
                    f"{name}={value!r} is {_a(type(value).__name__)}; {name} is {wanted}",
                    hint=_remedy(name, value),
                ) from None


@cache
def _fields(kind: type[MachineConfig]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """msgspec makes them anew each time, from source text."""
    return msgspec.structs.fields(kind)


#: The types of the fields, in words.
_TYPES = {
    int: "an int",
    str: "a str",
    bool: "True or False",
    tuple[str, ...]: "a tuple of str",
    int | None: "an int or None",
    float | None: "a number or None",
}


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _remedy(name: str, value: object) -> str:
    if name == "memory":
        return "give bytes, for example 64 << 20, or parse_size('64M') of vmmsim.memory"
    if name in ("extra_devices", "without"):
        names = value if isinstance(value, str) else "uart"
        return f"write {name}=({names!r},)"
    if name == "seed":
        return "give a whole number, or None for a fresh one"
    if name == "watchdog_seconds":
        return "give seconds, or None for no watchdog"
    return "give it as vmmsim.config.MachineConfig has it"
