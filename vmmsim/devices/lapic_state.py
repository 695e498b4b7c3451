"""The local APIC's registers: numbers, bits, and the state that a snapshot holds.

Register numbers are the offset in the xAPIC page divided by 16, which is the x2APIC MSR less
800h (Intel SDM, volume 3, tables 10-1 and 10-6).
"""

from __future__ import annotations

import msgspec

from ..cpu.cpuid import PHYSICAL_BITS
from ..errors import UsageError
from .apic_bus import Delivery
from .lapic_timer import ApicTimerState

__all__ = ["LapicState"]

ID, VERSION, TPR, APR, PPR, EOI, RRD, LDR, DFR, SVR = 2, 3, 8, 9, 0xA, 0xB, 0xC, 0xD, 0xE, 0xF
ISR, TMR, IRR = 0x10, 0x18, 0x20  # eight registers each
ESR, ICR, ICR_HIGH = 0x28, 0x30, 0x31
LVT_TIMER, LVT_THERMAL, LVT_PMC, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(0x32, 0x38)
INITIAL, CURRENT, DIVIDE, SELF_IPI = 0x38, 0x39, 0x3E, 0x3F

MSR_APIC_BASE, MSR_TSC_DEADLINE = 0x1B, 0x6E0
MSR_X2APIC = 0x800

BASE_BSP, BASE_EXTD, BASE_ENABLE = 0x100, 0x400, 0x800
BASE_BITS = (1 << PHYSICAL_BITS) - 0x1000 | BASE_BSP | BASE_EXTD | BASE_ENABLE
BASE_RESET = 0xFEE0_0000 | BASE_ENABLE

#: 14h is an xAPIC (and x2APIC); six LVT entries, so the highest is 5. Bit 24 is clear: no EOI
#: broadcast suppression, since an I/O APIC of version 11h has no EOI register to make up for it.
VERSION_VALUE = 5 << 16 | 0x14

SVR_ENABLE = 0x100
SVR_BITS = 0x3FF

LVT_MODE = 0x700  # bits 10:8, the delivery mode
LVT_REMOTE_IRR = 0x4000
LVT_LEVEL = 0x8000
LVT_MASKED = 0x1_0000
LVT_TSC_DEADLINE = 0x4_0000
#: What can be written: timer, thermal, PMC, LINT0, LINT1, error.
LVT_BITS = (0x700FF, 0x107FF, 0x107FF, 0x1A7FF, 0x1A7FF, 0x100FF)
#: Indices in the LVT.
TIMER, LINT0, LINT1, ERROR = 0, 3, 4, 5

ESR_SEND_ILLEGAL, ESR_RECEIVE_ILLEGAL, ESR_ILLEGAL_REGISTER = 0x20, 0x40, 0x80
ESR_BITS = 0xE0

ICR_BITS = 0xCCFFF  # of the low half; bit 12, the delivery status, always reads 0: idle
ICR_ASSERT, ICR_LEVEL = 0x4000, 0x8000
#: Reserved in MSR 830h. Bit 12, which xAPIC has as a status, is ignored as CPUs ignore it.
X2APIC_ICR_RESERVED = 0xFFF3_2000

#: Registers of x2APIC that can be written and their bits; all other bits are #GP(0).
X2APIC_WRITABLE = {
    TPR: 0xFF,
    EOI: 0,
    SVR: SVR_BITS,
    ESR: 0,
    INITIAL: 0xFFFF_FFFF,
    DIVIDE: 0xB,
    SELF_IPI: 0xFF,
}
#: Registers of the xAPIC page that x2APIC lacks (ICR is one register of 64 bits there), and those
#: that are for writing only.
X2APIC_UNREADABLE = frozenset({APR, EOI, RRD, DFR, ICR_HIGH, SELF_IPI})


