"""VcpuFd: a vCPU's file descriptor and shared page. Each ioctl of a vCPU is a method here.

It knows nothing of instructions in flight: kvm_vcpu.py, which runs the vCPU, sees to it
that none is when state is read or written.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable
from typing import Any

from ..cpu.cpuid import TOPOLOGY, Table
from ..cpu.msrs import STATE_MSRS
from ..cpu.state import CpuState, Events, Registers
from ..errors import HostError, NotSupported, UsageError
from . import kvm_abi as abi
from . import kvm_run, kvm_state

__all__ = ["BREAKPOINTS", "VcpuFd"]

#: The CPU has four; one is left for `kvm_step`.
BREAKPOINTS = 3

_VALID_REGS = abi.Run.kvm_valid_regs.offset // 8
_CR8 = abi.Run.cr8.offset // 8
_REGS_AT = abi.Run.s.offset
_REGS_END = _REGS_AT + kvm_state.REGS.size
_VM_FLAG = 1 << 17
#: IA32_APIC_BASE bit 11: the APIC is on (SDM vol. 3, 10.4.4).
_APIC_ON = 1 << 11
_ELSEWHERE = "use backend unicorn, or a host with VMX or SVM"


class VcpuFd:
    """The descriptor `fd`, and struct kvm_run as memoryviews `u8`, `u16`, `u32`, `u64`.

    An index into a view is the cheapest way from Python to a field. KVM_CAP_SYNC_REGS
    keeps the general registers in the page: KVM stores them there at each exit, and
    whoever sets them stores them there too, so the page always has them.
    """

    def __init__(
        self, fd: int, mmap_size: int, *, cpuid: Table, apic: bool, avx_at: int, triple_fault_event: bool
    ) -> None:
        self.fd = fd
        #: KVM_RUN; see kvm_run.entry.
        self.enter = kvm_run.entry(fd)
        self._avx_at = avx_at
        self._triple_fault_event = triple_fault_event
        #: What `put_back` was last given, and the ioctls that set it.
        self._native: tuple[CpuState, tuple[tuple[int, Any, str], ...]] | None = None
        #: A debugger's, linear addresses: at most BREAKPOINTS.
        self.breakpoints: tuple[int, ...] = ()
        self._page = mmap.mmap(fd, mmap_size)
        self.u8 = memoryview(self._page)
        self.u16, self.u32, self.u64 = self.u8.cast("H"), self.u8.cast("I"), self.u8.cast("Q")
        self._registers = self.u8[_REGS_AT:_REGS_END]
        #: The struct kvm_regs of the last exit.
        self.register_bytes: Callable[[], bytes] = self._registers.tobytes
        self.u64[_VALID_REGS] = abi.SYNC_X86_REGS
        self._set_cpuid(cpuid)
        self._set_apic_base(apic)

    def check_open(self) -> None:
        """Raises UsageError for a vCPU that was closed with its VM."""
        if self.fd < 0:
            raise UsageError("the vCPU is closed", hint="its VM was closed; make another")

    def _closed(self) -> int:
        self.check_open()
        return -1

    def _ioctl(self, request: int, argument: Any, what: str) -> int:
        self.check_open()
        try:
            return fcntl.ioctl(self.fd, request, argument)
        except OSError as error:
            raise HostError(f"{what} failed: {os.strerror(error.errno or 0)}") from error

    def _get(self, request: int, layout: Any, what: str) -> Any:
        self._ioctl(request, layout, what)
        return layout

    def _set_cpuid(self, cpuid: Table) -> None:
        """KVM_SET_CPUID2. Before the first KVM_RUN only; without it CPUID answers zeros."""
        table = abi.cpuid2(len(cpuid))
        for entry, ((leaf, subleaf), values) in zip(table.entries, cpuid.items(), strict=True):
            entry.function, entry.index = leaf, subleaf
            entry.flags = abi.CPUID_FLAG_SIGNIFCANT_INDEX if leaf == TOPOLOGY else 0
            entry.eax, entry.ebx, entry.ecx, entry.edx = values
        self._ioctl(abi.SET_CPUID2, table, "KVM_SET_CPUID2")

    def _set_apic_base(self, apic: bool) -> None:
        """KVM lets leaf 1 EDX bit 9 follow the enable bit of the APIC base that it keeps."""
        sregs = self.sregs()
        sregs.apic_base = sregs.apic_base | _APIC_ON if apic else sregs.apic_base & ~_APIC_ON
        self._ioctl(abi.SET_SREGS, sregs, "KVM_SET_SREGS")

    def run_page(self) -> abi.Run:
        """A copy of struct kvm_run."""
        return abi.Run.from_buffer_copy(self._page)

    # -- general registers

    def registers(self) -> Registers:
        """The general registers, without an ioctl."""
        return kvm_state.registers_from(self.u8, _REGS_AT)

    def set_registers(self, registers: Registers) -> None:
        """KVM_SET_REGS. Raises NotSupported, with nothing changed, when KVM drops RFLAGS.VM."""
        before = self.register_bytes()
        data = kvm_state.registers_to(registers)
        self._ioctl(abi.SET_REGS, data, "KVM_SET_REGS")
        if registers.rflags & _VM_FLAG:
            held = self._get(abi.GET_REGS, abi.Regs(), "KVM_GET_REGS")
            if not held.rflags & _VM_FLAG:
                self._ioctl(abi.SET_REGS, before, "KVM_SET_REGS")
                raise NotSupported(
                    "this host's KVM has no virtual-8086 mode: it drops RFLAGS.VM", hint=_ELSEWHERE
                )
        self.u8[_REGS_AT:_REGS_END] = data

    # -- everything

    def sregs(self) -> abi.Sregs:
        """KVM_GET_SREGS."""
        return self._get(abi.GET_SREGS, abi.Sregs(), "KVM_GET_SREGS")

    def place(self) -> CpuState:
        """Where the vCPU is: a state with the registers and KVM_GET_SREGS only."""
        state = CpuState()
        registers = self.registers()
        for name in registers.__struct_fields__:
            setattr(state, name, getattr(registers, name))
        kvm_state.sregs_from(self.sregs(), state)
        state.cr8 = self.u64[_CR8]  # what set_cr8 put there is KVM's only with the next KVM_RUN
        return state

    def state(self) -> CpuState:
        """Every register."""
        self.check_open()
        image = bytearray(kvm_state.XSAVE_SIZE)
        sregs, xcrs, debug, events = abi.Sregs(), abi.Xcrs(), abi.Debugregs(), abi.VcpuEvents()
        msrs = kvm_state.no_msrs()
        for request, data, what in (
            (abi.GET_SREGS, sregs, "KVM_GET_SREGS"),
            (abi.GET_XSAVE, image, "KVM_GET_XSAVE"),
            (abi.GET_XCRS, xcrs, "KVM_GET_XCRS"),
            (abi.GET_VCPU_EVENTS, events, "KVM_GET_VCPU_EVENTS"),
            (abi.GET_DEBUGREGS, debug, "KVM_GET_DEBUGREGS"),
            (abi.GET_MSRS, msrs, "KVM_GET_MSRS"),
        ):
            try:
                fcntl.ioctl(self.fd, request, data)
            except OSError as error:
                raise HostError(f"{what} failed: {os.strerror(error.errno or 0)}") from error
        state = CpuState(  # type: ignore[misc]
            *kvm_state.REGS.unpack_from(self.u8, _REGS_AT),
            xcr0=next((x.value for x in xcrs.xcrs[: xcrs.nr_xcrs] if x.xcr == 0), 1),
            dr=list(debug.db),
            dr6=debug.dr6,
            dr7=debug.dr7,
            msrs=kvm_state.msrs_from(msrs),
            fpu=kvm_state.fpu_from(image, self._avx_at),
            events=kvm_state.events_from(events),
        )
        kvm_state.sregs_from(sregs, state)
        state.cr8 = self.u64[_CR8]  # as in `place`
        self._keep(state, sregs, self.register_bytes(), xcrs, image, debug, msrs)
        return state

    def set_state(self, state: CpuState) -> None:
        """Set every register and see that KVM holds it. NotSupported leaves it half done."""
        sregs = self.sregs()
        kvm_state.sregs_to(state, sregs)
        try:
            self._ioctl(abi.SET_SREGS, sregs, "KVM_SET_SREGS")
        except HostError as error:
            raise NotSupported(
                f"this host's KVM refuses the segments and control registers of mode {state.mode} "
                f"(cr0 {state.cr0:#x}, cr4 {state.cr4:#x}, efer {state.efer:#x})",
                hint="see: vmmsim doctor",
            ) from error
        # Without an in-kernel APIC, CR8 comes from the page at each KVM_RUN.
        self.u64[_CR8] = state.cr8
        self._check_control(state)
        self.set_registers(state)
        self._set_fpu(state)
        debug = abi.Debugregs(dr6=state.dr6, dr7=state.dr7)
        debug.db[:] = state.dr
        self._ioctl(abi.SET_DEBUGREGS, debug, "KVM_SET_DEBUGREGS")
        msrs = kvm_state.msrs_to(state.msrs)
        done = self._ioctl(abi.SET_MSRS, msrs, "KVM_SET_MSRS")
        if done != len(STATE_MSRS):
            raise _msr_refused(msrs.entries[done].index, msrs.entries[done].data)
        # kvm_pvm has a triple fault waiting after it dropped CR0.PG: take that back, too.
        events = kvm_state.events_to(state.events, triple_fault_event=self._triple_fault_event)
        self._ioctl(abi.SET_VCPU_EVENTS, events, "KVM_SET_VCPU_EVENTS")

    def _keep(
        self, state: CpuState, sregs: abi.Sregs, registers: bytes, xcrs: Any, fpu: Any, debug: Any, msrs: Any
    ) -> None:
        """Remember the structures that say `state`, for `put_back`."""
        sregs.cr8 = state.cr8
        for at in range(4):
            sregs.interrupt_bitmap[at] = 0
        events = kvm_state.events_to(state.events, triple_fault_event=self._triple_fault_event)
        self._native = (
            state,
            (
                (abi.SET_SREGS, sregs, "KVM_SET_SREGS"),
                (abi.SET_REGS, registers, "KVM_SET_REGS"),
                (abi.SET_XCRS, xcrs, "KVM_SET_XCRS"),
                (abi.SET_XSAVE, fpu, "KVM_SET_XSAVE"),
                (abi.SET_DEBUGREGS, debug, "KVM_SET_DEBUGREGS"),
                (abi.SET_MSRS, msrs, "KVM_SET_MSRS"),
                (abi.SET_VCPU_EVENTS, events, "KVM_SET_VCPU_EVENTS"),
            ),
        )

    def put_back(self, state: CpuState) -> None:
        """Set a state that `state` has given, or that KVM has held before: what says so to KVM is kept."""
        if self._native is None or self._native[0] is not state:
            sregs = self.sregs()
            kvm_state.sregs_to(state, sregs)
            xcrs = abi.Xcrs(nr_xcrs=1)
            xcrs.xcrs[0].value = state.xcr0
            debug = abi.Debugregs(dr6=state.dr6, dr7=state.dr7)
            debug.db[:] = state.dr
            fpu = kvm_state.fpu_to(state.fpu, self._avx_at if any(state.fpu.ymmh) else 0)
            msrs = kvm_state.msrs_to(state.msrs)
            self._keep(state, sregs, kvm_state.registers_to(state), xcrs, fpu, debug, msrs)
        self.check_open()
        assert self._native is not None
        calls, fd, ioctl = self._native[1], self.fd, fcntl.ioctl
        self.u64[_CR8] = state.cr8
        try:
            for call in calls:
                ioctl(fd, call[0], call[1])
        except OSError as error:
            raise HostError(f"{call[2]} failed: {os.strerror(error.errno or 0)}") from error
        self.u8[_REGS_AT:_REGS_END] = calls[1][1]

    def _check_control(self, state: CpuState) -> None:
        """kvm_pvm takes CR0.PG outside long mode without an error, and drops it."""
        held = self.sregs()
        for name in ("cr0", "cr3", "cr4", "efer"):
            wanted, kept = getattr(state, name), getattr(held, name)
            if wanted == kept:
                continue
            if name == "cr0" and (wanted ^ kept) >> 31 & 1:
                what = "has no paging outside long mode: it drops CR0.PG"
            else:
                what = f"does not hold {name} {wanted:#x}: it makes it {kept:#x}"
            raise NotSupported(f"this host's KVM {what}", hint=_ELSEWHERE)

    def _set_fpu(self, state: CpuState) -> None:
        avx_at = self._avx_at
        if (state.xcr0 & 4 or any(state.fpu.ymmh)) and not avx_at:
            raise NotSupported("this host's KVM keeps no AVX state", hint="clear xcr0 bit 2 and fpu.ymmh")
        xcrs = abi.Xcrs(nr_xcrs=1)
        xcrs.xcrs[0].value = state.xcr0
        try:
            self._ioctl(abi.SET_XCRS, xcrs, "KVM_SET_XCRS")
            # SET_XSAVE, never SET_FPU: that loses XMM on a fresh vCPU and has no MXCSR.
            image = kvm_state.fpu_to(state.fpu, avx_at if any(state.fpu.ymmh) else 0)
            self._ioctl(abi.SET_XSAVE, image, "KVM_SET_XSAVE")
        except HostError as error:
            raise NotSupported(
                f"this host's KVM does not take XCR0 {state.xcr0:#x} with this x87, SSE and AVX state",
                hint="use the components that capabilities.xcr0 has",
            ) from error

    def read_msr(self, index: int) -> int:
        """KVM_GET_MSRS of one. Raises NotSupported for one that KVM has not."""
        msrs = abi.msrs(1)
        msrs.entries[0].index = index
        if self._ioctl(abi.GET_MSRS, msrs, "KVM_GET_MSRS") != 1:
            raise NotSupported(f"this host's KVM has no MSR {index:#x}", hint="see vmmsim.cpu.msrs")
        return msrs.entries[0].data

    def write_msr(self, index: int, value: int) -> None:
        """KVM_SET_MSRS of one. Raises NotSupported for one, or a value, that KVM does not take."""
        msrs = abi.msrs(1)
        msrs.entries[0].index, msrs.entries[0].data = index, value
        if self._ioctl(abi.SET_MSRS, msrs, "KVM_SET_MSRS") != 1:
            raise _msr_refused(index, value)

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT: it is delivered when KVM_RUN enters the guest, even with IF clear. Only
        when `ready_for_interrupt_injection` is fresh and set, or one that waits is lost."""
        self._ioctl(abi.INTERRUPT, vector.to_bytes(4, "little"), "KVM_INTERRUPT")

    def nmi(self) -> None:
        """KVM_NMI: pending from here on; KVM knows of shadows and of masking until IRET."""
        self._ioctl(abi.NMI, 0, "KVM_NMI")

    def events(self) -> Events:
        """KVM_GET_VCPU_EVENTS."""
        events = self._get(abi.GET_VCPU_EVENTS, abi.VcpuEvents(), "KVM_GET_VCPU_EVENTS")
        return kvm_state.events_from(events)

    def guest_debug(self, control: abi.GuestDebug) -> None:
        """KVM_SET_GUEST_DEBUG, with `breakpoints` beside the one that `control` may have."""
        taken = 1 if control.control & abi.GUESTDBG_USE_HW_BP else 0
        for number, address in enumerate(self.breakpoints, taken):
            control.control |= abi.GUESTDBG_ENABLE | abi.GUESTDBG_USE_HW_BP
            control.arch[number] = address
            control.arch[7] |= 0x400 | 2 << 2 * number  # for execution (SDM vol. 3, 17.2.4)
        self._ioctl(abi.SET_GUEST_DEBUG, control, "KVM_SET_GUEST_DEBUG")

    def translate(self, linear: int) -> int | None:
        """KVM_TRANSLATE: the guest-physical address of `linear`, None where nothing is mapped."""
        found = self._get(abi.TRANSLATE, abi.Translation(linear_address=linear), "KVM_TRANSLATE")
        return found.physical_address if found.valid else None

    def close(self) -> None:
        """Close the descriptor and the page. May be called twice."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self.enter = self._closed
            for view in (self._registers, self.u16, self.u32, self.u64, self.u8):
                view.release()
            self._page.close()
            os.close(fd)


def _msr_refused(index: int, value: int) -> NotSupported:
    return NotSupported(
        f"this host's KVM does not take {value:#x} for MSR {index:#x}", hint="see vmmsim.cpu.msrs"
    )
