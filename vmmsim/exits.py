"""The closed set of exits: what the guest did that the CPU cannot finish alone.

Both backends make the same exits, in the same order, with the same bytes. The kinds are
the classes in `EXITS`; docs/exits.md is generated from it. Each names the KVM_EXIT_*
constant (Linux Documentation/virt/kvm/api.rst, section "The kvm_run structure") that a
KVM program would have seen, or says that there is none.

An access exit is one access as the guest made it, after the splitting rule of
`vmmsim.bus.split_access`. A *read* exit is answered with `reply(value)` before the vCPU
runs on; a *write* exit needs no answer.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from .errors import UsageError

__all__ = [
    "ACCESS_EXITS",
    "EXITS",
    "Access",
    "Breakpoint",
    "BudgetSpent",
    "Cancelled",
    "Exit",
    "FetchUnmapped",
    "GuestException",
    "GuestExit",
    "Halt",
    "MmioRead",
    "MmioWrite",
    "MsrRead",
    "MsrWrite",
    "PortRead",
    "PortWrite",
    "ReadAccess",
    "Refused",
    "Shutdown",
    "SystemEvent",
    "Unsupported",
]


class Exit(msgspec.Struct):
    """Base of all exits. `kind` is its name in traces and JSON, `kvm` the KVM constant."""

    kind: ClassVar[str] = "exit"
    kvm: ClassVar[str] = ""
    #: True when the vCPU can simply be run again (an access, a halt, a cancel).
    resumable: ClassVar[bool] = True

    def describe(self) -> str:
        """One line for people, without RIP."""
        return self.kind


_PLACES = {"mmio": "gpa"}


class Access(Exit):
    """An access to a port, to guest-physical memory that no RAM backs, or to an MSR.

    `size` is 1 to 8 bytes. `value` is little-endian: bit 0 of it is bit 0 of the byte at
    `address`.
    """

    is_write: ClassVar[bool] = False
    space: ClassVar[str] = ""
    address: int
    size: int

    @property
    def answered(self) -> bool:
        """Whether `reply` was called: a read has its value, a write need not be shown to a device."""
        raise AssertionError  # pragma: no cover - both subclasses define it

    def value_text(self) -> str:
        """The value in hexadecimal with all its digits, or `?` while there is none."""
        return "?"

    def describe(self) -> str:
        digits = 6 if self.space == "port" else 0
        where = f"{_PLACES.get(self.space, self.space)} {self.address:#0{digits}x}"
        verb = "write" if self.is_write else "read"
        return f"{verb} {self.size} at {where} = {self.value_text()}"


def _answered(exit: Access) -> UsageError:
    return UsageError(
        f"the exit '{exit.describe()}' was answered already",
        hint="an access has one answer",
    )


class ReadAccess(Access):
    """A read that the VMM answers with `reply(value)` before the vCPU runs on."""

    _value: int | None = None

    @property
    def answered(self) -> bool:
        return self._value is not None

    @property
    def value(self) -> int:
        """What was answered. Raises UsageError while nothing was."""
        if self._value is None:
            raise UsageError(
                f"the exit '{self.describe()}' has no value yet",
                hint="answer a read with exit.reply(value) before its value is read",
            )
        return self._value

    def reply(self, value: int) -> None:
        """Answer the read with `value`, 0 <= value < 2**(8*size). Once only.

        Raises UsageError when the exit was answered already or the value is too wide.
        """
        if self._value is not None:
            raise _answered(self)
        if not isinstance(value, int) or value < 0 or value >> (8 * self.size):
            raise UsageError(
                f"{value!r} does not answer a {self.size}-byte read",
                hint=f"give an integer from 0 to {(1 << 8 * self.size) - 1:#x}",
            )
        self._value = value

    def value_text(self) -> str:
        return "?" if self._value is None else f"{self._value:#0{2 + 2 * self.size}x}"


class WriteAccess(Access):
    """A write. It is done already; `reply()` only says that no device need see it."""

    is_write: ClassVar[bool] = True
    value: int
    _done: bool = False

    @property
    def answered(self) -> bool:
        return self._done

    def reply(self) -> None:
        """Say that the caller has dealt with the write, so no device is shown it."""
        if self._done:
            raise _answered(self)
        self._done = True

    def value_text(self) -> str:
        return f"{self.value:#0{2 + 2 * self.size}x}"


class PortRead(ReadAccess):
    """IN or INS: the guest reads an I/O port. Sizes 1, 2, 4."""

    kind: ClassVar[str] = "port_read"
    kvm: ClassVar[str] = "KVM_EXIT_IO"
    space: ClassVar[str] = "port"


class PortWrite(WriteAccess):
    """OUT or OUTS: the guest writes an I/O port. Sizes 1, 2, 4."""

    kind: ClassVar[str] = "port_write"
    kvm: ClassVar[str] = "KVM_EXIT_IO"
    space: ClassVar[str] = "port"


class MmioRead(ReadAccess):
    """The guest loads from a physical address that no RAM or ROM backs."""

    kind: ClassVar[str] = "mmio_read"
    kvm: ClassVar[str] = "KVM_EXIT_MMIO"
    space: ClassVar[str] = "mmio"


class MmioWrite(WriteAccess):
    """The guest stores to a physical address that no RAM backs, or to ROM."""

    kind: ClassVar[str] = "mmio_write"
    kvm: ClassVar[str] = "KVM_EXIT_MMIO"
    space: ClassVar[str] = "mmio"


class MsrRead(ReadAccess):
    """RDMSR of an MSR that the platform owns. `address` is its number, `size` is 8.

    Answered with `reply(value)`, or with `fault()` for #GP(0) in the guest.
    """

    kind: ClassVar[str] = "msr_read"
    kvm: ClassVar[str] = "KVM_EXIT_X86_RDMSR"
    space: ClassVar[str] = "msr"
    _faulted: bool = False

    @property
    def answered(self) -> bool:
        return self._faulted or self._value is not None

    @property
    def faulted(self) -> bool:
        """Whether the answer was `fault()`."""
        return self._faulted

    def reply(self, value: int) -> None:
        if self._faulted:
            raise _answered(self)
        super().reply(value)

    def fault(self) -> None:
        """Answer with #GP(0). Raises UsageError when the exit was answered already."""
        if self.answered:
            raise _answered(self)
        self._faulted = True


