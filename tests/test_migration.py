"""Machines that move: between backends, while they run, and what happens when something goes wrong."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cli_tools import start
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmsim import Machine
from vmmsim.backends import availability
from vmmsim.budget import exits, seconds
from vmmsim.errors import MigrationError, MigrationInDoubt, UsageError
from vmmsim.exits import Halt
from vmmsim.guests import load
from vmmsim.loaders.flat import load_flat
from vmmsim.memory import GuestMemory
from vmmsim.snapshot import dirty as dirty_module
from vmmsim.snapshot import migrate as migrate_module
from vmmsim.snapshot.capture import capture
from vmmsim.snapshot.cow import image_of, put_back
from vmmsim.snapshot.dirty import Account, DirtyPages, Landing
from vmmsim.snapshot.migrate import Migrated, Progress, migrate
from vmmsim.snapshot.receive import Received, receive
from vmmsim.snapshot.wire import Address, Listener, Wire, connect, read_key
from vmmsim.streams import BytesSource
from vmmsim.testing.slow import time_limit

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="uses Unix sockets")

KEY = b"a key of at least 16 bytes"
INPUT = load("guess").input
PAGES_FROM, PAGES_TO = 0x100000, 0x200000
#: 64-bit: inc qword [page] for each page from 1 MiB to 2 MiB, inc rbx, for ever.
DIRTYING = bytes.fromhex("bf0000100048ff0781c70010000081ff0000200072ef48ffc3ebe5")


class CutWire(Wire):
    """A wire whose network is cut when it has carried `limit` bytes; the sender does not see it."""

    def __init__(self, sock: socket.socket, patience: float, limit: int) -> None:
        super().__init__(sock, patience)
        self._limit = limit
        self._cut_sock = sock
        self.carried = bytearray()

    def send(self, data: bytes, check: Callable[[], None], until: float | None = None) -> None:
        part = data[: self._limit]
        self._limit -= len(part)
        self.carried += part
        super().send(part, check, until)
        if self._limit == 0:
            with contextlib.suppress(OSError):
                self._cut_sock.shutdown(socket.SHUT_RDWR)


class Taking(threading.Thread):
    """A receiver in a thread; `found` or `error` is what came of it."""

    def __init__(self, wire: Wire, **options: Any) -> None:
        super().__init__(daemon=True)
        self._wire, self._options = wire, options
        self.found: Received | None = None
        self.error: MigrationError | None = None
        self.start()

    def run(self) -> None:
        try:
            self.found = receive(self._wire, **self._options)
        except MigrationError as error:
            self.error = error

    def machine(self) -> Machine:
        self.join(time_limit(20))
        assert self.found is not None, self.error
        return self.found.machine


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def move(machine: Machine, backend: str, *, live: bool = False, **options: Any) -> tuple[Machine, Migrated]:
    """`machine` in its new place, on `backend`."""
    ours, theirs = pair()
    taking = Taking(Wire(theirs, 10), backend=backend, **options)
    moved = migrate(machine, Wire(ours, 10), live=live)
    assert moved.report is not None, moved
    return taking.machine(), moved


def guess(backend: str) -> Machine:
    return Machine.for_guest("guess", backend=backend, clock="exits", seed=7, source=BytesSource(INPUT))


def traced(machine: Machine, trace: list[Any]) -> Machine:
    machine.observe(lambda *access: trace.append(access))
    return machine


@cache
def straight() -> tuple[list[Any], bytes]:
    trace: list[Any] = []
    with traced(guess("unicorn"), trace) as machine:
        assert isinstance(machine.run(), Halt)
        return trace, machine.output.data


def dirtying(backend: str) -> Machine:
    machine = Machine(backend=backend, memory=4 << 20)
    machine.load(load_flat(DIRTYING, name="dirtying", load_address=0x8000, mode="l64"))
    machine.run(budget=seconds(0.02))
    return machine


def counts(machine: Machine) -> list[int]:
    data = machine.memory.read(PAGES_FROM, PAGES_TO - PAGES_FROM)
    return [struct.unpack_from("<Q", data, at)[0] for at in range(0, len(data), 4096)]


# -- moving


def test_a_half_played_game_moves_twice_and_ends_as_the_straight_run(backend_name: str) -> None:
    """KVM -> Unicorn -> KVM, where KVM is."""
    trace, output = straight()
    found: list[Any] = []
    printed = b""
    machine = traced(guess(backend_name), found)
    for backend, where in (("unicorn", 101), (backend_name, 307)):
        machine.run(budget=exits(where - len(found)))
        printed += machine.output.data
        there, _ = move(machine, backend, source=BytesSource(INPUT))
        machine.close()
        machine = traced(there, found)
    with machine:
        assert machine.backend.name == backend_name
        assert isinstance(machine.run(), Halt)
        assert found == trace
        assert printed + machine.output.data == output


@pytest.mark.parametrize("other", ["unicorn", "kvm"])
def test_a_guest_that_keeps_on_storing_moves_while_it_runs(backend_name: str, other: str) -> None:
    if not availability(other).usable:
        pytest.skip(f"no {other} here")
    with dirtying(backend_name) as machine:
        there, moved = move(machine, other, live=True)
        before = counts(machine)
        with pytest.raises(UsageError, match="it runs at"):
            machine.run()
    with there:
        # Every page of the last moment: as many stores as the registers say.
        assert counts(there) == before
        rounds = there.cpu.rbx
        assert set(before) <= {rounds, rounds + 1}
        assert rounds > 0
        assert moved.report is not None
        assert moved.report.rounds >= 2
        there.run(budget=seconds(0.2))
        assert there.cpu.rbx > rounds
        assert set(counts(there)) <= {there.cpu.rbx, there.cpu.rbx + 1}


def test_without_a_page_map_pages_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    from vmmsim.snapshot import cow

    monkeypatch.setattr(cow, "_page_map", lambda address, size: None)
    with dirtying("unicorn") as machine:
        there, _ = move(machine, "unicorn", live=True)
        with there:
            assert there.memory.digest() == machine.memory.digest()


def test_without_mapping_pages_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    from vmmsim.snapshot import cow, dirty

    for module in (cow, dirty):
        monkeypatch.setattr(module, "can_map", lambda: False)
    with dirtying("unicorn") as machine:
        there, _ = move(machine, "unicorn", live=True)
        with there:
            assert there.memory.digest() == machine.memory.digest()


def test_a_page_that_becomes_zero_is_zero_there() -> None:
    with Machine(backend="unicorn", memory=1 << 20) as machine:
        # mov word [0x9000], 0; hlt
        code = bytes.fromhex("c70600900000f4")
        machine.load(load_flat(code, name="zeroing", load_address=0x8000, mode="real"))
        machine.memory.write(0x9000, b"\x11\x22")
        machine.snapshot()  # so that it lies over an image
        machine.run()
        there, _ = move(machine, "unicorn")
        with there:
            assert there.memory.read(0x9000, 2) == b"\0\0"
            assert there.memory.digest() == machine.memory.digest()


def test_a_machine_with_rom_moves() -> None:
    with Machine(backend="unicorn", memory=1 << 20) as machine:
        machine.memory.add(0x4000_0000, 0x2000, readonly=True, name="flash")
        machine.memory.write(0x4000_0000, b"flash")
        machine.load(load_flat(b"\xf4", name="halt", load_address=0x8000, mode="real"))
        there, _ = move(machine, "unicorn")
        with there:
            assert there.memory.read(0x4000_0000, 5) == b"flash"
            assert there.memory.region_at(0x4000_0000).readonly  # type: ignore[union-attr]


def test_a_guest_that_ends_first_has_not_moved() -> None:
    ours, theirs = pair()
    with Machine.for_guest("hello16", backend="unicorn") as machine:
        taking = Taking(Wire(theirs, 5), backend="unicorn")
        moved = migrate(machine, Wire(ours, 5))
        taking.join(time_limit(10))

        assert isinstance(moved.end, Halt)
        assert moved.report is None
        assert taking.found is None


def test_a_halted_guest_is_not_woken_by_what_moves_it() -> None:
    # sti; hlt; inc bx; hlt, and back to the inc
    code = bytes.fromhex("fbf443f4ebfc")
    with Machine(backend="unicorn", model="pc", clock="host") as machine:
        machine.load(load_flat(code, name="waits", load_address=0x8000, mode="real"))
        for _ in range(3):
            machine.run(budget=seconds(0.02))
        assert machine.cpu.rbx == 0
        there, _ = move(machine, "unicorn", live=True)
        with there:
            there.run(budget=seconds(0.02))
            assert there.cpu.rbx == 0


def test_a_key_that_is_waited_for_is_not_made_up() -> None:
    """A guest in the middle of a read of char-in is moved when its keys have come, and sees no other."""
    machine = Machine.for_guest("guess", backend="unicorn", seed=7)
    ours, theirs = pair()
    moved_at = threading.Event()

    def type_slowly() -> None:
        while not moved_at.wait(0.15):
            machine.source.send(b"m")  # type: ignore[attr-defined]

    with machine:
        machine.serial.expect_exact(b"Your guess: ")
        taking = Taking(Wire(theirs, 5), backend="unicorn")
        typing = threading.Thread(target=type_slowly)
        typing.start()
        moved = migrate(machine, Wire(ours, 5), timeout=time_limit(10))
        moved_at.set()
        typing.join()
        assert moved.report is not None
        with taking.machine() as there:
            there.source.send(b"m.")  # type: ignore[attr-defined]
            assert isinstance(there.run(budget=seconds(time_limit(10))), Halt)
            printed = machine.output.data + there.output.data
            # NUL would be no letter; m is too high for the letter, each time.
            assert b"is no letter" not in printed
            assert b"m is too" in printed


@settings(max_examples=15)
@given(st.data())
def test_what_lands_is_what_the_memory_is_in_the_end(data: st.DataObject) -> None:
    """Stores between all steps, images taken by others in between, zeros: the last look has it all."""
    memory = GuestMemory()
    memory.add(0, 2 << 20)
    memory.add(0x800000, 0x4000, readonly=True)
    places = st.integers(0, 0x80).map(lambda n: (n * 0x6000 + n) % (2 << 20)) | st.just(0x801000)

    def store() -> None:
        for gpa in data.draw(st.lists(places, max_size=4)):
            memory.write(gpa, data.draw(st.sampled_from([b"\0", b"\1", b"\2"])))

    store()
    if data.draw(st.booleans()):
        image_of(memory)
        store()
    account, dirty = Account(memory), None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dirty_module, "_STEP_SECONDS", 1e-9)
        while (dirty := account.step()) is None:
            store()
            if data.draw(st.integers(0, 9)) == 0:
                image_of(memory)
    landing = Landing(dirty.image.regions)
    landing.put(dirty.first())
    for _ in range(data.draw(st.integers(0, 3))):
        store()
        landing.put(dirty.collect())
    if data.draw(st.booleans()):
        image_of(memory)
    store()
    landing.put(dirty.collect())
    assert landing.image() == image_of(memory)
    other = GuestMemory()
    for region in memory.regions:
        other.add(region.gpa, region.size, readonly=region.readonly)
    put_back(other, landing.image())
    assert other.digest() == memory.digest()
    other.close()
    memory.close()


def test_other_regions_in_the_middle_end_it() -> None:
    memory = GuestMemory()
    memory.add(0, 1 << 20)
    dirty = DirtyPages(memory)
    memory.add(0x200000, 0x1000)
    with pytest.raises(UsageError, match="regions have changed"):
        dirty.collect()
    memory.close()


def test_a_guest_that_makes_no_step_for_long_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for a key, longer than the destination waits for a word: there are signs of life."""
    monkeypatch.setattr(migrate_module, "_PING", 0.1)
    machine = Machine.for_guest("guess", backend="unicorn", seed=7)
    ours, theirs = pair()
    done = threading.Event()

    def type_late() -> None:
        while not done.wait(2.2):
            machine.source.send(b"mm")  # type: ignore[attr-defined]

    with machine:
        machine.serial.expect_exact(b"Your guess: ")
        taking = Taking(Wire(theirs, 1.5), backend="unicorn", patience=1.5)
        typing = threading.Thread(target=type_late)
        typing.start()
        moved = migrate(machine, Wire(ours, 5), timeout=time_limit(20))
        done.set()
        typing.join()
        assert moved.report is not None, taking.error
        taking.machine().close()


