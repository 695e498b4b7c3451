"""The options of `vmmsim run` for gdb."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from ..errors import DeviceError, UsageError
from ..exits import Exit
from .output import say

if TYPE_CHECKING:
    from ..budget import Budget
    from ..debug.server import GdbServer
    from ..machine import Machine
    from .common import Choices, Target

__all__ = ["Debugging"]


class Debugging(msgspec.Struct, frozen=True):
    """What the user wants: `address` None is the default one."""

    address: str | None
    freeze: bool
    reverse: bool
    remote: bool

    @classmethod
    def of(
        cls,
        default: bool,
        address: str | None,
        freeze: bool,
        reverse: bool,
        remote: bool,
        limits: tuple[Budget, ...],
    ) -> Debugging | None:
        """None when gdb is not wanted. Raises UsageError for options that do not go together."""
        if not default and address is None:
            for option, given in (("-S", freeze), ("--reverse", reverse), ("--gdb-remote", remote)):
                if given:
                    raise UsageError(f"{option} without a debugger", hint="say where with -s, or --gdb ADDR")
            return None
        if default and address is not None:
            raise UsageError("-s and --gdb both say where gdb comes", hint="leave one away")
        if limits:
            raise UsageError(
                "a limit on the run, with a debugger that stops it",
                hint="leave --timeout, --max-insns and --max-exits away",
            )
        return cls(address, freeze, reverse, remote)

    def settle(self, choices: Choices, target: Target) -> None:
        """With `reverse` the guest is to run the same way each time: counted time, if the user and
        the guest have not said which."""
        if self.reverse:
            from .common import count_time

            count_time(choices, target)

    def open(self, quiet: bool) -> GdbServer:
        """Raises UsageError for an address that cannot be had."""
        from ..debug.listen import DEFAULT_ADDRESS
        from ..debug.server import GdbServer

        server = GdbServer(self.address or DEFAULT_ADDRESS, remote=self.remote)
        if not quiet:
            kind, _, where = server.address.partition(":")
            say(f"gdb: target remote {where.removeprefix('127.0.0.1') if kind == 'tcp' else where}")
        return server

    def serve(self, server: GdbServer, machine: Machine, asked: Callable[[], bool]) -> Exit | DeviceError:
        """Run the machine to its end under the debugger."""
        from ..debug.reverse import reverse_for

        return server.serve(
            machine, wait=self.freeze, reverse=reverse_for if self.reverse else None, asked=asked
        )
