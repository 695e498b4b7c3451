"""The interrupt controllers of a PC/AT: two Intel 8259A, the slave's INT on the master's IR2.

Names in quotes are sections of the 8259A data sheet (order 231468-003, December 1988). The
edge/level control registers (ELCR) are those of the Intel 82371SB (PIIX3).

What was chosen where the paper leaves a choice, or differs from what a guest meets today:

* An edge is never lost. The chip wants IR high until the first INTA, else the request goes
  and the CPU gets IR7; here it stays latched, as in KVM and QEMU, so a device may pulse.
  This goes for the cascade too: a slave that took its request back is a spurious IR7 of the
  slave (IRQ15), with IR2 in service in the master.
* A chip keeps INT low until it got all ICWs that its ICW1 asks for. It latches edges meanwhile.
* An MCS-80/85 system (ICW4 bit 0 clear) would be given a CALL; an x86 CPU always takes one byte,
  the vector of ICW2. The bits for buffered mode are kept and do nothing.
* ICW1 clears ISR and rotation in AEOI mode too, as Intel's application note AP-59 has it.
* With LTIM in ICW1 all inputs are level triggered whatever ELCR says, as in an AT without ELCR.
* A poll with no request answers 0.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ..errors import UsageError
from .base import Irq

__all__ = ["I8259", "Elcr", "I8259Pair", "I8259PairState", "I8259State"]

CASCADE = 2  # the master's input that the slave is on, and the slave's identification code

ICW1 = 0x10  # this bit tells ICW1 from OCW2 and OCW3
ICW1_IC4 = 0x01
ICW1_SNGL = 0x02
ICW1_LTIM = 0x08

ICW4_AEOI = 0x02
ICW4_SFNM = 0x10
ICW4_MASK = 0x1F

OCW3 = 0x08  # this bit tells OCW3 from OCW2
OCW3_RIS = 0x01
OCW3_RR = 0x02
OCW3_POLL = 0x04
OCW3_SMM = 0x20
OCW3_ESMM = 0x40

#: ELCR bits that exist: the timer, the keyboard, the cascade, the RTC and the FPU stay edge
#: triggered (IRQ 0, 1, 2, 8, 13).
ELCR_MASTER = 0xF8
ELCR_SLAVE = 0xDE


def _rank(lowest: int, level: int) -> int:
    """0 for the most urgent level, 7 for `lowest`."""
    return (level - lowest - 1) & 7


def _first(lowest: int, mask: int) -> int:
    return min((level for level in range(8) if mask >> level & 1), key=lambda i: _rank(lowest, i), default=8)


def _above(lowest: int, mask: int) -> int:
    if not mask:
        return 0xFF
    top = _rank(lowest, _first(lowest, mask))
    return sum(1 << level for level in range(8) if _rank(lowest, level) < top)


#: [lowest][mask]: the most urgent level in the mask (8: none), and the set of the levels that
#: are more urgent than it. One look-up in place of a loop: an interrupt is resolved several times.
_FIRST = tuple(bytes(_first(lowest, mask) for mask in range(256)) for lowest in range(8))
_ABOVE = tuple(bytes(_above(lowest, mask) for mask in range(256)) for lowest in range(8))


class I8259State(msgspec.Struct, frozen=True):
    """Every bit of one chip, at power-on by default: no ICW written yet.

    `lines` are the levels of IR7-IR0, `irr` holds the latched edges and the level triggered
    inputs that are high. `expects` is the ICW that comes next (2, 3, 4; 0: none), `ready`
    whether all came. `lowest` is the level with the bottom priority.
    """

    lines: int = 0
    irr: int = 0
    isr: int = 0
    imr: int = 0
    elcr: int = 0
    icw1: int = 0
    icw2: int = 0
    icw3: int = 0
    icw4: int = 0
    lowest: int = 7
    expects: int = 0
    ready: bool = False
    special_mask: bool = False
    read_isr: bool = False
    poll: bool = False
    auto_rotate: bool = False


class I8259PairState(msgspec.Struct, frozen=True):
    """Both chips; `master.lines` bit 2 is the slave's INT."""

    master: I8259State = I8259State()
    slave: I8259State = I8259State()


