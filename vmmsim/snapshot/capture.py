"""From a machine between two instructions to a Snapshot, and back into a machine.

Restoring is whole or not at all. What can be checked is checked first: that the machine is one
for the snapshot, that its CPUs can hold the states, that its devices can be in theirs. Memory
comes last; when the host has none left in the middle of that, the machine is poisoned, and
does nothing but be restored once more.
"""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING

from .. import __version__
from ..clock import CLOCKS, Clock, ExitClock, InsnClock
from ..errors import NotSupported, UsageError, VmmsimError
from ..processor import HALTED, RUNS, WAITS
from .cow import image_of, put_back, put_back_by_copy
from .values import ClockState, CpuSnapshot, Provenance, RandomState, Snapshot

if TYPE_CHECKING:
    from ..backends.base import Vcpu
    from ..cpu.state import CpuState
    from ..processor import Processor
    from ..travel import TimeTravel
    from .pages import MemoryImage

__all__ = ["capture", "check_fits", "restore"]

_RUN_STATES = {RUNS: "running", HALTED: "halted", WAITS: "wait_sipi"}
_STATUSES = {name: status for status, name in _RUN_STATES.items()}
#: Fields of the configuration that a machine may have otherwise than the snapshot's.
_FREE = frozenset({"seed", "count_insns", "watchdog_seconds"})
_XCR0_NAMES = {4: "AVX", 0x18: "MPX", 0xE0: "AVX-512", 0x200: "PKU"}


def capture(machine: TimeTravel, *, comment: str = "", memory: MemoryImage | None = None) -> Snapshot:
    """What `machine` is now. UsageError when an access is half done.

    `memory` takes the place of the machine's, for who keeps account of its pages otherwise.
    """
    cpus = []
    for item in machine.processors:
        item.obey()
        item.vcpu.settle()
        if not item.vcpu.whole:
            raise UsageError(
                f"vCPU {item.number} is in the middle of an instruction",
                hint="answer its exit, and take the ones that follow from the same instruction",
            )
        cpus.append(_cpu(item))
    snapshot = Snapshot(
        config=machine.config,
        cpus=tuple(cpus),
        memory=image_of(machine.memory) if memory is None else memory,
        devices=machine.device_states(),
        clock=_clock_state(machine.clock),
        input_position=getattr(machine.source, "position", 0),
        random_state=RandomState.of(machine.random),
        generation=machine.generation,
        current=machine.processors.current,
        provenance=Provenance(
            backend=machine.backend.provenance,
            version=__version__,
            host=f"{platform.system()} {platform.machine()}",
            created=int(time.time()),
            comment=comment,
        ),
    )
    machine.prove(snapshot)
    return snapshot


def _cpu(item: Processor) -> CpuSnapshot:
    state = item.vcpu.state()
    state.halted = item.status is HALTED
    return CpuSnapshot(state=state, run_state=_RUN_STATES[item.status], insns=item.vcpu.insns)  # type: ignore[arg-type]


def _clock_state(clock: Clock) -> ClockState:
    if isinstance(clock, ExitClock):
        return ClockState(kind="exits", now_ns=clock.now(), step=clock.step)
    if isinstance(clock, InsnClock):
        return ClockState(kind="insns", now_ns=clock.now(), rate=clock.rate, insns=clock.insns())
    return ClockState(kind="host", now_ns=clock.now())


def _clock(state: ClockState) -> Clock:
    if state.kind == "insns":
        clock = InsnClock(state.rate or 1)
        clock.set_now(state.base_ns)
        return clock
    made = ExitClock(state.step or 1) if state.kind == "exits" else CLOCKS[state.kind]()
    made.set_now(state.now_ns)
    return made


