"""serial.send and serial.expect, over a machine that is a plain function."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.errors import GuestError, HostError, UsageError
from vmmsim.expect import SerialConsole
from vmmsim.streams import BufferSink, QueueSource


class FakeMachine:
    """Prints its script byte by byte while it runs, and ends when there is no more."""

    def __init__(self, script: Iterable[bytes], ending: Exception | None = None) -> None:
        self.script = iter([bytes([byte]) for piece in script for byte in piece])
        self.ending = ending
        self.output = BufferSink()
        self.input = QueueSource()
        self.serial = SerialConsole(self.run_until, self.output, self.input)

    def run_until(self, reached: Callable[[], bool], timeout: float | None) -> None:
        while not reached():
            try:
                self.output.put(next(self.script))
            except StopIteration:
                if self.ending is not None:
                    raise self.ending from None
                return


def test_expect_splits_the_output_around_the_match() -> None:
    machine = FakeMachine([b"boot ok\nlogin: "])
    found = machine.serial.expect(rb"log(i)n: ")

    assert (found.before, found.group(), found.group(1), found.after) == (b"boot ok\n", b"login: ", b"i", b"")


def test_the_guest_runs_no_further_than_the_match() -> None:
    machine = FakeMachine([b"guess: then more"])
    machine.serial.expect(b"guess: ")

    assert machine.output.data == b"guess: "


def test_each_expect_goes_on_behind_the_last_match() -> None:
    machine = FakeMachine([b"> 1\n> 2\n> 3\n"])

    got = [machine.serial.expect(rb"> (\d)\n").group(1) for _ in range(3)]

    assert got == [b"1", b"2", b"3"]


def test_output_that_came_earlier_is_looked_at_without_running() -> None:
    machine = FakeMachine([])
    machine.output.put(b"one two three")

    assert machine.serial.expect_exact(b"one").after == b" two three"
    assert machine.serial.expect_exact(b"three").before == b" two "


def test_expect_is_a_regular_expression_and_expect_exact_is_not() -> None:
    machine = FakeMachine([b"2+2 = 4"])

    assert machine.serial.expect(rb"2.2").group() == b"2+2"
    with pytest.raises(GuestError):
        machine.serial.expect(rb"2+2")
    assert FakeMachine([b"2+2"]).serial.expect_exact(b"2+2").group() == b"2+2"


def test_a_compiled_pattern_keeps_its_flags() -> None:
    machine = FakeMachine([b"READY"])

    assert machine.serial.expect(re.compile(b"ready", re.IGNORECASE)).group() == b"READY"


def test_send_and_sendline_reach_the_guest() -> None:
    machine = FakeMachine([])
    machine.serial.send(b"a")
    machine.serial.sendline(b"bc")
    machine.serial.sendline()
    machine.input.end()

    assert bytes(iter(machine.input.wait, None)) == b"abc\n\n"


def test_a_machine_that_stops_first_is_an_error_that_shows_its_output() -> None:
    machine = FakeMachine([b"panic: no root"])
    with pytest.raises(GuestError) as caught:
        machine.serial.expect(b"login: ")

    message = str(caught.value)
    assert "b'login: '" in message
    assert "panic: no root" in message
    assert "the machine has stopped" in message


def test_the_machines_own_error_is_told_and_chained() -> None:
    machine = FakeMachine([b"x"], GuestError("the machine ended first: triple fault", hint="look at rip"))
    with pytest.raises(GuestError, match=r"triple fault.*look at rip") as caught:
        machine.serial.expect(b"login")

    assert caught.value.__cause__ is machine.ending


def test_a_host_error_is_not_blamed_on_the_guest() -> None:
    machine = FakeMachine([], HostError("no memory"))
    with pytest.raises(HostError, match="no memory"):
        machine.serial.expect(b"login")


def test_a_match_that_came_with_the_end_counts() -> None:
    machine = FakeMachine([b"bye"], GuestError("ended"))

    assert machine.serial.expect(b"bye").group() == b"bye"


def test_time_out_says_how_long_it_waited() -> None:
    def run_until(reached: Callable[[], bool], timeout: float | None) -> None:
        assert timeout is not None
        time.sleep(timeout)

    serial = SerialConsole(run_until, BufferSink(), QueueSource())
    with pytest.raises(GuestError, match=r"0\.05 s have passed; no output"):
        serial.expect(b"login", timeout=0.05)


def test_only_the_last_300_bytes_are_shown() -> None:
    machine = FakeMachine([b"A" * 1000 + b"B" * 300])
    with pytest.raises(GuestError) as caught:
        machine.serial.expect(b"login")

    assert "B" * 300 in caught.value.message
    assert "A" * 10 not in caught.value.message


@pytest.mark.parametrize("pattern", [b"(", "text", re.compile("text"), 7])
def test_patterns_that_are_none_are_the_callers_error(pattern: object) -> None:
    with pytest.raises(UsageError):
        FakeMachine([b"x"]).serial.expect(pattern)  # type: ignore[arg-type]


def test_a_group_without_a_match_is_an_error_with_words() -> None:
    found = FakeMachine([b"b"]).serial.expect(b"(a)|b")
    with pytest.raises(UsageError, match="took no part"):
        found.group(1)


@given(st.binary(max_size=60), st.binary(min_size=1, max_size=3))
def test_expect_exact_finds_what_bytes_find_finds(text: bytes, wanted: bytes) -> None:
    machine = FakeMachine([text])
    at = text.find(wanted)
    if at < 0:
        with pytest.raises(GuestError):
            machine.serial.expect_exact(wanted)
    else:
        found = machine.serial.expect_exact(wanted)
        assert found.before == text[:at]
        assert machine.output.data == text[: at + len(wanted)]