#: Bits that each field may have; ELCR's depend on the chip.
_FIELD_MASKS = {
    "lines": 0xFF,
    "irr": 0xFF,
    "isr": 0xFF,
    "imr": 0xFF,
    "icw1": 0xFF,
    "icw2": 0xF8,
    "icw3": 0xFF,
    "icw4": ICW4_MASK,
    "lowest": 7,
}


def _check(state: I8259State, name: str, elcr: int) -> None:
    for field, mask in {**_FIELD_MASKS, "elcr": elcr}.items():
        value = getattr(state, field)
        if value & ~mask:
            raise UsageError(
                f"i8259: {field} = {value:#x} in the {name}'s state has bits that the chip lacks",
                hint=f"only the bits {mask:#x} exist",
            )
    if state.expects not in (0, 2, 3, 4) or (state.ready and state.expects):
        raise UsageError(
            f"i8259: the {name}'s state expects ICW{state.expects}"
            + (" and is ready" if state.ready else ""),
            hint="expects is 0, 2, 3 or 4, and 0 in a chip that is ready",
        )
    level = 0xFF if state.icw1 & ICW1_LTIM else state.elcr
    if (state.irr ^ state.lines) & level:
        raise UsageError(
            f"i8259: IRR {state.irr:#04x} in the {name}'s state does not follow its level triggered "
            f"inputs {state.lines & level:#04x}",
            hint="a level triggered input requests service exactly while it is high",
        )


class _Input:
    """One IR input of a chip, as a device drives it."""

    __slots__ = ("_bit", "_chip")

    def __init__(self, chip: I8259, number: int) -> None:
        self._chip = chip
        self._bit = 1 << number

    def set(self, level: bool, /) -> None:
        chip = self._chip
        bit = self._bit
        if level:
            if chip._lines & bit:
                return
            chip._lines |= bit
            chip._irr |= bit
        else:
            if not chip._lines & bit:
                return
            chip._lines ^= bit
            if not chip._level & bit:
                return  # the edge stays latched
            chip._irr &= ~bit
        chip._drive()


