"""Lazy flags of an instruction that the native engine was left in, or that has a fault: see `unicorn_lazy`.

For most instructions its bytes say whether the flags were computed. For the rest it counts whether QEMU's
translator knew which operation was the last that set flags. It has noted that for each instruction, and from
a place in the translated code QEMU restores CC_OP by it, or leaves CC_OP alone where it was not known. Such a
place is what the call of a store's slow way returns to, and what QEMU's walk of the page tables is told.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..unicorn_lazy import CC_EFLAGS, MAY_ASK, STATUS, asks_first
from .thunks import Shared

if TYPE_CHECKING:
    from .thunks import Thunks

__all__ = ["LazyFlags"]

#: cpu_restore_state, with the address of CPUState, the place, and false.
_RESTORE = ctypes.PYFUNCTYPE(ctypes.c_bool, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_bool)
#: Set in CC_OP for a moment, which no operation has.
_MARK = 1 << 31
#: How far up the stack translated code called what called the write thunk.
_STACK_WORDS = 128
_LOW, _M64 = (1 << 32) - 1, (1 << 64) - 1


class LazyFlags:
    """The flags of one engine. `flags` are its words from RFLAGS on: then result, source operand and second
    operand of the last operation, and CC_OP; `rip` is RIP; `code` reads the instruction there, `first` its
    first byte, or None."""

    def __init__(
        self,
        thunks: Thunks,
        flags: Any,
        rip: Any,
        code: Callable[[], tuple[bytes, bool]],
        first: Callable[[], int | None],
    ) -> None:
        self._words = thunks.words
        self._flags = flags
        self._rip = rip
        self._code = code
        self._first = first
        self._restore = _RESTORE(thunks.symbols["RESTORE"])
        #: Of the access that the engine is left in: it is of no instruction that asks for flags first
        #: (a port's, or a store of more than a byte with no load before it); or, of a store of a byte,
        #: whether it has asked.
        self.plain = False
        self._asked: bool | None = None

    def leaving(self, size: int) -> None:
        """In a store of `size` bytes that is not behind a hook, before the engine is left there."""
        source, operation = self._flags[2], self._flags[4]
        if size != 1 or source & ~STATUS:  # then it is no SETcc that has computed them
            return
        self._asked = self._asks_first(operation, source)
        if self._asked is None:
            stack = (ctypes.c_uint64 * _STACK_WORDS).from_address(self._words[Shared.STACK])
            self._asked = any(self._unknown_at(place) for place in stack)

    def left(self, *, hooked: bool) -> None:
        """The engine was left in the instruction at RIP. `hooked`: there was a hook before it."""
        plain, asked = self.plain, self._asked
        self.plain, self._asked = False, None
        if plain and not hooked:
            return
        flags, _, source, _, operation = self._flags
        if not hooked:
            if source & ~STATUS or not (flags ^ source) & STATUS:
                return
            if asked is None:
                asked = self._asks_first(operation, source)
            if not asked:
                return
        self._flags[0] = flags & ~STATUS | source & STATUS
        self._flags[4] = operation & ~_LOW | CC_EFLAGS

    def _asks_first(self, operation: int, source: int) -> bool | None:
        first = self._first()
        if first is not None and first not in MAY_ASK:
            return False
        return asks_first(*self._code(), operation, source)

    def faulted(self) -> None:
        """In the hook for a fault of an access, without hooks for instructions."""
        source, operation = self._flags[2], self._flags[4]
        asked = self._asks_first(operation, source)
        if asked is None:
            asked = self._unknown_at(self._words[Shared.WALKED])
        if asked:  # the arithmetic flags are not in RFLAGS in a run
            self._flags[4] = operation & ~_LOW | CC_EFLAGS

    def _unknown_at(self, place: int) -> bool:
        """Whether `place` is in the code that the instruction at RIP was translated to, and the last
        operation was not known there."""
        rip, operation = self._rip[0], self._flags[4]
        self._rip[0], self._flags[4] = ~rip & _M64, operation | _MARK
        try:
            self._restore(self._words[Shared.CPU], place, False)
            return self._rip[0] == rip and bool(self._flags[4] & _MARK)
        finally:
            self._rip[0], self._flags[4] = rip, operation
