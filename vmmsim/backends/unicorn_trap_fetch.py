"""Faults of the fetch that come up too early.

QEMU translates a block of instructions before it executes the first. Where one of them runs into
a page that is not there, the fault comes up while the block is translated: RIP is at the block's
start, and nothing of the block is done. A CPU executes the instructions before that one first, and
reports its RIP. So the instruction at RIP is executed alone, and then the rest of the block is a
block of its own, which has the same fault, until the fault is that of its first instruction.

To have an instruction translated alone the flag that holds interrupts off is set, as STI does for
one instruction: QEMU ends the block behind it and clears the flag. A block that begins with that
flag, or in single step (RFLAGS.TF), is of one instruction, and its fault is where it should be.
A block is shorter than a page; so a fault of its fetch is at the page of RIP or at the start of the
next. There a load of the instruction at RIP may have its fault, too. Where nothing tells them apart
that instruction is executed alone as well, and has the fault again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..cpu.validate import is_canonical

if TYPE_CHECKING:
    from .unicorn_trap_cpu import CpuWords

__all__ = ["AGAIN", "FetchFaults"]

#: What `TrapUnit.raised` answers to a fault that was forgotten, to come up again where it should.
AGAIN = "again"

_GP, _PF = 13, 14
#: Of the error code of #PF. The last is there where a page can be not to be executed.
_WRITE, _FETCH = 2, 1 << 4
_CR4_PAE, _CR4_SMEP, _EFER_NXE = 1 << 5, 1 << 20, 1 << 11
_TF = 1 << 8
_INHIBIT, _CS32, _CODE64 = 1 << 3, 1 << 4, 1 << 15
_LAST = 0xFFF
#: No instruction is longer (SDM vol. 2, 2.3.11).
_LONGEST = 15


class FetchFaults:
    """Of the engine whose structure `cpu` is; `code` reads so many bytes at RIP, as of its last save."""

    def __init__(self, cpu: CpuWords, code: Callable[[int], bytes]) -> None:
        self._cpu = cpu
        self._code = code
        #: Whether the last #PF is known to be of a load.
        self.by_load: Callable[[], bool] = bool
        #: Without hooks: mends the flags of an instruction that may be begun, where nobody else does.
        self.mend_perhaps: Callable[[], None] = lambda: None
        #: CR2 before that, where it is known.
        self.old_cr2: Callable[[], int | None] = lambda: None
        #: The RIP of the instruction that is executed alone; that of the one which is to be.
        self.alone_at: int | None = None
        self.wanted_at: int | None = None

    def fetching(self, vector: int) -> bool:
        """Whether a fault just raised is one of the fetch: of an instruction that is not begun."""
        words, cpu = self._cpu.words, self._cpu
        linear = cpu.linear(words[cpu.rip])
        if vector == _GP:
            return not is_canonical(linear)
        if vector != _PF or self._is_data():
            return False
        beyond = words[cpu.cr + 2] - linear
        if beyond == 0:
            return True
        return 0 < beyond < _LONGEST and not words[cpu.cr + 2] & _LAST and not self._whole(beyond)

    def again(self, *, hooked: bool) -> bool:
        """In the hook for a #PF, on words just saved. Where it may be of an instruction behind the one
        at RIP, it is forgotten, that one is executed alone, and this is True."""
        if not self._early():
            return False
        cpu = self._cpu
        if hooked:  # it may be a load's, and then the instruction is begun
            cpu.mend_flags(begun=False)
        else:
            self.mend_perhaps()
        self._undo()
        self._alone()
        return True

    def forget(self) -> bool:
        """In the hook for a #PF: forget one of a fetch, where the run is to end before it."""
        cpu = self._cpu
        cpu.save()
        if not self.fetching(_PF) and not self._early():
            return False
        self._undo()
        cpu.restore()
        return True

    def _early(self) -> bool:
        words, cpu = self._cpu.words, self._cpu
        address = words[cpu.cr + 2]
        if address & _LAST or self._is_data() or self._single():
            return False
        mask = (1 << 64) - 1 if words[cpu.hidden] & _CODE64 else 0xFFFFFFFF
        return (cpu.linear(words[cpu.rip]) | _LAST) + 1 & mask == address

    def _undo(self) -> None:
        cpu, old = self._cpu, self.old_cr2()
        cpu.ints[cpu.old_exception] = -1
        if old is not None:
            cpu.words[cpu.cr + 2] = old

    def settle(self) -> None:
        """At a later fault or intercept, in the words just saved: a shadow of ours is none."""
        at, self.alone_at = self.alone_at, None
        words, cpu = self._cpu.words, self._cpu
        if words[cpu.rip] == at:
            words[cpu.hidden] &= ~_INHIBIT

    def begin(self) -> None:
        """Before the engine starts: what `ended` wanted."""
        at, self.wanted_at = self.wanted_at, None
        cpu = self._cpu
        cpu.save()
        if cpu.words[cpu.rip] == at and not self._single():  # it has not gone on elsewhere
            self._alone()

    def ended(self, *, failed: bool) -> bool:
        """The engine has stopped: take back a shadow of ours. Whether a fetch from where no memory is,
        by which it `failed`, came too early: it is to be started again."""
        cpu = self._cpu
        cpu.save()
        rip = cpu.words[cpu.rip]
        early = failed and not self._single()
        if early or rip == self.alone_at:
            self.wanted_at = rip
        if self.alone_at is not None:
            self.settle()
            cpu.restore()
        return early

    def _alone(self) -> None:
        words, cpu = self._cpu.words, self._cpu
        self.alone_at = words[cpu.rip]
        words[cpu.hidden] |= _INHIBIT
        cpu.restore()

    def _single(self) -> bool:
        words, cpu = self._cpu.words, self._cpu
        return bool(words[cpu.hidden] & _INHIBIT or words[cpu.flags] & _TF)

    def _is_data(self) -> bool:
        """Whether the #PF is for certain one of a load or a store, or INT 14."""
        words, cpu = self._cpu.words, self._cpu
        error = words[cpu.error]
        if error >> 32 or error & _WRITE or self.by_load():
            return True
        control = words[cpu.cr + 4]
        told = control & _CR4_SMEP or (control & _CR4_PAE and words[cpu.efer] & _EFER_NXE)
        return bool(told) and not error & _FETCH

    def _whole(self, size: int) -> bool:
        """Whether the instruction at RIP ends within `size` bytes."""
        import capstone

        hidden = self._cpu.words[self._cpu.hidden]
        mode = capstone.CS_MODE_32 if hidden & _CS32 else capstone.CS_MODE_16
        decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64 if hidden & _CODE64 else mode)
        return next(decoder.disasm_lite(self._code(size), 0, 1), None) is not None
