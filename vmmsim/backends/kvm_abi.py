"""The KVM ABI of x86-64: numbers and memory layouts, and nothing else.

Names are those of <linux/kvm.h> and <asm/kvm.h> without their `KVM_` or `kvm_` prefix;
what they mean is in Linux Documentation/virt/kvm/api.rst. tests/test_kvm_abi.py compiles a
C program against the headers and compares every number, size and offset.
"""

from __future__ import annotations

from ctypes import Structure, Union, c_char, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any

__all__ = ["CONSTANTS", "IOCTLS", "STRUCTS"]

API_VERSION = 12

# -- ioctl numbers: _IO(0xae, n) is 0xaen, _IOW and _IOR carry the size in bits 16-29

GET_API_VERSION = 0xAE00
CREATE_VM = 0xAE01
CHECK_EXTENSION = 0xAE03
GET_VCPU_MMAP_SIZE = 0xAE04
GET_SUPPORTED_CPUID = 0xC008AE05
CREATE_VCPU = 0xAE41
SET_USER_MEMORY_REGION = 0x4020AE46
SET_TSS_ADDR = 0xAE47
SET_IDENTITY_MAP_ADDR = 0x4008AE48
RUN = 0xAE80
GET_REGS = 0x8090AE81
SET_REGS = 0x4090AE82
GET_SREGS = 0x8138AE83
SET_SREGS = 0x4138AE84
TRANSLATE = 0xC018AE85
INTERRUPT = 0x4004AE86
GET_MSRS = 0xC008AE88
SET_MSRS = 0x4008AE89
SET_CPUID2 = 0x4008AE90
NMI = 0xAE9A
SET_GUEST_DEBUG = 0x4048AE9B
GET_VCPU_EVENTS = 0x8040AE9F
SET_VCPU_EVENTS = 0x4040AEA0
GET_DEBUGREGS = 0x8080AEA1
SET_DEBUGREGS = 0x4080AEA2
ENABLE_CAP = 0x4068AEA3
GET_XSAVE = 0x9000AEA4
SET_XSAVE = 0x5000AEA5
GET_XCRS = 0x8188AEA6
SET_XCRS = 0x4188AEA7
X86_SET_MSR_FILTER = 0x4188AEC6

IOCTLS = (
    "GET_API_VERSION", "CREATE_VM", "CHECK_EXTENSION", "GET_VCPU_MMAP_SIZE", "GET_SUPPORTED_CPUID",
    "CREATE_VCPU", "SET_USER_MEMORY_REGION", "SET_TSS_ADDR", "SET_IDENTITY_MAP_ADDR", "RUN",
    "GET_REGS", "SET_REGS", "GET_SREGS", "SET_SREGS", "TRANSLATE", "INTERRUPT", "GET_MSRS", "SET_MSRS",
    "SET_CPUID2", "NMI", "SET_GUEST_DEBUG", "GET_VCPU_EVENTS", "SET_VCPU_EVENTS",
    "GET_DEBUGREGS", "SET_DEBUGREGS",
    "ENABLE_CAP", "GET_XSAVE", "SET_XSAVE", "GET_XCRS", "SET_XCRS", "X86_SET_MSR_FILTER",
)  # fmt: skip

# -- capabilities

CAP_USER_MEMORY = 3
CAP_SET_TSS_ADDR = 4
CAP_NR_VCPUS = 9
CAP_NR_MEMSLOTS = 10
CAP_USER_NMI = 22
CAP_SET_IDENTITY_MAP_ADDR = 37
CAP_XSAVE = 55
CAP_XCRS = 56
CAP_MAX_VCPUS = 66
CAP_SYNC_REGS = 74
CAP_READONLY_MEM = 81
CAP_IMMEDIATE_EXIT = 136
CAP_X86_USER_SPACE_MSR = 188
CAP_X86_MSR_FILTER = 189
CAP_DISABLE_QUIRKS2 = 213
CAP_X86_TRIPLE_FAULT_EVENT = 218

X86_QUIRK_FIX_HYPERCALL_INSN = 1 << 5

# -- exit reasons

EXIT_UNKNOWN = 0
EXIT_IO = 2
EXIT_DEBUG = 4
EXIT_HLT = 5
EXIT_MMIO = 6
EXIT_IRQ_WINDOW_OPEN = 7
EXIT_SHUTDOWN = 8
EXIT_FAIL_ENTRY = 9
EXIT_INTR = 10
EXIT_SET_TPR = 11
EXIT_INTERNAL_ERROR = 17
EXIT_X86_RDMSR = 29
EXIT_X86_WRMSR = 30

