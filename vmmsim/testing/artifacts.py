"""What is kept of a test that failed: traces and snapshots, as files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import VmmsimError

if TYPE_CHECKING:
    from ..exits import Access, Exit
    from ..machine import Machine

__all__ = ["MachineRecord", "keep_side"]

#: Exits of a machine that are recorded: a trace of so many is some 100 MB.
_MOST = 1_000_000


class MachineRecord:
    """A machine whose first million exits are written to `path` as JSON Lines."""

    def __init__(self, machine: Machine, path: Path, guest: str) -> None:
        from ..trace import Header, TraceWriter

        self.machine = machine
        self.path = path
        self._file = open(path, "wb")  # noqa: SIM115 - closed by `end`
        backend = machine.backend
        self._writer = TraceWriter(
            self._file, Header(guest=guest, backend=backend.name, provenance=backend.provenance)
        )
        self._forget = machine.observe(self._record)

    def _record(self, cls: type[Access], address: int, size: int, value: int) -> None:
        self._writer(cls, address, size, value)
        if self._writer.count == _MOST:
            self._forget()

    def keep(self, end: Exit | None = None) -> list[Path]:
        """Write what is left of the trace, and a snapshot beside it, if the machine has one.
        The files that there are now."""
        kept = [self.path]
        exit = end if end is not None else self.machine.last_exit
        with contextlib.suppress(VmmsimError):
            rip = self.machine.vcpu.registers().rip
            self._writer.end(exit, detail=exit.describe() if exit else "", rip=rip)
            self._file.flush()
        # No snapshot: a device cannot be restored, or an access is half done.
        with contextlib.suppress(VmmsimError):
            from ..snapshot.container import save

            target = self.path.with_suffix(".vsnap")
            save(self.machine.snapshot(comment=f"where {self.path.stem} ended"), target)
            kept.append(target)
        return kept

    def close(self, *, kept: bool) -> None:
        """Close the machine; the trace goes, unless it is to be kept."""
        self.machine.close()
        self._file.close()
        if not kept:
            self.path.unlink(missing_ok=True)


def keep_side(machine: Machine, path: Path, guest: str, exits: int) -> list[Path]:
    """Run a machine once more, to its exit number `exits`, and keep its trace and a snapshot."""
    from ..budget import exits as exit_budget
    from ..budget import seconds
    from .slow import time_limit

    record = MachineRecord(machine, path, guest)
    try:
        end: Exit | None = None
        with contextlib.suppress(VmmsimError):
            end = machine.run(budget=(exit_budget(exits), seconds(time_limit(30))))
        return record.keep(end)
    finally:
        record.close(kept=True)
