"""The 8259A pair, against the 8259A data sheet (sections are named in the tests)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.bus import Bus, Device
from vmmsim.clock import ExitClock
from vmmsim.devices.base import IrqLine
from vmmsim.devices.i8254 import I8254
from vmmsim.devices.i8259 import I8259Pair, I8259PairState, I8259State
from vmmsim.errors import UsageError
from vmmsim.testing import run_device_conformance

MASTER, SLAVE, ELCR = 0x20, 0xA0, 0x4D0

EOI = 0x20
ROTATE_EOI = 0xA0
READ_IRR, READ_ISR = 0x0A, 0x0B
POLL = 0x0C
SMM_ON, SMM_OFF = 0x68, 0x48

SFNM, AEOI, X86 = 0x10, 0x02, 0x01


class Board:
    """A pair on a port bus, with its INTR, and short names for what a guest does."""

    def __init__(self, state: I8259PairState | None = None) -> None:
        self.changes: list[bool] = []
        self.intr = IrqLine(self.changes.append)
        self.pair = I8259Pair(self.intr, state=state)
        self.bus = Bus("port", 0x10000)
        self.bus.attach(MASTER, 2, self.pair.master, "master")
        self.bus.attach(SLAVE, 2, self.pair.slave, "slave")
        self.bus.attach(ELCR, 2, self.pair.elcr, "elcr")

    def inb(self, port: int) -> int:
        return self.bus.read(port, 1)

    def outb(self, port: int, value: int) -> None:
        self.bus.write(port, 1, value)

    def init(self, icw1: int = 0x11, master4: int = X86, slave4: int = X86) -> Board:
        """As a PC/AT's BIOS does it: IRQ 0-7 at 08h, IRQ 8-15 at 70h, nothing masked."""
        for port, words in ((MASTER, (0x08, 0x04, master4)), (SLAVE, (0x70, 0x02, slave4))):
            self.outb(port, icw1)
            for word in words:
                self.outb(port + 1, word)
        return self

    def irq(self, number: int, level: bool = True) -> None:
        self.pair.input(number).set(level)

    def pulse(self, *numbers: int) -> None:
        for number in numbers:
            self.irq(number, True)
            self.irq(number, False)

    def irr(self, port: int = MASTER) -> int:
        self.outb(port, READ_IRR)
        return self.inb(port)

    def isr(self, port: int = MASTER) -> int:
        self.outb(port, READ_ISR)
        return self.inb(port)

    def vectors(self, most: int = 20) -> list[int]:
        """What a CPU takes as long as INTR is high."""
        got = []
        while self.pair.pending() and len(got) < most:
            got.append(self.pair.acknowledge())
        return got


# Initialization.


def test_int_stays_low_until_all_icws_came_and_then_shows_the_edges_since_icw1() -> None:
    board = Board()
    board.outb(SLAVE, 0x13)
    board.irq(0)
    assert not board.pair.pending()
    board.outb(MASTER, 0x11)
    board.irq(0, False)
    board.irq(0)
    for word in (0x20, 0x04, 0x01):
        assert not board.pair.pending()
        board.outb(MASTER + 1, word)

    assert board.pair.pending()
    assert board.intr.level
    assert board.pair.acknowledge() == 0x20


@pytest.mark.parametrize(
    ("icw1", "count"),
    [(0x11, 3), (0x10, 2), (0x13, 2), (0x12, 1)],
    ids=["cascade-icw4", "cascade", "single-icw4", "single"],
)
def test_icw1_says_how_many_words_follow(icw1: int, count: int) -> None:
    """ "Initialization Command Words 1 and 2": figure 6, the initialization sequence."""
    board = Board()
    board.outb(MASTER, icw1)
    for _ in range(count):
        board.outb(MASTER + 1, 0x01)
    board.outb(MASTER + 1, 0x5A)

    assert board.inb(MASTER + 1) == 0x5A


def test_icw1_clears_masks_service_priority_and_modes_and_wants_a_new_edge() -> None:
    board = Board().init()
    board.irq(3)
    board.pair.acknowledge()
    board.irq(4)
    board.outb(MASTER, 0xC2)  # IR2 has the bottom priority
    board.outb(MASTER, SMM_ON)
    board.outb(MASTER, 0x80)
    board.outb(MASTER + 1, 0xF7)
    board.outb(MASTER, READ_ISR)
    board.outb(MASTER, 0x11)

    state = board.pair.state().master
    assert (state.imr, state.isr, state.irr, state.lowest) == (0, 0, 0, 7)
    assert (state.special_mask, state.read_isr, state.auto_rotate) == (False, False, False)
    for word in (0x08, 0x04, 0x01):
        board.outb(MASTER + 1, word)
    assert board.vectors() == []  # IR3 and IR4 are high, but did not rise since
    board.irq(4, False)
    board.irq(4)
    assert board.vectors() == [0x0C]


