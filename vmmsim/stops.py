"""Observers that end a run at an access: `until=` and the budget of exits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .exits import Access, BudgetSpent, Exit

if TYPE_CHECKING:
    from .budget import Budget
    from .dispatch import Observer

__all__ = ["Until", "budget_observer", "made", "until_observer"]

#: What ends a run early: exit classes, or a predicate over exits.
Until = type[Exit] | tuple[type[Exit], ...] | Callable[[Exit], bool]


def until_observer(request_stop: Callable[[Exit], None], until: Until) -> Observer:
    """Asks for a stop at the first access that `until` wants, with that access as the exit."""

    def observe(cls: type[Access], address: int, size: int, value: int) -> None:
        if isinstance(until, (type, tuple)):
            hit = issubclass(cls, until)
        else:
            hit = until(made(cls, address, size, value))
        if hit:
            request_stop(made(cls, address, size, value))

    return observe


def made(cls: type[Access], address: int, size: int, value: int) -> Access:
    """The exit of an observer's call, answered."""
    if cls.is_write:
        exit = cls(address, size, value)  # type: ignore[call-arg]
        exit.reply()  # type: ignore[attr-defined]
    else:
        exit = cls(address, size)
        exit.reply(value)  # type: ignore[attr-defined]
    return exit


def budget_observer(request_stop: Callable[[Exit], None], budget: Budget) -> Observer:
    """Asks for a stop at the access that spends a budget of exits."""
    left = int(budget.amount)

    def observe(cls: type[Access], address: int, size: int, value: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            request_stop(BudgetSpent(budget.unit, budget.amount))

    return observe
