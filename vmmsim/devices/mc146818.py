"""The real-time clock and its RAM: Motorola's MC146818A as a PC wires it (ports 70h and 71h).

Names in quotes are sections of the MC146818A data sheet (1984). IBM's PC AT Technical
Reference says what the RAM is for; QEMU and SeaBIOS say what the bytes from 34h on mean.

The crystal is 32.768 kHz and every event is a count of its cycles, so nothing drifts and
nothing needs to run meanwhile: whoever looks finds the time and the flags of now, and only
an enabled interrupt that is not up yet arms a timer.

Choices, where the data sheet leaves one or a PC differs:

* The RAM has 128 bytes, not 64, as in the chips that followed (DS12887A and PCs' own).
* Byte 32h is the century and counts along; the chip's own calendar has a hundred years.
* The registers change at the end of the update cycle. "Register A", UIP: 244 us before it
  plus the 1984 us that it takes at 32.768 kHz (table "Update Cycle Times").
* A time that does not exist (31 February, 75 seconds) stays as written until the next
  update, which counts on from it as mktime would.
* DV other than 010 names a crystal that is not there, or the reset: the divider is held.
* Daylight saving (DSE) and the square wave (SQWE) are kept and do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import ClassVar

import msgspec

from ..clock import SECOND, Clock
from ..errors import UsageError
from .base import Irq

__all__ = ["Mc146818", "Mc146818State"]

#: Bytes of registers and RAM.
SIZE = 128
#: The crystal, in Hz.
CRYSTAL = 32768

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
WEEKDAY, DAY, MONTH, YEAR = 6, 7, 8, 9
REG_A, REG_B, REG_C, REG_D = 10, 11, 12, 13
RAM = 14
CENTURY = 0x32

A_UIP = 0x80
A_DV = 0x70
A_DV_32KHZ = 0x20
A_RS = 0x0F

B_SET = 0x80
B_PIE = 0x40
B_AIE = 0x20
B_UIE = 0x10
B_SQWE = 0x08
B_DM = 0x04  # 1: binary, 0: BCD
B_24H = 0x02
B_INTERRUPTS = B_PIE | B_AIE | B_UIE

C_IRQF = 0x80
C_PF, C_AF, C_UF = B_PIE, B_AIE, B_UIE  # each below its enable bit
D_VRT = 0x80

PM = 0x80
DONT_CARE = 0xC0
_DAY_SECONDS = 86400
#: Crystal cycles before the end of an update at which UIP rises: 244 us + 1984 us.
_UIP_CYCLES = 8 + 65
#: The Gregorian calendar repeats after so many years and days, and the days are whole weeks.
_ERA_YEARS, _ERA_DAYS = 400, 146097
_MAX_YEAR = 9999
_NVRAM_SIZE = SIZE - RAM
_MIB = 1 << 20
_BOOT_CODES = {"a": 1, "c": 2, "d": 3, "n": 4}


class Mc146818State(msgspec.Struct, frozen=True):
    """Every bit of the chip. Power-on depends on the time: see `Mc146818`.

    `ram` are the 128 bytes with registers A and B; UIP, C and D are not in it and read 0
    there. `flags` are PF, AF, UF as in register C. `origin` is the clock's time (ns) at which
    the divider began at 0, None while it is held; `cycle` how many crystal cycles after that
    are accounted for in `ram` and `flags`. `index` is the last byte written to port 70h.
    """

    ram: bytes
    index: int = 0
    flags: int = 0
    origin: int | None = 0
    cycle: int = 0


def _check(state: Mc146818State) -> None:
    ram = state.ram
    if len(ram) != SIZE:
        raise UsageError(f"mc146818: {len(ram)} bytes of RAM in the state", hint=f"it has {SIZE}")
    if ram[REG_A] & A_UIP or ram[REG_C] or ram[REG_D]:
        raise UsageError(
            "mc146818: UIP, register C or register D in the state's RAM",
            hint="they follow from the rest: leave them 0",
        )
    if not 0 <= state.index <= 0xFF or state.flags & ~B_INTERRUPTS:
        raise UsageError(
            f"mc146818: index {state.index:#x} and flags {state.flags:#x} in the state",
            hint="the index is a byte, the flags are bits of 0x70",
        )
    if state.cycle < 0 or (state.origin is None) != (ram[REG_A] & A_DV != A_DV_32KHZ):
        raise UsageError(
            f"mc146818: divider at {state.origin}, cycle {state.cycle}, with register A {ram[REG_A]:#04x}",
            hint="the divider has an origin exactly while DV is 010, and its cycle is not negative",
        )


def _bcd(value: int) -> int:
    return value // 10 << 4 | value % 10


class Mc146818:
    """The chip: port 70h selects one of 128 bytes (bit 7 disables NMI), port 71h is that byte.

    `epoch` is the time of day at the clock's time 0, in Unix seconds (UTC). `nvram` is what
    the RAM from 0Eh on holds at power-on, at most 114 bytes, as Linux's /dev/nvram shows it.
    `memory_size` fills in what firmware looks up there: the guest's RAM below 4 GiB, in bytes;
    `memory_above_4g` what lies above; `boot_order` up to three of the letters a, c, d, n
    (floppy, disk, CD, network). `irq` is a level, high until register C is read.

    Reading port 70h answers FFh: on a PC it can only be written.
    """

    widths: frozenset[int] = frozenset({1})
    #: Ports that the device takes.
    length: ClassVar[int] = 2

    def __init__(
        self,
        clock: Clock,
        irq: Irq,
        *,
        epoch: int = 0,
        nvram: bytes = b"",
        memory_size: int | None = None,
        memory_above_4g: int = 0,
        boot_order: str = "cad",
        state: Mc146818State | None = None,
    ) -> None:
        """Raises UsageError for arguments and a `state` that the chip cannot hold.

        A `state` wins over the power-on contents that the other arguments describe.
        """
        if state is None:
            state = _power_on(epoch, nvram, memory_size, memory_above_4g, boot_order)
        _check(state)
        self._clock = clock
        self._irq = irq
        self._ram = bytearray(state.ram)
        self._index = state.index
        self._flags = state.flags
        self._origin = state.origin
        self._cycle = state.cycle
        self._timer = clock.timer(self._due, "mc146818")
        self._level = bool(self._flags & self._ram[REG_B])
        self._irq.set(self._level)
        self._arm()

    @classmethod
    def from_state(cls, state: Mc146818State, *, clock: Clock, irq: Irq) -> Mc146818:
        """Raises UsageError for a state that the chip cannot be in."""
        return cls(clock, irq, state=state)

    def state(self) -> Mc146818State:
        return Mc146818State(
            ram=bytes(self._ram),
            index=self._index,
            flags=self._flags,
            origin=self._origin,
            cycle=self._cycle,
        )

    # What the host does.

    @property
    def nmi_disabled(self) -> bool:
        """Bit 7 of port 70h: the PC's NMI gate, which is beside the chip."""
        return bool(self._index & 0x80)

    @property
    def nvram(self) -> bytes:
        """The RAM from 0Eh on, to be kept and given to the next machine."""
        self._sync()
        return bytes(self._ram[RAM:])

    def reset(self) -> None:
        """The RESET pin: interrupts and their flags go, the time and the RAM stay ("RESET")."""
        self._sync()
        self._ram[REG_B] &= ~(B_INTERRUPTS | B_SQWE)
        self._flags = 0
        self._update()

    # What the guest does.

    def read(self, offset: int, size: int, /) -> int:
        if offset != 1:
            return 0xFF
        index = self._index & 0x7F
        self._sync()
        if index == REG_A:
            return self._ram[REG_A] | (A_UIP if self._updating() else 0)
        if index == REG_C:
            value = self._flags | (C_IRQF if self._flags & self._ram[REG_B] else 0)
            self._flags = 0
            self._update()
            return value
        return D_VRT if index == REG_D else self._ram[index]

    def write(self, offset: int, size: int, value: int, /) -> None:
        value &= 0xFF
        if offset != 1:
            self._index = value
            return
        index = self._index & 0x7F
        self._sync()
        if index == REG_A:
            self._write_a(value & ~A_UIP)
        elif index == REG_B:
            # "Register B": SET going high clears UIE.
            self._ram[REG_B] = value & ~B_UIE if value & B_SET else value
        elif index not in (REG_C, REG_D):
            self._ram[index] = value
        self._update()

    def _write_a(self, value: int) -> None:
        self._ram[REG_A] = value
        if value & A_DV != A_DV_32KHZ:
            self._origin = None
            self._cycle = 0
        elif self._origin is None:
            # "When the divider reset is removed the first update cycle begins one-half
            # second later."
            self._origin = self._clock.now() - SECOND // 2
            self._cycle = CRYSTAL // 2

    # Time.

    def _sync(self) -> None:
        """Account for the crystal cycles since the last time; does not touch the line."""
        if self._origin is None:
            return
        cycle, before = (self._clock.now() - self._origin) * CRYSTAL // SECOND, self._cycle
        if cycle <= before:
            return
        self._cycle = cycle
        period = self._period()
        if period and cycle // period > before // period:
            self._flags |= C_PF
        seconds = cycle // CRYSTAL - before // CRYSTAL
        if seconds and not self._ram[REG_B] & B_SET:
            alarm = self._until_alarm()
            if alarm is not None and alarm <= seconds:
                self._flags |= C_AF
            self._flags |= C_UF
            self._advance(seconds)

    def _period(self) -> int:
        """Crystal cycles between two periodic interrupts, 0 for none ("Periodic Interrupt Rate")."""
        rate = self._ram[REG_A] & A_RS
        if rate in (1, 2):
            rate += 7  # at 32.768 kHz these two taps are 3.90625 and 7.8125 ms, like 8 and 9
        return 1 << rate - 1 if rate else 0

    def _updating(self) -> bool:
        if self._origin is None or self._ram[REG_B] & B_SET:
            return False
        return self._cycle % CRYSTAL >= CRYSTAL - _UIP_CYCLES

    def _decode(self, value: int) -> int:
        return value if self._ram[REG_B] & B_DM else (value >> 4) * 10 + (value & 0x0F)

    def _encode(self, value: int) -> int:
        return value if self._ram[REG_B] & B_DM else _bcd(value)

    def _encode_hour(self, hour: int) -> int:
        if self._ram[REG_B] & B_24H:
            return self._encode(hour)
        return self._encode(hour % 12 or 12) | (PM if hour >= 12 else 0)

    def _second_of_day(self) -> int:
        """As the registers read, so a nonsense time may lie beyond the day."""
        ram = self._ram
        hour = ram[HOURS]
        if ram[REG_B] & B_24H:
            hour = self._decode(hour)
        else:
            hour = self._decode(hour & ~PM) % 12 + (12 if hour & PM else 0)
        return hour * 3600 + self._decode(ram[MINUTES]) * 60 + self._decode(ram[SECONDS])

    def _advance(self, seconds: int) -> None:
        """`seconds` (1 or more) update cycles, at once."""
        ram = self._ram
        days, second = divmod(self._second_of_day() + seconds, _DAY_SECONDS)
        ram[HOURS] = self._encode_hour(second // 3600)
        ram[MINUTES] = self._encode(second // 60 % 60)
        ram[SECONDS] = self._encode(second % 60)
        if days:
            # The day of the week is a counter of its own: it need not fit the date.
            ram[WEEKDAY] = (self._decode(ram[WEEKDAY]) - 1 + days) % 7 + 1
        year = self._decode(ram[CENTURY]) * 100 + self._decode(ram[YEAR])
        carry, month = divmod(self._decode(ram[MONTH]) - 1, 12)
        year += carry
        # Any era of 400 years will do, and this one is far from the ends of `date`.
        start = 2000 + year % _ERA_YEARS
        eras, days = divmod(
            date(start, month + 1, 1).toordinal() + self._decode(ram[DAY]) - 1 + days, _ERA_DAYS
        )
        today = date.fromordinal(days + _ERA_DAYS)
        year = (year - start + today.year + (eras - 1) * _ERA_YEARS) % (_MAX_YEAR + 1)
        ram[DAY] = self._encode(today.day)
        ram[MONTH] = self._encode(today.month)
        ram[YEAR] = self._encode(year % 100)
        ram[CENTURY] = self._encode(year // 100)

    def _until_alarm(self) -> int | None:
        """Updates until the next one that matches the alarm bytes (1 to 86400), None if none can.

        The chip compares bytes, so an alarm in the wrong format never comes.
        """
        ram = self._ram

        def matching(alarm: int, values: range, encode: Callable[[int], int]) -> list[int]:
            return [value for value in values if alarm >= DONT_CARE or alarm == encode(value)]

        hours = matching(ram[HOURS_ALARM], range(24), self._encode_hour)
        minutes = matching(ram[MINUTES_ALARM], range(60), self._encode)
        seconds = matching(ram[SECONDS_ALARM], range(60), self._encode)
        if not (hours and minutes and seconds):
            return None
        now = self._second_of_day() % _DAY_SECONDS
        for hour in hours:
            if hour * 3600 + 3599 <= now:
                continue
            for minute in minutes:
                start = hour * 3600 + minute * 60
                if start + 59 <= now:
                    continue
                for second in seconds:
                    if start + second > now:
                        return start + second - now
        return _DAY_SECONDS - now + hours[0] * 3600 + minutes[0] * 60 + seconds[0]

    # Interrupts.

    def _due(self) -> None:
        self._sync()
        self._update()

    def _update(self) -> None:
        """Bring the line and the timer in step with the flags and their enable bits."""
        level = bool(self._flags & self._ram[REG_B])
        if level != self._level:
            self._level = level
            self._irq.set(level)
        self._arm()

    def _arm(self) -> None:
        """The next event that would raise the line. None while it is up: reading register C
        arms it again, so that a guest which does not come in time gets one interrupt."""
        enabled = self._ram[REG_B] & B_INTERRUPTS
        at: int | None = None
        if enabled and not self._level and self._origin is not None:
            second = self._cycle // CRYSTAL
            events = []
            period = self._period()
            if enabled & B_PIE and period:
                events.append((self._cycle // period + 1) * period)
            if not self._ram[REG_B] & B_SET:
                if enabled & B_UIE:
                    events.append((second + 1) * CRYSTAL)
                alarm = self._until_alarm() if enabled & B_AIE else None
                if alarm is not None:
                    events.append((second + alarm) * CRYSTAL)
            if events:
                at = self._origin - (-min(events) * SECOND // CRYSTAL)
        if at is None:
            self._timer.clear()
        else:
            self._timer.set(at)


def _power_on(
    epoch: int, nvram: bytes, memory_size: int | None, memory_above_4g: int, boot_order: str
) -> Mc146818State:
    """The state at the clock's time 0: a PC after its set-up program, battery good."""
    if len(nvram) > _NVRAM_SIZE:
        raise UsageError(
            f"mc146818: {len(nvram)} bytes of nvram", hint=f"at most {_NVRAM_SIZE}: the RAM from 0Eh on"
        )
    try:
        today = date.fromordinal(date(1970, 1, 1).toordinal() + epoch // _DAY_SECONDS)
    except (ValueError, OverflowError):
        raise UsageError(
            f"mc146818: the epoch {epoch} is not a time that it can show",
            hint="seconds since 1970-01-01 UTC, in the years 1 to 9999",
        ) from None
    ram = bytearray(SIZE)
    ram[RAM : RAM + len(nvram)] = nvram
    second = epoch % _DAY_SECONDS
    ram[SECONDS] = _bcd(second % 60)
    ram[MINUTES] = _bcd(second // 60 % 60)
    ram[HOURS] = _bcd(second // 3600)
    ram[WEEKDAY] = today.isoweekday() % 7 + 1  # Sunday is 1
    ram[DAY], ram[MONTH] = _bcd(today.day), _bcd(today.month)
    ram[YEAR], ram[CENTURY] = _bcd(today.year % 100), _bcd(today.year // 100)
    ram[REG_A], ram[REG_B] = A_DV_32KHZ | 6, B_24H
    if memory_size is not None:
        _describe(ram, memory_size, memory_above_4g, boot_order)
    return Mc146818State(bytes(ram))


def _describe(ram: bytearray, low: int, high: int, boot_order: str) -> None:
    """Fill in what firmware reads of the machine: the AT's bytes, and QEMU's for SeaBIOS."""
    if not 0 <= low <= 4096 * _MIB or not 0 <= high < 1 << 40:
        raise UsageError(
            f"mc146818: {low} bytes of memory below 4 GiB and {high} above",
            hint="at most 4 GiB below, less than 1 TiB above",
        )
    if len(boot_order) > 3 or any(letter not in _BOOT_CODES for letter in boot_order):
        raise UsageError(
            f"mc146818: the boot order {boot_order!r}", hint="up to three of the letters a, c, d and n"
        )

    def put(at: int, value: int, size: int = 2) -> None:
        ram[at : at + size] = value.to_bytes(size, "little")

    extended = min(max(0, low - _MIB) >> 10, 0xFFFF)
    ram[0x0F] = 0  # shutdown status: a plain boot
    ram[0x14] = 0x02  # equipment: a coprocessor, a display with its own ROM, no floppy
    put(0x15, min(low >> 10, 640))
    put(0x17, extended)
    put(0x30, extended)
    put(0x34, min(max(0, low - 16 * _MIB) >> 16, 0xFFFF))
    put(0x5B, high >> 16, 3)
    first, second, third = [*(_BOOT_CODES[letter] for letter in boot_order), 0, 0, 0][:3]
    ram[0x3D] = second << 4 | first
    ram[0x38] = third << 4 | 1  # bit 0: no search for a floppy's signature
    checksum = sum(ram[0x10:0x2E]) & 0xFFFF
    ram[0x2E], ram[0x2F] = checksum >> 8, checksum & 0xFF
