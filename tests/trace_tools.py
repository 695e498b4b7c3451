"""Any trace that keeps to the rules, and what the tests of traces share."""

from __future__ import annotations

from hypothesis import strategies as st

from vmmsim.exits import ACCESS_EXITS, Access
from vmmsim.trace import (
    Code,
    CodeLine,
    DeviceInfo,
    End,
    Event,
    ExitRecord,
    Header,
    Jump,
    MemoryChange,
    RegionInfo,
    Trace,
    read_trace,
    trace_lines,
)
from vmmsim.trace.records import REGISTERS

__all__ = ["accesses", "reread", "traces"]


def reread(trace: Trace) -> Trace:
    """What comes back of a trace that was written: the reader checks every rule."""
    return read_trace(b"".join(trace_lines(trace)).splitlines(keepends=True))


@st.composite
def accesses(draw: st.DrawFn) -> tuple[type[Access], int, int, int]:
    cls = draw(st.sampled_from(ACCESS_EXITS))
    size = draw(st.integers(1, 8))
    address = draw(st.integers(0, (1 << (16 if cls.space == "port" else 52)) - 1))
    return cls, address, size, draw(st.integers(0, (1 << 8 * size) - 1))


_M64 = st.integers(0, (1 << 64) - 1)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_REGS = st.dictionaries(st.sampled_from(REGISTERS), _M64, max_size=3)
_NS = st.integers(0, 1 << 61)
_LEAF = st.none() | st.booleans() | st.integers(-(1 << 62), 1 << 62) | _TEXT
_STATE = st.dictionaries(
    _TEXT, st.recursive(_LEAF, lambda s: st.lists(s, max_size=2), max_leaves=4), max_size=3
)


@st.composite
def changes(draw: st.DrawFn) -> MemoryChange:
    old = draw(st.binary(min_size=1, max_size=9))
    new = draw(st.binary(min_size=len(old), max_size=len(old)))
    more = draw(st.integers(0, 9))
    return MemoryChange(draw(st.integers(0, 1 << 40)), len(old) + more, old.hex(), new.hex())


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    header = Header(
        guest=draw(_TEXT), backend="unicorn", provenance="p", detailed=True, cpus=2, clock="exits",
        devices=(DeviceInfo("uart", "port", 0x3F8, 8, "16550A"),), regions=(RegionInfo(0, 4096),),
        start=draw(_REGS),
    )  # fmt: skip
    records: list[ExitRecord | Event | Jump | Code] = []
    n = codes = 0
    snapshots = [0]
    for what in draw(st.lists(st.sampled_from(["exit", "event", "code", "snapshot", "restore"]), max_size=8)):
        looked = draw(st.booleans())
        place: dict[str, object] = {
            "cpu": draw(st.integers(0, 1)), "rip": draw(st.none() | _M64), "guest_ns": draw(_NS),
            "vmm_ns": draw(_NS), "regs": draw(_REGS), "code": draw(st.integers(0, codes)),
            "then": draw(_TEXT), "looked": looked,
            "memory": tuple(draw(st.lists(changes(), max_size=2))) if looked else (),
        }  # fmt: skip
        if what == "exit":
            n += 1
            cls, address, size, value = draw(accesses())
            state = draw(_STATE) if looked else {}
            records.append(
                ExitRecord(
                    n, cls.kind, address, size, value,  # type: ignore[arg-type]
                    device=draw(_TEXT), output=draw(_TEXT), state=state, **place,  # type: ignore[arg-type]
                )
            )  # fmt: skip
        elif what == "event":
            records.append(Event(n, "halt", draw(_TEXT), **place))  # type: ignore[arg-type]
        elif what == "code":
            codes += 1
            here = draw(st.integers(0, 1 << 40))
            records.append(Code(codes, here, (CodeLine(here, "0f0b", draw(_TEXT)),)))
        elif what == "snapshot":
            snapshots.append(n)
            records.append(Jump(n, "snapshot", len(snapshots) - 1, n, draw(_TEXT)))
        else:
            number = draw(st.integers(0, len(snapshots) - 1))
            records.append(Jump(n, "restore", number, snapshots[number], regs=draw(_REGS)))
    end = draw(st.none() | st.just(End(n, "halt", "", 7, cut=True)))
    return Trace(header, tuple(records), end)
