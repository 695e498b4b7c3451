"""Backends and devices with one fault each, which vmmsim's tools must find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import capstone

from vmmsim.backends.base import Backend
from vmmsim.cpu.state import CpuState
from vmmsim.devices.base import IrqLine
from vmmsim.devices.i8259 import I8259Pair, I8259PairState
from vmmsim.devices.scratch import Scratch, ScratchState

__all__ = ["BACKENDS", "ForgetfulScratch", "SwappedPic", "buggy"]


class _Proxy:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _BuggyBackend(_Proxy):
    def __init__(self, inner: Backend, vcpu: type[_Vcpu]) -> None:
        super().__init__(inner)
        self._vcpu = vcpu

    def create_vm(self, options: Any = None) -> Any:
        return _BuggyVm(self._inner.create_vm(options), self._vcpu)


class _BuggyVm(_Proxy):
    def __init__(self, inner: Any, vcpu: type[_Vcpu]) -> None:
        super().__init__(inner)
        self._vcpu = vcpu

    def create_vcpu(self) -> Any:
        return self._vcpu(self._inner.create_vcpu(), self._inner)


class _Vcpu(_Proxy):
    def __init__(self, inner: Any, vm: Any) -> None:
        super().__init__(inner)
        self._vm = vm

    def quick(self) -> None:
        """No shortcut around the fault."""


class LosesShadow(_Vcpu):
    """The interrupt shadow of STI is not in the state that it gives."""

    def state(self) -> CpuState:
        state: CpuState = self._inner.state()
        state.events.sti_shadow = False
        return state


class SplitsStores(_Vcpu):
    """A store of 8 bytes to MMIO comes as two of 4."""

    def run_inline(self, handler: Any, **options: Any) -> Any:
        class Splitting(_Proxy):
            def mmio_write(self, gpa: int, size: int, value: int) -> None:
                if size != 8:
                    handler.mmio_write(gpa, size, value)
                    return
                handler.mmio_write(gpa, 4, value & 0xFFFFFFFF)
                handler.mmio_write(gpa + 4, 4, value >> 32)

        return self._inner.run_inline(Splitting(handler), **options)


class WrongFlag(_Vcpu):
    """PF is wrong after XADD."""

    _started = CpuState()

    def set_state(self, state: CpuState) -> None:
        self._started = state
        self._inner.set_state(state)

    def state(self) -> CpuState:
        state: CpuState = self._inner.state()
        code = self._vm.read_physical(self._started.linear_rip, 64)
        names = [
            step[2] for step in capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm_lite(code, 0)
        ]
        program = names[: names.index("hlt")] if "hlt" in names else names
        if program and program[-1].endswith("xadd"):
            state.rflags ^= 4
        return state


class LosesBit(_Vcpu):
    """Bit 41 of R11 does not survive a restore."""

    def set_state(self, state: CpuState) -> None:
        state = state.copy()
        state.r11 &= ~(1 << 41)
        self._inner.set_state(state)


BACKENDS: dict[str, type[_Vcpu]] = {
    "none": _Vcpu, "shadow": LosesShadow, "stores": SplitsStores, "flag": WrongFlag, "bit": LosesBit
}  # fmt: skip


def buggy(inner: Backend, bug: str) -> Any:
    """`inner` with the fault `bug`, one of BACKENDS."""
    return _BuggyBackend(inner, BACKENDS[bug])


class SwappedPic:
    """The pair of 8259As, but IRQ 4 has a higher priority than IRQ 3."""

    def __init__(self, intr: IrqLine, state: I8259PairState | None = None) -> None:
        self._pair = I8259Pair(intr, state=state)

    def input(self, number: int) -> Any:
        return self._pair.input({3: 4, 4: 3}.get(number, number))

    def acknowledge(self) -> int:
        vector = self._pair.acknowledge()
        return {0x0B: 0x0C, 0x0C: 0x0B}.get(vector, vector)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pair, name)


class ForgetfulScratch(Scratch):
    """A device whose restore drops bit 3 of byte 5."""

    @classmethod
    def from_state(cls, state: ScratchState) -> ForgetfulScratch:
        data = bytearray(state.data)
        data[5] &= ~8
        return cls(len(data), state=ScratchState(bytes(data)))


Restore = Callable[[Any], Any]
