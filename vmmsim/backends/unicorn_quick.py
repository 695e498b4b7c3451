"""A short way in and out of a Unicorn vCPU, for thousands of small programs a second.

The whole CPU structure is copied in, with the general registers (and the x87 and SSE state)
of the program in it, and copied out; of the rest it is only seen whether its bytes are the same.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from unicorn import x86_const as x86

from ..cpu.state import FpuState, Registers
from .unicorn_context import ContextCodec

if TYPE_CHECKING:
    from .unicorn_vcpu import UnicornVcpu

__all__ = ["UnicornQuick"]

_SEGMENTS_SIZE = 24 * 10
_CR_SIZE = 8 * 5
_GPRS = struct.Struct("<17Q")


class UnicornQuick:
    """The `Quick` of `vcpu`, which is settled, and whose engine `codec` reads and writes."""

    def __init__(self, vcpu: UnicornVcpu, codec: ContextCodec) -> None:
        self._vcpu = vcpu
        self._codec = codec
        self._context = codec.context
        self._base = bytes(self._context.save())
        self._base_fpu = vcpu.state().fpu
        at = codec.layout
        self._spans = [
            (start, start + size, self._base[start : start + size])
            for start, size in ((at.segments, _SEGMENTS_SIZE), (at.cr, _CR_SIZE), (at.efer, 8))
        ]
        self._fpu = False

    def put(self, registers: tuple[int, ...], fpu: FpuState | None) -> None:
        codec = self._codec
        self._vcpu.abandon()
        data = self._context.data
        data[:] = self._base
        codec.put_registers(data, Registers(*registers))
        if fpu is not None:
            codec.put_fpu(data, fpu)
        self._context.restore()
        if fpu is not None or self._fpu:
            now = fpu or self._base_fpu
            codec.write(x86.UC_X86_REG_FPCW, now.fcw)
            codec.write(x86.UC_X86_REG_MXCSR, now.mxcsr)
        self._fpu = fpu is not None
        # Each time, even with the same tables: what a program meets must not depend on those before.
        codec.flush_tlb()

    def get(self) -> tuple[tuple[int, ...], bool, FpuState | None]:
        codec = self._codec
        data = self._context.save()
        rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, *rest = _GPRS.unpack_from(data, codec.layout.registers)
        regs = (rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, *rest, codec.read(x86.UC_X86_REG_RFLAGS))
        changed = any(data[start:end] != base for start, end, base in self._spans)
        return regs, changed, codec.fpu(data) if self._fpu else None
