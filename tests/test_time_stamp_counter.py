"""RDTSC reads the machine's clock, in every machine, where it is not KVM's own (the divergence `rdtsc`)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from vmmsim import Machine
from vmmsim.backends import open_backend
from vmmsim.diff import divergence
from vmmsim.exits import Halt, PortWrite
from vmmsim.loaders import load_bytes
from vmmsim.record import Recorder, RecordingSource, load, replay, save
from vmmsim.streams import BytesSource

#: rdtsc; out 0x80, al; twice; hlt. The first exit tells what was counted.
PROGRAM = bytes.fromhex("0f31 e680 0f31 e680 f4")
#: mov cx, 1000; loop; rdtsc; hlt
LATER = bytes.fromhex("b9e803 e2fe 0f31 f4")
MODELS = pytest.mark.parametrize("model", ["bare", "pc"])


def machine(backend: str, code: bytes, **config: Any) -> Machine:
    if not divergence("rdtsc").applies_to(open_backend(backend)[0].provenance, "unicorn"):
        pytest.skip("its counter is the host's")
    made = Machine(backend=backend, **config)
    made.load(load_bytes(code, mode="real"))
    return made


def counter(of: Machine) -> int:
    registers = of.vcpu.registers()
    return (registers.rdx & 0xFFFFFFFF) << 32 | registers.rax & 0xFFFFFFFF


@MODELS
def test_with_exits_it_goes_up_at_each_and_at_itself(backend_name: str, model: str) -> None:
    with machine(backend_name, PROGRAM, model=model, clock="exits") as made:
        assert made.run() == Halt()
        assert counter(made) == 3000  # RDTSC, OUT and RDTSC: of a microsecond each, at 1 GHz
        assert made.clock.now() == 5000  # OUT and HLT behind it


@MODELS
def test_with_exits_a_halt_is_one_on_every_cpu(backend_name: str, model: str) -> None:
    """Of a machine that does without RDTSC, on KVM, too."""
    with Machine(backend=backend_name, model=model, clock="exits") as made:
        made.load(load_bytes(bytes.fromhex("e680 f4"), mode="real"))
        assert made.run() == Halt()
        assert made.clock.now() == 2000


@MODELS
def test_with_insns_it_is_the_instructions(backend_name: str, model: str) -> None:
    """1000 loops and RDTSC itself, which is begun, at 50 million a second."""
    with machine(backend_name, LATER, model=model, clock="insns") as made:
        assert made.run() == Halt()
        assert counter(made) == 1002 * 20


@MODELS
def test_with_host_it_is_the_machines_time(backend_name: str, model: str) -> None:
    """Nanoseconds since the machine was made; restored, it goes on from where it was."""
    began = time.monotonic_ns()
    with machine(backend_name, bytes.fromhex("0f31 f4 0f31 f4"), model=model, clock="host") as made:
        snapshot = made.snapshot()
        time.sleep(0.2)
        assert made.run() == Halt()
        assert 200_000_000 <= counter(made) <= time.monotonic_ns() - began
        restored = time.monotonic_ns()
        made.restore(snapshot)
        assert made.run() == Halt()
        assert counter(made) <= 200_000_000 + time.monotonic_ns() - restored
        assert counter(made) < made.clock.now()


@MODELS
@pytest.mark.parametrize("clock", ["exits", "insns"])
def test_it_goes_back_with_a_restore(backend_name: str, model: str, clock: str, tmp_path: Path) -> None:
    with machine(backend_name, PROGRAM, model=model, clock=clock) as made:
        exit = made.step_exit()
        assert isinstance(exit, PortWrite)
        made.answer(exit)
        snapshot = made.snapshot()
        assert made.run() == Halt()
        first = counter(made)
        made.restore(snapshot)
        assert made.run() == Halt()
        assert counter(made) == first
    with machine(backend_name, PROGRAM, model=model, clock=clock) as again:
        again.restore(snapshot)
        assert again.run() == Halt()
        assert counter(again) == first


@MODELS
@pytest.mark.parametrize("clock", ["exits", "insns"])
def test_a_recording_stays_on_its_rails(backend_name: str, model: str, clock: str, tmp_path: Path) -> None:
    source = RecordingSource(BytesSource(b""))
    with machine(backend_name, PROGRAM, model=model, clock=clock, source=source) as made:
        recorder = Recorder(made, guest="rdtsc")
        save(recorder.finish(made.run()), tmp_path / "run.rec")
    result = replay(load(tmp_path / "run.rec"), backend=backend_name)
    assert result.derailed is None
    assert result.end == Halt()
