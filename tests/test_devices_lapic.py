"""The local APIC and the bus between APICs, against the Intel SDM, volume 3, chapter 10."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vmmsim.clock import ExitClock
from vmmsim.devices.apic_bus import ApicBus, ApicMessage, Delivery, Shorthand, addressed
from vmmsim.devices.lapic import LapicState, LocalApic
from vmmsim.devices.lapic_timer import SHORTEST_PERIOD, ApicTimerState
from vmmsim.errors import UsageError
from vmmsim.testing import run_device_conformance

# Table 10-1: offsets in the page.
ID, VERSION, TPR, APR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR, ICR_HIGH = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
LVT_TIMER, LVT_THERMAL, LVT_PMC, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(0x320, 0x380, 0x10)
INITIAL, CURRENT, DIVIDE = 0x380, 0x390, 0x3E0
LVT = (LVT_TIMER, LVT_THERMAL, LVT_PMC, LVT_LINT0, LVT_LINT1, LVT_ERROR)

MASKED = 0x10000
PERIODIC = 0x20000
TSC_DEADLINE = 0x40000
DIVIDE_BY_1 = 0xB

APIC_BASE, TSC_DEADLINE_MSR, X2APIC = 0x1B, 0x6E0, 0x800
BASE = 0xFEE00000
XAPIC, X2APIC_ON = BASE | 0x800, BASE | 0xC00


class Vcpu:
    """A local APIC, and what it told its vCPU."""

    def __init__(
        self,
        bus: ApicBus | None = None,
        apic_id: int = 0,
        *,
        enable: bool = True,
        clock: ExitClock | None = None,
        tsc_hz: int = 1_000_000_000,
        virtual_wire: bool = False,
        state: LapicState | None = None,
    ) -> None:
        self.events: list[str] = []
        self.changes = 0
        self.cr8: list[int] = []
        self.pic_vector = 0x08
        self.clock = clock or ExitClock()
        self.tsc_offset = 0
        self.tsc_hz = tsc_hz
        self.bus = bus or ApicBus()
        self.apic = LocalApic(
            apic_id,
            self.clock,
            self.bus,
            boot=apic_id == 0,
            on_change=self.changed,
            on_nmi=lambda: self.events.append("nmi"),
            on_init=lambda: self.events.append("init"),
            on_startup=lambda vector: self.events.append(f"startup {vector:#x}"),
            extint=self.extint,
            set_cr8=self.cr8.append,
            tsc=self.tsc,
            tsc_hz=tsc_hz,
            virtual_wire=virtual_wire,
            state=state,
        )
        if enable and state is None:
            self.write(SVR, 0x1FF)

    def changed(self) -> None:
        self.changes += 1

    def extint(self) -> int:
        self.apic.set_lint(0, False)
        return self.pic_vector

    def tsc(self) -> int:
        return self.clock.now() * self.tsc_hz // 1_000_000_000 + self.tsc_offset

    def read(self, offset: int) -> int:
        return self.apic.read(offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.apic.write(offset, 4, value)

    def wide(self, offset: int) -> int:
        """One of the 256-bit registers."""
        return sum(self.read(offset + 0x10 * word) << 32 * word for word in range(8))

    def interrupt(self, vector: int, *, level: bool = False) -> bool:
        return self.bus.send(ApicMessage(vector=vector, destination=self.apic.apic_id, trigger_level=level))

    def take(self) -> int | None:
        return self.apic.acknowledge() if self.apic.pending() else None

    def esr(self) -> int:
        self.write(ESR, 0)
        return self.read(ESR)

    def wait(self, ns: int) -> None:
        """Let time pass, timers in between called on time."""
        until = self.clock.now() + ns
        while self.clock.deadline is not None and self.clock.deadline <= until:
            self.clock.skip_to(self.clock.deadline)
            self.clock.run_due()
        self.clock.skip_to(until)

    def x2apic(self) -> None:
        assert self.apic.msr_write(APIC_BASE, X2APIC_ON)


# Power-on.


def test_power_on_state_is_that_of_the_sdm() -> None:
    cpu = Vcpu(enable=False)

    assert {reg: cpu.read(reg) for reg in (ID, TPR, PPR, APR, LDR, ICR, ICR_HIGH, ESR)} == dict.fromkeys(
        (ID, TPR, PPR, APR, LDR, ICR, ICR_HIGH, ESR), 0
    )
    assert (cpu.read(DFR), cpu.read(SVR)) == (0xFFFFFFFF, 0xFF)
    assert [cpu.read(reg) for reg in LVT] == [MASKED] * 6
    assert [cpu.read(reg) for reg in (INITIAL, CURRENT, DIVIDE)] == [0, 0, 0]
    assert [cpu.wide(reg) for reg in (ISR, TMR, IRR)] == [0, 0, 0]
    assert not cpu.apic.pending()
    assert cpu.changes == 0


def test_version_tells_an_xapic_of_six_lvt_entries() -> None:
    assert Vcpu().read(VERSION) == 0x50014


@pytest.mark.parametrize(("apic_id", "base"), [(0, 0xFEE00900), (1, 0xFEE00800)])
def test_only_the_bootstrap_processor_has_the_bsp_flag(apic_id: int, base: int) -> None:
    cpu = Vcpu(apic_id=apic_id)

    assert cpu.apic.msr_read(APIC_BASE) == base == cpu.apic.apic_base
    assert cpu.read(ID) == apic_id << 24


def test_virtual_wire_is_what_a_bios_leaves() -> None:
    cpu = Vcpu(virtual_wire=True, enable=False)

    assert [cpu.read(reg) for reg in (SVR, LVT_LINT0, LVT_LINT1)] == [0x1FF, 0x700, 0x400]
    cpu.apic.set_lint(0, True)
    assert cpu.take() == 0x08


def test_device_conformance() -> None:
    run_device_conformance(lambda state=None: Vcpu(enable=False, state=state).apic)
    # Enabled, with a timer that runs and errors that interrupt.
    busy = Vcpu()
    busy.write(LVT_TIMER, PERIODIC | 0x40)
    busy.write(LVT_ERROR, 0x50)
    busy.write(INITIAL, 1)
    begin = busy.apic.state()
    run_device_conformance(lambda state=None: Vcpu(state=state or begin).apic)


# Priorities (10.8).


def test_an_interrupt_goes_from_irr_to_isr_and_is_gone_at_eoi() -> None:
    cpu = Vcpu()
    cpu.interrupt(0x41)

    assert (cpu.wide(IRR), cpu.wide(ISR), cpu.read(PPR), cpu.changes) == (1 << 0x41, 0, 0, 1)
    assert cpu.take() == 0x41
    assert (cpu.wide(IRR), cpu.wide(ISR), cpu.read(PPR)) == (0, 1 << 0x41, 0x40)
    cpu.write(EOI, 0)
    assert (cpu.wide(ISR), cpu.read(PPR)) == (0, 0)


def test_a_higher_class_nests_and_the_same_class_waits() -> None:
    cpu = Vcpu()
    cpu.interrupt(0x41)
    assert cpu.take() == 0x41
    cpu.interrupt(0x4F)
    assert cpu.take() is None
    cpu.interrupt(0x50)
    assert cpu.take() == 0x50

    cpu.write(EOI, 0)
    assert cpu.take() is None
    before = cpu.changes
    cpu.write(EOI, 0)
    assert cpu.changes == before + 1
    assert cpu.take() == 0x4F


def test_tpr_holds_back_its_own_class_and_those_below() -> None:
    cpu = Vcpu()
    cpu.write(TPR, 0x5F)
    cpu.interrupt(0x5F)
    assert not cpu.apic.pending()
    assert cpu.changes == 0
    cpu.interrupt(0x60)
    assert cpu.apic.pending()

    assert cpu.take() == 0x60
    cpu.write(EOI, 0)
    cpu.write(TPR, 0x4F)
    assert cpu.changes == 2
    assert cpu.take() == 0x5F


@pytest.mark.parametrize(
    ("tpr", "served", "ppr"), [(0x00, None, 0x00), (0x37, None, 0x37), (0x37, 0x52, 0x50), (0x37, 0x41, 0x40)]
)
def test_ppr_is_the_higher_of_tpr_and_isr(tpr: int, served: int | None, ppr: int) -> None:
    cpu = Vcpu()
    if served is not None:
        cpu.interrupt(served)
        assert cpu.take() == served
    cpu.write(TPR, tpr)

    assert cpu.read(PPR) == ppr


def test_apr_follows_the_rule_of_10_6_2_4() -> None:
    cpu = Vcpu()
    cpu.write(TPR, 0x43)
    assert cpu.read(APR) == 0x43
    cpu.interrupt(0x42)
    assert cpu.read(APR) == 0x43
    cpu.interrupt(0x61)
    assert cpu.read(APR) == 0x60


def test_cr8_is_tpr_bits_7_to_4_both_ways() -> None:
    cpu = Vcpu()
    cpu.write(TPR, 0x9A)
    assert cpu.cr8 == [9]
    cpu.apic.cr8_written(0x5)
    assert cpu.read(TPR) == 0x50
    assert cpu.cr8 == [9]
    cpu.interrupt(0x61)
    cpu.interrupt(0x5F)
    assert cpu.take() == 0x61
    cpu.write(EOI, 0)
    assert cpu.take() is None
    cpu.apic.cr8_written(0)
    assert cpu.take() == 0x5F


def test_nothing_left_answers_the_spurious_vector_and_needs_no_eoi() -> None:
    cpu = Vcpu()
    cpu.write(SVR, 0x1EF)
    cpu.interrupt(0x41)
    cpu.write(TPR, 0xF0)

    assert cpu.apic.acknowledge() == 0xEF
    assert cpu.wide(ISR) == 0
    cpu.write(TPR, 0)
    assert cpu.take() == 0x41


def test_two_requests_of_one_vector_are_one() -> None:
    cpu = Vcpu()
    cpu.interrupt(0x41)
    cpu.interrupt(0x41)
    assert cpu.take() == 0x41
    cpu.interrupt(0x41)
    cpu.write(EOI, 0)

    assert cpu.take() == 0x41
    cpu.write(EOI, 0)
    assert cpu.take() is None


class Priorities(RuleBasedStateMachine):
    """The rules of 10.8.3 and 10.8.4 with sets, next to the chip."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu = Vcpu()
        self.requested: set[int] = set()
        self.served: list[int] = []
        self.level: set[int] = set()
        self.tpr = 0

    def threshold(self) -> int:
        return max([self.tpr >> 4, *(vector >> 4 for vector in self.served)])

    @rule(vector=st.integers(16, 255), level=st.booleans())
    def request(self, vector: int, level: bool) -> None:
        self.cpu.interrupt(vector, level=level)
        self.requested.add(vector)
        (self.level.add if level else self.level.discard)(vector)

    @rule(tpr=st.integers(0, 255))
    def set_tpr(self, tpr: int) -> None:
        self.cpu.write(TPR, tpr)
        self.tpr = tpr

    @rule()
    def acknowledge(self) -> None:
        eligible = [vector for vector in self.requested if vector >> 4 > self.threshold()]
        if eligible:
            self.requested.remove(max(eligible))
            self.served.append(max(eligible))
            assert self.cpu.apic.acknowledge() == self.served[-1]
        else:
            assert self.cpu.apic.acknowledge() == 0xFF

    @rule()
    def eoi(self) -> None:
        self.cpu.write(EOI, 0)
        if self.served:
            self.served.remove(max(self.served))

    @precondition(lambda self: self.requested)
    @rule()
    def snapshot(self) -> None:
        state = self.cpu.apic.state()
        self.cpu = Vcpu(state=msgspec.json.decode(msgspec.json.encode(state), type=LapicState))
        assert self.cpu.apic.state() == state
        assert bool(self.cpu.changes) == self.cpu.apic.pending()

    @invariant()
    def registers_agree(self) -> None:
        cpu = self.cpu
        assert cpu.wide(IRR) == sum(1 << vector for vector in self.requested)
        assert cpu.wide(ISR) == sum(1 << vector for vector in self.served)
        assert cpu.wide(TMR) == sum(1 << vector for vector in self.level)
        assert cpu.read(PPR) >> 4 == self.threshold()
        assert cpu.apic.pending() == any(vector >> 4 > self.threshold() for vector in self.requested)


