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

__all__ = ["DEVICES", "MODELS", "DeviceSpec", "Wiring", "holes", "names", "ram"]


class Wiring(msgspec.Struct):
    """What a machine gives to its devices: the resources of their construction."""

    source: Any  #: CharSource
    clock: Any  #: Clock
    devices: dict[str, Any]  #: those made so far, by name
    sink: Any  #: CharSink
    random: random.Random
    on_exit: Callable[[int], None]
    on_event: Callable[[str], None]  #: power_off or reset
    config: Any  #: MachineConfig
    cpus: Any = None  #: Processors, once there are vCPUs
    apic_bus: Any = None  #: ApicBus, once there are local APICs
    memory: Any = None  #: GuestMemory, for devices that reach it


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
    #: A device that, where the machine has it, owns this one's addresses and passes on what is meant.
    behind: str = ""


def _line(w: Wiring, number: int) -> Any:
    """The ISA interrupt line `number` (0-15), to all the interrupt controllers that the machine has.
    Line 0 is input 2 of the I/O APIC, as in every PC (and as the MADT says)."""
    from .devices.base import IrqFan

    ends = []
    if "pic" in w.devices:
        ends.append(w.devices["pic"].input(number))
    if "ioapic" in w.devices:
        ends.append(w.devices["ioapic"].input(number or 2))
    return IrqFan(*ends)


def _pic(w: Wiring) -> Any:
    from .devices.base import IrqLine
    from .devices.i8259 import I8259Pair

    def output(level: bool) -> None:
        """INTR goes to LINT0 of the first vCPU's APIC, or to the vCPU itself."""
        if "lapic" in w.devices:
            w.devices["lapic"][0].set_lint(0, level)
        elif level and w.cpus is not None:
            w.cpus.attention(0)

    return I8259Pair(IrqLine(output))


def _lapic(w: Wiring) -> Any:
    from .devices.apic_bus import ApicBus
    from .devices.lapic import LocalApic
    from .devices.local_apics import LocalApics

    w.apic_bus = ApicBus()
    pic = w.devices.get("pic")

    def tell(what: str, number: int, *value: int) -> None:
        if w.cpus is not None:
            getattr(w.cpus, what)(number, *value)

    def make(number: int) -> LocalApic:
        return LocalApic(
            number,
            w.clock,
            w.apic_bus,
            boot=number == 0,
            on_change=lambda: tell("attention", number),
            on_nmi=lambda: tell("nmi", number),
            on_init=lambda: tell("init", number),
            on_startup=lambda vector: tell("startup", number, vector),
            extint=pic.acknowledge if pic is not None and number == 0 else None,
            set_cr8=lambda value: tell("set_cr8", number, value),
            virtual_wire=number == 0,
        )

    apics = [make(number) for number in range(w.config.cpus)]
    return LocalApics(apics, lambda: w.cpus.current if w.cpus is not None else 0)


def _ioapic(w: Wiring) -> Any:
    from .devices.ioapic import IoApic

    if w.apic_bus is None:
        raise UsageError("ioapic without lapic", hint="its messages go to local APICs: leave out both")
    return IoApic(w.apic_bus, ident=layout.ioapic_id(w.config.cpus))


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
    below = min(w.config.memory, layout.LOW_RAM_END)
    return Mc146818(
        w.clock,
        _line(w, layout.RTC_IRQ),
        epoch=epoch,
        memory_size=below,
        memory_above_4g=w.config.memory - below,
    )


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


def _host_bridge(w: Wiring) -> Device:
    from .devices.i440fx import I440fx

    return I440fx(lambda: w.devices.get("reset-control"))


def _fw_cfg(w: Wiring) -> Device:
    from .devices.fw_cfg import FwCfg, RamDma
    from .pc_tables import fw_cfg_items

    files, legacy = fw_cfg_items(w.config)
    return FwCfg(files, legacy=legacy, memory=RamDma(w.memory) if w.memory is not None else None)


def _testdev(w: Wiring) -> Device:
    from .devices.testdev import TestDev

    return TestDev()


def _testdev_irqs(w: Wiring) -> Device:
    from .devices.base import NoIrq
    from .devices.testdev import TestDevIrqs

    return TestDevIrqs([NoIrq() if number == 2 else _line(w, number) for number in range(16)])


