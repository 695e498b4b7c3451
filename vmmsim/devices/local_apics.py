"""The local APICs of all vCPUs, as one device at one address: each vCPU sees its own.

SDM volume 3, 10.4.1: every CPU has its APIC's page at the same physical address. Here it stays
at that address: IA32_APIC_BASE keeps what the guest writes, but moves nothing. A vCPU whose APIC
is disabled, or in x2APIC mode, reads zeros there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import msgspec

from ..errors import UsageError
from .lapic import LocalApic
from .lapic_state import LapicState

__all__ = ["LocalApics", "LocalApicsState"]


class LocalApicsState(msgspec.Struct, frozen=True):
    """One state for each vCPU, by number."""

    apics: tuple[LapicState, ...]


class LocalApics:
    """`apics` by the vCPUs' numbers; `current` tells whose access is being answered."""

    widths: frozenset[int] = LocalApic.widths
    #: Bytes of address space that the device takes.
    length: ClassVar[int] = LocalApic.length

    def __init__(self, apics: Sequence[LocalApic], current: Callable[[], int]) -> None:
        self._apics = tuple(apics)
        self._current = current

    @classmethod
    def from_state(
        cls,
        state: LocalApicsState,
        *,
        make: Callable[[int, LapicState], LocalApic],
        current: Callable[[], int],
    ) -> LocalApics:
        """`make(number, state)` restores one. Raises UsageError for a state no chip can be in."""
        if not state.apics:
            raise UsageError("a state with no local APIC", hint="there is one for each vCPU")
        return cls([make(number, apic) for number, apic in enumerate(state.apics)], current)

    def state(self) -> LocalApicsState:
        return LocalApicsState(tuple(apic.state() for apic in self._apics))

    def __getitem__(self, number: int) -> LocalApic:
        return self._apics[number]

    def __len__(self) -> int:
        return len(self._apics)

    def read(self, offset: int, size: int, /) -> int:
        return self._apics[self._current()].read(offset, size)

    def write(self, offset: int, size: int, value: int, /) -> None:
        self._apics[self._current()].write(offset, size, value)

    def msr_read(self, index: int, /) -> int | None:
        """RDMSR of the vCPU at hand; None is #GP(0)."""
        return self._apics[self._current()].msr_read(index)

    def msr_write(self, index: int, value: int, /) -> bool:
        """WRMSR of the vCPU at hand; False is #GP(0)."""
        return self._apics[self._current()].msr_write(index, value)
