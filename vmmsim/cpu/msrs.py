"""The MSRs that are part of a CpuState, by number (SDM vol. 4; AMD APM vol. 2)."""

from __future__ import annotations

__all__ = [
    "CSTAR",
    "EFER",
    "FMASK",
    "FS_BASE",
    "GS_BASE",
    "KERNEL_GS_BASE",
    "LSTAR",
    "PAT",
    "STAR",
    "STATE_MSRS",
    "SYSENTER_CS",
    "SYSENTER_EIP",
    "SYSENTER_ESP",
]

SYSENTER_CS = 0x174
SYSENTER_ESP = 0x175
SYSENTER_EIP = 0x176
PAT = 0x277
EFER = 0xC0000080
STAR = 0xC0000081
LSTAR = 0xC0000082
CSTAR = 0xC0000083
FMASK = 0xC0000084
FS_BASE = 0xC0000100
GS_BASE = 0xC0000101
KERNEL_GS_BASE = 0xC0000102

#: number -> value after reset. PAT's is SDM vol. 3, table 11-12.
STATE_MSRS = {
    SYSENTER_CS: 0,
    SYSENTER_ESP: 0,
    SYSENTER_EIP: 0,
    PAT: 0x0007040600070406,
    STAR: 0,
    LSTAR: 0,
    CSTAR: 0,
    FMASK: 0,
    KERNEL_GS_BASE: 0,
}
