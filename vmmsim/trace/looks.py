"""Looks: what is seen of a machine at some exits only, since it costs more than the exit does.

A look has the segment and control registers, the state of the device that answered, and what changed in
memory. In a short run one is taken at each exit; when looks have had their first second, they get a tenth of
the run's time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ..cpu.state import GPR_NAMES, SEGMENT_NAMES, CpuState
from ..errors import VmmsimError
from .memory import MemoryWatch
from .records import MemoryChange

if TYPE_CHECKING:
    from ..machine import Machine

__all__ = ["Look", "LookBudget", "Looks", "all_registers", "plain_state", "system_registers"]

#: Nanoseconds that looks may take before they are rationed, and then: one in so many of the run's.
_GRANT, _SHARE = 1_000_000_000, 10
_NEVER = 1 << 62
#: Bytes, items and characters of a device's state that are kept.
_MOST_BYTES, _MOST_ITEMS, _MOST_TEXT, _DEEPEST = 256, 64, 256, 6
_SAFE = 1 << 63


class Look(msgspec.Struct):
    """What one has seen. `registers` are those that a glance has not, all of them."""

    registers: dict[str, int]
    state: dict[str, object]
    memory: tuple[MemoryChange, ...]


class LookBudget:
    """When the next look may be taken. `at` is a time of the recorder's clock, in ns."""

    def __init__(self, looks: str | int) -> None:
        self._left = looks if isinstance(looks, int) else _NEVER
        self._rationed = looks == "auto"
        self._spent = 0
        self.at = _NEVER if looks == "none" or looks == 0 else 0

    def took(self, began: int, ended: int) -> None:
        """A look was taken."""
        self._left -= 1
        self._spent += ended - began
        if self._left <= 0:
            self.at = _NEVER
        elif self._rationed and self._spent > _GRANT:
            self.at = ended + (_SHARE - 1) * (ended - began)


class Looks:
    """Takes looks at `machine`. `memory`: whether at its memory, too."""

    def __init__(self, machine: Machine, *, memory: bool = True) -> None:
        self._machine = machine
        self._memory = MemoryWatch(machine.memory) if memory else None
        self._states: dict[str, dict[str, object]] = {}

    def look(self, state: CpuState, device: str) -> Look:
        """`device` is who answered, "" for nobody."""
        memory = self._memory.changes() if self._memory is not None else ()
        return Look(system_registers(state), self._changed(device), memory)

    def restart(self) -> None:
        """The machine is in another time: nothing that was seen is compared with."""
        self._states.clear()
        if self._memory is not None:
            self._memory.restart()

    def _changed(self, name: str) -> dict[str, object]:
        device: Any = self._machine.devices.get(self.owner(name))
        if device is None or not hasattr(device, "state"):
            return {}
        try:
            now = plain_state(device.state())
        except VmmsimError:
            return {}
        before = self._states.get(name, {})
        self._states[name] = now
        return {field: value for field, value in now.items() if before.get(field, _states) != value}

    def owner(self, name: str) -> str:
        """The device that a mapping of this name is of: itself, or that of which it is a face."""
        devices = self._machine.devices
        while name not in devices and "-" in name:
            name = name.rpartition("-")[0]
        return name

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()


_states = object()


def all_registers(state: CpuState) -> dict[str, int]:
    """The registers of `records.REGISTERS`."""
    general = (*GPR_NAMES, "rip", "rflags")
    return {name: getattr(state, name) for name in general} | system_registers(state)


def system_registers(state: CpuState) -> dict[str, int]:
    """The registers of `records.REGISTERS` but for those of a glance."""
    found = {}
    for name in (*SEGMENT_NAMES, "ldt", "tr"):
        segment = getattr(state, name)
        found[name], found[f"{name}_base"] = segment.selector, segment.base
    found["gdt_base"], found["idt_base"] = state.gdt.base, state.idt.base
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
        found[name] = getattr(state, name)
    return found


def plain_state(state: object) -> dict[str, object]:
    """A device's state as what JSON has: bytes in hex, long values cut, what is no value by its text."""
    plain = _plain(state, 0)
    return plain if isinstance(plain, dict) else {"state": plain}


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return int(value) if -_SAFE <= value < _SAFE else hex(value)
    if isinstance(value, str):
        return value[:_MOST_TEXT]
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value[:_MOST_BYTES]).hex()
        return data if len(value) <= _MOST_BYTES else f"{data}... ({len(value)} bytes)"
    if depth == _DEEPEST:
        return "..."
    if isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
        return {name: _plain(getattr(value, name), depth + 1) for name in names[:_MOST_ITEMS]}
    if isinstance(value, dict):
        items = list(value.items())[:_MOST_ITEMS]
        return {str(key)[:_MOST_TEXT]: _plain(item, depth + 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth + 1) for item in list(value)[:_MOST_ITEMS]]
    return str(value)[:_MOST_TEXT]
