"""The serial port: a 16550A UART, as in the National Semiconductor PC16550D data sheet.

Names in quotes are sections of the data sheet (June 1995).
What is deliberately unreal, because we are virtual:

* The line is infinitely fast. A byte written to THR is out before the write returns, so
  THRE and TEMT always read 1, and the transmitter FIFO is always empty.
* Time passes at once. With fewer bytes than the trigger level in the receiver FIFO, the
  "no byte came for four character times" of the time-out interrupt is true immediately.
* Characters are 8 bits whatever LCR says, so a guest may print without setting up the
  line, and the divisor changes nothing.
"""

from __future__ import annotations

from collections import deque
from typing import ClassVar

import msgspec

from ..errors import UsageError
from .base import CharSink, CharSource, Irq, NoIrq

__all__ = ["FIFO_SIZE", "Uart16550", "UartState"]

FIFO_SIZE = 16

# Register offsets. RBR/THR and IER make way for the divisor while LCR.DLAB is set.
RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7

# IER: which events may pull the interrupt line.
IER_RX = 0x01  # received data, or time-out
IER_THRE = 0x02  # the transmitter wants the next byte
IER_LINE = 0x04  # overrun, parity, framing, break
IER_MODEM = 0x08  # a modem line moved
IER_MASK = 0x0F

# IIR: what the handler is to do, most urgent first.
IIR_NONE = 0x01
IIR_MODEM = 0x00
IIR_THRE = 0x02
IIR_RX = 0x04
IIR_LINE = 0x06
IIR_TIMEOUT = 0x0C
IIR_FIFOS = 0xC0  # how a driver tells a 16550A from a 16450

FCR_ENABLE = 0x01
FCR_CLEAR_RX = 0x02
FCR_KEPT = 0xC9  # trigger level, DMA mode, enable; the two clear bits fall back by themselves
TRIGGER_LEVELS = (1, 4, 8, 14)

LCR_DLAB = 0x80
LCR_BREAK = 0x40

MCR_DTR = 0x01
MCR_RTS = 0x02
MCR_OUT1 = 0x04
MCR_OUT2 = 0x08  # on a PC this output lets the interrupt out of the card
MCR_LOOP = 0x10
MCR_MASK = 0x1F

LSR_DR = 0x01
LSR_OE = 0x02
LSR_PE = 0x04
LSR_FE = 0x08
LSR_BI = 0x10
LSR_EMPTY = 0x60  # THRE and TEMT
LSR_FIFO_ERROR = 0x80
LSR_CHAR_ERRORS = LSR_PE | LSR_FE | LSR_BI
LSR_ERRORS = LSR_OE | LSR_CHAR_ERRORS

MSR_TERI = 0x04
MSR_CTS = 0x10
MSR_DSR = 0x20
MSR_RI = 0x40
MSR_DCD = 0x80
MSR_DELTAS = 0x0F


class UartState(msgspec.Struct, frozen=True):
    """Every bit of the UART, at power-on by default (the data sheet's "UART Reset Configuration").

    `lsr` holds only the error bits not read yet, `msr` only the delta bits; the rest of
    both follows. `lines` are the modem inputs as in MSR bits 7:4: the power-on value is a
    peer that is there and ready (DCD, DSR, CTS). `rx` are the received characters, oldest
    first; bits 12:10 of one are its LSR error bits BI, FE, PE. `rbr` is the last one read.
    """

    ier: int = 0
    fcr: int = 0
    lcr: int = 0
    mcr: int = 0
    lsr: int = 0
    msr: int = 0
    scr: int = 0
    #: The data sheet leaves it open; 12 is 9600 baud from a PC's 1.8432 MHz.
    divisor: int = 12
    lines: int = MSR_DCD | MSR_DSR | MSR_CTS
    rx: tuple[int, ...] = ()
    rbr: int = 0
    thre_pending: bool = False


#: Bits that each field may have.
_FIELD_MASKS = {
    "ier": IER_MASK,
    "fcr": FCR_KEPT,
    "lcr": 0xFF,
    "mcr": MCR_MASK,
    "lsr": LSR_ERRORS,
    "msr": MSR_DELTAS,
    "scr": 0xFF,
    "divisor": 0xFFFF,
    "lines": 0xF0,
    "rbr": 0xFF,
}


