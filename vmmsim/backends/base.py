"""The backend interface: what a CPU must offer to run under vmmsim's VMM core.

Three objects, as in KVM: a `Backend` makes a `Vm`, a `Vm` holds memory and makes a
`Vcpu`, a `Vcpu` runs. All splitting rules and exit rules are the contract of
`vmmsim.exits` and `vmmsim.bus`; `vmmsim.testing.run_backend_conformance` checks them.

Nothing here imports a CPU library, and the core imports no backend: `vmmsim.backends`
finds them by name.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import msgspec

from ..cpu.state import CpuState, Registers
from ..cpu.validate import validate
from ..errors import NotSupported, UsageError
from ..exits import Access, Exit

if TYPE_CHECKING:
    from ..memory import Region
    from .quick import Quick

__all__ = [
    "CAPABILITY_TABLE",
    "AccessHandler",
    "Availability",
    "Backend",
    "Board",
    "Capabilities",
    "Vcpu",
    "Vm",
    "VmOptions",
    "WrappedHandler",
    "unanswered",
]


_REGISTERS = struct.Struct("<18Q")


class AccessHandler(Protocol):
    """Who answers accesses during `Vcpu.run_inline`: in practice the machine's dispatcher.

    Plain callables, called once for each access in the order the guest made them.
    `size` is 1-8 bytes; a read answers 0 <= value < 2**(8*size). The last two are for the
    MSRs of `VmOptions.msrs` only: None, or False, is #GP(0) in the guest.
    """

    def port_read(self, port: int, size: int, /) -> int:
        """IN, or an element of INS, at `port` (0 to 0xFFFF)."""

    def port_write(self, port: int, size: int, value: int, /) -> None:
        """OUT, or an element of OUTS."""

    def mmio_read(self, gpa: int, size: int, /) -> int:
        """A load from the guest-physical `gpa`, where no memory is."""

    def mmio_write(self, gpa: int, size: int, value: int, /) -> None:
        """A store to `gpa`, where no memory is, or to ROM."""

    def msr_read(self, index: int, /) -> int | None:
        """RDMSR of an MSR of `VmOptions.msrs`: 64 bits."""

    def msr_write(self, index: int, value: int, /) -> bool:
        """WRMSR of one; whether it was taken."""


class WrappedHandler:
    """An AccessHandler over another: `around(answer)` gives what is called in the place of each answer."""

    def __init__(
        self, handler: AccessHandler, around: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        self.port_read, self.port_write = around(handler.port_read), around(handler.port_write)
        self.mmio_read, self.mmio_write = around(handler.mmio_read), around(handler.mmio_write)
        self.msr_read, self.msr_write = around(handler.msr_read), around(handler.msr_write)


class Board(Protocol):
    """What the pins of one vCPU are connected to: its interrupt controller and its clock.

    Called in the thread that runs the vCPU, between two instructions. A vCPU without a
    board (`Vcpu.connect`) is never interrupted.
    """

    def service(self) -> None:
        """Run what is due: timers, input. Called after `Vcpu.attention`, before `pending`."""

    def pending(self) -> bool:
        """Whether INTR is high: `acknowledge` would give a vector."""

    def acknowledge(self) -> int:
        """The INTA cycle (8259A data sheet, "Interrupt Sequence"; SDM vol. 3, 10.8): the vector,
        0-255. Called once for each interrupt that is delivered, just before it is."""

    def cr8_written(self, value: int, /) -> None:
        """The guest has set CR8, the task priority (SDM vol. 3, 10.8.6.1), 0-15."""


def unanswered(exit: Access) -> UsageError:
    """The error of a run while `exit`, a read, waits for its answer."""
    return UsageError(
        f"the exit '{exit.describe()}' was not answered",
        hint="call exit.reply(value), or machine.answer(exit), before the vCPU runs on",
    )


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend can do. `CAPABILITY_TABLE` says what each means for the caller."""

    insn_budget: bool
    cancel_latency_ms: float
    max_vcpus: int
    gpa_bits: int
    segment_state: str
    delivers_exceptions: bool
    segment_limits: bool
    xcr0: int
    native_user_code: bool
    parallel_vcpus: bool = False
    single_step: str = "no"
    breakpoints: int = 0
    refuses: tuple[str, ...] = ()


