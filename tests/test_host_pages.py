"""Hosts with pages of 16 and 64 KiB: what is mapped there, what is copied, and that nothing else changes.

The rules of such a host are those of tools/hosts/page_rules: mmap refuses what is not aligned, and takes
whole pages. `tools/hosts/pages` runs more tests under them, with Unicorn and KVM in their reach.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_tools import vmmsim
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshot_reader import read
from snapshot_samples import GOLDEN, pattern
from test_migration import dirtying, move
from test_snapshot_machine import GUESSES, game

from vmmsim import Machine
from vmmsim.budget import exits
from vmmsim.errors import HostError
from vmmsim.exits import Halt
from vmmsim.memory import PAGE_SIZE, GuestMemory
from vmmsim.snapshot import cow, host_pages
from vmmsim.snapshot.container import load, save
from vmmsim.snapshot.cow import image_of, put_back
from vmmsim.snapshot.host_pages import fit, suspects, why_copied
from vmmsim.snapshot.pages import ZERO_PAGE, MappedFile, MemoryImage, MemoryRegion, Run
from vmmsim.streams import BytesSource

RULES = Path(__file__).resolve().parent.parent / "tools" / "hosts" / "page_rules"
SIZES = (16 << 10, 64 << 10)
#: Where this host can be taken for one with other pages.
HAS_RULES = sys.platform == "linux" and mmap.PAGESIZE == PAGE_SIZE
#: Sizes that are tested here: all, or that of this host (of an Apple silicon, say).
HERE = [PAGE_SIZE, *SIZES] if HAS_RULES else [mmap.PAGESIZE]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="pages are copied here")
by_rules = pytest.mark.skipif(not HAS_RULES, reason="needs Linux with pages of 4 KiB")
sizes = pytest.mark.parametrize("size", HERE, ids=lambda size: f"{size >> 10}K")


def host(size: int) -> contextlib.AbstractContextManager[None]:
    """This host, as if its pages had `size` bytes."""
    if size == mmap.PAGESIZE:
        return contextlib.nullcontext()
    if str(RULES) not in sys.path:
        sys.path.append(str(RULES))
    from page_rules import rules

    return rules(size)


@pytest.fixture(params=[size for size in HERE if size != PAGE_SIZE], ids=lambda size: f"{size >> 10}K")
def page(request: pytest.FixtureRequest) -> Iterator[int]:
    with host(request.param):
        yield request.param


# -- the rules themselves


def c_mmap(at: int, length: int, fd: int, offset: int) -> int:
    function = ctypes.CDLL(None, use_errno=True).mmap
    return function(at, length, 3, mmap.MAP_PRIVATE | 0x10, fd, offset)


def address(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


@by_rules
def test_every_way_to_ask_says_the_size_of_the_page(page: int) -> None:
    import resource

    told = mmap.PAGESIZE, mmap.ALLOCATIONGRANULARITY, resource.getpagesize(), os.sysconf("SC_PAGE_SIZE")
    assert told == (page,) * 4
    assert os.sysconf("SC_PHYS_PAGES") * page < 1 << 45


@by_rules
def test_what_is_not_aligned_is_refused_and_whole_pages_are_laid_over(page: int, tmp_path: Path) -> None:
    mapping = mmap.mmap(-1, 3 * page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping[:] = b"n" * len(mapping)
    at = address(mapping)
    assert at % page == 0
    (tmp_path / "file").write_bytes(b"f" * page + b"g" * 100)
    with open(tmp_path / "file", "rb") as file:
        for where, offset in ((at + PAGE_SIZE, 0), (at, PAGE_SIZE)):
            assert c_mmap(where, PAGE_SIZE, file.fileno(), offset) == (1 << 64) - 1
            assert ctypes.get_errno() == errno.EINVAL
        with pytest.raises(OSError, match="Invalid argument"):
            mmap.mmap(file.fileno(), 100, access=mmap.ACCESS_READ, offset=PAGE_SIZE)
        with pytest.raises(AssertionError, match="beyond its mapping"):
            c_mmap(at + 2 * page, page + 1, file.fileno(), 0)
        assert c_mmap(at + page, 1, file.fileno(), page) == at + page
    zeros = bytes(page - 100)
    assert mapping[:] == b"n" * page + b"g" * 100 + zeros + b"n" * page


@by_rules
def test_the_page_map_has_an_entry_for_each_page(page: int) -> None:
    memory = GuestMemory()
    region = memory.add(0, 5 * page + PAGE_SIZE)
    region.buffer[page + 5] = region.buffer[5 * page + 7] = 1
    assert list(host_pages.touched(region)) == [(page, page), (5 * page, PAGE_SIZE)]


# -- what is mapped


@given(
    size=st.integers(1, 40), at=st.integers(0, 39), length=st.integers(1, 40), offset=st.integers(0, 99),
    unit=st.sampled_from([size // PAGE_SIZE for size in HERE]),
)  # fmt: skip
@settings(max_examples=150)
def test_only_host_pages_that_are_all_of_the_file_are_mapped(
    size: int, at: int, length: int, offset: int, unit: int
) -> None:
    """Numbers of guest pages, and a host page of `unit` of them."""
    at, length = at % size, min(length, size - at % size)
    with host(unit * PAGE_SIZE):
        start, end = fit(size * PAGE_SIZE, at * PAGE_SIZE, length * PAGE_SIZE, offset * PAGE_SIZE)
    mapped = set(range(start // PAGE_SIZE, end // PAGE_SIZE))
    mine = set(range(at, at + length))

    def is_whole(first: int) -> bool:
        return all(number in mine or number >= size for number in range(first, first + unit))

    whole = {number for number in mine if is_whole(number - number % unit)}
    assert mapped == (whole if (offset - at) % unit == 0 else set())


#: Regions: (pages, a hole of so many pages after it).
LAYOUTS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=4)


@given(data=st.data(), layout=LAYOUTS, size=st.sampled_from(HERE), limits=st.booleans())
@settings(max_examples=25)
def test_memory_is_the_image_wherever_its_pages_lie_in_their_file(
    data: st.DataObject, layout: list[tuple[int, int]], size: int, limits: bool
) -> None:
    """Runs of any length at any place in a file, over regions of any size, with others' pages around."""
    regions, gpa = [], 0x2000
    for pages, hole in layout:
        regions.append(MemoryRegion(gpa, pages * PAGE_SIZE))
        gpa += (pages + hole) * PAGE_SIZE
    with host(size), pytest.MonkeyPatch.context() as patch:
        if limits:  # over the files, whatever it takes
            patch.setattr(cow, "_MOST_PIECES", 1000)
            patch.setattr(cow, "_MOST_COPIED", 1 << 30)
        around = [mmap.mmap(-1, PAGE_SIZE) for _ in range(2)]
        memory = GuestMemory()
        for region in regions:
            memory.add(region.gpa, region.size).buffer[:] = b"\xee" * region.size
            around.append(mmap.mmap(-1, PAGE_SIZE))
        for neighbour in around:
            neighbour[:] = b"\xdd" * PAGE_SIZE
        image, expected = image_in_a_file(data, regions)

        put_back(memory, image)
        assert contents(memory) == expected
        changed = dict(expected)
        for gpa in data.draw(st.lists(st.sampled_from(sorted(expected)), max_size=6)):
            changed[gpa] = pattern(gpa >> 12)[::-1]
            memory.write(gpa, changed[gpa])
        found = {
            region.gpa + at
            for region in memory.regions
            for begin, length in suspects(region)
            for at in range(begin, begin + length, PAGE_SIZE)
        }
        assert {gpa for gpa in expected if changed[gpa] != expected[gpa]} <= found
        later = image_of(memory)
        put_back(memory, image)
        assert contents(memory) == expected
        put_back(memory, later)
        assert contents(memory) == changed
        assert all(neighbour[:] == b"\xdd" * PAGE_SIZE for neighbour in around)
        memory.close()