TestPriorities = Priorities.TestCase


# The page.


def test_reserved_registers_read_0_and_log_an_illegal_register_address() -> None:
    cpu = Vcpu()
    cpu.write(LVT_ERROR, 0xFE)

    assert cpu.read(0x40) == 0
    assert cpu.take() == 0xFE
    assert cpu.read(ESR) == 0
    assert cpu.esr() == 0x80
    assert cpu.esr() == 0
    cpu.write(0x3F0, 1)
    assert cpu.esr() == 0x80


def test_registers_for_reading_ignore_writes() -> None:
    cpu = Vcpu(apic_id=3)
    before = cpu.apic.state()
    for reg in (ID, VERSION, PPR, APR, ISR, TMR, IRR, CURRENT):
        cpu.write(reg, 0xFFFFFFFF)

    assert cpu.apic.state() == before


def test_an_error_interrupts_once_until_esr_is_written() -> None:
    cpu = Vcpu()
    cpu.write(LVT_ERROR, 0xFE)
    cpu.read(0x40)
    assert cpu.take() == 0xFE
    cpu.write(EOI, 0)
    cpu.read(0x40)
    assert cpu.take() is None
    cpu.write(ESR, 0)
    cpu.read(0x40)
    assert cpu.take() == 0xFE


def test_an_error_entry_with_an_illegal_vector_logs_that_and_ends() -> None:
    cpu = Vcpu()
    cpu.write(LVT_ERROR, 0x05)
    cpu.read(0x40)

    assert cpu.esr() == 0xC0
    assert cpu.wide(IRR) == 0