def check_fits(machine: TimeTravel, snapshot: Snapshot) -> None:
    """UsageError for a snapshot of another machine, NotSupported for what this CPU cannot hold."""
    mine, other = machine.config, snapshot.config
    for field in mine.__struct_fields__:
        if field not in _FREE and getattr(mine, field) != getattr(other, field):
            raise UsageError(
                f"the snapshot is of a machine with {field}={getattr(other, field)!r}, "
                f"this one has {getattr(mine, field)!r}",
                hint="make one for it with Machine.from_snapshot",
            )
    regions = [(r.gpa, r.size, r.readonly) for r in machine.memory.regions]
    if regions != [(r.gpa, r.size, r.readonly) for r in snapshot.memory.regions]:
        raise UsageError(
            "the snapshot's machine has other memory regions", hint="make one with Machine.from_snapshot"
        )
    if len(snapshot.cpus) != len(machine.processors.items):
        raise UsageError(
            f"the snapshot has {len(snapshot.cpus)} CPUs, the machine {len(machine.processors.items)}",
            hint="make one for it with Machine.from_snapshot",
        )
    for name in machine.device_states().keys() ^ snapshot.devices.keys():
        whose = "snapshot" if name in snapshot.devices else "machine"
        raise UsageError(
            f"only the {whose} has a device '{name}'", hint="attach and leave out the same devices"
        )
    held = machine.backend.capabilities.xcr0
    for item, cpu in zip(machine.processors, snapshot.cpus, strict=True):
        lacks = cpu.state.xcr0 & ~held
        if lacks:
            names = [name for mask, name in _XCR0_NAMES.items() if lacks & mask] or [hex(lacks)]
            raise NotSupported(
                f"CPU {item.number} of the snapshot uses {', '.join(names)} (XCR0 {cpu.state.xcr0:#x}), "
                f"which {machine.backend.provenance} does not have",
                hint="restore it on the backend that it was taken on",
            )
        item.vcpu.check_state(cpu.state)


def restore(machine: TimeTravel, snapshot: Snapshot, *, rewind: bool = True, copy: bool = False) -> None:
    """Make `machine` what `snapshot` says. Raises as `check_fits`, `Chassis.prepare` and
    `Vcpu.set_state` do: nothing has changed then. Behind any other error the machine is poisoned.

    `rewind`: let the input go on where it was, too. `copy`: bring memory back page by page.
    """
    proven = machine.proves(snapshot)
    if not proven:
        check_fits(machine, snapshot)
    devices = machine.prepare(snapshot.devices, _clock(snapshot.clock))
    if not proven and not machine.whole():
        _rehearse(machine, snapshot)
    for item in machine.processors:
        item.vcpu.abandon()
    if not proven:
        _set_cpus(machine, snapshot)
    machine.poison("a snapshot was restored in part, and then the host failed")
    for item, cpu in zip(machine.processors, snapshot.cpus, strict=True):
        if proven:
            item.vcpu.set_proven(cpu.state)
            if cpu.insns is not None:
                item.vcpu.set_insns(cpu.insns)
        item.resume(_STATUSES[cpu.run_state], cpu.state.events)
    machine.processors.current = snapshot.current
    machine.replace_devices(devices)
    if copy:
        put_back_by_copy(machine.memory, snapshot.memory)
    else:
        put_back(machine.memory, snapshot.memory)
    if snapshot.random_state is not None:
        snapshot.random_state.put(machine.random)
    if rewind and hasattr(machine.source, "seek"):
        machine.source.seek(snapshot.input_position)
    machine.generation = snapshot.generation
    machine.poison(None)
    machine.prove(snapshot)


def _rehearse(machine: TimeTravel, snapshot: Snapshot) -> None:
    """Raise what `set_state` would: in a VM for this alone, since an access of the machine's is half
    done, which cannot be gone back to."""
    vm = machine.backend.create_vm()
    try:
        vcpu = vm.create_vcpu()
        for cpu in snapshot.cpus:
            vcpu.set_state(cpu.state)
    finally:
        vm.close()


def _set_cpus(machine: TimeTravel, snapshot: Snapshot) -> None:
    """All of them, or none: those that were set are set back."""
    done: list[tuple[Vcpu, CpuState, int | None]] = []
    try:
        for item, cpu in zip(machine.processors, snapshot.cpus, strict=True):
            vcpu = item.vcpu
            before, insns = vcpu.state(), vcpu.insns
            state = cpu.state.copy()
            state.halted = False  # that is the processor's to know
            vcpu.set_state(state)
            done.append((vcpu, before, insns))
            if cpu.insns is not None:
                vcpu.set_insns(cpu.insns)
    except VmmsimError:
        machine.poison("its CPUs could not be set back when a snapshot was refused")
        for vcpu, before, insns in done:
            vcpu.set_state(before)
            vcpu.set_insns(insns or 0)
        machine.poison(None)
        raise
