"""The tools find known bugs, within a number of cases that is written here, and shrink them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from buggy import ForgetfulScratch, SwappedPic, buggy
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from vmmsim.backends import open_backend
from vmmsim.cpu.state import CpuState
from vmmsim.devices.base import IrqLine
from vmmsim.devices.i8259 import I8259Pair
from vmmsim.devices.scratch import Scratch
from vmmsim.diff.campaign import Range, work_with
from vmmsim.diff.findings import Finding
from vmmsim.diff.lanes import Lane
from vmmsim.diff.runner import Pair
from vmmsim.testing.strategies import cpu_states, device_scripts, interrupt_schedules, run_script

pytestmark = pytest.mark.unicorn


@contextmanager
def against(bug: str) -> Iterator[Pair]:
    unicorn = open_backend("unicorn")[0]
    with Pair(unicorn, buggy(unicorn, bug)) as pair:
        yield pair


def hunt(bug: str, most: int) -> Finding:
    """The finding with the fewest bytes among the first `most` cases in mode 64."""
    with against(bug) as pair:
        report = work_with(pair, Range("64", 0, most))
    assert report.findings, f"'{bug}' was not found within {most} cases"
    return min(report.findings.values(), key=lambda f: len(f.case.code))


def within(most: int) -> settings:
    return settings(
        max_examples=most,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def test_a_flag_that_is_wrong_after_one_instruction_is_found_within_1500_cases() -> None:
    found = hunt("flag", 1500)
    assert len(found.case.units) == 1
    assert "xadd: PF" in found.cause


def test_a_store_that_is_split_is_found_within_1500_cases() -> None:
    found = hunt("stores", 1500)
    assert len(found.case.units) == 1
    assert "accesses" in found.cause
    assert "size 8" in found.report[0]


def test_a_bit_that_a_restore_loses_is_found_within_100_cases() -> None:
    found = hunt("bit", 100)
    assert found.cause.endswith("register")
    assert found.case.regs.r11 >> 41 & 1
    assert found.case.regs.rax == 0, "what does not matter is gone"


def test_a_backend_without_a_fault_has_no_findings() -> None:
    """The one lane takes its vCPU's shortcut, the other sets and reads the whole state."""
    with against("none") as pair:
        assert not work_with(pair, Range("64", 0, 500)).findings


def test_an_interrupt_shadow_that_is_lost_is_found_within_50_states() -> None:
    lane = Lane(buggy(open_backend("unicorn")[0], "shadow"))

    def lost(state: CpuState) -> bool:
        lane.vcpu.set_state(state)
        return [name for name, _, _ in state.diff(lane.vcpu.state())] == ["events.sti_shadow"]

    try:
        found = find(
            cpu_states("64", fpu=False), lost, settings=settings(within(50), phases=[Phase.generate])
        )
    finally:
        lane.close()
    assert found.events.sti_shadow


def _order(pic: Any, schedule: tuple[tuple[int, int, bool], ...]) -> list[int]:
    """The vectors in the order of their delivery, one EOI each."""
    seen = []
    for chip, words in ((pic.master, (0x11, 0x08, 0x04, 1)), (pic.slave, (0x11, 0x70, 0x02, 1))):
        chip.write(0, 1, words[0])
        for word in words[1:]:
            chip.write(1, 1, word)
    for _, line, level in schedule:
        if line != 2:  # the slave's
            pic.input(line).set(level)
    while pic.pending() and len(seen) < 32:
        vector = pic.acknowledge()
        seen.append(vector)
        if vector >= 0x70:
            pic.slave.write(0, 1, 0x20)
        pic.master.write(0, 1, 0x20)
    return seen


def test_priorities_that_are_swapped_are_found_within_400_schedules() -> None:
    def wrong(schedule: tuple[tuple[int, int, bool], ...]) -> bool:
        good, bad = (kind(IrqLine(lambda level: None)) for kind in (I8259Pair, SwappedPic))
        return _order(good, schedule) != _order(bad, schedule)

    found = find(interrupt_schedules(most=8), wrong, settings=within(400))
    assert {line for _, line, _ in found} == {3, 4}


def test_a_bit_that_a_device_drops_on_restore_is_found_within_300_scripts() -> None:
    def wrong(script: Any, device: type[Scratch] = ForgetfulScratch) -> bool:
        plain = run_script(script, device(8))
        return plain != run_script(script, device(8), restore=device.from_state)

    scripts = device_scripts(8, widths=(1, 2, 4, 8), time=False, most=8)
    found = find(scripts, wrong, settings=within(300))
    assert [step.kind for step in found] == ["write", "snapshot", "read"]
    with pytest.raises(NoSuchExample):
        find(scripts, lambda script: wrong(script, Scratch), settings=within(50))


def test_strategies_are_strategies() -> None:
    assert isinstance(cpu_states("16"), st.SearchStrategy)