def test_narrow_reads_answer_their_part_and_narrow_writes_do_nothing() -> None:
    cpu = Vcpu()
    assert [cpu.apic.read(VERSION + at, 1) for at in range(5)] == [0x14, 0, 5, 0, 0]
    assert cpu.apic.read(VERSION + 2, 2) == 5
    cpu.apic.write(TPR, 1, 0x50)
    cpu.apic.write(TPR + 4, 4, 0x50)
    assert cpu.read(TPR) == 0


def test_ldr_and_dfr_have_their_bits_only() -> None:
    cpu = Vcpu()
    cpu.write(LDR, 0xFFFFFFFF)
    cpu.write(DFR, 0)
    assert (cpu.read(LDR), cpu.read(DFR)) == (0xFF000000, 0x0FFFFFFF)


def test_lvt_entries_have_their_bits_only() -> None:
    cpu = Vcpu()
    for reg in LVT:
        cpu.write(reg, 0xFFFFFFFF)

    # Figure 10-8; the status bits 12 and 14 are for reading.
    assert [cpu.read(reg) for reg in LVT] == [0x700FF, 0x107FF, 0x107FF, 0x1A7FF, 0x1A7FF, 0x100FF]


# Software enable (10.4.7.2).


def test_disabled_by_software_it_takes_no_fixed_interrupts_but_nmi_init_and_startup() -> None:
    cpu = Vcpu(enable=False)

    assert not cpu.interrupt(0x41)
    assert cpu.wide(IRR) == 0
    for delivery in (Delivery.NMI, Delivery.INIT, Delivery.STARTUP):
        cpu.bus.send(ApicMessage(vector=0x9A, delivery=delivery))
    assert cpu.events == ["nmi", "init", "startup 0x9a"]


def test_disabling_by_software_masks_the_lvt_and_keeps_it_masked() -> None:
    cpu = Vcpu()
    for reg in LVT:
        cpu.write(reg, 0x40)
    cpu.write(SVR, 0xFF)
    assert all(cpu.read(reg) & MASKED for reg in LVT)
    cpu.write(LVT_TIMER, 0x41)
    assert cpu.read(LVT_TIMER) == MASKED | 0x41
    cpu.write(SVR, 0x1FF)
    assert cpu.read(LVT_TIMER) == MASKED | 0x41


def test_what_was_accepted_before_a_software_disable_is_still_handled() -> None:
    cpu = Vcpu()
    cpu.interrupt(0x41)
    cpu.write(SVR, 0xFF)

    assert cpu.take() == 0x41


# APIC_BASE and x2APIC (10.4.3, 10.12).

OFF = BASE
INVALID = BASE | 0x400


@pytest.mark.parametrize(
    ("path", "target", "allowed"),
    [
        ([], OFF, True),
        ([], XAPIC, True),
        ([], X2APIC_ON, True),
        ([], INVALID, False),
        ([X2APIC_ON], OFF, True),
        ([X2APIC_ON], XAPIC, False),
        ([X2APIC_ON], X2APIC_ON, True),
        ([X2APIC_ON], INVALID, False),
        ([OFF], OFF, True),
        ([OFF], XAPIC, True),
        ([OFF], X2APIC_ON, False),
        ([OFF], INVALID, False),
    ],
)
def test_mode_transitions_are_those_of_figure_10_27(path: list[int], target: int, allowed: bool) -> None:
    cpu = Vcpu()
    for step in path:
        assert cpu.apic.msr_write(APIC_BASE, step)
    before = cpu.apic.msr_read(APIC_BASE)

    assert cpu.apic.msr_write(APIC_BASE, target) == allowed
    assert cpu.apic.msr_read(APIC_BASE) == (target if allowed else before)