def test_without_icw4_its_functions_are_off() -> None:
    board = Board().init(master4=AEOI | SFNM | X86)
    for port, word in ((MASTER, 0x10), (MASTER + 1, 0x08), (MASTER + 1, 0x04)):
        board.outb(port, word)
    board.pulse(1)

    assert board.vectors() == [0x09]
    assert board.isr() == 0x02
    assert board.pair.state().master.icw4 == 0


def test_the_low_bits_of_icw2_are_the_level() -> None:
    board = Board()
    for port, word in ((MASTER, 0x13), (MASTER + 1, 0x2F), (MASTER + 1, 0x01)):
        board.outb(port, word)
    board.pulse(5)

    assert board.vectors() == [0x2D]


# The fully nested mode.


@pytest.mark.parametrize("number", [n for n in range(16) if n != 2])
def test_each_line_has_its_vector(number: int) -> None:
    board = Board().init()
    board.irq(number)

    assert board.vectors() == [0x08 + number if number < 8 else 0x70 + number - 8]
    assert board.isr(MASTER) == (1 << number if number < 8 else 0x04)
    assert board.isr(SLAVE) == (0 if number < 8 else 1 << number - 8)


def test_requests_are_served_by_priority_with_the_slave_in_place_of_ir2() -> None:
    board = Board().init(master4=AEOI | X86, slave4=AEOI | X86)
    board.outb(MASTER + 1, 0xFF)
    for number in (7, 15, 3, 8, 0, 9, 1):
        board.pulse(number)
    board.outb(MASTER + 1, 0x00)

    assert board.vectors() == [0x08, 0x09, 0x70, 0x71, 0x77, 0x0B, 0x0F]


def test_service_keeps_its_level_and_lower_ones_out_and_lets_higher_ones_in() -> None:
    board = Board().init()
    board.pulse(4)
    assert board.vectors() == [0x0C]
    board.pulse(4, 5)
    assert not board.pair.pending()
    board.pulse(1)
    assert board.vectors() == [0x09]
    assert board.isr() == 0x12
    board.outb(MASTER, EOI)
    assert board.isr() == 0x10
    assert not board.pair.pending()
    board.outb(MASTER, EOI)
    assert board.vectors() == [0x0C]
    board.outb(MASTER, EOI)

    assert board.vectors() == [0x0D]


def test_the_slave_needs_an_eoi_of_its_own_and_brings_its_next_request_itself() -> None:
    board = Board().init()
    board.pulse(9, 12)
    assert board.vectors() == [0x71]
    board.outb(MASTER, EOI)
    assert not board.pair.pending()  # the slave still has IRQ9 in service
    board.outb(SLAVE, EOI)

    assert board.vectors() == [0x74]


def test_a_mask_holds_a_request_back_and_does_not_lose_it() -> None:
    board = Board().init()
    board.outb(MASTER + 1, 0x10)
    board.pulse(4)
    assert not board.pair.pending()
    assert board.irr() == 0x10
    board.outb(MASTER + 1, 0x00)

    assert board.vectors() == [0x0C]


def test_masking_ir2_masks_the_slave() -> None:
    board = Board().init()
    board.outb(MASTER + 1, 0x04)
    board.irq(14)
    assert not board.pair.pending()
    assert board.irr(SLAVE) == 0x40
    board.outb(MASTER + 1, 0x00)

    assert board.vectors() == [0x76]


def test_intr_is_a_level_that_falls_with_the_acknowledgement() -> None:
    board = Board().init()
    board.irq(3)
    board.irq(3)
    board.pair.acknowledge()

    assert board.changes == [True, False]


# Edges and levels.


def test_an_edge_is_taken_once_and_needs_a_new_rise() -> None:
    board = Board().init()
    board.irq(5)
    assert board.vectors() == [0x0D]
    board.outb(MASTER, EOI)
    board.irq(5, True)
    assert not board.pair.pending()
    board.irq(5, False)
    board.irq(5, True)

    assert board.vectors() == [0x0D]


