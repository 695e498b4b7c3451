"""The KVM backend: /dev/kvm, the VM and its memory. The vCPU is in kvm_vcpu.py.

As in KVM itself each file descriptor is a class, and each ioctl a method of the class
whose descriptor it needs: KvmBackend has the system's, KvmVm a VM's, KvmVcpu a vCPU's.
Numbers and layouts are in kvm_abi.py, what this host's KVM cannot do is found out by
kvm_probe.py when somebody asks. Reference: Linux Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import errno
import os
import platform
import sys
from ctypes import CDLL, Structure, addressof, c_char, c_int, c_uint64, c_ulong, get_errno
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..cpu import cpuid
from ..errors import BackendUnavailable, HostError, NotSupported, UsageError
from ..memory import Region
from . import kvm_abi as abi
from .base import Availability, Backend, Capabilities, Vm, VmOptions

if TYPE_CHECKING:
    from .kvm_vcpu import KvmVcpu

try:
    import fcntl
except ImportError:  # Windows: availability() says so
    fcntl = None  # type: ignore[assignment]

__all__ = ["KvmBackend", "KvmVm", "device_path", "provenance"]

#: What the run loop and the state need. All are in Linux since 4.17 (2018).
_NEEDED = {
    abi.CAP_USER_MEMORY: "KVM_CAP_USER_MEMORY",
    abi.CAP_XSAVE: "KVM_CAP_XSAVE",
    abi.CAP_XCRS: "KVM_CAP_XCRS",
    abi.CAP_SYNC_REGS: "KVM_CAP_SYNC_REGS",
    abi.CAP_IMMEDIATE_EXIT: "KVM_CAP_IMMEDIATE_EXIT",
}

#: Intel CPUs that cannot run real mode as a guest (no "unrestricted guest") run it in virtual-8086
#: mode, and KVM needs four pages of guest-physical addresses for that: a page table here, and
#: a TSS behind it. As in QEMU they are below the 16 MiB at the top of 4 GiB where ROMs are.
RESERVED = range(0xFEFF_C000, 0xFF00_0000)
_UNRESTRICTED = Path("/sys/module/kvm_intel/parameters/unrestricted_guest")

#: Devices that have made a VM for this process: that the CPU is not another hypervisor's
#: is seen by trying, and destroying a VM costs milliseconds.
_made_vms: set[str] = set()


def device_path() -> str:
    """The KVM device: $VMMSIM_KVM_DEVICE, or /dev/kvm."""
    return os.environ.get("VMMSIM_KVM_DEVICE", "/dev/kvm")


@cache
def provenance() -> str:
    """`kvm/vmx`, `kvm/svm`, `kvm/pvm` or `kvm/unknown`: the kernel module behind /dev/kvm."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        flags = ""
    for module, flag, name in (
        ("kvm_intel", " vmx ", "vmx"),
        ("kvm_amd", " svm ", "svm"),
        ("kvm_pvm", "", "pvm"),
    ):
        if Path("/sys/module", module).is_dir() and flag in flags.replace("\n", " "):
            return f"kvm/{name}"
    return "kvm/unknown"


def needs_reserved() -> bool:
    """Whether KVM needs the addresses of `RESERVED` on this host."""
    try:
        return _UNRESTRICTED.read_text(encoding="ascii").strip() in ("N", "0")
    except OSError:
        return False


def _no(reason: str, fix: str) -> Availability:
    return Availability(usable=False, reason=reason, fix=fix)