# -- refused


def test_an_access_that_is_half_done_is_no_time_to_move() -> None:
    with guess("unicorn") as machine:
        exit = machine.step_exit()
        while exit.is_write:  # type: ignore[attr-defined]
            machine.answer(exit)  # type: ignore[arg-type]
            exit = machine.step_exit()
        ours, theirs = pair()
        taking = Taking(Wire(theirs, 5), backend="unicorn")
        with pytest.raises(UsageError, match="in the middle of an instruction"):
            migrate(machine, Wire(ours, 5), live=False)
        taking.join(time_limit(10))

        assert "in the middle of an instruction" in str(taking.error)
        machine.answer(exit)  # type: ignore[arg-type]
        assert isinstance(machine.run(), Halt)


def test_a_device_that_cannot_move_is_named_on_both_sides() -> None:
    class Odd:
        widths = frozenset({1})

        def read(self, offset: int, size: int, /) -> int:
            return 0

        def write(self, offset: int, size: int, value: int, /) -> None:
            pass

    with guess("unicorn") as machine:
        machine.attach_port(0x77, 1, Odd(), "odd")
        ours, theirs = pair()
        taking = Taking(Wire(theirs, 5), backend="unicorn")
        with pytest.raises(UsageError, match="'odd' cannot be part of a snapshot"):
            migrate(machine, Wire(ours, 5), live=False)
        taking.join(time_limit(10))
        assert "'odd'" in str(taking.error)
        assert isinstance(machine.run(), Halt)


