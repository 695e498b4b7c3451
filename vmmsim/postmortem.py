"""The text printed when a run ends badly: what the CPU was doing, and what to look at first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .cpu.state import CpuState
from .disasm import CodeReader
from .errors import DeviceError, VmmsimError
from .exit_text import owner, place
from .exits import (
    Access,
    BudgetSpent,
    Exit,
    FetchUnmapped,
    GuestException,
    Refused,
    Shutdown,
)

if TYPE_CHECKING:
    from .machine import Machine

__all__ = ["access_line", "hints", "postmortem"]

_BYTES = 16
_REAL_IVT = 0x400


def postmortem(machine: Machine, end: Exit | VmmsimError) -> str:
    """Why the run ended, as text of several lines, without a newline at its end.

    Holds the exit (or the error), the registers and mode, 16 bytes and their disassembly at
    RIP, the last accesses (`vmmsim.dispatch.HISTORY` at most), the counts of unclaimed
    accesses, and hints. Says so where a part cannot be had; never raises VmmsimError.
    """
    what = end.describe() if isinstance(end, Exit) else end.message
    lines = [f"--- post-mortem: {what}"]
    if isinstance(end, Exit):
        kvm = "" if end.kvm.startswith("none") else f" ({end.kvm})"
        lines.append(f"exit       {end.kind}{kvm} on {machine.backend.provenance}")
    else:
        lines.append(f"error      {type(end).__name__} on {machine.backend.provenance}")
    state: CpuState | None = None
    try:
        state = machine.vcpu.state()
    except VmmsimError as error:
        lines.append(f"registers  not readable: {error}")
    if state is not None:
        lines += ["registers", *_indent(str(state).splitlines())]
        lines += ["code at RIP", *_indent(_code(machine, state))]
    lines += _history(machine)
    lines += _unclaimed(machine)
    lines += [f"hint       {hint}" for hint in hints(machine, end, state)]
    lines.append("---")
    return "\n".join(lines)


def access_line(machine: Machine, cls: type[Access], address: int, size: int, value: int) -> str:
    """One access for people, with the name of its device."""
    verb = "write" if cls.is_write else "read "
    where, name = place(cls, address), owner(machine, cls, address)
    return f"{verb} {size} {where} = {value:#0{2 + 2 * size}x}  {name}"


def hints(machine: Machine, end: Exit | VmmsimError, state: CpuState | None) -> list[str]:
    """What most often lies behind such an end, most telling first. May be empty."""
    found: list[str] = []
    if isinstance(end, DeviceError):
        found.append(end.hint)
    if isinstance(end, GuestException):
        found.append(
            "the guest has a gate for this exception, but this backend does not deliver it; KVM does"
        )
    if isinstance(end, Refused):
        found.append("this host's KVM lacks it ('vmmsim doctor' lists what else); try --backend unicorn")
    if isinstance(end, BudgetSpent):
        found.append(_spent_hint(machine, end, state))
    if state is None:
        return found
    if isinstance(end, (Shutdown, FetchUnmapped)):
        if state.rip == 0:
            found.append(
                "rip=0: was anything loaded? a call or a return through an empty pointer ends here too"
            )
        elif isinstance(end, FetchUnmapped):
            found.append("a jump, call or return went wrong; compare the address with the memory's size (-m)")
    if isinstance(end, Shutdown):
        found.append(_tables_hint(state))
    if machine.mmio.unclaimed_writes and isinstance(end, (Shutdown, FetchUnmapped)):
        found.append("the guest also wrote where there is no memory: a stack or a pointer outside RAM?")
    return found


def _spent_hint(machine: Machine, end: BudgetSpent, state: CpuState | None) -> str:
    flag = {"seconds": "--timeout", "exits": "--max-exits", "insns": "--max-insns"}.get(
        end.unit, "the budget"
    )
    if not machine.accesses.total:
        return f"the guest made no exit at all: a loop without I/O? else raise {flag}"
    if state is not None and machine.accesses.history:
        last = {(cls, address) for cls, address, _, _ in machine.accesses.history}
        if len(last) == 1:
            cls, address = next(iter(last))
            where = f"port {address:#x}" if cls.space == "port" else f"gpa {address:#x}"
            verb = "writes" if cls.is_write else "reads"
            return f"the guest {verb} {where} again and again: it waits for something; else raise {flag}"
    return f"the guest was still making exits; raise {flag} if it needs longer"


def _tables_hint(state: CpuState) -> str:
    if state.mode == "real":
        if state.idt.limit < _REAL_IVT - 1:
            return f"IDT limit {state.idt.limit:#x} in real mode: vectors beyond it are triple faults"
        return "in real mode the vectors are at the IDT's base (0): do they point to code?"
    if state.idt.limit == 0:
        return "IDT limit 0: the guest has no IDT, so its first exception is a triple fault"
    return "an exception could not be delivered: look at the gate, its code segment, and the stack (TSS)"


def _code(machine: Machine, state: CpuState) -> list[str]:
    reader = CodeReader(machine.memory)
    here = state.linear_rip
    data = reader.read(state, here, _BYTES)
    if not data:
        return [f"{here:#x}: no memory here"]
    lines = [f"{here:#x}: {data.hex(' ')}"]
    for insn in reader.decode(state, here, size=_BYTES, count=8):
        lines.append(f"{insn.address:#x}:  {insn.code.hex(' '):<24} {insn.text}")
    return lines


def _history(machine: Machine) -> list[str]:
    history = machine.accesses.history
    if not history:
        return ["last exits none: the guest has accessed no device"]
    total = machine.accesses.total
    lines = [f"last exits {len(history)} of {total}, the latest last"]
    for number, record in enumerate(history, total - len(history) + 1):
        lines.append(f"  {number:>6} {access_line(machine, *record)}")
    return lines


def _unclaimed(machine: Machine) -> list[str]:
    lines = []
    for bus in (machine.ports, machine.mmio):
        if bus.unclaimed_reads or bus.unclaimed_writes:
            lines.append(
                f"unclaimed  {bus.name}: {bus.unclaimed_reads} reads, {bus.unclaimed_writes} writes "
                "that no device took"
            )
    return lines


def _indent(lines: list[str]) -> list[str]:
    return ["  " + line for line in lines]
