"""From what the recorder has kept to the records of a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ..cpu.state import Registers
from .looks import Look
from .records import Code, Event, ExitRecord, Jump
from .rules import LONGEST_TEXT

if TYPE_CHECKING:
    from .recorder import TraceRecorder

__all__ = ["WIDTH", "Mark", "expand"]

#: Items of the flat list that an exit has: when it began and ended, class, vCPU, glance, code, address,
#: size, value.
WIDTH = 9

#: (place in the flat list, what, vCPU, value).
Mark = tuple[int, str, int, Any]

_NAMES = Registers.__struct_fields__
_RIP = _NAMES.index("rip")
_THENS = 8

Item = ExitRecord | Event | Jump | Code


class _Cpu:
    """What is known of a vCPU at its last record."""

    def __init__(self) -> None:
        self.glance = b""
        self.general: tuple[int, ...] = (0,) * len(_NAMES)
        self.system: dict[str, int] = {}
        self.resumed = 0
        self.last = -1  # where its last record is
        self.thens = 0


def expand(
    recorder: TraceRecorder, raw: list[Any], marks: list[Mark], limit: int
) -> tuple[tuple[Item, ...], int, bool]:
    """(records, accesses, whether some were left out behind `limit`)."""
    return _Expansion(recorder).run(raw, marks, limit)


class _Expansion:
    def __init__(self, recorder: TraceRecorder) -> None:
        self._recorder = recorder
        header = recorder._header
        self._cpus = [_Cpu() for _ in range(header.cpus)]
        first = self._cpus[0]
        first.general = tuple(header.start[name] for name in _NAMES)
        first.system = {name: value for name, value in header.start.items() if name not in _NAMES}
        for cpu in self._cpus:
            cpu.resumed = recorder._began
        self._records: list[Item] = []
        self._windows = recorder._codes.take()
        self._shown = 0
        self._steps = recorder._codes.steps
        self._behind = recorder._vcpus[0].glances_behind
        self._names: dict[tuple[str, int], str] = {}
        self._n = 0
        self._snapshots = [0]
        printed = recorder._output
        #: (place, text), the last first.
        self._output = list(zip(printed[::2], printed[1::2], strict=True))[::-1]
        self._look: Look | None = None

    def run(self, raw: list[Any], marks: list[Mark], limit: int) -> tuple[tuple[Item, ...], int, bool]:
        at, end = 0, min(len(raw), limit * WIDTH)
        cut = self._recorder.cut or len(raw) > end
        for place, what, cpu, value in marks:
            if place > end:
                break
            if place == end < len(raw) and what == "look":
                break
            self._exits(raw, at, place)
            at = place
            self._marked(what, cpu, value)
        self._exits(raw, at, end)
        return tuple(self._records), self._n, cut

    # -- accesses

    def _exits(self, raw: list[Any], at: int, end: int) -> None:
        for place in range(at, end, WIDTH):
            self._exit(*raw[place : place + WIDTH])

    def _exit(
        self, began: int, ended: int, cls: Any, cpu: int, glance: bytes, code: int, address: int, size: int,
        value: int,
    ) -> None:  # fmt: skip
        self._n += 1
        known = self._cpus[cpu]
        regs: dict[str, int] = {}
        if glance != known.glance:
            known.glance = glance
            general = self._general(glance)
        else:
            general = known.general
        general = self._at(known, general, glance, cls, code)
        rip = general[_RIP] if code or self._behind or not cls.is_write else None
        if general != known.general:
            regs = {
                name: new for name, new, old in zip(_NAMES, general, known.general, strict=True) if new != old
            }
            known.general = general
        look, self._look = self._look, None
        state: dict[str, object] = {}
        memory: Any = ()
        if look is not None:
            regs |= _changed(known, look.registers)
            state, memory = look.state, look.memory
        output = ""
        if self._output and self._output[-1][0] < self._n * WIDTH:
            output = self._printed()
        if code > self._shown:
            self._show(code)
        key = (cls.space, address)
        device = self._names.get(key)
        if device is None:
            device = self._names[key] = self._recorder._find(cls, address)
        self._records.append(
            ExitRecord(
                self._n, cls.kind, address, size, value, cpu, rip, device,
                max(0, began - known.resumed), ended - began, regs, code, output, "", look is not None,
                state, memory,
            )
        )  # fmt: skip
        known.resumed, known.last, known.thens = ended, len(self._records) - 1, 0

    def _printed(self) -> str:
        """What was printed by the access at hand."""
        text = b""
        while self._output and self._output[-1][0] < self._n * WIDTH:
            text += self._output.pop()[1]
        return text.decode("latin-1")[:LONGEST_TEXT]

    def _general(self, glance: bytes) -> tuple[int, ...]:
        registers = self._recorder._vcpus[0].glanced(glance)
        values: tuple[int, ...] = msgspec.structs.astuple(registers)
        return values

    def _at(
        self, known: _Cpu, general: tuple[int, ...], glance: bytes, cls: Any, code: int
    ) -> tuple[int, ...]:
        """With RIP as an exit shows it: behind the instruction at a write."""
        if not cls.is_write or self._behind or cls.space == "msr":
            return general
        # Of an instruction that is not known it is not known how long it is: RIP is as it was.
        rip = int.from_bytes(glance[128:136], "little") + self._steps[code] if code else known.general[_RIP]
        return (*general[:_RIP], rip, *general[_RIP + 1 :])

    def _show(self, code: int) -> None:
        """The windows up to `code`, before the record that has it: they are in the order of their ids."""
        self._records += self._windows[self._shown : code]
        self._shown = code

    # -- the rest

    def _marked(self, what: str, number: int, value: Any) -> None:
        cpu = self._cpus[number]
        if what == "spent":
            cpu.resumed += value
        elif what == "look":
            self._look = value
        elif what == "then":
            self._then(cpu, value)
        elif what == "event":
            self._event(number, *value)
        elif what == "snapshot":
            ident, label = value
            self._snapshots.append(self._n)
            self._records.append(Jump(self._n, "snapshot", ident, self._n, label[:LONGEST_TEXT]))
        else:
            self._restore(*value)

    def _then(self, cpu: _Cpu, text: str) -> None:
        """What the VMM did behind the vCPU's last record."""
        cpu.thens += 1
        if cpu.last < 0 or cpu.thens > _THENS + 1:
            return
        record: Any = self._records[cpu.last]
        more = text if cpu.thens <= _THENS else "..."
        then = f"{record.then}, {more}" if record.then else more
        self._records[cpu.last] = msgspec.structs.replace(record, then=then)

    def _event(
        self, number: int, kind: str, detail: str, registers: dict[str, int], code: int, look: Look | None,
        began: int, now: int,
    ) -> None:  # fmt: skip
        cpu = self._cpus[number]
        general = tuple(registers[name] for name in _NAMES)
        regs = {n: new for n, new, old in zip(_NAMES, general, cpu.general, strict=True) if new != old}
        system = {name: value for name, value in registers.items() if name not in _NAMES}
        regs |= _changed(cpu, system)
        cpu.general, cpu.glance = general, b""
        if code > self._shown:
            self._show(code)
        self._records.append(
            Event(
                self._n, kind, detail[:LONGEST_TEXT], number, registers["rip"],
                max(0, began - cpu.resumed), 0, regs, code, "", look is not None,
                look.memory if look is not None else (),
            )
        )  # fmt: skip
        cpu.resumed, cpu.last, cpu.thens = now, len(self._records) - 1, 0

    def _restore(self, ident: int, label: str, registers: dict[str, int], began: int) -> None:
        cpu = self._cpus[0]
        general = tuple(registers[name] for name in _NAMES)
        regs = {n: new for n, new, old in zip(_NAMES, general, cpu.general, strict=True) if new != old}
        regs |= _changed(cpu, {name: value for name, value in registers.items() if name not in _NAMES})
        for each in self._cpus:
            each.glance = b""
            each.resumed = max(each.resumed, began)
        cpu.general = general
        self._records.append(
            Jump(self._n, "restore", ident, self._snapshots[ident], label[:LONGEST_TEXT], regs)
        )


def _changed(cpu: _Cpu, system: dict[str, int]) -> dict[str, int]:
    """The system registers that are others than at the vCPU's last look. Those of one that was never
    looked at begin at 0."""
    before, cpu.system = cpu.system, system
    return {name: value for name, value in system.items() if before.get(name, 0) != value}
