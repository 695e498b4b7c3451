"""The CPU that guests see: one CPUID table for both backends.

It is the x86-64 baseline (the psABI's x86-64-v1: CMOV, CMPXCHG8B, FPU, FXSR, MMX, SSE and
SSE2, SYSCALL, long mode with NX), which both CPUs execute, without an APIC, since this
version models none. The vendor is GenuineIntel, as Unicorn's CPU behaves (SYSCALL is #UD
outside 64-bit code), family 6, model 15; the hypervisor bit and leaf 0x40000000 say that
it is vmmsim.

On kvm_pvm the host forces its own features into leaf 1 ECX and EDX, leaf 7 and leaf 0xD,
and 64-bit code at CPL 3, which runs natively, sees the host's CPUID and nothing of this
table. Layouts: SDM vol. 2A, CPUID; the hypervisor leaves: Linux Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

__all__ = ["BRAND", "LINEAR_BITS", "PHYSICAL_BITS", "TABLE", "VENDOR", "cpuid"]

VENDOR = b"GenuineIntel"
BRAND = b"vmmsim virtual x86-64 CPU"
HYPERVISOR = b"vmmsimvmmsim"
#: What leaf 0x80000008 promises: GuestMemory's 2**48, and 4-level paging.
PHYSICAL_BITS = 48
LINEAR_BITS = 48

#: Family 6, model 15, stepping 11.
_SIGNATURE = 0x6FB


def _bits(*positions: int) -> int:
    return sum(1 << p for p in positions)


#: Leaf 1 EDX: FPU, VME, DE, PSE, TSC, MSR, PAE, CX8, SEP, PGE, CMOV, PAT, PSE-36, CLFSH,
#: MMX, FXSR, SSE, SSE2. Bit 9 (APIC), 7 and 14 (machine check) and 12 (MTRR) are clear.
_FEATURES_EDX = _bits(0, 1, 2, 3, 4, 5, 6, 8, 11, 13, 15, 16, 17, 19, 23, 24, 25, 26)
#: Leaf 1 ECX: only the hypervisor bit.
_FEATURES_ECX = _bits(31)
#: Leaf 0x80000001 EDX: SYSCALL, NX, LM. ECX: LAHF in 64-bit mode.
_EXTENDED_EDX = _bits(11, 20, 29)
_EXTENDED_ECX = _bits(0)
#: Leaf 1 EBX: CLFLUSH works on lines of 8 * 8 bytes; initial APIC id 0.
_CLFLUSH = 8 << 8


def _words(text: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(text[at : at + 4], "little") for at in range(0, len(text), 4))


_vendor = _words(VENDOR)
_hypervisor = _words(HYPERVISOR)
_brand = _words(BRAND.ljust(48, b"\0"))

#: (leaf, subleaf) -> (EAX, EBX, ECX, EDX). No leaf of this table depends on its subleaf.
TABLE: dict[tuple[int, int], tuple[int, int, int, int]] = {
    (0, 0): (1, _vendor[0], _vendor[2], _vendor[1]),
    (1, 0): (_SIGNATURE, _CLFLUSH, _FEATURES_ECX, _FEATURES_EDX),
    (0x40000000, 0): (0x40000000, *_hypervisor),  # type: ignore[dict-item]
    (0x80000000, 0): (0x80000008, 0, 0, 0),
    (0x80000001, 0): (0, 0, _EXTENDED_ECX, _EXTENDED_EDX),
    (0x80000002, 0): _brand[0:4],  # type: ignore[dict-item]
    (0x80000003, 0): _brand[4:8],  # type: ignore[dict-item]
    (0x80000004, 0): _brand[8:12],  # type: ignore[dict-item]
    (0x80000008, 0): (LINEAR_BITS << 8 | PHYSICAL_BITS, 0, 0, 0),
}

_LIMITS = {0: 1, 0x40000000: 0x40000000, 0x80000000: 0x80000008}


def cpuid(leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """(EAX, EBX, ECX, EDX) for EAX=`leaf`, ECX=`subleaf`.

    A leaf above the last of its range answers as the last basic leaf does, as Intel's CPUs
    do (SDM vol. 2A, CPUID); one inside a range that has no entry answers zeros.
    """
    limit = _LIMITS.get(leaf & 0xC0000000 if leaf & 0xF0000000 in (0, 0x40000000, 0x80000000) else -1)
    if limit is None or leaf > limit:
        leaf, subleaf = _LIMITS[0], 0
    return TABLE.get((leaf, subleaf)) or TABLE.get((leaf, 0)) or (0, 0, 0, 0)
