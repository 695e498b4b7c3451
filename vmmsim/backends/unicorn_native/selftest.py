"""Does the native way work with this build of Unicorn? Two guests of a few instructions tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...cpu.state import CpuState, Segment
from ...errors import VmmsimError
from ...exits import Exit, Halt, MmioRead, MmioWrite, PortRead, PortWrite, ReadAccess
from ...memory import Region
from ..base import VmOptions

if TYPE_CHECKING:
    from ..base import Vcpu

__all__ = ["self_test"]

#: mov al, 5; out 0x10, al; in al, 0x11; add [0x2000], al; hlt
_ACCESSES = bytes.fromhex("b005e610e41100060020f4")
#: mov sp, 0x800; mov word [0x80], 0x1d; mov cx, 3; again: int 0x20; loop again; hlt; and then a handler:
#: inc word [0x900]; in al, 0x11; iret
_TRAPS = bytes.fromhex("bc0008 c70680001d00 b90300 cd20 e2fc f4").ljust(0x1D, b"\x90") + bytes.fromhex(
    "ff060009 e411 cf"
)


def self_test() -> tuple[bool, str]:
    """(passed, what was found). The first guest uses every way of stopping once: port and MMIO, read and
    write, the two accesses of one instruction, a count of instructions, HLT. The second runs free, and
    takes traps by QEMU's own delivery, in whose handler it reads a port."""
    from unicorn import UcError

    try:
        problem = _test_accesses() or _test_traps()
    except (VmmsimError, UcError, StopIteration) as error:
        problem = f"ended with: {error}"
    if problem:
        return False, f"the self-test {problem}"
    return True, "thunks and CPU structure passed their self-test"


def _test_accesses() -> str:
    """What was wrong, or nothing."""
    with _guest(_ACCESSES, VmOptions(count_insns=True)) as (vcpu, _):
        seen: list[Exit] = []
        answers = iter((7, 3))
        for _ in range(5):
            exit = vcpu.run()
            if isinstance(exit, ReadAccess):
                exit.reply(next(answers))
            seen.append(exit)
        rip, insns = vcpu.registers().rip, vcpu.insns
    first, second = PortRead(0x11, 1), MmioRead(0x2000, 1)
    first.reply(7)
    second.reply(3)
    wanted = [PortWrite(0x10, 1, 5), first, second, MmioWrite(0x2000, 1, 10), Halt()]
    if seen != wanted or rip != len(_ACCESSES) or insns != 5:
        return f"saw {seen}, rip {rip:#x}, {insns} instructions"
    return ""


class _Handler:
    """Answers IN with its number, 0x11 with 1, and counts."""

    count = 0

    def port_read(self, port: int, size: int, /) -> int:
        self.count += 1
        return port - 0x10

    def port_write(self, port: int, size: int, value: int, /) -> None:
        self.count += 1

    def mmio_read(self, gpa: int, size: int, /) -> int:
        return 0

    def mmio_write(self, gpa: int, size: int, value: int, /) -> None:
        pass

    def msr_read(self, index: int, /) -> int | None:
        return None

    def msr_write(self, index: int, value: int, /) -> bool:
        return False


def _test_traps() -> str:
    """What was wrong, or nothing."""
    with _guest(_TRAPS, VmOptions()) as (vcpu, memory):
        handler = _Handler()
        exit = vcpu.run_inline(handler)
        registers = vcpu.registers()
        found = exit, registers.rcx, registers.rax, int.from_bytes(memory.buffer[0x900:0x902], "little")
    if found != (Halt(), 0, 1, 3) or handler.count != 3:
        return f"took traps and had {found}, {handler.count} accesses"
    return ""


@contextmanager
def _guest(code: bytes, options: VmOptions) -> Iterator[tuple[Vcpu, Region]]:
    """A native vCPU in real mode, with a page of memory, and the code at 0."""
    from ..unicorn import UnicornBackend, UnicornVm

    backend = object.__new__(UnicornBackend)
    backend.engine, backend.engine_reason = "native", "under test"
    memory = Region(0, 4096, readonly=False, name="self-test")
    memory.buffer[: len(code)] = code
    vm = UnicornVm(backend, options)
    try:
        vm.map_memory(memory)
        vcpu = vm.create_vcpu()
        flat = Segment(0, 0, 0xFFFF, 0x93)
        vcpu.set_state(CpuState(cs=Segment(0, 0, 0xFFFF, 0x9B), ds=flat, es=flat, ss=flat))
        yield vcpu, memory
    finally:
        vm.close()
        memory.buffer.close()
