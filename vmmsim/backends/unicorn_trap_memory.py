"""Guest memory as the CPU itself reads and writes it while it delivers an exception.

`GuestRam` is physical memory over the regions' host pages. `LinearMemory` walks the guest's
page tables as SDM vol. 3, chapter 4 says: with rights, reserved bits, the accessed and
dirty bits, and the error code of the page fault that an access may end in. All three forms
of paging are walked; `find` is the short way for the tables of 64-bit guests. It remembers
a walk together with the entries that it used, and looks at these again each time: a guest
that changes its tables is always obeyed, also where a real TLB would still be stale.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from ..errors import NotSupported
from ..memory import Region

__all__ = ["GuestFault", "GuestRam", "LinearMemory", "Page"]

_PAGE = 4096
_PF = 14
_PRESENT, _WRITE, _USER, _ACCESSED, _DIRTY, _BIG = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7
_NX = 1 << 63
_ADDRESS = 0x000FFFFFFFFFF000
_CR0_WP, _CR0_PG = 1 << 16, 1 << 31
_CR4_PSE, _CR4_PAE, _CR4_SMAP = 1 << 4, 1 << 5, 1 << 21
_EFER_LMA, _EFER_NXE = 1 << 10, 1 << 11
_AC = 1 << 18
#: Spaces (values of CR3) and pages whose walks are remembered; beyond that all are forgotten.
_MOST_SPACES, _MOST_PAGES = 64, 4096

#: A page of RAM: its region's bytes, the same as 64-bit words, and where in the bytes it starts.
Page = tuple[memoryview, memoryview, int]


class GuestFault(Exception):
    """An exception that the CPU met on its way: `vector`, `error` code, and for #PF the address."""

    def __init__(self, vector: int, error: int, address: int | None = None) -> None:
        super().__init__(vector, error, address)
        self.vector = vector
        self.error = error
        self.address = address


class GuestRam:
    """Physical memory for the trap unit: the host pages of `regions`.

    `written(gpa, size)`, when given, is told of each store but those of `LinearMemory.find`'s
    users, so that translations of code can be forgotten. `close` lets the pages go.
    """

    def __init__(
        self, regions: Iterable[Region] = (), *, written: Callable[[int, int], None] | None = None
    ) -> None:
        if sys.byteorder != "little":
            raise NotSupported("guest memory is looked at in words, which needs a little-endian host")
        self._written = written
        self._ranges: list[tuple[int, int, bool, memoryview, memoryview]] = []
        #: Changes whenever regions do: whoever remembers a page compares it.
        self.generation = 0
        self.set_regions(regions)

    def set_regions(self, regions: Iterable[Region]) -> None:
        """Show other regions from now on."""
        self.close()
        for region in regions:
            view = memoryview(region.buffer).cast("B")
            self._ranges.append((region.gpa, region.gpa + region.size, region.readonly, view, view.cast("Q")))

    def close(self) -> None:
        """Release the host pages: a region can only be closed when nobody looks at it."""
        self.generation += 1
        for *_, view, words in self._ranges:
            words.release()
            view.release()
        self._ranges.clear()

    def page(self, gpa: int, *, write: bool = False) -> Page | None:
        """The page that holds `gpa`, or None in a hole, and for a write in ROM."""
        for start, end, readonly, view, words in self._ranges:
            if start <= gpa < end:
                return None if readonly and write else (view, words, (gpa & -_PAGE) - start)
        return None

    def read(self, gpa: int, size: int) -> bytes:
        """`size` bytes within one page. LookupError in a hole."""
        page = self.page(gpa)
        if page is None:
            raise LookupError(f"no memory at {gpa:#x}")
        at = page[2] + gpa % _PAGE
        return bytes(page[0][at : at + size])

    def write(self, gpa: int, data: bytes) -> None:
        """Store within one page. LookupError in a hole and in ROM."""
        page = self.page(gpa, write=True)
        if page is None:
            raise LookupError(f"no RAM at {gpa:#x}")
        at = page[2] + gpa % _PAGE
        page[0][at : at + len(data)] = data
        if self._written is not None:
            self._written(gpa, len(data))


