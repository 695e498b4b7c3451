"""Chassis: a machine without its CPUs. Memory, buses, the devices of its model, and their clock.

When a machine is restored its devices are not changed into what they were: `prepare` makes them
anew from their states, and with `furnish` they take their places.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import models
from .bus import Bus, Device
from .bus import Mapping as BusMapping
from .clock import CLOCKS, Clock
from .dispatch import Dispatcher, Observer
from .errors import UsageError
from .memory import GuestMemory
from .wiring import Wiring

if TYPE_CHECKING:
    from .config import MachineConfig
    from .devices.base import CharSink, CharSource

__all__ = ["Chassis", "Maker"]

#: Guest-physical addresses have 52 bits (SDM vol. 3, 4.1.4); the MMIO bus covers them all.
_MMIO_LIMIT = 1 << 52

#: Makes a device of a machine, from its resources and its state.
Maker = Callable[[Wiring], Device]


class Chassis:
    """Base of Machine. `source` and `sink` are the ends of the guest's characters, `on_exit` and
    `on_event` what debug-exit and the reset and power-off devices call, `on_snapshot` and
    `generation` what the snapshot port does. `replace` makes devices of the model in another way
    than its table does, by name."""

    def __init__(
        self,
        config: MachineConfig,
        *,
        source: CharSource,
        sink: CharSink,
        on_exit: Callable[[int], None],
        on_event: Callable[[str], None],
        on_snapshot: Callable[[int], None],
        generation: Callable[[], int],
        replace: Mapping[str, Maker] | None = None,
    ) -> None:
        self.config = config
        self.memory = GuestMemory()
        self.ports = Bus("port", 0x10000)
        self.mmio = Bus("MMIO", _MMIO_LIMIT)
        self.devices: dict[str, Device] = {}
        #: Devices that the user has attached, by name: what makes one from its state, if known.
        self._makers: dict[str, Callable[[Any], Device] | None] = {}
        self._observers: list[Observer] = []
        self.accesses = Dispatcher(self.ports, self.mmio, self._observers)
        self.random = random.Random(config.seed)
        self._ends: dict[str, Any] = {
            "source": source,
            "sink": sink,
            "on_exit": on_exit,
            "on_event": on_event,
            "on_snapshot": on_snapshot,
            "generation": generation,
        }
        #: The time that the devices see.
        self.clock: Clock = CLOCKS[config.clock]()
        self._wiring = self._wire({}, self.clock, self.devices)
        self._replaced = dict(replace or {})
        for name in self._replaced:
            if name not in models.names(config):
                raise UsageError(
                    f"there is no device '{name}' in this machine to be replaced",
                    hint="its devices are: " + ", ".join(models.names(config)),
                )
        for start, length in models.ram(config):
            self.memory.add(start, length)
        for name in models.names(config):
            self._place(name)

    def _wire(self, states: dict[str, Any], clock: Clock, devices: dict[str, Any]) -> Wiring:
        return Wiring(
            clock=clock,
            devices=devices,
            random=self.random,
            config=self.config,
            memory=self.memory,
            states=states,
            **self._ends,
        )

    def _make(self, name: str, wiring: Wiring) -> Device:
        return self._replaced.get(name, models.DEVICES[name].make)(wiring)

    def _place(self, name: str) -> None:
        """Make a device of the model and put it on its bus."""
        spec = models.DEVICES[name]
        device = self._make(name, self._wiring)
        if spec.behind not in models.names(self.config):
            attach = self.attach_port if spec.space == "port" else self.attach_mmio
            attach(spec.start, spec.length, getattr(device, spec.face) if spec.face else device, name)
            del self._makers[name]
            for start, length, face in spec.faces:
                self.ports.attach(start, length, getattr(device, face), f"{name}-{face}")
        self.devices[name] = device

    # -- attaching

    def attach_port(
        self,
        port: int,
        length: int,
        device: Device,
        name: str = "",
        *,
        restore: Callable[[Any], Device] | None = None,
    ) -> BusMapping:
        """Put a device on `length` I/O ports from `port` on. See `Bus.attach`.

        `name` is its key in `devices`, without one that of its class: UsageError for a name
        that is taken. `restore(state)` makes such a device from what its `state()` gave:
        without it the machine has no snapshots.
        """
        self._check_name(name or type(device).__name__)
        mapping = self.ports.attach(port, length, device, name)
        self.devices[mapping.name] = device
        self._makers[mapping.name] = restore
        return mapping

    def attach_mmio(
        self,
        gpa: int,
        length: int,
        device: Device,
        name: str = "",
        *,
        restore: Callable[[Any], Device] | None = None,
    ) -> BusMapping:
        """Put a device on `length` bytes of guest-physical memory from `gpa` on, in a hole.

        Raises UsageError where RAM or ROM is: the guest would reach that, not the device.
        `name` and `restore`: as for `attach_port`.
        """
        self._check_name(name or type(device).__name__)
        for region in self.memory.regions:
            if gpa < region.end and region.gpa < gpa + length:
                raise UsageError(
                    f"{name or type(device).__name__} at {gpa:#x}..{gpa + length - 1:#x} overlaps {region!r}",
                    hint="put the device into a hole, or take the region away first",
                )
        mapping = self.mmio.attach(gpa, length, device, name)
        self.devices[mapping.name] = device
        self._makers[mapping.name] = restore
        return mapping

    def detach(self, mapping: BusMapping) -> None:
        """Take what `attach_port` or `attach_mmio` gave off its bus and out of `devices`.

        Its addresses are unclaimed again. Raises UsageError for what is on neither bus.
        """
        bus = self.ports if mapping in self.ports.mappings else self.mmio
        bus.detach(mapping)
        self.devices.pop(mapping.name, None)
        self._makers.pop(mapping.name, None)

    def _check_name(self, name: str) -> None:
        if name in self.devices:
            raise UsageError(
                f"the machine has a device '{name}' already",
                hint="give this one a name= of its own, or detach the other first",
            )

    def _check_vacant(self, gpa: int, size: int) -> None:
        """UsageError where a device is: the guest would reach new memory, and no longer that."""
        for mapping in self.mmio.mappings:
            if gpa < mapping.end and mapping.start < gpa + size:
                raise UsageError(
                    f"memory at {gpa:#x}..{gpa + size - 1:#x} overlaps the device {mapping!r}",
                    hint="put it elsewhere, or detach the device first",
                )

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Tell `observer` of each access once it is done. Returns what takes it away again."""
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    # -- states

    def shape(self) -> tuple[object, ...]:
        """Equal for a machine to which nothing was attached, nor taken away."""
        return tuple(self.devices), tuple(self._makers.items()), self.memory.regions

    def device_states(self) -> dict[str, Any]:
        """What each device's `state()` gives, by name, and by `name.part` for its parts
        (`DeviceSpec.parts`). UsageError for a device that cannot be restored."""
        states = {}
        for name, device in self.devices.items():
            if self._makers.get(name, _of_model) is None:
                raise UsageError(
                    f"the device '{name}' cannot be part of a snapshot: nobody says how it is restored",
                    hint="attach it with restore=, which makes one from its state()",
                )
            if not hasattr(device, "state"):
                raise UsageError(
                    f"the device '{name}' cannot be part of a snapshot: it has no state()",
                    hint="give it state(), and a constructor that takes state=",
                )
            states[name] = device.state()
            for part, _ in models.DEVICES[name].parts if name not in self._makers | self._replaced else ():
                states[f"{name}.{part}"] = getattr(device, part).state()
        return states

    def prepare(self, states: dict[str, Any], clock: Clock) -> Wiring:
        """All devices made anew, with `states` and over `clock`, and in no place yet: see `furnish`.

        Nothing has changed when it raises: UsageError for a state that a device cannot be in.
        """
        wiring = self._wire(states, clock, {})
        for name in models.names(self.config):
            wiring.devices[name] = self._make(name, wiring)
        for name, make in self._makers.items():
            assert make is not None  # device_states has looked
            wiring.devices[name] = make(states[name])
        return wiring

    def furnish(self, wiring: Wiring) -> None:
        """Let the devices that `prepare` made take the places of the old."""
        made = wiring.devices
        wiring.devices = self.devices
        self.devices.clear()
        self.devices.update(made)
        self.clock, self._wiring = wiring.clock, wiring
        wiring.in_place = True
        self.ports.replace({old: self._in_place(old.name) for old in self.ports.mappings})
        self.mmio.replace({old: self._in_place(old.name) for old in self.mmio.mappings})

    def _in_place(self, name: str) -> Device:
        """What is on a bus under the mapping's name: a device or one of its faces."""
        if name in self._makers:
            return self.devices[name]
        spec = models.DEVICES.get(name)
        if spec is not None:
            device = self.devices[name]
            return getattr(device, spec.face) if spec.face else device
        owner = next(n for n in models.names(self.config) if name.startswith(n + "-") and _has_face(n, name))
        return getattr(self.devices[owner], name[len(owner) + 1 :])


def _of_model(state: Any) -> Device:
    raise NotImplementedError(state)  # devices of the model are made by its table


def _has_face(owner: str, name: str) -> bool:
    return any(name == f"{owner}-{face}" for _, _, face in models.DEVICES[owner].faces)