EXIT_IO_IN = 0
EXIT_IO_OUT = 1
INTERNAL_ERROR_EMULATION = 1
INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1

MEM_READONLY = 1 << 1
MSR_EXIT_REASON_INVAL = 1 << 0
MSR_EXIT_REASON_UNKNOWN = 1 << 1
MSR_EXIT_REASON_FILTER = 1 << 2
MSR_FILTER_READ = 1 << 0
MSR_FILTER_WRITE = 1 << 1
MSR_FILTER_MAX_RANGES = 16
MSR_FILTER_MAX_BITMAP_SIZE = 0x600
CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0
SYNC_X86_REGS = 1 << 0
GUESTDBG_ENABLE = 1
GUESTDBG_SINGLESTEP = 2
GUESTDBG_USE_HW_BP = 0x20000
VCPUEVENT_VALID_NMI_PENDING = 1
VCPUEVENT_VALID_SHADOW = 4
VCPUEVENT_VALID_TRIPLE_FAULT = 0x20
X86_SHADOW_INT_MOV_SS = 1
X86_SHADOW_INT_STI = 2

CONSTANTS = (
    "API_VERSION", "CAP_USER_MEMORY", "CAP_SET_TSS_ADDR", "CAP_NR_VCPUS", "CAP_NR_MEMSLOTS",
    "CAP_USER_NMI", "CAP_SET_IDENTITY_MAP_ADDR",
    "CAP_XSAVE", "CAP_XCRS", "CAP_MAX_VCPUS", "CAP_SYNC_REGS", "CAP_READONLY_MEM",
    "CAP_IMMEDIATE_EXIT", "CAP_X86_USER_SPACE_MSR", "CAP_X86_MSR_FILTER", "CAP_DISABLE_QUIRKS2",
    "CAP_X86_TRIPLE_FAULT_EVENT", "X86_QUIRK_FIX_HYPERCALL_INSN", "EXIT_UNKNOWN",
    "EXIT_IO", "EXIT_DEBUG", "EXIT_HLT", "EXIT_MMIO", "EXIT_IRQ_WINDOW_OPEN", "EXIT_SHUTDOWN",
    "EXIT_FAIL_ENTRY", "EXIT_INTR", "EXIT_SET_TPR", "EXIT_X86_RDMSR", "EXIT_X86_WRMSR",
    "EXIT_INTERNAL_ERROR", "EXIT_IO_IN", "EXIT_IO_OUT", "INTERNAL_ERROR_EMULATION",
    "INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES", "MEM_READONLY", "SYNC_X86_REGS",
    "GUESTDBG_ENABLE", "GUESTDBG_SINGLESTEP", "GUESTDBG_USE_HW_BP",
    "MSR_EXIT_REASON_INVAL", "MSR_EXIT_REASON_UNKNOWN", "MSR_EXIT_REASON_FILTER", "MSR_FILTER_READ",
    "MSR_FILTER_WRITE", "MSR_FILTER_MAX_RANGES", "MSR_FILTER_MAX_BITMAP_SIZE",
    "CPUID_FLAG_SIGNIFCANT_INDEX",
    "VCPUEVENT_VALID_NMI_PENDING", "VCPUEVENT_VALID_SHADOW", "VCPUEVENT_VALID_TRIPLE_FAULT",
    "X86_SHADOW_INT_MOV_SS",
    "X86_SHADOW_INT_STI",
)  # fmt: skip

# -- layouts


class UserspaceMemoryRegion(Structure):
    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    )


class Regs(Structure):
    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
            "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
        )
    )  # fmt: skip


class Segment(Structure):
    _fields_ = (
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        ("type", c_uint8),
        ("present", c_uint8),
        ("dpl", c_uint8),
        ("db", c_uint8),
        ("s", c_uint8),
        ("l", c_uint8),
        ("g", c_uint8),
        ("avl", c_uint8),
        ("unusable", c_uint8),
        ("padding", c_uint8),
    )


class Dtable(Structure):
    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))