def test_a_level_interrupts_again_after_eoi_until_it_falls() -> None:
    board = Board().init()
    board.outb(ELCR, 0x20)
    board.irq(5)
    assert board.vectors() == [0x0D]
    assert board.irr() == 0x20
    board.outb(MASTER, EOI)
    assert board.vectors() == [0x0D]
    board.irq(5, False)
    board.outb(MASTER, EOI)

    assert not board.pair.pending()
    assert board.irr() == 0


def test_a_level_on_the_slave_interrupts_again_after_both_eois() -> None:
    board = Board().init()
    board.outb(ELCR + 1, 0x08)
    board.irq(11)
    for _ in range(3):
        assert board.vectors() == [0x73]
        board.outb(SLAVE, EOI)
        board.outb(MASTER, EOI)
    board.irq(11, False)
    # The slave had asked once more, and the master latched it: the slave answers with its IR7.
    assert board.vectors() == [0x77]
    assert (board.isr(MASTER), board.isr(SLAVE)) == (0x04, 0)
    board.outb(MASTER, EOI)

    assert not board.pair.pending()


def test_a_level_in_automatic_eoi_stays_pending_and_loops_nowhere() -> None:
    board = Board().init(master4=AEOI | X86)
    board.outb(ELCR, 0x08)
    board.irq(3)

    assert board.vectors(most=5) == [0x0B] * 5


def test_ltim_makes_all_inputs_levels() -> None:
    board = Board().init(icw1=0x19)
    board.irq(0)
    board.irq(8)
    assert board.irr(MASTER) == 0x05
    board.irq(0, False)
    board.irq(8, False)

    assert (board.irr(MASTER), board.irr(SLAVE)) == (0, 0)
    assert not board.pair.pending()


def test_elcr_has_no_bits_for_timer_keyboard_cascade_rtc_and_fpu() -> None:
    board = Board()
    board.outb(ELCR, 0xFF)
    board.outb(ELCR + 1, 0xFF)

    assert (board.inb(ELCR), board.inb(ELCR + 1)) == (0xF8, 0xDE)


def test_changing_elcr_drops_a_latched_edge_and_follows_the_line() -> None:
    board = Board().init()
    board.pulse(5)
    board.irq(6)
    board.outb(ELCR, 0x60)
    assert board.irr() == 0x40
    board.outb(ELCR, 0x00)

    assert board.irr() == 0
    assert not board.pair.pending()


# Spurious interrupts.


def test_a_request_that_went_is_ir7_which_is_not_in_service() -> None:
    board = Board().init()
    board.outb(ELCR, 0x20)
    board.irq(5)
    board.irq(5, False)

    assert board.pair.acknowledge() == 0x0F
    assert board.isr() == 0


def test_a_request_that_went_from_the_slave_is_irq15_with_the_slave_in_service() -> None:
    board = Board().init()
    board.irq(12)
    board.outb(SLAVE + 1, 0x10)

    assert board.vectors() == [0x77]
    assert (board.isr(MASTER), board.isr(SLAVE)) == (0x04, 0)


# "End of Interrupt", priority rotation.


def test_a_specific_eoi_ends_the_level_it_names() -> None:
    board = Board().init()
    board.pulse(6)
    board.vectors()
    board.pulse(3)
    board.vectors()
    board.outb(MASTER, 0x66)

    assert board.isr() == 0x08


def test_automatic_rotation_as_in_the_data_sheet() -> None:
    """ "Automatic Rotation": IR4 and IR6 in service, IR4 the higher; then IR4 is the lowest."""
    board = Board().init()
    board.pulse(6)
    board.vectors()
    board.pulse(4)
    board.vectors()
    assert board.isr() == 0x50
    board.outb(MASTER, ROTATE_EOI)
    assert board.isr() == 0x40
    board.pulse(4, 5)

    assert board.vectors() == [0x0D]  # IR5 is the highest now, above IR6


def test_specific_rotation_sets_the_bottom_priority() -> None:
    """ "Specific Rotation": with IR5 the bottom, IR6 is the highest."""
    board = Board().init(master4=AEOI | X86)
    board.outb(MASTER, 0xC5)
    board.outb(MASTER + 1, 0xFF)
    board.pulse(0, 1, 3, 4, 5, 6, 7)
    board.outb(MASTER + 1, 0x00)

    assert board.vectors() == [0x0E, 0x0F, 0x08, 0x09, 0x0B, 0x0C, 0x0D]


