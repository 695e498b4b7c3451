"""The real-time clock, against the Motorola MC146818A data sheet."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.clock import SECOND, ExitClock
from vmmsim.devices.base import IrqLine
from vmmsim.devices.mc146818 import Mc146818, Mc146818State
from vmmsim.errors import UsageError
from vmmsim.testing import run_device_conformance

MS = 1_000_000
US = 1000
A, B, C, D = 0x0A, 0x0B, 0x0C, 0x0D
SET, PIE, AIE, UIE, DM, H24 = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
IRQF, PF, AF, UF = 0x80, 0x40, 0x20, 0x10


def unix(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp())


class Pc:
    """The chip with its clock and line, and short names for what happens to it."""

    def __init__(self, *when: int, state: Mc146818State | None = None, now: int = 0, **options) -> None:
        self.clock = ExitClock()
        self.clock.skip_to(now)
        self.line = IrqLine()
        if when:
            options["epoch"] = unix(*when)
        self.rtc = Mc146818(self.clock, self.line, state=state, **options)

    def __getitem__(self, index: int) -> int:
        self.rtc.write(0, 1, index)
        return self.rtc.read(1, 1)

    def __setitem__(self, index: int, value: int) -> None:
        self.rtc.write(0, 1, index)
        self.rtc.write(1, 1, value)

    def at(self, ns: int) -> Pc:
        """It is `ns` now, and whoever runs the machine has called what was due."""
        self.clock.skip_to(ns)
        self.clock.run_due()
        return self

    def time(self) -> tuple[int, ...]:
        """Century, year, month, day, hour, minute, second; as the bytes read."""
        return tuple(self[index] for index in (0x32, 9, 8, 7, 4, 2, 0))

    def set_time(self, *values: int) -> None:
        for index, value in zip((0x32, 9, 8, 7, 4, 2, 0), values, strict=True):
            self[index] = value

    @property
    def irq(self) -> bool:
        return self.line.level


# Time of day.


def test_the_time_is_bcd_in_24_hours_and_starts_at_the_epoch() -> None:
    pc = Pc(2020, 2, 29, 12, 34, 56)

    assert pc.time() == (0x20, 0x20, 0x02, 0x29, 0x12, 0x34, 0x56)
    assert pc[6] == 7  # a Saturday; Sunday is 1
    assert (pc[A], pc[B], pc[C], pc[D]) == (0x26, 0x02, 0x00, 0x80)


def test_a_second_passes_when_the_clock_says_so() -> None:
    pc = Pc(1999, 12, 31, 23, 59, 59)

    assert pc.at(SECOND - 1)[0] == 0x59
    assert pc.at(SECOND).time() == (0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00)
    assert pc[6] == 7  # 1 January 2000 was a Saturday


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2024, 2, 28), (0x20, 0x24, 0x02, 0x29)),
        ((2023, 2, 28), (0x20, 0x23, 0x03, 0x01)),
        ((2000, 2, 28), (0x20, 0x00, 0x02, 0x29)),
        ((2100, 2, 28), (0x21, 0x00, 0x03, 0x01)),
        ((2026, 4, 30), (0x20, 0x26, 0x05, 0x01)),
    ],
)
def test_months_end_and_leap_years_come(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    pc = Pc(*before, 23, 59, 59)

    assert pc.at(SECOND).time() == (*after, 0, 0, 0)


def test_binary_mode_counts_in_binary() -> None:
    pc = Pc()
    pc[B] = SET | DM | H24
    pc.set_time(20, 26, 11, 30, 23, 59, 59)
    pc[B] = DM | H24

    assert pc.at(SECOND).time() == (20, 26, 12, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("before", "after"),
    [(0x11, 0x92), (0x92, 0x81), (0x91, 0x12), (0x12, 0x01), (0x09, 0x10)],
    ids=["noon", "after-noon", "midnight", "after-midnight", "morning"],
)
def test_twelve_hours_run_from_12_with_bit_7_for_the_afternoon(before: int, after: int) -> None:
    pc = Pc(2026, 1, 1, 0, 0, 0)
    pc[B] = SET
    pc.set_time(0x20, 0x26, 0x01, 0x01, before, 0x59, 0x59)
    pc[B] = 0

    assert pc.at(SECOND)[4] == after


def test_twelve_hours_in_binary() -> None:
    pc = Pc()
    pc[B] = SET | DM
    pc.set_time(20, 26, 1, 1, 11, 59, 59)
    pc[B] = DM

    assert pc.at(SECOND)[4] == 0x80 | 12


def test_changing_the_mode_converts_nothing_as_the_data_sheet_says() -> None:
    pc = Pc(2026, 1, 1, 12, 34, 56)
    pc[B] = SET | DM | H24

    assert pc.time() == (0x20, 0x26, 0x01, 0x01, 0x12, 0x34, 0x56)


def test_set_stops_the_updates_and_clears_uie() -> None:
    pc = Pc(2026, 1, 1, 0, 0, 0)
    pc[B] = UIE | H24
    pc[B] = SET | UIE | H24

    assert pc[B] == SET | H24
    assert pc.at(10 * SECOND)[0] == 0x00
    assert pc[C] & UF == 0
    pc[B] = H24
    # The divider ran on, so the next update is at the next whole second.
    assert pc.at(11 * SECOND)[0] == 0x01


def test_writing_the_time_moves_it_and_keeps_the_phase() -> None:
    pc = Pc(2026, 1, 1, 0, 0, 0).at(300 * MS)
    pc[4] = 0x17

    assert pc.at(SECOND - 1).time()[4:] == (0x17, 0, 0)
    assert pc.at(SECOND).time()[4:] == (0x17, 0, 0x01)


def test_a_time_that_does_not_exist_counts_on_from_the_next_update() -> None:
    pc = Pc(2026, 1, 31, 12, 0, 0)
    pc[8] = 0x02

    assert pc.time()[2:4] == (0x02, 0x31)
    assert pc.at(SECOND).time() == (0x20, 0x26, 0x03, 0x03, 0x12, 0x00, 0x01)


def test_the_divider_reset_holds_the_time_and_the_first_update_comes_half_a_second_later() -> None:
    pc = Pc(2026, 1, 1, 0, 0, 0).at(900 * MS)
    pc[A] = 0x76
    assert pc.at(5 * SECOND)[0] == 0x00
    pc[A] = 0x26

    assert pc.at(5 * SECOND + 500 * MS - 1)[0] == 0x00
    assert pc.at(5 * SECOND + 500 * MS)[0] == 0x01
    assert pc.at(6 * SECOND + 500 * MS)[0] == 0x02


def test_uip_rises_244_us_before_the_update_which_takes_1984_us() -> None:
    pc = Pc()

    assert pc[A] == 0x26
    assert pc.at(SECOND - 2240 * US)[A] == 0x26
    assert pc.at(SECOND - 2220 * US)[A] == 0xA6
    assert pc.at(SECOND - 1)[A] == 0xA6
    assert pc.at(SECOND)[A] == 0x26


@pytest.mark.parametrize(("register", "value"), [(A, 0x76), (B, SET)], ids=["divider", "set"])
def test_uip_is_off_while_no_update_can_come(register: int, value: int) -> None:
    pc = Pc().at(SECOND - 1000 * US)
    pc[register] = value

    assert pc[A] & 0x80 == 0


@given(
    st.datetimes(datetime(1970, 1, 1), datetime(2399, 1, 1)),
    st.integers(1, 400 * 366 * 86400),
    st.booleans(),
)
def test_any_time_span_gives_the_calendars_time(start: datetime, seconds: int, at_once: bool) -> None:
    start = start.replace(microsecond=0, tzinfo=UTC)
    pc = Pc(epoch=int(start.timestamp()))
    if not at_once:
        pc.at(seconds // 3 * SECOND)[0]
        pc.at(seconds // 2 * SECOND)[0]
    pc.at(seconds * SECOND)
    end = start + timedelta(seconds=seconds)

    shown = "".join(f"{byte:02x}" for byte in pc.time())
    assert shown == end.strftime("%Y%m%d%H%M%S")
    assert pc[6] == end.isoweekday() % 7 + 1


# Flags and interrupts.


def test_register_c_tells_of_updates_though_no_interrupt_is_enabled_and_is_cleared_by_reading() -> None:
    pc = Pc().at(SECOND)

    assert pc[C] == UF | PF
    assert pc[C] == 0
    assert not pc.irq


def test_an_idle_machine_has_no_timer() -> None:
    pc = Pc()
    assert pc.clock.deadline is None
    pc[B] = H24 | UIE
    assert pc.clock.deadline == SECOND
    pc[B] = H24

    assert pc.clock.deadline is None


def test_the_update_interrupt_comes_each_second_and_falls_when_c_is_read() -> None:
    pc = Pc()
    pc[B] = H24 | UIE
    assert not pc.at(SECOND - 1).irq
    for second in range(1, 4):
        assert pc.at(second * SECOND).irq
        assert pc[C] & (IRQF | UF) == IRQF | UF
        assert not pc.irq


@pytest.mark.parametrize(
    ("rate", "period"),
    [
        (1, 3_906_250),
        (2, 7_812_500),
        (3, 122_070),
        (4, 244_141),
        (5, 488_281),
        (6, 976_562),
        (7, 1_953_125),
        (8, 3_906_250),
        (9, 7_812_500),
        (10, 15_625_000),
        (11, 31_250_000),
        (12, 62_500_000),
        (13, 125_000_000),
        (14, 250_000_000),
        (15, 500_000_000),
    ],
)
def test_periodic_rates_are_those_of_the_table(rate: int, period: int) -> None:
    pc = Pc()
    pc[A] = 0x20 | rate
    pc[B] = H24 | PIE
    edges = []
    for _ in range(4):
        pc.at(pc.clock.deadline)
        assert pc.irq
        edges.append(pc.clock.now())
        assert pc[C] & PF

    assert edges == pytest.approx([period * n for n in (1, 2, 3, 4)], abs=4)


def test_rate_0_has_no_periodic_interrupt() -> None:
    pc = Pc()
    pc[A] = 0x20
    pc[B] = H24 | PIE

    assert pc.clock.deadline is None
    assert pc.at(10 * SECOND)[C] & PF == 0


def test_the_periodic_rate_does_not_drift() -> None:
    pc = Pc(2026, 1, 1, 0, 0, 0)
    pc[A] = 0x2F
    pc[B] = H24 | PIE
    for _ in range(1000):
        pc.at(pc.clock.deadline)
        pc[C]

    assert pc.clock.now() == 500 * SECOND


def test_late_callbacks_are_one_interrupt() -> None:
    pc = Pc()
    pc[A] = 0x23
    pc[B] = H24 | PIE
    edges: list[bool] = []
    pc.line._listener = edges.append
    pc.at(10 * SECOND + 1)
    assert edges == [True]
    assert pc.clock.deadline is None
    pc[C]

    assert edges == [True, False]
    assert 10 * SECOND + 1 < pc.clock.deadline <= 10 * SECOND + 1 + 122_071


def test_enabling_an_interrupt_whose_flag_is_up_raises_it_at_once() -> None:
    pc = Pc().at(SECOND)
    pc[B] = H24 | UIE

    assert pc.irq
    assert pc[C] == IRQF | UF | PF


def test_the_alarm_comes_at_its_time_and_the_next_day_again() -> None:
    pc = Pc(2026, 1, 1, 12, 0, 0)
    pc[5], pc[3], pc[1] = 0x12, 0x00, 0x05
    pc[B] = H24 | AIE
    assert pc.clock.deadline == 5 * SECOND
    assert pc.at(5 * SECOND).irq
    assert pc[C] & AF

    assert pc.clock.deadline == (86400 + 5) * SECOND


def test_an_alarm_of_now_waits_for_the_next_update_that_matches() -> None:
    pc = Pc(2026, 1, 1, 12, 0, 0)
    pc[5], pc[3], pc[1] = 0x12, 0x00, 0x00
    pc[B] = H24 | AIE

    assert not pc.irq
    assert pc.clock.deadline == 86400 * SECOND


@pytest.mark.parametrize("any_code", [0xC0, 0xFF, 0xD7])
def test_dont_care_codes_make_an_alarm_each_hour_minute_or_second(any_code: int) -> None:
    pc = Pc(2026, 1, 1, 12, 0, 0)
    pc[5], pc[3], pc[1] = any_code, 0x30, 0x10
    pc[B] = H24 | AIE
    assert pc.clock.deadline == (30 * 60 + 10) * SECOND
    pc[3] = any_code
    assert pc.clock.deadline == 10 * SECOND
    pc[1] = any_code

    assert pc.clock.deadline == SECOND


def test_an_alarm_in_the_wrong_format_never_comes() -> None:
    pc = Pc(2026, 1, 1, 12, 0, 0)
    pc[5], pc[3], pc[1] = 0xFF, 0xFF, 0x3A
    pc[B] = H24 | AIE

    assert pc.clock.deadline is None
    assert pc.at(200_000 * SECOND)[C] & AF == 0


def test_an_alarm_in_the_afternoon_of_a_twelve_hour_clock() -> None:
    pc = Pc(2026, 1, 1, 12, 59, 58)
    pc[B] = SET
    pc[4] = 0x92
    pc[5], pc[3], pc[1] = 0x81, 0x00, 0x00
    pc[B] = AIE

    assert pc.clock.deadline == 2 * SECOND


@given(
    st.integers(0, 86399),
    st.tuples(*(st.sampled_from([0xC0, 0x00, 0x01, 0x17, 0x23, 0x59, 0x5A]) for _ in range(3))),
    st.booleans(),
)
def test_the_alarm_is_the_next_second_whose_bytes_match(
    start: int, alarm: tuple[int, int, int], set_late: bool
) -> None:
    pc = Pc(epoch=start)
    pc[5], pc[3], pc[1] = alarm
    expected = None
    for ahead in range(1, 86401):
        second = (start + ahead) % 86400
        shown = (second // 3600, second // 60 % 60, second % 60)
        if all(
            code >= 0xC0 or f"{code:02x}" == f"{part:02}" for code, part in zip(alarm, shown, strict=True)
        ):
            expected = ahead
            break
    if set_late:
        pc[B] = H24 | AIE
        assert pc.clock.deadline == (None if expected is None else expected * SECOND)
    elif expected is None:
        assert pc.at(100_000 * SECOND)[C] & AF == 0
    else:
        assert pc.at(expected * SECOND - 1)[C] & AF == 0
        assert pc.at(expected * SECOND)[C] & AF


def test_set_holds_back_alarm_and_update_but_not_the_periodic_interrupt() -> None:
    pc = Pc()
    pc[5] = pc[3] = pc[1] = 0xFF
    pc[A] = 0x2F
    pc[B] = SET | AIE | PIE | H24

    assert pc.at(2 * SECOND)[C] == IRQF | PF


def test_the_reset_pin_ends_interrupts_and_keeps_time_and_ram() -> None:
    pc = Pc(2026, 1, 1, 0, 0, 0)
    pc[0x40] = 0x5A
    pc[B] = H24 | UIE | PIE | AIE | 0x08
    pc.at(3 * SECOND)
    pc.rtc.reset()

    assert not pc.irq
    assert pc.clock.deadline is None
    assert (pc[B], pc[C], pc[0], pc[0x40]) == (H24, 0, 0x03, 0x5A)


# Registers and RAM.


def test_ram_keeps_every_byte_and_the_status_registers_keep_theirs() -> None:
    pc = Pc()
    for index in range(0x0E, 0x80):
        if index != 0x32:
            pc[index] = index ^ 0xFF
    pc[C] = pc[D] = 0x55

    assert all(pc[index] == index ^ 0xFF for index in range(0x0E, 0x80) if index != 0x32)
    assert (pc[C], pc[D]) == (0, 0x80)


def test_bit_7_of_the_index_is_the_nmi_gate_and_no_part_of_the_index() -> None:
    pc = Pc()
    pc[0x40] = 0x5A
    assert not pc.rtc.nmi_disabled

    assert pc[0x80 | 0x40] == 0x5A
    assert pc.rtc.nmi_disabled
    assert pc.rtc.read(0, 1) == 0xFF


def test_nvram_is_given_and_kept_from_0e_on() -> None:
    pc = Pc(2026, 1, 1, 0, 0, 0, nvram=bytes(range(100, 110)))

    assert (pc[0x0E], pc[0x17], pc[0x18]) == (100, 109, 0)
    pc[0x7F] = 0x77
    assert pc.rtc.nvram[:10] == bytes(range(100, 110))
    assert (len(pc.rtc.nvram), pc.rtc.nvram[-1]) == (114, 0x77)


@pytest.mark.parametrize(
    ("mib", "base", "extended", "above_16"),
    [
        (0.5, 512, 0, 0),
        (1, 640, 0, 0),
        (16, 640, 15360, 0),
        (64, 640, 0xFC00, 768),
        (3072, 640, 0xFFFF, 48896),
    ],
)
def test_memory_sizes_are_where_firmware_looks(mib: float, base: int, extended: int, above_16: int) -> None:
    pc = Pc(memory_size=int(mib * (1 << 20)))

    def word(at: int) -> int:
        return pc[at] | pc[at + 1] << 8

    assert [word(at) for at in (0x15, 0x17, 0x30, 0x34)] == [base, extended, extended, above_16]


def test_firmwares_other_bytes() -> None:
    pc = Pc(memory_size=1 << 30, memory_above_4g=5 << 30, boot_order="dc")

    assert (pc[0x0E], pc[0x0F], pc[0x14]) == (0, 0, 0x02)
    assert pc[0x5B] | pc[0x5C] << 8 | pc[0x5D] << 16 == (5 << 30) >> 16
    assert (pc[0x3D], pc[0x38]) == (0x23, 0x01)
    assert pc[0x2E] << 8 | pc[0x2F] == sum(pc[index] for index in range(0x10, 0x2E))


@pytest.mark.parametrize(
    "options",
    [
        {"nvram": bytes(115)},
        {"epoch": 1 << 60},
        {"epoch": -(1 << 60)},
        {"memory_size": (4 << 30) + 1},
        {"memory_size": -1},
        {"memory_size": 1, "memory_above_4g": 1 << 40},
        {"memory_size": 1, "boot_order": "cx"},
        {"memory_size": 1, "boot_order": "cadn"},
    ],
    ids=str,
)
def test_arguments_that_the_chip_cannot_hold_are_refused(options: dict) -> None:
    with pytest.raises(UsageError, match="mc146818"):
        Pc(**options)


# State.


def test_restoring_raises_a_pending_interrupt_again_and_the_clock_goes_on() -> None:
    pc = Pc(2026, 1, 1, 0, 0, 0)
    pc[B] = H24 | UIE
    pc.at(SECOND)
    again = Pc(state=pc.rtc.state(), now=SECOND)

    assert again.irq
    assert again[C] & IRQF
    assert again.clock.deadline == 2 * SECOND
    assert again.at(5 * SECOND)[0] == 0x05


def ram(**registers: int) -> bytes:
    data = bytearray(128)
    data[A], data[B] = 0x26, 0x02
    for name, value in registers.items():
        data["abcd".index(name) + A] = value
    return bytes(data)


@pytest.mark.parametrize(
    "state",
    [
        Mc146818State(bytes(64)),
        Mc146818State(ram(a=0xA6)),
        Mc146818State(ram(c=0x10)),
        Mc146818State(ram(d=0x80)),
        Mc146818State(ram(), index=0x100),
        Mc146818State(ram(), flags=0x80),
        Mc146818State(ram(), cycle=-1),
        Mc146818State(ram(), origin=None),
        Mc146818State(ram(a=0x76)),
    ],
    ids=["short", "uip", "c", "d", "index", "flags", "cycle", "no-origin", "held-with-origin"],
)
def test_states_that_the_chip_cannot_be_in_are_refused(state: Mc146818State) -> None:
    with pytest.raises(UsageError, match="mc146818"):
        Pc(state=state)


def test_device_conformance() -> None:
    def factory(state: Mc146818State | None = None) -> Mc146818:
        return Pc(2026, 1, 1, 0, 0, 0, state=state).rtc

    run_device_conformance(factory, length=2)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 0x0F), st.just(0)),
        st.tuples(st.just("write"), st.sampled_from([*range(0x0E), 0x32]), st.integers(0, 255)),
        st.tuples(st.just("write"), st.just(A), st.sampled_from([0x20, 0x23, 0x26, 0x2F, 0x70])),
        st.tuples(st.just("write"), st.just(B), st.sampled_from([0x02, 0x72, 0x82, 0x32, 0x06])),
        st.tuples(
            st.just("pass"),
            st.sampled_from([1, 1000, 3 * MS, SECOND // 3, SECOND, 90000 * SECOND]),
            st.just(0),
        ),
    ),
    max_size=30,
)


def play(pc: Pc, steps: list[tuple[str, int, int]], *, timers: bool = True) -> list[object]:
    """What a guest sees of a script."""
    seen: list[object] = []
    for verb, a, b in steps:
        if verb == "read":
            seen.append(pc[a])
        elif verb == "write":
            pc[a] = b
        else:
            pc.clock.skip_to(pc.clock.now() + a)
            if timers:
                pc.clock.run_due()
        if timers:
            seen.append(pc.irq)
    return seen


@given(STEPS, STEPS)
def test_a_restored_clock_has_the_same_future(before: list, after: list) -> None:
    first = Pc(2026, 1, 1, 0, 0, 0)
    play(first, before)
    state = first.rtc.state()
    assert msgspec.json.decode(msgspec.json.encode(state), type=Mc146818State) == state
    second = Pc(state=state, now=first.clock.now())

    assert second.irq == first.irq
    assert second.clock.deadline == first.clock.deadline
    assert play(first, after) == play(second, after)
    assert first.rtc.state() == second.rtc.state()


@given(STEPS)
def test_a_guest_reads_the_same_whether_or_not_a_timer_ran(steps: list) -> None:
    with_timers, without = Pc(2026, 1, 1, 0, 0, 0), Pc(2026, 1, 1, 0, 0, 0)
    bytes_read = [value for value in play(with_timers, steps) if not isinstance(value, bool)]

    assert bytes_read == play(without, steps, timers=False)


@given(STEPS)
def test_the_line_is_irqf_and_a_timer_is_armed_only_for_what_may_raise_it(steps: list) -> None:
    pc = Pc(2026, 1, 1, 0, 0, 0)
    play(pc, steps)
    state = pc.rtc.state()

    assert pc.irq == bool(state.flags & state.ram[B])
    deadline = pc.clock.deadline
    assert deadline is None or deadline > pc.clock.now()
    if pc.irq or not state.ram[B] & (PIE | AIE | UIE):
        assert deadline is None
    elif deadline is not None:
        assert not pc.at(deadline - 1).irq
        assert pc.at(deadline).irq


# Recorded from QEMU 7.2.

RECORDED = Path(__file__).parents[2] / "shared" / "vectors" / "devices" / "pc.json"


def test_recorded_script_of_qemu() -> None:
    if not RECORDED.exists():
        pytest.skip(f"the recorded register scripts are not here: {RECORDED}")
    pc = Pc(2020, 2, 29, 12, 34, 56)  # what `-rtc base=` was
    got, expected = [], []
    for number, (verb, address, value) in enumerate(json.loads(RECORDED.read_text())["rtc_regs"]):
        if verb == "outb":
            pc.rtc.write(address - 0x70, 1, value)
        elif verb == "inb":
            got.append((number, pc.rtc.read(address - 0x70, 1)))
            expected.append((number, value))
        elif verb == "clock_step":
            pc.at(pc.clock.now() + address)

    assert got == expected
