"""A budget has a unit: instructions, exits or seconds. Nothing converts one into another."""

from __future__ import annotations

import msgspec

from .errors import UsageError

__all__ = ["Budget", "exits", "insns", "seconds"]


class Budget(msgspec.Struct, frozen=True):
    """At most `amount` of `unit` for one run. Made by `insns`, `exits` and `seconds`."""

    unit: str
    amount: float


def _positive(unit: str, amount: float, whole: bool) -> Budget:
    if isinstance(amount, bool) or not isinstance(amount, int if whole else (int, float)) or not amount > 0:
        raise UsageError(
            f"a budget of {amount!r} {unit}",
            hint=f"give a {'whole number' if whole else 'number'} greater than 0",
        )
    return Budget(unit, amount)


def insns(amount: int) -> Budget:
    """Stop after exactly `amount` instructions (an iteration of a REP counts as one).

    NotSupported is raised by the run where the backend cannot count them (KVM)."""
    return _positive("insns", amount, True)


def exits(amount: int) -> Budget:
    """Stop after the instruction that makes the `amount`-th access exit."""
    return _positive("exits", amount, True)


def seconds(amount: float) -> Budget:
    """Stop after `amount` seconds of host time, at the next instruction boundary."""
    return _positive("seconds", amount, False)
