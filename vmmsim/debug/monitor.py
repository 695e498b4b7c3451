"""The words behind gdb's `monitor`: what gdb itself has no command for."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..cpu.paging import linear_to_gpa
from ..disasm import CodeReader
from ..errors import UsageError, VmmsimError

if TYPE_CHECKING:
    from ..machine import Machine
    from .control import Controller

__all__ = ["monitor"]

_DUMP_MAX = 4096

_HELP = """\
monitor gpa ADDRESS [SIZE]        memory by guest-physical address
monitor translate ADDRESS         the guest-physical address of a linear one
monitor disas [ADDRESS [COUNT]]   code, decoded in the mode that the CPU is in
monitor cpu                       every register, the mode, the hidden parts of segments
monitor devices                   the devices, where they are, and their state
monitor counts                    exits so far, by kind
monitor error                     why the last request was refused
monitor snapshot FILE             keep the machine as it is in a new file, where vmmsim runs
"""


def monitor(line: str, machine: Machine, control: Controller, cpu: int) -> str:
    """Do what `line` says; the text for gdb's console, which says what is wrong with it."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        return f"{error}\n"
    if not words:
        return _HELP
    action = _ACTIONS.get(words[0])
    if action is None:
        return f"there is no '{words[0]}'\n{_HELP}"
    try:
        return action(words[1:], machine, control, cpu)
    except VmmsimError as error:
        return f"{error}\n"
    except (ValueError, IndexError, TypeError):
        return _HELP


def _gpa(words: list[str], machine: Machine, control: Controller, cpu: int) -> str:
    at, size = int(words[0], 0), int(words[1], 0) if len(words) > 1 else 64
    if not 0 <= size <= _DUMP_MAX:
        raise UsageError(f"{size} bytes", hint=f"at most {_DUMP_MAX}")
    data = machine.memory.read(at, size)
    lines = []
    for line in range(0, size, 16):
        row = data[line : line + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{at + line:012x}  {row.hex(' '):47}  {text}\n")
    return "".join(lines)


def _translate(words: list[str], machine: Machine, control: Controller, cpu: int) -> str:
    linear = int(words[0], 0)
    gpa = linear_to_gpa(control.state(cpu), linear, machine.memory.read)
    if gpa is None:
        return f"{linear:#x} is not mapped\n"
    region = machine.memory.region_at(gpa)
    return f"{linear:#x} is guest-physical {gpa:#x}, {region if region is not None else 'a hole'}\n"


def _disas(words: list[str], machine: Machine, control: Controller, cpu: int) -> str:
    state = control.state(cpu)
    at = int(words[0], 0) if words else state.linear_rip
    count = int(words[1], 0) if len(words) > 1 else 8
    if not 0 < count <= 256:
        raise UsageError(f"{count} instructions", hint="at most 256")
    insns = CodeReader(machine.memory).decode(state, at, size=15 * count, count=count)
    if not insns:
        return f"there is no code to decode at {at:#x} (is capstone installed?)\n"
    marks = {state.linear_rip: "=>"}
    return "".join(
        f"{marks.get(insn.address, '  ')} {insn.address:#010x}  {insn.code.hex(' '):<30} {insn.text}\n"
        for insn in insns
    )


def _cpu(words: list[str], machine: Machine, control: Controller, cpu: int) -> str:
    return f"vCPU {cpu}, {machine.processors.items[cpu].status}\n{control.state(cpu)}\n"


def _devices(words: list[str], machine: Machine, control: Controller, cpu: int) -> str:
    states = machine.device_states()
    return "".join(f"{name}: {state}\n" for name, state in states.items()) or "there are none\n"


def _counts(words: list[str], machine: Machine, control: Controller, cpu: int) -> str:
    return "".join(f"{kind} {count}\n" for kind, count in machine.counts().items()) or "none\n"


def _snapshot(words: list[str], machine: Machine, control: Controller, cpu: int) -> str:
    from pathlib import Path

    from ..snapshot.container import save

    path = Path(words[0])
    if path.name != words[0] or path.exists():
        # Who can reach the port is not for that allowed to write wherever the user may.
        raise UsageError(f"'{path}' cannot be written", hint="name a new file, without a directory")
    save(machine.snapshot(comment="monitor snapshot"), path)
    return f"snapshot {path}\n"


_Action = Callable[[list[str], "Machine", "Controller", int], str]
_ACTIONS: dict[str, _Action] = {
    "gpa": _gpa,
    "translate": _translate,
    "disas": _disas,
    "cpu": _cpu,
    "devices": _devices,
    "counts": _counts,
    "snapshot": _snapshot,
    "help": lambda *_: _HELP,
}