def image_in_a_file(data: st.DataObject, regions: list[MemoryRegion]) -> tuple[MemoryImage, dict[int, bytes]]:
    """An image whose runs lie at places of a file that have nothing to do with where they are in memory."""
    expected = {gpa: ZERO_PAGE for region in regions for gpa in range(region.gpa, region.end, PAGE_SIZE)}
    places, content = [], b""
    for region in regions:
        at = region.gpa
        while at < region.end:
            at += data.draw(st.integers(0, 20)) * PAGE_SIZE
            length = min(data.draw(st.integers(1, 50)) * PAGE_SIZE, region.end - at)
            if length <= 0:
                break
            content += b"\xcc" * PAGE_SIZE * data.draw(st.integers(0, 17))
            places.append((at, length, len(content)))
            for gpa in range(at, at + length, PAGE_SIZE):
                expected[gpa] = pattern(gpa >> 12)
                content += expected[gpa]
            at += length
    with tempfile.TemporaryFile() as file:
        file.write(content + b"\xcc" * PAGE_SIZE)
        file.flush()
        mapped = MappedFile(os.dup(file.fileno()), "")
    runs = [Run(gpa, n, mapped.view[at : at + n], at, mapped) for gpa, n, at in places]
    return MemoryImage(regions, runs), expected


