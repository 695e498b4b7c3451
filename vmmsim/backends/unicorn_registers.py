"""General registers in and out of a Unicorn engine, by the documented register API alone.

Both state codecs stand on this: it is the fast path (one batch call), and what it says is
right inside hooks too, since Unicorn computes RFLAGS from its lazy flags when asked.
"""

from __future__ import annotations

import ctypes
import struct

from unicorn import UC_CTL_IO_WRITE, UC_CTL_TLB_FLUSH
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import Uc, UcError, uclib

from ..cpu.state import GPR_NAMES, Registers
from .unicorn_buffer import build

__all__ = ["REGISTER_IDS", "RegisterAccess", "check", "quick", "scratch_engine"]

#: The fields of `Registers`, in order, as Unicorn's register numbers.
REGISTER_IDS = tuple(getattr(x86, f"UC_X86_REG_{name.upper()}") for name in (*GPR_NAMES, "rip", "rflags"))

#: The library without the release of the GIL around each call: for calls that only take
#: nanoseconds. `uc_emu_start` goes through `uclib`, which releases it.
quick = ctypes.PyDLL(uclib._name)
quick.uc_emu_stop.argtypes = (ctypes.c_void_p,)

_COUNT = len(REGISTER_IDS)
_VALUES = struct.Struct(f"<{_COUNT}Q")
_TLB_FLUSH = UC_CTL_IO_WRITE << 30 | UC_CTL_TLB_FLUSH


class _Mmr(ctypes.Structure):
    """uc_x86_mmr of unicorn/x86.h: GDTR, IDTR, LDTR and TR."""

    _fields_ = (
        ("selector", ctypes.c_uint16),
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


class _Msr(ctypes.Structure):
    """uc_x86_msr of unicorn/x86.h."""

    _fields_ = (("index", ctypes.c_uint32), ("value", ctypes.c_uint64))


class RegisterAccess:
    """Registers of one engine, which must have been opened with UC_MODE_64.

    `read_rip` and the general registers may be asked for in any hook. In a hook that runs
    inside translated code (CODE, MEM, IN, OUT, MMIO) RIP can lag behind and RFLAGS is not
    settled; in INTR and INSN_INVALID hooks, and outside `emu_start`, both are exact.
    """

    def __init__(self, uc: Uc) -> None:
        self.uc = uc
        self.engine = uc._uch
        self._buffer = (ctypes.c_uint64 * _COUNT)()
        self._view = memoryview(self._buffer).cast("B")
        self._ids = (ctypes.c_int32 * _COUNT)(*REGISTER_IDS)
        start = ctypes.addressof(self._buffer)
        self._pointers = (ctypes.c_void_p * _COUNT)(*range(start, start + 8 * _COUNT, 8))
        self._word = ctypes.c_uint64()
        self._word_ref = ctypes.byref(self._word)

    def read_registers(self) -> Registers:
        """General registers, RIP (the offset in CS) and RFLAGS."""
        check(uclib.uc_reg_read_batch(self.engine, self._ids, self._pointers, _COUNT))
        return Registers(*_VALUES.unpack(self._view))

    def write_registers(self, registers: Registers) -> None:
        """The reverse. Outside `emu_start`, or in an INTR or INSN_INVALID hook: the run goes on
        at the new RIP."""
        r = registers
        _VALUES.pack_into(
            self._view, 0,
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp,
            r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rip, r.rflags | 2,
        )  # fmt: skip
        check(uclib.uc_reg_write_batch(self.engine, self._ids, self._pointers, _COUNT))

    def read_rip(self) -> int:
        """RIP as an offset in CS, 64 bits."""
        return self.read(x86.UC_X86_REG_RIP)

    def read(self, register: int) -> int:
        """One register of at most 64 bits, by Unicorn's number."""
        self._word.value = 0
        check(uclib.uc_reg_read(self.engine, register, self._word_ref))
        return self._word.value

    def write(self, register: int, value: int) -> None:
        self._word.value = value
        check(uclib.uc_reg_write(self.engine, register, self._word_ref))

    def read_wide(self, register: int, size: int) -> int:
        """One register of `size` bytes (x87 10, XMM 16, YMM 32) as an integer."""
        raw = ctypes.create_string_buffer(size)
        check(uclib.uc_reg_read(self.engine, register, raw))
        return int.from_bytes(raw.raw, "little")

    def write_wide(self, register: int, size: int, value: int) -> None:
        raw = ctypes.create_string_buffer(value.to_bytes(size, "little"), size)
        check(uclib.uc_reg_write(self.engine, register, raw))

    def read_table(self, register: int) -> tuple[int, int, int, int]:
        """GDTR, IDTR, LDTR or TR as (selector, base, limit, Unicorn's flags)."""
        mmr = _Mmr()
        check(uclib.uc_reg_read(self.engine, register, ctypes.byref(mmr)))
        return mmr.selector, mmr.base, mmr.limit, mmr.flags

    def write_table(self, register: int, selector: int, base: int, limit: int, flags: int) -> None:
        check(uclib.uc_reg_write(self.engine, register, ctypes.byref(_Mmr(selector, base, limit, flags))))

    def read_msr(self, index: int) -> int:
        """What RDMSR would give; Unicorn answers 0 for an MSR that it does not know."""
        msr = _Msr(index, 0)
        check(uclib.uc_reg_read(self.engine, x86.UC_X86_REG_MSR, ctypes.byref(msr)))
        return msr.value

    def write_msr(self, index: int, value: int) -> None:
        """What WRMSR would do; Unicorn ignores an MSR that it does not know."""
        check(uclib.uc_reg_write(self.engine, x86.UC_X86_REG_MSR, ctypes.byref(_Msr(index, value))))

    def flush_tlb(self) -> None:
        """Needed after paging state was changed behind the CPU's back."""
        check(uclib.uc_ctl(self.engine, _TLB_FLUSH))


def scratch_engine() -> Uc:
    """An engine for a few instructions: a small translation buffer makes it cheap, and with
    a list of exits that is empty no address stops it."""
    return build(1 << 20)


def check(status: int) -> None:
    """Raise the binding's own error; the backend turns it into one of vmmsim's."""
    if status:
        raise UcError(status)
