"""The engine's buffer of translated code: its size, and how Windows gives it memory."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unicorn import Uc

import vmmsim
from vmmsim.backends import unicorn_buffer
from vmmsim.backends.unicorn_buffer import Area, buffer_size, build, commit_buffers

pytestmark = pytest.mark.unicorn

MIB = 1 << 20
COMMITTED, RESERVED, FREE = 0x1000, 0x2000, 0x10000
CODE, DATA = 0x40, 0x04  # PAGE_EXECUTE_READWRITE, PAGE_READWRITE


class Process:
    """The memory of a process of Windows, made up: its areas in order, with what is free between them."""

    def __init__(self, *areas: Area, refuse: bool = False) -> None:
        self.areas, self.refuse = areas, refuse
        self.committed: list[tuple[int, int]] = []

    def query(self, address: int) -> Area | None:
        return next((area for area in self.areas if area.base <= address < area.base + area.size), None)

    def commit(self, address: int, size: int) -> bool:
        self.committed.append((address, size))
        return not self.refuse


def process(*parts: tuple[int, int, int], refuse: bool = False) -> Process:
    """Allocations one after the other: (protection, bytes committed, bytes only reserved)."""
    areas, at = [Area(0, 0x10000, 0, 0, FREE)], 0x10000
    for protection, committed, reserved in parts:
        start = at
        for size, state in ((committed, COMMITTED), (reserved, RESERVED)):
            if size:
                areas.append(Area(at, size, start, protection, state))
                at += size
    return Process(*areas, Area(at, 0x10000, 0, 0, FREE), refuse=refuse)


@given(st.integers(1, 1 << 31))
def test_windows_takes_multiples_of_4_mib_and_the_others_any_size(wanted: int) -> None:
    size = buffer_size(wanted, "win32")
    assert size % (4 * MIB) == 0
    assert wanted <= size < wanted + 4 * MIB
    assert buffer_size(wanted, "linux") == buffer_size(wanted, "darwin") == wanted


@given(st.lists(st.tuples(st.sampled_from([CODE, DATA]), st.integers(0, 4), st.integers(0, 4))))
def test_what_is_committed_is_each_buffer_that_is_not_yet(
    allocations: list[tuple[int, int, int]],
) -> None:
    made = process(*((p, a * 4 * MIB, b * 4 * MIB) for p, a, b in allocations))
    expected, at = [], 0x10000
    for protection, committed, reserved in allocations:
        if protection == CODE and reserved and committed + reserved == 4:
            expected.append((at, 16 * MIB))
        at += (committed + reserved) * 4 * MIB
    assert commit_buffers(made, 16 * MIB) == bool(expected)
    assert made.committed == expected


def test_a_commit_that_windows_refuses_is_told() -> None:
    assert not commit_buffers(process((CODE, 4 * MIB, 12 * MIB), refuse=True), 16 * MIB)


def sizes_asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    asked: list[int] = []
    original = Uc.ctl_set_tcg_buffer_size

    def ask(self: Uc, size: int) -> None:
        asked.append(size)
        original(self, size)

    monkeypatch.setattr(Uc, "ctl_set_tcg_buffer_size", ask)
    return asked


@pytest.mark.skipif(sys.platform == "win32", reason="its own memory, by ProcessMemory")
@pytest.mark.parametrize(
    ("wanted", "memory", "asked"),
    [
        (1 * MIB, process(), [4 * MIB]),
        (5 * MIB, process((CODE, 4 * MIB, 4 * MIB)), [8 * MIB]),
        (16 * MIB, process((CODE, 16 * MIB, 0), (DATA, 4 * MIB, 12 * MIB)), [16 * MIB, 4 * MIB]),
        (16 * MIB, process((CODE, 4 * MIB, 12 * MIB), refuse=True), [16 * MIB, 4 * MIB]),
    ],
    ids=["one step", "committed", "not found", "refused"],
)
def test_windows_gets_4_mib_or_a_buffer_that_is_committed(
    wanted: int, memory: Process, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = sizes_asked(monkeypatch)
    build(wanted, "win32", memory)
    assert told == asked


def test_the_whole_buffer_can_be_filled() -> None:
    """31 MiB of code, some 1 million jumps, go through a buffer of 16 MiB and one of 4: they fill more
    than once. On Windows this is what ended in an access violation, elsewhere it always worked."""
    block, begin, size = b"\x90" * 30 + b"\xeb\x00", 0x1000, 31 * MIB
    for buffer in (1 * MIB, 16 * MIB):
        uc = build(buffer)
        uc.mem_map(begin, size + 0x1000)
        uc.mem_write(begin, block * (size // len(block)))
        uc.ctl_set_exits([begin + size])
        uc.emu_start(begin, 0)
        assert uc.reg_read(unicorn_buffer.UC_X86_REG_RIP) == begin + size


def test_nobody_else_says_how_large_a_buffer_is() -> None:
    source = Path(vmmsim.__file__).parent
    for file in source.rglob("*.py"):
        for line in re.findall(r".*ctl_set_tcg_buffer_size\(.*", file.read_text("utf-8")):
            assert file.name == "unicorn_buffer.py" or "buffer_size(buffer_size(" in line, (file, line)
