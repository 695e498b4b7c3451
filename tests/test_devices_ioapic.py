"""The I/O APIC, against the Intel 82093AA data sheet (May 1996), section 3."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vmmsim.clock import ExitClock
from vmmsim.devices.apic_bus import ApicBus
from vmmsim.devices.ioapic import INPUTS, IoApic, IoApicState
from vmmsim.devices.lapic import LocalApic
from vmmsim.errors import UsageError
from vmmsim.testing import run_device_conformance

IOREGSEL, IOWIN = 0x00, 0x10
MASKED, LEVEL, LOW, REMOTE_IRR, LOGICAL = 0x10000, 0x8000, 0x2000, 0x4000, 0x800
NMI, EXTINT, LOWEST = 0x400, 0x700, 0x100


class Board:
    """An I/O APIC and local APICs, and short names for what a guest does to them."""

    def __init__(self, vcpus: int = 1, state: IoApicState | None = None) -> None:
        self.bus = ApicBus()
        self.nmis = 0
        self.changes = 0
        self.pic_high = False
        self.chip = IoApic(self.bus, ident=2, state=state)
        self.apics = [self.local(number) for number in range(vcpus)]

    def local(self, number: int) -> LocalApic:
        apic = LocalApic(
            number,
            ExitClock(),
            self.bus,
            boot=number == 0,
            on_change=self.changed,
            on_nmi=self.nmi,
            on_init=lambda: None,
            on_startup=lambda vector: None,
            extint=lambda: 0x08,
        )
        apic.write(0xF0, 4, 0x1FF)
        return apic

    def changed(self) -> None:
        self.changes += 1

    def nmi(self) -> None:
        self.nmis += 1

    def reg(self, number: int) -> int:
        self.chip.write(IOREGSEL, 4, number)
        return self.chip.read(IOWIN, 4)

    def set_reg(self, number: int, value: int) -> None:
        self.chip.write(IOREGSEL, 4, number)
        self.chip.write(IOWIN, 4, value)

    def entry(self, number: int) -> int:
        return self.reg(0x11 + 2 * number) << 32 | self.reg(0x10 + 2 * number)

    def set_entry(self, number: int, low: int, destination: int = 0) -> None:
        """As guests do: masked, then the destination, then the rest."""
        self.set_reg(0x10 + 2 * number, MASKED | low)
        self.set_reg(0x11 + 2 * number, destination << 24)
        self.set_reg(0x10 + 2 * number, low)

    def pin(self, number: int, level: bool) -> None:
        self.chip.input(number).set(level)

    def take(self, vcpu: int = 0) -> int | None:
        apic = self.apics[vcpu]
        return apic.acknowledge() if apic.pending() else None

    def eoi(self, vcpu: int = 0) -> None:
        self.apics[vcpu].write(0xB0, 4, 0)


# Registers.


def test_reset_values_are_those_of_the_data_sheet() -> None:
    board = Board()

    assert board.reg(0) == 0x02000000
    assert board.reg(1) == 0x00170011
    assert board.reg(2) == 0x02000000
    assert [board.entry(number) for number in range(INPUTS)] == [MASKED] * 24
    assert board.reg(3) == board.reg(0x40) == 0


def test_the_id_is_four_bits_and_loads_the_arbitration_id() -> None:
    board = Board()
    board.set_reg(0, 0xFFFFFFFF)
    assert (board.reg(0), board.reg(2)) == (0x0F000000, 0x0F000000)
    board.set_reg(2, 0)
    board.set_reg(1, 0)
    assert (board.reg(1), board.reg(2)) == (0x00170011, 0x0F000000)


def test_an_entry_keeps_what_can_be_written() -> None:
    board = Board()
    board.set_reg(0x10, 0xFFFFFFFF)
    board.set_reg(0x11, 0xFFFFFFFF)

    # Bits 12 (delivery status) and 14 (Remote IRR) are for reading, 17-55 are reserved.
    assert board.entry(0) == 0xFF00000000000000 | 0x1AFFF


def test_the_index_is_read_back_and_other_offsets_are_nothing() -> None:
    board = Board()
    board.chip.write(IOREGSEL, 1, 0x3F)
    assert board.chip.read(IOREGSEL, 4) == 0x3F
    board.chip.write(0x40, 4, 0x41)
    assert board.chip.read(0x40, 4) == 0
    board.chip.write(IOREGSEL, 4, 1)
    assert (board.chip.read(IOWIN, 1), board.chip.read(IOWIN, 2)) == (0x11, 0x11)


def test_device_conformance() -> None:
    run_device_conformance(lambda state=None: Board(state=state).chip)


# Edges.


def test_an_edge_interrupts_once_on_its_rise() -> None:
    board = Board()
    board.set_entry(4, 0x34)
    board.pin(4, True)
    board.pin(4, True)
    assert (board.take(), board.take()) == (0x34, None)
    board.eoi()
    board.pin(4, False)
    assert board.take() is None
    board.pin(4, True)
    assert board.take() == 0x34
    assert board.entry(4) == 0x34


def test_an_edge_on_a_masked_input_is_lost() -> None:
    board = Board()
    board.pin(4, True)
    board.set_entry(4, 0x34)
    assert board.take() is None
    board.pin(4, False)
    board.pin(4, True)
    assert board.take() == 0x34


def test_the_polarity_bit_is_kept_and_changes_nothing() -> None:
    board = Board()
    board.set_entry(4, LOW | 0x34)
    assert board.take() is None
    board.pin(4, True)
    assert board.take() == 0x34
    assert board.entry(4) == LOW | 0x34


# Levels.


def test_a_level_interrupts_again_after_each_eoi_until_it_falls() -> None:
    board = Board()
    board.set_entry(9, LEVEL | 0x39)
    board.pin(9, True)
    assert board.entry(9) == REMOTE_IRR | LEVEL | 0x39
    for _ in range(3):
        assert (board.take(), board.take()) == (0x39, None)
        board.eoi()
    assert board.take() == 0x39
    board.pin(9, False)
    board.eoi()
    assert board.take() is None
    assert board.entry(9) == LEVEL | 0x39


def test_an_interrupt_that_nobody_clears_is_sent_once_for_each_eoi() -> None:
    board = Board()
    board.set_entry(9, LEVEL | 0x39)
    board.pin(9, True)
    before = board.changes
    for _ in range(100):
        assert board.take() == 0x39
        board.eoi()

    assert board.changes - before <= 200


def test_a_level_on_a_masked_input_waits_while_it_lasts() -> None:
    board = Board()
    board.pin(9, True)
    board.pin(9, False)
    board.set_entry(9, LEVEL | 0x39)
    assert board.take() is None
    board.set_entry(9, LEVEL | MASKED | 0x39)
    board.pin(9, True)
    assert board.take() is None
    board.set_entry(9, LEVEL | 0x39)
    assert board.take() == 0x39


def test_the_eoi_of_another_vector_changes_nothing() -> None:
    board = Board()
    board.set_entry(9, LEVEL | 0x39)
    board.set_entry(10, LEVEL | 0x4A)
    board.pin(9, True)
    board.pin(10, True)
    assert board.take() == 0x4A
    board.pin(10, False)
    board.eoi()

    assert (board.entry(9) & REMOTE_IRR, board.entry(10) & REMOTE_IRR) == (REMOTE_IRR, 0)


def test_masking_while_in_service_stops_the_repetition() -> None:
    board = Board()
    board.set_entry(9, LEVEL | 0x39)
    board.pin(9, True)
    assert board.take() == 0x39
    board.set_reg(0x10 + 18, LEVEL | MASKED | 0x39)
    board.eoi()
    assert board.take() is None
    board.set_reg(0x10 + 18, LEVEL | 0x39)
    assert board.take() == 0x39


def test_a_masked_level_may_have_gone_when_its_eoi_comes() -> None:
    board = Board()
    board.set_entry(9, LEVEL | 0x39)
    board.pin(9, True)
    assert board.take() == 0x39
    board.set_reg(0x10 + 18, LEVEL | MASKED | 0x39)
    assert board.entry(9) & REMOTE_IRR
    board.pin(9, False)
    board.eoi()

    assert board.entry(9) == LEVEL | MASKED | 0x39


def test_making_an_entry_an_edge_clears_its_remote_irr() -> None:
    # What Linux does to end an interrupt without an EOI register (version 11h).
    board = Board()
    board.set_entry(9, LEVEL | 0x39)
    board.pin(9, True)
    board.pin(9, False)
    board.set_reg(0x10 + 18, MASKED | 0x39)
    board.set_reg(0x10 + 18, LEVEL | 0x39)

    assert board.entry(9) == LEVEL | 0x39


def test_a_level_that_nobody_accepts_is_delivered_when_somebody_does() -> None:
    board = Board()
    board.apics[0].write(0xF0, 4, 0xFF)
    board.set_entry(9, LEVEL | 0x39)
    board.pin(9, True)
    assert board.entry(9) == LEVEL | 0x39
    board.apics[0].write(0xF0, 4, 0x1FF)

    assert board.take() == 0x39
    assert board.entry(9) & REMOTE_IRR


# Destinations and delivery modes.


def test_the_destination_is_physical_or_logical() -> None:
    board = Board(3)
    for number, apic in enumerate(board.apics):
        apic.write(0xD0, 4, 1 << 24 + number)
    board.set_entry(4, 0x34, 1)
    board.set_entry(5, LOGICAL | 0x45, 0b101)
    board.set_entry(6, 0x56, 0xFF)
    board.pin(4, True)
    assert [board.take(vcpu) for vcpu in range(3)] == [None, 0x34, None]
    board.pin(5, True)
    assert [board.take(vcpu) for vcpu in range(3)] == [0x45, None, 0x45]
    board.pin(6, True)
    assert [board.take(vcpu) for vcpu in range(3)] == [0x56, 0x56, 0x56]


def test_lowest_priority_picks_one() -> None:
    board = Board(2)
    for number, apic in enumerate(board.apics):
        apic.write(0xD0, 4, 1 << 24 + number)
    board.apics[0].write(0x80, 4, 0x20)
    board.set_entry(4, LOWEST | LOGICAL | LEVEL | 0x34, 0b11)
    board.pin(4, True)

    assert [board.take(vcpu) for vcpu in range(2)] == [None, 0x34]
    assert board.entry(4) & REMOTE_IRR
    board.pin(4, False)
    board.eoi(1)
    assert not board.entry(4) & REMOTE_IRR


def test_an_nmi_is_an_edge_whatever_the_trigger_mode_says() -> None:
    board = Board()
    board.set_entry(4, NMI | LEVEL)
    board.pin(4, True)
    board.chip.retry()

    assert board.nmis == 1
    assert not board.entry(4) & REMOTE_IRR


@pytest.mark.parametrize("mode", [0x200, 0x300, 0x600])
def test_smi_and_reserved_delivery_modes_do_nothing(mode: int) -> None:
    board = Board()
    board.set_entry(4, mode | 0x34)
    board.pin(4, True)

    assert (board.take(), board.nmis) == (None, 0)


def test_an_extint_entry_is_a_wire_to_the_8259a() -> None:
    board = Board()
    board.set_entry(0, EXTINT)
    board.pin(0, True)
    assert board.take() == 0x08
    assert board.apics[0].pending()  # the 8259A drives it; it has not let go
    board.pin(0, False)
    assert not board.apics[0].pending()
    board.pin(0, True)
    board.set_reg(0x10, EXTINT | MASKED)
    assert not board.apics[0].pending()
    board.set_reg(0x10, EXTINT)
    assert board.apics[0].pending()


def test_an_extint_entry_that_moves_takes_its_request_along() -> None:
    board = Board(2)
    board.set_entry(0, EXTINT)
    board.pin(0, True)
    board.set_reg(0x11, 1 << 24)

    assert [apic.pending() for apic in board.apics] == [False, True]


@pytest.mark.parametrize("still", [False, True])
def test_an_apic_that_was_off_learns_whether_the_8259a_still_asks(still: bool) -> None:
    board = Board()
    board.set_entry(0, EXTINT)
    board.pin(0, True)
    board.apics[0].msr_write(0x1B, 0xFEE00000)
    board.pin(0, still)
    board.apics[0].msr_write(0x1B, 0xFEE00800)
    board.apics[0].write(0xF0, 4, 0x1FF)

    assert board.apics[0].pending() == still


def test_an_illegal_vector_is_the_local_apics_error() -> None:
    board = Board()
    board.set_entry(4, LEVEL | 0x0F)
    board.pin(4, True)
    board.apics[0].write(0x280, 4, 0)

    assert board.apics[0].read(0x280, 4) == 0x40
    assert board.take() is None


# State.


class Levels(RuleBasedStateMachine):
    """A level-triggered line: Remote IRR is set just while the interrupt is at the vCPU."""

    def __init__(self) -> None:
        super().__init__()
        self.board = Board()
        self.level = False
        self.masked = True
        self.outstanding = False  # sent and not ended
        self.served = False
        self.board.set_reg(0x10, LEVEL | MASKED | 0x41)

    def send(self) -> None:
        if self.level and not self.masked:
            self.outstanding = True

    @rule(level=st.booleans())
    def drive(self, level: bool) -> None:
        self.level = level
        self.board.pin(0, level)
        self.send()

    @rule(masked=st.booleans())
    def mask(self, masked: bool) -> None:
        self.masked = masked
        self.board.set_reg(0x10, LEVEL | (MASKED if masked else 0) | 0x41)
        self.send()

    @rule()
    def take(self) -> None:
        vector = self.board.take()
        assert vector == (0x41 if self.outstanding and not self.served else None)
        self.served = self.served or vector is not None

    @rule()
    def end(self) -> None:
        self.board.eoi()
        if self.served:
            self.served = self.outstanding = False
            self.send()

    @invariant()
    def remote_irr_agrees(self) -> None:
        assert bool(self.board.entry(0) & REMOTE_IRR) == self.outstanding


TestLevels = Levels.TestCase

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pin"), st.integers(0, 3), st.integers(0, 1)),
        st.tuples(st.just("reg"), st.integers(0x10, 0x17), st.integers(0, 0xFFFFFFFF)),
        st.tuples(
            st.just("reg"), st.sampled_from([0x10, 0x12]), st.sampled_from([0x8041, 0x42, 0x700, 0x18041])
        ),
        st.tuples(st.just("eoi"), st.integers(0, 0), st.integers(0, 0)),
    ),
    max_size=40,
)


@given(STEPS)
def test_every_state_that_is_reached_can_be_restored(steps: list[tuple[str, int, int]]) -> None:
    board = Board()
    for what, number, value in steps:
        if what == "pin":
            board.pin(number, bool(value))
        elif what == "reg":
            board.set_reg(number, value)
        else:
            board.take()
            board.eoi()
        state = board.chip.state()
        decoded = msgspec.json.decode(msgspec.json.encode(state), type=IoApicState)
        assert decoded == state
        assert IoApic.from_state(decoded, bus=ApicBus()).state() == state


def test_a_restored_chip_sends_a_level_that_was_never_accepted() -> None:
    state = IoApicState(entries=(LEVEL | 0x41,) + (MASKED,) * 23, levels=1)
    board = Board(state=state)

    assert board.take() == 0x41


@pytest.mark.parametrize(
    ("state", "names"),
    [
        (IoApicState(ident=1), "ident"),
        (IoApicState(select=0x100), "select"),
        (IoApicState(levels=1 << 24), "levels"),
        (IoApicState(entries=(MASKED,) * 23), "23 redirection"),
        (IoApicState(entries=(0x1000,) * 24), "entry 0"),
        (IoApicState(entries=(REMOTE_IRR,) * 24), "awaits an EOI"),
    ],
)
def test_states_that_cannot_be_are_refused(state: IoApicState, names: str) -> None:
    with pytest.raises(UsageError, match=names):
        IoApic(ApicBus(), state=state)


def test_inputs_and_ids_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="no input 24"):
        Board().chip.input(24)
    with pytest.raises(UsageError, match="id 16"):
        IoApic(ApicBus(), ident=16)
