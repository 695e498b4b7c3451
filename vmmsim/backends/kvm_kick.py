"""Getting a thread out of KVM_RUN: the kick signal, and known livelocks.

KVM_RUN comes back for a signal and for nothing else, so `cancel()` sends one to the thread
that runs the vCPU. `immediate_exit` in the shared page closes the race with a thread that
is about to enter. The ticker (`backends.ticker`) kicks too: so a Ctrl-C that arrived in the
last instruction before KVM_RUN is seen, and so a guest that will never come out by itself
can be told (`livelock`).
"""

from __future__ import annotations

import ctypes
import signal

from ..cpu.prefixes import LEGACY_PREFIXES
from ..errors import HostError

__all__ = ["install_kick_signal", "livelock"]

_kick_signal = 0


def install_kick_signal() -> int:
    """The number of the signal that ends KVM_RUN, with a handler that does nothing.

    A real-time signal that nobody has a handler for, from SIGRTMAX - 1 down. Python's
    `signal.signal` works in the main thread only, and a vCPU may be made in any; so the
    handler is the C library's abs(), a function without side effects, set by signal(2).
    Raises HostError when all are taken.
    """
    global _kick_signal
    if _kick_signal:
        return _kick_signal
    libc = ctypes.CDLL(None)
    set_handler = libc.signal
    set_handler.argtypes = (ctypes.c_int, ctypes.c_void_p)
    set_handler.restype = ctypes.c_void_p
    nothing = ctypes.cast(libc.abs, ctypes.c_void_p)
    for number in range(signal.SIGRTMAX - 1, signal.SIGRTMIN, -1):
        before = set_handler(number, nothing)
        if before is None:  # SIG_DFL
            _kick_signal = number
            return number
        set_handler(number, before)
    raise HostError(
        "no real-time signal is free to interrupt KVM_RUN",
        hint="this process has handlers on all of SIGRTMIN..SIGRTMAX",
    )


def livelock(code: bytes, *, real_mode: bool, long_mode: bool, hypercalls_patched: bool) -> str:
    """Why an instruction with the bytes `code` never ends under KVM, or "".

    Called for a vCPU whose registers have stood still for the watchdog's time. That alone
    proves nothing (`jmp $` is a legal guest), so only what is known to hang KVM's
    emulator counts: INT n with n >= 0x80 in real mode (kvm_pvm sign-extends n), VMCALL and
    VMMCALL where KVM patches them in memory, FXSAVE to MMIO. An LGDT from MMIO, which makes the
    same read exit for ever, does make exits: a budget ends that.
    """
    at = 0
    while at < len(code) and code[at] in LEGACY_PREFIXES:
        at += 1
    if long_mode and at < len(code) and code[at] & 0xF0 == 0x40:
        at += 1
    body = code[at:]
    if real_mode and len(body) >= 2 and body[0] == 0xCD and body[1] >= 0x80:
        return f"KVM never ends INT {body[1]:#x} in real mode (it takes the vector as negative)"
    if hypercalls_patched and body[:3] in (b"\x0f\x01\xc1", b"\x0f\x01\xd9"):
        return "KVM never ends VMCALL and VMMCALL, and this host's cannot be told not to patch them"
    if body[:2] == b"\x0f\xae" and len(body) >= 3 and body[2] >> 3 & 7 == 0 and body[2] < 0xC0:
        return "KVM never ends an FXSAVE to memory that is not RAM"
    return ""
