"""The talk's devices, debug exit and console, scratch: what a guest sees of each register."""

from __future__ import annotations

import random
import threading
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.bus import Bus, Device
from vmmsim.devices.char_in import CharIn, CharInState
from vmmsim.devices.char_out import CharOut, CharOutState
from vmmsim.devices.debug_console import DebugConsole, DebugConsoleState
from vmmsim.devices.debug_exit import DebugExit, DebugExitState
from vmmsim.devices.random_letter import RandomLetter, RandomLetterState
from vmmsim.devices.scratch import Scratch, ScratchState
from vmmsim.errors import UsageError
from vmmsim.streams import BufferSink, BytesSource, NullSink, QueueSource
from vmmsim.testing.slow import time_limit


def ignore(code: int) -> None:
    pass


@pytest.mark.parametrize(
    "device",
    [
        CharIn(BytesSource()),
        CharOut(NullSink()),
        DebugConsole(NullSink()),
        DebugExit(ignore),
        RandomLetter(random.Random(1)),
        Scratch(16),
    ],
    ids=lambda device: type(device).__name__,
)
def test_every_device_can_be_put_on_a_bus_and_written_down(device: Device) -> None:
    assert isinstance(device, Device)
    Bus("port", 0x10000).attach(0x100, device.length, device)
    state = device.state()

    assert msgspec.json.decode(msgspec.json.encode(state), type=type(state)) == state


def test_char_in_answers_the_input_and_then_eot() -> None:
    device = CharIn(BytesSource(b"hi"))

    assert [device.read(0, 1) for _ in range(4)] == [ord("h"), ord("i"), 0x04, 0x04]


def test_char_in_waits_for_a_key() -> None:
    keys = QueueSource()
    device = CharIn(keys)
    threading.Timer(0.05, keys.send, (b"k",)).start()

    assert device.read(0, 1) == ord("k")


def test_char_in_gives_up_when_interrupted_and_answers_nul() -> None:
    keys = QueueSource()
    device = CharIn(keys)
    threading.Timer(0.05, keys.interrupt).start()
    began = time.monotonic()

    assert device.read(0, 1) == 0
    assert time.monotonic() - began < time_limit(2)
    keys.send(b"later")
    assert device.read(0, 1) == ord("l")


def test_char_in_ignores_writes_and_keeps_its_place_in_its_source() -> None:
    source = BytesSource(b"ab")
    device = CharIn(source)
    device.write(0, 1, 0xFF)
    device.read(0, 1)

    assert device.state() == CharInState()
    assert CharIn.from_state(device.state(), source=source).read(0, 1) == ord("b")


def test_char_out_prints_the_low_byte() -> None:
    sink = BufferSink()
    device = CharOut.from_state(CharOutState(), sink=sink)
    device.write(0, 1, ord("a"))
    device.write(0, 1, 0x100 | ord("b"))

    assert sink.data == b"ab"
    assert device.read(0, 1) == 0


def test_debug_console_prints_and_says_that_it_is_there() -> None:
    sink = BufferSink()
    device = DebugConsole.from_state(DebugConsoleState(), sink=sink)
    device.write(0, 1, ord("!"))

    assert sink.data == b"!"
    assert device.read(0, 1) == 0xE9


def test_random_letters_are_lower_case_and_all_of_them_come() -> None:
    device = RandomLetter(random.Random(7))
    device.write(0, 1, 0)

    assert {device.read(0, 1) for _ in range(2000)} == set(b"abcdefghijklmnopqrstuvwxyz")


def test_random_letters_repeat_with_the_seed() -> None:
    first = RandomLetter(random.Random(2020))
    second = RandomLetter.from_state(RandomLetterState(), random=random.Random(2020))

    assert [first.read(0, 1) for _ in range(50)] == [second.read(0, 1) for _ in range(50)]


@pytest.mark.parametrize(
    ("compat", "value", "code"),
    [
        (False, 0, 0),
        (False, 119, 119),
        (False, 0xFF, 0xFF),
        (False, 0x12345607, 7),
        (True, 0, 1),
        (True, 0x10, 33),
        (True, 0x80, 1),
    ],
)
def test_debug_exit_hands_the_code_over(compat: bool, value: int, code: int) -> None:
    codes: list[int] = []
    device = DebugExit(codes.append, compat)
    device.write(0, 4, value)

    assert codes == [code]
    assert device.state() == DebugExitState(code)
    assert device.read(0, 4) == 0


@pytest.mark.parametrize("size", [1, 2, 4])
def test_debug_exit_takes_an_out_of_any_width_as_one_access(size: int) -> None:
    codes: list[int] = []
    bus = Bus("port", 0x10000)
    bus.attach(0xF4, DebugExit.length, DebugExit(codes.append))
    bus.write(0xF4, size, 3)

    assert codes == [3]
    assert bus.unclaimed_writes == 0


def test_a_restored_debug_exit_does_not_exit_again() -> None:
    codes: list[int] = []
    device = DebugExit.from_state(DebugExitState(5), on_exit=codes.append)

    assert codes == []
    assert device.state() == DebugExitState(5)


@pytest.mark.parametrize("code", [-1, 256])
def test_a_debug_exit_code_that_is_no_byte_is_refused(code: int) -> None:
    with pytest.raises(UsageError, match="no byte"):
        DebugExit.from_state(DebugExitState(code), on_exit=ignore)


ACCESSES = st.lists(
    st.tuples(st.integers(0, 39), st.sampled_from([1, 2, 3, 4, 5, 8]), st.integers(0, (1 << 64) - 1)),
    max_size=20,
)


@given(ACCESSES)
def test_scratch_behaves_as_memory_through_the_bus(accesses: list[tuple[int, int, int]]) -> None:
    bus = Bus("MMIO", 1 << 32)
    device = Scratch(40)
    bus.attach(0x1000, device.length, device)
    model = bytearray(48)  # beyond the device nobody answers
    for offset, size, value in accesses:
        value &= (1 << 8 * size) - 1
        bus.write(0x1000 + offset, size, value)
        model[offset : offset + size] = value.to_bytes(size, "little")
        model[40:] = b"\xff" * 8
        assert bus.read(0x1000 + offset, size) == int.from_bytes(model[offset : offset + size], "little")

    assert device.state().data == bytes(model[:40])
    assert Scratch.from_state(device.state()).state() == device.state()


@pytest.mark.parametrize(("offset", "size"), [(16, 1), (15, 2), (9, 8), (-1, 1)])
def test_scratch_does_not_grow(offset: int, size: int) -> None:
    device = Scratch(16)
    with pytest.raises(UsageError, match="scratch"):
        device.write(offset, size, 1)
    with pytest.raises(UsageError, match="scratch"):
        device.read(offset, size)

    assert device.state() == ScratchState(bytes(16))


@pytest.mark.parametrize("size", [0, -1, 1 << 25])
def test_scratch_refuses_a_size_that_makes_no_sense(size: int) -> None:
    with pytest.raises(UsageError, match="scratch"):
        Scratch(size)


def test_scratch_refuses_the_state_of_another_size() -> None:
    with pytest.raises(UsageError, match="8 bytes"):
        Scratch(16, state=ScratchState(bytes(8)))
