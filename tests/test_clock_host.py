"""The host's clock where the host is late: it stands, makes good, loses, and never runs away.

The host's time is a number that the tests move.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.board import Chipset, InterruptBoard
from vmmsim.clock import CATCH_UP, CLOSE, HOLD, MOST_BEHIND, SECOND, HostClock, HostTime
from vmmsim.devices.acpi_pm import PM_TIMER_HZ, AcpiPm
from vmmsim.devices.base import IrqLine, NoIrq
from vmmsim.devices.i8254 import FREQUENCY, I8254
from vmmsim.devices.lapic_timer import PERIODIC, ApicTimer, ApicTimerState

MS = SECOND // 1000
PERIOD = 10 * MS


class Host(HostTime):
    """A host whose time goes on when the test says so."""

    def __init__(self) -> None:
        self.ns = 5 * SECOND

    def now_ns(self) -> int:
        return self.ns


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    made = Host()
    monkeypatch.setattr(HostClock, "source", made)
    return made


class Ticking:
    """A clock with a periodic timer, which notes when it was called."""

    def __init__(self, period: int = PERIOD) -> None:
        self.clock = HostClock()
        self.told = 0
        self.clock.reached = self._reached
        self.calls: list[int] = []
        self.period = period
        self.timer = self.clock.timer(self._tick)
        self.timer.set(period)

    def _reached(self) -> None:
        self.told += 1

    def _tick(self) -> None:
        now = self.clock.now()
        self.calls.append(now)
        self.timer.set((now // self.period + 1) * self.period)


def test_on_a_host_that_keeps_up_it_is_the_hosts_time(host: Host) -> None:
    ticking = Ticking()
    began = host.ns
    for _ in range(1000):
        host.ns += MS // 2
        ticking.clock.run_due()
        assert ticking.clock.now() == host.ns - began
    assert ticking.calls == [PERIOD * n for n in range(1, 51)]


def test_an_interrupt_that_still_waits_holds_up_the_next_deadline_after_one_was_taken(host: Host) -> None:
    """A timer whose handler lasts longer than its period would else come before it for ever."""
    ticking = Ticking()
    ticking.clock.waits = lambda: True
    for _ in range(3):
        before = len(ticking.calls)
        host.ns += PERIOD
        ticking.clock.run_due()
        assert len(ticking.calls) == before  # held up
        host.ns += HOLD
        ticking.clock.run_due()
        assert len(ticking.calls) == before + 1  # given up
        ticking.clock.taken()


def test_it_stands_at_a_deadline_until_its_timers_were_called(host: Host) -> None:
    ticking = Ticking()
    host.ns += 7 * PERIOD
    # One nanosecond before: an 8254 that is read at it would begin its next period by itself, and the timer's
    # interrupt would come without the clock, again and again before those of a lower priority.
    assert [ticking.clock.now(), ticking.clock.now()] == [PERIOD - 1, PERIOD - 1]
    assert ticking.told == 1  # of one deadline the vCPU is told once
    ticking.clock.run_due()
    assert ticking.calls == [PERIOD]
    assert ticking.clock.now() == PERIOD  # of the host's time nothing has passed since
    host.ns += MS
    assert ticking.clock.now() == PERIOD + CATCH_UP * MS


def test_each_period_has_its_tick_however_late_the_host_is(host: Host) -> None:
    ticking = Ticking()
    host.ns += 20 * PERIOD
    for _ in range(100):
        ticking.clock.run_due()
        host.ns += MS
    assert ticking.calls[:20] == [PERIOD * n for n in range(1, 21)]


def test_between_two_ticks_the_guest_has_a_part_of_a_period(host: Host) -> None:
    ticking = Ticking()
    host.ns += 20 * PERIOD
    called = []
    for _ in range(400):
        before = len(ticking.calls)
        ticking.clock.run_due()
        called += [host.ns] * (len(ticking.calls) - before)
        host.ns += MS // 4
    gaps = [after - before for before, after in pairwise(called)]
    assert min(gaps) >= PERIOD // CATCH_UP


def test_what_it_is_behind_is_made_good(host: Host) -> None:
    ticking = Ticking()
    began = host.ns
    host.ns += 20 * PERIOD
    for _ in range(19 * 20):
        ticking.clock.run_due()
        host.ns += MS // 2
    ticking.clock.run_due()
    assert ticking.clock.now() == host.ns - began


def test_what_a_host_is_late_by_more_than_a_second_the_guest_does_not_get(host: Host) -> None:
    ticking = Ticking()
    host.ns += 3600 * SECOND
    for _ in range(4000):
        ticking.clock.run_due()
        host.ns += MS
    ticking.clock.run_due()
    assert ticking.clock.now() == PERIOD + MOST_BEHIND + 4000 * MS
    host.ns += MS
    assert ticking.clock.now() == PERIOD + MOST_BEHIND + 4001 * MS
    assert ticking.calls == [PERIOD * n for n in range(1, len(ticking.calls) + 1)]


def test_beside_a_counter_of_the_hosts_own_nothing_is_lost(host: Host) -> None:
    """On KVM RDTSC is the host's: a timer that stayed far from it would be taken for broken."""
    ticking = Ticking()
    began = host.ns
    ticking.clock.stay_close()
    host.ns += PERIOD + CLOSE
    ticking.clock.run_due()
    assert ticking.calls == [PERIOD]
    host.ns += 3600 * SECOND
    ticking.clock.run_due()
    assert ticking.clock.now() == host.ns - began
    assert len(ticking.calls) == 2


