"""The interrupt pins of a KVM vCPU: INTR, NMI, and the task priority in CR8.

There is no in-kernel interrupt controller. A vector goes to KVM by KVM_INTERRUPT, which
delivers it with the next entry into the guest even when IF is clear or a shadow holds
interrupts off; so it is given only when `ready_for_interrupt_injection` is set, and that
byte is true only right behind a KVM_RUN that ended at an instruction boundary: KVM_RUN came
back with EINTR (attention sets `immediate_exit`, with which KVM finishes the instruction in
flight first), or with KVM_EXIT_IRQ_WINDOW_OPEN, which `request_interrupt_window` asks for.
`attend` is called in these places alone. (Linux Documentation/virt/kvm/api.rst,
KVM_INTERRUPT and "The kvm_run structure".)

VMX and SVM leave the guest at the very boundary where the window opens. kvm_pvm emulates up
to 1024 instructions in one go, and looks for an open window, or an NMI that IRET unmasked,
only behind them. So there, while one waits, each exit is followed by a look, and the guest
is single-stepped (kvm_step): at once where interrupts are to be exact, else after some looks.
A MOV to CR8 makes no exit there either: a lower priority is seen with the next exit, or when
the ticker kicks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import kvm_abi as abi
from .kvm_fd import VcpuFd
from .kvm_step import Stepper

if TYPE_CHECKING:
    from .base import Board
    from .kvm import KvmVm

__all__ = ["Pins"]

_WINDOW = abi.Run.request_interrupt_window.offset  # u8
_IMMEDIATE_EXIT = abi.Run.immediate_exit.offset  # u8
_READY = abi.Run.ready_for_interrupt_injection.offset  # u8
_CR8 = abi.Run.cr8.offset // 8  # u64
#: Where interrupts need not be exact: at so many looks in vain the guest is stepped after all, since
#: a loop that sets IF for two instructions may never be looked at in these.
_PATIENCE = 8
#: What CR8 never is: the run loop calls `look` behind each exit.
_EACH_EXIT = -1


class Pins:
    """What one vCPU's pins are connected to.

    `due`: `attend` at the next boundary. `wanted`: have the board serviced then. `nmi`: one
    is pending that KVM does not know of yet. `watch`: behind an exit with another CR8, the
    run loop calls `look`. `late`: KVM notices an open window late; `exact`: that matters.
    """

    def __init__(self, cpu: VcpuFd, vm: KvmVm, *, late: bool, exact: bool) -> None:
        self._cpu = cpu
        self._u8, self._u64 = cpu.u8, cpu.u64
        self._stepper = Stepper(cpu, vm) if late else None
        self._single: Stepper | None = None
        self._patience = 0 if exact else _PATIENCE
        #: At how many boundaries in a row something waited.
        self._looks = 0
        #: An NMI that KVM knows of may still wait.
        self._nmi_given = False
        self._cr8 = 0
        self.board: Board | None = None
        self.due = False
        self.wanted = False
        self.nmi = False
        self.watch = 0

    def want(self) -> None:
        """Look at the board at the next boundary. From any thread; the flags come first."""
        self.wanted = True
        self.due = True
        self._u8[_IMMEDIATE_EXIT] = 1

    def attend(self, *, stepped: bool = False) -> None:
        """Look at the board and give KVM what is pending. At an instruction boundary, right
        behind a KVM_RUN, when the vCPU is about to run on. `stepped`: it is a step's exit, behind
        which nothing waits to be delivered."""
        board, u8 = self.board, self._u8
        self.due = False
        if self.wanted:
            self.wanted = False
            if board is not None:
                try:
                    board.service()
                except BaseException:
                    self.wanted = self.due = True  # the next run does it again
                    raise
        nmi_next, nmi_masked = self._give_nmi()
        waits = board is not None and board.pending()
        # An NMI goes first (SDM vol. 3, 6.9); given both, KVM would deliver the interrupt.
        if board is not None and waits and u8[_READY] and not nmi_next:
            stepped = False
            self._cpu.interrupt(board.acknowledge())
            waits = board.pending()
        u8[_WINDOW] = waits
        if self._single is not None:
            self._single.step(None if stepped and not self._nmi_given else self._cpu.events())
            return
        if self._stepper is None:
            self.watch = self._cr8
            return
        waits = waits or nmi_masked
        self.watch = _EACH_EXIT if waits else self._cr8
        self._looks = self._looks + 1 if waits else 0
        if self._looks > self._patience:
            self._stepper.step(None if stepped and not self._nmi_given else self._cpu.events())
        else:
            self._stepper.stop()

    def single(self, vm: KvmVm) -> Stepper:
        """From here to `leave`, each instruction is to be an exit. At a boundary where nothing waits to
        be delivered, the stepper says by `on` whether the next one can be."""
        self._single = self._stepper or Stepper(self._cpu, vm)
        self.due = True
        self._u8[_IMMEDIATE_EXIT] = 1
        return self._single

    def _give_nmi(self) -> tuple[bool, bool]:
        """Tell KVM of an NMI. Whether one is delivered next, and whether one waits for an IRET."""
        if self.nmi:
            self._cpu.nmi()
            self.nmi, self._nmi_given = False, True
        if not self._nmi_given:
            return False, False
        events = self._cpu.events()
        self._nmi_given = events.nmi_pending
        return events.nmi_pending and not events.nmi_masked, events.nmi_pending and events.nmi_masked

    def look(self) -> None:
        """Behind an exit that `watch` asks for: the guest has written CR8, or something waits."""
        cr8 = self._u64[_CR8]
        if self.watch == _EACH_EXIT:
            self.due = True
            self._u8[_IMMEDIATE_EXIT] = 1
        else:
            self.watch = cr8
        if cr8 != self._cr8:
            self._cr8 = cr8
            if self.board is not None:
                self.board.cr8_written(cr8)

    def set_cr8(self, value: int) -> None:
        """KVM takes CR8 from the page with each KVM_RUN."""
        self._cr8 = self._u64[_CR8] = value
        if self.watch != _EACH_EXIT:
            self.watch = value

    def restored(self, cr8: int) -> None:
        """The vCPU has another state, in which `cr8` and an NMI may be pending."""
        self.set_cr8(cr8)
        self.nmi, self._nmi_given = False, True
        if self.board is not None:
            self.want()

    def leave(self) -> None:
        """The run has ended: the state shows nothing of single steps."""
        stepper, self._single = self._single or self._stepper, None
        if stepper is not None and stepper.on:
            stepper.stop()
            self.due = True
