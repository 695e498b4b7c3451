"""A trace as columns, which pack well and which a browser reads quickly.

A *row* is whatever the list shows: an access, an event, a jump, the end. Each field is a list with one
number a row. Texts and values of up to 64 bits, which JavaScript's numbers cannot hold, are numbers of
entries in tables. Registers are changes: a row's are those from `regs.at[row]` to `regs.at[row + 1]`.
"""

from __future__ import annotations

from typing import Any

from ..trace.records import Code, DeviceInfo, Event, ExitRecord, Header, Jump, MemoryChange, Trace
from .decode import register_name, state_lines
from .text import clean

__all__ = ["ROW_TYPES", "run_data"]

#: What a row's `type` counts.
ROW_TYPES = ("access", "event", "snapshot", "restore", "end")
_ACCESS, _EVENT, _SNAPSHOT, _RESTORE, _END = range(len(ROW_TYPES))
_COLUMNS = (
    "type", "kind", "n", "address", "size", "value", "cpu", "rip", "device", "register", "guest", "vmm",
    "code", "output", "then", "text", "target", "look",
)  # fmt: skip


class _Table(dict[Any, int]):
    """Entries by their number, in the order in which they were first asked for."""

    def __missing__(self, key: Any) -> int:
        self[key] = number = len(self)
        return number


def run_data(trace: Trace) -> dict[str, Any]:
    """The whole trace, without what msgspec's JSON encoder could not write."""
    return _Packer(trace).data()


class _Packer:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.strings = _Table({"": 0})
        self.values = _Table()
        self.names = _Table()
        self.columns: dict[str, list[int]] = {name: [] for name in _COLUMNS}
        self.regs: dict[str, list[int]] = {"at": [0], "name": [], "value": []}
        # A row's `look` is 0 without one, else an entry here and one more. Most looks see nothing new.
        self.looks: list[list[Any]] = [[[], []]]
        self.codes: list[list[Any]] = []
        self._code_of: dict[int, int] = {0: 0}
        self._snapshots: dict[int, int] = {}
        # A device can answer in several spaces, at an address of its own in each.
        self._devices = {f"{device.space} {device.name}": device for device in trace.header.devices}
        self._appends = [self.columns[name].append for name in _COLUMNS]

    def data(self) -> dict[str, Any]:
        for record in self.trace.records:
            if isinstance(record, ExitRecord):
                self._exit(record)
            elif isinstance(record, Code):
                self._code(record)
            elif isinstance(record, Event):
                self._event(record)
            else:
                self._jump(record)
        end = self.trace.end
        if end is not None:
            rip = -1 if end.rip is None else self.values[end.rip]
            said = end.kind if end.detail in ("", end.kind) else f"{end.kind}: {end.detail}"
            self._row(_END, kind=self.strings["end"], n=end.n, rip=rip, text=self.strings[said])
        return {
            "header": _header(self.trace.header),
            "start": [[name, f"{value:x}"] for name, value in self.trace.header.start.items()],
            "end": None if end is None else {"cut": end.cut, "kind": clean(end.kind)},
            "strings": [clean(text) for text in self.strings],
            "values": [f"{value:x}" for value in self.values],
            "names": list(self.names),
            "rows": self.columns,
            "regs": self.regs,
            "codes": self.codes,
            "looks": self.looks,
        }

    def _row(self, type: int, **fields: int) -> None:
        row = {"rip": -1, "target": -1, "value": -1, "type": type, **fields}
        for name, append in zip(_COLUMNS, self._appends, strict=True):
            append(row.get(name, 0))
        self.regs["at"].append(len(self.regs["name"]))

    def _registers(self, regs: dict[str, int]) -> None:
        names, values = self.names, self.values
        for name, value in regs.items():
            self.regs["name"].append(names[name])
            self.regs["value"].append(values[value])

    def _exit(self, e: ExitRecord) -> None:
        strings = self.strings
        if e.regs:
            self._registers(e.regs)
        device = self._devices.get(f"{e.kind.partition('_')[0]} {e.device}")
        name = register_name(device, e.address, e.kind) if device is not None else ""
        look = self._look(device, e.state, e.memory) if e.looked else 0
        row = (
            _ACCESS, strings[e.kind], e.n, e.address, e.size, self.values[e.value], e.cpu,
            -1 if e.rip is None else self.values[e.rip], strings[e.device], strings[name], e.guest_ns,
            e.vmm_ns, self._code_of.get(e.code, 0), strings[e.output], strings[e.then], 0, -1, look,
        )  # fmt: skip
        for append, value in zip(self._appends, row, strict=True):
            append(value)
        self.regs["at"].append(len(self.regs["name"]))

    def _event(self, e: Event) -> None:
        self._registers(e.regs)
        look = self._look(None, {}, e.memory) if e.looked else 0
        strings = self.strings
        self._row(
            _EVENT, kind=strings[e.kind], n=e.n, cpu=e.cpu, rip=-1 if e.rip is None else self.values[e.rip],
            guest=e.guest_ns, vmm=e.vmm_ns, code=self._code_of.get(e.code, 0), then=strings[e.then],
            text=strings[e.detail], look=look,
        )  # fmt: skip

    def _jump(self, jump: Jump) -> None:
        self._registers(jump.regs)
        rows = self.columns
        here = len(rows["type"])
        fields = {"kind": self.strings[jump.what], "n": jump.n, "size": jump.snapshot}
        if jump.what == "snapshot":
            self._snapshots[jump.snapshot] = here
            self._row(_SNAPSHOT, text=self.strings[jump.label], target=here, **fields)
            return
        target = self._snapshots.get(jump.snapshot)
        if target is None:  # it was taken before the trace began: the last row that it still had done
            target = next((at for at in range(here - 1, -1, -1) if rows["n"][at] <= jump.to), -1)
        self._row(_RESTORE, text=self.strings[jump.label], target=target, address=jump.to, **fields)

    def _code(self, code: Code) -> None:
        self._code_of[code.id] = len(self.codes) + 1
        self.codes.append(
            [f"{code.here:x}", [[f"{line.linear:x}", line.code, clean(line.text)] for line in code.lines]]
        )

    def _look(
        self, device: DeviceInfo | None, state: dict[str, object], memory: tuple[MemoryChange, ...]
    ) -> int:
        if not state and not memory:
            return 1
        fields = [[clean(name), state_lines(device, name, value)] for name, value in state.items()]
        changes = [[f"{change.gpa:x}", change.size, change.old, change.new] for change in memory]
        self.looks.append([fields, changes])
        return len(self.looks)


def _header(header: Header) -> dict[str, Any]:
    return {
        "guest": clean(header.guest),
        "backend": clean(header.backend),
        "provenance": clean(header.provenance),
        "vmmsim": clean(header.vmmsim),
        "machine": clean(header.machine),
        "clock": clean(header.clock),
        "cpus": header.cpus,
        "detailed": header.detailed,
        "devices": [
            [clean(device.name), device.space, f"{device.start:x}", device.size, clean(device.chip)]
            for device in header.devices
        ],
        "regions": [
            [f"{region.gpa:x}", region.size, clean(region.name), region.readonly] for region in header.regions
        ],
    }
