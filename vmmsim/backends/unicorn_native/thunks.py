"""Machine code between Unicorn and Python. Beyond the documented API.

What no documented call offers, and what costs next to nothing in machine code:

* `block`, a hook at the start of each translated block, ends the run when a budget is
  used up. Other threads end a run by setting the budget to 0: the guest stops between two
  instructions, where `uc_emu_stop` from another thread makes some of them run twice. It
  also waits for the interrupt window: what sets RFLAGS.IF ends a block, so the window opens
  at the start of one.
* `insn`, a hook before each instruction, counts them and ends the run at a limit.
* `in`, `out`, `read` and `write` stand around the Python callbacks for accesses. They tell
  the callback how many accesses the executing instruction has made before this one, and
  what is unusual about it (the FLAG_ constants), and leave the engine at once when the
  callback asked for it: the guest is then as it was before the instruction.
* `piece` answers the aligned pieces into which Unicorn cuts a load from MMIO, out of the
  value that the callback for the whole access gave. A piece at the start of a page that no
  callback announced is of a load that began in the page before, in RAM. It never leaves the
  engine by itself: Unicorn has not stored RIP then, and would begin the block anew. The
  check that Unicorn makes behind each load leaves it, and knows RIP.
* `leave` is a hook that leaves the engine there.
* `trap` is the hook for exceptions but #UD. It calls QEMU's own delivery,
  x86_cpu_do_interrupt, which Unicorn never calls. Python is asked for what is no exception (an
  intercept, see `unicorn_traps`), and when the delivery itself faulted: QEMU then leaves by
  longjmp and comes with the new exception.
* `fill` is QEMU's walk of the page tables for a TLB entry, x86_cpu_tlb_fill, and then makes the
  entry one by which stores are quick, unless the page holds code: see `tlb`.
* `start` and `stop` are uc_emu_start from RIP on, with the words of a run reset, and
  uc_emu_stop. They take no arguments: ctypes needs longer for those of uc_emu_start than
  for the call.

Unicorn calls: block, insn (uc, address, size, shared); leave (uc, ...); in (uc, port, size,
shared); out (uc, port, size, value, shared); read, write (uc, kind, gpa, size, value, shared);
piece (uc, offset, size, hole), a hole being {address of its start, shared}; trap (uc, vector,
shared). Translated code itself calls block and insn, and so the register in which TCG keeps the CPU
structure's address has it there. They call Python as: in (port, size, flags); out (port, size,
value, flags); read (gpa, size, flags); write (gpa, size, value, flags); piece (gpa, size);
trap (vector). Python calls start () and stop (). QEMU calls fill (CPUState, address, size, kind,
table, probe, return address).

There is a set of them for each architecture of hosts (`assembly`, `host`), with the same contracts.
`native_usable` in `unicorn_native` proves all of it in each process before it is used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unicorn.unicorn_py3.unicorn import uclib

from ...errors import NotSupported
from .host import CodePages, assembly

if TYPE_CHECKING:
    from ..unicorn_probe import Layout

__all__ = [
    "FLAG_CROSSES",
    "FLAG_INDEX",
    "FLAG_SPECIAL",
    "FLAG_TAIL",
    "FLAG_UNUSUAL",
    "FLAG_USER",
    "FLAG_ZERO",
    "Shared",
    "Thunks",
    "symbol",
]

#: Flags, above the number of accesses that the instruction has made before.
FLAG_CROSSES = 0x10000  #: it runs over the end of a page
FLAG_ZERO = 0x20000  #: a store of 0, maybe to ES:RDI: INS makes one before it reads the port
FLAG_TAIL = 0x40000  #: a byte of a store that began in the page before
FLAG_SPECIAL = 0x80000  #: Python has set Shared.SPECIAL
FLAG_USER = 0x100000  #: IN or OUT at a CPL other than 0
FLAG_INDEX = 0xFFFF  #: that number of accesses
FLAG_UNUSUAL = FLAG_CROSSES | FLAG_ZERO | FLAG_TAIL


class Shared:
    """Indices of the 64-bit words that thunks and Python share. All unsigned in Python."""

    BYTES = 0  #: code bytes executed so far
    LIMIT = 1  #: the block hook looks closer when BYTES has reached this: END, or 0 (see END)
    BLOCKS = 2  #: blocks entered so far
    REASON = 3  #: why a thunk ended the run: 0 it did not, 1 END, 2 INSN_LIMIT, 3 the window
    ENV = 4  #: address of QEMU's CPU structure, as TCG has it in a register
    INSNS = 5  #: instructions started, while the insn thunk is installed
    INSN_LIMIT = 6
    WINDOW = 7  #: physical address of the first byte of DATA
    DATA = 8  #: three words: the bytes that loads from MMIO find there
    ARMED = 11  #: not 0: the next piece at the start of a page is of the access in DATA
    SPECIAL = 12  #: FLAG_SPECIAL, to have all callbacks take their long form
    TOKEN_RIP = 13  #: with TOKEN_BLOCKS: of which execution of an instruction INDEX counts
    TOKEN_BLOCKS = 14
    INDEX = 15  #: how many accesses of that execution came before the last one
    SKIP = 16  #: how many byte stores to pass over: of a store that was shown whole
    ENGINE = 17  #: the engine's handle
    START = 18  #: address of uc_emu_start
    ANSWER = 19  #: the answer of the last read
    #: The run ends at the block that starts when BYTES has reached this. With LIMIT less than
    #: END it ends also at the first block with RFLAGS.IF set and no shadow: the interrupt window.
    END = 20
    CPU = 21  #: address of QEMU's CPUState
    DELIVERING = 22  #: an exception's delivery has begun, and is not done
    VECTOR = 23  #: which: its vector,
    ERROR = 24  #: error code,
    SOFT = 25  #: and whether it is of INT n, INT3 or INTO
    TRAPS = 26  #: exceptions delivered so far
    # Of the fill thunk, see `tlb`:
    FILL = 27  #: address of x86_cpu_tlb_fill
    PROTECT = 28  #: address of tlb_reset_dirty
    TLB = 29  #: offset of the TLB's tables in CPUState
    PAGES = 30  #: address of a byte for each page of guest memory: not 0 if it may hold translated code
    PAGE_COUNT = 31
    MADE = 32  #: not 0: the IN or OUT at hand was made by free code
    BEHIND = 33  #: not 0: then the engine is to stop at the block behind it
    PORTS = 34  #: accesses so far: IN and OUT,
    MMIO = 35  #: and others
    WALKED = 36  #: where in translated code the access of the last TLB miss is; 0: it was a fetch
    STACK = 37  #: the stack pointer of the last write thunk
    OLD_CR2 = 38  #: CR2 before the last fetch that missed the TLB
    COUNT = 39


#: What is called of Unicorn's library.
_SYMBOLS = {
    "START": "uc_emu_start",
    "UC_EMU_STOP": "uc_emu_stop",
    "CHECK_EXIT": "helper_check_exit_request_x86_64",
    "DO_INTERRUPT": "x86_cpu_do_interrupt_x86_64",
    "RESTORE": "cpu_restore_state_x86_64",
}


def symbol(name: str) -> int | None:
    """The address of a symbol of Unicorn's library, None when it exports no such."""
    try:
        return ctypes.cast(getattr(uclib, name), ctypes.c_void_p).value
    except AttributeError:
        return None


