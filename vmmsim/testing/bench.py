"""A test bench: one VM of a fixed shape, in a mode, with code, on any backend.

    0x0000..0x7FFF    RAM: code at 0x1000, data at 0x5000, the stack below 0x7C00
    0x8000..0x9FFF    a hole of two pages: MMIO
    0xA000..0xBFFF    RAM
    0xC000..0xCFFF    ROM, filled with 00 01 02 ...
    0xD000..0x9FFFF   RAM; the tables of the mode presets are in its upper end

All of it below 64 KiB, so that every mode reaches everything without segments.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from .. import layout
from ..backends.base import AccessHandler, Backend, Vcpu, Vm, VmOptions
from ..cpu.modes import setup as mode_setup
from ..cpu.state import CpuState
from ..exits import Cancelled, Exit
from ..memory import GuestMemory
from .slow import time_limit

__all__ = [
    "BENCH_SECONDS",
    "CODE",
    "DATA",
    "END",
    "HIGH_RAM",
    "HOLE",
    "HOLE_END",
    "ROM",
    "STACK",
    "Bench",
    "Script",
    "listing",
    "listing_source",
]

CODE = 0x1000  #: Where a bench's code begins.
DATA = 0x5000  #: RAM for a check's data.
STACK = layout.BOOT_STACK  #: The stack pointer at the start.
HOLE = 0x8000  #: Two pages without memory.
HOLE_END = 0xA000  #: The first address behind them.
ROM = 0xC000  #: A page of ROM.
HIGH_RAM = 0xD000  #: RAM again.

#: A bench that runs for longer than this (times VMMSIM_SLOW) is stuck: its run is cancelled and the
#: check fails.
BENCH_SECONDS = 20.0

#: The bytes that end a guest of a bench: HLT, or at CPL 3 `out 0xf4, al`.
END = {"l64u": bytes.fromhex("e6f4")}
_HLT = b"\xf4"


def _listed(text: str) -> Iterator[tuple[str, str]]:
    for line in map(str.strip, text.splitlines()):
        if line.endswith(":"):
            yield "", line
        elif line:
            code, _, source = line.partition("  ")
            yield code, source.strip()


def listing(text: str) -> bytes:
    """The bytes of a listing: a line is hex bytes, two or more blanks, the assembly; or a label."""
    return b"".join(bytes.fromhex(code) for code, _ in _listed(text))


def listing_source(text: str) -> str:
    """The assembly of a listing."""
    return "\n".join(source for _, source in _listed(text))


class Bench:
    """A VM with one vCPU, ready to run `code` (bytes or a listing) at CODE in `mode`.

    `regs` are registers to set, `memory` (gpa -> bytes) is stored before. A context manager.
    """

    def __init__(
        self,
        backend: Backend,
        mode: str = "p32",
        code: bytes | str = b"",
        *,
        regs: dict[str, int] | None = None,
        memory: dict[int, bytes] | None = None,
        end: bool = True,
        options: VmOptions | None = None,
        adjust: Callable[[CpuState], None] | None = None,
    ) -> None:
        self.backend = backend
        self.mode = mode
        self.code = (listing(code) if isinstance(code, str) else code) + (END.get(mode, _HLT) if end else b"")
        self.stuck = False
        self.vm: Vm = backend.create_vm(options)
        self.memory = GuestMemory()
        self.vcpu: Vcpu
        self._seconds = time_limit(BENCH_SECONDS)
        self._timer = threading.Timer(self._seconds, self._too_long)
        try:
            self.memory.add(0, HOLE, name="low RAM")
            self.memory.add(HOLE_END, ROM - HOLE_END, name="RAM")
            self.rom = self.memory.add(ROM, HIGH_RAM - ROM, readonly=True, name="ROM")
            self.memory.add(HIGH_RAM, 0xA0000 - HIGH_RAM, name="high RAM")
            self.memory.write(ROM, bytes(range(256)) * 16)
            setup = mode_setup(mode, CODE)
            for gpa, data in [*setup.writes, (CODE, self.code), *(memory or {}).items()]:
                self.memory.write(gpa, data)
            self.memory.attach(self.vm, lambda: self.vcpu.settle())
            self.vcpu = self.vm.create_vcpu()
            for name, value in (regs or {}).items():
                setattr(setup.state, name, value)
            if adjust is not None:
                adjust(setup.state)
            self.vcpu.set_state(setup.state)
        except BaseException:
            self.close()
            raise
        self._timer.daemon = True
        self._timer.start()

    @property
    def end_rip(self) -> int:
        """RIP behind the last instruction of the code."""
        return CODE + len(self.code)

    def _too_long(self) -> None:
        self.stuck = True
        self.vcpu.cancel()

    def run(self, *, max_insns: int | None = None) -> Exit:
        """`Vcpu.run`; AssertionError when the bench's time is over."""
        exit = self.vcpu.run(max_insns=max_insns)
        self._not_stuck(exit)
        return exit

    def run_inline(self, handler: AccessHandler, *, max_insns: int | None = None) -> Exit:
        """`Vcpu.run_inline`; AssertionError when the bench's time is over."""
        exit = self.vcpu.run_inline(handler, max_insns=max_insns)
        self._not_stuck(exit)
        return exit

    def _not_stuck(self, exit: Exit) -> None:
        if self.stuck and isinstance(exit, Cancelled):
            raise AssertionError(
                f"the guest was still running after {self._seconds:g} s, rip {self.vcpu.registers().rip:#x}"
                " (slow host? VMMSIM_SLOW=10 gives it ten times as long)"
            )

    def expect(self, kind: type[Exit], *, rip: int | None = None) -> Exit:
        """Run to the next exit, which must be of `kind` (and leave `rip`)."""
        exit = self.run()
        assert isinstance(exit, kind), f"expected {kind.kind}, got {exit.describe()} (rip {self.rip:#x})"
        if rip is not None:
            assert self.rip == rip, f"after {exit.kind} rip is {self.rip:#x}, not {rip:#x}"
        return exit

    @property
    def rip(self) -> int:
        """RIP of the vCPU, with the instruction in flight finished."""
        return self.vcpu.registers().rip

    def set(self, **values: int) -> None:
        """Set general registers, RIP or RFLAGS."""
        registers = self.vcpu.registers()
        for name, value in values.items():
            setattr(registers, name, value)
        self.vcpu.set_registers(registers)

    def close(self) -> None:
        """Free the VM and its memory. May be called twice."""
        self._timer.cancel()
        self.vm.close()
        self.memory.close()

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


