"""A short way in and out of a vCPU, for callers that run thousands of small programs a second.

`Vcpu.set_state` and `state` carry everything. A program that cannot have changed most of it needs less:
what `Vcpu.quick` returns sets and reads the general registers, and the x87 and SSE state where it is
asked for, and says whether anything else that such a program can reach has changed.
"""

from __future__ import annotations

from typing import Protocol

from ..cpu.state import FpuState

__all__ = ["Quick"]


class Quick(Protocol):
    """From the state that the vCPU had when it was made, which is its *base*. Valid until the vCPU's state is
    set in another way. What is put is not checked: the caller has made sure that a CPU can be in it.

    Registers are 18 numbers: RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8 to R15, RIP, RFLAGS. Debug
    registers and MSRs are left alone: no program that runs in between may write them."""

    def put(self, registers: tuple[int, ...], fpu: FpuState | None) -> None:
        """The base, but for these; what was in flight is forgotten. `fpu` None: the base's, and it
        is not asked for."""

    def get(self) -> tuple[tuple[int, ...], bool, FpuState | None]:
        """The registers, whether a segment, a table, a control register or EFER is not the base's,
        and the x87 and SSE state if one was put. Between two runs, with nothing in flight."""
