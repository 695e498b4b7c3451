"""What a device's numbers mean, as the data sheets name it: registers by offset, fields by their bits.

A device that is not in the tables is shown with its bare values.
"""

from __future__ import annotations

from typing import Any

from ..trace.records import DeviceInfo
from .text import clean

__all__ = ["register_name", "state_lines"]

#: Chip, as its file in `vmmsim.devices` is named, or the name of one of its faces: offset -> name of the
#: register for (reads, writes).
_REGISTERS: dict[str, dict[int, tuple[str, str]]] = {
    "uart16550": {  # PC16550D, table II
        0: ("RBR", "THR"), 1: ("IER", "IER"), 2: ("IIR", "FCR"), 3: ("LCR", "LCR"), 4: ("MCR", "MCR"),
        5: ("LSR", "LSR"), 6: ("MSR", "MSR"), 7: ("SCR", "SCR"),
    },
    "i8259": {0: ("IRR/ISR", "ICW1/OCW2/OCW3"), 1: ("IMR", "IMR/ICW2-4")},
    "i8254": {
        0: ("counter 0", "counter 0"), 1: ("counter 1", "counter 1"), 2: ("counter 2", "counter 2"),
        3: ("", "control word"),
    },
    "mc146818": {0: ("index", "index"), 1: ("data", "data")},
    "i8042": {0: ("data", "data")},
    "kbc-command": {0: ("status", "command")},
    "pic-elcr": {0: ("ELCR1", "ELCR1"), 1: ("ELCR2", "ELCR2")},
    "ioapic": {0: ("IOREGSEL", "IOREGSEL"), 0x10: ("IOWIN", "IOWIN")},
    "lapic": {  # SDM vol. 3, table 10-1
        0x20: ("ID", "ID"), 0x30: ("version", "version"), 0x80: ("TPR", "TPR"), 0xA0: ("PPR", "PPR"),
        0xB0: ("EOI", "EOI"), 0xD0: ("LDR", "LDR"), 0xE0: ("DFR", "DFR"), 0xF0: ("SVR", "SVR"),
        0x280: ("ESR", "ESR"), 0x300: ("ICR low", "ICR low"), 0x310: ("ICR high", "ICR high"),
        0x320: ("LVT timer", "LVT timer"), 0x350: ("LVT LINT0", "LVT LINT0"),
        0x360: ("LVT LINT1", "LVT LINT1"), 0x370: ("LVT error", "LVT error"),
        0x380: ("initial count", "initial count"),
        0x390: ("current count", "current count"), 0x3E0: ("divide", "divide"),
    },
}  # fmt: skip

#: chip: field -> its bits from bit 0 on; "" for a bit without a name.
_BITS: dict[str, dict[str, tuple[str, ...]]] = {
    "uart16550": {
        "ier": ("ERBFI", "ETBEI", "ELSI", "EDSSI"),
        "fcr": ("FIFO enable", "", "", "DMA mode", "", "", "trigger bit 0", "trigger bit 1"),
        "lcr": ("WLS0", "WLS1", "STB", "PEN", "EPS", "stick parity", "break", "DLAB"),
        "mcr": ("DTR", "RTS", "OUT1", "OUT2", "loop"),
        "lsr": ("DR", "OE", "PE", "FE", "BI", "THRE", "TEMT", "FIFO error"),
        "msr": ("DCTS", "DDSR", "TERI", "DDCD", "CTS", "DSR", "RI", "DCD"),
        "lines": ("", "", "", "", "CTS", "DSR", "RI", "DCD"),
    },
    "i8259": dict.fromkeys(("lines", "irr", "isr", "imr", "elcr"), tuple(f"IR{n}" for n in range(8))),
}  # fmt: skip

#: Traces have a device's class; these are not named as the chip is.
_CHIPS = {"i8259pair": "i8259", "localapics": "lapic"}
#: A value's text is cut behind so many characters, a list behind so many elements.
_LONGEST, _MOST = 400, 64


def _chip(device: DeviceInfo) -> str:
    name = device.chip.lower()
    return device.name if device.name in _REGISTERS else _CHIPS.get(name, name)


def register_name(device: DeviceInfo, address: int, kind: str) -> str:
    """The data sheet's name of the register that an access reaches, or ""."""
    names = _REGISTERS.get(_chip(device), {}).get(address - device.start)
    return "" if names is None else names[kind.endswith("_write")]


def state_lines(device: DeviceInfo | None, field: str, value: object) -> list[list[str]]:
    """A field of a device's state as lines of (path below the field, value, which bits are set)."""
    bits = _BITS.get(_chip(device), {}) if device is not None else {}
    lines: list[list[str]] = []
    _walk("", field, value, bits, lines)
    return lines


def _walk(path: str, name: str, value: Any, bits: dict[str, tuple[str, ...]], lines: list[list[str]]) -> None:
    if len(lines) >= _MOST:
        return
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            _walk(f"{path}.{key}", str(key), inner, bits, lines)
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in value):
        for number, item in enumerate(value):
            _walk(f"{path}[{number}]", name, item, bits, lines)
    else:
        named = bits.get(name)
        note = ""
        if named and isinstance(value, int):
            note = " ".join(bit for at, bit in enumerate(named) if bit and value >> at & 1) or "no bit set"
        lines.append([clean(path), clean(_text(value)), note])


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if -10 < value < 10 else f"{value:#x} ({value})"
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        if not value:
            return "empty"
        if len(value) > 4 and all(isinstance(item, int) and 0 <= item < 256 for item in value):
            kept = value[:_LONGEST]
            text = bytes(kept).hex(" ")
        else:
            kept = value[:_MOST]
            text = ", ".join(_text(item) for item in kept)
        left = len(value) - len(kept)
        return _cut(text) + (f" and {left} more" if left else "")
    return _cut(str(value)) if value != "" else '""'


def _cut(text: str) -> str:
    return text if len(text) <= 3 * _LONGEST else text[: 3 * _LONGEST] + " …"
