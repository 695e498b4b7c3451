"""The debug-exit port: the guest ends the machine and says how it went.

The idea and the port are QEMU's (`-device isa-debug-exit,iobase=0xf4`). QEMU ends with
`(value << 1) | 1`, which can never say 0; here the value is the code, and QEMU's formula
is a mode (`compat`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import msgspec

from ..errors import UsageError

__all__ = ["DebugExit", "DebugExitState"]


class DebugExitState(msgspec.Struct, frozen=True):
    """`code` is what the guest ended with last (0-255), None while it has not."""

    code: int | None = None


class DebugExit:
    """A write of `value`, 1, 2 or 4 bytes wide, calls `on_exit(value & 0xff)`.

    The code is handed over as the guest wrote it, 0 to 255. Guests have the codes 0 to 119
    to themselves (120 and more are vmmsim's own exit codes); bringing a larger one into
    that range is the machine's part, which alone knows what else it must report.
    With `compat` the code is QEMU's, `(value << 1 | 1) & 0xff`. A read answers 0.
    """

    widths: frozenset[int] = frozenset({1, 2, 4})
    #: Ports that the device takes: a 4-byte OUT to the first one is one access.
    length: ClassVar[int] = 4

    def __init__(
        self,
        on_exit: Callable[[int], None],
        compat: bool = False,
        *,
        state: DebugExitState | None = None,
    ) -> None:
        self._on_exit = on_exit
        self._compat = compat
        self._code = state.code if state is not None else None
        if self._code is not None and not 0 <= self._code <= 0xFF:
            raise UsageError(f"debug exit: the code {self._code} is no byte", hint="use 0 to 255, or None")

    @classmethod
    def from_state(
        cls, state: DebugExitState, *, on_exit: Callable[[int], None], compat: bool = False
    ) -> DebugExit:
        """Does not call `on_exit`: an exit that was taken is not taken again."""
        return cls(on_exit, compat, state=state)

    def state(self) -> DebugExitState:
        return DebugExitState(self._code)

    def read(self, offset: int, size: int, /) -> int:
        return 0

    def write(self, offset: int, size: int, value: int, /) -> None:
        code = (value << 1 | 1) & 0xFF if self._compat else value & 0xFF
        self._code = code
        self._on_exit(code)