class LapicState(msgspec.Struct, frozen=True):
    """Every bit of a local APIC. The defaults are a bootstrap processor after power-on (SDM
    vol. 3, 10.4.7.1): enabled in APIC_BASE, disabled in SVR, all LVT entries masked.

    `isr`, `tmr` and `irr` are eight 32-bit words as the guest reads them. `esr` is what a read
    shows, `errors` what the next write of ESR will show. `icr` is both halves. `pins`
    are the levels of LINT0 and LINT1, `external` that of an 8259A behind an I/O APIC.
    """

    apic_base: int = BASE_RESET | BASE_BSP
    tpr: int = 0
    ldr: int = 0
    dfr: int = 0xFFFF_FFFF
    svr: int = 0xFF
    esr: int = 0
    errors: int = 0
    icr: int = 0
    lvt: tuple[int, ...] = (LVT_MASKED,) * 6
    isr: tuple[int, ...] = (0,) * 8
    tmr: tuple[int, ...] = (0,) * 8
    irr: tuple[int, ...] = (0,) * 8
    timer: ApicTimerState = ApicTimerState()
    pins: tuple[bool, bool] = (False, False)
    external: bool = False

    @classmethod
    def power_on(cls, *, boot: bool, virtual_wire: bool = False) -> LapicState:
        """The state of a new machine. `virtual_wire` is what a BIOS leaves on the bootstrap
        processor (MultiProcessor Specification 1.4, 3.6.2.2): LINT0 takes the 8259A's
        interrupts, LINT1 NMIs, and SVR is 1FFh."""
        base = BASE_RESET | (BASE_BSP if boot else 0)
        if not virtual_wire:
            return cls(apic_base=base)
        lvt = [LVT_MASKED] * 6
        lvt[LINT0] = Delivery.EXTINT << 8
        lvt[LINT1] = Delivery.NMI << 8
        return cls(apic_base=base, svr=0x1FF, lvt=tuple(lvt))


def to_words(bits: int) -> tuple[int, ...]:
    """256 bits as eight registers."""
    return tuple(bits >> 32 * word & 0xFFFF_FFFF for word in range(8))


def to_bits(words: tuple[int, ...]) -> int:
    return sum(word << 32 * number for number, word in enumerate(words))


_FIELD_MASKS = {
    "apic_base": BASE_BITS,
    "tpr": 0xFF,
    "ldr": 0xFF00_0000,
    "dfr": 0xFFFF_FFFF,
    "svr": SVR_BITS,
    "esr": ESR_BITS,
    "errors": ESR_BITS,
    "icr": 0xFFFF_FFFF << 32 | ICR_BITS,
}


def check(state: LapicState) -> None:
    """Raises UsageError for a state that the chip cannot be in."""
    for field, mask in _FIELD_MASKS.items():
        value = getattr(state, field)
        if value & ~mask:
            raise UsageError(
                f"local APIC: {field} = {value:#x} in the state has bits that the chip lacks",
                hint=f"only the bits {mask:#x} exist",
            )
    if state.apic_base & (BASE_EXTD | BASE_ENABLE) == BASE_EXTD:
        raise UsageError(
            f"local APIC: APIC_BASE {state.apic_base:#x} in the state has x2APIC on and the APIC off",
            hint="set bit 11, or clear bit 10",
        )
    if state.dfr & 0x0FFF_FFFF != 0x0FFF_FFFF:
        raise UsageError(f"local APIC: dfr = {state.dfr:#x} in the state", hint="bits 27:0 of DFR are ones")
    if len(state.lvt) != len(LVT_BITS):
        raise UsageError(
            f"local APIC: {len(state.lvt)} LVT entries in the state", hint=f"there are {len(LVT_BITS)}"
        )
    for index, (entry, bits) in enumerate(zip(state.lvt, LVT_BITS, strict=True)):
        if entry & ~(bits | (LVT_REMOTE_IRR if index == LINT0 else 0)):
            raise UsageError(
                f"local APIC: LVT entry {index} is {entry:#x} in the state",
                hint=f"only the bits {bits:#x} exist",
            )
        if not state.svr & SVR_ENABLE and not entry & LVT_MASKED:
            raise UsageError(
                f"local APIC: LVT entry {index} is not masked in the state, and SVR disables the APIC",
                hint="set bit 16 of the entry, or bit 8 of svr",
            )
    for field in ("isr", "tmr", "irr"):
        words = getattr(state, field)
        if len(words) != 8 or any(not 0 <= word <= 0xFFFF_FFFF for word in words) or words[0] & 0xFFFF:
            raise UsageError(
                f"local APIC: {field} = {words} in the state",
                hint="eight words of 32 bits; vectors 0-15 cannot be there",
            )
    if len(state.pins) != 2:
        raise UsageError(f"local APIC: pins = {state.pins} in the state", hint="there are LINT0 and LINT1")
