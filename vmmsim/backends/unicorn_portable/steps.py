"""Interrupt windows: single steps up to where the guest can take what is pending.

RFLAGS.TF makes QEMU raise #DB behind each instruction, which comes to the hook for exceptions: some
hundred thousand steps a second, and no translated code is lost. The guest does not see the flag:

* PUSHF stores it: its image is mended behind it;
* POPF, IRET and SYSRET load it: what they have loaded is the guest's;
* before any exception, intercept, system call or nested page fault is dealt with, it is taken away, and
  set again when the guest goes on.

A guest that steps itself has its own #DB behind each instruction, at which is looked, too. Where an
interrupt need not be exact, and the guest has not opened the window after many steps, it runs
free for a millisecond, and is looked at again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...cpu.prefixes import LEGACY_PREFIXES
from ..ticker import hurry
from ..unicorn_trap_cpu import SS
from .free import FreeCode

if TYPE_CHECKING:
    from ...cpu.state import CpuState, Registers
    from ..unicorn import UnicornVm

__all__ = ["WindowSteps"]

_TF, _IF = 1 << 8, 1 << 9
_SHADOW, _NMI_MASKED, _CODE64, _SS32 = 1 << 3, 1 << 34, 1 << 15, 1 << 5
_R11 = 11
#: Steps in a row after which a guest that keeps its window shut runs free again: at first, and then;
#: and how many milliseconds it does at the most.
_STEPS, _MORE_STEPS, _MOST_PAUSES = 2000, 200, 2
#: RFLAGS in a glance: behind 17 registers.
_RFLAGS_AT = 17 * 8
_PUSHF, _LOADS, _SYSRET = 1, 2, 3
#: By the first byte behind the prefixes; SYSRET has two.
_KINDS = {0x9C: _PUSHF, 0x9D: _LOADS, 0xCF: _LOADS}


class WindowSteps(FreeCode):
    """A vCPU whose free code is stepped while an interrupt waits."""

    def __init__(self, vm: UnicornVm) -> None:
        super().__init__(vm)
        #: RFLAGS.TF is ours; DR6 as the guest has it; what the instruction at RIP does with TF, and
        #: whether R11 had it before a SYSRET.
        self._stepped = False
        self._dr6 = self._kind = self._r11_tf = 0
        #: Steps that are left; how many runs without steps are to follow, and how many the next time.
        self._steps = self._pauses = self._longest = 0

    def _run_free(self) -> int:
        if not self._want:
            self._pauses = self._longest = 0
            return super()._run_free()
        if self._pauses:
            self._pauses -= 1
            hurry()
        else:
            self._begin_steps()
        status = super()._run_free()
        self._end_steps()
        self._look = True
        return status

    def _begin_steps(self) -> None:
        if self.vm.options.exact_interrupts:
            self._steps = 1 << 62
        else:
            self._steps = _MORE_STEPS if self._longest else _STEPS
            self._pauses = self._longest = min(2 * self._longest, _MOST_PAUSES) or 1
        cpu = self._traps.cpu
        cpu.save()
        if cpu.words[cpu.flags] & _TF:
            return  # the guest steps itself
        self._dr6 = cpu.words[cpu.debug + 6]
        self._prepare()
        cpu.restore()
        self._stepped = True

    def _prepare(self) -> None:
        """On words just saved: step over the instruction at RIP."""
        cpu = self._traps.cpu
        words = cpu.words
        words[cpu.flags] |= _TF
        code = self._traps.code(4)
        at, code64 = 0, words[cpu.hidden] & _CODE64
        while at < len(code) and (code[at] in LEGACY_PREFIXES or (code64 and code[at] >> 4 == 4)):
            at += 1
        self._kind = _KINDS.get(code[at], 0) if at < len(code) else 0
        if code[at : at + 2] == b"\x0f\x07":
            self._kind = _SYSRET
            self._r11_tf = words[cpu.registers + _R11] & _TF
            words[cpu.registers + _R11] |= _TF

    def _end_steps(self) -> None:
        """Outside the engine, or in a hook before anything else: TF is the guest's again."""
        if self._stepped:
            cpu = self._traps.cpu
            cpu.save()
            self._unstep()
            cpu.restore()

    def _unstep(self) -> None:
        words, cpu = self._traps.cpu.words, self._traps.cpu
        self._stepped = False
        words[cpu.flags] &= ~_TF
        if self._kind == _SYSRET:
            words[cpu.registers + _R11] &= ~_TF | self._r11_tf
        self._kind = 0

    def _trapped(self, number: int) -> str | None:
        if not self._stepped:
            if self._free and self._want:
                self._at_boundary = True
            return super()._trapped(number)
        self._end_steps()
        self._at_boundary = True
        return super()._trapped(number)

    def _step_done(self) -> None:
        cpu = self._traps.cpu
        cpu.save()
        words = cpu.words
        kind, self._kind = self._kind, 0
        words[cpu.debug + 6] = self._dr6
        cpu.ints[cpu.old_exception] = -1
        self._steps -= 1
        guests = 0  # whether TF is the guest's from now on
        if kind == _PUSHF:
            self._mend_image()
        elif kind == _LOADS:
            guests = words[cpu.flags] & _TF
        elif kind == _SYSRET:
            guests = self._r11_tf
            words[cpu.registers + _R11] &= ~_TF | self._r11_tf
        hidden, flags = words[cpu.hidden], words[cpu.flags]
        opened = not hidden & _SHADOW and (flags & _IF or (self._nmi and not hidden & _NMI_MASKED))
        if guests:
            self._stepped = False
            self._at_boundary = True
        elif opened or self._steps <= 0 or self._look or self._cancelled:
            self._unstep()
            self._at_boundary = True
        else:
            self._prepare()
        cpu.restore()

    def _mend_image(self) -> None:
        """Behind PUSHF, on words just saved: its image without TF, in the stack."""
        traps, cpu = self._traps, self._traps.cpu
        words = cpu.words
        traps.use_memory(words[cpu.flags])
        at = words[cpu.rsp]
        if not words[cpu.hidden] & _CODE64:
            mask = 0xFFFFFFFF if words[cpu.hidden] & _SS32 else 0xFFFF
            at = cpu.segment(SS)[1] + (at & mask) & 0xFFFFFFFF
        image = traps.memory.peek(at + 1, 1)
        if image:
            user = words[cpu.hidden] & 3 == 3
            traps.memory.write(at + 1, bytes([image[0] & ~(_TF >> 8)]), user=user, implicit=False)

    def _in_helper(self, act: Callable[[], str | None]) -> None:
        stepped = self._stepped
        self._end_steps()
        super()._in_helper(act)
        if stepped:
            self._leave()

    def _on_invalid(self, uc: int) -> bool:
        stepped = self._stepped
        self._end_steps()
        answer = super()._on_invalid(uc)
        if stepped:
            self._leave()
        return answer

    # -- what is seen in a callback

    def _guest_registers(self) -> Registers:
        registers = super()._guest_registers()
        if self._stepped:
            registers.rflags &= ~_TF
        return registers

    def registers(self) -> Registers:
        registers = super().registers()
        if self._stepped:
            registers.rflags &= ~_TF
        return registers

    def _read_state(self) -> CpuState:
        state = super()._read_state()
        if self._stepped:
            state.rflags &= ~_TF
        return state

    def glance(self) -> bytes:
        glance = super().glance()
        if self._stepped:
            at = _RFLAGS_AT + 1
            glance = glance[:at] + bytes([glance[at] & ~(_TF >> 8)]) + glance[at + 1 :]
        return glance