def contents(memory: GuestMemory) -> dict[int, bytes]:
    return {
        gpa: memory.read(gpa, PAGE_SIZE)
        for region in memory.regions
        for gpa in range(region.gpa, region.end, PAGE_SIZE)
    }


# -- machines


def test_a_machine_goes_back_and_over_as_elsewhere(backend_name: str, page: int, tmp_path: Path) -> None:
    with game(backend_name) as machine:
        machine.run(budget=exits(100))
        first, digest = machine.snapshot(), machine.memory.digest()
        machine.run(budget=exits(100))
        second, later = machine.snapshot(), machine.memory.digest()
        assert second.memory.parent is first.memory
        assert machine.run() == Halt()
        for snapshot, wanted in ((first, digest), (second, later), (first, digest)):
            machine.restore(snapshot)
            assert machine.memory.digest() == wanted
        save(first, tmp_path / "first")
        loaded = load(tmp_path / "first")
        save(second, tmp_path / "second", parent=loaded)
        for snapshot, wanted in ((loaded, digest), (load(tmp_path / "second"), later)):
            with snapshot.clone(backend=backend_name) as clone:
                assert clone.memory.digest() == wanted
                clone.memory.write(0x3000, b"the clone's")
            machine.restore(snapshot)
            assert machine.memory.digest() == wanted


def test_a_machine_moves_as_elsewhere(backend_name: str, page: int) -> None:
    with game(backend_name) as machine:
        machine.run(budget=exits(100))
        digest = machine.memory.digest()
        there, _ = move(machine, backend_name, source=BytesSource(GUESSES))
        with there:
            assert there.memory.digest() == digest
            assert there.run() == Halt()


def test_a_machine_moves_while_it_stores(backend_name: str, page: int) -> None:
    with dirtying(backend_name) as machine:
        there, moved = move(machine, backend_name, live=True)
        with there:
            assert there.memory.digest() == machine.memory.digest()
            assert moved.report is not None
            assert moved.report.rounds >= 2


@pytest.mark.parametrize("name", ["v1.vsnap", "v1-child.vsnap"])
def test_files_from_before_are_read_and_restored(name: str, page: int) -> None:
    """Those were made where nobody thought of larger pages."""
    image = load(GOLDEN / name).memory
    memory = GuestMemory()
    for region in image.regions:
        memory.add(region.gpa, region.size, readonly=region.readonly).buffer[:] = b"\xee" * region.size
    put_back(memory, image)
    pages = {gpa: page for gpa, page in contents(memory).items() if any(page)}
    assert pages == {gpa: page for gpa, page in read(GOLDEN / name).pages.items() if any(page)}


# -- files


def filled_machine(backend: str = "unicorn") -> Machine:
    """In its regions there is much in a row, and some pages alone. A region of one page comes first."""
    machine = Machine(backend=backend, memory=8 << 20)
    assert machine.memory.regions[0].size == PAGE_SIZE
    machine.memory.write(0, b"first")
    machine.memory.write(0x103000, random.Random(1).randbytes(3 << 20))
    machine.memory.write(0x605000, b"alone")
    return machine


