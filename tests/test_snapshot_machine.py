"""Snapshots of machines: going back and over, in memory, between instructions, by history."""

from __future__ import annotations

from typing import Any

import pytest

from vmmsim import Machine
from vmmsim.budget import Budget, exits, insns, seconds
from vmmsim.bus import Device
from vmmsim.errors import NotSupported, UsageError
from vmmsim.exits import Halt, MmioRead
from vmmsim.snapshot.cow import can_map, image_of
from vmmsim.snapshot.values import Snapshot
from vmmsim.streams import BytesSource
from vmmsim.testing.slow import time_limit

#: Five wrong guesses and one more: a lost game.
GUESSES = b"a\nb\nc\nd\ne\nf\n"


def game(backend: str, **arguments: Any) -> Machine:
    source = BytesSource(GUESSES)
    return Machine.for_guest("guess", backend=backend, seed=3, source=source, clock="exits", **arguments)


class Trace(list[tuple[Any, ...]]):
    """What a machine's accesses were."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        machine.observe(lambda *access: self.append(access))


def end(machine: Machine) -> tuple[Any, ...]:
    """All that a finished machine is."""
    state = machine.vcpu.state()
    return state, machine.memory.digest(), machine.device_states(), machine.clock.now()


@pytest.mark.parametrize("copy", [False, True])
def test_a_restored_machine_has_the_same_future(backend_name: str, copy: bool) -> None:
    with game(backend_name) as machine:
        trace = Trace(machine)
        machine.run(budget=exits(100))
        snapshot = machine.snapshot()
        futures, ends = [], []
        for _ in range(3):
            began = len(trace)
            assert machine.run(budget=seconds(time_limit(20))) == Halt()
            futures.append(trace[began:])
            ends.append(end(machine))
            machine.restore(snapshot, copy=copy)
        assert len(futures[0]) > 200
        assert futures == [futures[0]] * 3
        assert ends == [ends[0]] * 3


def test_a_new_machine_goes_on_where_the_snapshot_was_taken(backend_name: str) -> None:
    with game(backend_name) as machine:
        trace = Trace(machine)
        machine.run(budget=exits(100))
        snapshot = machine.snapshot()
        machine.run(budget=seconds(time_limit(20)))
        finished = end(machine)
    with Machine.from_snapshot(snapshot, backend=backend_name, source=BytesSource(GUESSES)) as other:
        again = Trace(other)
        assert other.run(budget=seconds(time_limit(20))) == Halt()
        assert again == trace[100:]
        assert end(other) == finished


def test_several_snapshots_are_restored_in_any_order(backend_name: str) -> None:
    with game(backend_name) as machine:
        taken: list[tuple[Snapshot, str]] = []
        for _ in range(4):
            machine.run(budget=exits(60))
            machine.memory.write(0x20000 + 0x1000 * len(taken), b"host")
            taken.append((machine.snapshot(), machine.memory.digest()))
        for number in (2, 0, 3, 3, 1, 0, 2):
            snapshot, digest = taken[number]
            machine.restore(snapshot)
            assert machine.memory.digest() == digest
            machine.run(budget=exits(30))


def test_in_a_run_it_is_taken_between_two_instructions(backend_name: str) -> None:
    with game(backend_name) as machine:
        trace = Trace(machine)
        taken: list[Snapshot] = []

        def at_the_hundredth(*access: object) -> None:
            if len(trace) == 100:
                machine.between(lambda: taken.append(machine.snapshot()))

        machine.observe(at_the_hundredth)
        assert machine.run(budget=seconds(time_limit(20))) == Halt()
        machine.restore(taken[0])
        began = len(trace)
        assert machine.run(budget=seconds(time_limit(20))) == Halt()
        assert trace[began:] == trace[100:began]


def test_a_run_can_go_back_in_the_middle(backend_name: str) -> None:
    with game(backend_name) as machine:
        trace = Trace(machine)
        machine.run(budget=exits(100))
        snapshot = machine.snapshot()
        gone_back = False

        def go_back(*access: object) -> None:
            nonlocal gone_back
            if len(trace) == 150 and not gone_back:
                gone_back = True
                machine.between(lambda: machine.restore(snapshot))

        machine.observe(go_back)
        assert machine.run(budget=seconds(time_limit(20))) == Halt()
        assert trace[150:200] == trace[100:150]


def test_what_ends_a_run_where_something_is_between_still_ends_it(backend_name: str) -> None:
    with game(backend_name) as machine:
        machine.observe(lambda *access: machine.between(lambda: None))
        assert isinstance(machine.run(until=MmioRead, budget=seconds(time_limit(20))), MmioRead)


def test_between_exits_an_access_that_is_half_done_is_in_no_snapshot(backend_name: str) -> None:
    with game(backend_name) as machine:
        for exit in machine.exits():
            if isinstance(exit, MmioRead):
                with pytest.raises(UsageError, match="in the middle of an instruction"):
                    machine.snapshot()
                exit.reply(0x61)
                break
        snapshot = machine.snapshot()  # answered: the instruction is finished first
        rest = [exit.describe() for exit, _ in zip(machine.exits(), range(20), strict=False)]
        machine.restore(snapshot)
        assert [exit.describe() for exit, _ in zip(machine.exits(), range(20), strict=False)] == rest


def test_going_back_drops_an_exit_that_nobody_answered(backend_name: str) -> None:
    with game(backend_name) as machine:
        snapshot = machine.snapshot()
        seen = []
        for exit in machine.exits():
            seen.append(exit.describe())
            if len(seen) == 40:
                machine.restore(snapshot)
            if len(seen) == 80:
                break
        assert seen[40:] == seen[:40]


class Dial:
    """A device of a user's own, with a state."""

    widths = frozenset({1})

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def read(self, offset: int, size: int, /) -> int:
        return self.value

    def write(self, offset: int, size: int, value: int, /) -> None:
        self.value = value

    def state(self) -> int:
        return self.value


