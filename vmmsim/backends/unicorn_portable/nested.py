"""Nested page tables: what free code does with memory that is not plain RAM ends it exactly.

QEMU can run a guest of AMD's SVM, and translate the guest's physical addresses by a second set of
tables (AMD APM vol. 2, 15.25). An access that these tables do not allow is an exit before the
instruction has done anything, which Unicorn hands to the INTR hook as 0x100 + SVM's exit code.
vmmsim has the guest's RAM in them at its own addresses, and nothing else: an access to a hole,
and a store to ROM, are seen before they are made.

All memory may be executed: QEMU 5.0 takes the process down where a page table of the guest lies in a
page that these tables do not allow to be executed (`get_hphys`, a null pointer).
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from unicorn import UC_PROT_READ, UC_PROT_WRITE

if TYPE_CHECKING:
    from ...memory import Region

__all__ = ["FETCH", "NPF", "NPT", "NestedTables"]

#: The exit of a nested page fault; in the error code: it was a fetch.
NPF, FETCH = 0x400, 1 << 4
#: In the word of hidden flags: the tables are in use (HF2_NPT).
NPT = 1 << 32 + 6
#: The form of the tables: PAE, four levels.
_MODE = 3

_PAGE, _BIG = 4096, 2 << 20
_PRESENT, _WRITE, _USER, _USED, _LARGE = 1, 2, 4, 1 << 5 | 1 << 6, 1 << 7
_TABLE = _PRESENT | _WRITE | _USER | 1 << 5
#: QEMU takes the address bits beyond these for reserved ones.
_TOP = 1 << 40


class NestedTables:
    """The tables of `regions`, below 1 TiB of the physical addresses of one engine.

    LookupError where they cannot be made: memory beyond 1 TiB, or no room for them.
    """

    def __init__(self, regions: Iterable[Region]) -> None:
        self._regions = sorted(regions, key=lambda region: region.gpa)
        if any(region.end > _TOP for region in self._regions):
            raise LookupError("there is memory beyond 1 TiB")
        chunks = {at for r in self._regions for at in range(r.gpa // _BIG, (r.end - 1) // _BIG + 1)}
        pages = 3 + len({chunk >> 9 for chunk in chunks}) + len(chunks)
        self.size = (pages * _PAGE + _BIG - 1) // _BIG * _BIG
        self.gpa = _TOP - self.size
        if any(region.end > self.gpa for region in self._regions):
            raise LookupError("there is memory below 1 TiB, where the tables are to be")
        self.memory = mmap.mmap(-1, self.size)
        self._words = memoryview(self.memory).cast("Q")
        self._used = 1  # pages; the first is the root
        for region in self._regions:
            self._add(region)

    @property
    def address(self) -> int:
        """Of the tables in the host's memory."""
        anchor = ctypes.c_char.from_buffer(self.memory)
        return ctypes.addressof(anchor)

    #: Rights of the tables' own memory in the engine.
    rights = UC_PROT_READ | UC_PROT_WRITE

    def use(self, words: memoryview, svm: int) -> None:
        """Put them into the CPU structure, whose words of SVM begin at `svm`."""
        words[svm + 5] = self.gpa
        words[svm + 6] = words[svm + 6] & ~0xFFFFFFFF | _MODE

    def close(self) -> None:
        self._words.release()
        self.memory.close()

    def _add(self, region: Region) -> None:
        rights = _PRESENT | _USER | _USED | (0 if region.readonly else _WRITE)
        at = region.gpa
        while at < region.end:
            if at % _BIG == 0 and at + _BIG <= region.end:
                self._words[self._directory(at // _BIG)] = at | rights | _LARGE
                at += _BIG
            else:
                self._words[self._below(self._directory(at // _BIG)) + (at // _PAGE & 511)] = at | rights
                at += _PAGE

    def _directory(self, chunk: int) -> int:
        """Where the entry of a chunk of 2 MiB is."""
        return self._below(self._below(chunk >> 18) + (chunk >> 9 & 511)) + (chunk & 511)

    def _below(self, entry: int) -> int:
        """Where the table that an entry points to begins; it is made if it has to be."""
        if not self._words[entry]:
            self._words[entry] = self.gpa + self._used * _PAGE | _TABLE
            self._used += 1
        return (self._words[entry] & _TOP - _PAGE) - self.gpa >> 3