@sizes
def test_a_new_file_is_mapped_and_nothing_of_it_copied_to_another(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled_machine() as machine:
        save(machine.snapshot(), tmp_path / "file")
        digest = machine.memory.digest()
    with host(size):
        monkeypatch.setattr(cow, "memory_file", pytest.fail)
        snapshot = load(tmp_path / "file")
        with snapshot.clone(backend="unicorn") as clone:
            assert clone.memory.digest() == digest
        backing = snapshot.memory.backing
        assert sum(run.length for run in backing.copied) < size  # the region of one page
        assert sum(length for _, length, fd, _ in backing.pieces if fd is not None) >= 3 << 20


def test_a_file_is_what_it_was_for_readers_that_know_nothing_of_host_pages(tmp_path: Path) -> None:
    """The reader of the tests is written from the page about the format."""
    with filled_machine() as machine:
        expected = {gpa: page for gpa, page in contents(machine.memory).items() if any(page)}
        save(machine.snapshot(), tmp_path / "file")
    file = read(tmp_path / "file")
    assert {gpa: page for gpa, page in file.pages.items() if any(page)} == expected
    assert len(file.pages) <= len(expected) * 3 // 2


def test_scattered_pages_make_no_large_file(tmp_path: Path) -> None:
    with Machine(backend="unicorn", memory=32 << 20) as machine:
        for at in range(1 << 20, 32 << 20, 1 << 18):
            machine.memory.write(at, b"one page")
        snapshot = machine.snapshot()
        save(snapshot, tmp_path / "file")
        assert load(tmp_path / "file").memory == snapshot.memory
    assert len(read(tmp_path / "file").pages) < 140
    assert (tmp_path / "file").stat().st_size < 140 * PAGE_SIZE + (64 << 10)


@sizes
def test_regions_that_touch_are_runs_of_their_own(size: int, tmp_path: Path) -> None:
    with host(size), Machine(backend="unicorn", memory=1 << 20) as machine:
        machine.memory.add(1 << 20, 0x3000, readonly=True, name="rom")
        machine.memory.write((1 << 20) - 0x2000, b"x" * 0x5000)
        first = machine.snapshot()
        save(first, tmp_path / "file")
        assert load(tmp_path / "file").memory == first.memory
        machine.memory.write((1 << 20) - 0x2000, bytes(0x5000))
        machine.memory.write((1 << 20) - 0x4000, b"y" * 0x6000)
        second = machine.snapshot()
        save(second, tmp_path / "child", parent=load(tmp_path / "file"))
        loaded = load(tmp_path / "child")
        assert loaded.memory == second.memory
        machine.restore(loaded)
        assert machine.memory.read((1 << 20) - 0x4000, 0x7000) == b"y" * 0x6000 + bytes(0x1000)


# -- hosts that cannot be, or that lack something


@by_rules
@pytest.mark.parametrize(("size", "told"), [(12 << 10, 12288), (128 << 10, 131072)])
def test_on_a_host_with_other_pages_they_are_copied_and_doctor_says_so(size: int, told: int) -> None:
    with host(size):
        assert f"its pages have {told} bytes" in why_copied()
        test_snapshot_round_trip()
    said = vmmsim("doctor", VMMSIM_HOST_PAGE=str(size), PYTHONPATH=str(RULES)).stdout.decode()
    assert "a snapshot's pages are copied: the host says" in " ".join(said.split())


def test_snapshot_round_trip() -> None:
    with game("unicorn") as machine:
        machine.run(budget=exits(100))
        snapshot, digest = machine.snapshot(), machine.memory.digest()
        machine.run()
        machine.restore(snapshot)
        assert machine.memory.digest() == digest
        assert snapshot.memory.backing is None or not why_copied()


@pytest.fixture
def no_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.delattr(os, "memfd_create", raising=False)


@by_rules
def test_a_file_on_the_disk_stands_in_for_one_in_memory(no_memfd: None, page: int) -> None:
    fd = host_pages.memory_file(64 << 20)
    try:
        status = os.fstat(fd)
        assert status.st_nlink == 0  # nobody finds it, and it goes with its descriptor
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_blocks * 512 < 1 << 20
        os.pwrite(fd, b"x" * 10, 32 << 20)
        assert os.fstat(fd).st_blocks * 512 < 1 << 20
    finally:
        os.close(fd)
    test_snapshot_round_trip()


@by_rules
def test_without_a_folder_for_temporary_files_what_needs_one_says_so(
    no_memfd: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled_machine() as machine:
        snapshot = machine.snapshot()
    with filled_machine() as machine:
        monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(HostError, match="'/proc/none'") as caught:
            machine.snapshot()
        assert "TMPDIR" in caught.value.hint
        assert len(os.listdir("/proc/self/fd")) == before
        machine.memory.write(0x5000, b"it goes on")
    save(snapshot, tmp_path / "file")
    with load(tmp_path / "file").clone(backend="unicorn") as clone:  # is mapped where it is
        assert clone.memory.read(0x103000, 1 << 20) == snapshot.memory.read(0x103000, 1 << 20)


@by_rules
def test_a_disk_that_is_full_is_told_and_the_memory_file_closed(
    no_memfd: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> int:
        del arguments  # a view of the memory, which a traceback would keep
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with filled_machine() as machine:
        before = len(os.listdir("/proc/self/fd"))
        for name in ("ftruncate", "pwrite"):
            with monkeypatch.context() as patch:
                patch.setattr(os, name, full)
                with pytest.raises(HostError, match="No space left") as caught:
                    machine.snapshot()
            assert "TMPDIR" in caught.value.hint
            assert len(os.listdir("/proc/self/fd")) == before
        assert machine.snapshot().memory.read(0x605000, 5) == b"alone"