@pytest.mark.parametrize("bits", [0x1, 0x200, 1 << 52, 1 << 63])
def test_reserved_bits_of_apic_base_are_gp(bits: int) -> None:
    assert not Vcpu().apic.msr_write(APIC_BASE, XAPIC | bits)


def test_a_disabled_apic_is_gone_and_comes_back_as_after_power_on() -> None:
    cpu = Vcpu()
    cpu.write(TPR, 0x20)
    cpu.interrupt(0x41)
    assert cpu.apic.msr_write(APIC_BASE, OFF)

    assert cpu.read(SVR) == 0
    cpu.write(TPR, 0x30)
    assert not cpu.interrupt(0x42)
    assert not cpu.bus.send(ApicMessage(vector=0, delivery=Delivery.NMI))
    assert cpu.events == []
    assert cpu.apic.msr_write(APIC_BASE, XAPIC)
    assert (cpu.read(SVR), cpu.read(TPR), cpu.wide(IRR)) == (0xFF, 0, 0)


def test_while_disabled_the_pins_are_intr_and_nmi() -> None:
    cpu = Vcpu()
    cpu.apic.set_lint(0, True)
    assert not cpu.apic.pending()
    cpu.apic.msr_write(APIC_BASE, OFF)
    assert cpu.changes == 1
    assert cpu.take() == 0x08
    cpu.apic.set_lint(1, True)
    assert cpu.events == ["nmi"]


def test_x2apic_ids_and_logical_ids_are_those_of_10_12_10() -> None:
    cpu = Vcpu(apic_id=0x123)
    cpu.x2apic()

    assert cpu.apic.msr_read(0x802) == 0x123
    assert cpu.apic.msr_read(0x80D) == 0x12 << 16 | 1 << 3
    assert cpu.read(VERSION) == 0  # the page is gone
    assert cpu.apic.msr_read(0x803) == 0x50014


def test_the_msrs_are_gp_outside_x2apic_mode() -> None:
    cpu = Vcpu()
    for index in range(0x800, 0x840):
        assert cpu.apic.msr_read(index) is None
        assert not cpu.apic.msr_write(index, 0)


def test_readable_and_writable_x2apic_registers_are_those_of_table_10_6() -> None:
    cpu = Vcpu()
    cpu.x2apic()
    readable = {index for index in range(0x7F0, 0x900) if cpu.apic.msr_read(index) is not None}
    writable = {index for index in range(0x7F0, 0x900) if cpu.apic.msr_write(index, 0)}

    lvt = set(range(0x832, 0x838))
    vectors = set(range(0x810, 0x828))
    assert (
        readable
        == {0x802, 0x803, 0x808, 0x80A, 0x80D, 0x80F, 0x828, 0x830, 0x838, 0x839, 0x83E} | lvt | vectors
    )
    assert writable == {0x808, 0x80B, 0x80F, 0x828, 0x830, 0x838, 0x83E, 0x83F} | lvt


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0x808, 0x100),
        (0x80B, 1),
        (0x80F, 0x1000),
        (0x828, 1),
        (0x830, 1 << 13),
        (0x830, 1 << 20),
        (0x832, 1 << 8),
        (0x835, 1 << 17),
        (0x838, 1 << 32),
        (0x83E, 4),
        (0x83F, 0x100),
        (0x808, 1 << 63),
    ],
)
def test_reserved_bits_are_gp_in_x2apic_mode_and_change_nothing(index: int, value: int) -> None:
    cpu = Vcpu()
    cpu.x2apic()
    before = cpu.apic.state()

    assert not cpu.apic.msr_write(index, value)
    assert cpu.apic.state() == before


def test_self_ipi_and_eoi_by_msr() -> None:
    cpu = Vcpu()
    cpu.x2apic()
    assert cpu.apic.msr_write(0x83F, 0x41)
    assert cpu.take() == 0x41
    assert cpu.apic.msr_read(0x812) == 1 << 1
    assert cpu.apic.msr_write(0x80B, 0)
    assert cpu.apic.msr_read(0x812) == 0
    assert cpu.apic.msr_write(0x83F, 0x0F)
    assert cpu.apic.msr_write(0x828, 0)
    assert cpu.apic.msr_read(0x828) == 0x60  # sent and received


def test_init_keeps_x2apic_mode_and_the_id() -> None:
    cpu = Vcpu(apic_id=5)
    cpu.x2apic()
    cpu.apic.msr_write(0x808, 0x40)
    cpu.bus.send(ApicMessage(vector=0, delivery=Delivery.INIT, destination=5))

    assert cpu.events == ["init"]
    assert cpu.cr8[-1] == 0
    assert cpu.apic.msr_read(APIC_BASE) == X2APIC_ON
    assert [cpu.apic.msr_read(index) for index in (0x802, 0x808, 0x80F, 0x832)] == [5, 0, 0xFF, MASKED]


# Interprocessor interrupts (10.6).


def cpus(count: int) -> tuple[Vcpu, ...]:
    bus = ApicBus()
    return tuple(Vcpu(bus, number) for number in range(count))


def got(vcpus: tuple[Vcpu, ...]) -> list[int | None]:
    return [cpu.take() for cpu in vcpus]


