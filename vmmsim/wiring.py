"""How each device of a machine is made: from its resources and, when it is restored, its state.

One function a device, which `vmmsim.models` names in its table. Construction and restoring are
one path: without a state a device has that after power-on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import msgspec

from . import layout
from .bus import Device
from .errors import UsageError

__all__ = ["Wiring"]

#: 2020-01-01 00:00:00 UTC: when a machine begins whose clock is not the host's.
_EPOCH = 1577836800


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
    #: The states that the devices are to have, by name, where a machine is restored.
    states: dict[str, Any] = {}
    #: The guest asks for a snapshot, with a tag; and how often the machine was cloned.
    on_snapshot: Callable[[int], None] = lambda tag: None
    generation: Callable[[], int] = lambda: 0
    in_place: bool = False  #: whether devices that were made anew have taken their places

    def state(self, name: str) -> Any:
        """The state of the device `name`, or None for that after power-on."""
        return self.states.get(name)

    def line(self, number: int) -> Any:
        """The ISA interrupt line `number`."""
        return _line(self, number)


def _line(w: Wiring, number: int) -> Any:
    """The ISA interrupt line `number` (0-15), to all the interrupt controllers that the machine has.
    Line 0 is input 2 of the I/O APIC, as in every PC (and as the MADT says)."""
    from .devices.base import IrqFan

    ends = []
    if "pic" in w.devices:
        ends.append(w.devices["pic"].input(number))
    if "ioapic" in w.devices:
        ends.append(w.devices["ioapic"].input(number or 2))
    fan = IrqFan(*ends)
    return _Known(w, fan) if w.states else fan


class _Known:
    """A line of a machine that is restored. Its level is in the controllers' states: while devices are
    made it stays as it is. Two that drive one line would make an edge of it that never was."""

    def __init__(self, wiring: Wiring, line: Any) -> None:
        self._wiring = wiring
        self._line = line

    def set(self, level: bool, /) -> None:
        if self._wiring.in_place:
            self._line.set(level)


def pic(w: Wiring) -> Any:
    from .devices.base import IrqLine
    from .devices.i8259 import I8259Pair

    def output(level: bool) -> None:
        """INTR goes to LINT0 of the first vCPU's APIC, or to the vCPU itself."""
        if "lapic" in w.devices:
            w.devices["lapic"][0].set_lint(0, level)
        elif level and w.cpus is not None:
            w.cpus.attention(0)

    return I8259Pair(IrqLine(output), state=w.state("pic"))


def lapic(w: Wiring) -> Any:
    from .devices.apic_bus import ApicBus
    from .devices.lapic import LocalApic
    from .devices.local_apics import LocalApics

    w.apic_bus = ApicBus()
    pic, kept = w.devices.get("pic"), w.state("lapic")
    if kept is not None and len(kept.apics) != w.config.cpus:
        raise UsageError(
            f"a state of {len(kept.apics)} local APICs for {w.config.cpus} vCPUs",
            hint="there is one for each",
        )

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
            state=kept.apics[number] if kept is not None else None,
        )

    apics = [make(number) for number in range(w.config.cpus)]
    return LocalApics(apics, lambda: w.cpus.current if w.cpus is not None else 0)


def ioapic(w: Wiring) -> Any:
    from .devices.ioapic import IoApic

    if w.apic_bus is None:
        raise UsageError("ioapic without lapic", hint="its messages go to local APICs: leave out both")
    return IoApic(w.apic_bus, ident=layout.ioapic_id(w.config.cpus), state=w.state("ioapic"))


def pit(w: Wiring) -> Device:
    from .devices.i8254 import I8254

    return I8254(w.clock, _line(w, 0), state=w.state("pit"))


def port61(w: Wiring) -> Device:
    from .devices.port61 import Port61

    if "pit" not in w.devices:
        raise UsageError("port61 without pit", hint="port 61h is a part of the timer: leave out both")
    return Port61(w.devices["pit"], w.clock, state=w.state("port61"))


def rtc(w: Wiring) -> Device:
    from .devices.mc146818 import Mc146818

    epoch = int(time.time()) if w.config.clock == "host" else _EPOCH
    below = min(w.config.memory, layout.LOW_RAM_END)
    return Mc146818(
        w.clock,
        _line(w, layout.RTC_IRQ),
        epoch=epoch,
        memory_size=below,
        memory_above_4g=w.config.memory - below,
        state=w.state("rtc"),
    )


