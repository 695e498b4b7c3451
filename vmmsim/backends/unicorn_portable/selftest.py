"""Can code be free with this build of Unicorn? A guest of six instructions tells."""

from __future__ import annotations

from ...cpu.state import CpuState, Segment
from ...exits import Exit, Halt, MmioRead, MmioWrite, PortRead, PortWrite
from ...memory import Region
from ..base import VmOptions

__all__ = ["self_test"]

#: inc cx; mov al, 5; out 0x10, al; in al, 0x11; add [0x2000], al; inc cx; hlt
_CODE = bytes.fromhex("41b005e610e4110006002041f4")
#: Behind OUT, IN and ADD; at the HLT.
_ENDS = [5, 7, 11, 13]


class _Stopper:
    """Ends the run behind each instruction that makes accesses, and notes these."""

    def __init__(self) -> None:
        self.seen: list[Exit] = []
        self.stop = lambda: None

    def _note(self, exit: Exit) -> None:
        self.seen.append(exit)
        self.stop()

    def port_read(self, port: int, size: int) -> int:
        self._note(PortRead(port, size))
        return 7

    def port_write(self, port: int, size: int, value: int) -> None:
        self._note(PortWrite(port, size, value))

    def mmio_read(self, gpa: int, size: int) -> int:
        self._note(MmioRead(gpa, size))
        return 3

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        self._note(MmioWrite(gpa, size, value))

    def msr_read(self, index: int) -> int | None:
        return None

    def msr_write(self, index: int, value: int) -> bool:
        return False


def self_test() -> tuple[bool, str]:
    """(passed, what was found). Each way of ending free code at an access is used once."""
    from ..unicorn import UnicornBackend, UnicornVm

    backend = object.__new__(UnicornBackend)
    backend.engine, backend.engine_reason = "portable", "under test"
    memory = Region(0, 4096, readonly=False, name="self-test")
    memory.buffer[: len(_CODE)] = _CODE
    handler = _Stopper()
    ends = []
    try:
        vm = UnicornVm(backend, VmOptions())
        try:
            vm.map_memory(memory)
            vcpu = vm.create_vcpu()
            flat = Segment(0, 0, 0xFFFF, 0x93)
            vcpu.set_state(CpuState(cs=Segment(0, 0, 0xFFFF, 0x9B), ds=flat, es=flat, ss=flat))
            handler.stop = lambda: vcpu.stop_here(Halt())
            for _ in _ENDS:
                vcpu.run_inline(handler)
                ends.append(vcpu.registers().rip)
            counted, state = vcpu.registers().rcx, vcpu.state()
        finally:
            vm.close()
    finally:
        memory.buffer.close()
    wanted = [PortWrite(0x10, 1, 5), PortRead(0x11, 1), MmioRead(0x2000, 1), MmioWrite(0x2000, 1, 10)]
    if handler.seen != wanted or ends != _ENDS or counted != 2:
        return False, f"the self-test of free code saw {handler.seen}, ends at {ends}, {counted}"
    if any(state.dr) or state.dr7 != CpuState().dr7 or state.dr6 != CpuState().dr6:
        return False, "the self-test of free code found a breakpoint of its own"
    return True, "free code passed its self-test"