def _open_failed(path: str, error: OSError) -> Availability:
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return _no(
            f"{path} is missing: no KVM in this kernel, or virtualization is off in the firmware",
            "load the kvm_intel or kvm_amd module, or enable virtualization in the firmware",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return _no(
            f"not permitted to open {path}",
            "join the group of the device (sudo usermod -aG kvm $USER, then log in anew), or in CI add the "
            'udev rule KERNEL=="kvm", GROUP="kvm", MODE="0666", OPTIONS+="static_node=kvm"',
        )
    if error.errno == errno.EBUSY:
        return _no(
            f"{path} is busy: another hypervisor has the CPU's virtualization",
            "stop the other hypervisor (VirtualBox, VMware)",
        )
    return _no(
        f"{path} cannot be opened: {os.strerror(error.errno or 0)}", "see dmesg for what the kernel says"
    )


def _make_vm(fd: int) -> int:
    """KVM_CREATE_VM, which any signal can interrupt."""
    while True:
        try:
            return fcntl.ioctl(fd, abi.CREATE_VM, 0)
        except InterruptedError:
            continue


def _look() -> Availability:
    path = device_path()
    if sys.platform != "linux" or fcntl is None:
        return _no(f"KVM is a part of Linux, and this is {sys.platform}", "use backend unicorn")
    if platform.machine() not in ("x86_64", "AMD64"):
        return _no(f"x86 guests need an x86-64 host, and this is {platform.machine()}", "use backend unicorn")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return _open_failed(path, error)
    try:
        try:
            version = fcntl.ioctl(fd, abi.GET_API_VERSION, 0)
        except OSError:
            return _no(f"{path} is not a KVM device", "unset VMMSIM_KVM_DEVICE, or point it at /dev/kvm")
        if version != abi.API_VERSION:
            return _no(
                f"{path} speaks version {version} of KVM's API", f"use a kernel with {abi.API_VERSION}"
            )
        for capability, name in _NEEDED.items():
            if not fcntl.ioctl(fd, abi.CHECK_EXTENSION, capability):
                return _no(f"this kernel's KVM lacks {name}", "use Linux 4.17 or newer")
        if path not in _made_vms:
            try:
                os.close(_make_vm(fd))
            except OSError as error:
                return _open_failed(path, error)
            _made_vms.add(path)
    finally:
        os.close(fd)
    return Availability(usable=True, reason=f"{path} is usable ({provenance()})")


class KvmBackend(Backend):
    """/dev/kvm: the system's file descriptor. Raises BackendUnavailable when it is not usable."""

    name = "kvm"

    def __init__(self) -> None:
        self._fd = -1
        found = self.availability()
        if not found.usable:
            raise BackendUnavailable("kvm", found.reason, hint=found.fix)
        self._fd = os.open(device_path(), os.O_RDWR | os.O_CLOEXEC)
        self._provenance = provenance()
        self._capabilities: Capabilities | None = None
        self.mmap_size = fcntl.ioctl(self._fd, abi.GET_VCPU_MMAP_SIZE, 0)
        #: Leaf -> registers of what KVM can give a guest.
        self.supported = self._supported_cpuid()
        #: Where the high halves of YMM are in an XSAVE image; 0 when KVM keeps none.
        self.avx_at = self.supported.get((0xD, 2), (0, 0, 0, 0))[1]
        self.gpa_bits = min(48, self.supported.get((0x80000008, 0), (36, 0, 0, 0))[0] & 0xFF)

    @classmethod
    def availability(cls) -> Availability:
        try:
            return _look()
        except OSError as error:
            return _no(f"{device_path()}: {os.strerror(error.errno or 0)}", "see dmesg")

    def _check_open(self) -> None:
        if self._fd < 0:
            raise UsageError("the backend is closed", hint="open another with open_backend()")

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 when KVM lacks `capability`, else what api.rst says."""
        self._check_open()
        return fcntl.ioctl(self._fd, abi.CHECK_EXTENSION, capability)

    def _supported_cpuid(self) -> dict[tuple[int, int], tuple[int, int, int, int]]:
        """KVM_GET_SUPPORTED_CPUID."""
        table = abi.cpuid2(256)
        fcntl.ioctl(self._fd, abi.GET_SUPPORTED_CPUID, table)
        entries = table.entries[: table.nent]
        return {(e.function, e.index): (e.eax, e.ebx, e.ecx, e.edx) for e in entries}

    @property
    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            from . import kvm_probe
            from .kvm_fd import BREAKPOINTS

            self._capabilities = Capabilities(
                insn_budget=False,
                cancel_latency_ms=20.0,
                max_vcpus=self.max_vcpus,
                gpa_bits=self.gpa_bits,
                segment_state="exact",
                delivers_exceptions=True,
                segment_limits=True,
                xcr0=kvm_probe.xcr0(self),
                native_user_code=self._provenance == "kvm/pvm",
                parallel_vcpus=True,
                single_step="emulated" if self._provenance == "kvm/pvm" else "everywhere",
                breakpoints=BREAKPOINTS,
                refuses=kvm_probe.refusals(self),
            )
        return self._capabilities

    @property
    def max_vcpus(self) -> int:
        """KVM_CAP_MAX_VCPUS, the limit of one VM."""
        return self.check_extension(abi.CAP_MAX_VCPUS) or self.check_extension(abi.CAP_NR_VCPUS) or 4

    @property
    def late_windows(self) -> bool:
        """Whether KVM_EXIT_IRQ_WINDOW_OPEN may come behind the boundary where the window opens. VMX
        and SVM leave the guest right there; of what is neither, nothing is promised."""
        return self._provenance not in ("kvm/vmx", "kvm/svm")

    @property
    def gives_msrs(self) -> bool:
        """Whether MSRs can be the VMM's."""
        return all(map(self.check_extension, (abi.CAP_X86_USER_SPACE_MSR, abi.CAP_X86_MSR_FILTER)))

    @property
    def provenance(self) -> str:
        return self._provenance

    def create_vm(self, options: VmOptions | None = None) -> KvmVm:
        """KVM_CREATE_VM. Raises HostError when the host makes no more, NotSupported for MSRs
        where KVM leaves none to the VMM."""
        self._check_open()
        options = options or VmOptions()
        self._check(options)
        try:
            fd = _make_vm(self._fd)
        except OSError as error:
            raise HostError(
                f"KVM_CREATE_VM failed: {os.strerror(error.errno or 0)}",
                hint="close machines that are no longer needed",
            ) from error
        return KvmVm(self, fd, options)

    def _check(self, options: VmOptions) -> None:
        if not 1 <= options.vcpus <= self.max_vcpus:
            raise UsageError(
                f"a machine has 1 to {self.max_vcpus} vCPUs here, not {options.vcpus}",
                hint="see capabilities.max_vcpus",
            )
        if not options.msrs:
            return
        from . import kvm_msrs

        kvm_msrs.check(options.msrs)
        if not self.gives_msrs:
            raise NotSupported(
                "this kernel's KVM gives no MSRs to a VMM", hint="use Linux 5.10 or newer, or backend unicorn"
            )

    def doctor(self) -> list[tuple[str, str]]:
        from . import kvm_probe

        return kvm_probe.report(self)

    def close(self) -> None:
        """Close the device. VMs that exist live on."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class KvmVm(Vm):
    """A VM's file descriptor: its memory slots and vCPUs."""

    def __init__(self, backend: KvmBackend, fd: int, options: VmOptions) -> None:
        self._fd = fd
        self._options = options
        self._mmap_size = backend.mmap_size
        self._max_vcpus = backend.max_vcpus
        self._gpa_bits = backend.gpa_bits
        self._slots: dict[int, tuple[Region, int]] = {}
        self._free: list[int] = []
        self._vcpus: list[KvmVcpu] = []
        self._max_slots = backend.check_extension(abi.CAP_NR_MEMSLOTS) or 32
        self._readonly = bool(backend.check_extension(abi.CAP_READONLY_MEM))
        self._avx_at = backend.avx_at
        self._late_windows = backend.late_windows
        self._reserved = RESERVED if needs_reserved() else range(0)
        quirk = abi.X86_QUIRK_FIX_HYPERCALL_INSN
        #: KVM rewrites VMCALL in guest memory to the host CPU's form unless told otherwise.
        self.hypercalls_patched = not (
            backend.check_extension(abi.CAP_DISABLE_QUIRKS2) & quirk
            and self._enable(abi.CAP_DISABLE_QUIRKS2, quirk)
        )
        self._triple_fault_event = bool(
            backend.check_extension(abi.CAP_X86_TRIPLE_FAULT_EVENT)
            and self._enable(abi.CAP_X86_TRIPLE_FAULT_EVENT, 1)
        )
        if self._options.msrs:
            from . import kvm_msrs

            self._enable(abi.CAP_X86_USER_SPACE_MSR, kvm_msrs.exit_reasons(self._options.msrs))
            native, _bitmap = kvm_msrs.msr_filter(self._options.msrs)
            self._ioctl(abi.X86_SET_MSR_FILTER, native, "KVM_X86_SET_MSR_FILTER")
        if self._reserved:
            self._reserve(self._reserved.start)

    def _reserve(self, at: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR for the page at `at`, KVM_SET_TSS_ADDR for the three behind it.
        Before the first vCPU."""
        self._ioctl(
            abi.SET_IDENTITY_MAP_ADDR,
            c_uint64(at),  # type: ignore[arg-type]
            "KVM_SET_IDENTITY_MAP_ADDR",
        )
        # fcntl.ioctl takes a number of 31 bits, and this one is an address of 32.
        ioctl = CDLL(None, use_errno=True).ioctl
        ioctl.argtypes = (c_int, c_ulong, c_ulong)
        if ioctl(self._fd, abi.SET_TSS_ADDR, at + 0x1000) < 0:
            raise HostError(f"KVM_SET_TSS_ADDR failed: {os.strerror(get_errno())}")

    def _enable(self, capability: int, argument: int) -> bool:
        """KVM_ENABLE_CAP."""
        request = abi.EnableCap(cap=capability)
        request.args[0] = argument
        self._ioctl(abi.ENABLE_CAP, request, "KVM_ENABLE_CAP")
        return True

    def _ioctl(self, request: int, argument: Structure | int, what: str) -> int:
        if self._fd < 0:
            raise UsageError("the VM is closed", hint="make another with create_vm()")
        try:
            return fcntl.ioctl(self._fd, request, argument)
        except OSError as error:
            raise HostError(f"{what} failed: {os.strerror(error.errno or 0)}") from error

    def map_memory(self, region: Region) -> None:
        if region.end > 1 << self._gpa_bits:
            raise NotSupported(
                f"{region!r}: this host's KVM has {self._gpa_bits} bits of physical address",
                hint=f"put it below {1 << self._gpa_bits:#x}",
            )
        if self._reserved and region.gpa < self._reserved.stop and region.end > self._reserved.start:
            raise NotSupported(
                f"{region!r}: KVM itself uses {self._reserved.start:#x} to {self._reserved.stop - 1:#x} on "
                "this CPU",
                hint="leave these addresses free, as a PC does",
            )
        if region.readonly and not self._readonly:
            raise NotSupported("this kernel's KVM has no read-only memory", hint="use backend unicorn")
        if region.gpa in self._slots:
            raise UsageError(f"{region!r} is mapped already", hint="a region is mapped once")
        slot = self._free.pop() if self._free else len(self._slots)
        if slot >= self._max_slots:
            raise NotSupported(
                f"KVM has {self._max_slots} memory slots, all in use", hint="use larger regions"
            )
        try:
            self._set_slot(slot, region, region.size)
        except HostError:
            self._free.append(slot)
            raise
        self._slots[region.gpa] = (region, slot)

    def unmap_memory(self, region: Region) -> None:
        if self._slots.get(region.gpa, (None, 0))[0] is not region:
            raise UsageError(f"{region!r} is not mapped", hint="unmap what was mapped")
        slot = self._slots[region.gpa][1]
        self._set_slot(slot, region, 0)
        del self._slots[region.gpa]
        self._free.append(slot)

    def _set_slot(self, slot: int, region: Region, size: int) -> None:
        """KVM_SET_USER_MEMORY_REGION; a size of 0 deletes the slot."""
        # The address outlives this array type's object, whose export would keep the mmap open.
        address = addressof(c_char.from_buffer(region.buffer))
        self._ioctl(
            abi.SET_USER_MEMORY_REGION,
            abi.UserspaceMemoryRegion(
                slot=slot,
                flags=abi.MEM_READONLY if region.readonly and size else 0,
                guest_phys_addr=region.gpa,
                memory_size=size,
                userspace_addr=address,
            ),
            "KVM_SET_USER_MEMORY_REGION",
        )

    def memory_written(self, gpa: int, size: int) -> None:
        """Nothing to do: the CPU reads the same pages."""

    def read_ram(self, gpa: int, size: int) -> bytes:
        """Up to `size` bytes at `gpa`, b"" where no region is mapped."""
        for region, _ in self._slots.values():
            if region.gpa <= gpa < region.end:
                return bytes(region.buffer[gpa - region.gpa : min(gpa + size, region.end) - region.gpa])
        return b""

    def create_vcpu(self) -> KvmVcpu:
        if len(self._vcpus) >= self._max_vcpus:
            raise UsageError(
                f"a machine has at most {self._max_vcpus} vCPUs here", hint="see capabilities.max_vcpus"
            )
        # Here and not above: this file loads where fcntl is missing, to say so.
        from .kvm_fd import VcpuFd
        from .kvm_vcpu import KvmVcpu

        number = len(self._vcpus)
        options = self._options
        fd = self._ioctl(abi.CREATE_VCPU, number, "KVM_CREATE_VCPU")
        try:
            cpu = VcpuFd(
                fd,
                self._mmap_size,
                cpuid=cpuid.table(options.apic, number, max(options.vcpus, number + 1)),
                apic=options.apic,
                avx_at=self._avx_at,
                triple_fault_event=self._triple_fault_event,
            )
        except BaseException:
            os.close(fd)
            raise
        try:
            vcpu = KvmVcpu(self, cpu, options, late_windows=self._late_windows)
        except BaseException:
            cpu.close()
            raise
        self._vcpus.append(vcpu)
        return vcpu

    def close(self) -> None:
        if any(vcpu.signs_of_life()[0] for vcpu in self._vcpus):
            raise UsageError("a vCPU of this VM is running", hint="end its run first, with cancel()")
        for vcpu in self._vcpus:
            vcpu.close()
        self._vcpus.clear()
        self._slots.clear()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        self.close()
