"""ACPI's fixed hardware: power button, power off, the PM timer.

ACPI Specification 6.5, chapter 4.8 ("ACPI Register Model"). The blocks lie side by side, in
the order of Intel's PIIX4, and the FADT (`vmmsim.loaders.acpi`) tells the guest where:

    +0  PM1a_EVT_BLK  4 bytes  PM1 status, write 1 to clear (+0); PM1 enable (+2)
    +4  PM1a_CNT_BLK  2 bytes  SCI_EN, SLP_TYP, SLP_EN
    +8  PM_TMR_BLK    4 bytes  a 24-bit counter at 3.579545 MHz

There is no SMI and no firmware that would own the hardware: SCI_EN always reads 1 and the
FADT's SMI_CMD is 0, by which a guest knows that it is in ACPI mode and has nothing to do
(5.2.9, "SMI_CMD" is zero on a platform without System Management Mode). There is no GPE
block either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import msgspec

from ..clock import SECOND, Clock
from ..errors import UsageError
from .base import Irq, NoIrq

__all__ = ["PM_TIMER_HZ", "S5", "AcpiPm", "AcpiPmState"]

PM_TIMER_HZ = 3_579_545
#: SLP_TYP of the soft-off state, as the DSDT's \\_S5 says it to the guest.
S5 = 5

PM1_STS, PM1_EN, PM1_CNT, PM_TMR = 0, 2, 4, 8

# PM1 status and enable (tables 4.11 and 4.12): what may be pending, and what of it pulls the SCI.
TMR_STS = 0x0001
GBL_STS = 0x0020
PWRBTN_STS = 0x0100
SLPBTN_STS = 0x0200
RTC_STS = 0x0400
WAK_STS = 0x8000
STS_MASK = TMR_STS | PWRBTN_STS | WAK_STS  # BM_STS, GBL_STS, SLPBTN_STS, RTC_STS have no source here
EN_MASK = TMR_STS | GBL_STS | PWRBTN_STS | SLPBTN_STS | RTC_STS

# PM1 control (table 4.13).
SCI_EN = 0x0001
BM_RLD = 0x0002
SLP_TYP = 0x1C00
SLP_TYP_SHIFT = 10
SLP_EN = 0x2000
CNT_KEPT = BM_RLD | SLP_TYP  # GBL_RLS and SLP_EN are write-only

COUNTER_MASK = 0xFFFFFF
#: TMR_STS tells each change of the counter's top bit, once in 2.34 seconds.
HALF_BITS = 23


class AcpiPmState(msgspec.Struct, frozen=True):
    """`status`, `enable` and `control` are the PM1 registers; SCI_EN is not among them.

    `halves` counts the changes of the timer's top bit that TMR_STS has told of (or that
    happened before it was cleared). The counter itself follows from the clock.
    """

    status: int = 0
    enable: int = 0
    control: int = 0
    halves: int = 0


def _ticks(now: int) -> int:
    return now * PM_TIMER_HZ // SECOND


class AcpiPm:
    """The PM1a event, PM1a control and PM timer blocks: 16 ports, 1, 2 or 4 bytes wide.

    `irq` is the SCI, a level: high while an enabled event is pending. Writing SLP_EN calls
    `on_power_off()` when SLP_TYP is S5, else `on_sleep(slp_typ)` if it is given; a machine that
    sleeps is woken by `wake()`. The timer's event comes by a clock timer only while it is enabled.
    """

    widths: frozenset[int] = frozenset({1, 2, 4})
    #: Ports that the device takes.
    length: ClassVar[int] = 16

    def __init__(
        self,
        clock: Clock,
        irq: Irq | None = None,
        *,
        on_power_off: Callable[[], None],
        on_sleep: Callable[[int], None] | None = None,
        state: AcpiPmState | None = None,
    ) -> None:
        """Raises UsageError for a `state` that the hardware cannot be in."""
        state = state or AcpiPmState(halves=_ticks(clock.now()) >> HALF_BITS)
        for field, mask in (("status", STS_MASK), ("enable", EN_MASK), ("control", CNT_KEPT)):
            value = getattr(state, field)
            if value & ~mask:
                raise UsageError(
                    f"acpi pm: {field} = {value:#x} in the state has bits that do not exist",
                    hint=f"only the bits {mask:#x} exist",
                )
        if state.halves < 0:
            raise UsageError(
                f"acpi pm: {state.halves} changes of the timer's top bit in the state", hint="use 0 or more"
            )
        self._clock = clock
        self._irq = irq if irq is not None else NoIrq()
        self._on_power_off = on_power_off
        self._on_sleep = on_sleep
        self._status = state.status
        self._enable = state.enable
        self._control = state.control
        self._halves = state.halves
        self._timer = clock.timer(self._expired, "acpi-pm")
        self._level: bool | None = None
        self._update()

    @classmethod
    def from_state(
        cls,
        state: AcpiPmState,
        *,
        clock: Clock,
        irq: Irq | None = None,
        on_power_off: Callable[[], None],
        on_sleep: Callable[[int], None] | None = None,
    ) -> AcpiPm:
        """Raises UsageError for a state that the hardware cannot be in."""
        return cls(clock, irq, on_power_off=on_power_off, on_sleep=on_sleep, state=state)

    def state(self) -> AcpiPmState:
        return AcpiPmState(self._status, self._enable, self._control, self._halves)

    # What the host does.

    def press_power(self) -> None:
        """Press the power button: the guest gets an SCI, if it enabled it, and may power off."""
        self._status |= PWRBTN_STS
        self._update()

    def wake(self) -> None:
        """End a sleep: WAK_STS tells the guest, which polls for it."""
        self._status |= WAK_STS
        self._update()

    # What the guest does.

    def read(self, offset: int, size: int, /) -> int:
        if offset == PM_TMR and size == 4:  # what guests do all day
            return _ticks(self._clock.now()) & COUNTER_MASK
        if not 0 <= offset < self.length:
            return 0
        if offset < PM1_EN:
            self._count_halves()
        registers = (
            self._status
            | self._enable << 8 * PM1_EN
            | (self._control | SCI_EN) << 8 * PM1_CNT
            | (_ticks(self._clock.now()) & COUNTER_MASK) << 8 * PM_TMR
        )
        return registers >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int, /) -> None:
        if not 0 <= offset < PM_TMR:
            return
        value = (value & (1 << 8 * size) - 1) << 8 * offset
        written = (1 << 8 * size) - 1 << 8 * offset
        if offset < PM1_CNT:
            # What happened until now is cleared as well, whether the guest has seen it or not.
            self._count_halves()
        if offset < PM1_EN:
            self._status &= ~value
        mask = written >> 8 * PM1_EN & EN_MASK
        if mask:
            self._enable = self._enable & ~mask | value >> 8 * PM1_EN & mask
        mask = written >> 8 * PM1_CNT & CNT_KEPT
        if mask:
            self._control = self._control & ~mask | value >> 8 * PM1_CNT & mask
        self._update()
        if value >> 8 * PM1_CNT & SLP_EN:
            self._sleep((self._control & SLP_TYP) >> SLP_TYP_SHIFT)

    def _sleep(self, slp_typ: int) -> None:
        if slp_typ == S5:
            self._on_power_off()
        elif self._on_sleep is not None:
            self._on_sleep(slp_typ)

    def _count_halves(self) -> None:
        """Set TMR_STS if the counter's top bit has changed since we looked; many changes are one."""
        halves = _ticks(self._clock.now()) >> HALF_BITS
        if halves > self._halves:
            self._halves = halves
            self._status |= TMR_STS

    def _expired(self) -> None:
        self._count_halves()
        self._update()

    def _update(self) -> None:
        # While the event is pending already the next one would change nothing.
        if self._enable & ~self._status & TMR_STS:
            ticks = self._halves + 1 << HALF_BITS
            self._timer.set(-(-ticks * SECOND // PM_TIMER_HZ))
        else:
            self._timer.clear()
        # WAK_STS has no enable bit: it only tells.
        level = bool(self._status & self._enable)
        if level != self._level:
            self._level = level
            self._irq.set(level)
