"""The pins of a vCPU on Unicorn: INTR, NMI, the task priority, and its rights to ports.

What is pending is delivered by `attend`, at a boundary between two instructions; how the
engine comes to one is what differs between the two ways to drive it.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from unicorn import x86_const

from ..errors import UsageError
from ..exits import Exit, Shutdown
from .base import Board, Vcpu
from .unicorn_trap_cpu import TR

if TYPE_CHECKING:
    from .unicorn_context import ContextCodec
    from .unicorn_traps import TrapUnit

__all__ = ["FOREVER", "UnicornPins"]

FOREVER = 1 << 62
_IF, _VM = 1 << 9, 1 << 17
#: In the hidden flags: the shadow of STI and MOV SS, and that of an NMI.
_SHADOW, _NMI_MASKED = 1 << 3, 1 << 34


class UnicornPins(Vcpu):
    """Base of UnicornVcpu."""

    codec: ContextCodec
    _traps: TrapUnit
    _running: bool
    _run_thread: int
    _executing: bool
    _at_boundary: bool

    def __init__(self) -> None:
        self._board: Board | None = None
        self._tsc: Callable[[], int] = time.perf_counter_ns
        #: The board wants to be looked at; an NMI is pending; an interrupt is pending that the
        #: guest cannot take yet.
        self._look = self._nmi = self._want = False
        #: An exception of a state that was set (`Events.exception`), not delivered yet.
        self._exception: tuple[int, int | None] | None = None
        #: The same for an interrupt that was acknowledged (`Events.interrupt`).
        self._interrupt: int | None = None
        self._cr8 = 0
        #: `insns` at which the board is to be looked at, as `set_alarm` has it.
        self._alarm = FOREVER
        #: The instruction at hand, an IN or OUT, has no right to its port.
        self._denied = False

    @abstractmethod
    def _kick(self) -> None: ...

    @abstractmethod
    def _leave(self) -> None:
        """In a hook: leave the engine as soon as it can."""

    @abstractmethod
    def _stop_soon(self) -> None:
        """In a handler: end the run at the next boundary."""

    def _cr8_written(self, value: int) -> None:
        self._cr8 = value
        if self._board is not None:
            self._board.cr8_written(value)

    def connect(self, board: Board) -> None:
        self._board = board
        self._look = True

    def keep_time(self, tsc: Callable[[], int]) -> bool:
        self._tsc = tsc
        return True

    def attention(self) -> None:
        self._look = True
        if not self._running:
            return
        if threading.get_ident() != self._run_thread:
            self._kick()
        elif self._executing:
            self._look_soon()

    def _look_soon(self) -> None:
        """The board has changed while an access of this vCPU is being answered."""
        self._stop_soon()

    def nmi(self) -> None:
        self._nmi = True
        self.attention()

    def set_cr8(self, value: int) -> None:
        if not 0 <= value <= 15:
            raise UsageError(f"CR8 cannot be {value:#x}", hint="a task priority is 0 to 15")
        self._cr8 = value

    @property
    def interruptible(self) -> bool:
        return bool(self.codec.read(x86_const.UC_X86_REG_EFLAGS) & _IF)

    def _attend(self) -> Exit | None:
        """At a boundary: run what is due, then deliver what the guest can take. Shutdown if that
        is a triple fault."""
        self._look = False
        cause = None
        if self._exception is not None:
            (vector, code), self._exception = self._exception, None
            cause = self._traps.deliver(vector, error=code, kind="fault")
        board = self._board
        if board is not None and cause is None:
            board.service()
        if cause is None and self._interrupt is not None:
            vector, self._interrupt = self._interrupt, None
            cause = self._traps.deliver(vector, kind="hard")
        if cause is None and self._nmi and self._nmi_open():
            self._nmi = False
            cause = self._traps.deliver(2, kind="nmi")
        if cause is None and board is not None and board.pending() and self._window_open():
            cause = self._traps.deliver(board.acknowledge(), kind="hard")
        self._want = self._nmi or (board is not None and board.pending())
        return None if cause is None else Shutdown(cause)

    def _give_way(self) -> None:
        """In a hook, at a boundary that is no block's start, the words of the CPU being just saved: leave
        for what is to be looked at, or what is pending and the guest can take there."""
        cpu, board = self._traps.cpu, self._board
        nmi = self._nmi and not cpu.words[cpu.hidden] & _NMI_MASKED
        if self._look or nmi or (cpu.words[cpu.flags] & _IF and board is not None and board.pending()):
            self._look = self._at_boundary = True
            self._leave()

    def _window_open(self) -> bool:
        """Whether the guest can take an interrupt at this boundary."""
        cpu = self._traps.cpu
        cpu.save()
        return bool(cpu.words[cpu.flags] & _IF) and not cpu.words[cpu.hidden] & _SHADOW

    def _nmi_open(self) -> bool:
        cpu = self._traps.cpu
        cpu.save()
        return not cpu.words[cpu.hidden] & (_SHADOW | _NMI_MASKED)

    def _port_allowed(self, port: int, size: int) -> bool:
        """Whether the guest's CPL, IOPL and I/O permission bitmap allow the access (SDM vol. 1,
        19.5). Called while the instruction executes."""
        cpu = self._traps.cpu
        cpu.save()
        words = cpu.words
        flags, hidden = words[cpu.flags], words[cpu.hidden]
        if not words[cpu.cr] & 1 or (not flags & _VM and (hidden & 3) <= flags >> 12 & 3):
            return True
        _, base, limit, attributes = cpu.segment(TR)
        if attributes >> 8 & 0xD != 9:  # a 16-bit TSS has no bitmap
            return False
        self._traps.use_memory(flags)
        where = self._traps.memory.peek(base + 0x66, 2)
        at = int.from_bytes(where, "little") + (port >> 3)
        if len(where) < 2 or at + 1 > limit:
            return False
        bits = int.from_bytes(self._traps.memory.peek(base + at, 2), "little") >> (port & 7)
        return not bits & (1 << size) - 1

    def _port_denied(self, port: int, size: int) -> bool:
        """Whether the instruction at hand, at a CPL other than 0, has no right to the port: then
        it gets #GP(0) instead."""
        if self._port_allowed(port, size):
            return False
        self._denied = True
        self._leave()
        return True
