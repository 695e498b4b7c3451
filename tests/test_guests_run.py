"""Every guest does what its guest.toml says, on each backend, in both ways of running."""

from __future__ import annotations

import pytest

from vmmsim import Machine, guests
from vmmsim.budget import seconds
from vmmsim.exits import Access, Exit
from vmmsim.streams import BytesSource
from vmmsim.testing.slow import time_limit

#: A guest here takes a fraction of a second on the slowest backend.
LIMIT = seconds(time_limit(30))


def machine_for(guest: guests.Guest, backend: str, text: bytes | None = None, seed: int = 1) -> Machine:
    source = BytesSource(guest.input if text is None else text)
    return Machine.for_guest(guest.name, backend=backend, source=source, seed=seed)


def check(guest: guests.Guest, machine: Machine, end: Exit, accesses: int) -> None:
    expected = guest.manifest.expected
    if machine.backend.provenance in guest.manifest.refused:
        assert end.kind == "refused", guest.manifest.refused[machine.backend.provenance]
        return
    assert end.kind == expected.exit, end.describe()
    assert getattr(end, "code", None) == expected.code
    if expected.output is not None:
        assert machine.output.data == expected.output.encode()
    registers = machine.cpu.state()
    found = {name: hex(getattr(registers, name)) for name in expected.registers}
    assert found == {name: hex(value) for name, value in expected.registers.items()}
    for area in expected.memory:
        assert machine.memory.read(area.address, len(area.data)).hex() == area.data.hex(), area.what
    assert accesses <= expected.max_exits


@pytest.mark.parametrize("name", guests.names())
def test_guest_with_devices_inline(name: str, backend_name: str) -> None:
    guest = guests.load(name)
    with machine_for(guest, backend_name) as machine:
        seen = []
        machine.observe(lambda *access: seen.append(access))
        end = machine.run(budget=LIMIT)
        check(guest, machine, end, len(seen))


@pytest.mark.parametrize("name", guests.names())
def test_guest_one_exit_at_a_time(name: str, backend_name: str) -> None:
    guest = guests.load(name)
    with machine_for(guest, backend_name) as machine:
        accesses = 0
        for end in machine.exits():
            accesses += isinstance(end, Access)
            assert accesses <= guest.manifest.expected.max_exits
        check(guest, machine, end, accesses)


def play(backend: str, text: bytes, seed: int) -> list[str]:
    with machine_for(guests.load("guess"), backend, text, seed) as machine:
        assert machine.run(budget=LIMIT).kind == "halt"
        return machine.output.data.decode("ascii").splitlines()


def test_guess_is_won_by_going_where_it_says(backend_name: str) -> None:
    """Halving the range always wins in five tries; each seed is another letter."""
    for seed in range(3):
        low, high, guessed = ord("a"), ord("z"), ""
        while True:
            middle = (low + high) // 2
            guessed += chr(middle)
            lines = play(backend_name, guessed.encode(), seed)
            answer = next(text for text in reversed(lines) if text.startswith(f"Your guess: {guessed[-1]}"))
            if answer.endswith("You won!"):
                break
            low, high = (middle + 1, high) if "too low" in answer else (low, middle - 1)
        assert len(guessed) <= 5
        assert lines[-1] == "Score: 1 won, 0 lost"


def test_guess_is_lost_after_five_tries_and_goes_on(backend_name: str) -> None:
    assert play(backend_name, b"", 1)[-1] == "Score: 0 won, 0 lost", "the end of the input ends the game"
    lines = play(backend_name, b"\nq\r\nq q 5 Q q q.ignored", 1)
    assert sum("Your guess: 5 is no letter" in line for line in lines) == 1
    assert any(line.startswith("Your guess: q - You lost, it was ") for line in lines)
    assert lines[-1] == "Score: 0 won, 1 lost"


def test_echo_ends_at_the_end_of_its_input(backend_name: str) -> None:
    with machine_for(guests.load("echo"), backend_name, b"no newline") as machine:
        assert machine.run(budget=LIMIT).kind == "halt"
        assert machine.output.data == b"no newline"