class LinearMemory:
    """Linear addresses of the guest, by the control registers given to `use`.

    Reads where there is no RAM give ones and writes there are lost: a descriptor table or a
    stack in MMIO space makes no exits.
    """

    def __init__(self, ram: GuestRam) -> None:
        self.ram = ram
        self._cr0 = self._cr3 = self._cr4 = self._efer = self._rflags = self._cpl = 0
        self._spaces: dict[int, dict[int, tuple]] = {}
        self._generation = ram.generation

    def use(self, cr0: int, cr3: int, cr4: int, efer: int, rflags: int, cpl: int) -> None:
        """How to translate from now on. RFLAGS.AC and CPL are for SMAP."""
        self._cr0, self._cr3, self._cr4, self._efer = cr0, cr3, cr4, efer
        self._rflags, self._cpl = rflags, cpl

    def read(self, linear: int, size: int, *, user: bool = False) -> bytes:
        """Bytes by a supervisor access to a system table, or one of CPL 3 with `user`."""
        return b"".join(
            self._read_physical(self.translate(at, user=user), count)
            for at, count in self._pieces(linear, size)
        )

    def read_int(self, linear: int, size: int, *, user: bool = False) -> int:
        return int.from_bytes(self.read(linear, size, user=user), "little")

    def peek(self, linear: int, size: int) -> bytes:
        """As far as it can be read, without a fault and without a trace in the tables."""
        data = b""
        try:
            for at, count in self._pieces(linear, size):
                data += self.ram.read(self.translate(at, user=False, look=True), count)
        except (GuestFault, LookupError):
            pass
        return data

    def prepare(
        self, linear: int, size: int, *, user: bool = False, implicit: bool = False
    ) -> list[tuple[int, int]]:
        """Translate for a write: the (gpa, size) of each page's part. Nothing is stored, so that
        a stack of which one page faults stays as it was."""
        return [
            (self.translate(at, write=True, user=user, implicit=implicit), count)
            for at, count in self._pieces(linear, size)
        ]

    def commit(self, pieces: list[tuple[int, int]], data: bytes) -> None:
        """Store what `prepare` made room for."""
        at = 0
        for gpa, count in pieces:
            try:
                self.ram.write(gpa, data[at : at + count])
            except LookupError:
                pass
            at += count

    def write(self, linear: int, data: bytes, *, user: bool = False, implicit: bool = True) -> None:
        self.commit(self.prepare(linear, len(data), user=user, implicit=implicit), data)

    def _pieces(self, linear: int, size: int) -> list[tuple[int, int]]:
        mask = (1 << 64) - 1 if self._efer & _EFER_LMA else 0xFFFFFFFF
        pieces = []
        while size:
            linear &= mask
            count = min(size, _PAGE - linear % _PAGE)
            pieces.append((linear, count))
            linear += count
            size -= count
        return pieces

    def _read_physical(self, gpa: int, size: int) -> bytes:
        try:
            return self.ram.read(gpa, size)
        except LookupError:
            return b"\xff" * size

    def translate(
        self,
        linear: int,
        *,
        write: bool = False,
        user: bool = False,
        implicit: bool = True,
        look: bool = False,
    ) -> int:
        """The guest-physical address of `linear`. `user`: with the rights of CPL 3. `implicit`: of
        a system table, whatever CPL and AC (SDM vol. 3, 4.6.1). `look`: no rights, no bits set.

        Raises GuestFault (#PF).
        """
        if not self._cr0 & _CR0_PG:
            return linear & 0xFFFFFFFF
        if self._efer & _EFER_LMA:
            entries, shift = self._walk_wide(self._cr3 & _ADDRESS, linear, 39, write, user)
        elif self._cr4 & _CR4_PAE:
            entries, shift = self._walk_pae(linear, write, user)
        else:
            entries, shift = self._walk_32bit(linear, write, user)
        last = entries[-1][1]
        mask = (1 << shift) - 1
        base = last & _ADDRESS & ~mask
        if shift == 22:  # bits 13-20 of a 4 MiB page are address bits 32-39 (PSE-36)
            base = last & 0xFFC00000 | (last >> 13 & 0xFF) << 32
        if look:
            return base | linear & mask
        rights = _WRITE | _USER
        for _, entry, _ in entries:
            rights &= entry
        if not self._allowed(rights, write, user, implicit):
            raise self._page_fault(linear, _PRESENT, write, user)
        for number, (at, entry, size) in enumerate(entries, 1):
            wanted = entry | _ACCESSED | (_DIRTY if write and number == len(entries) else 0)
            if wanted != entry:
                self.commit([(at, size)], wanted.to_bytes(size, "little"))
        return base | linear & mask

    def _allowed(self, rights: int, write: bool, user: bool, implicit: bool) -> bool:
        if user:
            return bool(rights & _USER and (not write or rights & _WRITE))
        if rights & _USER and self._cr4 & _CR4_SMAP:
            explicit = not implicit and self._cpl < 3 and self._rflags & _AC
            if not explicit:
                return False
        return bool(not write or rights & _WRITE or not self._cr0 & _CR0_WP)

    @staticmethod
    def _page_fault(linear: int, reason: int, write: bool, user: bool) -> GuestFault:
        return GuestFault(_PF, reason | (_WRITE if write else 0) | (_USER if user else 0), linear)

    def _entry(self, at: int, size: int) -> int:
        return int.from_bytes(self._read_physical(at, size), "little")

    def _walk_wide(
        self, table: int, linear: int, shift: int, write: bool, user: bool
    ) -> tuple[list[tuple[int, int, int]], int]:
        """4-level paging, or the last two levels of PAE: the entries used, and the page's size."""
        entries = []
        reserved = 0 if self._efer & _EFER_NXE else _NX
        if not self._efer & _EFER_LMA:
            reserved |= 0x7FF << 52
        while True:
            at = table + (linear >> shift & 511) * 8
            entry = self._entry(at, 8)
            if not entry & _PRESENT:
                raise self._page_fault(linear, 0, write, user)
            big = shift > 12 and entry & _BIG
            # Below the address of a big page only bit 12, PAT, is defined; none is at the top.
            low = (1 << shift) - 1 & ~0x1FFF if big else 0
            if entry & (reserved | low) or (big and shift == 39):
                raise self._page_fault(linear, _PRESENT | 8, write, user)
            entries.append((at, entry, 8))
            if big or shift == 12:
                return entries, shift
            table = entry & _ADDRESS
            shift -= 9

    def _walk_pae(self, linear: int, write: bool, user: bool) -> tuple[list[tuple[int, int, int]], int]:
        entry = self._entry((self._cr3 & 0xFFFFFFE0) + (linear >> 30 & 3) * 8, 8)
        if not entry & _PRESENT:
            raise self._page_fault(linear, 0, write, user)
        if entry & (0x1E6 | 0xFFF << 52):
            raise self._page_fault(linear, _PRESENT | 8, write, user)
        return self._walk_wide(entry & _ADDRESS, linear, 21, write, user)

    def _walk_32bit(self, linear: int, write: bool, user: bool) -> tuple[list[tuple[int, int, int]], int]:
        at = (self._cr3 & 0xFFFFF000) + (linear >> 22 & 1023) * 4
        entry = self._entry(at, 4)
        if not entry & _PRESENT:
            raise self._page_fault(linear, 0, write, user)
        entries = [(at, entry, 4)]
        if entry & _BIG and self._cr4 & _CR4_PSE:
            if entry & 1 << 21:
                raise self._page_fault(linear, _PRESENT | 8, write, user)
            return entries, 22
        at = (entry & 0xFFFFF000) + (linear >> 12 & 1023) * 4
        entry = self._entry(at, 4)
        if not entry & _PRESENT:
            raise self._page_fault(linear, 0, write, user)
        entries.append((at, entry, 4))
        return entries, 12

    def space(self, cr3: int, cr4: int, efer: int) -> dict[int, tuple]:
        """The remembered walks of one 4-level address space, for the `find` that follows."""
        ram = self.ram
        if self._generation != ram.generation:
            self._spaces.clear()
            self._generation = ram.generation
        self._cr3, self._cr4, self._efer = cr3, cr4, efer
        key = cr3 & _ADDRESS | efer & _EFER_NXE | cr4 >> 21 & 1
        space = self._spaces.get(key)
        if space is None:
            if len(self._spaces) >= _MOST_SPACES:
                self._spaces.clear()
            space = self._spaces[key] = {}
        return space

    def find(self, space: dict[int, tuple], linear: int, write: int) -> tuple | None:
        """A page of RAM for a supervisor access, as a tuple that ends in a `Page`; `write` is 0 or 1.

        None where it is not plain RAM that any supervisor access may use, whatever WP and AC,
        and with the accessed and dirty bits set already: ask `translate` then, which sets them.
        `linear` may be any address; one that is not canonical is never found.
        """
        key = linear >> 12 << 1 | write
        found = space.get(key)
        if found is not None:
            a, i, e, b, j, f, c, k, g, d, m, h = found[:12]
            if a[i] == e and b[j] == f and c[k] == g and d[m] == h:
                return found
            del space[key]
        return self._fill(space, key, linear, write)

    def _fill(self, space: dict[int, tuple], key: int, linear: int, write: int) -> tuple | None:
        if linear >> 47 not in (0, 0x1FFFF):
            return None
        try:
            entries, shift = self._walk_wide(self._cr3 & _ADDRESS, linear, 39, bool(write), False)
        except GuestFault:
            return None
        last = entries[-1][1]
        rights = _WRITE | _USER | _ACCESSED
        user = _USER
        steps: list = []
        for at, entry, _ in entries:
            rights &= entry
            user &= entry
            table = self.ram.page(at)
            if table is None:
                return None
            steps += (table[1], table[2] + at % _PAGE >> 3, entry)
        if (
            (user and self._cr4 & _CR4_SMAP)
            or not rights & _ACCESSED
            or (write and not (rights & _WRITE and last & _DIRTY))
        ):
            return None
        mask = (1 << shift) - 1
        page = self.ram.page(last & _ADDRESS & ~mask | linear & mask, write=bool(write))
        if page is None:
            return None
        while len(steps) < 12:
            steps += steps[-3:]
        if len(space) >= _MOST_PAGES:
            space.clear()
        found = (*steps, *page)
        space[key] = found
        return found