class I8259:
    """One chip, as the bus sees it: two ports, A0 = 0 and A0 = 1, one byte wide. Part of an `I8259Pair`."""

    widths: frozenset[int] = frozenset({1})
    #: Ports that the device takes.
    length: ClassVar[int] = 2

    def __init__(self, output: Irq, state: I8259State, *, master: bool) -> None:
        self._output = output
        self._master = master
        self._lines = state.lines
        self._irr = state.irr
        self._isr = state.isr
        self._imr = state.imr
        self._elcr = state.elcr
        self._icw1 = state.icw1
        self._icw2 = state.icw2
        self._icw3 = state.icw3
        self._icw4 = state.icw4
        self._lowest = state.lowest
        self._expects = state.expects
        self._ready = state.ready
        self._special_mask = state.special_mask
        self._read_isr = state.read_isr
        self._poll = state.poll
        self._auto_rotate = state.auto_rotate
        self._level = 0xFF if state.icw1 & ICW1_LTIM else state.elcr
        #: Levels that would interrupt now if requested: unmasked, and above what is in service.
        self._allowed = self._allowed_levels()
        self._int = bool(self._irr & self._allowed)

    def _state(self) -> I8259State:
        return I8259State(
            lines=self._lines,
            irr=self._irr,
            isr=self._isr,
            imr=self._imr,
            elcr=self._elcr,
            icw1=self._icw1,
            icw2=self._icw2,
            icw3=self._icw3,
            icw4=self._icw4,
            lowest=self._lowest,
            expects=self._expects,
            ready=self._ready,
            special_mask=self._special_mask,
            read_isr=self._read_isr,
            poll=self._poll,
            auto_rotate=self._auto_rotate,
        )

    # What the guest does.

    def read(self, offset: int, size: int, /) -> int:
        if self._poll:
            # "Poll Command": the next RD, of either port, is the acknowledgement.
            self._poll = False
            wanted = self._irr & self._allowed
            if not wanted:
                return 0
            level = _FIRST[self._lowest][wanted]
            self._acknowledge(level)
            return 0x80 | level
        if offset & 1:
            return self._imr
        return self._isr if self._read_isr else self._irr

    def write(self, offset: int, size: int, value: int, /) -> None:
        value &= 0xFF
        if offset & 1:
            if self._expects:
                self._write_icw(value)
            else:
                self._imr = value
                self._resolve()
        elif value & ICW1:
            self._write_icw1(value)
        elif value & OCW3:
            if value & OCW3_ESMM:
                self._special_mask = bool(value & OCW3_SMM)
            if value & OCW3_RR:
                self._read_isr = bool(value & OCW3_RIS)
            self._poll = bool(value & OCW3_POLL)
            self._resolve()
        else:
            self._write_ocw2(value >> 5, value & 7)

    def _write_icw1(self, value: int) -> None:
        """ "Initialization Command Word 1": what it resets by itself, a to f."""
        self._icw1 = value
        self._level = 0xFF if value & ICW1_LTIM else self._elcr
        self._irr = self._lines & self._level  # an edge must come anew
        self._isr = self._imr = 0
        self._lowest = 7
        self._special_mask = self._read_isr = self._poll = self._auto_rotate = False
        self._icw3 = 0 if self._master else 7
        if not value & ICW1_IC4:
            self._icw4 = 0
        self._ready = False
        self._expects = 2
        self._resolve()

    def _write_icw(self, value: int) -> None:
        last = 4 if self._icw1 & ICW1_IC4 else 2 if self._icw1 & ICW1_SNGL else 3
        expected = self._expects
        if expected == 2:
            self._icw2 = value & 0xF8
            self._expects = 4 if self._icw1 & ICW1_SNGL else 3
        elif expected == 3:
            self._icw3 = value
            self._expects = 4
        else:
            self._icw4 = value & ICW4_MASK
        if expected >= last:
            self._expects = 0
            self._ready = True
            self._resolve()

    def _write_ocw2(self, command: int, level: int) -> None:
        """ "Operation Control Word 2": `command` is the bits R, SL, EOI."""
        if command in (0, 4):
            self._auto_rotate = command == 4
            return
        if command == 2:
            return
        if command == 6:
            self._lowest = level
        else:
            if command in (1, 5):
                # "Special Mask Mode": a masked level is not the one that a handler means.
                isr = self._isr & ~self._imr if self._special_mask else self._isr
                level = _FIRST[self._lowest][isr]
                if level == 8:
                    return
            self._isr &= ~(1 << level)
            if command >= 5:
                self._lowest = level
        self._resolve()

    def _write_elcr(self, value: int) -> None:
        self._elcr = value & (ELCR_MASTER if self._master else ELCR_SLAVE)
        if not self._icw1 & ICW1_LTIM:
            # What was a request by level is none by edge, and the other way round.
            self._irr &= ~(self._level ^ self._elcr)
            self._level = self._elcr
            self._irr |= self._lines & self._level
            self._drive()

    # The logic.

    def _allowed_levels(self) -> int:
        if not self._ready:
            return 0
        isr = self._isr & ~self._imr if self._special_mask else self._isr
        allowed = _ABOVE[self._lowest][isr]
        if isr and self._icw4 & ICW4_SFNM and self._master:
            # "Special Fully Nested Mode": a slave in service may interrupt itself.
            allowed |= 1 << _FIRST[self._lowest][isr] & (0 if self._icw1 & ICW1_SNGL else self._icw3)
        return allowed & ~self._imr

    def _resolve(self) -> None:
        self._allowed = self._allowed_levels()
        self._drive()

    def _drive(self) -> None:
        wanted = self._irr & self._allowed != 0
        if wanted != self._int:
            self._int = wanted
            self._output.set(wanted)

    def _acknowledge(self, level: int) -> None:
        """The request of `level` is taken into service. INT falls, and rises for the next one."""
        bit = 1 << level
        if not self._level & bit:
            self._irr &= ~bit
        if not self._icw4 & ICW4_AEOI:
            self._isr |= bit
        elif self._auto_rotate:
            self._lowest = level
        if self._int:
            self._int = False
            self._output.set(False)
        self._resolve()