def test_rotate_on_specific_eoi_ends_and_rotates() -> None:
    board = Board().init()
    board.pulse(1)
    board.vectors()
    board.outb(MASTER, 0xE1)
    state = board.pair.state().master

    assert (state.isr, state.lowest) == (0, 1)


def test_rotate_in_automatic_eoi_mode_can_be_set_and_cleared() -> None:
    board = Board().init(master4=AEOI | X86)
    board.outb(MASTER, 0x80)
    board.pulse(3)
    board.vectors()
    assert board.pair.state().master.lowest == 3
    board.outb(MASTER, 0x00)
    board.pulse(5)
    board.vectors()

    assert board.pair.state().master.lowest == 3


def test_eoi_without_service_and_the_no_operation_change_nothing() -> None:
    board = Board().init()
    before = board.pair.state()
    for command in (EOI, ROTATE_EOI, 0x40):
        board.outb(MASTER, command)

    assert board.pair.state() == before


def test_automatic_eoi_leaves_nothing_in_service() -> None:
    board = Board().init(master4=AEOI | X86, slave4=AEOI | X86)
    board.pulse(1, 9, 10)

    assert board.vectors() == [0x09, 0x71, 0x72]
    assert (board.isr(MASTER), board.isr(SLAVE)) == (0, 0)


# Special modes.


def test_special_mask_mode_lets_lower_levels_in_while_the_level_is_masked() -> None:
    board = Board().init()
    board.pulse(4)
    board.vectors()
    board.outb(MASTER + 1, 0x10)
    board.pulse(6)
    assert not board.pair.pending()
    board.outb(MASTER, SMM_ON)
    assert board.vectors() == [0x0E]
    # "an IS bit that is masked by an IMR bit will not be cleared by a non-specific EOI"
    board.outb(MASTER, EOI)
    assert board.isr() == 0x10
    board.outb(MASTER, EOI)
    assert board.isr() == 0x10
    board.pulse(6)
    board.outb(MASTER, SMM_OFF)
    assert not board.pair.pending()
    board.outb(MASTER, 0x64)

    assert board.vectors() == [0x0E]


def test_smm_without_its_enable_bit_changes_nothing() -> None:
    board = Board().init()
    board.outb(MASTER, 0x28)

    assert not board.pair.state().master.special_mask


def test_special_fully_nested_mode_lets_the_slave_interrupt_itself_and_nobody_lower() -> None:
    board = Board().init(master4=SFNM | X86)
    board.pulse(12)
    assert board.vectors() == [0x74]
    board.pulse(3)
    assert not board.pair.pending()
    board.pulse(8)
    assert board.vectors() == [0x70]
    assert board.isr(SLAVE) == 0x11


def test_without_it_the_slave_waits_for_the_masters_eoi() -> None:
    board = Board().init()
    board.pulse(12)
    board.vectors()
    board.pulse(8)
    assert not board.pair.pending()
    board.outb(MASTER, EOI)

    assert board.vectors() == [0x70]


def test_a_poll_acknowledges_and_names_the_level() -> None:
    board = Board().init()
    board.pulse(6)
    board.outb(MASTER, POLL)

    assert board.inb(MASTER) == 0x86
    assert not board.pair.pending()
    assert board.isr() == 0x40
    board.outb(MASTER, POLL)
    assert board.inb(MASTER) == 0
    assert board.inb(MASTER) == 0x40  # the poll is over: ISR is selected still


def test_a_poll_is_answered_by_the_read_of_either_port() -> None:
    board = Board().init()
    board.pulse(8)
    board.outb(MASTER, POLL)
    board.outb(SLAVE, POLL)

    assert (board.inb(MASTER + 1), board.inb(SLAVE + 1)) == (0x82, 0x80)
    assert (board.isr(MASTER), board.isr(SLAVE)) == (0x04, 0x01)


# Cascading.


def test_a_single_master_takes_ir2_as_its_own() -> None:
    board = Board().init()
    for port, word in ((MASTER, 0x13), (MASTER + 1, 0x08), (MASTER + 1, 0x01)):
        board.outb(port, word)
    board.pulse(9)

    assert board.vectors() == [0x0A]
    assert board.irr(SLAVE) == 0x02