@pytest.mark.parametrize(
    ("shorthand", "takes"),
    [
        (Shorthand.SELF, [None, 0x41, None]),
        (Shorthand.ALL, [0x41, 0x41, 0x41]),
        (Shorthand.OTHERS, [0x41, None, 0x41]),
    ],
)
@pytest.mark.parametrize("x2apic", [False, True])
def test_shorthands(shorthand: int, takes: list[int | None], x2apic: bool) -> None:
    machine = cpus(3)
    if x2apic:
        for cpu in machine:
            cpu.x2apic()
        machine[1].apic.msr_write(0x830, shorthand << 18 | 0x41)
    else:
        machine[1].write(ICR, shorthand << 18 | 0x41)

    assert got(machine) == takes


@pytest.mark.parametrize(
    ("destination", "takes"), [(2, [None, None, 0x41]), (0xFF, [0x41] * 3), (7, [None] * 3)]
)
def test_physical_destinations(destination: int, takes: list[int | None]) -> None:
    machine = cpus(3)
    machine[0].write(ICR_HIGH, destination << 24)
    machine[0].write(ICR, 0x4041)

    assert got(machine) == takes
    assert machine[0].read(ICR) == 0x4041
    assert machine[0].read(ICR_HIGH) == destination << 24


def test_physical_destinations_of_an_x2apic_have_32_bits() -> None:
    bus = ApicBus()
    machine = (Vcpu(bus, 0), Vcpu(bus, 0xFF), Vcpu(bus, 0x1FF))
    for cpu in machine:
        cpu.x2apic()
    machine[0].apic.msr_write(0x830, 0xFF << 32 | 0x41)
    assert got(machine) == [None, 0x41, None]
    machine[0].apic.msr_write(0x830, 0x1FF << 32 | 0x52)
    assert got(machine) == [None, None, 0x52]
    machine[0].apic.msr_write(0x830, 0xFFFFFFFF << 32 | 0x63)
    assert got(machine) == [0x63, 0x63, 0x63]
    assert machine[0].apic.msr_read(0x830) == 0xFFFFFFFF << 32 | 0x63


def test_logical_destinations_in_the_flat_model() -> None:
    machine = cpus(3)
    for number, cpu in enumerate(machine):
        cpu.write(LDR, 1 << 24 + number)
    machine[0].write(ICR_HIGH, 0b101 << 24)
    machine[0].write(ICR, 0x841)

    assert got(machine) == [0x41, None, 0x41]


def test_logical_destinations_in_the_cluster_model() -> None:
    machine = cpus(3)
    for cpu, logical in zip(machine, (0x11, 0x12, 0x21), strict=True):
        cpu.write(DFR, 0x0FFFFFFF)
        cpu.write(LDR, logical << 24)
    for destination, takes in ((0x13, [0x41, 0x41, None]), (0x21, [None, None, 0x41]), (0xFF, [0x41] * 3)):
        machine[0].write(ICR_HIGH, destination << 24)
        machine[0].write(ICR, 0x841)
        assert got(machine) == takes
        for cpu in machine:
            cpu.write(EOI, 0)


def test_logical_destinations_of_an_x2apic_name_a_cluster() -> None:
    bus = ApicBus()
    machine = tuple(Vcpu(bus, apic_id) for apic_id in (0, 1, 0x10, 0x11))
    for cpu in machine:
        cpu.x2apic()
    machine[0].apic.msr_write(0x830, 0x0001_0003 << 32 | 0x841)
    assert got(machine) == [None, None, 0x41, 0x41]
    # An I/O APIC's 8 bits reach cluster 0.
    bus.send(ApicMessage(vector=0x52, destination=0b10, dest_logical=True))
    assert got(machine) == [None, 0x52, None, None]


@given(st.integers(0, 254), st.integers(0, 255))
def test_a_flat_destination_names_whoever_shares_a_bit(destination: int, logical: int) -> None:
    message = ApicMessage(vector=0x41, destination=destination, dest_logical=True)

    named = addressed(message, apic_id=0, x2apic=False, ldr=logical << 24, dfr=0xFFFFFFFF)
    assert named == bool(destination & logical)


def test_lowest_priority_goes_to_the_lowest_ppr_then_to_the_lowest_id() -> None:
    machine = cpus(3)
    message = ApicMessage(vector=0x41, delivery=Delivery.LOWEST, destination=0xFF)
    machine[0].write(TPR, 0x30)
    assert machine[0].bus.send(message)
    assert got(machine) == [None, 0x41, None]
    # The one that is in its handler has the higher priority now.
    assert machine[0].bus.send(message)
    assert got(machine) == [None, None, 0x41]
    machine[0].write(SVR, 0xFF)
    for cpu in machine:
        cpu.write(EOI, 0)
        cpu.write(TPR, 0xF0)
    machine[0].write(TPR, 0)
    assert machine[0].bus.send(message)
    assert [bool(cpu.wide(IRR)) for cpu in machine] == [False, True, False]


def test_init_sipi_sipi_starts_a_processor_and_deassert_does_nothing() -> None:
    boot, other = cpus(2)
    boot.write(ICR_HIGH, 1 << 24)
    for command in (0xC500, 0x8500, 0x4608, 0x4608):
        boot.write(ICR, command)

    assert other.events == ["init", "startup 0x8", "startup 0x8"]
    assert other.read(SVR) == 0xFF
    assert boot.events == []


def test_nmi_by_ipi() -> None:
    boot, other = cpus(2)
    boot.write(ICR, 0xC4400)

    assert (boot.events, other.events) == ([], ["nmi"])


@pytest.mark.parametrize("mode", [2, 3, 7])
def test_smi_and_reserved_delivery_modes_do_nothing(mode: int) -> None:
    boot, other = cpus(2)
    boot.write(ICR, 0xC4000 | mode << 8 | 0x41)

    assert (other.events, other.take(), other.changes) == ([], None, 0)


def test_an_ipi_with_an_illegal_vector_is_logged_by_both_ends() -> None:
    boot, other = cpus(2)
    boot.write(ICR, 0xC4000 | 0x0F)

    assert (boot.esr(), other.esr()) == (0x20, 0x40)
    assert other.wide(IRR) == 0


