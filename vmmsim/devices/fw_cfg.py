"""QEMU's firmware configuration device: named blobs that a guest reads from two ports.

Source: QEMU, docs/specs/fw_cfg.rst, as on x86 at ports 510h-51Bh:

    +0  selector     16 bits, write-only: which item, and its data from the start
    +1  data         8 bits: the item's next byte, 0 behind its end
    +4  DMA address  64 bits, big-endian: writing its lower half (+8) starts a transfer

Items are read-only, as all that QEMU is given from outside: writes to the data port do
nothing, and a DMA write sets the error bit.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import ClassVar, Protocol

import msgspec

from ..errors import UsageError, VmmsimError
from ..memory import GuestMemory

__all__ = ["FwCfg", "FwCfgState", "GuestDma", "RamDma", "legacy_items"]

# Keys of items that have no name (include/standard-headers/linux/qemu_fw_cfg.h and
# include/hw/nvram/fw_cfg_keys.h).
SIGNATURE = 0x00
ID = 0x01
RAM_SIZE = 0x03
NOGRAPHIC = 0x04
NB_CPUS = 0x05
BOOT_MENU = 0x0E
MAX_CPUS = 0x0F
FILE_DIR = 0x19
FILE_FIRST = 0x20
#: Generic keys are below 4000h; bit 14 asks for writing, which changes nothing; bit 15 is for
#: the items of one architecture.
WRITE_CHANNEL = 0x4000
LAST_GENERIC = 0x3FFF

ID_TRADITIONAL = 0x1
ID_DMA = 0x2

SELECTOR, DATA, DMA_HIGH, DMA_LOW = 0, 1, 4, 8
#: What the DMA address register reads: the interface is there.
DMA_SIGNATURE = b"QEMU CFG"

DMA_ERROR = 0x01
DMA_READ = 0x02
DMA_SKIP = 0x04
DMA_SELECT = 0x08
DMA_WRITE = 0x10
#: FWCfgDmaAccess: control, length, address.
DMA_ACCESS = struct.Struct(">IIQ")
#: A transfer may be 4 GiB long; the host holds this much of it at once.
DMA_BLOCK = 1 << 20

#: A name in the file directory, with its NUL.
NAME_SIZE = 56


class GuestDma(Protocol):
    """Guest-physical memory as a device reaches it: `vmmsim.memory.GuestMemory` is one.

    Both raise a VmmsimError, and change nothing, where there is no memory.
    """

    def read(self, gpa: int, size: int, /) -> bytes: ...
    def write(self, gpa: int, data: bytes, /) -> None: ...


class RamDma:
    """Guest memory as the guest's own devices reach it: `GuestMemory` lets the host write ROM,
    this does not. Both raise UsageError, and change nothing, for a range that they cannot reach.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory

    def read(self, gpa: int, size: int, /) -> bytes:
        return self._memory.read(gpa, size)

    def write(self, gpa: int, data: bytes, /) -> None:
        end = gpa + len(data)
        for region in self._memory.regions:
            if region.readonly and region.gpa < end and gpa < region.end:
                raise UsageError(
                    f"a device's write to {gpa:#x}..{end - 1:#x} meets {region!r}",
                    hint="the guest must name a place in RAM",
                )
        self._memory.write(gpa, data)


class FwCfgState(msgspec.Struct, frozen=True):
    """`key` is the selector (16 bits), `offset` the place in that item's data, `dma_high` the
    upper half of the DMA address. The items themselves are resources."""

    key: int = 0
    offset: int = 0
    dma_high: int = 0


def legacy_items(
    *,
    memory: int,
    cpus: int = 1,
    max_cpus: int | None = None,
    boot_menu: bool = False,
    graphics: bool = False,
) -> dict[int, bytes]:
    """The items without a name that firmware asks for, as QEMU stores them (little-endian).

    `memory` is the RAM in bytes (key 3, 64 bits); `cpus` (key 5) and `max_cpus` (key 0Fh, as
    `cpus` when None) are 16 bits wide, like `boot_menu` (key 0Eh) and "no graphics" (key 4).
    Raises UsageError for numbers that do not fit.
    """
    try:
        return {
            RAM_SIZE: struct.pack("<Q", memory),
            NOGRAPHIC: struct.pack("<H", not graphics),
            NB_CPUS: struct.pack("<H", cpus),
            BOOT_MENU: struct.pack("<H", boot_menu),
            MAX_CPUS: struct.pack("<H", cpus if max_cpus is None else max_cpus),
        }
    except struct.error as error:
        raise UsageError(
            f"fw_cfg: {memory} bytes of memory with {cpus} (at most {max_cpus}) CPUs do not fit",
            hint="the memory has 64 bits, a number of CPUs 16",
        ) from error


def _directory(files: Mapping[str, bytes]) -> tuple[bytes, dict[int, bytes]]:
    """The file directory, and the files by their keys: in the order of their names."""
    if len(files) > LAST_GENERIC + 1 - FILE_FIRST:
        raise UsageError(
            f"fw_cfg: {len(files)} files", hint=f"there are keys for {LAST_GENERIC + 1 - FILE_FIRST}"
        )
    directory = bytearray(struct.pack(">I", len(files)))
    items = {}
    for key, name in enumerate(sorted(files), FILE_FIRST):
        if not name.isascii() or "\0" in name or not 0 < len(name) < NAME_SIZE:
            raise UsageError(
                f"fw_cfg: {name!r} is no name of a file", hint=f"use 1 to {NAME_SIZE - 1} ASCII characters"
            )
        data = bytes(files[name])
        if len(data) >= 1 << 32:
            raise UsageError(f"fw_cfg: {name} has {len(data)} bytes", hint="sizes have 32 bits")
        directory += struct.pack(f">IHH{NAME_SIZE}s", len(data), key, 0, name.encode("ascii"))
        items[key] = data
    return bytes(directory), items


