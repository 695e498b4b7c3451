"""Does the native way work with this build of Unicorn? A guest of five instructions tells."""

from __future__ import annotations

from ...cpu.state import CpuState, Segment
from ...errors import VmmsimError
from ...exits import Halt, MmioRead, MmioWrite, PortRead, PortWrite, ReadAccess
from ...memory import Region
from ..base import VmOptions

__all__ = ["self_test"]

#: mov al, 5; out 0x10, al; in al, 0x11; add [0x2000], al; hlt
_CODE = bytes.fromhex("b005e610e41100060020f4")


def self_test() -> tuple[bool, str]:
    """(passed, what was found). Every way of stopping is used once: port and MMIO, read and
    write, the two accesses of one instruction, a count of instructions, HLT."""
    from unicorn import UcError

    from ..unicorn import UnicornBackend, UnicornVm

    backend = object.__new__(UnicornBackend)
    backend.engine, backend.engine_reason = "native", "under test"
    memory = Region(0, 4096, readonly=False, name="self-test")
    memory.buffer[: len(_CODE)] = _CODE
    try:
        vm = UnicornVm(backend, VmOptions(count_insns=True))
        try:
            vm.map_memory(memory)
            vcpu = vm.create_vcpu()
            flat = Segment(0, 0, 0xFFFF, 0x93)
            vcpu.set_state(CpuState(cs=Segment(0, 0, 0xFFFF, 0x9B), ds=flat, es=flat, ss=flat))
            seen = []
            answers = iter((7, 3))
            for _ in range(5):
                exit = vcpu.run()
                if isinstance(exit, ReadAccess):
                    exit.reply(next(answers))
                seen.append(exit)
            rip, insns = vcpu.registers().rip, vcpu.insns
        finally:
            vm.close()
            memory.buffer.close()
    except (VmmsimError, UcError, StopIteration) as error:
        return False, f"the self-test ended with: {error}"
    first, second = PortRead(0x11, 1), MmioRead(0x2000, 1)
    first.reply(7)
    second.reply(3)
    wanted = [PortWrite(0x10, 1, 5), first, second, MmioWrite(0x2000, 1, 10), Halt()]
    if seen != wanted or rip != len(_CODE) or insns != 5:
        return False, f"the self-test saw {seen}, rip {rip:#x}, {insns} instructions"
    return True, "thunks and CPU structure passed their self-test"
