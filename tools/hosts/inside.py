"""What a host's script has its Python do: guests' exit traces, and snapshots that go to other hosts.

Each verb is one process for all guests, since where a host is emulated a start of Python takes seconds.

    python tools/hosts/inside.py traces FOLDER [GUEST...]
        FOLDER/GUEST.jsonl: each exit of the guest, then its registers and the SHA-256 of its memory
    python tools/hosts/inside.py snapshots FOLDER [GUEST...]
        FOLDER/GUEST.vsnap: the machine after half of its exits; FOLDER/GUEST.rest: the exits after it
    python tools/hosts/inside.py restore FOLDER [GUEST...]
        goes on from each GUEST.vsnap, and compares its exits with those of GUEST.rest

The CPU is VMMSIM_BACKEND's (unicorn where it is not set) and VMMSIM_UNICORN's. Clocks count exits, the input
is the guest's example and the random devices have a seed, so on a sound host all files are the same bytes
as on any other. A guest that this CPU refuses by its manifest is left out, with a line that says so.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from vmmsim import Machine, guests
from vmmsim.backends import open_backend
from vmmsim.backends.base import Backend
from vmmsim.budget import seconds
from vmmsim.cpu.state import CpuState
from vmmsim.exits import Access, Exit
from vmmsim.snapshot.container import load, save
from vmmsim.streams import BytesSource
from vmmsim.testing.slow import time_limit
from vmmsim.trace import Header, TraceWriter

SEED = 7
#: Seconds (times VMMSIM_SLOW): the longest guest takes two on an ordinary host.
LIMIT = 30.0


def machine_of(name: str, backend: Backend) -> Machine:
    return Machine.for_guest(
        name, backend=backend, source=BytesSource(guests.load(name).input), seed=SEED, clock="exits"
    )


class Recording:
    """A machine's run to its end: `steps` are its accesses, from now on."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.steps: list[tuple[type[Access], int, int, int]] = []
        self._end: Exit | None = None
        self._notes: dict[int, Callable[[], None]] = {}
        machine.observe(self._seen)

    def after(self, number: int, then: Callable[[], None]) -> None:
        """Call `then` after access `number` (1 is the first), when its instruction is done."""
        self._notes[number] = then

    def _seen(self, cls: type[Access], address: int, size: int, value: int) -> None:
        self.steps.append((cls, address, size, value))
        if len(self.steps) in self._notes:
            self.machine.between(self._notes[len(self.steps)])

    def run(self) -> Recording:
        self._end = self.machine.run(budget=seconds(time_limit(LIMIT)))
        return self

    def write(self, path: Path, first: int = 0) -> None:
        """The accesses from number `first` on (0 is the first), and the end, as JSON Lines."""
        with open(path, "wb") as file:
            # Nothing of the CPU is in the header: the bytes are to be the same on every one.
            writer = TraceWriter(file, Header(guest=path.stem, backend="", provenance=""))
            for step in self.steps[first:]:
                writer(*step)
            writer.end(self._end, detail=self._end.describe() if self._end else "", rip=self.machine.cpu.rip)


def final(machine: Machine) -> bytes:
    """The end of a machine: registers, memory, output, one line each."""
    lines = [msgspec.json.encode(_plain(item.vcpu.state())) for item in machine.processors]
    for region in machine.memory.regions:
        data = machine.memory.read(region.gpa, region.size)
        lines.append(f"{region.gpa:#x} {hashlib.sha256(data).hexdigest()}".encode())
    lines.append(machine.output.data)
    return b"\n".join(lines) + b"\n"


def _plain(state: CpuState) -> object:
    return msgspec.to_builtins(state, enc_hook=repr)


def traces(folder: Path, backend: Backend, names: list[str]) -> int:
    for name in names:
        with machine_of(name, backend) as machine:
            Recording(machine).run().write(folder / f"{name}.jsonl")
            with open(folder / f"{name}.jsonl", "ab") as file:
                file.write(final(machine))
    return 0


def snapshots(folder: Path, backend: Backend, names: list[str]) -> int:
    for name in names:
        with machine_of(name, backend) as machine:
            middle = len(Recording(machine).run().steps) // 2
        if not middle:
            continue  # one exit or none: there is no middle
        with machine_of(name, backend) as machine:
            recording, done = Recording(machine), []

            def take(name: str = name, recording: Recording = recording, done: list[int] = done) -> None:
                save(recording.machine.snapshot(), folder / f"{name}.vsnap")
                done.append(len(recording.steps))

            recording.after(middle, take)
            recording.run().write(folder / f"{name}.rest", done[0])
    return 0


def restore(folder: Path, backend: Backend, names: list[str]) -> int:
    count = bad = 0
    for name in names:
        if not (folder / f"{name}.vsnap").exists():
            continue
        count += 1
        again = folder / f"{name}.again"
        snapshot, source = load(folder / f"{name}.vsnap"), BytesSource(guests.load(name).input)
        with Machine.from_snapshot(snapshot, backend=backend, source=source) as machine:
            Recording(machine).run().write(again)
        if again.read_bytes() == (folder / f"{name}.rest").read_bytes():
            again.unlink()
        else:
            print(f"{name}: goes on in another way than where its snapshot was taken: see {again} and .rest")
            bad += 1
    print(f"{count - bad} of {count} snapshots go on in the same way on {backend.provenance}")
    return 1 if bad or not count else 0


VERBS = {"traces": traces, "snapshots": snapshots, "restore": restore}


def main(verb: str, folder: str, *names: str) -> int:
    backend, _ = open_backend(os.environ.get("VMMSIM_BACKEND") or "unicorn")
    chosen = []
    for name in names or guests.names():
        if refused := guests.load(name).manifest.refused.get(backend.provenance):
            print(f"{name}: left out on {backend.provenance}: {refused}")
        else:
            chosen.append(name)
    Path(folder).mkdir(parents=True, exist_ok=True)
    return VERBS[verb](Path(folder), backend, chosen)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in VERBS:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
