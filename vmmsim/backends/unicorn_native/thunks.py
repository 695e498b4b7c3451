"""Machine code between Unicorn and Python, for x86-64 Linux. Beyond the documented API.

What no documented call offers, and what costs next to nothing in machine code:

* `block`, a hook at the start of each translated block, ends the run when a budget is
  used up. Other threads end a run by setting the budget to 0: the guest stops between two
  instructions, where `uc_emu_stop` from another thread makes some of them run twice.
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
* `start` and `stop` are uc_emu_start from RIP on, with the words of a run reset, and
  uc_emu_stop. They take no arguments: ctypes needs longer for those of uc_emu_start than
  for the call.

The code is kept as bytes beside its assembly (`SOURCES`); a test assembles it again.
`native_usable` in `unicorn_native` proves all of it in each process before it is used.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

from unicorn.unicorn_py3.unicorn import uclib

from ...errors import NotSupported

__all__ = [
    "CODE",
    "FLAG_CROSSES",
    "FLAG_INDEX",
    "FLAG_SPECIAL",
    "FLAG_TAIL",
    "FLAG_UNUSUAL",
    "FLAG_ZERO",
    "SOURCES",
    "Shared",
    "Thunks",
]

# What `Thunks.make` puts in for the constants of SOURCES: addresses, and two offsets.
_STOP = 0x1111111111111111  # uc_emu_stop
_CALLBACK = 0x2222222222222222
_LEAVE = 0x3333333333333333  # helper_check_exit_request
_RIP = 0x44444444  # of RIP in QEMU's CPU structure
_RDI = 0x66666666  # of RDI
_ES_BASE = 0x77777777  # of the base of ES
_CR0 = 0x88888888
_RECURSION = 0x55555555  # of uc_struct.size_recur_mem, not 0 inside an access cut into bytes

#: Called by Unicorn as: block, insn (uc, address, size, shared); leave (uc, ...);
#: in (uc, port, size, shared); out (uc, port, size, value, shared);
#: read, write (uc, kind, gpa, size, value, shared);
#: piece (uc, offset, size, hole), a hole being {address of its start, shared}.
#: They call Python as: in (port, size, flags); out (port, size, value, flags); read (gpa,
#: size, flags); write (gpa, size, value, flags); piece (gpa, size).
#: Offsets into shared are 8 times the indices in Shared.
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
    "in": """
        push rbx
        push rdi
        push r12
        mov rbx, rcx
        mov rax, [rbx+96]
        mov r10, [rbx+32]
        mov r10, [r10+0x44444444]
        mov r11, [rbx+16]
        cmp r10, [rbx+104]
        jne fresh
        cmp r11, [rbx+112]
        jne fresh
        inc qword ptr [rbx+120]
        add rax, [rbx+120]
        jmp known
    fresh:
        mov [rbx+104], r10
        mov [rbx+112], r11
        mov qword ptr [rbx+120], 0
    known:
        mov edi, esi
        mov esi, edx
        mov edx, eax
        movabs rax, 0x2222222222222222
        call rax
        mov r12, rax
        mov [rbx+152], rax
        mov rdi, [rsp+8]
        xor esi, esi
        movabs rax, 0x3333333333333333
        call rax
        mov rax, r12
        pop r12
        pop rdi
        pop rbx
        ret
    """,
    "out": """
        push rbx
        push rdi
        push r12
        mov rbx, r8
        mov rax, [rbx+96]
        mov r10, [rbx+32]
        mov r10, [r10+0x44444444]
        mov r11, [rbx+16]
        cmp r10, [rbx+104]
        jne fresh
        cmp r11, [rbx+112]
        jne fresh
        inc qword ptr [rbx+120]
        add rax, [rbx+120]
        jmp known
    fresh:
        mov [rbx+104], r10
        mov [rbx+112], r11
        mov qword ptr [rbx+120], 0
    known:
        mov edi, esi
        mov esi, edx
        mov edx, ecx
        mov ecx, eax
        movabs rax, 0x2222222222222222
        call rax
        mov r12, rax
        mov rdi, [rsp+8]
        xor esi, esi
        movabs rax, 0x3333333333333333
        call rax
        pop r12
        pop rdi
        pop rbx
        ret
    """,
    "read": """
        push rbx
        push rdi
        push r12
        mov rbx, r9
        mov rax, [rbx+96]
        mov r10, [rbx+32]
        mov r10, [r10+0x44444444]
        mov r11, [rbx+16]
        cmp r10, [rbx+104]
        jne fresh
        cmp r11, [rbx+112]
        jne fresh
        inc qword ptr [rbx+120]
        add rax, [rbx+120]
        jmp known
    fresh:
        mov [rbx+104], r10
        mov [rbx+112], r11
        mov qword ptr [rbx+120], 0
    known:
        mov r10d, edx
        and r10d, 0xfff
        lea r11d, [r10+rcx]
        cmp r11d, 0x1000
        jbe whole
        or eax, 0x10000
    whole:
        lea r11, [rdx-8]
        mov [rbx+56], r11
        xor r11d, r11d
        cmp r10d, ecx
        setb r11b
        mov [rbx+88], r11
        mov rdi, rdx
        mov esi, ecx
        mov edx, eax
        movabs rax, 0x2222222222222222
        call rax
        mov r12, rax
        mov [rbx+152], rax
        mov rdi, [rsp+8]
        xor esi, esi
        movabs rax, 0x3333333333333333
        call rax
        mov [rbx+72], r12
        mov eax, 1
        pop r12
        pop rdi
        pop rbx
        ret
    """,
    "write": """
        push rbx
        push rdi
        push r12
        mov rbx, r9
        cmp qword ptr [rbx+128], 0
        je shown
        dec qword ptr [rbx+128]
        jmp done
    shown:
        mov rax, [rbx+96]
        mov r10, [rbx+32]
        mov r10, [r10+0x44444444]
        mov r11, [rbx+16]
        cmp r10, [rbx+104]
        jne fresh
        cmp r11, [rbx+112]
        jne fresh
        inc qword ptr [rbx+120]
        add rax, [rbx+120]
        jmp known
    fresh:
        mov [rbx+104], r10
        mov [rbx+112], r11
        mov qword ptr [rbx+120], 0
    known:
        mov r12, r8
        mov r10d, ecx
        neg ecx
        lea ecx, [rcx*8+64]
        shl r12, cl
        shr r12, cl
        mov ecx, r10d
        test r12, r12
        jne value
        mov r10, [rbx+32]
        mov r11, [r10+0x66666666]
        add r11, [r10+0x77777777]
        sub r11, rdx
        test r11d, 0xfff
        jne value
        bt dword ptr [r10+0x88888888], 31
        jc paged
        test r11w, r11w
        jne value
    paged:
        or eax, 0x20000
    value:
        mov r11d, edx
        and r11d, 0xfff
        jne inside
        cmp ecx, 1
        jne inside
        cmp dword ptr [rdi+0x55555555], 0
        je inside
        or eax, 0x40000
    inside:
        add r11d, ecx
        cmp r11d, 0x1000
        jbe whole
        or eax, 0x10000
    whole:
        lea r10d, [rcx-1]
        test r10d, edx
        je aligned
        mov [rbx+128], rcx
    aligned:
        mov rdi, rdx
        mov esi, ecx
        mov rdx, r12
        mov ecx, eax
        movabs rax, 0x2222222222222222
        call rax
        mov r12, rax
        mov rdi, [rsp+8]
        xor esi, esi
        movabs rax, 0x3333333333333333
        call rax
    done:
        mov eax, 1
        pop r12
        pop rdi
        pop rbx
        ret
    """,
    "piece": """
        add rsi, [rcx]
        mov r8, [rcx+8]
        test esi, 0xfff
        jne inside
        xor eax, eax
        xchg rax, [r8+88]
        test rax, rax
        je slow
    inside:
        mov rax, rsi
        sub rax, [r8+56]
        cmp rax, 24
        jae slow
        mov rax, [r8+rax+64]
        ret
    slow:
        push rbx
        push rdi
        push r12
        mov rbx, r8
        mov rdi, rsi
        mov esi, edx
        movabs rax, 0x2222222222222222
        call rax
        pop r12
        pop rdi
        pop rbx
        ret
    """,
    "leave": """
        push rbx
        mov rbx, rdi
        movabs rax, 0x1111111111111111
        call rax
        mov rdi, rbx
        xor esi, esi
        movabs rax, 0x3333333333333333
        call rax
        pop rbx
        ret
    """,
    "start": """
        movabs rax, 0x2222222222222222
        mov rdi, [rax+136]
        mov rsi, [rax+32]
        mov rsi, [rsi+0x44444444]
        xor edx, edx
        xor ecx, ecx
        xor r8d, r8d
        mov [rax+24], rdx
        mov [rax+88], rdx
        mov [rax+128], rdx
        jmp qword ptr [rax+144]
    """,
    "stop": """
        movabs rax, 0x2222222222222222
        mov rdi, [rax+136]
        movabs rax, 0x1111111111111111
        jmp rax
    """,
}
CODE = {
    "block": bytes.fromhex(
        "48896920488b01483b41087d0d89d24801d048890148ff4110c348c741180100000048b81111111111111111ffe0"
    ),
    "insn": bytes.fromhex("488b4128483b41307d0848ffc048894128c348c741180200000048b81111111111111111ffe0"),
    "in": bytes.fromhex(
        "535741544889cb488b43604c8b53204d8b92444444444c8b5b104c3b536875104c3b5b70750a48ff4378480343"
        "78eb104c8953684c895b7048c743780000000089f789d689c248b82222222222222222ffd04989c44889839800"
        "0000488b7c240831f648b83333333333333333ffd04c89e0415c5f5bc3"
    ),
    "out": bytes.fromhex(
        "535741544c89c3488b43604c8b53204d8b92444444444c8b5b104c3b536875104c3b5b70750a48ff4378480343"
        "78eb104c8953684c895b7048c743780000000089f789d689ca89c148b82222222222222222ffd04989c4488b7c"
        "240831f648b83333333333333333ffd0415c5f5bc3"
    ),
    "read": bytes.fromhex(
        "535741544c89cb488b43604c8b53204d8b92444444444c8b5b104c3b536875104c3b5b70750a48ff4378480343"
        "78eb104c8953684c895b7048c74378000000004189d24181e2ff0f0000458d1c0a4181fb0010000076050d0000"
        "01004c8d5af84c895b384531db4139ca410f92c34c895b584889d789ce89c248b82222222222222222ffd04989"
        "c448898398000000488b7c240831f648b83333333333333333ffd04c896348b801000000415c5f5bc3"
    ),
    "write": bytes.fromhex(
        "535741544c89cb4883bb8000000000740c48ff8b80000000e9f6000000488b43604c8b53204d8b92444444444c"
        "8b5b104c3b536875104c3b5b70750a48ff437848034378eb104c8953684c895b7048c74378000000004d89c441"
        "89caf7d98d0ccd4000000049d3e449d3ec4489d14d85e475344c8b53204d8b9a666666664d039a777777774929"
        "d341f7c3ff0f00007516410fbaa2888888881f7206664585db75050d000002004189d34181e3ff0f0000751383"
        "f901750e83bf555555550074050d000004004101cb4181fb0010000076050d00000100448d51ff4185d2740748"
        "898b800000004889d789ce4c89e289c148b82222222222222222ffd04989c4488b7c240831f648b83333333333"
        "333333ffd0b801000000415c5f5bc3"
    ),
    "piece": bytes.fromhex(
        "4803314c8b4108f7c6ff0f0000750b31c0498740584885c074134889f0492b40384883f8187306498b440040c3"
        "535741544c89c34889f789d648b82222222222222222ffd0415c5f5bc3"
    ),
    "leave": bytes.fromhex("534889fb48b81111111111111111ffd04889df31f648b83333333333333333ffd05bc3"),
    "start": bytes.fromhex(
        "48b82222222222222222488bb888000000488b7020488bb64444444431d231c94531c048895018488950584889"
        "9080000000ffa090000000"
    ),
    "stop": bytes.fromhex("48b82222222222222222488bb88800000048b81111111111111111ffe0"),
}

#: Flags, above the number of accesses that the instruction has made before.
FLAG_CROSSES = 0x10000  #: it runs over the end of a page
FLAG_ZERO = 0x20000  #: a store of 0, maybe to ES:RDI: INS makes one before it reads the port
FLAG_TAIL = 0x40000  #: a byte of a store that began in the page before
FLAG_SPECIAL = 0x80000  #: Python has set Shared.SPECIAL
FLAG_INDEX = 0xFFFF  #: that number of accesses
FLAG_UNUSUAL = FLAG_CROSSES | FLAG_ZERO | FLAG_TAIL


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
    ARMED = 11  #: not 0: the next piece at the start of a page is of the access in DATA
    SPECIAL = 12  #: FLAG_SPECIAL, to have all callbacks take their long form
    TOKEN_RIP = 13  #: with TOKEN_BLOCKS: of which execution of an instruction INDEX counts
    TOKEN_BLOCKS = 14
    INDEX = 15  #: how many accesses of that execution came before the last one
    SKIP = 16  #: how many byte stores to pass over: of a store that was shown whole
    ENGINE = 17  #: the engine's handle
    START = 18  #: address of uc_emu_start
    ANSWER = 19  #: the answer of the last read
    COUNT = 20


def _symbol(name: str) -> int | None:
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

    def __init__(self, engine: int, registers: int, segments: int, cr: int, recursion: int) -> None:
        """`engine` is the engine's handle; `registers`, `segments` and `cr` are where these are in
        the CPU structure, `recursion` is the offset that _RECURSION stands for."""
        start, stop = _symbol("uc_emu_start"), _symbol("uc_emu_stop")
        leave = _symbol("helper_check_exit_request_x86_64")
        if start is None or stop is None or leave is None:
            raise NotSupported("this build of Unicorn exports no helper_check_exit_request_x86_64")
        self._stop, self._leave = stop, leave
        self._offsets = (
            (_RIP, registers + 16 * 8),
            (_RDI, registers + 7 * 8),
            (_ES_BASE, segments + 8),
            (_CR0, cr),
            (_RECURSION, recursion),
        )
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
        self.words[Shared.ENGINE], self.words[Shared.START] = engine, start

    def make(self, name: str, callback: int = 0) -> int:
        """Write the thunk `name` into the page; returns its address."""
        code = CODE[name]
        for slot, value in ((_STOP, self._stop), (_CALLBACK, callback), (_LEAVE, self._leave)):
            code = code.replace(slot.to_bytes(8, "little"), value.to_bytes(8, "little"))
        for slot, value in self._offsets:
            code = code.replace(slot.to_bytes(4, "little"), value.to_bytes(4, "little"))
        at = self._used
        self._page[at : at + len(code)] = code
        self._used = at + (len(code) + 15 & ~15)
        return self._base + at

    def close(self) -> None:
        """Give the page back. The engine must be gone."""
        self._page.close()