class Sregs(Structure):
    _fields_ = (
        *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", Dtable),
        ("idt", Dtable),
        *((name, c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", c_uint64 * 4),
    )


class Xcr(Structure):
    _fields_ = (("xcr", c_uint32), ("reserved", c_uint32), ("value", c_uint64))


class Xcrs(Structure):
    _fields_ = (
        ("nr_xcrs", c_uint32),
        ("flags", c_uint32),
        ("xcrs", Xcr * 16),
        ("padding", c_uint64 * 16),
    )


class Xsave(Structure):
    _fields_ = (("region", c_uint32 * 1024),)


class _ExceptionEvent(Structure):
    _fields_ = (
        ("injected", c_uint8),
        ("nr", c_uint8),
        ("has_error_code", c_uint8),
        ("pending", c_uint8),
        ("error_code", c_uint32),
    )


class _InterruptEvent(Structure):
    _fields_ = (("injected", c_uint8), ("nr", c_uint8), ("soft", c_uint8), ("shadow", c_uint8))


class _NmiEvent(Structure):
    _fields_ = (("injected", c_uint8), ("pending", c_uint8), ("masked", c_uint8), ("pad", c_uint8))


class VcpuEvents(Structure):
    _fields_ = (
        ("exception", _ExceptionEvent),
        ("interrupt", _InterruptEvent),
        ("nmi", _NmiEvent),
        ("sipi_vector", c_uint32),
        ("flags", c_uint32),
        ("smi", c_uint8 * 4),
        ("triple_fault", c_uint8),
        ("reserved", c_uint8 * 26),
        ("exception_has_payload", c_uint8),
        ("exception_payload", c_uint64),
    )


class GuestDebug(Structure):
    _fields_ = (("control", c_uint32), ("pad", c_uint32), ("arch", c_uint64 * 8))


class Debugregs(Structure):
    _fields_ = (
        ("db", c_uint64 * 4),
        ("dr6", c_uint64),
        ("dr7", c_uint64),
        ("flags", c_uint64),
        ("reserved", c_uint64 * 9),
    )


class MsrEntry(Structure):
    _fields_ = (("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64))


class Msrs(Structure):
    """The head of the variable-length struct; `msrs(n)` makes one with `n` entries."""

    _fields_ = (("nmsrs", c_uint32), ("pad", c_uint32))


class MsrFilterRange(Structure):
    """`bitmap` points to a bit for each MSR: 1 leaves it to KVM, 0 is an exit."""

    _fields_ = (
        ("flags", c_uint32),
        ("nmsrs", c_uint32),
        ("base", c_uint32),
        ("bitmap", c_void_p),
    )


class MsrFilter(Structure):
    _fields_ = (("flags", c_uint32), ("ranges", MsrFilterRange * MSR_FILTER_MAX_RANGES))


class CpuidEntry2(Structure):
    _fields_ = (
        ("function", c_uint32),
        ("index", c_uint32),
        ("flags", c_uint32),
        ("eax", c_uint32),
        ("ebx", c_uint32),
        ("ecx", c_uint32),
        ("edx", c_uint32),
        ("padding", c_uint32 * 3),
    )


class Cpuid2(Structure):
    """The head of the variable-length struct; `cpuid2(n)` makes one with `n` entries."""

    _fields_ = (("nent", c_uint32), ("padding", c_uint32))


class EnableCap(Structure):
    _fields_ = (
        ("cap", c_uint32),
        ("flags", c_uint32),
        ("args", c_uint64 * 4),
        ("pad", c_uint8 * 64),
    )


class Translation(Structure):
    _fields_ = (
        ("linear_address", c_uint64),
        ("physical_address", c_uint64),
        ("valid", c_uint8),
        ("writeable", c_uint8),
        ("usermode", c_uint8),
        ("pad", c_uint8 * 5),
    )


class _Io(Structure):
    _fields_ = (
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    )


class _Mmio(Structure):
    _fields_ = (
        ("phys_addr", c_uint64),
        ("data", c_uint8 * 8),
        ("len", c_uint32),
        ("is_write", c_uint8),
    )


class _FailEntry(Structure):
    _fields_ = (("hardware_entry_failure_reason", c_uint64), ("cpu", c_uint32))


class _EmulationFailure(Structure):
    _fields_ = (
        ("suberror", c_uint32),
        ("ndata", c_uint32),
        ("flags", c_uint64),
        ("insn_size", c_uint8),
        ("insn_bytes", c_uint8 * 15),
    )


class _Msr(Structure):
    _fields_ = (
        ("error", c_uint8),
        ("pad", c_uint8 * 7),
        ("reason", c_uint32),
        ("index", c_uint32),
        ("data", c_uint64),
    )


class _RunUnion(Union):
    _fields_ = (
        ("io", _Io),
        ("mmio", _Mmio),
        ("fail_entry", _FailEntry),
        ("emulation_failure", _EmulationFailure),
        ("msr", _Msr),
        ("padding", c_char * 256),
    )


class _SyncRegs(Structure):
    _fields_ = (("regs", Regs), ("sregs", Sregs), ("events", VcpuEvents))


class _SyncUnion(Union):
    _fields_ = (("regs", _SyncRegs), ("padding", c_char * 2048))


class Run(Structure):
    """The shared page of a vCPU. The run loop reads it through memoryviews at `RUN_*`."""

    _anonymous_ = ("u",)
    _fields_ = (
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("u", _RunUnion),
        ("kvm_valid_regs", c_uint64),
        ("kvm_dirty_regs", c_uint64),
        ("s", _SyncUnion),
    )


#: C struct -> (layout, its fields as C writes them). `Msrs` and `Cpuid2` end in arrays.
STRUCTS: dict[str, tuple[type[Structure], tuple[str, ...]]] = {
    "kvm_userspace_memory_region": (
        UserspaceMemoryRegion,
        ("slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr"),
    ),
    "kvm_regs": (Regs, ("rax", "rbx", "rsp", "rbp", "r8", "r15", "rip", "rflags")),
    "kvm_segment": (Segment, tuple(f[0] for f in Segment._fields_)),
    "kvm_dtable": (Dtable, ("base", "limit")),
    "kvm_sregs": (Sregs, tuple(f[0] for f in Sregs._fields_)),
    "kvm_xcr": (Xcr, ("xcr", "reserved", "value")),
    "kvm_xcrs": (Xcrs, ("nr_xcrs", "flags", "xcrs", "padding")),
    "kvm_xsave": (Xsave, ("region",)),
    "kvm_vcpu_events": (
        VcpuEvents,
        (
            "exception.injected", "exception.nr", "exception.has_error_code", "exception.pending",
            "exception.error_code", "interrupt.injected", "interrupt.nr", "interrupt.soft",
            "interrupt.shadow", "nmi.injected",
            "nmi.pending", "nmi.masked", "sipi_vector", "flags", "smi", "triple_fault",
            "exception_has_payload", "exception_payload",
        ),
    ),
    "kvm_guest_debug": (GuestDebug, ("control", "arch")),
    "kvm_debugregs": (Debugregs, ("db", "dr6", "dr7", "flags")),
    "kvm_msr_entry": (MsrEntry, ("index", "reserved", "data")),
    "kvm_msrs": (Msrs, ("nmsrs",)),
    "kvm_msr_filter_range": (MsrFilterRange, ("flags", "nmsrs", "base", "bitmap")),
    "kvm_msr_filter": (MsrFilter, ("flags", "ranges")),
    "kvm_cpuid_entry2": (CpuidEntry2, tuple(f[0] for f in CpuidEntry2._fields_)),
    "kvm_cpuid2": (Cpuid2, ("nent",)),
    "kvm_enable_cap": (EnableCap, ("cap", "flags", "args")),
    "kvm_translation": (
        Translation,
        ("linear_address", "physical_address", "valid", "writeable", "usermode"),
    ),
    "kvm_run": (
        Run,
        (
            "request_interrupt_window", "immediate_exit", "exit_reason",
            "ready_for_interrupt_injection", "if_flag", "cr8", "apic_base",
            "io.direction", "io.size", "io.port", "io.count", "io.data_offset",
            "mmio.phys_addr", "mmio.data", "mmio.len", "mmio.is_write",
            "fail_entry.hardware_entry_failure_reason",
            "emulation_failure.suberror", "emulation_failure.ndata", "emulation_failure.flags",
            "emulation_failure.insn_size", "emulation_failure.insn_bytes",
            "msr.error", "msr.reason", "msr.index", "msr.data",
            "kvm_valid_regs", "kvm_dirty_regs", "s.regs.regs", "s.regs.sregs", "s.regs.events",
        ),
    ),
}  # fmt: skip


@cache
def _with_entries(head: type[Structure], entry: type[Structure], count: int) -> type[Structure]:
    fields = (*head._fields_, ("entries", entry * count))
    return type(head.__name__, (Structure,), {"_fields_": fields})


def msrs(count: int) -> Any:
    """A `struct kvm_msrs` with room for `count` entries, in `.entries`."""
    return _with_entries(Msrs, MsrEntry, count)(nmsrs=count)


def cpuid2(count: int) -> Any:
    """A `struct kvm_cpuid2` with room for `count` entries, in `.entries`."""
    return _with_entries(Cpuid2, CpuidEntry2, count)(nent=count)