def test_an_ipi_is_an_edge_whatever_its_trigger_mode() -> None:
    cpu = Vcpu()
    cpu.write(ICR, 0x4C041)

    assert (cpu.wide(IRR), cpu.wide(TMR)) == (1 << 0x41, 0)


def test_writing_the_high_half_of_icr_sends_nothing_and_delivery_is_always_idle() -> None:
    cpu = Vcpu()
    cpu.write(ICR, 0x40041)
    assert cpu.take() == 0x41
    cpu.write(EOI, 0)
    cpu.write(ICR_HIGH, 0)
    assert cpu.take() is None
    cpu.write(ICR, 0xFFFFFFFF)
    assert cpu.read(ICR) == 0xCCFFF


def test_a_message_to_nobody_vanishes() -> None:
    cpu = Vcpu()
    cpu.write(ICR_HIGH, 9 << 24)
    cpu.write(ICR, 0x41)

    assert cpu.esr() == 0


def test_two_apics_of_one_id_and_a_shorthand_without_a_sender_are_refused() -> None:
    bus = ApicBus()
    Vcpu(bus, 1)
    with pytest.raises(UsageError, match="id 1"):
        Vcpu(bus, 1)
    with pytest.raises(UsageError, match="no sender"):
        bus.send(ApicMessage(vector=0x41, shorthand=Shorthand.ALL))


# LINT0 and LINT1 (10.5.1).


def test_lint0_in_extint_mode_passes_the_8259a_through_with_no_regard_to_tpr() -> None:
    cpu = Vcpu()
    cpu.write(TPR, 0xFF)
    cpu.write(LVT_LINT0, 0x700)
    cpu.apic.set_lint(0, True)

    assert cpu.changes == 1
    assert cpu.take() == 0x08
    assert cpu.wide(ISR) == 0
    assert cpu.take() is None


def test_unmasking_lint0_shows_a_request_that_waits_and_masking_hides_it() -> None:
    cpu = Vcpu()
    cpu.apic.set_lint(0, True)
    assert not cpu.apic.pending()
    cpu.write(LVT_LINT0, 0x700)
    assert (cpu.apic.pending(), cpu.changes) == (True, 1)
    cpu.write(LVT_LINT0, 0x700 | MASKED)
    assert not cpu.apic.pending()
    cpu.write(LVT_LINT0, 0x700)
    cpu.write(SVR, 0xFF)
    assert not cpu.apic.pending()


def test_an_external_interrupt_comes_before_the_apics_own() -> None:
    cpu = Vcpu(virtual_wire=True)
    cpu.interrupt(0xF0)
    cpu.apic.set_lint(0, True)

    assert [cpu.take(), cpu.take(), cpu.take()] == [0x08, 0xF0, None]


def test_an_edge_on_lint0_in_fixed_mode_interrupts_once() -> None:
    cpu = Vcpu()
    cpu.write(LVT_LINT0, 0x41)
    cpu.apic.set_lint(0, True)
    cpu.apic.set_lint(0, True)
    assert cpu.take() == 0x41
    cpu.write(EOI, 0)
    assert cpu.take() is None


def test_a_level_on_lint0_interrupts_again_after_eoi_until_it_falls() -> None:
    cpu = Vcpu()
    cpu.write(LVT_LINT0, 0x8041)
    cpu.apic.set_lint(0, True)
    assert cpu.read(LVT_LINT0) == 0xC041
    assert cpu.take() == 0x41
    cpu.write(EOI, 0)
    assert cpu.take() == 0x41
    cpu.apic.set_lint(0, False)
    cpu.write(EOI, 0)
    assert cpu.take() is None
    assert cpu.read(LVT_LINT0) == 0x8041


def test_lint1_gives_nmis_on_the_edge() -> None:
    cpu = Vcpu(virtual_wire=True)
    for level in (True, True, False, True):
        cpu.apic.set_lint(1, level)

    assert cpu.events == ["nmi", "nmi"]


def test_there_is_no_lint2() -> None:
    with pytest.raises(UsageError, match="LINT2"):
        Vcpu().apic.set_lint(2, True)


# The timer (10.5.4).


def timer(mode: int = 0, divide: int = DIVIDE_BY_1, **how: Any) -> Vcpu:
    cpu = Vcpu(**how)
    cpu.write(LVT_TIMER, mode | 0x40)
    cpu.write(DIVIDE, divide)
    return cpu


@pytest.mark.parametrize(
    ("divide", "by"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xA, 128), (0xB, 1)]
)
def test_the_divider_is_that_of_figure_10_10(divide: int, by: int) -> None:
    cpu = timer(divide=divide)
    cpu.write(INITIAL, 1000)
    cpu.wait(1000 * by - 1)
    assert (cpu.take(), cpu.read(CURRENT)) == (None, 1)
    cpu.wait(1)
    assert (cpu.take(), cpu.read(CURRENT)) == (0x40, 0)
    cpu.write(EOI, 0)
    cpu.wait(10_000 * by)
    assert cpu.take() is None
    assert cpu.read(INITIAL) == 1000


def test_the_count_is_seen_to_pass_without_a_callback() -> None:
    cpu = timer()
    cpu.write(INITIAL, 1000)
    cpu.clock.skip_to(400)
    assert cpu.read(CURRENT) == 600
    cpu.clock.skip_to(5000)
    assert cpu.read(CURRENT) == 0


def test_writing_0_stops_and_writing_again_restarts() -> None:
    cpu = timer()
    cpu.write(INITIAL, 1000)
    cpu.wait(900)
    cpu.write(INITIAL, 1000)
    cpu.wait(900)
    assert cpu.take() is None
    cpu.write(INITIAL, 0)
    cpu.wait(900)
    assert (cpu.take(), cpu.clock.deadline) == (None, None)