def _check(state: UartState) -> None:
    for field, mask in _FIELD_MASKS.items():
        value = getattr(state, field)
        if value & ~mask:
            raise UsageError(
                f"uart16550: {field} = {value:#x} in the state has bits that the chip lacks",
                hint=f"only the bits {mask:#x} exist",
            )
    if state.fcr and not state.fcr & FCR_ENABLE:
        raise UsageError(
            f"uart16550: FCR {state.fcr:#04x} in the state without its enable bit",
            hint="use 0, or set bit 0",
        )
    if state.thre_pending and not state.ier & IER_THRE:
        raise UsageError(
            "uart16550: a transmitter interrupt is pending in the state, and IER disables it",
            hint="set bit 1 of ier, or clear thre_pending",
        )
    room = FIFO_SIZE if state.fcr & FCR_ENABLE else 1
    if len(state.rx) > room:
        raise UsageError(
            f"uart16550: {len(state.rx)} received characters in the state",
            hint=f"the receiver holds at most {room} with FCR {state.fcr:#04x}",
        )
    for entry in state.rx:
        if entry & ~(LSR_CHAR_ERRORS << 8 | 0xFF):
            raise UsageError(
                f"uart16550: received character {entry:#x} in the state",
                hint="bits 7:0 are the byte, bits 12:10 its errors",
            )


