"""What `vmmsim step` can do with a machine, without a screen: on both CPUs."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from step_tools import READ_TWICE, code, guest

from vmmsim import Machine
from vmmsim.errors import NotSupported, UsageError
from vmmsim.exits import Access, Halt, MmioRead, MmioWrite, PortWrite
from vmmsim.tui.points import Point, parse_point
from vmmsim.tui.stepper import Stepper

pytestmark = pytest.mark.timeout(60)

#: mov al, [0x1000]; mov [0x1020], al; hlt
ECHO_ONE = bytes.fromhex("a00010 a22010 f4")
#: A loop that stores a counter in RAM at 0x500: mov byte [0x500], 3; dec byte [0x500]; jnz $-5; hlt
COUNT_DOWN = bytes.fromhex("c606000503 fe0e0005 75fa f4")


def printed(stepper: Stepper) -> bytes:
    return bytes(stepper.console.data)


# -- the lesson


def test_a_student_who_answers_the_dice_wins_the_game(backend_name: str) -> None:
    with guest("guess", backend_name, seed=1) as stepper:
        stepper.next_exit()
        assert stepper.records.last is not None
        assert (stepper.records.last.device, type(stepper.pending)) == ("random-letter", MmioRead)
        stepper.answer(ord("k"))
        assert stepper.state().rbx & 0xFF == ord("k")

        assert "waits for a character" in stepper.go()
        stepper.keyboard.send(b"k")  # type: ignore[union-attr]
        stepper.go()

        assert b"k - You won!" in printed(stepper)


def test_it_makes_the_exits_of_the_exits_verb_with_their_instructions(backend_name: str) -> None:
    with Machine.for_guest("lwn", backend=backend_name) as machine:
        plain = [exit.describe() for exit in machine.exits()]
    with guest("lwn", backend_name) as stepper:
        while stepper.ended is None:
            stepper.next_exit()
        shown = [record.exit.describe() for record in stepper.records]
        insns = [record.insn.text if record.insn else "" for record in stepper.records]

    assert shown == plain
    assert insns == ["out dx, al", "out dx, al", "hlt"]
    assert stepper.verdict() == "the guest has ended: halt (exit code 0)"


def test_running_makes_the_same_records_as_stepping(backend_name: str) -> None:
    def exits(stepper: Stepper) -> list[tuple[int, str, str]]:
        return [(record.number, record.exit.describe(), record.device) for record in stepper.records]

    with guest("timer-real", backend_name) as stepper:
        while stepper.ended is None:
            stepper.next_exit()
        stepped, output = exits(stepper), printed(stepper)
    with guest("timer-real", backend_name) as stepper:
        stepper.go()
        assert (exits(stepper), printed(stepper)) == (stepped, output)


# -- the guest waits


def test_a_run_stops_before_a_read_that_nobody_has_typed_for(backend_name: str) -> None:
    with code(ECHO_ONE, backend_name) as stepper:
        assert "waits for a character" in stepper.go()
        assert stepper.waits
        assert stepper.state().linear_rip == 0x7C00
        with pytest.raises(UsageError, match="waits for a character"):
            stepper.next_exit()
        stepper.keyboard.send(b"x")  # type: ignore[union-attr]
        assert not stepper.waits
        stepper.go()

    assert isinstance(stepper.ended, Halt)
    assert printed(stepper) == b"x"


def test_an_input_that_is_over_is_answered_by_the_device(backend_name: str) -> None:
    with code(ECHO_ONE, backend_name) as stepper:
        stepper.next_exit()
        stepper.keyboard.end()  # type: ignore[union-attr]
        stepper.let()
        assert stepper.state().rax & 0xFF == 0x04  # EOT


def test_a_guest_that_halts_for_its_interrupt_waits_for_what_is_typed(backend_name: str) -> None:
    with guest("serial-echo", backend_name) as stepper:
        said = stepper.go()
        assert "waits for a character" in said, said
        assert stepper.halted
        stepper.keyboard.send(b"hi\nq")  # type: ignore[union-attr]
        assert stepper.go() == "the guest ended with code 0"

    assert printed(stepper) == b"hi\nq"


def test_typed_characters_come_at_the_same_exits_on_the_way_again(backend_name: str) -> None:
    with guest("serial-echo", backend_name) as stepper:
        uart: dict[int, Any] = {}
        stepper.go()
        for typed in (b"a", b"b"):
            stepper.keyboard.send(typed)  # type: ignore[union-attr]
            with contextlib.suppress(UsageError):  # it waits
                while stepper.ended is None:
                    stepper.next_exit()
                    uart[stepper.records.count] = stepper.machine.device_states()["uart"]
        assert printed(stepper) == b"ab"
        for number in reversed(uart):  # back to where b was not typed yet
            stepper.back_to(number)
            assert stepper.machine.device_states()["uart"] == uart[number], number


# -- by hand


@pytest.mark.parametrize("value", [-1, 256, None])
def test_an_answer_that_does_not_fit_changes_nothing(value: int | None, backend_name: str) -> None:
    with code(ECHO_ONE, backend_name) as stepper:
        stepper.next_exit()
        with pytest.raises(UsageError):
            stepper.answer(value)
        assert stepper.pending is not None
        stepper.answer(0x41)
        assert stepper.state().rax & 0xFF == 0x41


def test_a_write_that_is_kept_by_hand_reaches_no_device(backend_name: str) -> None:
    with guest("lwn", backend_name) as stepper:
        stepper.next_exit()
        assert "kept" in stepper.answer()
        stepper.go()
        assert printed(stepper) == b"\n"
        assert [record.by_hand for record in stepper.records] == [True, False, False]
        assert stepper.machine.counts() == {"port_write": 2, "halt": 1}


def test_there_is_nothing_to_answer_between_exits(backend_name: str) -> None:
    with guest("lwn", backend_name) as stepper:
        for answer in (stepper.answer, stepper.let):
            with pytest.raises(UsageError, match="no access waits"):
                answer()


# -- instructions


def test_an_instruction_is_held_at_its_access_and_then_finished(backend_name: str) -> None:
    with code(ECHO_ONE, backend_name) as stepper:
        stepper.keyboard.send(b"A")  # type: ignore[union-attr]
        stepper.step()
        assert isinstance(stepper.pending, MmioRead)
        assert stepper.state().linear_rip == 0x7C00
        stepper.step()
        assert (stepper.pending, stepper.state().linear_rip, stepper.state().rax & 0xFF) == (
            None,
            0x7C03,
            0x41,
        )
        stepper.step()
        assert isinstance(stepper.pending, MmioWrite)
        assert printed(stepper) == b""
        stepper.step()
        assert (stepper.state().linear_rip, printed(stepper)) == (0x7C06, b"A")
        stepper.step()
        assert isinstance(stepper.ended, Halt)


def test_an_instruction_that_reads_and_writes_is_held_at_both(backend_name: str) -> None:
    with code(READ_TWICE, backend_name) as stepper:
        stepper.step()
        assert isinstance(stepper.pending, MmioRead)
        stepper.answer(0x40)
        assert isinstance(stepper.pending, MmioWrite)
        assert stepper.pending.value == 0x41
        assert stepper.records.last is not None
        assert stepper.records.last.within
        stepper.back_exit()
        assert isinstance(stepper.pending, MmioRead)
        stepper.answer(0x10)
        assert isinstance(stepper.pending, MmioWrite)
        assert stepper.pending.value == 0x11

        stepper.let()
        stepper.back_to(2)  # in the middle of the instruction, answered as it was
        assert isinstance(stepper.pending, MmioWrite)
        assert stepper.pending.value == 0x11


def test_instructions_are_counted_back(backend_name: str) -> None:
    with code(ECHO_ONE, backend_name) as stepper:
        stepper.keyboard.send(b"A")  # type: ignore[union-attr]
        places = []
        while stepper.ended is None:
            if stepper.pending is None:
                places.append((stepper.state().linear_rip, stepper.state().rax, printed(stepper)))
            stepper.step()
        for place in reversed(places):
            stepper.back_step()
            assert (stepper.state().linear_rip, stepper.state().rax, printed(stepper)) == place
        assert "beginning" in stepper.back_step()
        assert len(stepper.records) == 0


def test_half_an_instruction_back_is_its_beginning(backend_name: str) -> None:
    with code(READ_TWICE, backend_name) as stepper:
        stepper.next_exit()
        stepper.next_exit()
        assert isinstance(stepper.pending, MmioWrite)
        stepper.back_step()
        assert (stepper.pending, stepper.state().linear_rip, len(stepper.records)) == (None, 0x7C00, 0)


def test_where_the_cpu_has_no_single_step_it_says_why(backend_name: str) -> None:
    with guest("ring3", backend_name) as stepper:
        while stepper.state().cpl != 3:
            stepper.next_exit()
        stepper.let()
        if stepper.machine.backend.capabilities.single_step == "everywhere":
            before = stepper.state().rip
            stepper.step()
            assert stepper.state().rip != before
        else:
            with pytest.raises(NotSupported, match="CPL 3"):
                stepper.step()
            for _ in range(2):  # between exits, and at one
                number, text = stepper.records.count, printed(stepper)
                with pytest.raises(NotSupported, match="CPL 3"):
                    stepper.back_step()
                assert (stepper.records.count, stepper.at_exit) == (number, True)
                assert text.startswith(printed(stepper))
                stepper.next_exit()
        stepper.go()
        assert printed(stepper) == b"Hello from ring 3\n"


def test_a_kvm_that_steps_without_interrupts_says_so_when_it_is_to_go_back(backend_name: str) -> None:
    with guest("timer-real", backend_name) as stepper:
        stepper.go(20)
        if stepper.machine.backend.capabilities.insn_budget:
            rip = stepper.state().linear_rip
            stepper.back_step()
            assert stepper.state().linear_rip != rip
        else:
            with pytest.raises(UsageError, match="take no interrupts"):
                stepper.back_step()
            stepper.back_to(3)  # by exits it goes
            assert stepper.records.count == 3
        stepper.go()
        assert printed(stepper) == b"..........\n"


# -- back


def test_the_exit_before_waits_for_its_answer_again(backend_name: str) -> None:
    with guest("guess", backend_name, seed=1) as stepper:
        stepper.next_exit()
        stepper.answer(ord("a"))
        stepper.next_exit()
        stepper.back_exit()
        assert (stepper.records.count, type(stepper.pending)) == (1, MmioRead)
        stepper.answer(ord("z"))
        stepper.keyboard.send(b"z")  # type: ignore[union-attr]
        stepper.go()
        assert b"z - You won!" in printed(stepper)
        stepper.back_to(0)
        assert (stepper.pending, printed(stepper), stepper.state().linear_rip) == (None, b"", 0x7C00)


def test_answers_by_hand_and_typed_input_come_again_on_the_way(backend_name: str) -> None:
    with guest("guess", backend_name, seed=1) as stepper:
        stepper.next_exit()
        stepper.answer(ord("k"))
        stepper.go()
        stepper.keyboard.send(b"m")  # type: ignore[union-attr]
        stepper.go()
        waiting, text = stepper.records.count, printed(stepper)
        stepper.answer(ord("a"))  # a guess by hand
        stepper.go()
        late, longer = stepper.records.count, printed(stepper)
        assert b"a is too low" in longer

        stepper.back_to(late)
        assert printed(stepper) == longer
        stepper.back_to(waiting)
        assert printed(stepper) == text
        stepper.back_to(waiting - 10)
        stepper.go()  # what was typed is still there
        assert (stepper.records.count, printed(stepper)) == (waiting, text)
        assert stepper.waits


def test_an_ended_guest_can_be_gone_back_in(backend_name: str) -> None:
    with guest("lwn", backend_name) as stepper:
        stepper.go()
        with pytest.raises(UsageError, match="has ended"):
            stepper.next_exit()
        stepper.back_exit()
        assert isinstance(stepper.pending, PortWrite)
        stepper.go()
        assert (printed(stepper), len(stepper.records)) == (b"4\n", 3)


@pytest.mark.parametrize("number", [4, 99])
def test_there_is_no_way_to_an_exit_that_has_not_been(number: int, backend_name: str) -> None:
    with guest("lwn", backend_name) as stepper:
        stepper.go()
        with pytest.raises(UsageError, match=f"no exit {number}"):
            stepper.back_to(number)
        stepper.back_exit()
        with pytest.raises(UsageError, match="lies behind"):
            stepper.go(1)


def test_what_was_changed_by_hand_ends_the_way_back(backend_name: str) -> None:
    with code(ECHO_ONE, backend_name) as stepper:
        stepper.next_exit()
        with pytest.raises(UsageError, match="waits for its answer"):
            stepper.set_register("rax", 1)
        stepper.answer(0x41)
        stepper.set_register("rax", 0x42)
        stepper.set_memory(0x600, b"hi")
        assert stepper.machine.memory.read(0x600, 2) == b"hi"
        with pytest.raises(UsageError, match="before a change by hand"):
            stepper.back_to(1)
        stepper.go()
        assert printed(stepper) == b"\x42"
        stepper.back_exit()
        assert isinstance(stepper.pending, MmioWrite)
        stepper.back_to(0)
        assert (stepper.state().rax & 0xFF, stepper.records.count, printed(stepper)) == (0x42, 1, b"")


@pytest.mark.parametrize("name", ["nonsense", "mode", "halted", "gdt"])
def test_a_register_that_there_is_not(name: str, backend_name: str) -> None:
    with code(ECHO_ONE, backend_name) as stepper, pytest.raises(UsageError, match="no register"):
        stepper.set_register(name, 1)


_COMMANDS = st.lists(
    st.one_of(
        st.sampled_from(["s", "i", "d", "u", "U"]),
        st.tuples(st.just("a"), st.integers(0, 255)),
        st.tuples(st.just("g"), st.integers(0, 30)),
        st.tuples(st.just("n"), st.integers(1, 12)),
        st.tuples(st.just("t"), st.sampled_from([b"m", b"a", b"."])),
    ),
    max_size=25,
)


def _do(stepper: Stepper, command: Any) -> None:
    word, argument = command if isinstance(command, tuple) else (command, None)
    pending = stepper.pending
    if word == "s":
        stepper.next_exit()
    elif word == "i":
        stepper.step()
    elif word == "d":
        stepper.let()
    elif word == "u":
        stepper.back_exit()
    elif word == "U":
        stepper.back_step()
    elif word == "a":
        stepper.answer(None if pending is not None and pending.is_write else argument)
    elif word == "g":
        stepper.back_to(argument)
    elif word == "n":
        stepper.go(stepper.records.count + argument)
    else:
        stepper.keyboard.send(argument)  # type: ignore[union-attr]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commands=_COMMANDS)
def test_wherever_one_goes_back_it_is_as_it_was(commands: list[Any], backend_name: str) -> None:
    """Each exit is seen with its registers and the output so far; coming back to it shows the same."""
    with guest("guess", backend_name, seed=7) as stepper:
        seen: dict[int, Any] = {}
        for command in commands:
            try:
                _do(stepper, command)
            except UsageError:
                continue
            for number in [n for n in seen if n > stepper.records.count]:
                del seen[number]  # another future
            last = stepper.records.last
            if last is None or not stepper.at_exit:
                continue
            now = (last.exit.describe(), stepper.machine.vcpu.registers(), printed(stepper))
            assert seen.setdefault(last.number, now) == now


# -- points


def test_a_run_stops_at_a_breakpoint_by_symbol_and_steps_off_it(backend_name: str) -> None:
    with code(COUNT_DOWN, backend_name, symbols={"again": 0x7C05}) as stepper:
        stepper.add_point(parse_point("again", stepper.symbols, stepper.machine.memory))
        left = []
        while stepper.ended is None:
            said = stepper.go()
            if stepper.ended is None:
                assert said == "breakpoint 0x7c05 again"
                left.append(stepper.machine.memory.read(0x500, 1)[0])
        assert left == [3, 2, 1]
        stepper.back_to(0)
        stepper.run_out()
        assert isinstance(stepper.ended, Halt)


def test_a_change_of_memory_stops_a_run_behind_the_store(backend_name: str) -> None:
    with code(COUNT_DOWN, backend_name) as stepper:
        point = parse_point("gpa:0x500", {}, stepper.machine.memory)
        assert point.kind == "ram"
        stepper.add_point(point)
        said = [stepper.go() for _ in range(4)]
        assert said == [
            f"point gpa:0x500: {old} is now {new}"
            for old, new in [("00", "03"), ("03", "02"), ("02", "01"), ("01", "00")]
        ]


@pytest.mark.parametrize(("text", "number"), [("gpa:0x1020", 2), ("gpa:0x1000", 84), ("gpa:0x1010", 1)])
def test_a_point_at_a_device_stops_before_the_access_is_answered(
    text: str, number: int, backend_name: str
) -> None:
    with guest("guess", backend_name, seed=1) as stepper:
        stepper.keyboard.send(b"m")  # type: ignore[union-attr]
        point = parse_point(text, {}, stepper.machine.memory)
        assert point.kind == "mmio"
        stepper.add_point(point)
        assert stepper.go() == f"point {text}"
        assert (stepper.records.count, stepper.pending and stepper.pending.answered) == (number, False)


def test_a_point_at_a_port(backend_name: str) -> None:
    with guest("lwn", backend_name) as stepper:
        stepper.add_point(parse_point("port:0x3f8", {}, stepper.machine.memory))
        stepper.go()
        assert (stepper.records.count, printed(stepper)) == (1, b"")
        stepper.go()
        assert (stepper.records.count, printed(stepper)) == (2, b"4")
        stepper.remove_point(stepper.points[0])
        stepper.go()
        assert isinstance(stepper.ended, Halt)


def test_more_breakpoints_than_the_cpu_has(backend_name: str) -> None:
    with code(COUNT_DOWN, backend_name) as stepper:
        most = stepper.machine.backend.capabilities.breakpoints
        for address in range(0x7D00, 0x7D00 + min(most, 200)):
            stepper.add_point(Point("code", address))
        stepper.add_point(Point("code", 0x7C09))
        assert stepper.go() == "breakpoint 0x7c09"


def test_run_to_an_exit_by_its_number(backend_name: str) -> None:
    with guest("guess", backend_name, seed=1) as stepper:
        stepper.go(40)
        assert stepper.records.count == 40
        assert isinstance(stepper.pending, MmioWrite)
        assert len(printed(stepper)) == 38


def test_run_to_a_halt_by_its_number(backend_name: str) -> None:
    with guest("timer-real", backend_name) as stepper:
        while stepper.ended is None:
            stepper.next_exit()
        halts = [record.number for record in stepper.records if isinstance(record.exit, Halt)]
        assert len(halts) > 2
        for number in halts[:3]:
            stepper.back_to(0)
            stepper.go(number)
            assert stepper.records.last is not None
            assert (stepper.records.count, type(stepper.records.last.exit)) == (number, Halt)
            assert stepper.halted
        stepper.go()
        assert printed(stepper) == b"..........\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no place"),
        ("mian", "did you mean 'main'"),
        ("0xzz", "is not an address"),
        ("gpa:", "is not an address"),
        ("gpa:1,65", "65 bytes"),
        ("cpu:1", "no kind"),
        ("-1", "no symbol"),
    ],
)
def test_a_point_that_is_none(text: str, said: str) -> None:
    with code(COUNT_DOWN, "unicorn") as stepper, pytest.raises(UsageError) as caught:
        parse_point(text, {"main": 0x7C00}, stepper.machine.memory)
    assert said in str(caught.value)


# -- stopping


def test_a_spinning_guest_is_stopped_from_another_thread(backend_name: str) -> None:
    with code(bytes.fromhex("ebfe"), backend_name) as stepper:
        timer = threading.Timer(0.3, stepper.cancel)
        timer.start()
        said = stepper.go()
        timer.join()
        assert said == "stopped at 0x7c00, behind exit 0"
        stepper.step()
        assert stepper.state().linear_rip == 0x7C00


def test_a_guest_that_ends_badly_is_told_and_can_be_gone_back_in(backend_name: str) -> None:
    with guest("fault", backend_name) as stepper:
        assert "triple fault" in stepper.go()
        assert "exit code 120" in stepper.verdict()
        stepper.back_exit()
        assert stepper.ended is None


def test_several_vcpus_go_forward_and_not_back(backend_name: str) -> None:
    with guest("smp-ping-pong", backend_name) as stepper:
        stepper.next_exit()
        stepper.next_exit()
        assert all(isinstance(record.exit, Access) for record in stepper.records)
        with pytest.raises(NotSupported, match="several vCPUs"):
            stepper.back_exit()
        with pytest.raises(UsageError, match="several vCPUs"):
            stepper.back_step()