def test_a_periodic_timer_keeps_its_phase() -> None:
    cpu = timer(PERIODIC)
    cpu.write(INITIAL, 100_000)
    for tick in range(1, 6):
        cpu.wait(100_000 - 1)
        assert cpu.take() is None
        cpu.wait(1)
        assert cpu.clock.now() == tick * 100_000
        assert cpu.take() == 0x40
        cpu.write(EOI, 0)


def test_periods_that_were_missed_are_one_interrupt_and_the_phase_stays() -> None:
    cpu = timer(PERIODIC)
    cpu.write(INITIAL, 100_000)
    cpu.clock.skip_to(1_234_567)
    assert cpu.read(CURRENT) == 100_000 - 34_567
    cpu.clock.run_due()
    assert cpu.changes == 1
    assert cpu.clock.deadline == 1_300_000
    assert cpu.read(CURRENT) == 100_000 - 34_567


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_a_tiny_period_is_no_storm(count: int) -> None:
    cpu = timer(PERIODIC)
    cpu.write(INITIAL, count)
    calls = 0
    end = cpu.clock.now() + 10 * SHORTEST_PERIOD
    while cpu.clock.deadline is not None and cpu.clock.deadline < end:
        cpu.clock.skip_to(cpu.clock.deadline)
        cpu.clock.run_due()
        calls += 1
        assert 0 < cpu.read(CURRENT) <= count

    assert calls <= 11


def test_a_masked_timer_counts_and_does_not_interrupt() -> None:
    cpu = timer(MASKED)
    cpu.write(INITIAL, 1000)
    cpu.wait(600)
    assert cpu.read(CURRENT) == 400
    cpu.wait(400)
    cpu.write(LVT_TIMER, 0x40)
    assert cpu.take() is None


def test_a_count_that_ran_out_before_the_entry_was_masked_has_interrupted() -> None:
    cpu = timer()
    cpu.write(INITIAL, 1000)
    cpu.clock.skip_to(1000)  # and the callback is still to come
    cpu.write(LVT_TIMER, MASKED | 0x40)

    assert cpu.take() == 0x40


def test_one_shot_becomes_periodic_without_losing_its_count() -> None:
    cpu = timer()
    cpu.write(INITIAL, 50_000)
    cpu.wait(20_000)
    cpu.write(LVT_TIMER, PERIODIC | 0x40)
    assert cpu.read(CURRENT) == 30_000
    cpu.wait(30_000)
    assert cpu.take() == 0x40
    assert cpu.read(CURRENT) == 50_000


def test_a_new_divider_takes_the_count_on() -> None:
    cpu = timer()
    cpu.write(INITIAL, 1000)
    cpu.wait(400)
    cpu.write(DIVIDE, 0)
    assert cpu.read(CURRENT) == 600
    cpu.wait(1199)
    assert cpu.take() is None
    cpu.wait(1)
    assert cpu.take() == 0x40


def test_a_period_that_ended_before_the_divider_was_written_has_interrupted() -> None:
    cpu = timer(PERIODIC)
    cpu.write(INITIAL, 100_000)
    cpu.clock.skip_to(150_000)  # and the callback is still to come
    cpu.write(DIVIDE, 0)

    assert cpu.take() == 0x40
    assert cpu.clock.deadline == 250_000


def test_tsc_deadline_fires_when_the_tsc_is_there() -> None:
    cpu = timer(TSC_DEADLINE, tsc_hz=2_000_000_000)
    assert cpu.apic.msr_write(TSC_DEADLINE_MSR, 2001)
    assert cpu.apic.msr_read(TSC_DEADLINE_MSR) == 2001
    cpu.write(INITIAL, 5)  # ignored
    assert (cpu.read(INITIAL), cpu.read(CURRENT)) == (0, 0)
    cpu.wait(1000)
    assert cpu.take() is None
    cpu.wait(1)
    assert cpu.take() == 0x40
    assert cpu.apic.msr_read(TSC_DEADLINE_MSR) == 0


def test_a_tsc_deadline_that_has_passed_fires_at_once_and_0_disarms() -> None:
    cpu = timer(TSC_DEADLINE)
    cpu.wait(1000)
    cpu.apic.msr_write(TSC_DEADLINE_MSR, 1000)
    assert cpu.take() == 0x40
    cpu.write(EOI, 0)
    cpu.apic.msr_write(TSC_DEADLINE_MSR, 2000)
    cpu.apic.msr_write(TSC_DEADLINE_MSR, 0)
    cpu.wait(5000)
    assert cpu.take() is None


def test_a_tsc_that_was_set_back_is_waited_for() -> None:
    cpu = timer(TSC_DEADLINE)
    cpu.apic.msr_write(TSC_DEADLINE_MSR, 10_000)
    cpu.tsc_offset = -5_000
    cpu.wait(10_000)
    assert cpu.take() is None
    cpu.wait(5_000)
    assert cpu.take() == 0x40
    cpu.write(EOI, 0)
    cpu.apic.msr_write(TSC_DEADLINE_MSR, 100_000)
    cpu.tsc_offset = 100_000
    cpu.apic.tsc_changed()
    assert cpu.take() == 0x40


def test_other_modes_ignore_the_deadline_and_changing_to_or_from_tsc_deadline_disarms() -> None:
    cpu = timer()
    assert cpu.apic.msr_write(TSC_DEADLINE_MSR, 500)
    assert cpu.apic.msr_read(TSC_DEADLINE_MSR) == 0
    cpu.write(INITIAL, 1000)
    cpu.write(LVT_TIMER, TSC_DEADLINE | 0x40)
    assert cpu.clock.deadline is None
    cpu.apic.msr_write(TSC_DEADLINE_MSR, 5000)
    cpu.write(LVT_TIMER, 0x40)
    assert cpu.clock.deadline is None
    assert cpu.apic.msr_read(TSC_DEADLINE_MSR) == 0