def test_a_destination_without_room_says_so_and_the_guest_runs_on() -> None:
    ours, theirs = pair()
    with guess("unicorn") as machine:
        Taking(Wire(theirs, 5), backend="unicorn", max_memory=64 << 10)
        with pytest.raises(MigrationError, match="64 KiB are allowed here"):
            migrate(machine, Wire(ours, 5), live=False)
        assert isinstance(machine.run(), Halt)


@pytest.mark.parametrize("key", [b"", b"another key, as long"])
def test_a_wrong_key_moves_nothing(key: bytes) -> None:
    ours, theirs = pair()
    with guess("unicorn") as machine:
        taking = Taking(Wire(theirs, 5), backend="unicorn", key=KEY)
        with pytest.raises(MigrationError) as caught:
            migrate(machine, Wire(ours, 5), key=key, live=False)
        taking.join(time_limit(10))
        assert "--key-file" in caught.value.hint
        assert "another key" in str(taking.error)
        assert isinstance(machine.run(), Halt)


# -- cut, killed, slow


def attempt(forth: int = 1 << 30, back: int = 1 << 30) -> tuple[str, bytes, bytearray, bytearray]:
    """Move a game while the network carries so many bytes each way: who runs it then, all that it
    prints in the end, and what was carried."""
    ours, theirs = pair()
    there, here = CutWire(ours, 3, forth), CutWire(theirs, 3, back)
    runs, printed = [], b""
    with guess("unicorn") as machine:
        machine.run(budget=exits(100))
        printed = machine.output.data
        taking = Taking(here, backend="unicorn", source=BytesSource(INPUT))
        try:
            migrate(machine, there, live=False)
        except MigrationInDoubt:
            with pytest.raises(UsageError, match="is not known"):
                machine.run()
        except MigrationError:
            runs.append("source")
            machine.run()
            printed = machine.output.data
        taking.join(time_limit(10))
        if taking.found is not None:
            with taking.found.machine as moved:
                runs.append("destination")
                moved.run()
                printed += moved.output.data
    return "+".join(runs), printed, there.carried, here.carried


