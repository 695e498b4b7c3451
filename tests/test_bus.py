"""A bus gives each byte of an access to the device that claims it, once, in order."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from vmmsim.bus import Bus, Mapping, split_access
from vmmsim.errors import UsageError


class Bytes:
    """A device that is plain storage, and checks that it only sees what it declared."""

    def __init__(self, length: int, widths: set[int]) -> None:
        self.widths = frozenset(widths)
        self.data = bytearray(range(1, length + 1))
        self.log: list[tuple[str, int, int]] = []

    def _check(self, offset: int, size: int) -> None:
        assert size in self.widths
        assert offset >= 0

    def read(self, offset: int, size: int) -> int:
        self._check(offset, size)
        self.log.append(("r", offset, size))
        return int.from_bytes(self.data[offset : offset + size].ljust(size, b"\0"), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self._check(offset, size)
        self.log.append(("w", offset, size))
        room = len(self.data) - offset
        self.data[offset : offset + size] = value.to_bytes(size, "little")[:room]


WIDTHS = st.sets(st.sampled_from([1, 2, 4, 8]), min_size=1).map(lambda s: s | {1})


@given(st.integers(0, 2**52), st.integers(1, 64))
def test_split_access_gives_ascending_pieces_of_at_most_8_bytes_within_a_page(
    address: int, size: int
) -> None:
    pieces = list(split_access(address, size))
    assert sum(n for _, n in pieces) == size
    at = address
    for start, n in pieces:
        assert start == at
        assert 1 <= n <= 8
        assert start // 4096 == (start + n - 1) // 4096
        at += n
    # No more pieces than the rule asks for: two neighbours could not have been one.
    for (a, n), (b, m) in pairwise(pieces):
        assert n + m > 8 or b % 4096 == 0
        assert a < b


def test_split_access_of_the_contracts_examples() -> None:
    assert list(split_access(0x8FFD, 8)) == [(0x8FFD, 3), (0x9000, 5)]
    assert list(split_access(0x8FFB, 8)) == [(0x8FFB, 5), (0x9000, 3)]
    assert list(split_access(0x8000, 16)) == [(0x8000, 8), (0x8008, 8)]
    assert list(split_access(0x8003, 8)) == [(0x8003, 8)]


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12), WIDTHS), max_size=6),
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 8), st.integers(0, 2**64 - 1)),
        max_size=30,
    ),
)
def test_a_bus_is_a_byte_array_with_holes_that_read_ones(
    mappings: list[tuple[int, int, set[int]]], script: list[tuple[bool, int, int, int]]
) -> None:
    bus = Bus("test", 0x1000)
    model: dict[int, int] = {}
    for start, length, widths in mappings:
        device = Bytes(length, widths)
        try:
            bus.attach(start, length, device)
        except UsageError:
            assert any(at in model for at in range(start, start + length))
            continue
        model |= {start + i: device.data[i] for i in range(length)}
    reads = writes = 0
    for is_write, address, size, value in script:
        value &= (1 << 8 * size) - 1
        missed = any(at not in model for at in range(address, address + size))
        if is_write:
            bus.write(address, size, value)
            for at, byte in zip(range(address, address + size), value.to_bytes(size, "little"), strict=True):
                if at in model:
                    model[at] = byte
            writes += missed
        else:
            wanted = bytes(model.get(at, 0xFF) for at in range(address, address + size))
            assert bus.read(address, size) == int.from_bytes(wanted, "little")
            reads += missed
    assert (bus.unclaimed_reads, bus.unclaimed_writes) == (reads, writes)


class BusMachine(RuleBasedStateMachine):
    """Whatever was attached and detached before, each address has the device it should have:
    the plans that a bus keeps for speed never outlive the mapping."""

    mappings = Bundle("mappings")

    def __init__(self) -> None:
        super().__init__()
        self.bus = Bus("test", 0x100)
        self.owner: dict[int, Mapping] = {}

    @rule(target=mappings, start=st.integers(0, 0xFF), length=st.integers(1, 32), widths=WIDTHS)
    def attach(self, start: int, length: int, widths: set[int]) -> Mapping | None:
        taken = any(at in self.owner for at in range(start, start + length))
        if taken or start + length > 0x100:
            with pytest.raises(UsageError):
                self.bus.attach(start, length, Bytes(length, widths))
            return None
        mapping = self.bus.attach(start, length, Bytes(length, widths))
        self.owner |= dict.fromkeys(range(start, start + length), mapping)
        return mapping

    @rule(mapping=consumes(mappings))
    def detach(self, mapping: Mapping | None) -> None:
        if mapping is None:
            return
        self.bus.detach(mapping)
        self.owner = {at: m for at, m in self.owner.items() if m is not mapping}
        with pytest.raises(UsageError, match="is not on"):
            self.bus.detach(mapping)

    @rule(address=st.integers(0, 0xFF), size=st.sampled_from([1, 2, 4, 8]))
    def read(self, address: int, size: int) -> None:
        value = self.bus.read(address, size).to_bytes(size, "little")
        for i in range(size):
            mapping = self.owner.get(address + i)
            want = mapping.device.data[address + i - mapping.start] if mapping else 0xFF  # type: ignore[attr-defined]
            assert value[i] == want

    @invariant()
    def find_agrees(self) -> None:
        for at in range(0, 0x100, 7):
            assert self.bus.find(at) is self.owner.get(at)


TestBusMachine = BusMachine.TestCase


def test_an_access_is_cut_into_the_widest_pieces_a_device_takes() -> None:
    bus = Bus("test", 0x100)
    device = Bytes(8, {1, 2})
    bus.attach(0x10, 8, device)
    assert bus.read(0x11, 7) == int.from_bytes(bytes([2, 3, 4, 5, 6, 7, 8]), "little")
    assert device.log == [("r", 1, 2), ("r", 3, 2), ("r", 5, 2), ("r", 7, 1)]


def test_an_answer_too_wide_for_a_piece_is_refused() -> None:
    class Wide:
        widths = frozenset({1})

        def read(self, offset: int, size: int, /) -> int:
            return 0x100

        def write(self, offset: int, size: int, value: int, /) -> None: ...

    bus = Bus("port", 0x10000)
    bus.attach(0x10, 4, Wide())
    with pytest.raises(ValueError, match="0x100 does not answer a 1-byte read"):
        bus.read(0x10, 2)


def test_an_access_over_the_end_goes_to_both_neighbours() -> None:
    bus = Bus("test", 0x100)
    low, high = Bytes(4, {1, 2, 4}), Bytes(4, {4, 1})
    bus.attach(0, 4, low)
    bus.attach(4, 4, high)
    bus.write(2, 4, 0xDDCCBBAA)
    assert low.data == bytes([1, 2, 0xAA, 0xBB])
    assert high.data == bytes([0xCC, 0xDD, 3, 4])
    assert bus.unclaimed_writes == 0


@pytest.mark.parametrize(("start", "length"), [(0, 0), (0, -1), (-1, 2), (0xFFFF, 2), (0x10000, 1)], ids=str)
def test_a_range_that_is_not_on_the_bus_is_refused(start: int, length: int) -> None:
    with pytest.raises(UsageError, match="not on the port bus"):
        Bus("port", 0x10000).attach(start, length, Bytes(1, {1}))


@pytest.mark.parametrize("widths", [set(), {3}, {1, 16}], ids=str)
def test_a_device_with_other_widths_is_refused(widths: set[int]) -> None:
    with pytest.raises(UsageError, match="access widths"):
        Bus("port", 0x10000).attach(0, 1, Bytes(1, widths))


def test_an_overlap_names_both_devices() -> None:
    bus = Bus("port", 0x10000)
    bus.attach(0x3F8, 8, Bytes(8, {1}), "uart")
    with pytest.raises(UsageError, match=r"beeper at 0x3ff\.\.0x400 overlaps <uart 0x3f8\.\.0x3ff>"):
        bus.attach(0x3FF, 2, Bytes(2, {1}), "beeper")


def test_an_unclaimed_access_is_told() -> None:
    bus = Bus("port", 0x10000)
    seen: list[tuple[int, int, bool]] = []
    bus.on_unclaimed = lambda address, size, is_write: seen.append((address, size, is_write))
    assert bus.read(0x80, 4) == 0xFFFFFFFF
    bus.write(0x80, 1, 0)
    assert seen == [(0x80, 4, False), (0x80, 1, True)]


def test_a_scan_of_all_memory_keeps_the_plans_bounded() -> None:
    bus = Bus("MMIO", 1 << 52)
    for page in range(20_000):
        bus.read(page << 12, 4)
        bus.write(page << 12, 4, 0)
    assert len(bus.readers) <= 4096
    assert len(bus.writers) <= 4096
    assert bus.unclaimed_reads == bus.unclaimed_writes == 20_000
