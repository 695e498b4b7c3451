"""Machine models: which devices a machine has, and where. Names are the command line's.

A model is a table of `DeviceSpec`; the machine builds what the table says and knows no
device by name. `vmmsim devices` prints the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from . import layout, wiring
from .bus import Device
from .errors import UsageError

if TYPE_CHECKING:
    from .config import MachineConfig

__all__ = ["DEVICES", "MODELS", "DeviceSpec", "holes", "names", "ram"]


class DeviceSpec(msgspec.Struct, frozen=True):
    """One device of a model: `space` is port or mmio, `hole` the page range that RAM leaves
    free for it (start, length), or None."""

    name: str
    space: str
    start: int
    length: int
    about: str
    make: Callable[[wiring.Wiring], Device]
    hole: tuple[int, int] | None = None
    irq: int | None = None
    #: Further ranges of the device: (port, length, which attribute of the device answers there).
    faces: tuple[tuple[int, int, str], ...] = ()
    #: The attribute of the device that answers at `start`, if it is not the device itself.
    face: str = ""
    #: A device that, where the machine has it, owns this one's addresses and passes on what is meant.
    behind: str = ""
    #: `module:Class` of what its `state()` gives.
    state_type: str = ""
    #: Further state of the device: (attribute with a `state()` of its own, `module:Class` of that).
    #: A snapshot keeps it under `name.attribute`.
    parts: tuple[tuple[str, str], ...] = ()


_TALK_HOLE = (layout.TALK_PAGE, layout.TALK_PAGE_SIZE)

#: Every device that vmmsim can build, by name.
DEVICES: dict[str, DeviceSpec] = {
    spec.name: spec
    for spec in (
        DeviceSpec(
            "char-in", "mmio", layout.CHAR_IN, 1, "a byte read is a character of the input; 0x04 at its end",
            wiring.char_in, _TALK_HOLE,
            state_type="vmmsim.devices.char_in:CharInState",
        ),
        DeviceSpec(
            "random-letter", "mmio", layout.RANDOM_LETTER, 1, "a byte read is a random letter a-z",
            wiring.random_letter, _TALK_HOLE,
            state_type="vmmsim.devices.random_letter:RandomLetterState",
        ),
        DeviceSpec(
            "char-out", "mmio", layout.CHAR_OUT, 1, "a byte written is printed", wiring.char_out, _TALK_HOLE,
            state_type="vmmsim.devices.char_out:CharOutState",
        ),
        DeviceSpec(
            "uart", "port", layout.COM1_PORT, 8, "serial port COM1, a 16550A", wiring.uart,
            irq=layout.COM1_IRQ,
            state_type="vmmsim.devices.uart16550:UartState",
        ),
        DeviceSpec(
            "debug-exit", "port", layout.DEBUG_EXIT_PORT, 4,
            "a value written ends the machine with it as its code", wiring.debug_exit,
            state_type="vmmsim.devices.debug_exit:DebugExitState",
        ),
        DeviceSpec(
            "snapshot", "port", layout.SNAPSHOT_PORT, 4,
            "a write asks for a snapshot; a read answers the generation, 0 for no clone", wiring.snapshot,
            state_type="vmmsim.devices.snapshot_port:SnapshotPortState",
        ),
        DeviceSpec(
            "debug-console", "port", layout.DEBUG_CONSOLE_PORT, 1, "a byte written is printed; reads 0xe9",
            wiring.debug_console,
            state_type="vmmsim.devices.debug_console:DebugConsoleState",
        ),
        DeviceSpec(
            "scratch", "mmio", layout.SCRATCH, layout.SCRATCH_SIZE,
            "8 KiB of registers of any width, for tests of access widths",
            wiring.scratch, (layout.SCRATCH, layout.SCRATCH_SIZE),
            state_type="vmmsim.devices.scratch:ScratchState",
        ),
        DeviceSpec(
            "pic", "port", layout.PIC_MASTER_PORT, 2, "interrupt controllers, a pair of 8259A", wiring.pic,
            faces=((layout.PIC_SLAVE_PORT, 2, "slave"), (layout.ELCR_PORT, 2, "elcr")), face="master",
            state_type="vmmsim.devices.i8259:I8259PairState",
        ),
        DeviceSpec(
            "lapic", "mmio", layout.LAPIC, 0x1000, "local APICs, one for each vCPU", wiring.lapic,
            (layout.LAPIC, 0x1000),
            state_type="vmmsim.devices.local_apics:LocalApicsState",
        ),
        DeviceSpec(
            "ioapic", "mmio", layout.IOAPIC, 0x100, "I/O APIC, an 82093AA", wiring.ioapic,
            (layout.IOAPIC, 0x1000),
            state_type="vmmsim.devices.ioapic:IoApicState",
        ),
        DeviceSpec(
            "pit", "port", layout.PIT_PORT, 4, "timers, an 8254", wiring.pit, irq=0,
            state_type="vmmsim.devices.i8254:I8254State",
        ),
        DeviceSpec(
            "port61", "port", layout.PORT_61, 1, "port 61h: the timer's gate, the speaker", wiring.port61,
            state_type="vmmsim.devices.port61:Port61State",
        ),
        DeviceSpec(
            "rtc", "port", layout.RTC_PORT, 2, "clock and CMOS RAM, an MC146818A", wiring.rtc,
            irq=layout.RTC_IRQ,
            state_type="vmmsim.devices.mc146818:Mc146818State",
        ),
        DeviceSpec(
            "kbc", "port", layout.KBC_DATA_PORT, 1, "keyboard controller, an 8042, with a keyboard",
            wiring.kbc, irq=layout.KEYBOARD_IRQ,
            faces=((layout.KBC_COMMAND_PORT, 1, "command"),), face="data",
            state_type="vmmsim.devices.i8042:I8042State",
            parts=(("keyboard", "vmmsim.devices.ps2_keyboard:Ps2KeyboardState"),),
        ),
        DeviceSpec(
            "port92", "port", layout.PORT_92, 1, "port 92h: fast reset, A20", wiring.port92,
            state_type="vmmsim.devices.port92:Port92State",
        ),
        DeviceSpec(
            "post-code", "port", layout.POST_CODE_PORT, 1, "port 80h: POST codes", wiring.post_code,
            state_type="vmmsim.devices.post_code:PostCodeState",
        ),
        DeviceSpec(
            "reset-control", "port", layout.RESET_CONTROL_PORT, 1, "port CF9h: reset", wiring.reset_control,
            behind="host-bridge",
            state_type="vmmsim.devices.reset_control:ResetControlState",
        ),
        DeviceSpec(
            "host-bridge", "port", layout.HOST_BRIDGE_PORT, 8,
            "PCI configuration of an 82441FX, the only device on its bus", wiring.host_bridge,
            state_type="vmmsim.devices.i440fx:I440fxState",
        ),
        DeviceSpec(
            "fw-cfg", "port", layout.FW_CFG_PORT, 12, "QEMU's firmware configuration: memory map, CPUs",
            wiring.fw_cfg,
            state_type="vmmsim.devices.fw_cfg:FwCfgState",
        ),
        DeviceSpec(
            "firmware-log", "port", layout.FIRMWARE_LOG_PORT, 1, "what SeaBIOS or OVMF log is printed",
            wiring.firmware_log,
            state_type="vmmsim.devices.debug_console:DebugConsoleState",
        ),
        DeviceSpec(
            "testdev", "port", layout.TESTDEV_PORT, 8, "kvm-unit-tests' register and page flush",
            wiring.testdev,
            state_type="vmmsim.devices.testdev:TestDevState",
        ),
        DeviceSpec(
            "testdev-irqs", "port", layout.TESTDEV_IRQ_PORT, 24, "a byte written to port n raises IRQ n",
            wiring.testdev_irqs,
            state_type="vmmsim.devices.testdev:TestDevIrqsState",
        ),
        DeviceSpec(
            "testdev-mem", "mmio", layout.TESTDEV_MEMORY, 0x10000, "64 KiB that are reached by exits only",
            wiring.testdev_memory, (layout.TESTDEV_MEMORY, 0x10000),
            state_type="vmmsim.devices.testdev:TestDevMemoryState",
        ),
        DeviceSpec(
            "acpi-pm", "port", layout.ACPI_PM_PORT, 16, "ACPI's timer and power-off ports", wiring.acpi_pm,
            irq=layout.SCI_IRQ,
            state_type="vmmsim.devices.acpi_pm:AcpiPmState",
        ),
    )
}  # fmt: skip


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
        "snapshot",
    ),
    "bare": ("char-in", "random-letter", "char-out", "uart", "debug-exit", "debug-console", "snapshot"),
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