@cache
def carried() -> tuple[bytes, bytes]:
    """What is carried when nothing goes wrong: there, and back."""
    runs, _, forth, back = attempt()
    assert runs == "destination"
    return bytes(forth), bytes(back)


def boundaries(stream: bytes) -> list[int]:
    """The ends of the frames, with that of what comes before them."""
    ends = [96]
    while ends[-1] < len(stream):
        length = struct.unpack_from("<I", stream, ends[-1])[0]
        ends.append(ends[-1] + 8 + length + 32)
    return ends


@pytest.mark.parametrize("extra", [-1, 0, 1, 17])
@pytest.mark.parametrize("number", range(5))  # behind the first line, AUTH, OFFER, PAGES, MANIFEST
def test_the_network_is_cut_on_the_way_there(number: int, extra: int) -> None:
    ends = boundaries(carried()[0])
    assert len(ends) == 6
    runs, printed, _, _ = attempt(forth=ends[number] + extra)

    if number == 4 and extra > 0:
        # Within COMMIT the source cannot know; it does not run it, and nobody else has it.
        assert runs == ""
    else:
        assert runs == "source"
        assert printed == straight()[1]


@pytest.mark.parametrize("extra", [-1, 0, 1, 17])
@pytest.mark.parametrize("number", range(4))  # behind the first line, AUTH, READY, LOADED
def test_the_network_is_cut_on_the_way_back(number: int, extra: int) -> None:
    ends = boundaries(carried()[1])
    assert len(ends) == 5
    runs, printed, _, _ = attempt(back=ends[number] + extra)

    whole = number == 3 and extra >= 0
    # A cut closes both ways: LOADED arrives, and COMMIT may, or may not, be in time.
    assert runs in (
        {"destination", "", "source"} if whole and extra == 0 else {"destination" if whole else "source"}
    )
    if runs:
        assert printed == straight()[1]


