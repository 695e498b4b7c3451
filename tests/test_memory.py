"""GuestMemory is a sparse byte array: what was stored is read back, holes are errors."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from vmmsim.errors import HostError, UsageError
from vmmsim.memory import GPA_LIMIT, PAGE_SIZE, GuestMemory, Region, format_size, parse_size

PAGES = 12


class Vm:
    """What the backend hears of memory."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.written: list[tuple[int, int]] = []

    def map_memory(self, region: Region) -> None:
        self.regions.append(region)

    def unmap_memory(self, region: Region) -> None:
        self.regions.remove(region)

    def memory_written(self, gpa: int, size: int) -> None:
        self.written.append((gpa, size))


class MemoryMachine(RuleBasedStateMachine):
    """Any order of add, remove, read and write agrees with a dict of bytes, and an access
    that meets a hole changes nothing."""

    regions = Bundle("regions")

    def __init__(self) -> None:
        super().__init__()
        self.memory = GuestMemory()
        self.vm = Vm()
        self.memory.attach(self.vm, lambda: None)  # type: ignore[arg-type]
        self.model: dict[int, int] = {}

    def teardown(self) -> None:
        self.memory.close()

    @rule(target=regions, page=st.integers(0, PAGES - 1), count=st.integers(1, 3), rom=st.booleans())
    def add(self, page: int, count: int, rom: bool) -> Region | None:
        gpa, size = page * PAGE_SIZE, count * PAGE_SIZE
        if any(at in self.model for at in range(gpa, gpa + size, PAGE_SIZE)):
            with pytest.raises(UsageError, match="overlaps"):
                self.memory.add(gpa, size, readonly=rom)
            return None
        region = self.memory.add(gpa, size, readonly=rom)
        self.model |= dict.fromkeys(range(gpa, gpa + size), 0)
        return region

    @rule(region=consumes(regions))
    def remove(self, region: Region | None) -> None:
        if region is None:
            return
        self.memory.remove(region)
        for at in range(region.gpa, region.end):
            del self.model[at]
        with pytest.raises(UsageError, match="not part of this memory"):
            self.memory.remove(region)

    @rule(gpa=st.integers(0, PAGES * PAGE_SIZE), data=st.binary(min_size=1, max_size=40), edge=st.booleans())
    def write(self, gpa: int, data: bytes, edge: bool) -> None:
        if edge:
            gpa = max(0, gpa // PAGE_SIZE * PAGE_SIZE - len(data) // 2)
        span = range(gpa, gpa + len(data))
        self.vm.written.clear()
        if all(at in self.model for at in span):
            self.memory.write(gpa, data)
            self.model |= dict(zip(span, data, strict=True))
            # Every byte that changed is told to the backend, which may have translated it.
            assert sum(size for _, size in self.vm.written) == len(data)
            assert self.vm.written[0][0] == gpa
        else:
            with pytest.raises(UsageError, match="no memory at"):
                self.memory.write(gpa, data)
            assert not self.vm.written

    @rule(gpa=st.integers(0, PAGES * PAGE_SIZE), size=st.integers(0, 40), edge=st.booleans())
    def read(self, gpa: int, size: int, edge: bool) -> None:
        if edge:
            gpa = max(0, gpa // PAGE_SIZE * PAGE_SIZE - size // 2)
        span = range(gpa, gpa + size)
        whole = all(at in self.model for at in span)
        assert self.memory.contains(gpa, size) == whole
        if whole:
            assert self.memory.read(gpa, size) == bytes(self.model[at] for at in span)
        else:
            with pytest.raises(UsageError, match="no memory at"):
                self.memory.read(gpa, size)

    @invariant()
    def the_backend_has_the_same_regions(self) -> None:
        assert sorted(r.gpa for r in self.vm.regions) == [r.gpa for r in self.memory.regions]
        assert self.memory.size == len(self.model)


TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = settings(max_examples=60, stateful_step_count=30)


@given(st.integers(1, 8), st.data())
def test_integers_are_little_endian(size: int, data: st.DataObject) -> None:
    value = data.draw(st.integers(0, 2 ** (8 * size) - 1))
    memory = GuestMemory()
    memory.add(0, PAGE_SIZE)
    memory.write_int(16, size, value)
    assert memory[16 : 16 + size] == value.to_bytes(size, "little")
    assert memory.read_int(16, size) == value
    with pytest.raises(UsageError, match="does not fit"):
        memory.write_int(16, size, 1 << 8 * size)
    memory.close()


def test_items_and_slices() -> None:
    memory = GuestMemory()
    memory.add(0x1000, PAGE_SIZE)
    memory[0x1000] = 0x41
    memory[0x1001:0x1003] = b"BC"
    assert memory[0x1000] == 0x41
    assert memory[0x1000:0x1003] == b"ABC"
    with pytest.raises(UsageError, match="do not fit"):
        memory[0x1000:0x1002] = b"ABC"
    for key in (slice(None, 4), slice(4, None), slice(0, 8, 2), slice(8, 4)):
        with pytest.raises(UsageError, match="a start and an end"):
            _ = memory[key]
    memory.close()


@pytest.mark.parametrize(
    ("gpa", "size", "message"),
    [
        (0, 0, "a size of 0 bytes"),
        (0, -4096, "a size of -4096 bytes"),
        (0x800, 0x1000, "address 0x800 is not a multiple"),
        (0, 0x1800, "size 0x1800 is not a multiple"),
        (GPA_LIMIT, 0x1000, "beyond 2\\^48"),
        (GPA_LIMIT - 0x1000, 0x2000, "beyond 2\\^48"),
        (-0x1000, 0x1000, "beyond 2\\^48"),
    ],
)
def test_bad_regions_are_refused_by_name(gpa: int, size: int, message: str) -> None:
    memory = GuestMemory()
    with pytest.raises(UsageError, match=message):
        memory.add(gpa, size)
    assert memory.regions == ()


def test_memory_at_the_top_of_the_address_space() -> None:
    memory = GuestMemory()
    memory.add(GPA_LIMIT - 0x1000, 0x1000)
    memory[GPA_LIMIT - 1] = 7
    assert memory[GPA_LIMIT - 1] == 7
    memory.close()


def test_more_memory_than_the_host_has_is_a_host_error() -> None:
    with pytest.raises(HostError, match="the host has no 128 TiB"):
        GuestMemory().add(0, 1 << 47)


def test_the_digest_knows_place_kind_and_bytes() -> None:
    def made(gpa: int = 0, readonly: bool = False, byte: int = 0) -> str:
        memory = GuestMemory()
        memory.add(gpa, PAGE_SIZE, readonly=readonly)
        memory[gpa] = byte
        digest = memory.digest()
        memory.close()
        return digest

    assert made() == made()
    assert len({made(), made(gpa=0x1000), made(readonly=True), made(byte=1)}) == 4


def test_the_guard_runs_before_the_host_looks() -> None:
    memory = GuestMemory()
    memory.add(0, PAGE_SIZE)
    calls: list[str] = []
    memory.attach(Vm(), lambda: calls.append("settled"))  # type: ignore[arg-type]
    memory.read(0, 1)
    memory.write(0, b"x")
    memory.digest()
    assert len(calls) == 3
    memory.close()


def test_close_with_a_view_alive_says_what_to_do() -> None:
    memory = GuestMemory()
    region = memory.add(0, PAGE_SIZE)
    view = memoryview(region.buffer)
    with pytest.raises(UsageError, match="memoryview"):
        memory.close()
    view.release()
    memory.close()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64M", 64 << 20),
        ("64", 64 << 20),
        ("1GiB", 1 << 30),
        ("512kib", 512 << 10),
        ("4096B", 4096),
        ("2T", 2 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1.5G", "64Q", "0x10", "64 M M", "²M", "1" * 5000])
def test_bad_sizes_name_the_forms(text: str) -> None:
    with pytest.raises(UsageError, match="a bare number is MiB"):
        parse_size(text)


@given(st.integers(0, 1 << 44))
def test_a_size_reads_back_as_near_as_it_is_shown(size: int) -> None:
    number, unit = format_size(size).split()
    one = parse_size("1" + ("B" if unit == "bytes" else unit))
    assert len(number) <= 6
    if "." in number:
        assert abs(float(number) - size / one) <= 0.0501
    else:
        assert int(number) * one == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (512, "512 bytes"),
        (64 << 20, "64 MiB"),
        (1025 << 10, "1025 KiB"),
        (536870904 << 10, "512.0 GiB"),
        ((3 << 30) // 2 + 1, "1.5 GiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text
