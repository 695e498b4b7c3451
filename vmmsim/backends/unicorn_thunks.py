"""Machine code between Unicorn and Python, for x86-64 Linux. Beyond the documented API.

Three things that no documented call offers, and that cost next to nothing in machine code:

* `BLOCK`, a hook at the start of each translated block, ends the run when a budget is
  used up. Other threads end a run by setting the budget to 0: the guest stops between two
  instructions, where `uc_emu_stop` from another thread makes some of them run twice.
* `CALL`, around each Python callback for an access, leaves the engine at once when the
  callback asked for it. The guest is then as it was before the instruction.
* `PIECE` answers the aligned pieces into which Unicorn cuts a load from MMIO, out of the
  value that the callback for the whole access has left.

The code is kept as bytes beside its assembly (`SOURCES`); a test assembles it again.
`native_usable` in `unicorn_native` proves all of it in each process before it is used.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

from unicorn.unicorn_py3.unicorn import uclib

from ..errors import NotSupported

__all__ = ["CODE", "SOURCES", "Shared", "Thunks", "symbol"]

_STOP = 0x1111111111111111
_CALLBACK = 0x2222222222222222
_CHECK = 0x3333333333333333

#: Signatures: BLOCK and INSN (uc, address, size, shared); CALL any callback of at most six
#: arguments whose first is uc; PIECE (uc, offset, size, hole), where a hole is
#: {address of its start, shared, CALL thunk of the slow path}. Offsets into shared: see Shared.
SOURCES = {
    "block": """
        mov [rcx+32], rbp
        mov rax, [rcx]
        cmp rax, [rcx+8]
        jge stop
        mov edx, edx
        add rax, rdx
        mov [rcx], rax
        inc qword ptr [rcx+16]
        ret
    stop:
        mov qword ptr [rcx+24], 1
        movabs rax, 0x1111111111111111
        jmp rax
    """,
    "insn": """
        mov rax, [rcx+40]
        cmp rax, [rcx+48]
        jge stop
        inc rax
        mov [rcx+40], rax
        ret
    stop:
        mov qword ptr [rcx+24], 2
        movabs rax, 0x1111111111111111
        jmp rax
    """,
    "call": """
        push rbx
        push rdi
        sub rsp, 8
        movabs rax, 0x2222222222222222
        call rax
        mov rbx, rax
        mov rdi, [rsp+8]
        xor esi, esi
        movabs rax, 0x3333333333333333
        call rax
        mov rax, rbx
        add rsp, 8
        pop rdi
        pop rbx
        ret
    """,
    "piece": """
        add rsi, [rcx]
        mov r8, [rcx+8]
        mov rax, rsi
        sub rax, [r8+56]
        cmp rax, 24
        jae slow
        mov rax, [r8+rax+64]
        ret
    slow:
        jmp qword ptr [rcx+16]
    """,
}
CODE = {
    "block": bytes.fromhex(
        "48896920488b01483b41087d0d89d24801d048890148ff4110c348c741180100000048b81111111111111111ffe0"
    ),
    "insn": bytes.fromhex("488b4128483b41307d0848ffc048894128c348c741180200000048b81111111111111111ffe0"),
    "call": bytes.fromhex(
        "53574883ec0848b82222222222222222ffd04889c3488b7c240831f648b83333333333333333ffd0"
        "4889d84883c4085f5bc3"
    ),
    "piece": bytes.fromhex("4803314c8b41084889f0492b40384883f8187306498b440040c3ff6110"),
}


class Shared:
    """Indices of the 64-bit words that thunks and Python share. All unsigned in Python."""

    BYTES = 0  #: code bytes executed so far
    LIMIT = 1  #: the run ends at the block that starts when BYTES has reached this
    BLOCKS = 2  #: blocks entered so far
    REASON = 3  #: why a thunk ended the run: 0 it did not, 1 LIMIT, 2 INSN_LIMIT
    ENV = 4  #: address of QEMU's CPU structure (TCG keeps it in RBP)
    INSNS = 5  #: instructions started, while the insn thunk is installed
    INSN_LIMIT = 6
    WINDOW = 7  #: physical address of the first byte of DATA
    DATA = 8  #: three words: the bytes that loads from MMIO find there
    COUNT = 16


def symbol(name: str) -> int | None:
    """The address of a symbol of Unicorn's library, None when it exports no such."""
    try:
        return ctypes.cast(getattr(uclib, name), ctypes.c_void_p).value
    except AttributeError:
        return None


class Thunks:
    """A page of thunks and the words that they share with Python.

    `words` is a memoryview of Shared.COUNT unsigned words. Raises NotSupported where the
    host has no executable memory or the library lacks a symbol.
    """

    def __init__(self) -> None:
        stop, leave = symbol("uc_emu_stop"), symbol("helper_check_exit_request_x86_64")
        if stop is None or leave is None:
            raise NotSupported("this build of Unicorn exports no helper_check_exit_request_x86_64")
        self._stop, self._leave = stop, leave
        try:
            self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        except OSError as error:
            raise NotSupported(f"this host gives no executable memory: {error}") from error
        anchor = ctypes.c_char.from_buffer(self._page)
        self._base = ctypes.addressof(anchor)
        del anchor
        self._used = 0
        self._words = (ctypes.c_uint64 * Shared.COUNT)()
        self.shared = ctypes.addressof(self._words)
        self.words: Any = memoryview(self._words).cast("B").cast("Q")
        self.words[Shared.LIMIT] = self.words[Shared.INSN_LIMIT] = 1 << 62

    def make(self, name: str, callback: int = 0) -> int:
        """Write the thunk `name` into the page; returns its address."""
        code = CODE[name]
        for slot, value in ((_STOP, self._stop), (_CALLBACK, callback), (_CHECK, self._leave)):
            code = code.replace(slot.to_bytes(8, "little"), value.to_bytes(8, "little"))
        at = self._used
        self._page[at : at + len(code)] = code
        self._used = at + (len(code) + 15 & ~15)
        return self._base + at

    def close(self) -> None:
        """Give the page back. The engine must be gone."""
        self._page.close()
