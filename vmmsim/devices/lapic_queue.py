"""Which interrupt is next: IRR, ISR, TMR and the priorities of a local APIC.

Intel SDM, volume 3, 10.8. The registers of 256 bits are integers, bit n for vector n, so the
highest vector is a `bit_length`.
"""

from __future__ import annotations

__all__ = ["InterruptQueue"]


def _class(bits: int) -> int:
    """The class of the highest vector, as bits 7:4; 0 when there is none."""
    return bits.bit_length() - 1 & 0xF0 if bits else 0


class InterruptQueue:
    """The interrupts that a local APIC has accepted and not ended yet.

    `irr` are requested, `isr` in service; `tmr` tells which are level-triggered. `tpr` is set by
    `set_tpr`; `ppr` follows.
    """

    __slots__ = ("irr", "isr", "ppr", "tmr", "tpr")

    def __init__(self, tpr: int = 0, irr: int = 0, isr: int = 0, tmr: int = 0) -> None:
        self.tpr = tpr
        self.irr = irr
        self.isr = isr
        self.tmr = tmr
        self.ppr = 0
        self._update()

    def reset(self) -> None:
        self.tpr = self.irr = self.isr = self.tmr = self.ppr = 0

    def _update(self) -> None:
        """10.8.3.1. Where TPR and ISR are of one class, PPR bits 3:0 are TPR's: the SDM leaves
        that to the model."""
        served = _class(self.isr)
        self.ppr = self.tpr if self.tpr & 0xF0 >= served else served

    def set_tpr(self, value: int) -> None:
        self.tpr = value
        self._update()

    @property
    def apr(self) -> int:
        """Arbitration priority (10.6.2.4)."""
        task, asked, served = self.tpr & 0xF0, _class(self.irr), _class(self.isr)
        return self.tpr if task >= asked and task > served else max(task, asked, served)

    @property
    def ready(self) -> bool:
        """Whether the highest requested vector is of a higher class than PPR."""
        return (self.irr.bit_length() - 1) >> 4 > self.ppr >> 4

    def accept(self, vector: int, level: bool) -> bool:
        """Request `vector` (16-255); whether that is news to the vCPU. A second request while one is
        waiting is lost (10.8.4)."""
        bit = 1 << vector
        self.tmr = self.tmr | bit if level else self.tmr & ~bit
        if self.irr & bit:
            return False
        self.irr |= bit
        return vector >> 4 > self.ppr >> 4

    def take(self) -> int | None:
        """The vector that goes to the vCPU now; it moves from IRR to ISR."""
        vector = self.irr.bit_length() - 1
        if vector >> 4 <= self.ppr >> 4:
            return None
        self.irr ^= 1 << vector
        self.isr |= 1 << vector
        # Its class is above PPR's, and so above TPR's.
        self.ppr = vector & 0xF0
        return vector

    def end(self) -> int | None:
        """EOI: the vector that is in service no longer, if it is one to tell the I/O APICs of."""
        isr = self.isr
        if not isr:
            return None
        vector = isr.bit_length() - 1
        bit = 1 << vector
        self.isr = isr ^ bit
        self._update()
        return vector if self.tmr & bit else None
