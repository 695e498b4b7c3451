"""Recordings: a run on one CPU is the same on another, exit by exit; what is not the same is found there."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cli_tools import vmmsim
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmsim import Machine, guests
from vmmsim.budget import exits, insns, seconds
from vmmsim.errors import HostError, NotSupported, SnapshotError, UsageError
from vmmsim.exits import Access, BudgetSpent, GuestExit, Halt
from vmmsim.loaders import load_bytes
from vmmsim.record import (
    End,
    Input,
    InputEnd,
    Interrupt,
    Recorder,
    Recording,
    RecordingError,
    RecordingSource,
    load,
    replay,
    save,
)
from vmmsim.record.insn_trace import InsnTracer
from vmmsim.streams import BytesSource, QueueSource

KVM, UNICORN = pytest.mark.kvm, pytest.mark.unicorn
PAIRS = pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("kvm", "unicorn", marks=[KVM, UNICORN]),
        pytest.param("unicorn", "kvm", marks=[KVM, UNICORN]),
        pytest.param("unicorn", "unicorn", marks=[UNICORN]),
    ],
)


def record(
    name: str, backend: str, *, budget: Any = None, input: bytes | None = None, **fields: Any
) -> Recording:
    guest = guests.load(name)
    source = RecordingSource(BytesSource(guest.input if input is None else input))
    if guest.machine.get("model") == "pc":
        fields.setdefault("clock", "exits")
    with Machine.for_guest(name, backend=backend, source=source, **fields) as machine:
        recorder = Recorder(machine, guest=name)
        return recorder.finish(machine.run(budget=budget))


def through_a_file(recording: Recording, directory: Path) -> Recording:
    save(recording, directory / "run.rec")
    return load(directory / "run.rec")


@UNICORN
def test_without_a_folder_for_temporary_files_a_recording_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = record("hello16", "unicorn")
    save(recording, tmp_path / "run.rec")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    for act in (lambda: save(recording, tmp_path / "other.rec"), lambda: load(tmp_path / "run.rec")):
        with pytest.raises(HostError, match="begin of a recording cannot be kept") as caught:
            act()
        assert "TMPDIR" in caught.value.hint
    assert not (tmp_path / "other.rec").exists()


@PAIRS
@pytest.mark.parametrize(
    "name", ["guess", "echo", "hello16", "timer-real", "timer-long", "serial-echo", "fault"]
)
def test_a_guest_is_the_same_on_another_cpu(first: str, second: str, name: str, tmp_path: Path) -> None:
    recording = through_a_file(record(name, first), tmp_path)
    result = replay(recording, backend=second)

    assert str(result.derailed) == "None"
    assert result.exits == recording.end.exits
    assert result.end.kind == recording.end.kind


def test_what_is_kept_is_what_came_from_outside(backend_name: str) -> None:
    recording = record("serial-echo", backend_name)
    typed = bytes(event.byte or 0 for event in recording.events if isinstance(event, Input))
    taken = [event for event in recording.events if isinstance(event, Interrupt)]

    assert guests.load("serial-echo").input.startswith(typed)
    assert b"q" in typed
    assert {event.vector for event in taken} == {0x0C}  # IRQ 4, as a PC's BIOS has it
    assert len(recording.sums) == 4 * recording.end.exits
    assert recording.end.kind == "guest_exit"
    assert [e.exit for e in recording.events] == sorted(e.exit for e in recording.events)


def test_a_changed_byte_of_the_input_is_found_at_its_exit(backend_name: str) -> None:
    recording = record("echo", backend_name)
    at, event = next((n, e) for n, e in enumerate(recording.events) if isinstance(e, Input) and e.exit > 5)
    assert isinstance(event, Input)
    assert event.byte is not None
    recording.events[at] = Input(event.exit, event.byte ^ 1)
    result = replay(recording, backend=backend_name)

    assert result.derailed is not None
    assert result.derailed.exit == event.exit + 1  # the read that gave it
    assert "is not what was recorded" in result.derailed.what


def test_random_letters_come_from_the_generator_of_the_recording(backend_name: str) -> None:
    recording = record("guess", backend_name)  # without a seed: another game each time
    assert replay(recording, backend=backend_name).derailed is None
    again = msgspec.structs.replace(recording, snapshot=record("guess", backend_name).snapshot)
    assert replay(again, backend=backend_name).derailed is not None


@PAIRS
def test_a_shifted_interrupt_is_found(first: str, second: str) -> None:
    recording = record("timer-long", first)
    at = next(n for n, e in enumerate(recording.events) if isinstance(e, Interrupt))
    event = recording.events[at]
    recording.events[at] = Interrupt(event.exit - 1, 0x20)
    result = replay(recording, backend=second)

    assert result.derailed is not None
    assert result.derailed.exit == event.exit - 1
    assert "interrupt 0x20" in result.derailed.what


def test_a_replay_that_goes_on_or_ends_early_is_found(backend_name: str) -> None:
    recording = record("hello16", backend_name)
    short = msgspec.structs.replace(
        recording,
        sums=recording.sums[:-8],
        end=msgspec.structs.replace(recording.end, exits=recording.end.exits - 2),
    )
    result = replay(short, backend=backend_name)
    assert result.derailed is not None
    assert result.derailed.exit == recording.end.exits - 1
    assert "had ended" in result.derailed.what

    long = msgspec.structs.replace(
        recording,
        sums=recording.sums + bytes(4),
        end=msgspec.structs.replace(recording.end, exits=recording.end.exits + 1),
    )
    result = replay(long, backend=backend_name)
    assert result.derailed is not None
    assert f"recorded are {recording.end.exits + 1} exits" in result.derailed.what


def test_an_end_of_another_kind_is_found(backend_name: str) -> None:
    recording = record("timer-real", backend_name)
    recording.end = msgspec.structs.replace(recording.end, code=3)
    result = replay(recording, backend=backend_name)
    assert result.end == GuestExit(0)
    assert result.derailed is not None
    assert "ended with" in result.derailed.what


@PAIRS
def test_the_recording_of_another_machine_leaves_the_rails_at_once(first: str, second: str) -> None:
    recording = record("hello16", first)
    other = msgspec.structs.replace(recording, snapshot=record("guess", first).snapshot)
    result = replay(other, backend=second)
    assert result.derailed is not None
    assert result.derailed.exit == 1


@PAIRS
def test_a_run_that_was_cut_short_is_replayed_as_far_as_it_came(first: str, second: str) -> None:
    recording = record("guess", first, budget=exits(77))
    assert (recording.end.kind, recording.end.exits) == ("budget", 77)
    result = replay(recording, backend=second)
    assert result.derailed is None
    assert result.exits == 77


def test_a_run_without_an_exit_that_was_stopped(backend_name: str) -> None:
    with Machine(backend=backend_name, source=RecordingSource(BytesSource())) as machine:
        machine.load(load_bytes(b"\xeb\xfe", name="spin", load_address=0x7C00, mode="real"))
        recorder = Recorder(machine)
        recording = recorder.finish(machine.run(budget=seconds(0.1)))
    assert replay(recording, backend=backend_name).derailed is None


def test_input_that_comes_while_the_guest_waits(backend_name: str) -> None:
    source = QueueSource()
    with Machine.for_guest("echo", backend=backend_name, source=RecordingSource(source)) as machine:
        recorder = Recorder(machine)
        source.send(b"ab")
        assert isinstance(machine.run(budget=seconds(0.5)), BudgetSpent)  # it waits for more
        source.send(b"c\n")
        source.end()
        recording = recorder.finish(machine.run())
        output = machine.output.data
    assert any(isinstance(event, Input) and event.byte is None for event in recording.events)
    result = replay(recording, backend=backend_name)
    assert str(result.derailed) == "None"
    assert result.output == output


@pytest.mark.unicorn
def test_the_instruction_trace_has_each_instruction_and_what_it_changed(tmp_path: Path) -> None:
    recording = record("hello16", "unicorn")
    path = tmp_path / "trace"
    with open(path, "w") as file:
        tracer = InsnTracer(file)
        result = replay(recording, backend="unicorn", tracer=tracer)
    lines = path.read_text().splitlines()
    with Machine.for_guest("hello16", backend="unicorn", count_insns=True) as machine:
        machine.run()
        assert len(lines) == tracer.count == machine.vcpu.insns
    assert result.derailed is None
    assert result.end == Halt()
    assert lines[0].split()[:2] == ["1", f"{0x7C00:016x}"]
    assert lines[-1].split()[2:4] == ["f4", "hlt"]
    assert any("rax=" in line or "rsi=" in line for line in lines)


@pytest.mark.kvm
def test_kvm_cannot_trace_instructions(tmp_path: Path) -> None:
    recording = record("hello16", "kvm")
    with open(tmp_path / "trace", "w") as file, pytest.raises(NotSupported, match="count instructions"):
        replay(recording, backend="kvm", tracer=InsnTracer(file))


@pytest.mark.unicorn
def test_interrupts_are_at_the_same_place_in_an_instruction_trace(tmp_path: Path) -> None:
    recording = record("timer-real", "unicorn")
    with open(tmp_path / "trace", "w") as file:
        assert replay(recording, backend="unicorn", tracer=InsnTracer(file)).derailed is None


def test_a_machine_whose_time_is_the_hosts_is_not_recorded(backend_name: str) -> None:
    source = RecordingSource(BytesSource())
    with Machine(backend=backend_name, model="pc", clock="host", source=source) as machine:
        with pytest.raises(UsageError, match="host's clock") as caught:
            Recorder(machine)
        assert "--clock exits" in caught.value.hint
    with Machine(backend=backend_name, source=BytesSource()) as machine, pytest.raises(UsageError):
        Recorder(machine)


@pytest.mark.unicorn
def test_a_budget_of_instructions_and_the_clock_of_instructions(tmp_path: Path) -> None:
    recording = record("timer-real", "unicorn", clock="insns")
    assert replay(through_a_file(recording, tmp_path)).derailed is None
    recording = record("hello16", "unicorn", budget=insns(60), count_insns=True)
    assert recording.end.kind == "budget"
    assert replay(recording).derailed is None


def test_a_machine_is_recorded_twice_but_not_across_a_restore(backend_name: str) -> None:
    source = RecordingSource(BytesSource(guests.load("timer-long").input))
    with Machine.for_guest("timer-long", backend=backend_name, source=source, clock="exits") as machine:
        first = Recorder(machine)
        one = first.finish(machine.run(budget=exits(200)))
        second = Recorder(machine)
        two = second.finish(machine.run())
        assert replay(one, backend=backend_name).derailed is None
        assert replay(two, backend=backend_name).derailed is None
        counted = [sum(isinstance(e, Interrupt) for e in recording.events) for recording in (one, two)]
        assert sum(counted) == 10

        snapshot = machine.snapshot()
        third = Recorder(machine)
        machine.restore(snapshot)
        with pytest.raises(UsageError, match="restored"):
            third.finish(None)


# Files


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("recordings") / "small.rec"
    save(record("echo", "unicorn", memory=64 << 10), path)
    return path.read_bytes()


@settings(max_examples=150)
@given(st.data())
def test_no_changed_or_cut_file_is_taken(
    small: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.rec"
    damaged = bytearray(small)
    at = data.draw(st.integers(0, len(small) - 1))
    kind = data.draw(st.sampled_from(["change", "cut", "insert"]))
    if kind == "change":
        damaged[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del damaged[at:]
    else:
        damaged[at:at] = b"x"
    path.write_bytes(damaged)
    with pytest.raises(RecordingError) as caught:
        load(path)
    assert caught.value.exit_code == 123
    assert caught.value.hint


def signed(small: bytes, change: Any) -> bytes:
    """`small` with another body, and its hash."""
    body = change(small.partition(b"\n")[2])
    return b"vmmsim-recording 1 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def lines(body: bytes) -> tuple[bytes, list[bytes]]:
    """What is before the events, and the events."""
    size = json.loads(body.partition(b"\n")[0])["snapshot_size"]
    begin = body.index(b"\n") + 1 + size
    return body[:begin], body[begin:].splitlines(keepends=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda head, events: head + b"".join(events[:-1]), "no end"),
        (lambda head, events: head + b"".join(events) + events[-1], "behind the end"),
        (lambda head, events: head + b"{}\n" + b"".join(events), "event 1 is none"),
        (lambda head, events: head + b"".join(events)[:-1], "no end"),
        (lambda head, events: head + b"".join([*events[:-2], events[-1]]), "check sums"),
        (lambda head, events: head + b"".join([events[3], *events]), "out of order|is none|has"),
        (lambda head, events: b"{}" + head + b"".join(events), "header"),
        (lambda head, events: head[:-9] + b"".join(events), "snapshot|fit|none"),
        (lambda head, events: head + b'{"type":"input","exit":0,"byte":256}\n' + b"".join(events), "no byte"),
        (lambda head, events: head.replace(b'"snapshot_size":', b'"snapshot_size":-'), "does not fit"),
    ],
)
def test_a_file_that_breaks_the_format_says_where(
    small: bytes, tmp_path: Path, change: Any, words: str
) -> None:
    path = tmp_path / "broken.rec"
    path.write_bytes(signed(small, lambda body: change(*lines(body))))
    with pytest.raises(SnapshotError, match=words):
        load(path)


@pytest.mark.parametrize("text", [b"", b"hello", b"vmmsim-snapshot 1 vmmsim/0.1.0", b"vmmsim-recording 1\n"])
def test_a_foreign_file_is_no_recording(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(text)
    with pytest.raises(RecordingError, match=r"no recording|damaged"):
        load(path)
    with pytest.raises(RecordingError, match="cannot be read"):
        load(tmp_path / "nothing")
    with pytest.raises(RecordingError, match="cannot be read"):
        load(tmp_path)


def test_a_later_format_is_told(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "later.rec"
    path.write_bytes(small.replace(b"recording 1 ", b"recording 2 ", 1))
    with pytest.raises(RecordingError, match="format 2; this version reads 1"):
        load(path)


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    recording = record("echo", "unicorn")
    again = through_a_file(recording, tmp_path)
    assert again.events == recording.events
    assert (again.sums, again.end) == (recording.sums, recording.end)
    assert isinstance(again.end, End)
    assert any(isinstance(event, InputEnd) for event in again.events) == any(
        isinstance(event, InputEnd) for event in recording.events
    )


# The command line


@pytest.mark.unicorn
def test_run_record_and_replay(tmp_path: Path) -> None:
    path, trace = tmp_path / "run.rec", tmp_path / "trace"
    ran = vmmsim("run", "echo", "-b", "unicorn", "--stdin", "example", "--record", path)
    assert ran.returncode == 0
    assert b"recorded 26 exits" in ran.stderr

    shown = vmmsim("replay", path, "--insn-trace", trace)
    assert (shown.returncode, shown.stdout) == (0, ran.stdout)
    assert b"26 exits as recorded" in shown.stderr
    assert trace.read_text().startswith("1 ")
    report = json.loads(vmmsim("replay", path, "--json").stdout)
    assert report["same"] is True
    assert report["exits"] == report["recorded_exits"] == 26

    recording = load(path)
    at = next(n for n, e in enumerate(recording.events) if isinstance(e, Input))
    recording.events[at] = msgspec.structs.replace(recording.events[at], byte=0x21)
    save(recording, path)
    left = vmmsim("replay", path)
    assert left.returncode == 122
    assert b"left the rails at exit" in left.stderr
    path.write_bytes(path.read_bytes()[:-1])
    assert vmmsim("replay", path).returncode == 123


@pytest.mark.unicorn
def test_bad_options_of_record_and_replay(tmp_path: Path) -> None:
    nowhere = vmmsim("run", "hello16", "-b", "unicorn", "--record", tmp_path / "no" / "run.rec")
    assert (nowhere.returncode, nowhere.stdout) == (125, b"")
    refused = vmmsim(
        "run", "serial-echo", "-b", "unicorn", "--stdin", "none", "--record", tmp_path / "run.rec"
    )
    assert refused.returncode == 125
    assert b"--clock exits" in refused.stderr
    assert not (tmp_path / "run.rec").exists()


def test_sums_change_with_each_part_of_an_exit() -> None:
    from vmmsim.exits import ACCESS_EXITS
    from vmmsim.record.sums import next_sum

    accesses: list[tuple[type[Access], int, int, int]] = [
        (ACCESS_EXITS[0], 1, 1, 1), (ACCESS_EXITS[1], 1, 1, 1), (ACCESS_EXITS[0], 2, 1, 1),
        (ACCESS_EXITS[0], 1, 2, 1), (ACCESS_EXITS[0], 1, 1, 2),
    ]  # fmt: skip
    sums = {next_sum(0, *access) for access in accesses}
    assert len(sums) == len(accesses)
    assert next_sum(1, *accesses[0]) != next_sum(0, *accesses[0])
