"""The header of a detailed trace: the machine, and how its first vCPU begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .looks import all_registers
from .records import DeviceInfo, Header, RegionInfo

if TYPE_CHECKING:
    from ..cpu.state import CpuState
    from ..machine import Machine

__all__ = ["header_of"]

_APIC_MSRS = 0x800


def header_of(machine: Machine, guest: str, state: CpuState) -> Header:
    """That of a trace of `machine`, whose vCPU 0 is in `state`."""
    devices = []
    for space, bus in (("port", machine.ports), ("mmio", machine.mmio)):
        for mapping in bus.mappings:
            chip = _chip(machine, mapping.name)
            devices.append(DeviceInfo(mapping.name, space, mapping.start, mapping.length, chip))  # type: ignore[arg-type]
    if machine.accesses.msrs is not None:
        devices.append(DeviceInfo("lapic", "msr", _APIC_MSRS, 0x40, _chip(machine, "lapic")))
    return Header(
        guest=guest,
        backend=machine.backend.name,
        provenance=machine.backend.provenance,
        detailed=True,
        machine=machine.config.model,
        cpus=machine.config.cpus,
        clock=machine.config.clock,
        devices=tuple(devices),
        regions=tuple(RegionInfo(r.gpa, r.size, r.name or "RAM", r.readonly) for r in machine.memory.regions),
        start=all_registers(state),
    )


def _chip(machine: Machine, name: str) -> str:
    """The class of the device that the mapping `name` is of."""
    while name not in machine.devices and "-" in name:
        name = name.rpartition("-")[0]
    device = machine.devices.get(name)
    return "" if device is None else type(device).__name__
