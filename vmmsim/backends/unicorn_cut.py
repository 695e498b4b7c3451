"""From Unicorn's pieces back to the accesses that the guest made.

Unicorn shows an access that begins in MMIO (or, for a store, in ROM) whole, by the
protection hook, and then in pieces: a load as aligned pieces of at most 4 bytes, an
unaligned store as single bytes. What begins in RAM and ends in MMIO it shows only as the
pieces of its second page. This file puts them together again, by the rules of
`vmmsim.exits`; both ways to drive the engine use it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from unicorn import unicorn_const as uc_const

from ..cpu.paging import linear_to_gpa
from ..cpu.prefixes import LEGACY_PREFIXES
from ..exits import Access, MmioRead, MmioWrite
from .unicorn_vcpu import PAGE, UnicornVcpu

__all__ = ["MASK", "STRING", "AccessCutter"]

MASK = tuple((1 << 8 * n) - 1 for n in range(9))

#: Opcodes of INS, OUTS, MOVS, CMPS, STOS, LODS, SCAS.
STRING = b"\x6c\x6d\x6e\x6f\xa4\xa5\xa6\xa7\xaa\xab\xac\xad\xae\xaf"
#: Bytes of the longest instruction (SDM vol. 2, 2.3.11).
_LONGEST = 15


class _Crossing:
    """An access that runs over the end of a page: what is left for the second page."""

    __slots__ = ("is_write", "rest", "token", "value")

    def __init__(self, token: Any, is_write: bool, rest: int, value: int) -> None:
        self.token = token
        self.is_write = is_write
        self.rest = rest
        self.value = value


class AccessCutter(UnicornVcpu):
    """A vCPU whose accesses go through `_access`, put together from Unicorn's pieces."""

    def _forget_pieces(self) -> None:
        """At the start of a run: nothing is half seen."""
        self._crossing: _Crossing | None = None
        self._ins_seen: Any = None

    # -- what the ways to drive the engine bring

    @abstractmethod
    def _token(self) -> Any:
        """What tells one execution of an instruction from another."""

    @abstractmethod
    def _access(self, cls: type[Access], address: int, size: int, value: int) -> int:
        """Make an access; a read's answer is returned."""

    @abstractmethod
    def _skip_bytes(self, count: int) -> None:
        """The next `count` byte stores are of a store that was made whole."""

    @abstractmethod
    def _show(self, gpa: int, size: int, value: int, *, to_page_end: bool) -> None:
        """The pieces of the load at hand find `value` at `gpa`; if `to_page_end`, those in the
        next page are asked for."""

    @abstractmethod
    def _instruction(self) -> tuple[int, bool, Any]:
        """(linear address, whether it is 64-bit code, control registers) of the instruction
        at hand."""

    def _ins_probe(self) -> None:
        """INS stored its 0; the accesses of the instruction begin only now."""

    # -- putting together

    def _cut_read(self, gpa: int, size: int) -> int:
        first = min(size, PAGE - gpa % PAGE)
        value = self._access(MmioRead, gpa, first, 0)
        if first < size:
            self._crossing = _Crossing(self._token(), False, size - first, 0)
            self._show(gpa, first, value, to_page_end=True)
        return value

    def _second_page(self, gpa: int, is_write: bool) -> _Crossing | None:
        """The rest of the access that crosses into the page at `gpa`, once."""
        crossing = self._crossing
        if crossing is None or gpa % PAGE or crossing.is_write != is_write:
            return None
        self._crossing = None
        return crossing if crossing.token == self._token() else None

    def _cut_tail(self, gpa: int) -> bool:
        """The first byte of the second page of a store. False if its true size is not known."""
        crossing = self._second_page(gpa, True)
        if crossing is None:
            return False
        self._skip_bytes(crossing.rest - 1)
        self._access(MmioWrite, gpa, crossing.rest, crossing.value)
        return True

    def _cut_write(self, gpa: int, size: int, value: int) -> None:
        first = min(size, PAGE - gpa % PAGE)
        if first < size:
            self._skip_bytes(first)
        if not value and self._ins_seen != self._token() and self._opcode()[1] in (0x6C, 0x6D):
            # INS first stores 0, to see whether it may, then reads the port.
            self._ins_probe()
            self._ins_seen = self._token()
            return
        if first < size:
            self._crossing = _Crossing(self._token(), True, size - first, value >> 8 * first)
        self._access(MmioWrite, gpa, first, value & MASK[first])

    def _on_truth(self, _uc: int, kind: int, gpa: int, size: int, value: int) -> None:
        """A hook on RAM: an access that begins in it and crosses into another page."""
        first = PAGE - gpa % PAGE
        if first < size and self.vm.holds(gpa, 1):
            is_write = kind == uc_const.UC_MEM_WRITE
            rest = (value & MASK[size]) >> 8 * first
            self._crossing = _Crossing(self._token(), is_write, size - first, rest)

    def _opcode(self, back: int = 0) -> tuple[int, int]:
        """(its REP prefix or 0, first opcode byte) of the instruction at RIP, or `back` bytes
        before it; (0, 0) where the bytes are not memory. SDM vol. 2, chapter 2."""
        repeat = 0
        code, code64 = self._code(back)
        for byte in code:
            if byte in (0xF2, 0xF3):
                repeat = byte
            elif byte not in LEGACY_PREFIXES and not (code64 and byte >> 4 == 4):
                return repeat, byte
        return 0, 0

    def _first_byte(self) -> int | None:
        """Of the instruction at RIP, where that is quickly told: without paging."""
        linear, _, paging = self._instruction()
        region = None if paging.cr0 >> 31 else self.vm.region_at(linear)
        return None if region is None else region.buffer[linear - region.gpa]

    def _code(self, back: int = 0) -> tuple[bytes, bool]:
        """(the bytes of the instruction at RIP, or `back` bytes before it, and what follows: 15, or as
        many as are memory; whether it is 64-bit code)."""
        linear, code64, paging = self._instruction()
        linear -= back
        code = b""
        while len(code) < _LONGEST:
            at = linear + len(code)
            size = min(_LONGEST - len(code), PAGE - at % PAGE)
            gpa = linear_to_gpa(paging, at, self.vm.read_physical)
            region = None if gpa is None else self.vm.region_at(gpa)
            if gpa is None or region is None or gpa + size > region.end:
                break
            code += region.buffer[gpa - region.gpa : gpa - region.gpa + size]
        return code, code64
