"""Machine models: which devices a machine has, and where. Names are the command line's.

A model is a table of `DeviceSpec`; the machine builds what the table says and knows no
device by name. `vmmsim devices` prints the table.
"""

from __future__ import annotations

import random
import time
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
    clock: Any  #: Clock
    devices: dict[str, Any]  #: those made so far, by name
    sink: Any  #: CharSink
    random: random.Random
    on_exit: Callable[[int], None]
    on_event: Callable[[str], None]  #: power_off or reset
    on_interrupt: Callable[[bool], None]  #: the interrupt controller's output
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
    #: Further ranges of the device: (port, length, which attribute of the device answers there).
    faces: tuple[tuple[int, int, str], ...] = ()
    #: The attribute of the device that answers at `start`, if it is not the device itself.
    face: str = ""
    #: `module:Class` of what its `state()` gives.
    state_type: str = ""
    #: Further state of the device: (attribute with a `state()` of its own, `module:Class` of that).
    #: A snapshot keeps it under `name.attribute`.
    parts: tuple[tuple[str, str], ...] = ()


def _line(w: Wiring, number: int) -> Any:
    """The interrupt controller's input `number`; a line to nowhere in a machine without one."""
    from .devices.base import NoIrq

    return w.devices["pic"].input(number) if "pic" in w.devices else NoIrq()


def _pic(w: Wiring) -> Any:
    from .devices.base import IrqLine
    from .devices.i8259 import I8259Pair

    return I8259Pair(IrqLine(w.on_interrupt))


def _pit(w: Wiring) -> Device:
    from .devices.i8254 import I8254

    return I8254(w.clock, _line(w, 0))


def _port61(w: Wiring) -> Device:
    from .devices.port61 import Port61

    if "pit" not in w.devices:
        raise UsageError("port61 without pit", hint="port 61h is a part of the timer: leave out both")
    return Port61(w.devices["pit"], w.clock)


def _rtc(w: Wiring) -> Device:
    from .devices.mc146818 import Mc146818

    epoch = int(time.time()) if w.config.clock == "host" else _EPOCH
    below = min(w.config.memory, 3 << 30)
    return Mc146818(w.clock, _line(w, layout.RTC_IRQ), epoch=epoch, memory_size=below)


def _kbc(w: Wiring) -> Any:
    from .devices.i8042 import AFTER_FIRMWARE, I8042
    from .devices.ps2_keyboard import Ps2Keyboard

    return I8042(
        _line(w, layout.KEYBOARD_IRQ),
        _line(w, layout.MOUSE_IRQ),
        on_reset=lambda: w.on_event("reset"),
        keyboard=Ps2Keyboard(),
        state=AFTER_FIRMWARE,
    )


def _port92(w: Wiring) -> Device:
    from .devices.port92 import Port92

    return Port92(lambda: w.on_event("reset"))


def _post_code(w: Wiring) -> Device:
    from .devices.post_code import PostCode

    return PostCode()


def _reset_control(w: Wiring) -> Device:
    from .devices.reset_control import ResetControl

    return ResetControl(lambda hard: w.on_event("reset"))


