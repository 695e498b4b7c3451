"""The local APIC, one for each vCPU: Intel SDM, volume 3, chapter 10.

Section numbers are those of that chapter. It is an xAPIC at its 4 KiB page, and an x2APIC at
MSRs 800h-83Fh once the guest has switched it (10.12). Its timer is `lapic_timer`, the
registers' layout `lapic_state`.

What is deliberately simpler than a chip: messages arrive at once, so the delivery status
bits always read 0; the APIC id cannot be written ("processor model specific", 10.4.6); there
is no SMM, so SMIs vanish; nothing ever raises the thermal and the performance counter
entries of the LVT. What is malformed but harmless on CPUs and in KVM is let through: IPIs
with a shorthand that the tables 10-3 and 10-4 call invalid are sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from ..clock import SECOND, Clock
from ..errors import UsageError
from . import lapic_state as regs
from .apic_bus import ApicBus, ApicMessage, Delivery, addressed
from .lapic_queue import InterruptQueue
from .lapic_state import LapicState, check, to_bits, to_words
from .lapic_timer import ApicTimer

__all__ = ["LapicState", "LocalApic"]

_WORD = 0xFFFF_FFFF
_EXTINT_MODE = Delivery.EXTINT << 8


class LocalApic:
    """A local APIC, attached to `bus` under `apic_id`.

    `on_change` is called when `pending()` may have become true. NMI, INIT and STARTUP (with
    the vector, 0-255) end in their callables: what the vCPU does then is not the APIC's. An
    INIT has already reset the APIC (10.4.7.3) when `on_init` is called.

    `extint` acknowledges the external interrupt controller (the 8259A) whose INTR output is
    connected to LINT0 by `set_lint(0, level)`; without it LINT0 in ExtINT mode interrupts
    nobody. `set_cr8` is told CR8 (0-15) when the guest writes TPR; a MOV to CR8 is given to
    `cr8_written`. `tsc` reads the guest's TSC of `tsc_hz`; without it there is no
    TSC-deadline mode, and CPUID must not promise it.

    `boot` and `virtual_wire` (see `LapicState.power_on`) are for the power-on state only.
    """

    #: 4 is the width of the registers. A narrower read answers that part of one, a narrower
    #: write does nothing (10.4.1 leaves both undefined).
    widths: frozenset[int] = frozenset({1, 2, 4})
    #: Bytes of address space that the device takes.
    length: ClassVar[int] = 0x1000

    def __init__(
        self,
        apic_id: int,
        clock: Clock,
        bus: ApicBus,
        *,
        boot: bool,
        on_change: Callable[[], None],
        on_nmi: Callable[[], None],
        on_init: Callable[[], None],
        on_startup: Callable[[int], None],
        extint: Callable[[], int] | None = None,
        set_cr8: Callable[[int], None] | None = None,
        tsc: Callable[[], int] | None = None,
        tsc_hz: int = SECOND,
        virtual_wire: bool = False,
        state: LapicState | None = None,
    ) -> None:
        """Raises UsageError for a `state` that the chip cannot be in, and for an APIC id that is
        none or is taken."""
        if not 0 <= apic_id < _WORD:
            raise UsageError(f"no local APIC can have the id {apic_id}", hint="use 0 to 0xfffffffe")
        state = state or LapicState.power_on(boot=boot, virtual_wire=virtual_wire)
        check(state)
        self.apic_id = apic_id
        self._bus = bus
        self._on_change = on_change
        self._on_nmi = on_nmi
        self._on_init = on_init
        self._on_startup = on_startup
        self._pic = extint
        self._set_cr8 = set_cr8
        self._has_tsc = tsc is not None
        self._base = state.apic_base
        self._ldr = state.ldr
        self._dfr = state.dfr
        self._svr = state.svr
        self._esr = state.esr
        self._errors = state.errors
        self._icr = state.icr
        self._lvt = list(state.lvt)
        self._queue = InterruptQueue(state.tpr, to_bits(state.irr), to_bits(state.isr), to_bits(state.tmr))
        self._pins = list(state.pins)
        self._external = state.external
        self._timer = ApicTimer(
            clock,
            lambda: self._local(regs.TIMER),
            name=f"local APIC {apic_id}",
            tsc=tsc,
            tsc_hz=tsc_hz,
            mode=self._lvt[regs.TIMER] >> 17 & 3,
            state=state.timer,
        )
        self._extint = False
        self._decode_base()
        bus.attach(self)
        self._update_extint()
        if self._queue.ready:
            on_change()

    @classmethod
    def from_state(
        cls,
        state: LapicState,
        *,
        apic_id: int,
        clock: Clock,
        bus: ApicBus,
        on_change: Callable[[], None],
        on_nmi: Callable[[], None],
        on_init: Callable[[], None],
        on_startup: Callable[[int], None],
        extint: Callable[[], int] | None = None,
        set_cr8: Callable[[int], None] | None = None,
        tsc: Callable[[], int] | None = None,
        tsc_hz: int = SECOND,
    ) -> LocalApic:
        """Raises UsageError for a state that the chip cannot be in."""
        return cls(
            apic_id,
            clock,
            bus,
            boot=False,
            on_change=on_change,
            on_nmi=on_nmi,
            on_init=on_init,
            on_startup=on_startup,
            extint=extint,
            set_cr8=set_cr8,
            tsc=tsc,
            tsc_hz=tsc_hz,
            state=state,
        )

    def state(self) -> LapicState:
        return LapicState(
            apic_base=self._base,
            tpr=self._queue.tpr,
            ldr=self._ldr,
            dfr=self._dfr,
            svr=self._svr,
            esr=self._esr,
            errors=self._errors,
            icr=self._icr,
            lvt=tuple(self._lvt),
            isr=to_words(self._queue.isr),
            tmr=to_words(self._queue.tmr),
            irr=to_words(self._queue.irr),
            timer=self._timer.state(),
            pins=(self._pins[0], self._pins[1]),
            external=self._external,
        )

    # The vCPU's side.

    @property
    def apic_base(self) -> int:
        """IA32_APIC_BASE. Bits 51:12 say where the guest wants the page, bit 11 whether the APIC
        is enabled (CPUID.1:EDX[9] follows it), bit 10 x2APIC mode."""
        return self._base

    def pending(self) -> bool:
        """Whether `acknowledge` would give an interrupt: the highest IRR vector is of a higher class
        than PPR (10.8.3.1), or an external interrupt is asserted, which knows no priority."""
        return self._extint or self._queue.ready

    def acknowledge(self) -> int:
        """The vector (0-255) of the interrupt that the vCPU takes; it moves from IRR to ISR. An
        external interrupt comes first, its vector from `extint`. With nothing left it is the
        spurious vector, which needs no EOI (10.9)."""
        if self._extint and self._pic is not None:
            return self._pic() & 0xFF
        vector = self._queue.take()
        return self._svr & 0xFF if vector is None else vector

    def cr8_written(self, value: int, /) -> None:
        """The guest has set CR8: TPR bits 7:4; bits 3:0 become 0 (10.8.6.1)."""
        self._write_tpr((value & 0xF) << 4)

    def tsc_changed(self) -> None:
        """The guest's TSC was written: a TSC deadline comes earlier or later."""
        self._timer.tsc_changed()

    def set_lint(self, number: int, level: bool) -> None:
        """The level of pin LINT0 (on a PC the 8259A's INTR) or LINT1 (the chipset's NMI). While the
        APIC is disabled in APIC_BASE they are the CPU's INTR and NMI pins (10.4.3)."""
        if number not in (0, 1):
            raise UsageError(f"a local APIC has no pin LINT{number}", hint="use 0 or 1")
        if level == self._pins[number]:
            return
        self._pins[number] = level
        self._update_extint()
        if level:
            if self._enabled:
                self._local(regs.LINT0 + number)
            elif number == 1:
                self._on_nmi()

    def msr_read(self, index: int, /) -> int | None:
        """RDMSR of 1Bh, 6E0h and 800h-83Fh; None is #GP(0)."""
        if regs.MSR_X2APIC <= index <= regs.MSR_X2APIC + regs.SELF_IPI:
            reg = index - regs.MSR_X2APIC
            if not self._x2apic or reg in regs.X2APIC_UNREADABLE:
                return None
            return self._icr if reg == regs.ICR else self._get(reg)
        if index == regs.MSR_APIC_BASE:
            return self._base
        if index == regs.MSR_TSC_DEADLINE and self._has_tsc:
            return self._timer.tsc_deadline
        return None

    def msr_write(self, index: int, value: int, /) -> bool:
        """WRMSR of the same; False is #GP(0), and nothing has changed."""
        if regs.MSR_X2APIC <= index <= regs.MSR_X2APIC + regs.SELF_IPI:
            return self._x2apic and self._put_x2apic(index - regs.MSR_X2APIC, value)
        if index == regs.MSR_APIC_BASE:
            return self._write_base(value)
        if index == regs.MSR_TSC_DEADLINE and self._has_tsc:
            self._timer.set_tsc_deadline(value)
            return True
        return False

    # The page.

    def read(self, offset: int, size: int, /) -> int:
        within = offset & 0xF
        if not self._xapic or within + size > 4:
            return 0
        value = self._get(offset >> 4)
        if value is None:
            self._error(regs.ESR_ILLEGAL_REGISTER)
            return 0
        return value >> 8 * within & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int, /) -> None:
        if not self._xapic or offset & 0xF or size != 4:
            return
        if not self._put(offset >> 4, value & _WORD):
            self._error(regs.ESR_ILLEGAL_REGISTER)

    def _get(self, reg: int) -> int | None:
        """A register's 32 bits; None if there is no such register."""
        queue = self._queue
        if regs.ISR <= reg < regs.ESR:
            bits = queue.isr if reg < regs.TMR else queue.tmr if reg < regs.IRR else queue.irr
            return bits >> 32 * (reg & 7) & _WORD
        if regs.LVT_TIMER <= reg <= regs.LVT_ERROR:
            return self._lvt[reg - regs.LVT_TIMER]
        read = _READERS.get(reg)
        return None if read is None else read(self)

    def _put(self, reg: int, value: int) -> bool:
        """Write a register of the xAPIC page; False if there is none."""
        if reg == regs.EOI:
            self._end_of_interrupt()
        elif reg == regs.TPR:
            self._write_tpr(value & 0xFF)
            if self._set_cr8 is not None:
                self._set_cr8(self._queue.tpr >> 4)
        elif reg == regs.ICR:
            self._icr = self._icr & ~_WORD | value & regs.ICR_BITS
            self._send()
        elif reg == regs.ICR_HIGH:
            self._icr = (value & 0xFF00_0000) << 32 | self._icr & _WORD
        elif regs.LVT_TIMER <= reg <= regs.LVT_ERROR:
            self._write_lvt(reg - regs.LVT_TIMER, value)
        elif reg == regs.INITIAL:
            self._timer.set_initial(value)
        elif reg == regs.DIVIDE:
            self._timer.set_divide(value)
        elif reg == regs.SVR:
            self._write_svr(value)
        elif reg == regs.ESR:
            # Shows what was logged since the last write, and lets the next error interrupt.
            self._esr, self._errors = self._errors, 0
        elif reg in (regs.LDR, regs.DFR):
            if reg == regs.LDR:
                self._ldr = value & 0xFF00_0000
            else:
                self._dfr = value | 0x0FFF_FFFF
            self._bus.retry()
        else:
            # Registers for reading ignore writes.
            return self._get(reg) is not None
        return True

    def _put_x2apic(self, reg: int, value: int) -> bool:
        """WRMSR to a register; False for a reserved bit or register (10.12.1.2, 10.12.1.3)."""
        if reg == regs.ICR:
            if value & regs.X2APIC_ICR_RESERVED:
                return False
            self._icr = value & (_WORD << 32 | regs.ICR_BITS)
            self._send()
            return True
        if regs.LVT_TIMER <= reg <= regs.LVT_ERROR:
            # The status bits 12 and 14 are for reading, not reserved.
            if value & ~(self._lvt_bits(reg - regs.LVT_TIMER) | 0x1000 | regs.LVT_REMOTE_IRR):
                return False
        elif reg not in regs.X2APIC_WRITABLE or value & ~regs.X2APIC_WRITABLE[reg]:
            return False
        if reg == regs.SELF_IPI:
            if value < 16:
                self._error(regs.ESR_SEND_ILLEGAL)
            self.deliver(ApicMessage(vector=value))
            return True
        return self._put(reg, value)

    # Modes.

    def _decode_base(self) -> None:
        self._enabled = bool(self._base & regs.BASE_ENABLE)
        self._x2apic = bool(self._base & regs.BASE_EXTD)
        self._xapic = self._enabled and not self._x2apic

    def _write_base(self, value: int) -> bool:
        if value & ~regs.BASE_BITS:
            return False
        modes = regs.BASE_ENABLE | regs.BASE_EXTD
        old, new = self._base & modes, value & modes
        # 10.12.5: x2APIC is entered from xAPIC only, and left for disabled only.
        if new == regs.BASE_EXTD or (old == modes and new == regs.BASE_ENABLE) or (old == 0 and new == modes):
            return False
        self._base = value
        self._decode_base()
        if not new and old:
            # Enabled again, it is as after power-on (10.4.3).
            self._reset()
            # It hears of no message now; an I/O APIC repeats the 8259A's request at `retry`.
            self._external = False
        self._update_extint()
        if old != new:
            self._bus.retry()
        return True

    def _write_svr(self, value: int) -> None:
        was = self._svr & regs.SVR_ENABLE
        self._timer.settle()
        self._svr = value & regs.SVR_BITS
        if not value & regs.SVR_ENABLE:
            # Masks all, and keeps masked what is written meanwhile (10.4.7.2). What is in IRR
            # and ISR stays and is still handled.
            self._lvt = [entry | regs.LVT_MASKED for entry in self._lvt]
        self._update_extint()
        if not was and value & regs.SVR_ENABLE:
            self._bus.retry()

    def _reset(self) -> None:
        """The state after power-on and INIT: all registers but the id and APIC_BASE."""
        fresh = LapicState()
        self._ldr = fresh.ldr
        self._dfr = fresh.dfr
        self._svr = fresh.svr
        self._esr = self._errors = 0
        self._icr = 0
        self._lvt = list(fresh.lvt)
        self._queue.reset()
        self._timer.reset()
        self._update_extint()
        if self._set_cr8 is not None:
            self._set_cr8(0)

    # Priorities.

    def _write_tpr(self, value: int) -> None:
        self._queue.set_tpr(value)
        if self._queue.ready:
            self._on_change()

    def _end_of_interrupt(self) -> None:
        """Ends the interrupt of the highest priority in service (10.8.5)."""
        vector = self._queue.end()
        if vector is not None:
            entry = self._lvt[regs.LINT0]
            if entry & regs.LVT_REMOTE_IRR and entry & 0xFF == vector:
                self._lvt[regs.LINT0] = entry & ~regs.LVT_REMOTE_IRR
                if self._pins[0]:
                    self._local(regs.LINT0)
            self._bus.eoi(vector)
        if self._queue.ready:
            self._on_change()

    def _accept(self, vector: int, level: bool) -> bool:
        """A fixed interrupt comes in. Vectors 0-15 are illegal (10.5.2)."""
        if vector < 16:
            self._error(regs.ESR_RECEIVE_ILLEGAL)
            return False
        if self._queue.accept(vector, level):
            self._on_change()
        return True

    # The local vector table.

    def _lvt_bits(self, index: int) -> int:
        return regs.LVT_BITS[index] & ~(0 if self._has_tsc or index != regs.TIMER else regs.LVT_TSC_DEADLINE)

    def _write_lvt(self, index: int, value: int) -> None:
        entry = value & self._lvt_bits(index)
        if not self._svr & regs.SVR_ENABLE:
            entry |= regs.LVT_MASKED
        if index == regs.TIMER:
            # A count that has run out interrupts by the entry as it was then.
            self._timer.settle()
            self._lvt[regs.TIMER] = entry
            self._timer.set_mode(entry >> 17 & 3)
        elif index == regs.LINT0:
            level = entry & regs.LVT_LEVEL and not entry & regs.LVT_MODE
            if level:
                entry |= self._lvt[regs.LINT0] & regs.LVT_REMOTE_IRR
            self._lvt[regs.LINT0] = entry
            if level and self._pins[0]:
                self._local(regs.LINT0)
            self._update_extint()
        else:
            self._lvt[index] = entry

    def _local(self, index: int) -> None:
        """An LVT entry's event has come."""
        entry = self._lvt[index]
        if entry & regs.LVT_MASKED:
            return
        mode = entry >> 8 & 7
        if mode == Delivery.FIXED:
            # LINT1 knows edges only, whatever its bit 15 says (10.5.1).
            level = index == regs.LINT0 and bool(entry & regs.LVT_LEVEL)
            if level and entry & regs.LVT_REMOTE_IRR:
                return
            if self._accept(entry & 0xFF, level) and level:
                self._lvt[regs.LINT0] |= regs.LVT_REMOTE_IRR
        elif mode == Delivery.NMI:
            self._on_nmi()
        elif mode == Delivery.INIT:
            self._reset()
            self._on_init()

    def _update_extint(self) -> None:
        """Whether the 8259A's request reaches the vCPU (10.4.3, 10.5.1)."""
        asserted = self._pins[0]
        if self._enabled:
            through = self._lvt[regs.LINT0] & (regs.LVT_MASKED | regs.LVT_MODE) == _EXTINT_MODE
            software = bool(self._svr & regs.SVR_ENABLE)
            asserted = (asserted and through) or (self._external and software)
        asserted = asserted and self._pic is not None
        rose = asserted and not self._extint
        self._extint = asserted
        if rose:
            self._on_change()

    def _error(self, bit: int) -> None:
        """Log an error. It interrupts once for each write of ESR (10.5.3): an error entry with an
        illegal vector of its own would never end otherwise."""
        first = not self._errors
        self._errors |= bit
        if first:
            self._local(regs.ERROR)

    # The bus.

    @property
    def ppr(self) -> int:
        return self._queue.ppr

    @property
    def takes_fixed(self) -> bool:
        return bool(self._svr & regs.SVR_ENABLE)

    def addressed(self, message: ApicMessage, /) -> bool:
        return self._enabled and addressed(
            message, apic_id=self.apic_id, x2apic=self._x2apic, ldr=self._logical_id(), dfr=self._dfr
        )

    def _logical_id(self) -> int:
        """LDR. That of an x2APIC is made of its id (10.12.10.2)."""
        if self._x2apic:
            return (self.apic_id >> 4 & 0xFFFF) << 16 | 1 << (self.apic_id & 0xF)
        return self._ldr

    def deliver(self, message: ApicMessage, /) -> bool:
        """Take a message from the bus; False if it is not accepted. Disabled by software, the
        APIC takes INIT, NMI and STARTUP only (10.4.7.2)."""
        mode = message.delivery
        if mode <= Delivery.LOWEST:
            return bool(self._svr & regs.SVR_ENABLE) and self._accept(message.vector, message.trigger_level)
        if mode == Delivery.NMI:
            self._on_nmi()
        elif mode == Delivery.INIT:
            self._reset()
            self._on_init()
        elif mode == Delivery.STARTUP:
            self._on_startup(message.vector)
        elif mode == Delivery.EXTINT:
            self._external = message.level
            self._update_extint()
        return True

    def _send(self) -> None:
        """ICR was written (10.6.1)."""
        icr = self._icr
        mode = icr >> 8 & 7
        if mode in (3, Delivery.EXTINT):
            return  # reserved
        if mode == Delivery.INIT and icr & (regs.ICR_LEVEL | regs.ICR_ASSERT) == regs.ICR_LEVEL:
            # INIT level de-assert synchronized the arbitration ids of P6; nothing is left of it.
            return
        vector = icr & 0xFF
        if mode <= Delivery.LOWEST and vector < 16:
            self._error(regs.ESR_SEND_ILLEGAL)
        self._bus.send(
            ApicMessage(
                vector=vector,
                delivery=mode,
                destination=icr >> 32 if self._x2apic else icr >> 56,
                dest_logical=bool(icr & 0x800),
                shorthand=icr >> 18 & 3,
                wide=self._x2apic,
            ),
            self,
        )


#: The registers that are one of their kind, as the page shows them.
_READERS: dict[int, Callable[[LocalApic], int]] = {
    regs.ID: lambda apic: apic.apic_id if apic._x2apic else (apic.apic_id & 0xFF) << 24,
    regs.VERSION: lambda apic: regs.VERSION_VALUE,
    regs.TPR: lambda apic: apic._queue.tpr,
    regs.APR: lambda apic: apic._queue.apr,
    regs.PPR: lambda apic: apic._queue.ppr,
    regs.EOI: lambda apic: 0,  # for writing
    regs.RRD: lambda apic: 0,  # remote reads went away with the APIC bus
    regs.LDR: lambda apic: apic._logical_id(),
    regs.DFR: lambda apic: apic._dfr,
    regs.SVR: lambda apic: apic._svr,
    regs.ESR: lambda apic: apic._esr,
    regs.ICR: lambda apic: apic._icr & _WORD,
    regs.ICR_HIGH: lambda apic: apic._icr >> 32 & 0xFF00_0000,
    regs.INITIAL: lambda apic: apic._timer.initial,
    regs.CURRENT: lambda apic: apic._timer.current(),
    regs.DIVIDE: lambda apic: apic._timer.divide,
}
