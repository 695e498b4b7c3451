"""Snapshots from one CPU to another: the future of a machine is the same, exit for exit, wherever it goes on.

Each ordered pair of KVM, Unicorn's native engine and its portable one. The clock is that of exits, so that
interrupts, too, come at the same exit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vmmsim import Machine, guests
from vmmsim.backends import open_backend
from vmmsim.backends.base import Backend
from vmmsim.budget import exits, seconds
from vmmsim.cpu.state import CpuState, Segment, Table
from vmmsim.diff import TraceStep, compare_memory, compare_states, compare_traces
from vmmsim.errors import UsageError
from vmmsim.exits import Access, GuestExit, Halt
from vmmsim.loaders import load_bytes
from vmmsim.snapshot.container import load, save
from vmmsim.snapshot.values import CpuSnapshot, Snapshot
from vmmsim.streams import BytesSource

VARIANTS = ("kvm", "unicorn", "unicorn-portable")


def pair(source: str, target: str) -> Any:
    marks = [getattr(pytest.mark, name.partition("-")[0]) for name in dict.fromkeys((source, target))]
    return pytest.param(source, target, marks=marks, id=f"{source} to {target}")


PAIRS = [pair(source, target) for source in VARIANTS for target in VARIANTS if source != target]
on_each_pair = pytest.mark.parametrize(("source", "target"), PAIRS)
on_each_cpu = pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=getattr(pytest.mark, v.partition("-")[0]), id=v) for v in VARIANTS]
)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Backend]:
    """An opened backend by the name of a variant."""

    def opened(variant: str) -> Backend:
        name, _, engine = variant.partition("-")
        with monkeypatch.context() as patch:
            patch.setenv("VMMSIM_UNICORN", engine)
            return open_backend(name)[0]

    return opened


Cpu = Callable[[str], Backend]


class Traced:
    """A machine and what it has done: `trace` of its accesses, since `from_here` was called."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.trace: list[TraceStep] = []
        machine.observe(lambda *access: self.trace.append(TraceStep.of_access(*access)))

    def to_the_end(self) -> list[TraceStep]:
        end = self.machine.run(budget=seconds(20))
        return [*self.trace, TraceStep.of(end, self.machine.cpu.rip)]


def same_end(one: Machine, two: Machine, names: tuple[str, str]) -> None:
    """Registers, FPU, memory, devices, time: whatever a machine is."""
    for mine, theirs in zip(one.processors, two.processors, strict=True):
        assert mine.status == theirs.status
        found = compare_states(mine.vcpu.state(), theirs.vcpu.state(), names=names)
        assert found is None, str(found)
    found = compare_memory(one.memory, two.memory, names=names)
    assert found is None, str(found)
    assert one.device_states() == two.device_states()
    assert one.clock.now() == two.clock.now()
    assert one.random.getstate() == two.random.getstate()
    assert getattr(one.source, "position", 0) == getattr(two.source, "position", 0)


# -- guests in every mode, at several exits

#: A guest, and the input that it gets.
GUESTS = {
    "timer-real": b"",
    "lwn": b"",
    "hello32": b"",
    "hello64": b"",
    "timer-long": b"",
    "ring3": b"",
    "timer-user": b"",
    "guess": b"a\nb\nc\nd\ne\nf\n",
    "serial-echo": b"across\n",
    "smp-ping-pong": b"",
}
SEED = 11


def machine_of(guest: str, backend: Backend, **arguments: Any) -> Machine:
    source = BytesSource(GUESTS[guest])
    return Machine.for_guest(
        guest, backend=backend, seed=SEED, clock="exits", source=source, **arguments
    )


def refused(guest: str, *backends: Backend) -> bool:
    return bool({b.provenance for b in backends} & set(guests.load(guest).manifest.refused))


def cuts(length: int) -> list[int]:
    """After how many exits snapshots are taken."""
    return sorted({1, length // 3, length // 2, length - 2} & set(range(1, length)))


def taken_in_a_run(machine: Machine, at: list[int]) -> dict[int, Snapshot]:
    taken: dict[int, Snapshot] = {}
    seen = 0

    def look(*access: object) -> None:
        nonlocal seen
        seen += 1
        if seen in at:
            machine.between(lambda number=seen: taken.update({number: machine.snapshot()}))

    machine.observe(look)
    machine.run(budget=seconds(20))
    return taken


def taken_at_exits(machine: Machine, at: list[int]) -> dict[int, Snapshot]:
    taken: dict[int, Snapshot] = {}
    seen = 0
    for exit in machine.exits():
        if isinstance(exit, Access):
            seen += 1
            machine.answer(exit)
            if seen in at:
                taken[seen] = machine.snapshot()
        elif isinstance(exit, Halt) and seen in at:
            taken[seen] = machine.snapshot()  # halted, perhaps to be woken
    return taken


@on_each_pair
@pytest.mark.parametrize("take", [taken_in_a_run, taken_at_exits], ids=["in a run", "at exits"])
@pytest.mark.parametrize("guest", GUESTS)
def test_a_guest_goes_on_elsewhere_as_it_would_have_here(
    guest: str, take: Any, source: str, target: str, cpu: Cpu, tmp_path: Path
) -> None:
    here, there = cpu(source), cpu(target)
    if refused(guest, here, there):
        pytest.skip(f"{guest} is refused on one of the two")
    with machine_of(guest, here) as straight:
        whole = Traced(straight).to_the_end()
        at = cuts(len(whole) - 1)
        with machine_of(guest, here) as machine:
            taken = take(machine, at)
        assert sorted(taken) == at
        for number, snapshot in taken.items():
            if number == at[len(at) // 2]:  # one of them by a file
                save(snapshot, tmp_path / "across.vmm")
                snapshot = load(tmp_path / "across.vmm")
            data = BytesSource(GUESTS[guest])
            with Machine.from_snapshot(snapshot, backend=there, source=data) as restored:
                rest = Traced(restored).to_the_end()
                found = compare_traces(whole[number:], rest, names=(source, f"{target} after {number}"))
                assert found is None, str(found)
                same_end(straight, restored, (source, target))