def test_a_master_that_was_told_of_no_slave_takes_ir2_as_its_own() -> None:
    board = Board().init()
    for port, word in ((MASTER, 0x11), (MASTER + 1, 0x08), (MASTER + 1, 0x00), (MASTER + 1, 0x01)):
        board.outb(port, word)
    board.pulse(9)

    assert board.vectors() == [0x0A]


def test_a_slave_with_another_code_does_not_answer_and_the_bus_floats() -> None:
    board = Board().init()
    for port, word in ((SLAVE, 0x11), (SLAVE + 1, 0x70), (SLAVE + 1, 0x03), (SLAVE + 1, 0x01)):
        board.outb(port, word)
    board.pulse(9)

    assert board.vectors() == [0xFF]
    assert board.irr(SLAVE) == 0x02


@pytest.mark.parametrize("number", [2, -1, 16])
def test_there_is_no_such_line(number: int) -> None:
    with pytest.raises(UsageError, match=f"line {number}"):
        Board().pair.input(number)


# State.


class Composite:
    """All three faces as one device, as the conformance suite wants it."""

    widths = frozenset({1})
    length = 6

    def __init__(self, state: I8259PairState | None = None) -> None:
        self.pair = I8259Pair(IrqLine(), state=state)
        self.faces = (self.pair.master, self.pair.slave, self.pair.elcr)
        self.state = self.pair.state

    def read(self, offset: int, size: int, /) -> int:
        return self.faces[offset >> 1].read(offset & 1, size)

    def write(self, offset: int, size: int, value: int, /) -> None:
        self.faces[offset >> 1].write(offset & 1, size, value)


def test_the_pair_passes_the_device_suite() -> None:
    results = run_device_conformance(Composite, length=6)

    assert {result.outcome for result in results} == {"passed"}


def test_the_faces_are_devices() -> None:
    pair = Board().pair

    assert all(isinstance(face, Device) and face.length == 2 for face in (pair.master, pair.slave, pair.elcr))


def test_power_on_is_the_default_state() -> None:
    assert Board().pair.state() == I8259PairState()


def test_restoring_raises_intr_again() -> None:
    board = Board().init()
    board.irq(9)
    again = Board(board.pair.state())

    assert again.intr.level
    assert again.vectors() == [0x71]


def test_a_restored_line_that_is_high_makes_no_edge_when_its_device_raises_it_again() -> None:
    board = Board().init()
    board.irq(4)
    board.vectors()
    board.outb(MASTER, EOI)
    again = Board(board.pair.state())
    again.irq(4)

    assert not again.pair.pending()


@pytest.mark.parametrize(
    "state",
    [
        I8259PairState(master=I8259State(elcr=0x01)),
        I8259PairState(slave=I8259State(elcr=0x20)),
        I8259PairState(master=I8259State(irr=0x100)),
        I8259PairState(master=I8259State(isr=-1)),
        I8259PairState(master=I8259State(icw2=0x09)),
        I8259PairState(master=I8259State(lowest=8)),
        I8259PairState(master=I8259State(expects=1)),
        I8259PairState(master=I8259State(expects=2, ready=True)),
        I8259PairState(master=I8259State(elcr=0x08, irr=0x08)),
        I8259PairState(master=I8259State(lines=0x04)),
        I8259PairState(slave=I8259State(ready=True, irr=0x01)),
    ],
    ids=[
        "elcr-timer",
        "elcr-fpu",
        "irr",
        "negative",
        "icw2",
        "lowest",
        "icw-1",
        "ready-and-not",
        "level-without-line",
        "cascade-high",
        "cascade-low",
    ],
)
def test_states_that_the_chips_cannot_be_in_are_refused(state: I8259PairState) -> None:
    with pytest.raises(UsageError, match="i8259"):
        I8259Pair(IrqLine(), state=state)


PORTS = [MASTER, MASTER + 1, SLAVE, SLAVE + 1, ELCR, ELCR + 1]
LINES = [n for n in range(16) if n != 2]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("in"), st.sampled_from(PORTS), st.just(0)),
        st.tuples(st.just("out"), st.sampled_from(PORTS), st.integers(0, 255)),
        st.tuples(st.just("line"), st.sampled_from(LINES), st.integers(0, 1)),
        st.tuples(st.just("ack"), st.just(0), st.just(0)),
        st.tuples(st.just("init"), st.sampled_from([0x11, 0x19]), st.sampled_from([0x01, 0x03, 0x11, 0x13])),
    ),
    max_size=40,
)


