"""The buffer of an engine's translated code: how large, and on Windows how it gets its memory.

Unicorn's default is 1 GiB, which costs time to reserve; engines here have far less. On Windows the library
only reserves the buffer. An exception handler of its own commits it while translations are written, 4 MiB
from the place of the first write that has no memory (Unicorn 2.1.4, accel/tcg/translate-all.c). What of
these 4 MiB would be after the buffer's end is asked for as well, so nothing is committed, and the guest's
run ends with an access violation. That happens at once in a buffer below 4 MiB. It also happens when a
larger one fills, as the second write and those after it begin somewhere within a page; a multiple of 4 MiB
changes nothing about that. Two sizes work: exactly 4 MiB, which the first write commits whole, and any size
whose memory somebody else has committed. `build` does so: it looks among the reservations of this
process for the buffer and commits it, which leaves the handler nothing to do.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from unicorn import UC_ARCH_X86, UC_MODE_64
from unicorn.unicorn_py3.unicorn import Uc
from unicorn.x86_const import UC_X86_REG_RIP

from .huge_pages import small_pages

__all__ = ["WINDOWS_STEP", "Area", "Memory", "buffer_size", "build", "commit_buffers"]

#: Bytes that Unicorn's Windows build commits at a time.
WINDOWS_STEP = 4 << 20
#: Of MEMORY_BASIC_INFORMATION: State, AllocationProtect.
_RESERVED = 0x2000
_EXECUTE_READWRITE = 0x40


class Area(NamedTuple):
    """Pages of this process that are alike, as MEMORY_BASIC_INFORMATION of Windows has them: address
    and bytes, the address and protection of the allocation they are in, and their state."""

    base: int
    size: int
    allocation: int
    protection: int
    state: int


class Memory(Protocol):
    """The two calls of Windows that `build` needs."""

    def query(self, address: int) -> Area | None:
        """VirtualQuery: the area with `address`; None after the last one."""

    def commit(self, address: int, size: int) -> bool:
        """VirtualAlloc, MEM_COMMIT: whether these pages can now be read, written and executed."""


def buffer_size(wanted: int, platform: str = sys.platform) -> int:
    """The bytes to ask Unicorn for on `platform` (as `sys.platform` names it), not below `wanted`: on
    Windows a multiple of 4 MiB, of which only 4 MiB itself works without `commit_buffers`."""
    step = WINDOWS_STEP if platform == "win32" else 1
    return -(-wanted // step) * step


def build(wanted: int, platform: str = sys.platform, memory: Memory | None = None) -> Uc:
    """An engine for 64-bit x86 that is built, with an empty list of exits, so that no address stops it. Its
    buffer can be filled, and has at least `wanted` bytes; on Windows 4 MiB where the buffer is not found.

    `memory` is that of this process by default. Raises UcError where the library makes no engine.
    """
    size = buffer_size(wanted, platform)
    uc = _build(size)
    if platform != "win32" or size == WINDOWS_STEP:
        return uc
    if memory is None:
        from .windows_memory import ProcessMemory

        memory = ProcessMemory()
    return uc if commit_buffers(memory, size) else _build(WINDOWS_STEP)


def _build(size: int) -> Uc:
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_set_tcg_buffer_size(size)
    uc.ctl_exits_enabled(True)
    with small_pages():
        uc.reg_read(UC_X86_REG_RIP)  # the first thing that makes the binding build the engine
    return uc


def commit_buffers(memory: Memory, size: int) -> bool:
    """Commit each allocation for code that has `size` bytes, not all of them committed. Whether there
    was one, and all went well: a fresh buffer is one, and an older one was committed when it was made."""
    done = []
    for allocation, parts in itertools.groupby(_areas(memory), lambda area: area.allocation):
        areas = list(parts)
        if (
            sum(area.size for area in areas) == size
            and areas[0].protection == _EXECUTE_READWRITE
            and any(area.state == _RESERVED for area in areas)
        ):
            done.append(memory.commit(allocation, size))
    return bool(done) and all(done)


def _areas(memory: Memory) -> Iterator[Area]:
    address = 0
    while (area := memory.query(address)) is not None:
        yield area
        address = area.base + area.size