#: What a scripted access looks like: (kind, address, size, value).
Seen = tuple[str, int, int, int]


class Script:
    """An AccessHandler that records every access and answers reads from a list, then ones.

    `on_access(number)` is called for each access, before it is answered.
    """

    def __init__(self, answers: list[int] | None = None) -> None:
        self.seen: list[Seen] = []
        self.answers = list(answers or [])
        self.on_access: Callable[[int], None] | None = None

    def _note(self, kind: str, address: int, size: int, value: int) -> None:
        self.seen.append((kind, address, size, value))
        if self.on_access is not None:
            self.on_access(len(self.seen) - 1)

    def _answer(self, kind: str, address: int, size: int) -> int:
        value = self.answers.pop(0) if self.answers else (1 << 8 * size) - 1
        value &= (1 << 8 * size) - 1
        self._note(kind, address, size, value)
        return value

    def msr_read(self, index: int, /) -> int | None:
        return None

    def msr_write(self, index: int, value: int, /) -> bool:
        return False

    def port_read(self, port: int, size: int, /) -> int:
        return self._answer("port_read", port, size)

    def port_write(self, port: int, size: int, value: int, /) -> None:
        self._note("port_write", port, size, value)

    def mmio_read(self, gpa: int, size: int, /) -> int:
        return self._answer("mmio_read", gpa, size)

    def mmio_write(self, gpa: int, size: int, value: int, /) -> None:
        self._note("mmio_write", gpa, size, value)