class MsrWrite(WriteAccess):
    """WRMSR of an MSR that the platform owns. `address` is its number, `size` is 8.

    Not done yet, unlike other writes: it is answered with `reply()`, or with `fault()` for
    #GP(0) in the guest, before the vCPU runs on.
    """

    kind: ClassVar[str] = "msr_write"
    kvm: ClassVar[str] = "KVM_EXIT_X86_WRMSR"
    space: ClassVar[str] = "msr"
    _faulted: bool = False

    @property
    def faulted(self) -> bool:
        """Whether the answer was `fault()`."""
        return self._faulted

    def fault(self) -> None:
        """Answer with #GP(0). Raises UsageError when the exit was answered already."""
        self.reply()
        self._faulted = True


class Halt(Exit):
    """HLT. RIP is after it. Running on goes on behind the HLT."""

    kind: ClassVar[str] = "halt"
    kvm: ClassVar[str] = "KVM_EXIT_HLT"


class Shutdown(Exit):
    """A triple fault: an exception that the guest's own tables could not take.

    `cause` is a hint for people (never compared): what the backend knows of the first
    exception.
    """

    kind: ClassVar[str] = "shutdown"
    kvm: ClassVar[str] = "KVM_EXIT_SHUTDOWN"
    resumable: ClassVar[bool] = False
    cause: str = ""

    def __eq__(self, other: object) -> bool:
        return type(other) is Shutdown

    def __hash__(self) -> int:
        return hash(Shutdown)

    def describe(self) -> str:
        return f"triple fault: {self.cause}" if self.cause else "triple fault"


class FetchUnmapped(Exit):
    """The guest jumped to, or ran into, a guest-linear address `address` with no memory behind it.

    RIP is at the instruction, which may begin in the memory before `address`.
    """

    kind: ClassVar[str] = "fetch_unmapped"
    kvm: ClassVar[str] = "KVM_EXIT_INTERNAL_ERROR (suberror 1, no instruction bytes)"
    resumable: ClassVar[bool] = False
    address: int

    def describe(self) -> str:
        return f"instruction fetch from {self.address:#x}, where there is no memory"