def kbc(w: Wiring) -> Any:
    from .devices.i8042 import AFTER_FIRMWARE, I8042
    from .devices.ps2_keyboard import Ps2Keyboard

    return I8042(
        _line(w, layout.KEYBOARD_IRQ),
        _line(w, layout.MOUSE_IRQ),
        on_reset=lambda: w.on_event("reset"),
        keyboard=Ps2Keyboard(state=w.state("kbc.keyboard")),
        state=w.state("kbc") or AFTER_FIRMWARE,
    )


def port92(w: Wiring) -> Device:
    from .devices.port92 import Port92

    return Port92(lambda: w.on_event("reset"), state=w.state("port92"))


def post_code(w: Wiring) -> Device:
    from .devices.post_code import PostCode

    return PostCode(state=w.state("post-code"))


def reset_control(w: Wiring) -> Device:
    from .devices.reset_control import ResetControl

    return ResetControl(lambda hard: w.on_event("reset"), state=w.state("reset-control"))


def host_bridge(w: Wiring) -> Device:
    from .devices.i440fx import I440fx

    return I440fx(lambda: w.devices.get("reset-control"), state=w.state("host-bridge"))


def fw_cfg(w: Wiring) -> Device:
    from .devices.fw_cfg import FwCfg, RamDma
    from .pc_tables import fw_cfg_items

    files, legacy = fw_cfg_items(w.config)
    memory = RamDma(w.memory) if w.memory is not None else None
    return FwCfg(files, legacy=legacy, memory=memory, state=w.state("fw-cfg"))


def testdev(w: Wiring) -> Device:
    from .devices.testdev import TestDev

    return TestDev(state=w.state("testdev"))


def testdev_irqs(w: Wiring) -> Device:
    from .devices.base import NoIrq
    from .devices.testdev import TestDevIrqs

    lines = [NoIrq() if number == 2 else _line(w, number) for number in range(16)]
    return TestDevIrqs(lines, state=w.state("testdev-irqs"))


def testdev_memory(w: Wiring) -> Device:
    from .devices.testdev import TestDevMemory

    return TestDevMemory(state=w.state("testdev-mem"))


def acpi_pm(w: Wiring) -> Device:
    from .devices.acpi_pm import AcpiPm

    return AcpiPm(
        w.clock,
        _line(w, layout.SCI_IRQ),
        on_power_off=lambda: w.on_event("power_off"),
        state=w.state("acpi-pm"),
    )


def char_in(w: Wiring) -> Device:
    from .devices.char_in import CharIn

    return CharIn(w.source, state=w.state("char-in"))


def random_letter(w: Wiring) -> Device:
    from .devices.random_letter import RandomLetter

    return RandomLetter(w.random, state=w.state("random-letter"))


def char_out(w: Wiring) -> Device:
    from .devices.char_out import CharOut

    return CharOut(w.sink, state=w.state("char-out"))


def uart(w: Wiring) -> Device:
    from .devices.uart16550 import Uart16550

    return Uart16550(source=w.source, sink=w.sink, irq=_line(w, layout.COM1_IRQ), state=w.state("uart"))


def debug_exit(w: Wiring) -> Device:
    from .devices.debug_exit import DebugExit

    return DebugExit(w.on_exit, compat=w.config.isa_debug_exit, state=w.state("debug-exit"))


def snapshot(w: Wiring) -> Device:
    from .devices.snapshot_port import SnapshotPort

    return SnapshotPort(w.on_snapshot, w.generation, state=w.state("snapshot"))


def debug_console(w: Wiring) -> Device:
    from .devices.debug_console import DebugConsole

    return DebugConsole(w.sink, state=w.state("debug-console"))


def firmware_log(w: Wiring) -> Device:
    from .devices.debug_console import DebugConsole

    return DebugConsole(w.sink, state=w.state("firmware-log"))


def scratch(w: Wiring) -> Device:
    from .devices.scratch import Scratch

    return Scratch(layout.SCRATCH_SIZE, state=w.state("scratch"))