@pytest.mark.parametrize("seed", range(12))
def test_the_network_is_cut_at_random_bytes(seed: int) -> None:
    forth, back = carried()
    chance = random.Random(seed)
    runs, printed, _, _ = attempt(chance.randrange(1, len(forth)), chance.randrange(1, len(back)))

    assert runs in ("source", "destination", "")
    if runs:
        assert printed == straight()[1]


def test_a_machine_in_doubt_can_be_taken_back_by_hand() -> None:
    ours, theirs = pair()
    with guess("unicorn") as machine:
        machine.run(budget=exits(100))
        Taking(Wire(theirs, 3), backend="unicorn")
        with pytest.raises(MigrationInDoubt, match="has not confirmed it"):
            migrate(machine, CutWire(ours, 3, len(carried()[0]) - 1), live=False)
        snapshot = capture(machine)
        machine.restore(snapshot)
        machine.run()
        assert machine.output.data == straight()[1]


def test_a_destination_that_is_killed_leaves_the_guest_running_here(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with start("receive", f"unix:{path}", "-b", "unicorn", "--serial", "none", "-q") as child:
        try:
            for _ in range(200):
                if path.exists():
                    break
                time.sleep(0.05)

            def kill(progress: Progress) -> None:
                if progress.phase == "round":
                    child.send_signal(signal.SIGKILL)
                    child.wait(time_limit(10))

            with dirtying("unicorn") as machine:
                rounds = machine.cpu.rbx
                with pytest.raises(MigrationError, match="the destination"):
                    migrate(machine, f"unix:{path}", progress=kill)
                machine.run(budget=seconds(0.2))
                assert machine.cpu.rbx > rounds
                assert set(counts(machine)) <= {machine.cpu.rbx, machine.cpu.rbx + 1}
        finally:
            child.kill()


def test_a_source_that_is_killed_leaves_nothing_running_there(tmp_path: Path) -> None:
    path, image = tmp_path / "s", tmp_path / "image"
    image.write_bytes(DIRTYING)
    listener = Listener(Address.parse(f"unix:{path}"))
    with start("migrate", image, "--mode", "l64", "--load", "0x8000", "-b", "unicorn", "--to", f"unix:{path}",
               "--serial", "none", "-q") as child:  # fmt: skip
        try:
            wire = listener.accept(5, 20)
            assert wire is not None

            def kill(progress: Progress) -> None:
                if progress.phase == "round":
                    child.send_signal(signal.SIGKILL)
                    child.wait(time_limit(10))

            with pytest.raises(MigrationError, match="the source ended too early"):
                receive(wire, backend="unicorn", progress=kill)
        finally:
            child.kill()
            listener.close()


def test_a_reader_that_stops_reading_is_given_up() -> None:
    ours, theirs = pair()
    gate = threading.Event()
    with Machine(backend="unicorn", memory=8 << 20) as machine:
        machine.load(load_flat(DIRTYING, name="dirtying", load_address=0x8000, mode="l64"))
        machine.memory.write(0x300000, os.urandom(4 << 20))
        taking = Taking(
            Wire(theirs, 5), backend="unicorn",
            progress=lambda progress: gate.wait(time_limit(10)) if progress.phase == "round" else None,
        )  # fmt: skip
        began = time.monotonic()
        with pytest.raises(MigrationError, match="takes nothing any more"):
            migrate(machine, Wire(ours, 0.3))
        assert time.monotonic() - began < time_limit(5)
        gate.set()
        taking.join(time_limit(10))
        assert taking.found is None
        before = machine.cpu.rbx
        machine.run(budget=seconds(0.2))
        assert machine.cpu.rbx > before


def test_a_reader_that_drips_does_not_hold_a_guest_that_stands_still() -> None:
    ours, theirs = pair()
    with Machine(backend="unicorn", memory=8 << 20) as machine:
        machine.load(load_flat(b"\xf4", name="halt", load_address=0x8000, mode="real"))
        machine.memory.write(0x300000, os.urandom(4 << 20))
        taking = Taking(
            Wire(theirs, 5), backend="unicorn",
            progress=lambda progress: time.sleep(0.1) if progress.phase == "round" else None,
        )  # fmt: skip
        began = time.monotonic()
        with pytest.raises(MigrationError, match=r"takes nothing any more|says nothing"):
            migrate(machine, Wire(ours, 1.0), live=False, patience=1.0)
        assert time.monotonic() - began < time_limit(6)
        taking.join(time_limit(10))
        assert isinstance(machine.run(), Halt)


def test_a_stranger_who_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from vmmsim.snapshot import receive as receive_module

    monkeypatch.setattr(receive_module, "HANDSHAKE", 0.2)
    monkeypatch.setattr(migrate_module, "HANDSHAKE", 0.2)
    silent, theirs = pair()
    with silent, pytest.raises(MigrationError, match="says nothing for"):
        receive(Wire(theirs, 5), backend="unicorn")
    silent, ours = pair()
    with silent, dirtying("unicorn") as machine:
        with pytest.raises(MigrationError, match="says nothing for"):
            migrate(machine, Wire(ours, 5))
        machine.run(budget=seconds(0.01))


def test_a_run_that_its_caller_cancels_is_not_moved() -> None:
    ours, theirs = pair()
    asked = threading.Event()
    with dirtying("unicorn") as machine:
        taking = Taking(Wire(theirs, 5), backend="unicorn")

        def stop(progress: Progress) -> None:
            if progress.phase == "round" and not asked.is_set():
                asked.set()
                machine.cancel()

        moved = migrate(machine, Wire(ours, 5), cancelled=asked.is_set, progress=stop)
        taking.join(time_limit(10))
        assert moved.end is not None
        assert moved.end.kind == "cancelled"
        assert "gave up" in str(taking.error)
        machine.run(budget=seconds(0.01))


# -- addresses and keys


@pytest.mark.parametrize(
    "text",
    ["", "tcp://", "tcp://localhost", "tcp://:1", "tcp://h:70000", "tcp://h:x", "unix:", "http://h:1", "h:1",
     "tcp://h:١"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        Address.parse(text)


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:4444", "tcp://[::1]:4444", "unix:/tmp/x", "unix:x"])
def test_addresses_are_written_as_they_are_read(text: str) -> None:
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_other_hosts_only_when_they_are_asked_for(host: str) -> None:
    with pytest.raises(UsageError, match="can be reached from other hosts"):
        Listener(Address.parse(f"tcp://{host}:0"))


def test_a_network_needs_a_key_that_is_long_enough() -> None:
    address = Address.parse("tcp://127.0.0.1:1")
    with pytest.raises(UsageError, match="needs a key"):
        address.check_key(b"")
    with pytest.raises(UsageError, match="a key of 15 bytes can be guessed"):
        address.check_key(b"k" * 15)
    address.check_key(b"k" * 16)
    Address.parse("unix:/x").check_key(b"")


def test_a_key_file_is_its_line(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY + b"\n")
    assert read_key(str(tmp_path / "key")) == KEY
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "huge").write_bytes(b"x" * 5000)
    for name in ("empty", "huge", "missing", "\0"):
        with pytest.raises(UsageError, match="key file"):
            read_key(str(tmp_path / name))


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="nobody answers at unix:"):
        connect(Address.parse(f"unix:{tmp_path / 'nobody'}"))


def test_a_unix_socket_is_its_owners_and_goes_with_its_listener(tmp_path: Path) -> None:
    path = tmp_path / "s"
    address = Address.parse(f"unix:{path}")
    listener = Listener(address)
    assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(Exception, match="cannot listen"):
        Listener(address)
    listener.close()
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as dead:  # left behind by a process that was killed
        dead.bind(str(path))
    Listener(address).close()
    path.write_bytes(b"a file")
    with pytest.raises(Exception, match="cannot listen"):
        Listener(address)
    assert path.read_bytes() == b"a file"


def test_over_tcp_with_a_key() -> None:
    listener = Listener(Address.parse("tcp://127.0.0.1:0"))
    with guess("unicorn") as machine:
        machine.run(budget=exits(50))
        taking = threading.Thread(target=lambda: found.append(listener.accept(5, 5)))
        found: list[Wire | None] = []
        taking.start()
        wire = connect(listener.address)
        taking.join(time_limit(5))
        assert found[0] is not None
        receiver = Taking(found[0], backend="unicorn", key=KEY, source=BytesSource(INPUT))
        assert migrate(machine, wire, key=KEY, live=False).report is not None
        with receiver.machine() as there:
            there.run()
            assert machine.output.data + there.output.data == straight()[1]
    listener.close()


def test_the_clock_and_its_timers_go_on_where_they_were() -> None:
    trace: list[Any] = []
    with traced(Machine.for_guest("timer-real", backend="unicorn", clock="exits"), trace) as machine:
        machine.run(budget=seconds(time_limit(10)))
        end = machine.clock.now()
    found: list[Any] = []
    with traced(Machine.for_guest("timer-real", backend="unicorn", clock="exits"), found) as machine:
        machine.run(budget=exits(len(trace) // 2))
        now = machine.clock.now()
        there, _ = move(machine, "unicorn")
        with traced(there, found):
            assert there.clock.now() == now > 0
            there.run(budget=seconds(time_limit(10)))
            assert there.clock.now() == end
            assert found == trace