def test_a_guest_that_waits_finds_the_hosts_time_deadline_by_deadline(host: Host) -> None:
    ticking = Ticking()
    began = host.ns
    host.ns += 30 * PERIOD + MS
    for _ in range(30):
        ticking.clock.idle()
        ticking.clock.run_due()
    assert ticking.calls == [PERIOD * n for n in range(1, 31)]
    ticking.clock.idle()
    assert ticking.clock.now() == host.ns - began


def test_while_the_machine_does_not_run_its_time_passes_at_once(host: Host) -> None:
    ticking = Ticking()
    began = host.ns
    ticking.clock.stop()
    host.ns += 3600 * SECOND + MS
    ticking.clock.go_on()
    ticking.clock.run_due()
    assert len(ticking.calls) == 1
    assert ticking.clock.now() == host.ns - began


def test_without_anybody_who_calls_timers_it_is_the_hosts_time(host: Host) -> None:
    ticking = Ticking()
    ticking.clock.reached = None
    host.ns += 3 * PERIOD
    assert ticking.clock.now() == 3 * PERIOD


def test_a_timer_that_is_set_to_what_is_over_does_not_set_the_time_back(host: Host) -> None:
    ticking = Ticking()
    ticking.timer.clear()
    host.ns += 5 * MS
    assert ticking.clock.now() == 5 * MS
    ticking.timer.set(MS)
    assert ticking.clock.now() == 5 * MS
    ticking.clock.run_due()
    assert ticking.calls == [5 * MS]


def test_restored_it_goes_on_from_where_it_was_with_nothing_to_make_good(host: Host) -> None:
    ticking = Ticking()
    host.ns += 9 * PERIOD
    ticking.clock.run_due()
    again = HostClock()
    again.set_now(ticking.clock.now())
    assert again.now() == PERIOD
    host.ns += MS
    assert again.now() == PERIOD + MS


def test_due_in_is_when_run_due_has_something_to_do(host: Host) -> None:
    ticking = Ticking()
    host.ns += 5 * PERIOD
    ticking.clock.run_due()
    for _ in range(8):
        ahead = ticking.clock.due_in()
        assert ahead is not None
        assert ahead > 0
        host.ns += ahead - 1
        before = len(ticking.calls)
        ticking.clock.run_due()
        assert len(ticking.calls) == before
        host.ns += 1
        ticking.clock.run_due()
        assert len(ticking.calls) == before + 1
    ticking.timer.clear()
    assert ticking.clock.due_in() is None


class Intr:
    """An interrupt controller that a periodic timer keeps pulling."""

    def __init__(self) -> None:
        self.high = False

    def pending(self) -> bool:
        return self.high

    def acknowledge(self) -> int:
        self.high = False
        return 32


class Guest:
    """A vCPU whose interrupt handler takes `cost` of the host's time, with IF clear; the rest is its own."""

    def __init__(self, host: Host, period: int, cost: int) -> None:
        self.host, self.cost = host, cost
        self.ticking = Ticking(period)
        self.intr = Intr()
        tick = self.ticking.timer.callback
        self.ticking.timer.callback = lambda: (tick(), setattr(self.intr, "high", True))
        chipset = Chipset(self.ticking.clock, [], None, lambda: None)
        self.board = InterruptBoard(chipset, self.intr)
        self.own = self.taken = 0

    def run(self, steps: int, step: int) -> None:
        """So many steps, each followed by a boundary at which the vCPU looks, as vCPUs do."""
        left = 0
        for _ in range(steps):
            self.host.ns += step
            self.own += 0 if left else step
            left = max(0, left - step)
            self.board.service()
            if self.board.pending() and not left:
                self.board.acknowledge()
                self.taken += 1
                left = self.cost
            self.board.pending()


