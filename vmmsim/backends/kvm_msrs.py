"""MSRs that belong to the platform: which RDMSR and WRMSR leave KVM.

KVM_X86_SET_MSR_FILTER denies KVM the ranges, and KVM_CAP_X86_USER_SPACE_MSR makes exits of
what it is denied (Linux Documentation/virt/kvm/api.rst). The filter never covers the MSRs of
the x2APIC, 0x800-0x8FF; without an in-kernel APIC they are invalid for KVM, so for them the
exit for invalid accesses is turned on as well. What that brings of other MSRs is #GP, which
it is without the exit.
"""

from __future__ import annotations

import ctypes

from ..errors import UsageError
from . import kvm_abi as abi

__all__ = ["Ranges", "check", "exit_reasons", "msr_filter", "owned"]

#: (first, count) each.
Ranges = tuple[tuple[int, int], ...]

_MOST = 8 * abi.MSR_FILTER_MAX_BITMAP_SIZE
_X2APIC, _X2APIC_END = 0x800, 0x900


def _pieces(ranges: Ranges) -> list[tuple[int, int]]:
    return [
        (at, min(_MOST, first + count - at))
        for first, count in ranges
        for at in range(first, first + count, _MOST)
    ]


def check(ranges: Ranges) -> None:
    """Raises UsageError for ranges that are none, or more than a filter holds."""
    for first, count in ranges:
        if first < 0 or count < 1 or first + count > 1 << 32:
            raise UsageError(
                f"({first:#x}, {count}) is no range of MSRs",
                hint="give (first, count): an MSR's number has 32 bits",
            )
    if sum(-(-count // _MOST) for _, count in ranges) > abi.MSR_FILTER_MAX_RANGES:
        raise UsageError(
            f"{len(ranges)} ranges of MSRs are more than KVM's filter holds",
            hint=f"it holds {abi.MSR_FILTER_MAX_RANGES} of up to {_MOST} MSRs each",
        )


def exit_reasons(ranges: Ranges) -> int:
    """The argument of KVM_CAP_X86_USER_SPACE_MSR for `ranges`."""
    if any(first < _X2APIC_END and first + count > _X2APIC for first, count in ranges):
        return abi.MSR_EXIT_REASON_FILTER | abi.MSR_EXIT_REASON_INVAL | abi.MSR_EXIT_REASON_UNKNOWN
    return abi.MSR_EXIT_REASON_FILTER


def msr_filter(ranges: Ranges) -> tuple[abi.MsrFilter, object]:
    """A struct kvm_msr_filter that leaves KVM all but `ranges`, and what it points to: keep
    that until the ioctl is done."""
    native = abi.MsrFilter()
    none = ctypes.create_string_buffer(abi.MSR_FILTER_MAX_BITMAP_SIZE)
    for place, (first, count) in zip(native.ranges, _pieces(ranges), strict=False):
        place.flags = abi.MSR_FILTER_READ | abi.MSR_FILTER_WRITE
        place.base, place.nmsrs = first, count
        place.bitmap = ctypes.addressof(none)
    return native, none


def owned(ranges: Ranges, index: int) -> bool:
    """Whether the MSR `index` is in one of `ranges`."""
    return any(first <= index < first + count for first, count in ranges)
