"""The I/O APIC: Intel 82093AA, data sheet of May 1996.

Version 11h with 24 inputs, as the chip: it has no EOI register, and local APICs tell it of each
EOI. Names in quotes are sections of the data sheet.

Inputs are given as asserted or not, so the polarity bit of an entry is stored and changes
nothing. Messages are delivered at once: the delivery status bit always reads 0. The
destination field is 8 bits in physical mode too, as xAPICs have them (the chip has 4).
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ..errors import UsageError
from .apic_bus import ApicBus, ApicMessage, Delivery
from .base import Irq

__all__ = ["INPUTS", "IoApic", "IoApicState"]

INPUTS = 24

# The two registers of "Memory Mapped Registers".
IOREGSEL, IOWIN = 0x00, 0x10
# What IOREGSEL selects.
IOAPICID, IOAPICVER, IOAPICARB, IOREDTBL = 0x00, 0x01, 0x02, 0x10

VERSION = (INPUTS - 1) << 16 | 0x11
ID_BITS = 0x0F00_0000

# "I/O Redirection Table Registers".
RED_VECTOR = 0xFF
RED_MODE = 0x700
RED_LOGICAL = 0x800
RED_REMOTE_IRR = 0x4000
RED_LEVEL = 0x8000
RED_MASKED = 0x1_0000
RED_WRITABLE = 0xFF << 56 | 0x1_AFFF
RED_RESET = RED_MASKED

#: Delivery modes that there are; 3 and 6 are reserved and deliver nothing.
_MODES = frozenset({0, 1, 2, 4, 5, 7})


class IoApicState(msgspec.Struct, frozen=True):
    """Every bit of an I/O APIC, after reset by default: all inputs masked.

    `ident` is IOAPICID as read; `entries` the redirection table; bit n of `levels` is
    input n.
    """

    ident: int = 0
    select: int = 0
    entries: tuple[int, ...] = (RED_RESET,) * INPUTS
    levels: int = 0


def _check(state: IoApicState) -> None:
    for field, mask in (("ident", ID_BITS), ("select", 0xFF), ("levels", (1 << INPUTS) - 1)):
        value = getattr(state, field)
        if value & ~mask:
            raise UsageError(
                f"ioapic: {field} = {value:#x} in the state has bits that the chip lacks",
                hint=f"only the bits {mask:#x} exist",
            )
    if len(state.entries) != INPUTS:
        raise UsageError(
            f"ioapic: {len(state.entries)} redirection entries in the state", hint=f"there are {INPUTS}"
        )
    for number, entry in enumerate(state.entries):
        if entry & ~(RED_WRITABLE | RED_REMOTE_IRR):
            raise UsageError(
                f"ioapic: redirection entry {number} is {entry:#x} in the state",
                hint=f"only the bits {RED_WRITABLE | RED_REMOTE_IRR:#x} exist",
            )
        if entry & RED_REMOTE_IRR and not _awaits_eoi(entry):
            raise UsageError(
                f"ioapic: redirection entry {number} ({entry:#x}) in the state awaits an EOI",
                hint="Remote IRR, bit 14, is for level-triggered entries in fixed or lowest priority mode",
            )


def _awaits_eoi(entry: int) -> bool:
    """Whether an entry is level-triggered. NMI, INIT and SMI are edges whatever bit 15 says, and
    the 8259A has an EOI of its own ("Delivery Mode")."""
    return bool(entry & RED_LEVEL) and entry & RED_MODE <= Delivery.LOWEST << 8


def _is_external(entry: int) -> bool:
    return entry & (RED_MODE | RED_MASKED) == Delivery.EXTINT << 8


class _Pin:
    """One input, as the device that drives it sees it."""

    __slots__ = ("_chip", "_number")

    def __init__(self, chip: IoApic, number: int) -> None:
        self._chip = chip
        self._number = number

    def set(self, level: bool, /) -> None:
        self._chip._set(self._number, level)


class IoApic:
    """An I/O APIC on `bus`. `ident` (0-15) is the id that it has after reset.

    An input has one driver: where several devices share a line, they are ORed before it.

    An edge on a masked input is lost, and so is a level that comes and goes while masked
    ("Interrupt Mask"). A level-triggered message is repeated until a local APIC accepts it, and
    sent again at the EOI while its input is still asserted.
    """

    #: 4 is the width of the registers. A narrower write sets the low bits and clears the rest.
    widths: frozenset[int] = frozenset({1, 2, 4})
    #: Bytes of address space that the device takes.
    length: ClassVar[int] = 0x100

    def __init__(self, bus: ApicBus, *, ident: int = 0, state: IoApicState | None = None) -> None:
        """Raises UsageError for a `state` that the chip cannot be in."""
        if not 0 <= ident <= 15:
            raise UsageError(f"no I/O APIC can have the id {ident}", hint="use 0 to 15")
        state = state or IoApicState(ident=ident << 24)
        _check(state)
        self._bus = bus
        self._ident = state.ident
        self._select = state.select
        self._entries = list(state.entries)
        self._levels = state.levels
        self._pins = tuple(_Pin(self, number) for number in range(INPUTS))
        bus.attach_source(self)
        self.retry()

    @classmethod
    def from_state(cls, state: IoApicState, *, bus: ApicBus) -> IoApic:
        """Raises UsageError for a state that the chip cannot be in."""
        return cls(bus, state=state)

    def state(self) -> IoApicState:
        return IoApicState(self._ident, self._select, tuple(self._entries), self._levels)

    # Inputs.

    def input(self, number: int) -> Irq:
        """The input INTIN`number`, 0-23. Raises UsageError for any other."""
        if not 0 <= number < INPUTS:
            raise UsageError(f"an I/O APIC has no input {number}", hint=f"use 0 to {INPUTS - 1}")
        return self._pins[number]

    def _set(self, number: int, level: bool) -> None:
        bit = 1 << number
        if bool(self._levels & bit) == level:
            return
        self._levels ^= bit
        entry = self._entries[number]
        if entry & RED_MASKED:
            return
        if _is_external(entry):
            self._send(entry, level)
        elif level:
            self._request(number)

    def _request(self, number: int) -> None:
        """An unmasked input asks for its interrupt."""
        entry = self._entries[number]
        if not _awaits_eoi(entry):
            self._send(entry)
        elif not entry & RED_REMOTE_IRR and self._send(entry):
            self._entries[number] |= RED_REMOTE_IRR

    def _send(self, entry: int, level: bool = True) -> bool:
        mode = entry >> 8 & 7
        return mode in _MODES and self._bus.send(
            ApicMessage(
                vector=entry & RED_VECTOR,
                delivery=mode,
                destination=entry >> 56,
                dest_logical=bool(entry & RED_LOGICAL),
                level=level,
                trigger_level=_awaits_eoi(entry),
            )
        )

    # The bus.

    def eoi(self, vector: int, /) -> None:
        """A local APIC has ended `vector`: entries that wait for it ask again if their input does."""
        for number, entry in enumerate(self._entries):
            if entry & RED_REMOTE_IRR and entry & RED_VECTOR == vector:
                self._entries[number] = entry & ~RED_REMOTE_IRR
                self._ask(number)

    def retry(self) -> None:
        """Send again the level-triggered interrupts that nobody accepted."""
        for number in range(INPUTS):
            self._ask(number)

    def _ask(self, number: int) -> None:
        """Send what is a level and not sent: a level-triggered interrupt, the 8259A's request."""
        entry = self._entries[number]
        if not self._levels >> number & 1 or entry & RED_MASKED:
            return
        if _awaits_eoi(entry):
            self._request(number)
        elif _is_external(entry):
            self._send(entry)

    # The guest.

    def read(self, offset: int, size: int, /) -> int:
        if offset == IOREGSEL:
            value = self._select
        elif offset == IOWIN:
            value = self._get(self._select)
        else:
            return 0
        return value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int, /) -> None:
        value &= (1 << 8 * size) - 1
        if offset == IOREGSEL:
            self._select = value & 0xFF
        elif offset == IOWIN:
            self._put(self._select, value & 0xFFFF_FFFF)

    def _get(self, reg: int) -> int:
        if IOREDTBL <= reg < IOREDTBL + 2 * INPUTS:
            return self._entries[(reg - IOREDTBL) >> 1] >> 32 * (reg & 1) & 0xFFFF_FFFF
        if reg == IOAPICVER:
            return VERSION
        # The arbitration id is loaded with the id whenever that is written.
        return self._ident if reg in (IOAPICID, IOAPICARB) else 0

    def _put(self, reg: int, value: int) -> None:
        if reg == IOAPICID:
            self._ident = value & ID_BITS
        if not IOREDTBL <= reg < IOREDTBL + 2 * INPUTS:
            return
        number = (reg - IOREDTBL) >> 1
        old = self._entries[number]
        shift = 32 * (reg & 1)
        entry = (old & ~(0xFFFF_FFFF << shift) | value << shift) & RED_WRITABLE
        if _awaits_eoi(entry):
            entry |= old & RED_REMOTE_IRR
        # Remote IRR means nothing to an edge. Guests rely on it going: they make an entry an
        # edge and a level again where the EOI is lost, as this version lacks an EOI register.
        self._entries[number] = entry
        if _is_external(old) and old != entry and self._levels >> number & 1:
            self._send(old, False)
        self._ask(number)
