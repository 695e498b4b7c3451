"""The cheat, snapshots that the guest or the command line asks for, and what comes of them later."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cli_tools import vmmsim
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmmsim import Machine
from vmmsim.budget import exits
from vmmsim.devices.snapshot_port import SnapshotPort, SnapshotPortState
from vmmsim.errors import UsageError
from vmmsim.exits import PortWrite
from vmmsim.loaders.flat import load_flat
from vmmsim.snapshot.cheat import TimeMachine
from vmmsim.snapshot.container import load, save
from vmmsim.snapshot.triggers import parse_trigger
from vmmsim.snapshot.values import Snapshot
from vmmsim.streams import BytesSource

#: mov al, 7; out 0xf8, al; in eax, 0xf8; add al, '0'; out 0xe9, al; hlt
ASK_AND_TELL = bytes.fromhex("b007 e6f8 66e5f8 0430 e6e9 f4")
#: mov cx, 3; again: mov al, 'x'; out 0xe9, al; loop again; hlt
THREE_X = bytes.fromhex("b90300 b078 e6e9 e2fa f4")
ALPHABET = b"abcdefghijklmnopqrstuvwxyz" * 3


def machine_with(code: bytes, backend: str, **fields: object) -> Machine:
    machine = Machine(backend=backend, memory=1 << 20, **fields)
    machine.load(load_flat(code, name="test", load_address=0x7C00, mode="real"))
    return machine


def test_the_cheater_never_loses(backend_name: str) -> None:
    with Machine(
        backend=backend_name, memory=1 << 20, seed=3, source=BytesSource(ALPHABET + b".")
    ) as machine:
        guest = machine.load_guest("guess")
        cheat = guest.manifest.cheat
        assert cheat is not None
        travel = TimeMachine(machine, begin=cheat.begin, lost=cheat.lost)
        assert machine.run().kind == "halt"
        text = machine.output.data.decode()

    assert travel.times == text.count("You lost") > 0
    assert text.count("You won") > 1
    assert text.rstrip().splitlines()[-1] == f"Score: {text.count('You won')} won, 0 lost"


def test_without_the_cheat_the_same_player_loses(backend_name: str) -> None:
    with Machine(
        backend=backend_name, memory=1 << 20, seed=3, source=BytesSource(ALPHABET + b".")
    ) as machine:
        machine.load_guest("guess")
        machine.run()
        assert machine.output.data.rstrip().splitlines()[-1].split()[3] != b"0"


@pytest.mark.parametrize(
    "backend", [pytest.param(b, marks=getattr(pytest.mark, b)) for b in ("kvm", "unicorn")]
)
def test_run_cheat_says_that_time_went_back(backend: str) -> None:
    result = vmmsim("run", "guess", "--cheat", "--seed", "3", "-b", backend, "-q", stdin=ALPHABET + b".")

    assert result.returncode == 0
    assert b" won, 0 lost" in result.stdout.splitlines()[-1]
    assert result.stderr.count(b"back in time") == result.stdout.count(b"You lost") > 0


def test_a_guest_that_declares_nothing_cannot_be_cheated() -> None:
    result = vmmsim("run", "loop", "--cheat", "-b", "unicorn")

    assert result.returncode == 125
    assert b"error: 'loop' says nothing of how it is lost" in result.stderr


def test_the_demo_wins_by_time_travel() -> None:
    out = vmmsim("demo").stdout

    assert b"7. Time travel" in out
    assert b"Score: 3 won, 0 lost" in out
    assert b"NOT the same" not in out


# The guest asks.


def test_a_guest_asks_and_a_clone_goes_on_behind_the_question(backend_name: str) -> None:
    found: list[Snapshot] = []
    with machine_with(ASK_AND_TELL, backend_name) as machine:
        machine.on_snapshot = found.append
        machine.run()
        assert machine.output.data == b"0"
    (snapshot,) = found

    assert snapshot.cpus[0].state.rip == 0x7C04
    assert snapshot.devices["snapshot"] == SnapshotPortState(7)
    assert "tag 0x7" in snapshot.provenance.comment
    with snapshot.clone(backend=backend_name) as clone:
        clone.run()
        assert clone.output.data == b"1"
    with Machine.from_snapshot(snapshot, backend=backend_name) as again:
        again.run()
        assert again.output.data == b"0"


def test_a_guest_that_nobody_listens_to_asks_in_vain(backend_name: str) -> None:
    with machine_with(ASK_AND_TELL, backend_name) as machine:
        assert machine.run().kind == "halt"


def test_a_guest_asks_between_the_exits_of_a_loop(backend_name: str) -> None:
    found: list[Snapshot] = []
    with machine_with(ASK_AND_TELL, backend_name) as machine:
        machine.on_snapshot = found.append
        kinds = [exit.kind for exit in machine.exits()]

    assert kinds == ["port_write", "port_read", "port_write", "halt"]
    assert [s.cpus[0].state.rip for s in found] == [0x7C04]


def test_a_pc_has_the_port_too(backend_name: str) -> None:
    found: list[Snapshot] = []
    with machine_with(ASK_AND_TELL, backend_name, model="pc", clock="exits") as machine:
        machine.on_snapshot = found.append
        machine.run(until=lambda exit: isinstance(exit, PortWrite) and exit.address == 0xE9)
    assert len(found) == 1


def test_the_port_asks_at_its_first_byte_only_and_answers_in_pieces() -> None:
    tags: list[int] = []
    port = SnapshotPort(tags.append, lambda: 0x11223344)

    for offset, size, value in ((0, 4, 0xDEADBEEF), (1, 1, 5), (0, 2, 0x123), (3, 1, 9)):
        port.write(offset, size, value)
    assert tags == [0xDEADBEEF, 0x123]
    assert [port.read(0, 4), port.read(0, 1), port.read(2, 2), port.read(3, 1)] == [
        0x11223344, 0x44, 0x1122, 0x11,
    ]  # fmt: skip
    assert SnapshotPort(tags.append, lambda: 1 << 40).read(0, 4) == 0xFFFFFFFF
    with pytest.raises(UsageError):
        SnapshotPort(tags.append, state=SnapshotPortState(1 << 32))


# The command line asks.


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "three.bin"
    path.write_bytes(THREE_X)
    return path


@pytest.mark.parametrize(("when", "rest"), [("exit:2", b"x"), ("serial:xx", b"x"), ("insns:4", b"xx")])
def test_snapshot_on_and_running_the_file(image: Path, tmp_path: Path, when: str, rest: bytes) -> None:
    file = tmp_path / "snap"
    taken = vmmsim("run", image, "-b", "unicorn", "-q", "--snapshot-on", when, "-o", file)

    assert (taken.returncode, taken.stdout) == (0, b"xxx")
    assert b"vmmsim: snapshot " in taken.stderr
    assert vmmsim("run", file, "-b", "unicorn", "-q").stdout == rest


@pytest.mark.kvm
def test_a_snapshot_of_kvm_goes_on_anywhere(image: Path, tmp_path: Path) -> None:
    file = tmp_path / "snap"
    taken = vmmsim("run", image, "-b", "kvm", "-q", "--snapshot-on", "exit:1", "-o", file, "--then", "stop")

    assert (taken.returncode, taken.stdout) == (0, b"x")
    for backend in ("kvm", "unicorn"):
        assert vmmsim("run", file, "-b", backend, "-q").stdout == b"xx"
    refused = vmmsim("run", image, "-b", "kvm", "-q", "--snapshot-on", "insns:1", "-o", file)
    assert refused.returncode == 125
    assert b"KVM does not count instructions" in refused.stderr


def test_snapshot_on_guest(tmp_path: Path) -> None:
    image, file = tmp_path / "ask.bin", tmp_path / "snap"
    image.write_bytes(ASK_AND_TELL)
    assert vmmsim("run", image, "-b", "unicorn", "-q", "--snapshot-on", "guest", "-o", file).stdout == b"0"

    assert load(file).devices["snapshot"] == SnapshotPortState(7)
    shown = vmmsim("exits", file, "-b", "unicorn", "-q", "--json").stdout.splitlines()
    assert [json.loads(line)["kind"] for line in shown] == ["port_read", "port_write", "halt"]


def test_the_snapshot_counts_against_the_budget(image: Path, tmp_path: Path) -> None:
    snap = ("--snapshot-on", "insns:4", "-o", str(tmp_path / "snap"))
    assert vmmsim("run", image, "-b", "unicorn", "-q", *snap, "--max-insns", "5").returncode == 124
    missed = vmmsim("run", image, "-b", "unicorn", "-q", *snap, "--max-insns", "3")
    assert missed.returncode == 124
    assert b"no snapshot was taken" in missed.stderr


def test_the_input_of_a_snapshot_is_what_comes_next(tmp_path: Path) -> None:
    file = tmp_path / "snap"
    first = vmmsim(
        "run", "echo", "-b", "unicorn", "-q", "--snapshot-on", "serial:ab", "-o", file, stdin=b"abc\n"
    )  # fmt: skip
    assert first.stdout == b"abc\n"
    assert vmmsim("run", file, "-b", "unicorn", "-q", stdin=b"xyz\n").stdout == b"xyz\n"


@pytest.mark.parametrize(
    "options",
    [
        ["-m", "32M"], ["-M", "pc"], ["--cpus", "2"], ["--clock", "exits"], ["--device", "scratch"],
        ["--without", "uart"], ["--isa-debug-exit"], ["--load", "0x100"], ["--mode", "real"],
        ["--entry", "0"],
    ],
    ids=lambda options: options[0],
)  # fmt: skip
def test_options_that_contradict_a_snapshot(tmp_path: Path, options: list[str]) -> None:
    from vmmsim.cli.common import Choices, resolve
    from vmmsim.cli.run import command

    file = tmp_path / "snap"
    with machine_with(THREE_X, "unicorn") as machine:
        save(machine.snapshot(), file)
    context = command.make_context("run", [str(file), *options])
    given = {k: v for k, v in context.params.items() if k in Choices.__struct_fields__}
    with pytest.raises(UsageError, match=options[0] if options[0].startswith("--") else "--m"):
        resolve(Choices(**given))


def test_files_that_are_no_snapshots_are_told_so(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"vmmsim-snapshot 1 vmmsim/9".ljust(63) + b"\n")
    assert vmmsim("run", broken, "-b", "unicorn").returncode == 123
    broken.write_bytes(b"vmmsim-snapshot-pack 1 vmmsim/9".ljust(63) + b"\n")
    result = vmmsim("run", broken, "-b", "unicorn")
    assert result.returncode == 125
    assert b"snapshot unpack" in result.stderr


@pytest.mark.parametrize(
    "text", ["", "exit", "exit:0", "exit:-1", "insns:x", "serial:", "serial:(", "never", "guest:1"]
)
def test_moments_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_trigger(text)


def test_a_snapshot_needs_a_moment_and_a_file() -> None:
    assert b"add -o FILE" in vmmsim("run", "loop", "--snapshot-on", "guest").stderr
    assert b"add --snapshot-on" in vmmsim("run", "loop", "-o", "x").stderr


# Run, snapshot, restore, run: the same as straight through.

_PORTS = (
    0x20,
    0x21,
    0xA1,
    0x40,
    0x42,
    0x43,
    0x61,
    0x60,
    0x70,
    0x71,
    0x80,
    0x3F8,
    0x3F9,
    0x3FB,
    0x3FC,
    0xF8,
    0x604,
)
_STEPS = st.lists(
    st.tuples(st.booleans(), st.sampled_from(_PORTS), st.integers(0, 255)), min_size=2, max_size=24
)


def script(steps: list[tuple[bool, int, int]]) -> bytes:
    """Each step an IN, whose value is stored, or an OUT of a byte."""
    code = b""
    for at, (reads, port, value) in enumerate(steps):
        code += b"\xba" + port.to_bytes(2, "little")  # mov dx, port
        if reads:
            code += b"\xec\xa2" + (0x9000 + at).to_bytes(2, "little")  # in al, dx; mov [0x9000 + at], al
        else:
            code += b"\xb0" + bytes([value]) + b"\xee"  # mov al, value; out dx, al
    return code + b"\xf4"


def future(machine: Machine) -> tuple[object, ...]:
    """All that comes now, and what it leaves."""
    trace: list[tuple[object, ...]] = []
    stop = machine.observe(lambda *access: trace.append(access))
    end = machine.run(budget=exits(60))
    stop()
    return (
        trace,
        end,
        machine.vcpu.state(),
        machine.memory.digest(),
        machine.device_states(),
        machine.clock.now(),
    )


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS, cut=st.integers(1, 23))
def test_run_snapshot_restore_run_is_run_straight_through(
    backend_name: str, steps: list[tuple[bool, int, int]], cut: int
) -> None:
    cut = min(cut, len(steps) - 1)
    with machine_with(script(steps), backend_name, model="pc", clock="exits", seed=1) as machine:
        straight = future(machine)
    with machine_with(script(steps), backend_name, model="pc", clock="exits", seed=1) as machine:
        machine.run(budget=exits(cut))
        snapshot = machine.snapshot()
        first = future(machine)
        machine.restore(snapshot)
        second = future(machine)
    with Machine.from_snapshot(snapshot, backend=backend_name) as other:
        third = future(other)

    assert first[1:] == straight[1:]
    assert first[0] == straight[0][cut:]  # type: ignore[index]
    assert second == first
    assert third == first


def test_two_cpus_go_back_together_as_often_as_wanted(backend_name: str) -> None:
    with Machine.for_guest("smp-ping-pong", backend=backend_name) as machine:
        machine.run(budget=exits(30))
        snapshot = machine.snapshot()
        ends = []
        for _ in range(3):
            before = len(machine.output)
            end = machine.run()
            ends.append((end, machine.output.since(before)))
            machine.restore(snapshot)
        assert ends[0] == ends[1] == ends[2]
        assert ends[0][1]
    with Machine.from_snapshot(snapshot, backend=backend_name) as other:
        assert (other.run(), other.output.data) == ends[0]


def test_a_machine_with_another_device_is_asked_again_whether_it_fits(backend_name: str) -> None:
    class Nothing:
        widths = frozenset({1})

        def read(self, offset: int, size: int, /) -> int:
            return 0

        def write(self, offset: int, size: int, value: int, /) -> None:
            pass

        def state(self) -> SnapshotPortState:
            return SnapshotPortState()

    with machine_with(THREE_X, backend_name) as machine:
        snapshot = machine.snapshot()
        machine.restore(snapshot)
        machine.attach_port(0x10, 1, Nothing(), "nothing", restore=lambda state: Nothing())
        with pytest.raises(UsageError, match="only the machine has a device 'nothing'"):
            machine.restore(snapshot)


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are refused on Linux only")
def test_engines_are_made_without_huge_pages_and_others_keep_theirs() -> None:
    from vmmsim.backends.huge_pages import _GET_THP_DISABLE, _prctl, small_pages

    before = _prctl()(_GET_THP_DISABLE, 0, 0, 0, 0)
    with small_pages():
        assert _prctl()(_GET_THP_DISABLE, 0, 0, 0, 0) == 1
    assert _prctl()(_GET_THP_DISABLE, 0, 0, 0, 0) == before
