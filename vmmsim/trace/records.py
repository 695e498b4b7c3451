"""What a trace is made of: its records, in the order of the run.

A trace can be plain, its accesses only, or *detailed*: with registers, code, times, device states,
memory and jumps through time. What was not recorded is absent, never a guess. The same values are
read from a file (`vmmsim.trace.jsonl`) and taken from a run, and every viewer is made from them.

All addresses are numbers: `gpa` guest-physical, `rip` an offset in the code segment, `linear` a
linear address. Times are nanoseconds of the host's monotonic clock. `n` counts accesses from 1.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .. import __version__
from ..cpu.state import GPR_NAMES, SEGMENT_NAMES
from ..exits import Access, MmioRead, MmioWrite, MsrRead, MsrWrite, PortRead, PortWrite

__all__ = [
    "ACCESS_KINDS",
    "FORMAT",
    "REGISTERS",
    "Code",
    "CodeLine",
    "DeviceInfo",
    "End",
    "Event",
    "ExitRecord",
    "Header",
    "Jump",
    "MemoryChange",
    "Record",
    "RegionInfo",
    "Trace",
    "plain",
]

#: The version of the format: raised when a reader of the old one would misread a new trace.
#: Format 1 had accesses only; a reader of format 2 reads it.
FORMAT = 2

#: The registers that a record can have, by name: general registers, RIP and RFLAGS; the selectors and the
#: bases of the segment registers; LDTR, TR, GDTR and IDTR (where they are); control registers.
REGISTERS: tuple[str, ...] = (
    *GPR_NAMES, "rip", "rflags",
    *SEGMENT_NAMES, *(f"{name}_base" for name in SEGMENT_NAMES),
    "ldt", "ldt_base", "tr", "tr_base", "gdt_base", "idt_base",
    "cr0", "cr2", "cr3", "cr4", "cr8", "efer",
)  # fmt: skip

#: The class of exit that a record is of, by its kind.
ACCESS_KINDS: dict[str, type[Access]] = {
    cls.kind: cls for cls in (PortRead, PortWrite, MmioRead, MmioWrite, MsrRead, MsrWrite)
}


class DeviceInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A device's place: `size` addresses from `start` in the space `port`, `mmio` or `msr`."""

    name: str
    space: Literal["port", "mmio", "msr"]
    start: int
    size: int
    chip: str = ""


class RegionInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Guest-physical memory: `size` bytes at `gpa`."""

    gpa: int
    size: int
    name: str = "RAM"
    readonly: bool = False


class Header(
    msgspec.Struct, tag="header", frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The first record: what was run, and on what. `start` are the registers of vCPU 0 before its first
    instruction (names of `REGISTERS`); those of the others begin at 0. A trace that is not `detailed` has
    accesses only, without any of their details."""

    # Made by functions, so that they are written always: a reader needs them before all else.
    format: int = msgspec.field(default_factory=lambda: FORMAT)
    vmmsim: str = msgspec.field(default_factory=lambda: __version__)
    guest: str
    backend: str
    provenance: str
    detailed: bool = False
    machine: str = ""
    cpus: int = 1
    clock: str = ""
    devices: tuple[DeviceInfo, ...] = ()
    regions: tuple[RegionInfo, ...] = ()
    start: dict[str, int] = {}


class CodeLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """An instruction: its linear address, its bytes in hex, its text."""

    linear: int
    code: str
    text: str


class Code(msgspec.Struct, tag="code", frozen=True, forbid_unknown_fields=True):
    """The code around an exit, before the first exit that is there. `id` counts from 1; the exit's own
    instruction is that at `here`."""

    id: int
    here: int
    lines: tuple[CodeLine, ...]


class MemoryChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Bytes at `gpa` that are not what they were at the last look, in hex. A long change is cut:
    `size` is its true length in bytes."""

    gpa: int
    size: int
    old: str
    new: str


class ExitRecord(msgspec.Struct, tag="exit", frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The `n`-th access. `size` in bytes; `value` is what was written or answered.

    In a detailed trace also: `cpu` the vCPU's number; `rip` where it stands (at a read the instruction
    that waits for its answer, at a write the next one); `device` who answered, "" for nobody; `guest_ns`
    the time that the guest ran before, `vmm_ns` what the VMM took to answer; `regs` the registers that are
    not what they were at this vCPU's last record; `code` the id of a `Code`; `output` what the guest
    printed by it; `then` what the VMM did next if it was not just to resume (`interrupt 0x20`).

    A *look* is taken at some exits, in a short run at all: `looked` is then true, `state` has the fields of
    the answering device that are not what they were (as plain values), and `memory` what changed in RAM
    since the last look.
    """

    n: int
    kind: Literal["port_read", "port_write", "mmio_read", "mmio_write", "msr_read", "msr_write"]
    address: int
    size: int
    value: int
    cpu: int = 0
    rip: int | None = None
    device: str = ""
    guest_ns: int = 0
    vmm_ns: int = 0
    regs: dict[str, int] = {}
    code: int = 0
    output: str = ""
    then: str = ""
    looked: bool = False
    state: dict[str, object] = {}
    memory: tuple[MemoryChange, ...] = ()

    @property
    def exit_class(self) -> type[Access]:
        return ACCESS_KINDS[self.kind]


class Event(msgspec.Struct, tag="event", frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An exit that is no access, behind access number `n`: `kind` is an exit's (`halt`, `shutdown`,
    `refused` ...). The other fields are as in ExitRecord."""

    n: int
    kind: str
    detail: str = ""
    cpu: int = 0
    rip: int | None = None
    guest_ns: int = 0
    vmm_ns: int = 0
    regs: dict[str, int] = {}
    code: int = 0
    then: str = ""
    looked: bool = False
    memory: tuple[MemoryChange, ...] = ()


class Jump(msgspec.Struct, tag="jump", frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Behind access number `n` a snapshot was taken, or the machine went back to one. `snapshot` counts
    snapshots from 1, and `to` is the access behind which that snapshot was taken; both are 0 at a restore of
    one that was taken before the trace began. `regs` are, at a restore, the registers of vCPU 0 that differ
    from those of its last record. `n` goes on counting: what is done again is recorded again."""

    n: int
    what: Literal["snapshot", "restore"]
    snapshot: int
    to: int
    label: str = ""
    regs: dict[str, int] = {}


class End(msgspec.Struct, tag="end", frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The last record. `n` is the number of accesses, `kind` that of the exit that ended the
    run, or `error`; `detail` is for people, `rip` where the vCPU stood. `cut`: the limit of the trace was
    reached, and the run went on behind it."""

    n: int
    kind: str
    detail: str = ""
    rip: int | None = None
    cut: bool = False


Record = Header | ExitRecord | Event | Jump | Code | End


class Trace(msgspec.Struct, frozen=True):
    """A whole trace. `records` are in the order of the run, without header and end; `end` is None when the
    run was cut short."""

    header: Header
    records: tuple[ExitRecord | Event | Jump | Code, ...]
    end: End | None = None

    @property
    def exits(self) -> tuple[ExitRecord, ...]:
        return tuple(record for record in self.records if isinstance(record, ExitRecord))


def plain(record: ExitRecord) -> ExitRecord:
    """The access alone, without any of its details."""
    return ExitRecord(record.n, record.kind, record.address, record.size, record.value)
