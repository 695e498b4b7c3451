"""The CPU that guests see: its CPUID tables, one for each vCPU, for both backends.

It is the x86-64 baseline (the psABI's x86-64-v1: CMOV, CMPXCHG8B, FPU, FXSR, MMX, SSE and
SSE2, SYSCALL, long mode with NX), which both CPUs execute. `TABLE` is that of the one CPU
of a machine without a local APIC; `table` adds one (with x2APIC),
the CPU's number and the topology, leaf 0Bh: one package, a thread for each core, APIC id n
for vCPU n. The vendor is GenuineIntel, as Unicorn's CPU behaves (SYSCALL is #UD outside
64-bit code), family 6, model 15; the hypervisor bit and leaf 0x40000000 say that it is
vmmsim.

On kvm_pvm the host forces its own features into leaf 1 ECX and EDX, leaf 7 and leaf 0xD,
and 64-bit code at CPL 3, which runs natively, sees the host's CPUID and nothing of this
table. Layouts: SDM vol. 2A, CPUID; the hypervisor leaves: Linux Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

__all__ = ["BRAND", "LINEAR_BITS", "PHYSICAL_BITS", "TABLE", "TOPOLOGY", "VENDOR", "Table", "cpuid", "table"]

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
#: MMX, FXSR, SSE, SSE2. Bits 7 and 14 (machine check) and 12 (MTRR) are clear.
_FEATURES_EDX = _bits(0, 1, 2, 3, 4, 5, 6, 8, 11, 13, 15, 16, 17, 19, 23, 24, 25, 26)
_APIC_EDX = _bits(9)
#: Leaf 1 EDX bit 28: more than one APIC id is in this package.
_HTT_EDX = _bits(28)
#: Leaf 1 ECX: only the hypervisor bit; with an APIC, x2APIC. The TSC-deadline timer (bit 24)
#: is not promised: on KVM the TSC is the host's, which the platform does not know.
_FEATURES_ECX = _bits(31)
_APIC_ECX = _bits(21)
#: Leaf 6 EAX: the APIC timer runs on in every sleep state (ARAT).
_ARAT_EAX = _bits(2)
#: Leaf 0x80000001 EDX: SYSCALL, NX, LM. ECX: LAHF in 64-bit mode.
_EXTENDED_EDX = _bits(11, 20, 29)
_EXTENDED_ECX = _bits(0)
#: Leaf 1 EBX: CLFLUSH works on lines of 8 * 8 bytes. Bits 23-16 number APIC ids, 31-24 are the own.
_CLFLUSH = 8 << 8


def _words(text: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(text[at : at + 4], "little") for at in range(0, len(text), 4))


_vendor = _words(VENDOR)
_hypervisor = _words(HYPERVISOR)
_brand = _words(BRAND.ljust(48, b"\0"))

#: (leaf, subleaf) -> (EAX, EBX, ECX, EDX).
Table = dict[tuple[int, int], tuple[int, int, int, int]]

#: Without an APIC. No leaf of this table depends on its subleaf.
TABLE: Table = {
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

_RANGES = (0, 0x40000000, 0x80000000)
#: Leaf 0Bh, the only one here that depends on ECX (SDM vol. 2A, table 3-8).
TOPOLOGY = 0xB
_LEVEL_SMT, _LEVEL_CORE = 1 << 8, 2 << 8


def table(apic: bool, apic_id: int = 0, cpus: int = 1) -> Table:
    """The table of one vCPU: `TABLE`, with a local APIC of the number `apic_id` if `apic`.

    `cpus` is how many vCPUs the machine has. Ids beyond 255 are whole in leaf 0Bh only.
    """
    if not apic:
        return dict(TABLE)
    shift = max(0, cpus - 1).bit_length()
    ids = min(1 << shift, 128)
    signature, _, ecx, edx = TABLE[1, 0]
    ebx = (apic_id & 0xFF) << 24 | ids << 16 | _CLFLUSH
    edx |= _APIC_EDX | (_HTT_EDX if cpus > 1 else 0)
    return {
        **TABLE,
        (0, 0): (TOPOLOGY, *TABLE[0, 0][1:]),
        (1, 0): (signature, ebx, ecx | _APIC_ECX, edx),
        (6, 0): (_ARAT_EAX, 0, 0, 0),
        # EAX: how far to shift the id right for the next level's; EBX: CPUs at this level.
        (TOPOLOGY, 0): (0, 1, _LEVEL_SMT, apic_id),
        (TOPOLOGY, 1): (shift, cpus, _LEVEL_CORE | 1, apic_id),
    }


def cpuid(leaf: int, subleaf: int = 0, *, table: Table = TABLE) -> tuple[int, int, int, int]:
    """(EAX, EBX, ECX, EDX) for EAX=`leaf`, ECX=`subleaf`.

    A leaf above the last of its range answers as the last basic leaf does, as Intel's CPUs
    do (SDM vol. 2A, CPUID); one inside a range that has no entry answers zeros. A level that
    leaf 0Bh does not have answers the level's number and the id.
    """
    first = leaf & 0xF0000000
    if first not in _RANGES or leaf > table[first, 0][0]:
        leaf = table[0, 0][0]
    if leaf == TOPOLOGY and (leaf, 0) in table and (leaf, subleaf) not in table:
        return (0, 0, subleaf & 0xFF, table[leaf, 0][3])
    return table.get((leaf, subleaf)) or table.get((leaf, 0)) or (0, 0, 0, 0)
