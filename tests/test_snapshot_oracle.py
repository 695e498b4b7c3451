"""Memory that is brought back by mapping is memory that is brought back page by page.

Stores by the guest, by the host and by a device (fw_cfg's DMA), snapshots, and restores in any order; the
digest is always that of the moment of the snapshot.
"""

from __future__ import annotations

import functools
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmsim import Machine
from vmmsim.backends import open_backend
from vmmsim.budget import exits
from vmmsim.loaders import load_bytes
from vmmsim.memory import PAGE_SIZE
from vmmsim.snapshot import cow, host_pages
from vmmsim.snapshot.values import Snapshot

#: l: mov [edi], eax; out 0x80, al; jmp l
STORES = bytes.fromhex("8907e680ebfa")
ROM, FAR = 0xFFFF_0000, 0x4000_0000
#: Pages that are stored to: low RAM, above the hole, the far region.
PAGES = (0x20, 0x21, 0x22, 0x9F, 0xC0, 0xC1, 0xFF, FAR >> 12, (FAR >> 12) + 7)
STEP = st.tuples(
    st.sampled_from("gghhdnnsrrc"), st.sampled_from(PAGES), st.integers(0, 255), st.integers(0, 9)
)


def machine_of(backend: Any) -> Machine:
    """Two regions and a hole of its model, one more far away, and ROM."""
    machine = Machine(backend=backend, model="pc", memory=1 << 20, clock="exits", seed=1)
    machine.memory.add(FAR, 0x8000, name="far")
    machine.memory.add(ROM, 0x10000, readonly=True, name="ROM")
    machine.load(load_bytes(STORES, name="test", load_address=0x7C00, mode="p32"))
    return machine


@functools.cache
def pair(name: str, engine: str) -> tuple[Machine, Machine, Snapshot]:
    backend = open_backend(name)[0]
    one, other = machine_of(backend), machine_of(backend)
    return one, other, one.snapshot()


def by_guest(machine: Machine, gpa: int, value: int) -> None:
    registers = machine.vcpu.registers()
    registers.rdi, registers.rax, registers.rip = gpa, value * 0x01010101, 0x7C00
    machine.vcpu.set_registers(registers)
    machine.run(budget=exits(1))


def by_dma(machine: Machine, gpa: int, value: int) -> None:
    """A READ of the file directory (19h) to `gpa`; its own structure lies in the page of the code."""
    machine.memory.write(0x7D00, struct.pack(">IIQ", 0x19 << 16 | 0x08 | 0x02, 4 + value, gpa))
    machine.ports.write(0x514, 4, 0)
    machine.ports.write(0x518, 4, int.from_bytes(struct.pack(">I", 0x7D00), "little"))
    assert machine.memory.read(0x7D00, 4) == bytes(4)


def play(one: Machine, other: Machine, power_on: Snapshot, steps: list[tuple[str, int, int, int]]) -> None:
    one.restore(power_on)
    moments = [(power_on, one.memory.digest())]
    for what, page, value, which in steps:
        gpa = page * PAGE_SIZE + 4 * value
        if what == "g":
            by_guest(one, gpa, value)
        elif what == "h":
            one.memory.write(gpa, bytes([value]) * (PAGE_SIZE - 4 * value if value & 1 else 8))
        elif what == "d":
            by_dma(one, gpa - 4 * value, value)
        elif what == "n":  # nothing for the guest: a page of ROM, or the same bytes once more
            at = ROM + value * 256 if which & 1 else gpa
            one.memory.write(at, one.memory.read(at, 1) if not which & 1 else bytes([value]))
        elif what == "s":
            moments.append((one.snapshot(), one.memory.digest()))
        elif what == "r":
            snapshot, digest = moments[which % len(moments)]
            one.restore(snapshot, copy=bool(value & 1 and value & 2))
            assert one.memory.digest() == digest
            by_guest(one, 0x9F00, 1)  # it runs, and sees its own stores
            assert one.memory.read(0x9F00, 4) == b"\1\1\1\1"
            one.restore(snapshot)
        else:  # over to another machine, and a snapshot of that
            snapshot, digest = moments[which % len(moments)]
            other.restore(snapshot)
            assert other.memory.digest() == digest
            by_guest(other, gpa, value)
            moments.append((other.snapshot(), other.memory.digest()))
    for snapshot, digest in reversed(moments):
        one.restore(snapshot)
        other.restore(snapshot, copy=True)
        assert one.memory.digest() == digest == other.memory.digest()


def examples(name: str, engine: str, count: int) -> None:
    @settings(max_examples=count)
    @given(st.lists(STEP, min_size=4, max_size=30))
    def script(steps: list[tuple[str, int, int, int]]) -> None:
        play(*pair(name, engine), steps)

    script()


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        pytest.param("kvm", "", marks=pytest.mark.kvm, id="kvm"),
        pytest.param("unicorn", "", marks=pytest.mark.unicorn, id="unicorn"),
    ],
)
def test_the_digest_is_always_that_of_the_snapshot(name: str, engine: str) -> None:
    examples(name, engine, 20)


@pytest.mark.unicorn
def test_where_there_is_no_page_map_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_pages, "_page_map", lambda address, size: None)
    examples("unicorn", "no page map", 6)


@pytest.mark.unicorn
def test_where_host_pages_cannot_be_mapped_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.setattr(cow, "can_map", lambda: False)
    examples("unicorn", "no mapping", 6)


def test_a_large_machine_with_little_in_it(backend_name: str) -> None:
    """4 GiB, of which some pages are there; a chain of snapshots of restored machines."""
    with Machine(backend=backend_name, memory=4 << 30, clock="exits", seed=1) as machine:
        regions = [region.gpa for region in machine.memory.regions]
        assert max(regions) == 4 << 30
        marks = [region.gpa + 0x5000 for region in machine.memory.regions]
        chain = []
        for value in range(1, 5):
            for gpa in marks:
                machine.memory.write(gpa, bytes([value]) * 100)
            machine.memory.write(0x100000 * value, b"mark")
            chain.append(machine.snapshot())
            machine.restore(chain[-1])
        with Machine.from_snapshot(chain[-1], backend=backend_name) as other:
            other.memory.write(0x900000, b"other")
            chain.append(other.snapshot())
        for number in (2, 0, 4, 1, 3):
            machine.restore(chain[number])
            value = min(number + 1, 4)
            assert [machine.memory.read(gpa, 1)[0] for gpa in marks] == [value] * len(marks)
            found = [machine.memory.read(0x100000 * n, 4) for n in range(1, 5)]
            assert found == [b"mark" if n <= value else bytes(4) for n in range(1, 5)]
            assert machine.memory.read(0x900000, 5) == (b"other" if number == 4 else bytes(5))
