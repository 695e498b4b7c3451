"""A vCPU's registers as attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import UsageError

if TYPE_CHECKING:
    from .backends.base import Vcpu
    from .cpu.state import CpuState

__all__ = ["CpuView"]


class CpuView:
    """A vCPU's registers as attributes: `machine.cpu.rax`, `machine.cpu.cr0 = 1`.

    Each access reads or writes the CPU; take `state()` once for many registers.
    """

    __slots__ = ("_vcpu",)

    def __init__(self, vcpu: Vcpu) -> None:
        object.__setattr__(self, "_vcpu", vcpu)

    def state(self) -> CpuState:
        """A copy of every register."""
        return self._vcpu.state()

    def load(self, state: CpuState) -> None:
        """Replace every register."""
        self._vcpu.set_state(state)

    def __getattr__(self, name: str) -> Any:
        registers = self._vcpu.registers()
        if name in registers.__struct_fields__:
            return getattr(registers, name)
        return getattr(self._vcpu.state(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        registers = self._vcpu.registers()
        if name in registers.__struct_fields__:
            setattr(registers, name, value)
            self._vcpu.set_registers(registers)
            return
        state = self._vcpu.state()
        if name not in state.__struct_fields__:
            raise UsageError(f"a vCPU has no register '{name}'", hint="see vmmsim.cpu.state.CpuState")
        setattr(state, name, value)
        self._vcpu.set_state(state)
