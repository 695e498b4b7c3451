"""The CPU structure of an engine as 64-bit words, for the code that edits it at each trap.

A save, some words looked at and set, and a restore: 2 microseconds. What the words mean is
`ContextCodec`'s; their places come from its layout, which was found in this process.
"""

from __future__ import annotations

import ctypes

from unicorn import x86_const

from ..errors import NotSupported
from .unicorn_context import ContextCodec
from .unicorn_lazy import CC_EFLAGS, STATUS, settled_already
from .unicorn_probe import ContextBytes
from .unicorn_registers import check, quick

__all__ = ["CS", "DS", "ES", "FS", "GS", "LDT", "SS", "TR", "CpuWords"]

#: The engine's order of segment registers, as places for `CpuWords.segment`.
ES, CS, SS, DS, FS, GS, LDT, TR = range(8)

_DIRECTION = 0x400
_ARITHMETIC = STATUS | _DIRECTION
_INHIBIT, _CS32, _SS32, _ADDSEG, _PE, _LMA, _CS64 = 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 14, 1 << 15
_FOLLOWS = 3 | _INHIBIT | _CS32 | _SS32 | _ADDSEG | _CS64
_VM = 1 << 17


class CpuWords:
    """`words` is the structure as of the last `save`; the numbers are indexes into it.

    `registers` + 0..15 are the general registers in encoding order and + 16 is RIP. `flags` is
    RFLAGS without what `rflags` adds. `hidden` has QEMU's two words of hidden flags. `idt` and
    `gdt` are the words of the base; the limit is the low half of the next.
    """

    def __init__(self, codec: ContextCodec) -> None:
        at = codec.layout
        self.codec = codec
        self._context = ContextBytes(codec.uc)
        self.data = data = self._context.data
        self.words = data[: len(data) & ~7].cast("Q")
        self.ints = data[: len(data) & ~7].cast("i")
        places = (
            at.registers,
            at.flags,
            at.segments,
            at.cr,
            at.efer,
            at.error_code,
            at.debug,
            at.old_exception,
        )
        if any(place % 8 for place in places):
            raise NotSupported("the CPU structure of this Unicorn is not made of aligned words")
        self.registers = at.registers >> 3
        self.rsp, self.rip = self.registers + 4, self.registers + 16
        self.flags = at.flags >> 3
        self.hidden = self.flags + 5
        self.segments = at.segments >> 3
        self.gdt, self.idt = self.segments + 25, self.segments + 28
        self.cr = at.cr >> 3
        self.efer = at.efer >> 3
        self.error = at.error_code >> 3
        self.debug = at.debug >> 3
        self.old_exception = at.old_exception >> 2
        self._engine = codec.engine
        self._handle = self._context._handle
        self._save, self._restore = quick.uc_context_save, quick.uc_context_restore
        self._read = quick.uc_reg_read
        self._word = ctypes.c_uint64()
        self._word_ref = ctypes.byref(self._word)

    def save(self) -> None:
        """Take the engine's state."""
        status = self._save(self._engine, self._handle)
        if status:
            check(status)

    def restore(self) -> None:
        """Make the words the engine's state."""
        status = self._restore(self._engine, self._handle)
        if status:
            check(status)

    def rflags(self) -> int:
        """RFLAGS of the words. The engine must not have run since they were saved.

        In a run the arithmetic flags and DF live elsewhere: as the flags themselves, or as an
        operation and its operands, of which only the engine knows what they come to.
        """
        words, at = self.words, self.flags
        kept = words[at] & ~_ARITHMETIC | 2
        how = words[at + 4]
        if how & 0xFFFFFFFF == CC_EFLAGS:
            kept |= words[at + 2] & STATUS
            return kept | _DIRECTION if how >> 63 else kept
        self._read(self._engine, x86_const.UC_X86_REG_RFLAGS, self._word_ref)
        return kept | self._word.value & _ARITHMETIC

    def mend_flags(self, begun: bool = True) -> None:
        """In an INTR or INSN_INVALID hook, on words just saved, where a hook is called before each
        instruction: see `unicorn_lazy`. `begun`: the instruction at RIP is, and has set no flags yet;
        else that is a question of what the words look like."""
        words, at = self.words, self.flags
        source = words[at + 2]
        if not begun and source != words[at] & STATUS:
            return
        if begun or settled_already(words[at + 4], source, words[at + 1]):
            words[at + 4] = words[at + 4] & ~0xFFFFFFFF | CC_EFLAGS

    def settle_flags(self) -> None:
        """In an access of an instruction that has a hook before it. QEMU has just said that the last
        operation is the one from before that; a REP would end its block so."""
        words, at = self.words, self.flags + 4
        self.save()
        if words[at] & 0xFFFFFFFF != CC_EFLAGS:
            words[at] = words[at] & ~0xFFFFFFFF | CC_EFLAGS
            self.restore()

    def set_rflags(self, value: int) -> None:
        """All of RFLAGS, in the two forms that are needed within and outside a run."""
        words, at = self.words, self.flags
        words[at] = value | 2
        words[at + 1] = 0
        words[at + 2] = value & STATUS
        words[at + 3] = 0
        words[at + 4] = CC_EFLAGS | (0xFFFFFFFF if value & _DIRECTION else 1) << 32

    def linear(self, rip: int) -> int:
        """The linear address of `rip` in the code segment."""
        if self.words[self.hidden] & _CS64:
            return rip
        return self.segment(CS)[1] + rip & 0xFFFFFFFF

    def segment(self, number: int) -> tuple[int, int, int, int]:
        """Selector, base, limit, and attributes as in a descriptor's second dword."""
        words, at = self.words, self.segments + 3 * number
        last = words[at + 2]
        return words[at] & 0xFFFF, words[at + 1], last & 0xFFFFFFFF, last >> 32

    def set_segment(self, number: int, selector: int, base: int, limit: int, attributes: int) -> None:
        words, at = self.words, self.segments + 3 * number
        words[at] = selector
        words[at + 1] = base
        words[at + 2] = limit | (attributes & 0xF0FF00) << 32

    def settle(self, cpl: int) -> None:
        """After segments, CR0.PE or RFLAGS.VM changed: the hidden flags that follow from them. No
        interrupt shadow is left."""
        words, at = self.words, self.hidden
        hidden = words[at] & ~_FOLLOWS
        cs, ss = words[self.segments + 3 * CS + 2] >> 32, words[self.segments + 3 * SS + 2] >> 32
        code64 = hidden >> 14 & cs >> 21 & 1
        code32 = code64 | cs >> 22 & 1
        hidden |= cpl | code32 << 4 | (ss >> 22 & 1) << 5 | code64 << 15
        if not code64:
            bases = 0
            for number in (DS, ES, SS):
                bases |= words[self.segments + 3 * number + 1]
            if not hidden & _PE or words[self.flags] & _VM or not code32 or bases:
                hidden |= _ADDSEG
        words[at] = hidden
