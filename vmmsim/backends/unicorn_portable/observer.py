"""Hidden state read by the documented API alone: what a copy of the CPU does with it.

The registers of an engine are copied (by a context) to a second one whose memory is one page
of code and, everywhere else, a device that notes addresses. Switched to real mode there, the
copy keeps its hidden bases (SDM vol. 3, 9.9.2) and shows them when it fetches and loads. Its
first translation block is one instruction long exactly when interrupts are held off.
"""

from __future__ import annotations

import functools
import threading
from typing import NamedTuple

from unicorn import UC_HOOK_BLOCK, UC_HOOK_MEM_FETCH_PROT
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import Uc, UcContext, UcError

from ..unicorn_registers import RegisterAccess, scratch_engine

__all__ = ["Observed", "StateObserver", "shared_observer"]

_PAGE = 0x7000_0000
_LOWER, _4G = _PAGE, 1 << 32

#: The same in 16-bit and 32-bit code, at any privilege level; HLT at CPL 3 ends it as well.
LOADS = bytes.fromhex(
    "9090"  # nop; nop            one block with what follows, or a block of one
    "ac"  # lodsb               DS:[0]
    "26ac"  # es lodsb            ES:[1]
    "36ac"  # ss lodsb            SS:[2]
    "f4"  # hlt
)


class Observed(NamedTuple):
    """Bases below 2^32, and whether STI or MOV SS holds interrupts off."""

    cs: int
    ds: int
    es: int
    ss: int
    shadow: bool


class StateObserver:
    """The engine that is watched. Any thread may ask."""

    def __init__(self) -> None:
        self._uc = uc = scratch_engine()
        self._loads: list[int] = []
        self._fetches: list[int] = []
        self._blocks: list[int] = []
        uc.mem_map(_PAGE, 0x1000)
        uc.mem_write(_PAGE, LOADS)
        for start, end in ((0, _PAGE), (_PAGE + 0x1000, _4G)):
            uc.mmio_map(start, end - start, self._load, start, None, None)
        uc.hook_add(UC_HOOK_MEM_FETCH_PROT, self._fetch)
        uc.hook_add(UC_HOOK_BLOCK, self._block)
        self._access = RegisterAccess(uc)
        self._lock = threading.Lock()

    def _load(self, uc: Uc, offset: int, size: int, start: int) -> int:
        self._loads.append(start + offset)
        return 0

    def _fetch(self, uc: Uc, access: int, address: int, size: int, value: int, data: object) -> bool:
        self._fetches.append(address)
        return False

    def _block(self, uc: Uc, address: int, size: int, data: object) -> None:
        self._blocks.append(size)

    def observe(self, context: UcContext) -> Observed | None:
        """What the CPU saved in `context` has; None where a base lies in this engine's page."""
        with self._lock:
            self._loads.clear()
            self._blocks.clear()
            self._fetches.clear()
            access = self._access
            self._uc.context_restore(context)
            access.write(x86.UC_X86_REG_CR0, 0x10)
            access.write(x86.UC_X86_REG_RFLAGS, 2)
            access.write(x86.UC_X86_REG_RSI, 0)
            access.flush_tlb()
            self._run(0)  # nothing is executable at the base of CS
            if len(self._fetches) != 1:
                return None
            cs = self._fetches[0]
            self._run((_PAGE - cs) & 0xFFFFFFFF)
            if len(self._loads) != 3 or not self._blocks:
                return None
            ds, es, ss = ((at - n) & 0xFFFFFFFF for n, at in enumerate(self._loads))
            return Observed(cs, ds, es, ss, self._blocks[0] == 1)

    def _run(self, begin: int) -> None:
        try:
            self._uc.emu_start(begin, 0)
        except UcError:
            pass  # the fetch that fails, or HLT at an outer level: both are meant


@functools.cache
def shared_observer() -> StateObserver:
    """The observer of this process, made when it is first needed (about 0.5 ms)."""
    return StateObserver()