#: field -> (unit, what it means for the caller). docs/capabilities.md is generated from it.
CAPABILITY_TABLE: dict[str, tuple[str, str]] = {
    "insn_budget": (
        "yes or no",
        "A budget in instructions is exact. If no, asking for one raises NotSupported.",
    ),
    "cancel_latency_ms": (
        "milliseconds",
        "From cancel() to the Cancelled exit, for a guest that spins without an exit.",
    ),
    "max_vcpus": ("vCPUs", "How many vCPUs one machine may have; more is a UsageError."),
    "gpa_bits": ("bits", "Guest-physical addresses are below 2**gpa_bits."),
    "segment_state": (
        "exact or tables",
        "exact: the hidden base, limit and attributes of segments are the CPU's own. tables: they are "
        "kept as last written or looked up in the guest's descriptor tables, so a descriptor edited "
        "after it was loaded reads as edited.",
    ),
    "delivers_exceptions": (
        "yes or no",
        "Exceptions go through the guest's own IVT or IDT. If no, one that the guest could take is a "
        "GuestException exit.",
    ),
    "segment_limits": (
        "yes or no",
        "Accesses beyond a segment's limit fault. If no, they go through.",
    ),
    "xcr0": (
        "bit mask",
        "The state components (SDM vol. 1, 13.1) that CpuState keeps here: 1 x87, 2 SSE, 4 AVX.",
    ),
    "native_user_code": (
        "yes or no",
        "64-bit code at CPL 3 runs on the host's own CPU, with the host's CPUID and features. Breakpoints "
        "are not seen there; gdb is refused one where that can be known.",
    ),
    "parallel_vcpus": (
        "yes or no",
        "Several vCPUs run at once, a thread each. If no, they take turns, and a run repeats.",
    ),
    "single_step": (
        "words",
        "Where a debugger can step by one instruction: everywhere; emulated (not in 64-bit code at CPL 3, "
        "which runs natively: asking for it there raises NotSupported); no.",
    ),
    "breakpoints": (
        "addresses",
        "How many breakpoints the CPU keeps at once. A debugger that has more makes the guest run in "
        "single steps.",
    ),
    "refuses": (
        "list of words",
        "What was probed at start-up and found missing on this host; it comes back as a Refused exit.",
    ),
}