def _testdev_memory(w: Wiring) -> Device:
    from .devices.testdev import TestDevMemory

    return TestDevMemory()


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
        DeviceSpec(
            "pic", "port", layout.PIC_MASTER_PORT, 2, "interrupt controllers, a pair of 8259A", _pic,
            faces=((layout.PIC_SLAVE_PORT, 2, "slave"), (layout.ELCR_PORT, 2, "elcr")), face="master",
        ),
        DeviceSpec(
            "lapic", "mmio", layout.LAPIC, 0x1000, "local APICs, one for each vCPU", _lapic,
            (layout.LAPIC, 0x1000),
        ),
        DeviceSpec(
            "ioapic", "mmio", layout.IOAPIC, 0x100, "I/O APIC, an 82093AA", _ioapic,
            (layout.IOAPIC, 0x1000),
        ),
        DeviceSpec("pit", "port", layout.PIT_PORT, 4, "timers, an 8254", _pit, irq=0),
        DeviceSpec("port61", "port", layout.PORT_61, 1, "port 61h: the timer's gate, the speaker", _port61),
        DeviceSpec(
            "rtc", "port", layout.RTC_PORT, 2, "clock and CMOS RAM, an MC146818A", _rtc, irq=layout.RTC_IRQ
        ),
        DeviceSpec(
            "kbc", "port", layout.KBC_DATA_PORT, 1, "keyboard controller, an 8042, with a keyboard", _kbc,
            irq=layout.KEYBOARD_IRQ, faces=((layout.KBC_COMMAND_PORT, 1, "command"),), face="data",
        ),
        DeviceSpec("port92", "port", layout.PORT_92, 1, "port 92h: fast reset, A20", _port92),
        DeviceSpec("post-code", "port", layout.POST_CODE_PORT, 1, "port 80h: POST codes", _post_code),
        DeviceSpec(
            "reset-control", "port", layout.RESET_CONTROL_PORT, 1, "port CF9h: reset", _reset_control,
            behind="host-bridge",
        ),
        DeviceSpec(
            "host-bridge", "port", layout.HOST_BRIDGE_PORT, 8,
            "PCI configuration of an 82441FX, the only device on its bus", _host_bridge,
        ),
        DeviceSpec(
            "fw-cfg", "port", layout.FW_CFG_PORT, 12, "QEMU's firmware configuration: memory map, CPUs",
            _fw_cfg,
        ),
        DeviceSpec(
            "firmware-log", "port", layout.FIRMWARE_LOG_PORT, 1, "what SeaBIOS or OVMF log is printed",
            _debug_console,
        ),
        DeviceSpec(
            "testdev", "port", layout.TESTDEV_PORT, 8, "kvm-unit-tests' register and page flush", _testdev
        ),
        DeviceSpec(
            "testdev-irqs", "port", layout.TESTDEV_IRQ_PORT, 24, "a byte written to port n raises IRQ n",
            _testdev_irqs,
        ),
        DeviceSpec(
            "testdev-mem", "mmio", layout.TESTDEV_MEMORY, 0x10000, "64 KiB that are reached by exits only",
            _testdev_memory, (layout.TESTDEV_MEMORY, 0x10000),
        ),
        DeviceSpec(
            "acpi-pm", "port", layout.ACPI_PM_PORT, 16, "ACPI's timer and power-off ports", _acpi_pm,
            irq=layout.SCI_IRQ,
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
        "lapic",
        "ioapic",
        "pit",
        "port61",
        "rtc",
        "kbc",
        "port92",
        "uart",
        "post-code",
        "reset-control",
        "host-bridge",
        "acpi-pm",
        "fw-cfg",
        "debug-exit",
        "debug-console",
    ),
    "bare": ("char-in", "random-letter", "char-out", "uart", "debug-exit", "debug-console"),
}


#: model -> the (start, length) ranges that are a hole in its RAM whatever devices it has.
_MODEL_HOLES = {"pc": ((layout.VIDEO, layout.VIDEO_SIZE),)}


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
    found = [name for name in wanted if name not in config.without]
    if config.cpus > 1 and "lapic" not in found:
        raise UsageError(
            f"{config.cpus} vCPUs without local APICs, by which they are started",
            hint="use model pc, or one vCPU",
        )
    return found


def holes(config: MachineConfig) -> list[tuple[int, int]]:
    """The (start, length) ranges that RAM leaves free for the configuration's devices."""
    found = {DEVICES[name].hole for name in names(config)} | set(_MODEL_HOLES.get(config.model, ()))
    return sorted(hole for hole in found if hole is not None)


def ram(config: MachineConfig) -> list[tuple[int, int]]:
    """The (start, length) ranges of the configuration's RAM.

    From 0 on to `memory`, or to 3 GiB, and what is more than 3 GiB from 4 GiB on, less the
    `holes`. A hole takes RAM away; it does not move it.
    """
    beyond = max(config.memory - layout.LOW_RAM_END, 0)
    spans = [(0, config.memory - beyond), (layout.HIGH_RAM, layout.HIGH_RAM + beyond)]
    found = []
    for at, end in spans:
        for start, length in [*holes(config), (end, 0)]:
            if at < min(start, end):
                found.append((at, min(start, end) - at))
            at = max(at, start + length)
    return found
