"""Divergences that are put in on purpose, for the tests of `vmmsim diff` and the pytest plugin."""

from __future__ import annotations

from typing import Any

from vmmsim.backends.base import Vcpu, Vm, VmOptions
from vmmsim.backends.unicorn import UnicornBackend, UnicornVm
from vmmsim.devices.uart16550 import Uart16550

#: The line status register, and its bit "transmitter empty" (16550D data sheet, 8.4).
LSR, TEMT = 5, 0x40


class DropsBit(Uart16550):
    """What is sent loses its bit 5: letters become capitals."""

    def write(self, offset: int, size: int, value: int, /) -> None:
        super().write(offset, size, value & ~0x20 if offset == 0 else value)


class BusyUart(Uart16550):
    """Never says that its transmitter is empty."""

    def read(self, offset: int, size: int, /) -> int:
        value = super().read(offset, size)
        return value & ~TEMT if offset == LSR else value


class Raises(Uart16550):
    def write(self, offset: int, size: int, value: int, /) -> None:
        raise RuntimeError("smoke")


class TooWide(Uart16550):
    def read(self, offset: int, size: int, /) -> int:
        return 0x1FF


class Unmade:
    def __init__(self) -> None:
        raise ValueError("no chip")


class Asks:
    def __init__(self, voltage: int) -> None: ...


class NoDevice:
    pass


class Steady:
    """One byte register that reads its access's number; no state()."""

    widths = frozenset({1})
    length = 1
    wrong_at = 0

    def __init__(self) -> None:
        self.reads = 0

    def read(self, offset: int, size: int, /) -> int:
        self.reads += 1
        return (self.reads & 0x7F) | (0x80 if self.reads == self.wrong_at else 0)

    def write(self, offset: int, size: int, value: int, /) -> None: ...


def wrong_at(number: int) -> type[Steady]:
    """A Steady whose answer is another at its access `number`."""
    return type("WrongAt", (Steady,), {"wrong_at": number})


class FlippedVcpu:
    """A vCPU over another that flips a bit of RFLAGS behind the instruction at `at`."""

    def __init__(self, inner: Any, at: int, bit: int) -> None:
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "_at", at)
        object.__setattr__(self, "_bit", bit)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inner, name, value)

    def run_inline(self, handler: Any, *, max_insns: int | None = None) -> Any:
        from vmmsim.exits import BudgetSpent

        done = 0
        while max_insns is None or done < max_insns:
            here = self._inner.registers().rip
            exit = self._inner.run_inline(handler, max_insns=1)
            done += 1
            if here == self._at:
                registers = self._inner.registers()
                registers.rflags ^= self._bit
                self._inner.set_registers(registers)
            if not isinstance(exit, BudgetSpent) or exit.unit != "insns":
                return exit
        return BudgetSpent("insns", max_insns)


class FlippedVm(UnicornVm):
    at, bit = 0, 0

    def create_vcpu(self) -> Vcpu:
        return FlippedVcpu(super().create_vcpu(), self.at, self.bit)  # type: ignore[return-value]


class FlippedBackend(UnicornBackend):
    """Unicorn, but for RFLAGS behind the instruction at linear (and CS-relative) `AT`."""

    AT, BIT = 0x7C05, 1

    @property
    def provenance(self) -> str:
        return "flipped"

    def create_vm(self, options: VmOptions | None = None) -> Vm:
        vm = FlippedVm(self, options or VmOptions(count_insns=True))
        vm.at, vm.bit = self.AT, self.BIT
        return vm