class Elcr:
    """The edge/level control registers: one bit for each IRQ, 1 for level triggered."""

    widths: frozenset[int] = frozenset({1})
    #: Ports that the device takes: IRQ 0-7, IRQ 8-15.
    length: ClassVar[int] = 2

    def __init__(self, master: I8259, slave: I8259) -> None:
        self._chips = (master, slave)

    def read(self, offset: int, size: int, /) -> int:
        return self._chips[offset & 1]._elcr

    def write(self, offset: int, size: int, value: int, /) -> None:
        self._chips[offset & 1]._write_elcr(value & 0xFF)


class I8259Pair:
    """Both chips of a PC/AT and their ELCR. `output` is the master's INT, the CPU's INTR.

    Three faces go on the port bus: `master` (20h), `slave` (A0h), `elcr` (4D0h), two ports each.
    """

    def __init__(self, output: Irq, *, state: I8259PairState | None = None) -> None:
        """Raises UsageError for a `state` that the chips cannot be in."""
        state = state or I8259PairState()
        _check(state.master, "master", ELCR_MASTER)
        _check(state.slave, "slave", ELCR_SLAVE)
        self.master = I8259(output, state.master, master=True)
        self.slave = I8259(_Input(self.master, CASCADE), state.slave, master=False)
        self.elcr = Elcr(self.master, self.slave)
        if bool(state.master.lines >> CASCADE & 1) != self.slave._int:
            raise UsageError(
                f"i8259: the slave's INT is {int(self.slave._int)} in the state, the master's IR2 is not",
                hint="bit 2 of master.lines is the slave's INT",
            )
        self._inputs = [_Input(chip, n) for chip in (self.master, self.slave) for n in range(8)]
        # The other end of the line may be new.
        output.set(self.master._int)

    @classmethod
    def from_state(cls, state: I8259PairState, *, output: Irq) -> I8259Pair:
        """Raises UsageError for a state that the chips cannot be in."""
        return cls(output, state=state)

    def state(self) -> I8259PairState:
        return I8259PairState(self.master._state(), self.slave._state())

    def input(self, number: int) -> Irq:
        """The line of IRQ `number`, 0-15. Raises UsageError for others, and for 2, the cascade."""
        if not 0 <= number <= 15 or number == CASCADE:
            raise UsageError(
                f"i8259: there is no interrupt line {number}",
                hint="use 0 to 15 without 2, where the slave is; an ISA card's IRQ2 arrives at 9",
            )
        return self._inputs[number]

    def pending(self) -> bool:
        """Whether INTR is high."""
        return self.master._int

    def acknowledge(self) -> int:
        """The two INTA cycles of an x86 CPU ("Interrupt Sequence"): the vector, 0-255.

        With no request (any more) it is the one of IR7, which is then not in service. Where
        the master's ICW3 has a slave on the input, and the slave was given another code than
        2 by its own ICW3, nobody drives the bus: 0xFF.
        """
        master = self.master
        wanted = master._irr & master._allowed
        if not wanted:
            return master._icw2 | 7
        level = _FIRST[master._lowest][wanted]
        master._acknowledge(level)
        if not master._icw3 >> level & 1 or master._icw1 & ICW1_SNGL:
            return master._icw2 | level
        slave = self.slave
        if level != CASCADE or slave._icw1 & ICW1_SNGL or slave._icw3 & 7 != CASCADE:
            return 0xFF
        wanted = slave._irr & slave._allowed
        if not wanted:
            return slave._icw2 | 7
        level = _FIRST[slave._lowest][wanted]
        slave._acknowledge(level)
        return slave._icw2 | level