class GuestException(Exit):
    """An exception that the guest has a gate for but this backend cannot deliver.

    RIP is at the faulting instruction (after it for INT n, INT3, INTO and traps). KVM
    delivers exceptions itself and never makes this exit.
    """

    kind: ClassVar[str] = "exception"
    kvm: ClassVar[str] = "KVM_EXIT_EXCEPTION"
    resumable: ClassVar[bool] = False
    vector: int
    error_code: int | None = None
    insn: bytes = b""

    def describe(self) -> str:
        from .cpu.vectors import vector_name

        code = "" if self.error_code is None else f", error code {self.error_code:#x}"
        return f"exception {vector_name(self.vector)}{code}"


class Refused(Exit):
    """The host's CPU or hypervisor refuses this instruction or mode.

    `reason` is for people; `insn` is up to 15 bytes at RIP, where the host gives them.
    RIP is at the instruction, which has not run.
    """

    kind: ClassVar[str] = "refused"
    kvm: ClassVar[str] = "KVM_EXIT_INTERNAL_ERROR (suberror 1) or KVM_EXIT_FAIL_ENTRY"
    resumable: ClassVar[bool] = False
    reason: str
    insn: bytes = b""

    def describe(self) -> str:
        return f"refused by the host: {self.reason}" + (f" [{self.insn.hex(' ')}]" if self.insn else "")


class Unsupported(Exit):
    """An exit reason that this version of vmmsim does not know. `code` is the host's number."""

    kind: ClassVar[str] = "unsupported"
    kvm: ClassVar[str] = "any other"
    resumable: ClassVar[bool] = False
    code: int

    def describe(self) -> str:
        return f"exit reason {self.code}, which vmmsim does not know"


class GuestExit(Exit):
    """The guest wrote its status to the debug-exit device. Ends `Machine.run` only."""

    kind: ClassVar[str] = "guest_exit"
    kvm: ClassVar[str] = "KVM_EXIT_IO (a write to the debug-exit port)"
    code: int

    def describe(self) -> str:
        return f"the guest ended with code {self.code}"


class SystemEvent(Exit):
    """The guest powered the machine off, or asked for a reset: `event` is power_off or reset.

    Made by a device (keyboard controller, port 92h, ports of ACPI). Ends `Machine.run` only;
    nothing is reset by itself.
    """

    kind: ClassVar[str] = "system_event"
    kvm: ClassVar[str] = "KVM_EXIT_SYSTEM_EVENT"
    event: str

    def describe(self) -> str:
        return "the guest powered off" if self.event == "power_off" else "the guest asked for a reset"


class Cancelled(Exit):
    """Another thread, or Ctrl-C, asked the vCPU to stop. It did, between two instructions."""

    kind: ClassVar[str] = "cancelled"
    kvm: ClassVar[str] = "KVM_EXIT_INTR"


class BudgetSpent(Exit):
    """The budget given to the run is used up. `unit` is insns, exits or seconds."""

    kind: ClassVar[str] = "budget"
    kvm: ClassVar[str] = "none (a cancel by vmmsim)"
    unit: str
    amount: float

    def describe(self) -> str:
        return f"the budget of {self.amount:g} {self.unit} is spent"


class Breakpoint(Exit):
    """The next instruction is at `address` (linear), where a debugger has asked to stop."""

    kind: ClassVar[str] = "breakpoint"
    kvm: ClassVar[str] = "KVM_EXIT_DEBUG"
    address: int

    def describe(self) -> str:
        return f"a breakpoint at {self.address:#x}"


#: Every exit there is, in the order of the documentation.
EXITS: tuple[type[Exit], ...] = (
    PortRead,
    PortWrite,
    MmioRead,
    MmioWrite,
    MsrRead,
    MsrWrite,
    Halt,
    Shutdown,
    FetchUnmapped,
    GuestException,
    Refused,
    Unsupported,
    GuestExit,
    SystemEvent,
    Cancelled,
    BudgetSpent,
    Breakpoint,
)
#: The accesses that devices answer.
ACCESS_EXITS: tuple[type[Access], ...] = (PortRead, PortWrite, MmioRead, MmioWrite)
