"""The keyboard controller: an Intel 8042 with IBM's program, ports 60h and 64h.

From IBM's PC AT Technical Reference, "Keyboard Controller", and for the second device
(commands A7h-A9h, D3h, D4h and status bit 5) the PS/2 Hardware Interface Technical
Reference, "Keyboard and Auxiliary Device Controller".

Choices, where the references leave one or we are virtual:

* The program is infinitely fast: a byte written has been dealt with, so IBF always reads 0,
  and the next byte is in the output buffer as soon as the last one was read.
* There is no mouse. A byte sent to it with D4h is answered as the PS/2 controller answers for
  a device that is silent: FEh with the time-out bit, as a byte of the second device. Linux
  gives up on that port at the first such byte; were nothing said, each of its probes would
  wait half a second. A byte for a keyboard that is not there is answered alike.
* The self-test AAh puts the command byte back to its power-on value, 03h as in QEMU: both
  interrupts on, both interfaces on, no translation. A BIOS turns the translation on; a machine
  that starts without one may begin in the state `AFTER_FIRMWARE`.
* A byte sent to the keyboard enables its interface again, as IBM's program does.
* No password is kept: A4h says so, the text after A5h is swallowed, A6h does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import msgspec

from ..errors import UsageError
from .base import Irq
from .ps2_keyboard import SET_2_TO_1, Ps2Keyboard

__all__ = ["AFTER_FIRMWARE", "I8042", "I8042State"]

# The status register, port 64h.
STATUS_OBF = 0x01
STATUS_SYS = 0x04
STATUS_A2 = 0x08  # the last write was a command
STATUS_INH = 0x10  # 1: the keyboard lock is open
STATUS_MOBF = 0x20  # the byte in the output buffer is the second device's
STATUS_TO = 0x40  # and this one is what stands for an answer that did not come

# The command byte, RAM byte 0.
INT = 0x01
INT2 = 0x02
SYS = 0x04
DISABLE = 0x10
DISABLE2 = 0x20
XLAT = 0x40
POWER_ON_COMMAND_BYTE = INT | INT2

# The output port. Bits 4 and 5 are the interrupt lines and follow from the output buffer.
OUT_RESET = 0x01  # active low
OUT_A20 = 0x02
OUT_IRQ1 = 0x10
OUT_IRQ12 = 0x20
#: The input port: lock open, colour display, no manufacturing jumper, the second 256 KiB are on.
INPUT_PORT = 0xB0

BREAK = 0xF0
NO_ANSWER = 0xFE

# The commands that take a byte from port 60h, beside 60h-7Fh.
LOAD_PASSWORD, WRITE_OUTPUT_PORT, WRITE_OBF, WRITE_OBF2, SEND2 = 0xA5, 0xD1, 0xD2, 0xD3, 0xD4
_TAKE_A_BYTE = (LOAD_PASSWORD, WRITE_OUTPUT_PORT, WRITE_OBF, WRITE_OBF2, SEND2)
POLL_LOW, POLL_HIGH = 0xC1, 0xC2


class I8042State(msgspec.Struct, frozen=True):
    """Everything the controller knows; the default is after power-on.

    `ram` are its 32 bytes, the command byte first. `source` tells of `data`, the last byte in
    the output buffer, as status bits MOBF and TO do. `reply` is the controller's own byte that
    waits for the buffer (with the status bits of its source from bit 8 on), None for none.
    `command` waits for its data byte (0: none). `released` means that a translated F0h came
    and marks the next scan code. `poll` is C1h or C2h while the input port shows in the status.
    """

    ram: bytes = bytes((POWER_ON_COMMAND_BYTE,)) + bytes(31)
    #: IBM says nothing about A2 before the first write; as in QEMU it reads 1.
    a2: bool = True
    system: bool = False
    obf: bool = False
    data: int = 0
    source: int = 0
    reply: int | None = None
    #: QEMU's and most firmware's start: A20 open, and the idle lines of both devices high.
    output_port: int = 0xCF
    command: int = 0
    released: bool = False
    poll: int = 0


#: As a BIOS leaves it: self-tested, scan codes translated to set 1, the second device off.
AFTER_FIRMWARE = I8042State(ram=bytes((XLAT | DISABLE2 | SYS | INT,)) + bytes(31), system=True)

_SOURCES = STATUS_MOBF | STATUS_TO


def _check(state: I8042State) -> None:
    if len(state.ram) != 32:
        raise UsageError(f"i8042: {len(state.ram)} bytes of RAM in the state", hint="it has 32")
    if not 0 <= state.data <= 0xFF or state.source & ~_SOURCES:
        raise UsageError(
            f"i8042: output buffer {state.data:#x}, source {state.source:#x} in the state",
            hint=f"a byte, and status bits of {_SOURCES:#x}",
        )
    if state.reply is not None and state.reply & ~(_SOURCES << 8 | 0xFF):
        raise UsageError(
            f"i8042: reply {state.reply:#x} in the state",
            hint="bits 7:0 are the byte, bits 14:13 its source",
        )
    if state.output_port & ~0xCF or not state.output_port & OUT_RESET:
        raise UsageError(
            f"i8042: output port {state.output_port:#x} in the state",
            hint="bit 0 is set and bits 5:4 follow from the output buffer",
        )
    if state.command and state.command not in _TAKE_A_BYTE and not 0x60 <= state.command <= 0x7F:
        raise UsageError(
            f"i8042: command {state.command:#x} in the state", hint="0, or one that takes a data byte"
        )
    if state.poll not in (0, POLL_LOW, POLL_HIGH):
        raise UsageError(f"i8042: poll {state.poll:#x} in the state", hint="0, 0xc1 or 0xc2")


class _Face:
    """One port of the controller, as a device for the bus."""

    widths: frozenset[int] = frozenset({1})
    #: Ports that the device takes.
    length: ClassVar[int] = 1

    def __init__(self, read: Callable[[], int], write: Callable[[int], None]) -> None:
        self._read = read
        self._write = write

    def read(self, offset: int, size: int, /) -> int:
        return self._read()

    def write(self, offset: int, size: int, value: int, /) -> None:
        self._write(value & 0xFF)


class I8042:
    """The controller. `data` goes at port 60h and `command` at 64h; both are one chip.

    `irq1` and `irq12` are levels: high while a byte of the keyboard (or of the controller
    itself), or of the second device, is in the output buffer and its interrupt is enabled.
    `on_reset` is called when the guest pulses the reset line, `on_a20` with the new level when
    the A20 gate moves (None: not connected). `keyboard` is the device on the cable; its state
    is its own. On a PC A20 is open when this chip or port 92h opens it: ask both for `a20`.
    """

    def __init__(
        self,
        irq1: Irq,
        irq12: Irq,
        *,
        on_reset: Callable[[], None],
        on_a20: Callable[[bool], None] | None = None,
        keyboard: Ps2Keyboard | None = None,
        state: I8042State | None = None,
    ) -> None:
        """Raises UsageError for a `state` that the controller cannot be in."""
        state = state or I8042State()
        _check(state)
        self._irq1 = irq1
        self._irq12 = irq12
        self._on_reset = on_reset
        self._on_a20 = on_a20
        self._keyboard = keyboard
        self._ram = bytearray(state.ram)
        self._a2 = state.a2
        self._system = state.system
        self._obf = state.obf
        self._data = state.data
        self._source = state.source
        self._reply = state.reply
        self._output_port = state.output_port
        self._command = state.command
        self._released = state.released
        self._poll = state.poll
        self.data = _Face(self._read_data, self._write_data)
        self.command = _Face(self._read_status, self._write_command)
        if keyboard is not None:
            keyboard.on_ready = self._update
        # A pending interrupt is raised again: the other end of the line may be new.
        self._levels = self._wanted_levels()
        self._irq1.set(self._levels[0])
        self._irq12.set(self._levels[1])
        self._update()

    @property
    def keyboard(self) -> Ps2Keyboard | None:
        """What is on the cable. Its state is its own, not the controller's."""
        return self._keyboard

    @classmethod
    def from_state(
        cls,
        state: I8042State,
        *,
        irq1: Irq,
        irq12: Irq,
        on_reset: Callable[[], None],
        on_a20: Callable[[bool], None] | None = None,
        keyboard: Ps2Keyboard | None = None,
    ) -> I8042:
        """Raises UsageError for a state that the controller cannot be in. Calls neither `on_reset`
        nor `on_a20`: `a20` tells the level."""
        return cls(irq1, irq12, on_reset=on_reset, on_a20=on_a20, keyboard=keyboard, state=state)

    def state(self) -> I8042State:
        return I8042State(
            ram=bytes(self._ram),
            a2=self._a2,
            system=self._system,
            obf=self._obf,
            data=self._data,
            source=self._source,
            reply=self._reply,
            output_port=self._output_port,
            command=self._command,
            released=self._released,
            poll=self._poll,
        )

    @property
    def a20(self) -> bool:
        """Whether the controller lets address line 20 through."""
        return bool(self._output_port & OUT_A20)

    # What the guest does.

    def _read_status(self) -> int:
        value = STATUS_A2 if self._a2 else 0
        if self._obf:
            value |= STATUS_OBF
        if self._system:
            value |= STATUS_SYS
        if self._poll == POLL_LOW:
            return value | INPUT_PORT << 4 & 0xF0
        if self._poll == POLL_HIGH:
            return value | INPUT_PORT & 0xF0
        return value | STATUS_INH | self._source

    def _read_data(self) -> int:
        value = self._data
        if self._obf:
            # The line must be seen to fall before the next byte raises it: a PC's interrupt
            # controller waits for edges.
            self._obf = False
            self._lines()
            self._update()
        return value

    def _write_command(self, command: int) -> None:
        self._a2 = True
        self._command = 0  # a command that waits for its data waits no longer
        self._poll = 0
        if 0x20 <= command <= 0x3F:
            self._answer(self._ram[command & 0x1F])
        elif 0x60 <= command <= 0x7F or command in _TAKE_A_BYTE:
            self._command = command
        elif command >= 0xF0:
            # A pulse of 6 us on the output port's low lines whose bit is 0: only the
            # reset line's is long enough to matter.
            if not command & OUT_RESET:
                self._on_reset()
        elif command in (POLL_LOW, POLL_HIGH):
            self._poll = command
        else:
            self._plain_command(command)

    def _plain_command(self, command: int) -> None:
        if command == 0xA4:
            self._answer(0xF1)  # no password
        elif command == 0xA7:
            self._set_command_byte(self._ram[0] | DISABLE2)
        elif command == 0xA8:
            self._set_command_byte(self._ram[0] & ~DISABLE2)
        elif command in (0xA9, 0xAB):
            self._answer(0x00)  # both interfaces test well, with or without a device
        elif command == 0xAA:
            self._ram[0] = POWER_ON_COMMAND_BYTE
            self._system = True
            self._answer(0x55)
        elif command == 0xAD:
            self._set_command_byte(self._ram[0] | DISABLE)
        elif command == 0xAE:
            self._set_command_byte(self._ram[0] & ~DISABLE)
        elif command == 0xC0:
            self._answer(INPUT_PORT)
        elif command == 0xD0:
            levels = (OUT_IRQ1 if self._levels[0] else 0) | (OUT_IRQ12 if self._levels[1] else 0)
            self._answer(self._output_port | levels)
        elif command in (0xDD, 0xDF):
            self._set_a20(command == 0xDF)
        # The others do not exist; nothing answers.

    def _write_data(self, value: int) -> None:
        self._a2 = False
        self._poll = 0
        command, self._command = self._command, 0
        if command == 0:
            self._set_command_byte(self._ram[0] & ~DISABLE)
            if self._keyboard is None:
                self._answer(NO_ANSWER, STATUS_TO)
            else:
                self._keyboard.send(value)
        elif command == 0x60:
            self._system = bool(value & SYS)
            self._set_command_byte(value)
        elif command <= 0x7F:
            self._ram[command & 0x1F] = value
        elif command == LOAD_PASSWORD:
            self._command = LOAD_PASSWORD if value else 0
        elif command == WRITE_OUTPUT_PORT:
            # A machine held in reset could not let go, so a low reset line is a pulse.
            self._output_port = (
                value & ~(OUT_A20 | OUT_IRQ1 | OUT_IRQ12) | OUT_RESET | (self._output_port & OUT_A20)
            )
            self._set_a20(bool(value & OUT_A20))
            if not value & OUT_RESET:
                self._on_reset()
        elif command == WRITE_OBF:
            self._answer(value)
        elif command == WRITE_OBF2:
            self._answer(value, STATUS_MOBF)
        else:
            self._answer(NO_ANSWER, STATUS_MOBF | STATUS_TO)

    def _set_command_byte(self, value: int) -> None:
        self._ram[0] = value
        self._update()

    def _set_a20(self, level: bool) -> None:
        if level == self.a20:
            return
        self._output_port ^= OUT_A20
        if self._on_a20 is not None:
            self._on_a20(level)

    # The output buffer.

    def _answer(self, byte: int, source: int = 0) -> None:
        """The controller's own byte, before any of a device; one that nobody read is replaced."""
        self._reply = source << 8 | byte
        self._update()

    def _update(self) -> None:
        """Fill the output buffer if it is free and a byte is there; then the lines."""
        if not self._obf:
            if self._reply is not None:
                self._load(self._reply & 0xFF, self._reply >> 8)
                self._reply = None
            elif self._keyboard is not None and not self._ram[0] & DISABLE:
                byte = self._keyboard.take()
                # A release is F0h and the scan code; in set 1 it is one byte.
                while byte == BREAK and self._ram[0] & XLAT:
                    self._released = True
                    byte = self._keyboard.take()
                if byte is not None:
                    self._load(self._translate(byte), 0)
        self._lines()

    def _translate(self, byte: int) -> int:
        released, self._released = self._released, False
        if not self._ram[0] & XLAT:
            return byte
        return SET_2_TO_1[byte] | (0x80 if released else 0)

    def _load(self, byte: int, source: int) -> None:
        self._data = byte
        self._source = source
        self._obf = True

    def _wanted_levels(self) -> tuple[bool, bool]:
        second = bool(self._source & STATUS_MOBF)
        enabled = self._ram[0]
        return (
            self._obf and not second and bool(enabled & INT),
            self._obf and second and bool(enabled & INT2),
        )

    def _lines(self) -> None:
        levels = self._wanted_levels()
        before, self._levels = self._levels, levels
        if levels[0] != before[0]:
            self._irq1.set(levels[0])
        if levels[1] != before[1]:
            self._irq12.set(levels[1])
