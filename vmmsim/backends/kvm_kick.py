"""Getting a thread out of KVM_RUN: the kick signal, the ticker, and known livelocks.

KVM_RUN comes back for a signal and for nothing else, so `cancel()` sends one to the thread
that runs the vCPU. `immediate_exit` in the shared page closes the race with a thread that
is about to enter. The ticker is one daemon thread for all vCPUs: it kicks each KVM_RUN
that has made no exit since its last round. The thread that was kicked looks around and
goes back in; so a Ctrl-C that arrived in the last instruction before KVM_RUN is seen, and
so a guest that will never come out by itself can be told (`livelock`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import weakref
from typing import Protocol

from ..errors import HostError

__all__ = ["TICK_SECONDS", "Kickable", "install_kick_signal", "livelock", "watch"]

#: How often the ticker looks. A kick costs the guest some 100 microseconds.
TICK_SECONDS = 0.25

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


class Kickable(Protocol):
    """What the ticker needs of a vCPU."""

    tick_seconds: float

    def signs_of_life(self) -> tuple[bool, int]:
        """Whether a thread runs it now, and a number that changes with each exit."""
        ...

    def kick(self) -> None:
        """Interrupt the thread that runs it, if one does."""
        ...


class _Ticker:
    """The thread, started at the first run and gone when no vCPU is left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: weakref.WeakSet[Kickable] = weakref.WeakSet()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()

    def add(self, vcpu: Kickable) -> None:
        with self._lock:
            self._watched.add(vcpu)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vmmsim-kvm-ticker", daemon=True)
                self._thread.start()
        if vcpu.tick_seconds < TICK_SECONDS:
            self._wake.set()

    def _run(self) -> None:
        seen: weakref.WeakKeyDictionary[Kickable, int] = weakref.WeakKeyDictionary()
        idle_rounds = 0
        while True:
            with self._lock:
                vcpus = list(self._watched)
                idle_rounds = 0 if vcpus else idle_rounds + 1
                if idle_rounds > 4:
                    self._thread = None
                    return
            vcpu: Kickable | None
            for vcpu in vcpus:
                running, exits = vcpu.signs_of_life()
                if running and seen.get(vcpu) == exits:
                    vcpu.kick()
                seen[vcpu] = exits
            pause = min((v.tick_seconds for v in vcpus), default=TICK_SECONDS)
            vcpu = None
            vcpus.clear()  # no reference while it sleeps: a vCPU ends when its VM is dropped
            if self._wake.wait(pause):
                self._wake.clear()


_ticker = _Ticker()


def watch(vcpu: Kickable) -> None:
    """Have `vcpu` kicked whenever it makes no exit for `tick_seconds`, while it exists."""
    _ticker.add(vcpu)


def _after_fork() -> None:
    """A child process has the memory, but not the thread."""
    global _ticker
    _ticker = _Ticker()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_LEGACY_PREFIXES = frozenset(b"\xf0\xf2\xf3\x2e\x36\x3e\x26\x64\x65\x66\x67")


def livelock(code: bytes, *, real_mode: bool, long_mode: bool, hypercalls_patched: bool) -> str:
    """Why an instruction with the bytes `code` never ends under KVM, or "".

    Called for a vCPU whose registers have stood still for the watchdog's time. That alone
    proves nothing (`jmp $` is a legal guest), so only what is known to hang KVM's
    emulator counts: INT n with n >= 0x80 in real mode (kvm_pvm sign-extends n), VMCALL and
    VMMCALL where KVM patches them in memory, FXSAVE to MMIO. An LGDT from MMIO, which makes the
    same read exit for ever, does make exits: a budget ends that.
    """
    at = 0
    while at < len(code) and code[at] in _LEGACY_PREFIXES:
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