class FwCfg:
    """12 ports, 1, 2, 4 or 8 bytes wide.

    `files` are the items with a name: "bootorder", "etc/e820", "opt/org.example/config"; the
    guest finds them by the directory (key 19h), sorted by name. `legacy` are items by their key
    (see `legacy_items`); keys 0, 1, 19h and those of files are the device's own. With
    `memory` the DMA interface is there; it writes where `memory` lets it (`RamDma`: not to ROM).
    """

    widths: frozenset[int] = frozenset({1, 2, 4, 8})
    #: Ports that the device takes.
    length: ClassVar[int] = 12

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        legacy: Mapping[int, bytes] | None = None,
        memory: GuestDma | None = None,
        state: FwCfgState | None = None,
    ) -> None:
        """Raises UsageError for a name or a key that cannot be, and for a state that does not
        fit the items."""
        directory, items = _directory(files)
        features = ID_TRADITIONAL | (ID_DMA if memory is not None else 0)
        items |= {SIGNATURE: b"QEMU", ID: struct.pack("<I", features), FILE_DIR: directory}
        for key, data in (legacy or {}).items():
            if key in items:
                raise UsageError(
                    f"fw_cfg: the item {key:#x} is the device's own", hint="leave it away, or give it a name"
                )
            if not 0 <= key <= 0xFFFF or key & WRITE_CHANNEL:
                raise UsageError(
                    f"fw_cfg: there is no key {key:#x}", hint="use 2 to 3fffh, or 8000h to bfffh"
                )
            items[key] = bytes(data)
        self._items = items
        self._memory = memory
        self._data = b""
        state = state or FwCfgState()
        if not 0 <= state.key <= 0xFFFF or not 0 <= state.dma_high < 1 << 32:
            raise UsageError(
                f"fw_cfg: the key {state.key:#x} or the DMA address {state.dma_high:#x} in the state",
                hint="a key has 16 bits, half an address 32",
            )
        self._select(state.key)
        if not 0 <= state.offset <= len(self._data):
            raise UsageError(
                f"fw_cfg: offset {state.offset} in an item of {len(self._data)} bytes in the state",
                hint="restore it with the items that it was taken with",
            )
        self._offset = state.offset
        self._dma_high = state.dma_high

    @classmethod
    def from_state(
        cls,
        state: FwCfgState,
        *,
        files: Mapping[str, bytes],
        legacy: Mapping[int, bytes] | None = None,
        memory: GuestDma | None = None,
    ) -> FwCfg:
        """Raises UsageError for a state that does not fit the items."""
        return cls(files, legacy=legacy, memory=memory, state=state)

    def state(self) -> FwCfgState:
        return FwCfgState(self._key, self._offset, self._dma_high)

    def read(self, offset: int, size: int, /) -> int:
        if offset == DATA and size == 1:
            if self._offset >= len(self._data):
                return 0
            value = self._data[self._offset]
            self._offset += 1
            return value
        if not DMA_HIGH <= offset < self.length:
            return 0
        if self._memory is None:
            return (1 << 8 * size) - 1  # no register is there, so nobody drives the bus
        at = offset - DMA_HIGH
        return int.from_bytes(DMA_SIGNATURE[at : at + size], "little")

    def write(self, offset: int, size: int, value: int, /) -> None:
        if offset == SELECTOR and size == 2:
            self._select(value & 0xFFFF)
        elif self._memory is None:
            return
        elif offset == DMA_HIGH and size == 4:
            self._dma_high = _swap(value, 4)
        elif offset == DMA_LOW and size == 4:
            self._transfer(self._memory, self._dma_high << 32 | _swap(value, 4))
        elif offset == DMA_HIGH and size == 8:
            self._transfer(self._memory, _swap(value, 8))

    def _select(self, key: int) -> None:
        self._key = key
        self._offset = 0
        self._data = self._items.get(key & ~WRITE_CHANNEL, b"")

    def _transfer(self, memory: GuestDma, gpa: int) -> None:
        """Do what the FWCfgDmaAccess at `gpa` says, and write its control field back."""
        self._dma_high = 0
        try:
            control, length, address = DMA_ACCESS.unpack(memory.read(gpa, DMA_ACCESS.size))
        except VmmsimError:
            self._answer(memory, gpa, DMA_ERROR)
            return
        if control & DMA_SELECT:
            self._select(control >> 16)
        error = False
        if control & DMA_READ:
            error = not self._copy(memory, address, length)
        elif control & DMA_WRITE:
            error = length > 0
        elif control & DMA_SKIP:
            self._offset = min(self._offset + length, len(self._data))
        self._answer(memory, gpa, DMA_ERROR if error else 0)

    def _copy(self, memory: GuestDma, gpa: int, length: int) -> bool:
        """The item's next bytes to `gpa`, with zeros behind its end; False where no memory is."""
        while length:
            count = min(length, DMA_BLOCK)
            block = self._data[self._offset : self._offset + count]
            try:
                memory.write(gpa, block.ljust(count, b"\0"))
            except VmmsimError:
                return False
            self._offset += len(block)
            gpa += count
            length -= count
        return True

    @staticmethod
    def _answer(memory: GuestDma, gpa: int, control: int) -> None:
        try:
            memory.write(gpa, control.to_bytes(4, "big"))
        except VmmsimError:
            pass  # nobody waits for an answer where there is no memory


def _swap(value: int, size: int) -> int:
    """A big-endian register's value, from what a little-endian CPU wrote."""
    return int.from_bytes((value & (1 << 8 * size) - 1).to_bytes(size, "little"), "big")