class Thunks:
    """The thunks of one engine and the words that they share with Python.

    `words` is a memoryview of Shared.COUNT unsigned words, `at` the address of each thunk.
    """

    def __init__(
        self, engine: int, layout: Layout, recursion: int, callbacks: Mapping[str, int] | None = None
    ) -> None:
        """`engine` is the engine's handle, `layout` tells where things are in the CPU structure,
        `recursion` is the offset of `size_recur_mem` in uc_struct, `callbacks` has the address of the
        Python callback of each thunk that has one. NotSupported where there are no thunks for this
        host, it has no executable memory, or the library lacks a symbol."""
        host = assembly()
        #: The addresses of what is called of Unicorn's library.
        self.symbols: dict[str, int] = {}
        for slot, name in _SYMBOLS.items():
            address = symbol(name)
            if address is None:
                raise NotSupported(f"this build of Unicorn exports no {name}")
            self.symbols[slot] = address
        self._words = (ctypes.c_uint64 * Shared.COUNT)()
        self.shared = ctypes.addressof(self._words)
        self.words: Any = memoryview(self._words).cast("B").cast("Q")
        for limit in (Shared.LIMIT, Shared.END, Shared.INSN_LIMIT):
            self.words[limit] = 1 << 62
        self.words[Shared.ENGINE], self.words[Shared.START] = engine, self.symbols["START"]
        values = self.symbols | {
            "SHARED": self.shared,
            "RIP": layout.registers + 16 * 8,
            "RDI": layout.registers + 7 * 8,
            "ES_BASE": layout.segments + 8,
            "CR0": layout.cr,
            "CR2": layout.cr + 2 * 8,
            "CS_FLAGS": layout.segments + 1 * 24 + 20,
            "SS_FLAGS": layout.segments + 2 * 24 + 20,
            "EFLAGS": layout.flags,
            "CC_SOURCE": layout.flags + 16,
            "CC_OP": layout.flags + 32,
            "HFLAGS": layout.flags + 40,
            "EXCEPTION": layout.error_code,
            "EXCEPTION_IS_INT": layout.error_code + 4,
            "RECURSION": recursion,
        }
        code = bytearray()
        places = {}
        for name in host.code:
            code += bytes(-len(code) % 16)
            places[name] = len(code)
            code += host.filled(name, values | {"CALLBACK": (callbacks or {}).get(name, 0)})
        self._pages = CodePages(bytes(code))
        self.at = {name: self._pages.address + place for name, place in places.items()}

    def close(self) -> None:
        """Give the pages back. The engine must be gone."""
        self._pages.close()
