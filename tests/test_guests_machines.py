"""The machine that a guest's manifest asks for: its model, its clock, its vCPUs; options win."""

from __future__ import annotations

import pytest
from cli_tools import vmmsim

from vmmsim import Machine, guests
from vmmsim.budget import seconds
from vmmsim.errors import UsageError
from vmmsim.exits import GuestExit, Halt
from vmmsim.testing.slow import time_limit

TIMERS = ["timer-real", "timer-long", "timer-user"]


def test_a_guest_gets_the_machine_of_its_manifest() -> None:
    assert guests.load("timer-real").machine == {
        "model": "pc", "clock": "exits", "memory": 1 << 20, "extra_devices": ()
    }  # fmt: skip
    assert guests.load("smp-ping-pong").machine["cpus"] == 2
    assert guests.load("widths").machine == {"memory": 1 << 20, "extra_devices": ("scratch",)}


@pytest.mark.unicorn
def test_what_the_caller_says_wins_over_the_manifest() -> None:
    with Machine.for_guest("timer-real", backend="unicorn") as machine:
        assert (machine.config.model, machine.config.clock, machine.config.memory) == ("pc", "exits", 1 << 20)
    with Machine.for_guest("timer-real", backend="unicorn", clock="host", model="bare") as machine:
        assert (machine.config.model, machine.config.clock) == ("bare", "host")
        assert machine.run(budget=seconds(time_limit(10))) == Halt()


@pytest.mark.unicorn
def test_a_guest_of_a_pc_is_not_loaded_into_a_bare_machine() -> None:
    with (
        Machine(backend="unicorn") as machine,
        pytest.raises(UsageError, match="needs the device pic") as error,
    ):
        machine.load_guest("timer-real")
    assert "for_guest" in error.value.hint


@pytest.mark.parametrize("name", TIMERS)
def test_timers_tick_in_real_time(backend_name: str, name: str) -> None:
    """At 1 or 10 kHz; a tick that the host is late for is made up, or lost, but never doubled."""
    with Machine.for_guest(name, backend=backend_name, clock="host") as machine:
        assert machine.run(budget=seconds(time_limit(20))) == GuestExit(0)
        assert machine.output.data.decode() == guests.load(name).manifest.expected.output


@pytest.mark.unicorn
def test_a_guest_that_polls_a_port_gets_its_ticks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when a slice of its instructions is over, which took 120,000 reads on the portable engine."""
    monkeypatch.setenv("VMMSIM_UNICORN", "portable")
    with Machine.for_guest("timer-user", backend="unicorn", clock="host") as machine:
        assert machine.run(budget=seconds(time_limit(20))) == GuestExit(0)
        assert machine.counts()["port_read"] < 40_000


@pytest.mark.unicorn
@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("name", ["timer-real", "timer-long"])
def test_timers_tick_in_counted_time(name: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMSIM_UNICORN", engine)
    counts = set()
    for _ in range(2):
        with Machine.for_guest(name, backend="unicorn", clock="insns") as machine:
            assert machine.run(budget=seconds(time_limit(20))) == GuestExit(0)
            assert machine.output.data.decode() == guests.load(name).manifest.expected.output
            counts.add(machine.vcpu.insns)
    assert len(counts) == 1


def test_the_serial_guest_talks(backend_name: str) -> None:
    with Machine.for_guest("serial-echo", backend=backend_name) as machine:
        machine.serial.send(b"Hello\n")
        machine.serial.expect(b"Hello\n", timeout=time_limit(10))
        machine.serial.send(b"again, q")
        assert machine.run(budget=seconds(time_limit(20))) == GuestExit(0)
        assert machine.output.data == b"Hello\nagain, q"


@pytest.mark.unicorn
def test_run_builds_the_guests_machine_and_options_win() -> None:
    run = vmmsim("run", "-q", "-b", "unicorn", "timer-long")
    assert (run.returncode, run.stdout, run.stderr) == (0, b"..........\n", b"")
    run = vmmsim("run", "-q", "-b", "unicorn", "timer-real", "--machine", "bare", "--timeout", "20")
    assert (run.returncode, run.stdout) == (0, b"")  # nothing ticks there: it halts for good


@pytest.mark.unicorn
def test_exits_lists_each_halt_that_an_interrupt_ends() -> None:
    run = vmmsim("exits", "-q", "-b", "unicorn", "timer-real")
    assert run.returncode == 0
    lines = run.stdout.decode().splitlines()
    assert sum(line.split()[1] == "halt" for line in lines[1:]) == 10
    assert b"40 exits: port_write 30, halt 10" in run.stderr
