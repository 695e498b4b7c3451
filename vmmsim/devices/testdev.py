"""The ports that kvm-unit-tests' guests expect of a machine: QEMU's `-device pc-testdev`.

Source: hw/misc/pc-testdev.c in QEMU. Its faces lie apart, so each is a device of its own:

    TestDev        E0h, 8 ports      a 32-bit register that keeps what is written; page flush
    TestDevIrqs    2000h, 24 ports   a byte written to 2000h + n is the level of IRQ n
    TestDevMemory  FF000000h, 64 KiB memory that is reached by exits only

QEMU's second view of the register at E8h-EBh is left out: the debug console is at E9h.
`vmmsim.devices.debug_exit` is the isa-debug-exit that these guests end with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from ..errors import UsageError
from .base import Irq

__all__ = [
    "IRQS",
    "MEMORY_SIZE",
    "TestDev",
    "TestDevIrqs",
    "TestDevIrqsState",
    "TestDevMemory",
    "TestDevMemoryState",
    "TestDevState",
]

#: Lines of the IRQ face: the pins of one I/O APIC.
IRQS = 24
#: Bytes of the memory face.
MEMORY_SIZE = 0x10000


class TestDevState(msgspec.Struct, frozen=True):
    """`data` is the 32-bit register."""

    __test__ = False  # pytest: this is no test class

    data: int = 0


class TestDev:
    """Ports 0-3 are the bytes of a register, 1, 2 or 4 wide; ports 4-7 are the page flush.

    A write of a page's address to port 4 asks the host to drop its mapping of that page and
    make it anew. Guest and host share their pages here, so there is nothing that could be
    stale: the write is taken and changes nothing. It reads 0.
    """

    __test__ = False

    widths: frozenset[int] = frozenset({1, 2, 4})
    #: Ports that the device takes.
    length: ClassVar[int] = 8

    def __init__(self, *, state: TestDevState | None = None) -> None:
        """Raises UsageError for a state with more than 32 bits."""
        data = state.data if state is not None else 0
        if not 0 <= data < 1 << 32:
            raise UsageError(f"testdev: the register {data:#x} in the state", hint="it has 32 bits")
        self._data = data

    @classmethod
    def from_state(cls, state: TestDevState) -> TestDev:
        return cls(state=state)

    def state(self) -> TestDevState:
        return TestDevState(self._data)

    def read(self, offset: int, size: int, /) -> int:
        if not 0 <= offset <= 3:
            return 0
        return self._data >> 8 * offset & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int, /) -> None:
        if 0 <= offset <= 3:
            mask = ((1 << 8 * size) - 1 << 8 * offset) & 0xFFFFFFFF
            self._data = self._data & ~mask | value << 8 * offset & mask


class TestDevIrqsState(msgspec.Struct, frozen=True):
    """`levels` has bit n set while the line of IRQ n is high."""

    __test__ = False

    levels: int = 0


class TestDevIrqs:
    """A byte written at offset n raises (not 0) or lowers (0) `irqs[n]`; reads answer 0.

    There may be fewer lines than `IRQS`: the others go nowhere.
    """

    __test__ = False

    widths: frozenset[int] = frozenset({1})
    #: Ports that the device takes.
    length: ClassVar[int] = IRQS

    def __init__(self, irqs: Sequence[Irq], *, state: TestDevIrqsState | None = None) -> None:
        """Raises UsageError for more lines than there are ports, or levels of lines that are not."""
        if len(irqs) > IRQS:
            raise UsageError(f"testdev: {len(irqs)} lines", hint=f"there are ports for {IRQS}")
        levels = state.levels if state is not None else 0
        if not 0 <= levels < 1 << IRQS:
            raise UsageError(f"testdev: the levels {levels:#x} in the state", hint=f"there are {IRQS} lines")
        self._irqs = tuple(irqs)
        self._levels = levels
        # Only what is high is driven: the lines are shared with devices that were there first.
        for number, irq in enumerate(self._irqs):
            if levels >> number & 1:
                irq.set(True)

    @classmethod
    def from_state(cls, state: TestDevIrqsState, *, irqs: Sequence[Irq]) -> TestDevIrqs:
        return cls(irqs, state=state)

    def state(self) -> TestDevIrqsState:
        return TestDevIrqsState(self._levels)

    def read(self, offset: int, size: int, /) -> int:
        return 0

    def write(self, offset: int, size: int, value: int, /) -> None:
        if not 0 <= offset < IRQS:
            return
        bit = 1 << offset
        level = bool(value & 0xFF)
        self._levels = self._levels | bit if level else self._levels & ~bit
        if offset < len(self._irqs):
            self._irqs[offset].set(level)


class TestDevMemoryState(msgspec.Struct, frozen=True):
    """`data` is every byte, without the zeros at the end."""

    __test__ = False

    data: bytes = b""


class TestDevMemory:
    """64 KiB that keep what is written, 1, 2, 4 or 8 bytes wide, little-endian.

    kvm-unit-tests runs its emulator tests on it: what a string or a vector instruction does
    to it goes through the VMM.
    """

    __test__ = False

    widths: frozenset[int] = frozenset({1, 2, 4, 8})
    #: Addresses that the device takes.
    length: ClassVar[int] = MEMORY_SIZE

    def __init__(self, *, state: TestDevMemoryState | None = None) -> None:
        """Raises UsageError for a state of more than 64 KiB."""
        data = state.data if state is not None else b""
        if len(data) > MEMORY_SIZE:
            raise UsageError(
                f"testdev: {len(data)} bytes of memory in the state", hint=f"it has {MEMORY_SIZE} bytes"
            )
        self._data = bytearray(data.ljust(MEMORY_SIZE, b"\0"))

    @classmethod
    def from_state(cls, state: TestDevMemoryState) -> TestDevMemory:
        return cls(state=state)

    def state(self) -> TestDevMemoryState:
        return TestDevMemoryState(bytes(self._data).rstrip(b"\0"))

    def read(self, offset: int, size: int, /) -> int:
        if offset < 0:
            return 0
        return int.from_bytes(self._data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int, /) -> None:
        # Beside the end a slice would grow the memory.
        if 0 <= offset <= MEMORY_SIZE - size:
            self._data[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
