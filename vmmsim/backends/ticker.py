"""The ticker: one daemon thread that kicks each vCPU whose run shows no sign of life.

The thread that was kicked looks around (was it cancelled? has Python a signal handler to
run?) and goes back into the guest. What a kick is, is the backend's: a signal out of
KVM_RUN, a stop between two blocks of Unicorn.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

__all__ = ["TICK_SECONDS", "Kickable", "hurry", "watch"]

#: How often the ticker looks. A kick costs the guest some 100 microseconds at most.
TICK_SECONDS = 0.25


class Kickable(Protocol):
    """What the ticker needs of a vCPU."""

    @property
    def tick_seconds(self) -> float:
        """How long it may show no sign of life before it is kicked."""
        ...

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
                self._thread = threading.Thread(target=self._run, name="vmmsim-ticker", daemon=True)
                self._thread.start()
        if vcpu.tick_seconds < TICK_SECONDS:
            self._wake.set()

    def wake(self) -> None:
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


def hurry() -> None:
    """Look now: somebody's `tick_seconds` has become short."""
    _ticker.wake()


def _after_fork() -> None:
    """A child process has the memory, but not the thread."""
    global _ticker
    _ticker = _Ticker()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
