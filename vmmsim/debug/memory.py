"""Guest memory as a debugger asks for it: by linear address, through the guest's page tables.

Only RAM and ROM: to look at a device would change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..cpu.paging import linear_to_gpa
from ..errors import UsageError
from ..memory import PAGE_SIZE

if TYPE_CHECKING:
    from ..cpu.state import CpuState
    from ..memory import GuestMemory

__all__ = ["read_linear", "write_linear"]


def _pieces(state: CpuState, memory: GuestMemory, linear: int, size: int) -> Iterator[tuple[int, int]]:
    """(gpa, size) of each page's part, up to the first that no page and no memory is behind. Outside long
    mode linear addresses end at 4 GiB."""
    end = 1 << (64 if state.efer & 1 << 10 else 32)
    while size > 0:
        at = linear
        if at >= end:
            return
        gpa = linear_to_gpa(state, at, memory.read)
        count = min(size, PAGE_SIZE - at % PAGE_SIZE)
        if gpa is None or not memory.contains(gpa, count):
            return
        yield gpa, count
        linear += count
        size -= count


def read_linear(state: CpuState, memory: GuestMemory, linear: int, size: int) -> bytes:
    """Up to `size` bytes at `linear`: fewer, or none, where there is no memory."""
    return b"".join(memory.read(gpa, count) for gpa, count in _pieces(state, memory, linear, size))


def write_linear(state: CpuState, memory: GuestMemory, linear: int, data: bytes) -> None:
    """Store `data`, in RAM or ROM. UsageError, with nothing stored, where not all is memory."""
    pieces = list(_pieces(state, memory, linear, len(data)))
    if sum(count for _, count in pieces) != len(data):
        raise UsageError(f"there is no memory at {linear:#x}", hint="see: monitor translate ADDR")
    done = 0
    for gpa, count in pieces:
        memory.write(gpa, data[done : done + count])
        done += count
