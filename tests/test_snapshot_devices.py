"""Every device of both models, in a machine: run, snapshot, restore, run is run straight through.

Scripts of register accesses, time, input and interrupts that are taken, cut at a random place. Once by
the buses, without a guest, and once by a guest that makes the accesses, on each CPU.
"""

from __future__ import annotations

import functools
import random
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmsim import Machine
from vmmsim.backends import open_backend
from vmmsim.budget import seconds
from vmmsim.config import MachineConfig
from vmmsim.diff import TraceStep, compare_traces
from vmmsim.loaders import load_bytes
from vmmsim.models import DEVICES, MODELS
from vmmsim.snapshot.values import Snapshot
from vmmsim.streams import BytesSource, QueueSource
from vmmsim.testing.slow import time_limit

#: Devices of no model, which are added to `pc`.
EXTRA = tuple(name for name in DEVICES if not any(name in names for names in MODELS.values()))
CONFIGS = {
    "bare": MachineConfig(memory=1 << 20, clock="exits", seed=4, model="bare"),
    "pc": MachineConfig(memory=1 << 20, clock="exits", seed=4, model="pc", extra_devices=EXTRA, cpus=2),
}
CASES = [(model, name) for model in MODELS for name in (*MODELS[model], *(EXTRA if model == "pc" else ()))]

#: (what, which range, offset, size, value): each is taken modulo what there is.
Step = tuple[int, int, int, int, int]
VALUES = st.one_of(
    st.sampled_from([0, 1, 0xFF, 0xFFFF_FFFF, (1 << 64) - 1]),
    st.integers(0, 255),
    st.integers(0, (1 << 64) - 1),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from("rrrwwwwwtiam").map(ord),
        st.integers(0, 7),
        st.integers(0, 1 << 16),
        st.integers(0, 3),
        VALUES,
    ),
    min_size=2,
    max_size=40,
)


class Player:
    """Plays steps on a machine. `answers` are what came of them."""

    def __init__(self, machine: Machine, device: str) -> None:
        self.machine = machine
        self.answers: list[Any] = []
        self.sent = bytearray()
        spec = DEVICES[device]
        faces = {device} | {f"{device}-{face}" for _, _, face in spec.faces}
        buses = ((bus, mapping) for bus in (machine.ports, machine.mmio) for mapping in bus.mappings)
        self.places = [
            (bus, m) for bus, m in buses if m.name in faces or (spec.behind and m.name == spec.behind)
        ]
        assert self.places

    def play(self, steps: list[Step]) -> list[Any]:
        self.answers = []
        for step in steps:
            self._step(*step)
        machine = self.machine
        self.answers.append([item.board.pending() for item in machine.processors if item.board is not None])
        self.answers.append((machine.clock.now(), machine.clock.deadline, machine.device_states()))
        return self.answers

    def _step(self, what: int, which: int, offset: int, size: int, value: int) -> None:
        machine = self.machine
        kind = chr(what)
        if kind in "rw":
            bus, mapping = self.places[which % len(self.places)]
            size = 1 << size
            address = mapping.start + offset % max(1, mapping.end - mapping.start - size + 1)
            machine.processors.current = which % len(machine.processors.items)
            if kind == "r":
                self.answers.append(bus.read(address, size))
            else:
                bus.write(address, size, value & (1 << 8 * size) - 1)
        elif kind == "t":  # as between two instructions: nanoseconds, or seconds
            clock = machine.clock
            clock.skip_to(clock.now() + value % (1 << 32))  # type: ignore[attr-defined]
            if machine._chipset is not None:
                machine._chipset.service()
        elif kind == "i":
            self.sent.append(value & 0xFF)
            machine.source.send(bytes([value & 0xFF]))  # type: ignore[attr-defined]
        elif kind == "m" and machine.accesses.msrs is not None:
            index = 0x1B if value & 1 else 0x800 + offset % 0x40
            if which & 1:
                self.answers.append(machine.accesses.msr_write(index, value))
            else:
                self.answers.append(machine.accesses.msr_read(index))
        elif kind == "a":
            board = machine.processors.items[which % len(machine.processors.items)].board
            if board is not None and board.pending():
                self.answers.append(board.acknowledge())


def difference(one: Any, two: Any, at: str = "") -> str:
    """Where two values differ first: what pytest would show of states is pages long, and takes minutes."""
    if type(one) is not type(two):
        return f"{at}: {one!r:.80} and {two!r:.80}"
    if isinstance(one, msgspec.Struct):
        one, two = msgspec.structs.asdict(one), msgspec.structs.asdict(two)
    if isinstance(one, (list, tuple)):
        one, two = dict(enumerate(one)), dict(enumerate(two))
    if not isinstance(one, dict):
        return "" if one == two else f"{at}: {one!r:.80} and {two!r:.80}"
    if one.keys() != two.keys():
        return f"{at}: {set(one) ^ set(two)}"
    return next((found for key in one if (found := difference(one[key], two[key], f"{at}.{key}"))), "")


class Input(BytesSource):
    """Input that can be replaced."""

    def begin(self, data: bytes) -> None:
        self._data = data
        self.seek(0)

    def send(self, data: bytes) -> None:
        self._data += data
        self._bytes.extend(data)


@functools.cache
def three(model: str) -> tuple[tuple[Machine, ...], Snapshot]:
    """Three machines, and what they are at power-on: making them for each script would take minutes."""
    backend = open_backend("unicorn")[0]
    machines = tuple(Machine(CONFIGS[model], backend=backend, source=Input()) for _ in range(3))
    return machines, machines[0].snapshot()


