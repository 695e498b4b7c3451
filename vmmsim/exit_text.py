"""Exits in words for people: whose access it is, and its value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .exits import Access

if TYPE_CHECKING:
    from .machine import Machine

__all__ = ["kvm_name", "owner", "place", "value"]

_NAMED = {0x0A: " \\n", 0x0D: " \\r", 0x20: " ' '"}


def owner(machine: Machine, cls: type[Access], address: int) -> str:
    """The name of the device that answers there; `ROM`, or `nobody`."""
    if cls.space == "msr":
        return "lapic"
    bus = machine.ports if cls.space == "port" else machine.mmio
    mapping = bus.find(address)
    if mapping is not None:
        return mapping.name
    if cls.space == "mmio" and machine.memory.region_at(address) is not None:
        return "ROM"
    return "nobody"


def place(cls: type[Access], address: int) -> str:
    """`port 0x0060`, `gpa 0x00001000`, `msr 0x1b`."""
    if cls.space == "msr":
        return f"msr {address:#x}"
    return f"port {address:#06x}" if cls.space == "port" else f"gpa {address:#010x}"


def value(size: int, number: int) -> str:
    """In hexadecimal, and as a character where it is one: `0x6d 'm'`."""
    text = f"{number:#0{2 + 2 * size}x}"
    if size != 1:
        return text
    return f"{text} '{chr(number)}'" if 0x20 < number < 0x7F else text + _NAMED.get(number, "")


def kvm_name(kvm: str) -> str:
    """The constant alone, without what `Exit.kvm` says beside it."""
    return kvm.partition(" ")[0]