class Uart16550:
    """A 16550A. Eight registers, one byte wide each.

    `source` is asked for input whenever the guest looks (LSR, RBR, IIR) and there is room;
    a host that pushes uses `receive()`, and one whose guest sleeps until the interrupt
    calls `poll()`. `irq` is a level (None: not connected): high while an enabled event is
    pending. On a PC it is gated by the output OUT2, which the loopback mode forces off
    ("Modem Control Register", bit 4); `out2_gates_irq` False leaves the chip's INTR pin bare.
    """

    widths: frozenset[int] = frozenset({1})
    #: Ports that the device takes.
    length: ClassVar[int] = 8

    def __init__(
        self,
        source: CharSource,
        sink: CharSink,
        irq: Irq | None = None,
        *,
        out2_gates_irq: bool = True,
        state: UartState | None = None,
    ) -> None:
        """Raises UsageError for a `state` that the chip cannot be in."""
        state = state or UartState()
        _check(state)
        self._source = source
        self._sink = sink
        self._irq = irq if irq is not None else NoIrq()
        self._gated = out2_gates_irq
        self._ier = state.ier
        self._fcr = state.fcr
        self._lcr = state.lcr
        self._mcr = state.mcr
        self._errors = state.lsr
        self._deltas = state.msr
        self._scr = state.scr
        self._divisor = state.divisor
        self._lines = state.lines
        self._rx = deque(state.rx)
        self._rbr = state.rbr
        self._thre_pending = state.thre_pending
        self._reveal()
        # A pending interrupt is raised again: the other end of the line may be new.
        self._level = self._wanted_level()
        self._irq.set(self._level)

    @classmethod
    def from_state(
        cls,
        state: UartState,
        *,
        source: CharSource,
        sink: CharSink,
        irq: Irq | None = None,
        out2_gates_irq: bool = True,
    ) -> Uart16550:
        """Raises UsageError for a state that the chip cannot be in."""
        return cls(source, sink, irq, out2_gates_irq=out2_gates_irq, state=state)

    def state(self) -> UartState:
        return UartState(
            ier=self._ier,
            fcr=self._fcr,
            lcr=self._lcr,
            mcr=self._mcr,
            lsr=self._errors,
            msr=self._deltas,
            scr=self._scr,
            divisor=self._divisor,
            lines=self._lines,
            rx=tuple(self._rx),
            rbr=self._rbr,
            thre_pending=self._thre_pending,
        )

    # What the host does.

    @property
    def room(self) -> int:
        """How many characters `receive()` would take now; 0 in loopback mode."""
        if self._mcr & MCR_LOOP:
            return 0
        return (FIFO_SIZE if self._fcr & FCR_ENABLE else 1) - len(self._rx)

    def receive(self, data: bytes) -> int:
        """Push characters to the guest; answers how many found room.

        The rest is not lost: the caller keeps it, as a peer does that heeds RTS.
        """
        taken = data[: self.room]
        for byte in taken:
            self._arrive(byte)
        if taken:
            self._update()
        return len(taken)

    def receive_damaged(self, byte: int, errors: int) -> None:
        """A character with line errors: LSR bits PE (0x04), FE (0x08), BI (0x10, a break).

        Arrives like on a wire: with no room it is lost and LSR.OE tells.
        """
        if not 0 <= byte <= 0xFF or errors & ~LSR_CHAR_ERRORS:
            raise UsageError(
                f"uart16550: no character {byte:#x} with errors {errors:#x}",
                hint="a byte, and LSR error bits from 0x1c",
            )
        if not self._mcr & MCR_LOOP:
            self._arrive(errors << 8 | byte)
            self._update()

    def poll(self) -> None:
        """Take what the source has, for a guest that waits for the interrupt."""
        self._pull()

    def set_modem_lines(self, lines: int) -> None:
        """The peer's CTS (0x10), DSR (0x20), RI (0x40) and DCD (0x80), as in MSR."""
        if lines & ~0xF0:
            raise UsageError(f"uart16550: no modem lines {lines:#x}", hint="use bits of 0xf0")
        before = self._inputs()
        self._lines = lines
        self._moved(before)
        self._update()

    # What the guest does.

    def read(self, offset: int, size: int, /) -> int:
        if offset == LSR:
            return self._read_lsr()
        if offset == RBR:
            return self._divisor & 0xFF if self._lcr & LCR_DLAB else self._read_rbr()
        if offset == IIR:
            return self._read_iir()
        if offset == IER:
            return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier
        if offset == MSR:
            value = self._inputs() | self._deltas
            self._deltas = 0
            self._update()
            return value
        if offset == LCR:
            return self._lcr
        return self._mcr if offset == MCR else self._scr

    def write(self, offset: int, size: int, value: int, /) -> None:
        value &= 0xFF
        if offset == THR:
            if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0xFF00 | value
            else:
                self._transmit(value)
        elif offset == IER:
            if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0x00FF | value << 8
            else:
                self._write_ier(value)
        elif offset == FCR:
            self._write_fcr(value)
        elif offset == LCR:
            self._lcr = value
        elif offset == MCR:
            before = self._inputs()
            self._mcr = value & MCR_MASK
            self._moved(before)
            self._update()
        elif offset == SCR:
            self._scr = value
        # LSR and MSR are for reading; writing them is "not recommended".

    def _read_lsr(self) -> int:
        self._pull()
        value = LSR_EMPTY | self._errors
        if self._rx:
            value |= LSR_DR
        if self._fcr & FCR_ENABLE and (
            self._errors & LSR_CHAR_ERRORS or any(entry >> 8 for entry in self._rx)
        ):
            value |= LSR_FIFO_ERROR
        if self._errors:
            self._errors = 0
            self._update()
        return value

    def _read_rbr(self) -> int:
        self._pull()
        if self._rx:
            self._rbr = self._rx.popleft() & 0xFF
            self._reveal()
            self._update()
        return self._rbr

    def _read_iir(self) -> int:
        self._pull()
        source = self._pending()
        if source == IIR_THRE:
            # Reading IIR acknowledges this source, and only when it is the one reported.
            self._thre_pending = False
            self._update()
        return source | (IIR_FIFOS if self._fcr & FCR_ENABLE else 0)

    def _write_ier(self, value: int) -> None:
        # The transmitter is always empty, so enabling its interrupt raises it; drivers
        # start sending this way.
        if value & IER_THRE:
            if not self._ier & IER_THRE:
                self._thre_pending = True
        else:
            self._thre_pending = False
        self._ier = value & IER_MASK
        self._update()

    def _write_fcr(self, value: int) -> None:
        # Without the enable bit the other bits are not programmed; changing it in
        # either direction empties the FIFOs.
        kept = value & FCR_KEPT if value & FCR_ENABLE else 0
        if (kept ^ self._fcr) & FCR_ENABLE or (value & FCR_ENABLE and value & FCR_CLEAR_RX):
            self._rx.clear()
            # These belonged to the character at the top, which is gone; OE did not.
            self._errors &= LSR_OE
        self._fcr = kept
        self._update()

    def _transmit(self, byte: int) -> None:
        loop = self._mcr & MCR_LOOP
        if loop:
            self._arrive(byte)
            self._update()
        if self._ier & IER_THRE:
            # Writing THR takes the request back and, since the byte is out at once, makes it
            # anew. The line must be seen to fall: a PC's interrupt controller waits for edges.
            self._thre_pending = False
            self._update()
            self._thre_pending = True
            self._update()
        # While a break is sent SOUT stays low: the character is clocked out, nobody sees it.
        if not loop and not self._lcr & LCR_BREAK:
            self._sink.put(bytes((byte,)))

    # The receiver.

    def _pull(self) -> None:
        if self._mcr & MCR_LOOP:
            return
        room = (FIFO_SIZE if self._fcr & FCR_ENABLE else 1) - len(self._rx)
        if room <= 0:
            return
        byte = self._source.get()
        if byte is None:
            return
        self._arrive(byte)
        for _ in range(room - 1):
            byte = self._source.get()
            if byte is None:
                break
            self._arrive(byte)
        self._update()

    def _arrive(self, entry: int) -> None:
        """A character comes off the line, room or not ("Line Status Register", bit 1)."""
        if self._fcr & FCR_ENABLE:
            if len(self._rx) >= FIFO_SIZE:
                # The FIFO keeps what it has; the character dies in the shift register.
                self._errors |= LSR_OE
                return
        elif self._rx:
            # Without FIFOs the new character overwrites the old one.
            self._errors |= LSR_OE
            self._rx.clear()
        self._rx.append(entry)
        if len(self._rx) == 1:
            self._reveal()

    def _reveal(self) -> None:
        """A character's errors show in LSR once it is the next to be read."""
        if self._rx and self._rx[0] >> 8:
            self._errors |= self._rx[0] >> 8
            self._rx[0] &= 0xFF

    # Modem lines and interrupts.

    def _inputs(self) -> int:
        """CTS, DSR, RI, DCD as MSR shows them: the peer's, or our own outputs in loopback."""
        mcr = self._mcr
        if not mcr & MCR_LOOP:
            return self._lines
        return (
            (MSR_CTS if mcr & MCR_RTS else 0)
            | (MSR_DSR if mcr & MCR_DTR else 0)
            | (MSR_RI if mcr & MCR_OUT1 else 0)
            | (MSR_DCD if mcr & MCR_OUT2 else 0)
        )

    def _moved(self, before: int) -> None:
        """Set the delta bits. RI counts only when it ends (TERI)."""
        after = self._inputs()
        changed = before ^ after
        self._deltas |= (changed & (MSR_CTS | MSR_DSR | MSR_DCD)) >> 4
        if changed & before & MSR_RI:
            self._deltas |= MSR_TERI

    def _pending(self) -> int:
        """The most urgent enabled event, as IIR bits 3:0 ("Interrupt Identification Register")."""
        ier = self._ier
        if ier & IER_LINE and self._errors:
            return IIR_LINE
        if ier & IER_RX and self._rx:
            if not self._fcr & FCR_ENABLE or len(self._rx) >= TRIGGER_LEVELS[self._fcr >> 6]:
                return IIR_RX
            return IIR_TIMEOUT
        if self._thre_pending:
            return IIR_THRE
        if ier & IER_MODEM and self._deltas:
            return IIR_MODEM
        return IIR_NONE

    def _wanted_level(self) -> bool:
        if self._gated and self._mcr & (MCR_OUT2 | MCR_LOOP) != MCR_OUT2:
            return False
        return self._pending() != IIR_NONE

    def _update(self) -> None:
        level = self._wanted_level()
        if level != self._level:
            self._level = level
            self._irq.set(level)