def test_without_a_tsc_there_is_no_tsc_deadline_mode() -> None:
    apic = LocalApic(
        0,
        ExitClock(),
        ApicBus(),
        boot=True,
        on_change=lambda: None,
        on_nmi=lambda: None,
        on_init=lambda: None,
        on_startup=lambda vector: None,
    )
    apic.write(LVT_TIMER, 4, TSC_DEADLINE | 0x40)

    assert apic.read(LVT_TIMER, 4) == MASKED | 0x40
    assert apic.msr_read(TSC_DEADLINE_MSR) is None
    assert not apic.msr_write(TSC_DEADLINE_MSR, 1)
    apic.msr_write(APIC_BASE, X2APIC_ON)
    assert not apic.msr_write(0x832, TSC_DEADLINE)
    # Nobody to acknowledge: a pin in ExtINT mode interrupts nobody.
    apic.msr_write(0x80F, 0x1FF)
    apic.msr_write(0x835, 0x700)
    apic.set_lint(0, True)
    assert not apic.pending()


@given(
    st.sampled_from([0, PERIODIC, TSC_DEADLINE]),
    st.sampled_from([0, 1, 2, 3, 8, 9, 0xA, 0xB]),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 1 << 40),
)
def test_a_restored_timer_goes_on_as_the_first_would(mode: int, divide: int, count: int, passed: int) -> None:
    first = timer(mode, divide)
    first.write(INITIAL, count)
    first.apic.msr_write(TSC_DEADLINE_MSR, count * 3)
    first.clock.skip_to(passed)
    state = msgspec.json.decode(msgspec.json.encode(first.apic.state()), type=LapicState)
    clock = ExitClock()
    clock.set_now(passed)
    second = Vcpu(clock=clock, state=state)

    assert second.read(CURRENT) == first.read(CURRENT)
    assert second.clock.deadline == first.clock.deadline
    for cpu in (first, second):
        cpu.clock.run_due()
        cpu.clock.skip_to(passed + 12_345)
        cpu.clock.run_due()
    assert second.read(CURRENT) == first.read(CURRENT)
    assert second.apic.state() == first.apic.state()


# Whatever comes.


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["rdmsr", "wrmsr", "lint", "wait", "ack", "cr8", "page"]),
            st.one_of(st.sampled_from([APIC_BASE, TSC_DEADLINE_MSR]), st.integers(0x7F8, 0x848)),
            st.one_of(
                st.sampled_from([0, XAPIC, X2APIC_ON, 0x1FF, PERIODIC | 0x41, 0x700, 0x8041]),
                st.integers(0, 0xFF),
                st.integers(0, (1 << 64) - 1),
            ),
        ),
        max_size=60,
    )
)
def test_no_guest_breaks_it_and_every_state_can_be_restored(steps: list[tuple[str, int, int]]) -> None:
    cpu = Vcpu()
    for what, index, value in steps:
        if what == "rdmsr":
            answer = cpu.apic.msr_read(index)
            assert answer is None or 0 <= answer < 1 << 64
        elif what == "wrmsr":
            cpu.apic.msr_write(index, value)
        elif what == "lint":
            cpu.apic.set_lint(index & 1, bool(value & 1))
        elif what == "wait":
            cpu.clock.skip_to(cpu.clock.now() + (value & 0xFFFFFF))
            cpu.clock.run_due()
        elif what == "ack":
            assert 0 <= cpu.apic.acknowledge() <= 0xFF
        elif what == "cr8":
            cpu.apic.cr8_written(value)
        else:
            cpu.write((index & 0x3F) << 4, value & 0xFFFFFFFF)
        state = cpu.apic.state()
        clock = ExitClock()
        clock.set_now(cpu.clock.now())
        again = Vcpu(clock=clock, state=state)
        assert again.apic.state() == state
        assert again.apic.pending() == cpu.apic.pending()
        assert again.clock.deadline == cpu.clock.deadline


@pytest.mark.parametrize(
    ("state", "names"),
    [
        (LapicState(apic_base=BASE | 0x400), "x2APIC on"),
        (LapicState(apic_base=1), "apic_base"),
        (LapicState(tpr=0x100), "tpr"),
        (LapicState(dfr=0), "dfr"),
        (LapicState(ldr=1), "ldr"),
        (LapicState(icr=0x1000), "icr"),
        (LapicState(lvt=(MASKED,) * 5), "5 LVT entries"),
        (LapicState(lvt=(0x40,) * 6), "not masked"),
        (LapicState(lvt=(MASKED | 0x100,) * 6), "LVT entry 0"),
        (LapicState(irr=(1, 0, 0, 0, 0, 0, 0, 0)), "irr"),
        (LapicState(isr=(0,)), "isr"),
        (LapicState(tmr=(0, 1 << 32, 0, 0, 0, 0, 0, 0)), "tmr"),
        (LapicState(pins=(True,)), "pins"),  # type: ignore[arg-type]
        (LapicState(timer=ApicTimerState(initial=1 << 32)), "initial"),
        (LapicState(timer=ApicTimerState(divide=4)), "divide"),
        (LapicState(timer=ApicTimerState(expires=5)), "nothing to count"),
        (LapicState(timer=ApicTimerState(initial=1, expires=-5)), "expires"),
    ],
)
def test_states_that_cannot_be_are_refused(state: LapicState, names: str) -> None:
    with pytest.raises(UsageError, match=names):
        Vcpu(state=state)


@pytest.mark.parametrize("apic_id", [-1, 0xFFFFFFFF])
def test_apic_ids_that_cannot_be_are_refused(apic_id: int) -> None:
    with pytest.raises(UsageError, match="id"):
        Vcpu(apic_id=apic_id)
