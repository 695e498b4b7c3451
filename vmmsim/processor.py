"""One vCPU of a machine: what it does, and what messages have told it to do.

A vCPU runs, has halted, or waits for a STARTUP message, as all but the first do at first
(SDM vol. 3, 8.4.3).
"""

from __future__ import annotations

import threading

from .backends.base import Board, Vcpu
from .cpu.modes import reset
from .cpu.state import CpuState, Events, Segment
from .cpu_view import CpuView

__all__ = ["HALTED", "RUNS", "WAITS", "Processor"]

#: What a vCPU does: executes, has halted, or waits for STARTUP.
RUNS, HALTED, WAITS = "runs", "halted", "waits"

_CR0_CACHES = 0x6000_0000  # CD and NW, which INIT leaves alone


class Processor:
    """One vCPU and what its pins have asked for."""

    def __init__(self, number: int, vcpu: Vcpu) -> None:
        self.number = number
        self.vcpu = vcpu
        self.cpu = CpuView(vcpu)
        self.board: Board | None = None
        self.status = WAITS if number else RUNS
        #: INIT has come, STARTUP has come with its vector, or an NMI that may end a halt.
        self.init = self.nmi = False
        self.startup: int | None = None
        #: Its thread, while it waits.
        self.wake = threading.Event()

    def connect(self, board: Board) -> None:
        """Its interrupt controller: without one it is never interrupted."""
        self.board = board
        self.vcpu.connect(board)

    def begin(self, status: str) -> None:
        """It has another state, in which nothing was asked of it."""
        self.status = status
        self.init = self.nmi = False
        self.startup = None

    def resume(self, status: str, events: Events) -> None:
        """It goes on from a snapshot, of whose state the vCPU has the registers already."""
        self.begin(status)
        self.nmi = events.nmi_pending and not events.nmi_masked

    def halt(self) -> None:
        """It has executed HLT."""
        self.status = HALTED
        if self.nmi:  # one that was delivered before HLT does not end the halt
            events = self.vcpu.state().events
            self.nmi = events.nmi_pending and not events.nmi_masked

    def obey(self) -> None:
        """Between two instructions: do what INIT and STARTUP say (SDM vol. 3, 8.4.4.1, 9.1.1)."""
        if self.init:
            self.init = False
            self.vcpu.set_state(_after_init(self.vcpu.state()))
            self.status = WAITS if self.number else RUNS
        if self.startup is not None:
            vector, self.startup = self.startup, None
            if self.status is WAITS:
                state = self.vcpu.state()
                state.cs = Segment(vector << 8, vector << 12, 0xFFFF, state.cs.attr)
                state.rip = 0
                self.vcpu.set_state(state)
                self.status = RUNS

    def ready(self) -> bool:
        """Whether it has something to do. A halt ends for what the guest can take."""
        if self.init or (self.status is WAITS and self.startup is not None):
            return True
        if self.status is HALTED:
            board = self.board
            if self.nmi or (board is not None and board.pending() and self.vcpu.interruptible):
                self.nmi = False
                self.status = RUNS
        return self.status is RUNS

    def can_wake(self) -> bool:
        """Whether an interrupt could end its halt."""
        return self.status is HALTED and self.board is not None and self.vcpu.interruptible


def _after_init(old: CpuState) -> CpuState:
    """The state that INIT leaves: that of RESET, but for FPU, MSRs and the caches' bits (SDM vol. 3,
    table 9-1)."""
    state = reset().state
    state.cr0 |= old.cr0 & _CR0_CACHES
    state.fpu, state.xcr0 = old.fpu, old.xcr0
    state.msrs = dict(old.msrs)
    return state
