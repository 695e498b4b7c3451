"""Restoring is whole or not at all: what is refused has changed nothing, what fails can be restored again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from vmmsim import Machine
from vmmsim.backends import open_backend
from vmmsim.budget import exits, seconds
from vmmsim.cpu.state import CpuState, Segment
from vmmsim.diff import TraceStep
from vmmsim.errors import HostError, NotSupported, UsageError
from vmmsim.exits import Exit, GuestExit, PortRead
from vmmsim.loaders import load_bytes
from vmmsim.snapshot import cow
from vmmsim.snapshot.cow import can_map
from vmmsim.snapshot.values import CpuSnapshot, Snapshot
from vmmsim.testing.slow import time_limit

#: l: in al, 0x80; add ebx, eax; mov [0x5000], ebx; out 0x80, al; loop l; mov al, 3; out 0xf4, al
GUEST = bytes.fromhex("e48001c3891d00500000e680e2f2b003e6f4")
ROUNDS = 20


def machine_of(backend: Any, mode: str = "p32", **arguments: Any) -> Machine:
    arguments = {"model": "pc", "memory": 1 << 20, "clock": "exits", "seed": 5} | arguments
    machine = Machine(backend=backend, **arguments)
    machine.load(load_bytes(GUEST, name="test", load_address=0x7C00, mode=mode))
    registers = machine.vcpu.registers()
    registers.rcx, registers.rax, registers.rbx = ROUNDS, 0, 0
    machine.vcpu.set_registers(registers)
    return machine


def all_of(machine: Machine) -> dict[str, Any]:
    """All that a machine is."""
    return {
        "cpus": [(item.vcpu.state(), item.status, item.nmi, item.vcpu.insns) for item in machine.processors],
        "current": machine.processors.current,
        "memory": machine.memory.digest(),
        "devices": machine.device_states(),
        "made": {name: id(device) for name, device in machine.devices.items()},
        "ports": [(m.name, id(m.device)) for m in machine.ports.mappings],
        "mmio": [(m.name, id(m.device)) for m in machine.mmio.mappings],
        "clock": (id(machine.clock), machine.clock.now(), machine.clock.deadline),
        "random": machine.random.getstate(),
        "generation": machine.generation,
    }


def the_rest(machine: Machine) -> tuple[list[TraceStep], Exit, bytes]:
    trace: list[TraceStep] = []
    forget = machine.observe(lambda *access: trace.append(TraceStep.of_access(*access)))
    end = machine.run(budget=seconds(time_limit(20)))
    forget()
    return trace, end, machine.memory.read(0x5000, 4)


def altered(snapshot: Snapshot, change: Callable[[CpuState], None], number: int = 0) -> Snapshot:
    cpus = list(snapshot.cpus)
    state = cpus[number].state.copy()
    change(state)
    cpus[number] = CpuSnapshot(state=state, run_state=cpus[number].run_state, insns=cpus[number].insns)
    return msgspec.structs.replace(snapshot, cpus=tuple(cpus))


def with_device(snapshot: Snapshot, name: str, **fields: Any) -> Snapshot:
    state = msgspec.structs.replace(snapshot.devices[name], **fields)
    return msgspec.structs.replace(snapshot, devices={**snapshot.devices, name: state})


def avx(state: CpuState) -> None:
    state.xcr0 = 7
    state.cr4 |= 1 << 18
    state.fpu.ymmh = [n + 1 for n in range(16)]


def paging(state: CpuState) -> None:
    state.cr3 = 0x20000
    state.cr0 |= 1 << 31


def v86(state: CpuState) -> None:
    state.rflags |= 1 << 17
    state.cs = Segment(0, 0, 0xFFFF, 0xFB)
    state.ds = state.es = state.fs = state.gs = state.ss = Segment(0, 0, 0xFFFF, 0xF3)


def breakpoint_armed(state: CpuState) -> None:
    state.dr[0], state.dr7 = 0x7C02, 0x402


def impossible(state: CpuState) -> None:
    state.cr8 = 16


#: What is wrong with a snapshot: its alteration, the error, and what it names.
WRONG: dict[str, tuple[Callable[[Snapshot], Snapshot], type[Exception], str]] = {
    "AVX": (lambda s: altered(s, avx), NotSupported, "AVX"),
    "32-bit paging": (lambda s: altered(s, paging), NotSupported, "paging"),
    "virtual-8086 mode": (lambda s: altered(s, v86), NotSupported, "virtual-8086"),
    "breakpoints": (lambda s: altered(s, breakpoint_armed), NotSupported, "breakpoints"),
    "no state of a CPU": (lambda s: altered(s, impossible), UsageError, "cr8"),
    "a device's state": (lambda s: with_device(s, "fw-cfg", offset=1 << 40), UsageError, "fw_cfg"),
    # No file has one of a wrong shape: its type is checked. What it comes to is the device's own error.
    "a state of a wrong shape": (lambda s: with_device(s, "pit", counters=()), IndexError, "index"),
    "other devices": (
        lambda s: msgspec.structs.replace(s, devices={**s.devices, "dial": 0}), UsageError, "'dial'",
    ),
    "other memory": (
        lambda s: msgspec.structs.replace(s, config=msgspec.structs.replace(s.config, memory=2 << 20)),
        UsageError, "memory=",
    ),
    "another clock": (
        lambda s: msgspec.structs.replace(s, config=msgspec.structs.replace(s.config, clock="host")),
        UsageError, "clock=",
    ),
}  # fmt: skip


def holds(machine: Machine, what: str) -> bool:
    """Whether the CPU can be in the state: no error is to be expected."""
    capabilities = machine.backend.capabilities
    if what == "AVX":
        return bool(capabilities.xcr0 & 4)
    if what == "breakpoints":
        return machine.backend.name != "unicorn"
    if what == "32-bit paging":
        return what not in capabilities.refuses
    if what == "virtual-8086 mode":
        return machine.backend.name != "unicorn" and what not in capabilities.refuses
    return False


@pytest.mark.parametrize("what", WRONG)
def test_what_is_refused_has_changed_nothing(backend_name: str, what: str) -> None:
    change, error, names = WRONG[what]
    with machine_of(backend_name) as machine, machine_of(backend_name) as other:
        wrong = change(machine.snapshot())
        for each in (machine, other):
            each.run(budget=exits(9))
        if holds(machine, what):
            machine.restore(wrong)
            assert machine.vcpu.state().diff(wrong.cpus[0].state) == []
            return
        before = all_of(machine)
        with pytest.raises(error, match=names):
            machine.restore(wrong)
        assert all_of(machine) == before
        assert the_rest(machine) == the_rest(other)


@pytest.mark.parametrize("what", WRONG)
def test_what_is_refused_leaves_an_access_half_done(backend_name: str, what: str) -> None:
    """The read that waits for its answer gets it, and the guest goes on with it."""
    change, error, names = WRONG[what]
    with machine_of(backend_name) as machine:
        wrong = change(machine.snapshot())
        if holds(machine, what):
            pytest.skip("this CPU can hold it")
        answers = []
        for number, exit in enumerate(machine.exits()):
            if isinstance(exit, PortRead):
                if len(answers) == 3:
                    with pytest.raises(error, match=names):
                        machine.restore(wrong)
                answers.append(number & 0x7F)
                exit.reply(number & 0x7F)
        assert exit == GuestExit(3)
        assert len(answers) == ROUNDS
        assert machine.memory.read_int(0x5000, 4) == sum(answers)


@pytest.mark.parametrize("change", [v86, impossible])
def test_when_the_second_cpu_is_refused_the_first_is_set_back(backend_name: str, change: Any) -> None:
    with machine_of(backend_name, cpus=2) as machine, machine_of(backend_name, cpus=2) as other:
        snapshot = altered(machine.snapshot(), lambda s: setattr(s, "rbx", 0x1234567))
        wrong = altered(snapshot, lambda s: (setattr(s, "cr0", s.cr0 | 1), change(s)), 1)  # type: ignore[func-returns-value]
        for each in (machine, other):
            each.run(budget=exits(9))
        if change is v86 and holds(machine, "virtual-8086 mode"):
            pytest.skip("this CPU can hold it")
        before = all_of(machine)
        with pytest.raises((NotSupported, UsageError)):
            machine.restore(wrong)
        assert all_of(machine) == before
        assert the_rest(machine) == the_rest(other)


def failing(monkeypatch: pytest.MonkeyPatch, machine: Machine, numbers: set[int]) -> None:
    """`set_state` fails, on the calls of these numbers, counted over all vCPUs."""
    machine._proven = None  # the snapshot is new to it: its CPUs are set by set_state
    calls = 0
    for item in machine.processors:

        def set_state(state: CpuState, real: Any = item.vcpu.set_state) -> None:
            nonlocal calls
            calls += 1
            if calls in numbers:
                raise HostError("the host has failed")
            real(state)

        monkeypatch.setattr(item.vcpu, "set_state", set_state)


def test_a_cpu_that_fails_is_set_back(backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with machine_of(backend_name, cpus=2) as machine, machine_of(backend_name, cpus=2) as other:
        snapshot = machine.snapshot()
        for each in (machine, other):
            each.run(budget=exits(9))
        before = all_of(machine)
        failing(monkeypatch, machine, {2})
        with pytest.raises(HostError, match="has failed"):
            machine.restore(snapshot)
        assert all_of(machine) == before
        assert the_rest(machine) == the_rest(other)


def test_cpus_that_cannot_be_set_back_poison_the_machine(
    backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine_of(backend_name, cpus=2) as machine:
        snapshot = machine.snapshot()
        expected = the_rest(machine)
        with monkeypatch.context() as patch:
            failing(patch, machine, {2, 3})
            with pytest.raises(HostError, match="has failed"):
                machine.restore(snapshot)
        poisoned(machine)
        machine.restore(snapshot)
        assert the_rest(machine) == expected


def poisoned(machine: Machine) -> None:
    """It does nothing, and says why."""
    for act in (machine.run, machine.step_exit, machine.snapshot, lambda: next(machine.exits())):
        with pytest.raises(UsageError, match="the machine is undefined") as caught:
            act()
        assert "restore a snapshot" in caught.value.hint


@pytest.mark.skipif(not can_map(), reason="pages are copied here")
@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("number", [1, 2])
def test_a_mapping_that_fails_poisons_the_machine_until_it_is_restored(
    backend_name: str, number: int, copy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine_of(backend_name) as machine:
        snapshot, digest = machine.snapshot(), machine.memory.digest()
        machine.memory.write(0x20000, bytes(range(256)) * 16 * 100)
        changed, changed_digest = machine.snapshot(), machine.memory.digest()
        expected = the_rest(machine)
        calls = 0

        def fails(*arguments: Any, real: Any = cow._map) -> None:
            nonlocal calls
            calls += 1
            if calls == number:
                raise HostError("the host cannot map")
            real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(cow, "_map", fails)
            with pytest.raises(HostError, match="cannot map"):
                machine.restore(snapshot)
        poisoned(machine)
        machine.restore(changed, copy=copy)
        assert machine.memory.digest() == changed_digest
        assert the_rest(machine) == expected
        machine.memory.write(0x9000, b"\1")
        machine.memory.write(0x9000, b"\0")
        again = machine.snapshot()  # of what was put back, whatever lies under it
        now = machine.memory.digest()
        machine.restore(snapshot)
        assert machine.memory.digest() == digest
        machine.restore(again)
        assert machine.memory.digest() == now


def test_a_new_machine_that_cannot_be_restored_is_closed(backend_name: str) -> None:
    with machine_of(backend_name) as machine:
        wrong = altered(machine.snapshot(), impossible)
    backend = open_backend(backend_name)[0]
    made = []
    real = backend.create_vm
    backend.create_vm = lambda *a, **k: made.append(real(*a, **k)) or made[-1]  # type: ignore
    with pytest.raises(UsageError, match="cr8"):
        Machine.from_snapshot(wrong, backend=backend)
    with pytest.raises(UsageError, match="closed"):
        made[-1].create_vcpu()


#: mov eax, 0xfff; mov dr0, eax; mov eax, 0x402; mov dr7, eax; out 0x80, al: armed, far away from the rest.
ARMS = bytes.fromhex("b8ff0f00000f23c0b8020400000f23f8e680") + GUEST


@pytest.mark.unicorn
@pytest.mark.parametrize("engine", ["native", "portable"])
def test_breakpoints_that_the_guest_has_armed_are_kept_or_it_is_said(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMMSIM_UNICORN", engine)
    with Machine(backend="unicorn", model="pc", memory=1 << 20, clock="exits") as machine:
        machine.load(load_bytes(ARMS, name="test", load_address=0x7C00, mode="p32"))
        registers = machine.vcpu.registers()
        registers.rcx = ROUNDS
        machine.vcpu.set_registers(registers)
        before = machine.snapshot()
        machine.run(budget=exits(3))
        armed = machine.snapshot()
        machine.run(budget=exits(3))
        machine.restore(armed)  # the same are armed
        assert machine.vcpu.state() == armed.cpus[0].state
        state = all_of(machine)
        with pytest.raises(NotSupported, match=r"the guest has armed breakpoints \(DR7 0x402\)"):
            machine.restore(before)
        assert all_of(machine) == state
        with pytest.raises(NotSupported, match=r"the state has armed breakpoints \(DR7 0x402\)"):
            Machine.from_snapshot(armed, backend="unicorn")
        assert machine.run(budget=seconds(time_limit(20))) == GuestExit(3)