def _acpi_pm(w: Wiring) -> Device:
    from .devices.acpi_pm import AcpiPm

    return AcpiPm(w.clock, _line(w, layout.SCI_IRQ), on_power_off=lambda: w.on_event("power_off"))


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

    return Uart16550(source=w.source, sink=w.sink, irq=_line(w, layout.COM1_IRQ))


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
            state_type="vmmsim.devices.char_in:CharInState",
        ),
        DeviceSpec(
            "random-letter", "mmio", layout.RANDOM_LETTER, 1, "a byte read is a random letter a-z",
            _random_letter, _TALK_HOLE,
            state_type="vmmsim.devices.random_letter:RandomLetterState",
        ),
        DeviceSpec(
            "char-out", "mmio", layout.CHAR_OUT, 1, "a byte written is printed", _char_out, _TALK_HOLE,
            state_type="vmmsim.devices.char_out:CharOutState",
        ),
        DeviceSpec(
            "uart", "port", layout.COM1_PORT, 8, "serial port COM1, a 16550A", _uart, irq=layout.COM1_IRQ,
            state_type="vmmsim.devices.uart16550:UartState",
        ),
        DeviceSpec(
            "debug-exit", "port", layout.DEBUG_EXIT_PORT, 4,
            "a value written ends the machine with it as its code", _debug_exit,
            state_type="vmmsim.devices.debug_exit:DebugExitState",
        ),
        DeviceSpec(
            "debug-console", "port", layout.DEBUG_CONSOLE_PORT, 1, "a byte written is printed; reads 0xe9",
            _debug_console,
            state_type="vmmsim.devices.debug_console:DebugConsoleState",
        ),
        DeviceSpec(
            "scratch", "mmio", layout.SCRATCH, layout.SCRATCH_SIZE,
            "8 KiB of registers of any width, for tests of access widths",
            _scratch, (layout.SCRATCH, layout.SCRATCH_SIZE),
            state_type="vmmsim.devices.scratch:ScratchState",
        ),
        DeviceSpec(
            "pic", "port", layout.PIC_MASTER_PORT, 2, "interrupt controllers, a pair of 8259A", _pic,
            faces=((layout.PIC_SLAVE_PORT, 2, "slave"), (layout.ELCR_PORT, 2, "elcr")), face="master",
            state_type="vmmsim.devices.i8259:I8259PairState",
        ),
        DeviceSpec(
            "pit", "port", layout.PIT_PORT, 4, "timers, an 8254", _pit, irq=0,
            state_type="vmmsim.devices.i8254:I8254State",
        ),
        DeviceSpec(
            "port61", "port", layout.PORT_61, 1, "port 61h: the timer's gate, the speaker", _port61,
            state_type="vmmsim.devices.port61:Port61State",
        ),
        DeviceSpec(
            "rtc", "port", layout.RTC_PORT, 2, "clock and CMOS RAM, an MC146818A", _rtc, irq=layout.RTC_IRQ,
            state_type="vmmsim.devices.mc146818:Mc146818State",
        ),
        DeviceSpec(
            "kbc", "port", layout.KBC_DATA_PORT, 1, "keyboard controller, an 8042, with a keyboard", _kbc,
            irq=layout.KEYBOARD_IRQ, faces=((layout.KBC_COMMAND_PORT, 1, "command"),), face="data",
            state_type="vmmsim.devices.i8042:I8042State",
            parts=(("keyboard", "vmmsim.devices.ps2_keyboard:Ps2KeyboardState"),),
        ),
        DeviceSpec(
            "port92", "port", layout.PORT_92, 1, "port 92h: fast reset, A20", _port92,
            state_type="vmmsim.devices.port92:Port92State",
        ),
        DeviceSpec(
            "post-code", "port", layout.POST_CODE_PORT, 1, "port 80h: POST codes", _post_code,
            state_type="vmmsim.devices.post_code:PostCodeState",
        ),
        DeviceSpec(
            "reset-control", "port", layout.RESET_CONTROL_PORT, 1, "port CF9h: reset", _reset_control,
            state_type="vmmsim.devices.reset_control:ResetControlState",
        ),
        DeviceSpec(
            "acpi-pm", "port", layout.ACPI_PM_PORT, 16, "ACPI's timer and power-off ports", _acpi_pm,
            irq=layout.SCI_IRQ,
            state_type="vmmsim.devices.acpi_pm:AcpiPmState",
        ),
    )
}  # fmt: skip

#: 2020-01-01 00:00:00 UTC: when a machine begins whose clock is not the host's.
_EPOCH = 1577836800

#: model -> names of its devices, in the order in which they are made. `bare` is the talk's machine,
#: `pc` a PC without a screen and disks.
MODELS: dict[str, tuple[str, ...]] = {
    "pc": (
        "pic",
        "pit",
        "port61",
        "rtc",
        "kbc",
        "port92",
        "uart",
        "post-code",
        "reset-control",
        "acpi-pm",
        "debug-exit",
        "debug-console",
    ),
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