@pytest.mark.unicorn
@pytest.mark.parametrize(("model", "device"), CASES, ids=[f"{model} {name}" for model, name in CASES])
def test_run_snapshot_restore_run_is_run_straight_through(model: str, device: str) -> None:
    @settings(max_examples=12)
    @given(STEPS, st.integers(0, 1 << 16))
    def play(steps: list[Step], cut: int) -> None:
        cut %= len(steps) + 1
        (straight, machine, other), power_on = three(model)
        for each in (straight, machine):
            each.source.begin(b"")  # type: ignore[attr-defined]
            each.restore(power_on)
        player = Player(straight, device)
        player.play(steps[:cut])
        printed = len(straight.output.data)
        expected = player.play(steps[cut:])
        player = Player(machine, device)
        player.play(steps[:cut])
        snapshot, states = machine.snapshot(), machine.device_states()
        other.source.begin(bytes(player.sent))  # type: ignore[attr-defined]
        other.restore(snapshot)
        assert difference(states, other.device_states()) == ""
        printed_there = len(other.output.data)
        assert difference(expected, Player(other, device).play(steps[cut:])) == ""
        assert other.output.data[printed_there:] == straight.output.data[printed:]
        player.play(steps[cut:])
        machine.restore(snapshot)
        assert difference(states, machine.device_states()) == ""

    play()


# -- by a guest

SCRIPT, ANSWERS = 0x20000, 0x30000
#: Entries of 12 bytes at SCRIPT: what to do (0 ends), where, and the value; answers go to ANSWERS.
INTERPRETER = f"""mov esi, {SCRIPT}
mov edi, {ANSWERS}
next:
mov ecx, [esi]
mov edx, [esi + 4]
mov eax, [esi + 8]
add esi, 12
dec ecx
js over
jz out1
dec ecx
jz in1
dec ecx
jz out2
dec ecx
jz in2
dec ecx
jz out4
dec ecx
jz in4
dec ecx
jz store
mov eax, [edx]
stored:
mov [edi], eax
add edi, 4
jmp next
store:
mov [edx], eax
jmp next
out1:
out dx, al
jmp next
out2:
out dx, ax
jmp next
out4:
out dx, eax
jmp next
in1:
in al, dx
jmp stored
in2:
in ax, dx
jmp stored
in4:
in eax, dx
jmp stored
over:
hlt
"""
OUT, IN, STORE, LOAD = {1: 1, 2: 3, 4: 5}, {1: 2, 2: 4, 4: 6}, 7, 8
#: Ends or resets the machine whatever is written there.
_NOT = {"debug-exit", "reset-control", "port92"}


def script(seed: int, machine: Machine, length: int = 120) -> bytes:
    chance = random.Random(seed)
    ports = [m for m in machine.ports.mappings if m.name not in _NOT and not m.name.startswith("kbc-")]
    data = b""
    for _ in range(length):
        value = chance.choice((0, 1, 0xFF, chance.getrandbits(8), chance.getrandbits(32)))
        if chance.random() < 0.15:
            mapping = chance.choice(machine.mmio.mappings)
            address = mapping.start + chance.randrange(0, min(mapping.end - mapping.start, 0x400), 16)
            if address == 0xFEE00300:  # no INIT of itself
                value &= ~0x700
            data += struct.pack("<III", chance.choice((STORE, LOAD)), address, value)
            continue
        mapping = chance.choice(ports)
        size = chance.choice([s for s in (1, 2, 4) if s <= mapping.end - mapping.start])
        port = mapping.start + chance.randrange(mapping.end - mapping.start - size + 1)
        if mapping.name == "host-bridge" and port <= 0xCF9 < port + size:
            port, size = 0xCFC, 4
        table = OUT if chance.random() < 0.6 else IN
        data += struct.pack("<III", table[size], port, value)
    return data + bytes(12)


def interpreter(backend: Any, seed: int) -> Machine:
    pytest.importorskip("keystone", reason="keystone-engine has no wheel for this platform")
    from vmmsim.asm import assemble

    config = MachineConfig(memory=1 << 20, clock="exits", seed=4, model="pc", extra_devices=EXTRA)
    machine = Machine(config, backend=backend)
    machine.load(load_bytes(assemble(INTERPRETER, 32, 0x7C00), name="test", load_address=0x7C00, mode="p32"))
    machine.memory.write(SCRIPT, script(seed, machine))
    machine.source.send(b"some input")  # type: ignore[attr-defined]
    return machine


def finish(machine: Machine) -> tuple[list[TraceStep], list[Any]]:
    trace: list[TraceStep] = []
    machine.observe(lambda *access: trace.append(TraceStep.of_access(*access)))
    end = machine.run(budget=seconds(time_limit(20)))
    return trace, [end.describe(), machine.device_states(), machine.memory.digest(), machine.clock.now()]


@pytest.mark.parametrize("seed", range(25))
def test_what_a_guest_does_to_devices_goes_on_on_another_cpu(
    backend_name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = open_backend(backend_name)[0]
    monkeypatch.delenv("VMMSIM_UNICORN", raising=False)
    there = open_backend("unicorn")[0]
    with interpreter(here, seed) as straight:
        expected, end = finish(straight)
    assert len(expected) > 20
    cut = random.Random(seed).randrange(1, len(expected))
    taken: list[Snapshot] = []
    with interpreter(here, seed) as machine:
        seen = 0

        def look(*access: object) -> None:
            nonlocal seen
            seen += 1
            if seen == cut:
                machine.between(lambda: taken.append(machine.snapshot()))

        machine.observe(look)
        assert finish(machine)[0] == expected
    for backend in (there, here):
        source = QueueSource()
        source.send(b"some input")
        with Machine.from_snapshot(taken[0], backend=backend, source=source) as machine:
            rest, other_end = finish(machine)
            found = compare_traces(expected[cut:], rest)
            assert found is None, f"cut at {cut}: {found}"
            assert difference(end, other_end) == ""
