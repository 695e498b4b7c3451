"""The exits of KVM that are no access, as exits of vmmsim; and the watchdog's verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cpu.state import CpuState
from ..exits import Breakpoint, Exit, FetchUnmapped, Halt, Refused, Shutdown, Unsupported
from . import kvm_abi as abi
from . import kvm_kick

if TYPE_CHECKING:
    from .kvm import KvmVm
    from .kvm_fd import VcpuFd

__all__ = ["code_at", "decode", "livelocked"]

_INSN_MAX = 15
_PAGE = 4096


def decode(reason: int, cpu: VcpuFd, vm: KvmVm) -> Exit:
    """The exit with KVM's number `reason`, whose details are in the vCPU's page."""
    if reason == abi.EXIT_HLT:
        return Halt()
    if reason == abi.EXIT_DEBUG:
        return Breakpoint(cpu.place().linear_rip)
    if reason == abi.EXIT_SHUTDOWN:
        return Shutdown()
    if reason == abi.EXIT_FAIL_ENTRY:
        why = cpu.run_page().fail_entry.hardware_entry_failure_reason
        return Refused(f"the CPU does not enter this guest state (hardware reason {why:#x})")
    if reason == abi.EXIT_INTERNAL_ERROR:
        return _internal_error(cpu, vm)
    return Unsupported(reason)


def livelocked(cpu: VcpuFd, vm: KvmVm) -> Refused | None:
    """Refused, when the instruction at RIP is one that KVM is known never to end."""
    state = cpu.place()
    code = code_at(state.linear_rip, cpu, vm)
    reason = kvm_kick.livelock(
        code,
        real_mode=state.mode == "real",
        long_mode=state.mode == "l64",
        hypercalls_patched=vm.hypercalls_patched,
    )
    return Refused(reason, code) if reason else None


def _internal_error(cpu: VcpuFd, vm: KvmVm) -> Exit:
    """KVM_EXIT_INTERNAL_ERROR: KVM's emulator does not know the instruction, or could not
    read it. api.rst: `flags` says whether the bytes are there."""
    failure = cpu.run_page().emulation_failure
    if failure.suberror != abi.INTERNAL_ERROR_EMULATION:
        return Refused(f"KVM gave up inside (KVM_EXIT_INTERNAL_ERROR, suberror {failure.suberror})")
    state = cpu.place()
    linear = state.linear_rip
    code = b""
    if failure.ndata >= 3 and failure.flags & abi.INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES:
        code = bytes(failure.insn_bytes[: failure.insn_size])
    code = code or code_at(linear, cpu, vm)
    text = _instruction(code, state)
    if not text and not code_at(linear + len(code), cpu, vm):
        return FetchUnmapped(linear + len(code))
    text = f"'{text}'" if text else "the bytes at RIP"
    return Refused(f"this host's KVM cannot emulate {text} in mode {state.mode} at CPL {state.cpl}", code)


def code_at(linear: int, cpu: VcpuFd, vm: KvmVm, size: int = _INSN_MAX) -> bytes:
    """Up to `size` bytes of guest memory from `linear` on, as far as there is any."""
    code = b""
    while len(code) < size:
        at = linear + len(code)
        gpa = cpu.translate(at)
        piece = b"" if gpa is None else vm.read_ram(gpa, min(size - len(code), _PAGE - at % _PAGE))
        if not piece:
            break
        code += piece
    return code


def _instruction(code: bytes, state: CpuState) -> str:
    """The first instruction of `code` in words, "" when it is cut off or none, and without capstone."""
    try:
        import capstone
    except ImportError:
        return ""

    bits = {"l64": capstone.CS_MODE_64, "p32": capstone.CS_MODE_32, "c32": capstone.CS_MODE_32}
    decoder = capstone.Cs(capstone.CS_ARCH_X86, bits.get(state.mode, capstone.CS_MODE_16))
    return next((f"{i.mnemonic} {i.op_str}".strip() for i in decoder.disasm(code, 0, 1)), "")