class Availability(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a backend can be opened here. `reason` and `fix` are for people."""

    usable: bool
    reason: str
    fix: str = ""


class VmOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a VM is made. `watchdog_seconds`: a run that shows no sign of life for so long
    (no exit, no register moved) ends as Refused, if the instruction at RIP is one that
    hangs this backend; a guest that spins runs on. None turns the watchdog off.
    `count_insns`: keep `Vcpu.insns` from the start (slower on Unicorn). `vcpus`: how many will
    be created. `msrs`: (first, count) ranges of MSRs that the platform owns: RDMSR and WRMSR of
    these are given to the handler. `apic`: CPUID shows a local APIC; a vCPU's APIC id is its
    number. `exact_interrupts`: an interrupt is taken at the first instruction boundary where it
    can be, as clocks that count need it; without, at one soon after."""

    watchdog_seconds: float | None = 5.0
    count_insns: bool = False
    vcpus: int = 1
    msrs: tuple[tuple[int, int], ...] = ()
    apic: bool = False
    exact_interrupts: bool = True


class Vcpu(ABC):
    """One virtual CPU. Only the thread that runs it may call anything but `cancel`.

    State and exits: at a read exit that was not answered yet, `registers()` and `state()`
    show the CPU as it was before the instruction, and setting them raises UsageError.
    Everywhere else they first finish the instruction in flight, so that no access is half
    done; writes that it still makes are queued and come from the next `run()`.
    """

    @abstractmethod
    def run(self, *, max_insns: int | None = None) -> Exit:
        """Run to the next exit and return it: the KVM_RUN of teaching texts.

        A read exit must be answered (`exit.reply(value)`) before the next call, else
        UsageError. `max_insns` raises NotSupported where `insn_budget` is no.
        """

    @abstractmethod
    def run_inline(self, handler: AccessHandler, *, max_insns: int | None = None) -> Exit:
        """Run with `handler` answering accesses, until an exit that is not an access.

        When the handler raises, the vCPU stops at the boundary after the instruction (a
        write counts as made, a read answers all ones) and the exception propagates.
        """

    def step(self, handler: AccessHandler | None, *, interrupts: bool = False) -> Exit:
        """Exactly one instruction (of a REP, one iteration or more), with `handler` answering. That of an
        exit which was answered is finished first, and is not the one.

        BudgetSpent of 1 insns when it is done, or what it came to: Halt, Shutdown and so on. Without a
        handler its first access ends the step, unanswered, as an exit of `run` does; `settle` finishes the
        instruction then, or, while not `whole`, `run` has its next access. Without
        `interrupts` none is taken before it, which a debugger's user does not expect (KVM never takes
        one). Breakpoints are ignored. NotSupported, with the reason, where the CPU cannot.
        """
        raise NotSupported("this backend has no single step")

    def set_breakpoints(self, addresses: frozenset[int]) -> None:
        """From now on runs end with Breakpoint before the instruction at one of these linear
        addresses, also when they begin there. Replaces the set; a vCPU without breakpoints runs as fast
        as before. NotSupported for more than `Capabilities.breakpoints`."""
        if addresses:
            raise NotSupported("this backend has no breakpoints")

    @abstractmethod
    def stop_here(self, exit: Exit) -> None:
        """Called by a handler, during `run_inline`: end the run with `exit` right after
        the instruction whose access is being answered."""

    @abstractmethod
    def cancel(self) -> None:
        """From any thread or signal handler: end the current run, or the next one if none
        is under way, with Cancelled, between two instructions."""

    @abstractmethod
    def uncancel(self) -> None:
        """Forget a cancel that no run has taken note of yet."""

    @abstractmethod
    def connect(self, board: Board) -> None:
        """From now on look at `board`'s interrupt line. At the first boundary where the guest can
        take one (IF set, no shadow of STI or MOV SS) a pending interrupt is acknowledged and
        delivered; runs do not end for it. HLT ends a run all the same: whether the vCPU waits, and
        until when, is up to the caller."""

    def keep_time(self, tsc: Callable[[], int]) -> bool:
        """Have RDTSC read `tsc`, 64 bits, where the backend answers it (Unicorn); until then it reads the
        host's time. False: RDTSC reads the host's counter always (KVM)."""
        return False

    @abstractmethod
    def attention(self) -> None:
        """Look at the board. From any thread: soon, between two instructions. From a handler
        that is answering an access of this vCPU: right behind that instruction."""

    @abstractmethod
    def nmi(self) -> None:
        """Make an NMI pending (SDM vol. 3, 6.7). From any thread; as soon as `attention`."""

    @abstractmethod
    def set_cr8(self, value: int) -> None:
        """The interrupt controller's task priority has changed, not by MOV to CR8. Allowed in a
        handler."""

    def set_alarm(self, insns: int | None) -> None:
        """`attention` once `Vcpu.insns` has reached this, exactly there; None: no more. From a
        handler too. NotSupported where `insn_budget` is no."""
        raise NotSupported("this backend does not count instructions")

    @property
    @abstractmethod
    def interruptible(self) -> bool:
        """Whether RFLAGS.IF is set: a halted vCPU can be woken by an interrupt."""

    @abstractmethod
    def registers(self) -> Registers:
        """General registers, RIP and RFLAGS: cheaper than `state()`."""

    #: Whether a glance at a write shows the registers from behind the instruction; else it shows them as
    #: they were before it.
    glances_behind: ClassVar[bool] = False

    def glance(self) -> bytes:
        """In a handler that answers an access of `run_inline`: the general registers, RIP and RFLAGS as
        they are now, at next to no cost, in a form of the backend's own that `glanced` reads. Bytes 128
        to 135 are RIP in all of them. A read shows what `registers()` would, a write see above."""
        registers = self.registers()
        return _REGISTERS.pack(*(getattr(registers, name) for name in registers.__struct_fields__))

    def glanced(self, glance: bytes) -> Registers:
        """The registers that `glance` gave, at any time later."""
        return Registers(*_REGISTERS.unpack(glance))

    @abstractmethod
    def set_registers(self, registers: Registers) -> None:
        """Replace the general registers, RIP and RFLAGS. UsageError for values that no CPU can hold here,
        and at a read that waits for its answer; nothing is changed then."""

    @abstractmethod
    def state(self) -> CpuState:
        """Everything. Leaves the vCPU as it is."""

    def place(self) -> CpuState:
        """The registers, segments and control registers of `state()`; the rest may be anything."""
        return self.state()

    @abstractmethod
    def set_state(self, state: CpuState) -> None:
        """Replace everything. UsageError for a state that no x86 CPU can be in (it names
        the field); NotSupported for one that this host cannot hold. Nothing is changed then."""

    def set_proven(self, state: CpuState) -> None:
        """As `set_state`, but not halted, for a state that this very vCPU has been in, and which does
        not change: it may be kept in the form of the backend, and is not checked again."""
        state = state.copy()
        state.halted = False
        self.set_state(state)

    def quick(self) -> Quick | None:
        """A shortcut from the state that it has now, which is settled first, for many small programs.
        None: this vCPU has none, and its caller uses `set_state` and `state`."""
        return None

    def check_state(self, state: CpuState) -> None:
        """Before a snapshot is restored: UsageError or NotSupported for a state that `set_state` would
        refuse, or could hold in part only, as far as can be told without trying."""
        validate(state)

    def settle(self) -> None:
        """Finish the instruction in flight, if its reads are answered."""
        self.registers()

    @property
    @abstractmethod
    def whole(self) -> bool:
        """Whether no instruction is in flight and no access of one is unseen: `state()` is then all
        there is to know. Call `settle` first."""

    @abstractmethod
    def abandon(self) -> None:
        """Forget the instruction in flight and its accesses: the vCPU gets another state next."""

    @abstractmethod
    def read_msr(self, index: int) -> int:
        """Raises NotSupported for an MSR that this backend does not have."""

    @abstractmethod
    def write_msr(self, index: int, value: int) -> None:
        """Raises NotSupported for an MSR that this backend does not have or that refuses the value,
        UsageError for a value that none can have (64 bits; addresses are canonical)."""

    @property
    @abstractmethod
    def insns(self) -> int | None:
        """Instructions retired so far (a REP iteration counts as one), None if not counted."""

    def set_insns(self, count: int) -> None:  # noqa: B027 - nothing to do where nobody counts
        """Go on counting from `count`, where instructions are counted."""


class Vm(ABC):
    """Guest-physical memory and its vCPUs."""

    @abstractmethod
    def map_memory(self, region: Region) -> None:
        """Make `region` (RAM or ROM) visible to the guest. Its host pages are shared: what
        either side stores, the other sees. Only while no vCPU runs."""

    @abstractmethod
    def unmap_memory(self, region: Region) -> None:
        """The addresses become MMIO."""

    @abstractmethod
    def memory_written(self, gpa: int, size: int) -> None:
        """The host wrote guest memory: forget translated code there."""

    @abstractmethod
    def create_vcpu(self) -> Vcpu:
        """The next vCPU. UsageError for more than `VmOptions.vcpus`, HostError when the host has no room."""

    @abstractmethod
    def close(self) -> None:
        """Free everything. May be called twice."""


class Backend(ABC):
    """An opened backend. Classes are found by `vmmsim.backends.open_backend`."""

    name: str

    @classmethod
    @abstractmethod
    def availability(cls) -> Availability:
        """Whether it can be opened, without opening it. Never raises."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What it can do on this host; `CAPABILITY_TABLE` says what that means."""

    @property
    @abstractmethod
    def provenance(self) -> str:
        """What really executes the guest, for results: `kvm/pvm`, `kvm/vmx`, `kvm/svm`,
        `unicorn-2.1.4/native`, `unicorn-2.1.4/portable`."""

    @abstractmethod
    def create_vm(self, options: VmOptions | None = None) -> Vm:
        """A VM with nothing in it. HostError when the host has no room for it."""

    def close(self) -> None:  # noqa: B027 - most backends hold nothing
        """Free what the backend holds on the host. VMs that exist live on. May be called twice."""

    @abstractmethod
    def doctor(self) -> list[tuple[str, str]]:
        """(what, finding) lines for `vmmsim doctor`."""
