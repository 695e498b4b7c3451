"""Register scripts recorded from QEMU's PC devices, replayed against the devices of a pc machine.

A file is a JSON object: the name of a script -> its steps, ["outb", port, value], ["inb", port, value read]
(b, w, l for 1, 2, 4 bytes), ["clock_step", ns, 0]. Each script starts from power-on. QEMU is one reference,
the data sheets are the law: `DATA_SHEET` has where they disagree. Counts of the PIT were recorded in real
time, which is not in the file: they are compared within what that time can have been.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from ..machine import Machine
from .vectors import VectorError

__all__ = ["DATA_SHEET", "Read", "ScriptResult", "Step", "is_script_file", "read_scripts", "run_script"]

_SIZES = {"b": 1, "w": 2, "l": 4}
Verb = Literal["outb", "outw", "outl", "inb", "inw", "inl", "clock_step"]
Step = tuple[Verb, int, int]
_MOST = 1 << 24
#: What one recorded access took, in ns, and how far that may be off, in ticks of the PIT.
_ACCESS_NS, _TOLERANCE = 45_000, 600

#: (script, step) -> (what the chip answers, why): where the data sheet says something else than QEMU.
DATA_SHEET: dict[tuple[str, int], tuple[int, str]] = {
    ("uart_reset", 3): (0x00, "MCR is all zero behind a reset (PC16550D, table III); QEMU has OUT2 on"),
    ("uart_loopback", 8): (0x0F, "MSR's deltas work in loopback (PC16550D, 8.6.4); QEMU sets none"),
    ("uart_loopback", 10): (0x11, "DCTS, as above"),
    ("uart_loopback", 12): (0xC9, "DCTS and DDCD, as above; RI rises, which is not TERI's edge"),
    ("kbc", 0): (0x1C, "the machine begins as firmware leaves it: with the system flag set"),
    ("kbc", 19): (0x15, "a write to port 60h clears the command/data bit (IBM PC/AT); QEMU's is always 1"),
    ("fwcfg", 19): (-1, "how many files there are is the machine's own"),
    ("fwcfg", 23): (-1, "the first file is the machine's own"),
    ("port_unmapped", 3): (-1, "port 80h: ours reads back the last POST code, of which there is none yet"),
    ("port_unmapped", 4): (-1, "port E9h: Bochs' debug console answers E9h, which QEMU has on demand"),
    ("port_unmapped", 6): (
        -1,
        "OUT2 is not defined before a mode is set (8254), and bit 4 is a matter of time",
    ),
}
#: Bits of the PIT's status that are QEMU's own (see tests/test_devices_i8254.py).
_PIT_STATUS = {"pit_mode1": 0xC0, "pit_mode2": 0x80, "pit_mode3": 0x80, "pit_readback": 0x80}
#: The counts that can be, where the time allows few; mode 1 counts in QEMU before its trigger.
_PIT_COUNTS = {"pit_mode1": range(1 << 16), "pit_mode2": range(1, 17), "pit_mode3": range(2, 17, 2)}


class Read(msgspec.Struct, frozen=True):
    """A read that answered otherwise. `why` explains it, or is "": a finding."""

    script: str
    step: int
    port: int
    recorded: int
    ours: int
    why: str

    def __str__(self) -> str:
        text = f"{self.script} step {self.step}: port {self.port:#x} gave {self.recorded:#x}"
        text += f", ours {self.ours:#x}"
        return f"{text}: {self.why}" if self.why else text


class ScriptResult(msgspec.Struct, frozen=True):
    """`reads` were compared, of which those in `differ` differed."""

    script: str
    reads: int
    differ: tuple[Read, ...]

    @property
    def findings(self) -> tuple[Read, ...]:
        return tuple(read for read in self.differ if not read.why)


def is_script_file(path: str | Path) -> bool:
    """Whether it is named as one: `*.json`."""
    return Path(path).suffix == ".json" and Path(path).is_file()


def read_scripts(path: str | Path) -> dict[str, list[Step]]:
    """The scripts of a file. Raises VectorError."""
    try:
        data = Path(path).read_bytes()
        if len(data) > _MOST:
            raise VectorError(
                f"'{path}' has {len(data)} bytes", hint=f"a file of scripts has at most {_MOST}"
            )
        scripts = msgspec.json.decode(data, type=dict[str, list[Step]])
    except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
        if isinstance(error, OSError):
            raise VectorError(f"'{path}' cannot be read: {error.strerror}", hint="check the path") from error
        raise VectorError(f"'{path}' has no register scripts: {error}", hint="see docs/vectors.md") from error
    for name, steps in scripts.items():
        for number, (verb, where, value) in enumerate(steps):
            if verb == "clock_step":
                fine = 0 <= where < 1 << 62
            else:
                fine = 0 <= where <= 0x10000 - _SIZES[verb[-1]] and 0 <= value < 1 << 8 * _SIZES[verb[-1]]
            if not fine:
                raise VectorError(
                    f"'{path}', script {name[:40]!r}, step {number}: {verb} {where} {value} cannot be",
                    hint="see docs/vectors.md",
                )
    return scripts


def run_script(name: str, steps: list[Step], *, backend: str = "auto") -> ScriptResult:
    """Replay a script against the devices of a new pc machine, through its ports."""
    with Machine(backend=backend, model="pc", clock="exits", memory=16 << 20) as machine:
        return _Player(machine, name).play(steps)


class _Player:
    def __init__(self, machine: Machine, name: str) -> None:
        self._machine = machine
        self._name = name
        self._pit = name.startswith("pit_")
        self._status = False
        #: The first byte of a count of the PIT: (recorded, ours).
        self._low: tuple[int, int] | None = None
        self._reads = 0
        self._differ: list[Read] = []
        if name.startswith("rtc"):
            self._set_date()

    def play(self, steps: list[Step]) -> ScriptResult:
        for number, (verb, where, value) in enumerate(steps):
            if verb == "clock_step":
                self._pass(where)
                continue
            if self._pit:
                self._pass(_ACCESS_NS)
            size = _SIZES[verb[-1]]
            if verb.startswith("out"):
                self._machine.ports.write(where, size, value)
                self._status |= where == 0x43 and value >> 6 == 3 and not value & 0x10
            else:
                self._read(number, where, size, value)
        return ScriptResult(self._name, self._reads, tuple(self._differ))

    def _pass(self, ns: int) -> None:
        clock = self._machine.clock
        end = clock.now() + ns
        while clock.deadline is not None and clock.deadline <= end:
            clock.skip_to(max(clock.deadline, clock.now()))  # type: ignore[attr-defined]
            clock.run_due()
        clock.skip_to(end)  # type: ignore[attr-defined]

    def _set_date(self) -> None:
        """29 February 2020, 12:34:56, as `-rtc base=` had it where the script was recorded."""
        for index, value in (
            (0, 0x56),
            (2, 0x34),
            (4, 0x12),
            (6, 7),
            (7, 0x29),
            (8, 2),
            (9, 0x20),
            (0x32, 0x20),
        ):
            self._machine.ports.write(0x70, 1, index)
            self._machine.ports.write(0x71, 1, value)

    def _read(self, number: int, port: int, size: int, recorded: int) -> None:
        ours = self._machine.ports.read(port, size)
        self._reads += 1
        law = DATA_SHEET.get((self._name, number))
        mask, why = -1, ""
        if law is not None and ours == recorded:
            return
        if law is not None and law[0] in (-1, ours):
            why = law[1]
        elif self._pit and port == 0x61:
            mask, why = ~0x10, "bit 4 toggles with the refresh: a matter of time"
        elif self._pit and self._status:
            self._status = False
            mask, why = ~_PIT_STATUS.get(self._name, 0), "OUT and NULL as the 8254's data sheet has them"
        elif self._pit:
            self._count(number, port, recorded, ours)
            return
        if ours != recorded:
            explained = mask != -1 and not (ours ^ recorded) & mask
            explained |= law is not None and bool(why)
            self._differ.append(Read(self._name, number, port, recorded, ours, why if explained else ""))

    def _count(self, number: int, port: int, recorded: int, ours: int) -> None:
        if self._low is None:
            self._low = recorded, ours
            return
        theirs, mine = recorded << 8 | self._low[0], ours << 8 | self._low[1]
        self._low = None
        if mine != theirs:
            possible = _PIT_COUNTS.get(self._name)
            close = abs(mine - theirs) <= _TOLERANCE if possible is None else mine in possible
            why = "a count, recorded in real time" if close else ""
            self._differ.append(Read(self._name, number, port, theirs, mine, why))
