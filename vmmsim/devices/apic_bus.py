"""How interrupt messages travel between local APICs and I/O APICs.

The rules are those of the Intel SDM, volume 3, chapter 10: "Determining IPI Destination"
(10.6.2) for xAPIC, "Logical Destination Mode in x2APIC Mode" (10.12.10) for x2APIC.

The bus has no registers and no state: messages arrive before `send` returns. A message
that nobody takes vanishes. The error bits for that (ESR bits 2 and 3, send and receive
accept error) exist "on P6 family and Pentium processors only"; the local APIC here is a
later one, and nothing is logged.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

import msgspec

from ..errors import UsageError

__all__ = ["ApicBus", "ApicMessage", "Delivery", "InterruptSource", "LocalUnit", "Shorthand", "addressed"]

_BROADCAST = 0xFF
_BROADCAST_WIDE = 0xFFFF_FFFF
_FLAT_MODEL = 0xF


class Delivery(IntEnum):
    """What a message asks for: bits 10:8 of ICR, of an LVT and of a redirection entry."""

    FIXED = 0
    LOWEST = 1
    SMI = 2
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


class Shorthand(IntEnum):
    """A destination without an address: ICR bits 19:18."""

    NONE = 0
    SELF = 1
    ALL = 2
    OTHERS = 3


class ApicMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One interrupt message.

    `vector` is 0-255; `delivery` one of `Delivery`. `destination` is an APIC id or, with
    `dest_logical`, a set of logical ids: 8 bits, or 32 with `wide` (sent by an x2APIC).
    All ones is everybody. `level` is false only where a line falls again: an external
    interrupt (EXTINT) is a level, the 8259A's. `trigger_level`: the interrupt's EOI is to
    be told to the I/O APICs.
    """

    vector: int
    delivery: int = Delivery.FIXED
    destination: int = 0
    dest_logical: bool = False
    level: bool = True
    trigger_level: bool = False
    shorthand: int = Shorthand.NONE
    wide: bool = False


class LocalUnit(Protocol):
    """A local APIC as the bus sees it."""

    apic_id: int

    @property
    def ppr(self) -> int:
        """Processor priority, 0-255: arbitrates lowest priority delivery."""

    @property
    def takes_fixed(self) -> bool:
        """Whether it would accept a fixed interrupt: it is enabled by software."""

    def addressed(self, message: ApicMessage, /) -> bool:
        """Whether the destination field of `message` names it."""

    def deliver(self, message: ApicMessage, /) -> bool:
        """Take `message`; False if it was not accepted."""


class InterruptSource(Protocol):
    """An I/O APIC as the bus sees it."""

    def eoi(self, vector: int, /) -> None:
        """A local APIC has ended a level-triggered interrupt."""

    def retry(self) -> None:
        """Send again what nobody has accepted so far."""


def addressed(message: ApicMessage, *, apic_id: int, x2apic: bool, ldr: int, dfr: int) -> bool:
    """Whether a message's destination field names the local APIC with these registers.

    `ldr` and `dfr` are the 32-bit registers; an x2APIC has no DFR.
    """
    destination = message.destination
    if destination == (_BROADCAST_WIDE if message.wide else _BROADCAST):
        return True
    if not message.dest_logical:
        return destination == (apic_id if x2apic else apic_id & 0xFF)
    if x2apic:
        # 31:16 name a cluster, each bit of 15:0 one of its members. An 8-bit destination
        # reaches cluster 0.
        return destination >> 16 == ldr >> 16 and destination & ldr & 0xFFFF != 0
    logical = ldr >> 24
    if destination > 0xFF:
        return False
    if dfr >> 28 == _FLAT_MODEL:
        return destination & logical != 0
    return destination >> 4 == logical >> 4 and destination & logical & 0xF != 0


class ApicBus:
    """Connects local APICs and I/O APICs, which attach themselves when they are made."""

    def __init__(self) -> None:
        self._units: list[LocalUnit] = []
        self._sources: list[InterruptSource] = []

    @property
    def units(self) -> tuple[LocalUnit, ...]:
        """The local APICs, by APIC id."""
        return tuple(self._units)

    def attach(self, unit: LocalUnit) -> None:
        """Put a local APIC on the bus. Raises UsageError for an APIC id that is taken."""
        if any(other.apic_id == unit.apic_id for other in self._units):
            raise UsageError(
                f"there are two local APICs with the id {unit.apic_id}",
                hint="give each vCPU its own id; a restored machine has a bus of its own",
            )
        self._units.append(unit)
        self._units.sort(key=lambda u: u.apic_id)

    def attach_source(self, source: InterruptSource) -> None:
        """Put an I/O APIC on the bus: it is told of each EOI."""
        self._sources.append(source)

    def send(self, message: ApicMessage, sender: LocalUnit | None = None) -> bool:
        """Deliver `message`; whether at least one local APIC has accepted it.

        `sender` is the local APIC that a shorthand counts from; without one a shorthand
        raises UsageError.
        """
        targets = self._targets(message, sender)
        if message.delivery == Delivery.LOWEST and len(targets) > 1:
            able = [unit for unit in targets if unit.takes_fixed]
            # Equal priorities are settled by the id, so that runs repeat; min() keeps the first.
            targets = [min(able, key=lambda unit: unit.ppr)] if able else []
        accepted = False
        for unit in targets:
            if unit.deliver(message):
                accepted = True
        return accepted

    def _targets(self, message: ApicMessage, sender: LocalUnit | None) -> list[LocalUnit]:
        shorthand = message.shorthand
        if not shorthand:
            return [unit for unit in self._units if unit.addressed(message)]
        if sender is None:
            raise UsageError(
                "an APIC message with a shorthand, and no sender", hint="name the local APIC that sends it"
            )
        if shorthand == Shorthand.SELF:
            return [sender]
        everybody = ApicMessage(vector=0, destination=_BROADCAST)
        return [
            unit
            for unit in self._units
            if unit.addressed(everybody) and (shorthand == Shorthand.ALL or unit is not sender)
        ]

    def eoi(self, vector: int) -> None:
        """A local APIC broadcasts the end of a level-triggered interrupt (SDM vol. 3, 10.8.5)."""
        for source in self._sources:
            source.eoi(vector)

    def retry(self) -> None:
        """A local APIC accepts what it did not before: it was enabled, or has another id. An I/O APIC
        repeats a level-triggered message until it is accepted."""
        for source in self._sources:
            source.retry()