@pytest.mark.parametrize("cost", [1, 2, 3, 10, 50])
def test_a_guest_gets_on_however_long_it_takes_for_a_tick(host: Host, cost: int) -> None:
    """Handlers of 1 to 50 periods, which would leave nothing of the host's time, on a host that was late."""
    guest = Guest(host, period=MS, cost=cost * MS)
    host.ns += 20 * MS
    began = host.ns
    guest.run(20_000, MS // 4)
    assert guest.own >= (host.ns - began) // 5
    assert guest.ticking.calls == [MS * n for n in range(1, len(guest.ticking.calls) + 1)]


def test_a_guest_that_holds_interrupts_off_now_and_then_keeps_its_time(host: Host) -> None:
    guest = Guest(host, period=MS, cost=MS // 2)
    began = host.ns
    guest.run(20_000, MS // 16)
    assert guest.ticking.clock.now() >= host.ns - began - MS


def test_the_devices_never_disagree(host: Host) -> None:
    """Late or not, each chip's counter follows from one time."""
    clock = HostClock()
    clock.reached = lambda: None
    line = IrqLine()
    pit = I8254(clock, line)
    pm = AcpiPm(clock, NoIrq(), on_power_off=lambda: None)
    apic = ApicTimer(
        clock,
        lambda: None,
        name="apic",
        tsc=None,
        tsc_hz=SECOND,
        mode=PERIODIC,
        state=ApicTimerState(divide=0xB),
    )
    pit.write(3, 1, 0x34)
    pit.write(0, 1, 0x00)
    pit.write(0, 1, 0x10)  # 4096 pulses
    apic.set_initial(7_000_000)
    for step in [1, 3, 40, 500, 2, 7000, 60_000, 5, 5, 900_000, 33] * 30:
        host.ns += step * 1000
        clock.run_due()
        now = clock.now()
        assert pm.read(8, 4) == now * PM_TIMER_HZ // SECOND & 0xFFFFFF
        assert apic.current() == 7_000_000 - now % 7_000_000
        assert clock.now() == now
        pit.write(3, 1, 0)  # which looks at its timer, too: the time may go on
        low = pit.read(0, 1)
        shown = low | pit.read(0, 1) << 8
        assert shown == 4096 - (now * FREQUENCY // SECOND - 1) % 4096


steps = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(0, 3 * SECOND)),
        st.tuples(st.just("pass"), st.integers(0, PERIOD)),
        st.tuples(st.sampled_from(["read", "service", "service", "idle"]), st.just(0)),
        st.tuples(st.just("one-shot"), st.integers(-PERIOD, 3 * PERIOD)),
    ),
    max_size=60,
)


@given(steps=steps, vcpus=st.integers(1, 3))
def test_it_never_goes_back_nor_passes_a_timer_nor_the_host(steps: list[tuple[str, int]], vcpus: int) -> None:
    usual, HostClock.source = HostClock.source, Host()
    try:
        host = HostClock.source
        assert isinstance(host, Host)
        ticking = Ticking()
        clock = ticking.clock
        calls: list[list[int]] = [[] for _ in range(vcpus)]
        timers = []

        def periodic(number: int) -> None:
            now = clock.now()
            calls[number].append(now)
            timers[number].set((now // PERIOD + 1) * PERIOD)

        for number in range(vcpus):
            timers.append(clock.timer(lambda number=number: periodic(number)))  # type: ignore[misc]
            timers[-1].set(PERIOD)
        shot = clock.timer(lambda: None)
        began, last, last_host = host.ns, 0, host.ns
        for what, value in steps:
            if what == "pass":
                host.ns += value
            elif what == "service":
                clock.run_due()
            elif what == "idle":
                clock.idle()
            elif what == "one-shot":
                shot.set(max(0, clock.now() + value))
            now = clock.now()
            assert last <= now <= host.ns - began
            assert clock.deadline is not None
            assert now <= max(clock.deadline, last)
            last, last_host = now, host.ns
        for made in [ticking.calls, *calls]:  # each vCPU has each of its ticks
            grid = sorted({at // PERIOD for at in made})
            assert grid == list(range(1, len(made) + 1))
        # From now on the host keeps up: what is left to make good is, and then it is the host's pace.
        for _ in range(1200):
            clock.idle()
            clock.run_due()
        clock.idle()
        before, last_host = clock.now(), host.ns
        for _ in range(50):
            host.ns += MS
            clock.run_due()
            assert 0 <= host.ns - last_host - (clock.now() - before) <= MS
    finally:
        HostClock.source = usual
