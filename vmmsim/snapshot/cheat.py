"""The talk's cheat: whenever the guest has lost, time goes back to before its game.

The host's side does not go back: what the player typed is not typed again, and what was printed
stays on the screen. So the player knows more each time, and the guest never knows that it lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .triggers import OutputWatch, pattern

if TYPE_CHECKING:
    from ..machine import Machine
    from .values import Snapshot

__all__ = ["TimeMachine"]


class TimeMachine:
    """Watches the output of a machine while it runs.

    At each match of the regular expression `begin` a snapshot is taken, which replaces the last; at
    each match of `lost` the machine goes back to it. `on_back` is told how many times by now.
    Raises UsageError for what is no regular expression.
    """

    def __init__(
        self, machine: Machine, *, begin: str, lost: str, on_back: Callable[[int], None] = lambda times: None
    ) -> None:
        self.snapshot: Snapshot | None = None
        self.times = 0
        self._machine = machine
        self._on_back = on_back
        patterns = {"begin": pattern(begin), "lost": pattern(lost)}
        self._acts = {"begin": self._remember, "lost": self._back}
        watch = OutputWatch(machine, patterns, lambda name: machine.between(self._acts[name]))
        self.close = machine.observe(watch)

    def _remember(self) -> None:
        self.snapshot = self._machine.snapshot(comment="before the game")

    def _back(self) -> None:
        if self.snapshot is not None:
            self._machine.restore(self.snapshot, rewind=False)
            self.times += 1
            self._on_back(self.times)