def test_a_device_of_a_users_own_is_restored_by_what_it_was_attached_with(backend_name: str) -> None:
    with game(backend_name) as machine:
        mapping = machine.attach_port(0x300, 1, Dial(), "dial")
        with pytest.raises(UsageError, match="'dial' cannot be part of a snapshot"):
            machine.snapshot()
        machine.detach(mapping)
        machine.attach_port(0x300, 1, Dial(5), "dial", restore=Dial)
        snapshot = machine.snapshot()
        machine.ports.write(0x300, 1, 9)
        machine.restore(snapshot)
        assert machine.ports.read(0x300, 1) == 5
        dial: Device = machine.devices["dial"]
        assert isinstance(dial, Dial)


def test_a_snapshot_of_another_machine_is_refused_by_name(backend_name: str) -> None:
    with game(backend_name) as machine, Machine(backend=backend_name, memory=1 << 20) as other:
        snapshot = machine.snapshot()
        before = other.vcpu.state()
        with pytest.raises(UsageError, match=r"machine with (memory|clock)="):
            other.restore(snapshot)
        assert other.vcpu.state() == before


def test_memory_that_did_not_change_is_shared_by_snapshots() -> None:
    with game("unicorn") as machine:
        first = machine.snapshot()
        assert machine.snapshot().memory is first.memory
        machine.memory.write(0x30000, b"x")
        second = machine.snapshot().memory
        if can_map():
            assert second.parent is first.memory
            assert [(run.gpa, run.length) for run in second.own] == [(0x30000, 0x1000)]
        assert bytes(second.page(0x30000)[:1]) == b"x"


def test_where_host_pages_cannot_be_mapped_they_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmmsim.snapshot.cow.can_map", lambda: False)
    with game("unicorn") as machine:
        machine.run(budget=exits(100))
        snapshot, digest = machine.snapshot(), machine.memory.digest()
        machine.run(budget=seconds(time_limit(20)))
        machine.memory.write(0x30000, b"x")
        machine.restore(snapshot)
        assert machine.memory.digest() == digest


def test_where_there_is_no_page_map_pages_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmmsim.snapshot.cow._page_map", lambda address, size: None)
    with game("unicorn") as machine:
        machine.snapshot()
        machine.memory.write(0x30000, b"x")
        image = image_of(machine.memory)
        assert [(run.gpa, run.length) for run in image.own] == [(0x30000, 0x1000)] or not can_map()


def test_back_by_exits_is_exact(backend_name: str) -> None:
    with game(backend_name) as machine:
        machine.history(exits(50), keep=8)
        trace = Trace(machine)
        moments = {}
        for number in range(1, 8):
            machine.run(budget=exits(37))
            moments[37 * number] = (machine.vcpu.registers(), machine.memory.digest(), machine.clock.now())
        printed = machine.output.data
        for back_to in (222, 37, 111):
            now = 259 if back_to == 222 else machine._history.exits  # type: ignore[union-attr]
            if now < back_to:  # forward again
                machine.run(budget=exits(259 - now))
                now = 259
            returned = machine.back(now - back_to)
            assert (returned.exits, returned.exact, returned.reason) == (back_to, True, "")
            assert (machine.vcpu.registers(), machine.memory.digest(), machine.clock.now()) == moments[
                back_to
            ]
        assert machine.output.data.startswith(printed)
        assert len(trace) >= 259


def test_back_by_instructions_is_exact_where_they_are_counted() -> None:
    with game("unicorn", count_insns=True) as machine:
        machine.history(insns(2000))
        machine.run(budget=insns(2345))
        registers = machine.vcpu.registers()
        assert machine.run(budget=seconds(time_limit(20))) == Halt()
        returned = machine.back((machine.vcpu.insns or 0) - 2345, "insns")
        assert (returned.insns, returned.exact) == (2345, True)
        assert machine.vcpu.registers() == registers
        with pytest.raises(UsageError, match="before the first snapshot"):
            machine.back(1_000_000, "insns")


def test_what_is_not_exact_is_said() -> None:
    with Machine.for_guest("guess", backend="unicorn", source=BytesSource(GUESSES)) as machine:
        machine.history(exits(10))
        machine.run(budget=exits(30))
        returned = machine.back(5)
        assert not returned.exact
        assert "host" in returned.reason


@pytest.mark.parametrize(
    ("every", "keep", "match"), [(seconds(1), 4, "every 1 seconds"), (exits(5), 0, "0 snapshots")]
)
def test_a_history_that_cannot_be_is_refused(every: Budget, keep: int, match: str) -> None:
    with game("unicorn") as machine:
        with pytest.raises(UsageError, match="no history"):
            machine.back(1)
        with pytest.raises(UsageError, match=match):
            machine.history(every, keep=keep)
        with pytest.raises(NotSupported, match="count instructions"):
            machine.history(insns(100))
