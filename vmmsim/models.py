"""Machine models: which devices a machine has, and where. Names are the command line's.

A model is a table of `DeviceSpec`; the machine builds what the table says and knows no
device by name. `vmmsim devices` prints the table.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from . import layout
from .bus import Device
from .errors import UsageError

if TYPE_CHECKING:
    from .config import MachineConfig

__all__ = ["DEVICES", "MODELS", "DeviceSpec", "Wiring", "holes", "names"]


class Wiring(msgspec.Struct):
    """What a machine gives to its devices: the resources of their construction."""

    source: Any  #: CharSource
    sink: Any  #: CharSink
    random: random.Random
    on_exit: Callable[[int], None]
    config: Any  #: MachineConfig


class DeviceSpec(msgspec.Struct, frozen=True):
    """One device of a model: `space` is port or mmio, `hole` the page range that RAM leaves
    free for it (start, length), or None."""

    name: str
    space: str
    start: int
    length: int
    about: str
    make: Callable[[Wiring], Device]
    hole: tuple[int, int] | None = None
    irq: int | None = None


def _char_in(w: Wiring) -> Device:
    from .devices.char_in import CharIn

    return CharIn(w.source)


def _random_letter(w: Wiring) -> Device:
    from .devices.random_letter import RandomLetter

    return RandomLetter(w.random)


def _char_out(w: Wiring) -> Device:
    from .devices.char_out import CharOut

    return CharOut(w.sink)


def _uart(w: Wiring) -> Device:
    from .devices.uart16550 import Uart16550

    return Uart16550(source=w.source, sink=w.sink)


def _debug_exit(w: Wiring) -> Device:
    from .devices.debug_exit import DebugExit

    return DebugExit(w.on_exit, compat=w.config.isa_debug_exit)


def _debug_console(w: Wiring) -> Device:
    from .devices.debug_console import DebugConsole

    return DebugConsole(w.sink)


def _scratch(w: Wiring) -> Device:
    from .devices.scratch import Scratch

    return Scratch(layout.SCRATCH_SIZE)


_TALK_HOLE = (layout.TALK_PAGE, layout.TALK_PAGE_SIZE)

#: Every device that vmmsim can build, by name.
DEVICES: dict[str, DeviceSpec] = {
    spec.name: spec
    for spec in (
        DeviceSpec(
            "char-in", "mmio", layout.CHAR_IN, 1, "a byte read is a character of the input; 0x04 at its end",
            _char_in, _TALK_HOLE,
        ),
        DeviceSpec(
            "random-letter", "mmio", layout.RANDOM_LETTER, 1, "a byte read is a random letter a-z",
            _random_letter, _TALK_HOLE,
        ),
        DeviceSpec(
            "char-out", "mmio", layout.CHAR_OUT, 1, "a byte written is printed", _char_out, _TALK_HOLE
        ),
        DeviceSpec(
            "uart", "port", layout.COM1_PORT, 8, "serial port COM1, a 16550A", _uart, irq=layout.COM1_IRQ
        ),
        DeviceSpec(
            "debug-exit", "port", layout.DEBUG_EXIT_PORT, 4,
            "a value written ends the machine with it as its code", _debug_exit,
        ),
        DeviceSpec(
            "debug-console", "port", layout.DEBUG_CONSOLE_PORT, 1, "a byte written is printed; reads 0xe9",
            _debug_console,
        ),
        DeviceSpec(
            "scratch", "mmio", layout.SCRATCH, layout.SCRATCH_SIZE,
            "8 KiB of registers of any width, for tests of access widths",
            _scratch, (layout.SCRATCH, layout.SCRATCH_SIZE),
        ),
    )
}  # fmt: skip

#: model -> names of its devices. `bare` is the talk's machine.
MODELS: dict[str, tuple[str, ...]] = {
    "bare": ("char-in", "random-letter", "char-out", "uart", "debug-exit", "debug-console"),
}


def names(config: MachineConfig) -> list[str]:
    """The devices of a configuration. UsageError for a model or device that does not exist."""
    if config.model not in MODELS:
        raise UsageError(
            f"there is no machine model '{config.model}'", hint="models are: " + ", ".join(MODELS)
        )
    for name in (*config.extra_devices, *config.without):
        if name not in DEVICES:
            raise UsageError(f"there is no device '{name}'", hint="devices are: " + ", ".join(DEVICES))
    wanted = dict.fromkeys((*MODELS[config.model], *config.extra_devices))
    return [name for name in wanted if name not in config.without]


def holes(config: MachineConfig) -> list[tuple[int, int]]:
    """The (start, length) ranges that RAM leaves free for the configuration's devices."""
    found = {DEVICES[name].hole for name in names(config)}
    return sorted(hole for hole in found if hole is not None)
