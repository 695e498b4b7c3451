"""The options of `vmmsim run` for gdb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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
    #: auto: i386 for a 32-bit ELF file, which a gdb that has loaded it demands.
    arch: str = "auto"

    @classmethod
    def of(
        cls,
        default: bool,
        address: str | None,
        freeze: bool,
        reverse: bool,
        remote: bool,
        arch: str,
        limits: tuple[Budget, ...],
    ) -> Debugging | None:
        """None when gdb is not wanted. Raises UsageError for options that do not go together."""
        if not default and address is None:
            for option, given in (
                ("-S", freeze),
                ("--reverse", reverse),
                ("--gdb-remote", remote),
                ("--gdb-arch", arch != "auto"),
            ):
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
        return cls(address, freeze, reverse, remote, arch)

    def settle(self, choices: Choices, target: Target) -> None:
        """With `reverse` the guest is to run the same way each time: counted time, if the user and
        the guest have not said which."""
        if self.reverse:
            from .common import count_time

            count_time(choices, target)

    def _arch(self, target: Target) -> str:
        if self.arch != "auto":
            return self.arch
        return "i386" if target.image is not None and _is_elf32(target.image.path) else "x86-64"

    def open(self, target: Target, quiet: bool) -> GdbServer:
        """Raises UsageError for an address that cannot be had."""
        from ..debug.listen import DEFAULT_ADDRESS
        from ..debug.server import GdbServer

        server = GdbServer(self.address or DEFAULT_ADDRESS, remote=self.remote)
        if not quiet:
            kind, _, where = server.address.partition(":")
            say(f"gdb: target remote {where.removeprefix('127.0.0.1') if kind == 'tcp' else where}")
            if self._arch(target) == "i386":
                say("gdb: the CPU is described as i386, for a 32-bit ELF file (else: --gdb-arch x86-64)")
        return server

    def serve(
        self, server: GdbServer, machine: Machine, target: Target, asked: Callable[[], bool]
    ) -> Exit | DeviceError:
        """Run the machine to its end under the debugger."""
        from ..debug.reverse import reverse_for
        from ..debug.target import ARCHITECTURES

        return server.serve(
            machine,
            wait=self.freeze,
            reverse=reverse_for if self.reverse else None,
            asked=asked,
            registers=ARCHITECTURES[self._arch(target)],
        )


def _is_elf32(path: Path | None) -> bool:
    """Whether gdb will take the file for one of i386: an ELF of class 1 (ELFCLASS32)."""
    if path is None:
        return False
    try:
        with open(path, "rb") as file:
            return file.read(5) == b"\x7fELF\x01"
    except OSError:
        return False
