"""Several vCPUs on one engine: each has its turn in it, and waits outside as a saved context.

One engine, because its translations are then those of all: code that one vCPU writes is
translated anew for the others, and an instruction with LOCK is whole, since a turn ends between
two instructions. Who takes turns with whom is `vmmsim.processors`' business.

To change places costs two copies of the CPU structure, and the TLB: a context holds no TLB, and
the next vCPU may have other page tables.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..cpu.state import CpuState, Registers
from ..errors import UsageError
from ..exits import Exit
from .base import AccessHandler, Board, Vcpu
from .unicorn_probe import ContextBytes

if TYPE_CHECKING:
    from unicorn.unicorn_py3.unicorn import Uc

    from .unicorn_vcpu import UnicornVcpu

__all__ = ["Bank", "BankedVcpu"]


class Bank:
    """The vCPUs of one engine, which `driver` drives for the one that is `active`."""

    def __init__(self, driver: UnicornVcpu) -> None:
        self.driver = driver
        self.vcpus: list[BankedVcpu] = []
        self.active: BankedVcpu | None = None
        #: Held while they change places: other threads set flags of either.
        self.lock = threading.RLock()
        #: What a vCPU has that has not run: the driver's as it is now.
        self._fresh = driver.put_aside()

    def add(self) -> BankedVcpu:
        kept = {name: copy.copy(value) for name, value in self._fresh.items()}
        vcpu = BankedVcpu(self, len(self.vcpus), ContextBytes(self.driver.uc), kept)
        if not self.vcpus:
            self.active = vcpu
        self.vcpus.append(vcpu)
        return vcpu

    def enter(self, vcpu: BankedVcpu) -> UnicornVcpu:
        """Bring `vcpu` into the engine. UsageError while another one is in the middle of something."""
        driver = self.driver
        if vcpu is self.active:
            return driver
        assert self.active is not None
        driver.check_whole(self.active.number)
        with self.lock:
            before, self.active = self.active, None
            before.context.save()
            before.kept = driver.put_aside()
            vcpu.context.restore()
            driver.take_up(vcpu.kept, vcpu.number)
            self.active = vcpu
        return driver

    def move(self, uc: Uc) -> None:
        """Go on in another engine, all of them."""
        states = [self.enter(vcpu).moving_state() for vcpu in self.vcpus]
        active = self.active
        self.driver.move(uc)
        for vcpu, state in zip(self.vcpus, states, strict=True):
            self.driver.codec.write_state(state)
            vcpu.context = ContextBytes(uc)
        assert active is not None  # the last of them, whose state is in the engine


class BankedVcpu(Vcpu):
    """One of several vCPUs of an engine. What is asked of it brings it into the engine."""

    def __init__(self, bank: Bank, number: int, context: ContextBytes, kept: dict[str, Any]) -> None:
        self._bank = bank
        self.number = number
        #: Outside the engine: its registers, and what the driver knows of it.
        self.context = context
        self.kept = kept

    def _in(self) -> UnicornVcpu:
        return self._bank.enter(self)

    def run(self, *, max_insns: int | None = None) -> Exit:
        return self._in().run(max_insns=max_insns)

    def run_inline(self, handler: AccessHandler, *, max_insns: int | None = None) -> Exit:
        return self._in().run_inline(handler, max_insns=max_insns)

    def step(self, handler: AccessHandler | None, *, interrupts: bool = False) -> Exit:
        return self._in().step(handler, interrupts=interrupts)

    def set_breakpoints(self, addresses: frozenset[int]) -> None:
        """They are the engine's, and so those of all its vCPUs."""
        self._bank.driver.set_breakpoints(addresses)

    # -- what may come while another one runs

    def _tell(self, method: str, *arguments: Any, **kept: Any) -> None:
        """Call the driver's method if it drives this vCPU, else remember what that would set."""
        with self._bank.lock:
            if self._bank.active is self:
                getattr(self._bank.driver, method)(*arguments)
            else:
                self.kept.update(kept)

    def stop_here(self, exit: Exit) -> None:
        self._tell("stop_here", exit, _stop=exit)

    def cancel(self) -> None:
        self._tell("cancel", _cancelled=True)

    def uncancel(self) -> None:
        self._tell("uncancel", _cancelled=False)

    def attention(self) -> None:
        self._tell("attention", _look=True)

    def nmi(self) -> None:
        self._tell("nmi", _nmi=True, _look=True)

    def set_cr8(self, value: int) -> None:
        if not 0 <= value <= 15:
            raise UsageError(f"CR8 cannot be {value:#x}", hint="a task priority is 0 to 15")
        self._tell("set_cr8", value, _cr8=value)

    @property
    def insns(self) -> int | None:
        with self._bank.lock:
            return self._bank.driver.insns if self._bank.active is self else self.kept["insns"]

    def settle(self) -> None:
        if self._bank.active is self:  # outside the engine nothing is in flight
            self._bank.driver.settle()

    def set_insns(self, count: int) -> None:
        with self._bank.lock:
            if self._bank.active is self:
                self._bank.driver.set_insns(count)
            else:
                self.kept["insns"] = count

    # -- what has time

    @property
    def whole(self) -> bool:
        return self._in().whole

    def abandon(self) -> None:
        self._in().abandon()

    def connect(self, board: Board) -> None:
        self._in().connect(board)

    def keep_time(self, tsc: Callable[[], int]) -> bool:
        """It is the same for all of them."""
        return self._bank.driver.keep_time(tsc)

    def set_alarm(self, insns: int | None) -> None:
        self._in().set_alarm(insns)

    @property
    def interruptible(self) -> bool:
        return self._in().interruptible

    def registers(self) -> Registers:
        return self._in().registers()

    def glance(self) -> bytes:
        return self._bank.driver.glance()

    def glanced(self, glance: bytes) -> Registers:
        return self._bank.driver.glanced(glance)

    def set_registers(self, registers: Registers) -> None:
        self._in().set_registers(registers)

    def state(self) -> CpuState:
        return self._in().state()

    def check_state(self, state: CpuState) -> None:
        self._in().check_state(state)

    def set_state(self, state: CpuState) -> None:
        self._in().set_state(state)

    def set_proven(self, state: CpuState) -> None:
        self._in().set_proven(state)

    def read_msr(self, index: int) -> int:
        return self._in().read_msr(index)

    def write_msr(self, index: int, value: int) -> None:
        self._in().write_msr(index, value)