def play(board: Board, steps: list[tuple[str, int, int]]) -> list[int]:
    """What a CPU can see of a script."""
    seen: list[int] = []
    for verb, a, b in steps:
        if verb == "in":
            seen.append(board.inb(a))
        elif verb == "out":
            board.outb(a, b)
        elif verb == "line":
            board.irq(a, bool(b))
        elif verb == "init":
            board.init(a, b, b)
        elif board.pair.pending():
            seen.append(board.pair.acknowledge())
        seen.append(board.pair.pending())
    return seen


@given(STEPS)
def test_any_script_leaves_a_state_that_can_be_written_down_and_intr_as_told(steps: list) -> None:
    board = Board()
    seen = play(board, steps)
    state = board.pair.state()

    assert all(0 <= value <= 0xFF for value in seen)
    assert msgspec.json.decode(msgspec.json.encode(state), type=I8259PairState) == state
    assert board.intr.level == board.pair.pending()


@given(STEPS, STEPS)
def test_a_restored_pair_has_the_same_future(before: list, after: list) -> None:
    first = Board()
    play(first, before)
    second = Board(first.pair.state())

    assert second.intr.level == first.intr.level
    assert play(first, after) == play(second, after)
    assert first.pair.state() == second.pair.state()


@given(st.lists(st.sampled_from(LINES), max_size=30), st.lists(st.booleans(), max_size=60))
def test_no_edge_is_lost_and_none_is_made_up(edges: list[int], turns: list[bool]) -> None:
    """A guest that ends each interrupt gets each line that pulsed since its last interrupt once."""
    board = Board().init()
    wanted: set[int] = set()
    queue = list(edges)

    def serve() -> None:
        vector = board.pair.acknowledge()
        number = vector - 0x08 if vector < 0x10 else vector - 0x70 + 8
        assert number in wanted
        wanted.remove(number)
        if number >= 8:
            board.outb(SLAVE, EOI)
        board.outb(MASTER, EOI)

    for turn in turns:
        if turn and queue:
            wanted.add(queue[0])
            board.pulse(queue.pop(0))
        elif board.pair.pending():
            serve()
    while board.pair.pending():
        serve()

    assert wanted == set()


def rank(state: I8259State, level: int) -> int:
    return (level - state.lowest - 1) % 8


@given(
    st.builds(
        I8259State,
        irr=st.integers(0, 255).map(lambda irr: irr & ~4),
        isr=st.integers(0, 255),
        imr=st.integers(0, 255),
        lowest=st.integers(0, 7),
        special_mask=st.booleans(),
        icw1=st.just(0x11),
        icw2=st.just(0x08),
        icw3=st.just(0x04),
        icw4=st.sampled_from([0x01, 0x03, 0x11]),
        ready=st.just(True),
    )
)
def test_the_level_that_interrupts_is_the_most_urgent_above_those_in_service(state: I8259State) -> None:
    """The priority resolver of the data sheet, one level after the other."""
    serving = [
        level
        for level in range(8)
        if state.isr >> level & 1 and not (state.special_mask and state.imr >> level & 1)
    ]
    above = min((rank(state, level) for level in serving), default=8)
    candidates = [
        level
        for level in range(8)
        if state.irr >> level & 1 and not state.imr >> level & 1 and rank(state, level) < above
    ]
    board = Board(I8259PairState(master=state))

    assert board.pair.pending() == bool(candidates)
    expected = min(candidates, key=lambda level: rank(state, level), default=7)
    assert board.pair.acknowledge() == 0x08 + expected


# Recorded from QEMU 7.2.

RECORDED = Path(__file__).parents[2] / "shared" / "vectors" / "devices" / "pc.json"


@pytest.mark.parametrize("script", ["pic_init", "pic_irr_pit"])
def test_recorded_scripts_of_qemu(script: str) -> None:
    if not RECORDED.exists():
        pytest.skip(f"the recorded register scripts are not here: {RECORDED}")
    board = Board()
    clock = ExitClock()
    board.bus.attach(0x40, 4, I8254(clock, board.pair.input(0)))
    got: list[Any] = []
    expected: list[Any] = []
    for number, (verb, address, value) in enumerate(json.loads(RECORDED.read_text())[script]):
        if verb == "outb":
            board.outb(address, value)
        elif verb == "clock_step":
            clock.skip_to(clock.now() + address)
            clock.run_due()
        else:
            got.append((number, board.inb(address)))
            expected.append((number, value))

    assert got == expected
