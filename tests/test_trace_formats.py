"""Traces for other viewers, by the rules of their formats.

Perfetto's JSON: Google's "Trace Event Format" (JSON object format; complete, instant, counter, flow and
metadata events). VCD: IEEE Std 1364-2005, clause 18, read by vcdvcd, which is not what writes it.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from trace_tools import traces

from vmmsim import Machine, guests
from vmmsim.budget import seconds
from vmmsim.errors import UsageError
from vmmsim.snapshot.cheat import TimeMachine
from vmmsim.streams import BytesSource
from vmmsim.testing.slow import time_limit
from vmmsim.trace import End, Event, ExitRecord, Header, Jump, Trace
from vmmsim.trace.formats import format_of, rendered
from vmmsim.trace.perfetto import perfetto
from vmmsim.trace.recorder import TraceRecorder
from vmmsim.trace.timeline import moments
from vmmsim.trace.vcd import vcd


@pytest.fixture(scope="module")
def cheated() -> Trace:
    """guess, lost and won by going back in time."""
    cheat = guests.load("guess").manifest.cheat
    assert cheat is not None
    source = BytesSource(bytes(range(97, 123)) * 2 + b".")
    with Machine.for_guest("guess", backend="unicorn", source=source, seed=3) as machine:
        recorder = TraceRecorder(machine, guest="guess")
        TimeMachine(machine, begin=cheat.begin, lost=cheat.lost)
        return recorder.finish(machine.run(budget=seconds(time_limit(30))))


# -- Perfetto

_REQUIRED = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid"},
    "i": {"name", "cat", "ts", "pid", "tid", "s"},
    "C": {"name", "ts", "pid", "args"},
    "M": {"name", "pid", "tid", "args"},
    "s": {"name", "cat", "ts", "pid", "tid", "id"},
    "f": {"name", "cat", "ts", "pid", "tid", "id", "bp"},
}
_METADATA = {"process_name": str, "process_sort_index": int, "thread_name": str}


def check_events(events: list[dict[str, Any]]) -> None:
    """Every rule that the format has for the phases that are used here."""
    slices: dict[tuple[int, int], list[tuple[float, float]]] = {}
    flows: dict[Any, list[tuple[str, float]]] = {}
    named: set[tuple[int, int]] = set()
    for event in events:
        assert _REQUIRED[event["ph"]] <= event.keys(), event
        assert isinstance(event["pid"], int)
        assert isinstance(event["name"], str)
        assert event["name"]
        assert isinstance(event.get("args", {}), dict)
        assert event.get("ts", 0) >= 0
        phase = event["ph"]
        if phase == "X":
            assert event["dur"] >= 0
            slices.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["dur"]))
        elif phase == "i":
            assert event["s"] in ("g", "p", "t")
        elif phase == "C":
            assert event["args"]
            assert all(isinstance(v, int | float) for v in event["args"].values())
        elif phase == "M":
            key = "sort_index" if event["name"].endswith("sort_index") else "name"
            assert isinstance(event["args"][key], _METADATA[event["name"]])
            if event["name"] == "thread_name":
                named.add((event["pid"], event["tid"]))
        else:
            flows.setdefault(event["id"], []).append((phase, event["ts"]))
    for thread, parts in slices.items():
        assert thread in named
        assert parts == sorted(parts, key=lambda part: part[0])  # ascending within a thread
        end = 0.0
        for began, long in sorted(parts):
            # Slices of a thread are nested or apart; these are all apart, but for the rounding to a
            # thousandth of a microsecond.
            assert began >= end - 0.002, thread
            end = max(end, began + long)
    for steps in flows.values():
        assert [phase for phase, _ in steps] == ["s", "f"]
        assert steps[0][1] <= steps[1][1]


def loaded(trace: Trace) -> list[dict[str, Any]]:
    whole = json.loads(b"".join(perfetto(trace)))
    assert whole["displayTimeUnit"] in ("ms", "ns")
    events: list[dict[str, Any]] = whole["traceEvents"]
    return events


def test_a_trace_for_perfetto_keeps_to_the_format(cheated: Trace) -> None:
    events = loaded(cheated)
    check_events(events)

    on_vmm = [e for e in events if e["ph"] == "X" and e["pid"] == 2 and e["cat"] == "exit"]
    assert [e["args"]["n"] for e in on_vmm] == [r.n for r in cheated.exits]
    first = cheated.exits[0]
    assert on_vmm[0]["name"] == f"{first.kind} {first.device}"
    assert on_vmm[0]["args"]["value"] == hex(first.value)
    assert on_vmm[0]["dur"] == first.vmm_ns / 1000
    backs = [r for r in cheated.records if isinstance(r, Jump) and r.what == "restore"]
    assert len([e for e in events if e["ph"] == "f"]) == len(backs) > 0
    rates = [e["args"]["exits/s"] for e in events if e["ph"] == "C"]
    assert max(rates) > 0
    assert rates[-1] == 0


@given(traces())
def test_any_trace_can_go_to_perfetto(trace: Trace) -> None:
    events = loaded(trace)
    check_events([e for e in events if e["ph"] != "X"])
    assert sum(e["ph"] == "X" and e["pid"] == 3 for e in events) == len(trace.exits)


def test_a_trace_without_times_counts_them() -> None:
    exits = tuple(ExitRecord(n, "port_write", 0x80, 1, n) for n in (1, 2, 3))
    trace = Trace(Header(guest="g", backend="b", provenance="p"), exits, End(3, "halt"))
    events = loaded(trace)
    check_events(events)
    assert [e["ts"] for e in events if e["ph"] == "X" and e["pid"] == 2] == [0, 1, 2]


# -- VCD


def read_vcd(trace: Trace, tmp_path: Path) -> Any:
    vcdvcd = pytest.importorskip("vcdvcd")
    pytest.importorskip("vcd")
    path = tmp_path / "t.vcd"
    path.write_bytes(b"".join(vcd(trace)))
    return vcdvcd.VCDVCD(str(path))


def test_a_value_change_dump_has_what_the_exits_have(cheated: Trace, tmp_path: Path) -> None:
    dump = read_vcd(cheated, tmp_path)

    assert float(dump.timescale["timescale"]) == pytest.approx(1e-9)
    assert set(dump.signals) >= {f"vmmsim.cpu0.{name}" for name in ("address", "value", "rip")}
    value, vmm = dump["vmmsim.cpu0.value"], dump["vmmsim.cpu0.vmm"]
    for moment in moments(cheated):
        record = moment.record
        if isinstance(record, ExitRecord):
            assert int(value[moment.left], 2) == record.value
            assert vmm[moment.left] == "1"
            assert vmm[moment.resumed] == "0"
    # vcdvcd does not read strings.
    kinds = [line.split()[0][1:] for line in b"".join(vcd(cheated)).decode().splitlines() if line[:1] == "s"]
    assert set(kinds) >= {r.kind for r in cheated.exits}
    restored = [v for _, v in dump["vmmsim.restored"].tv]
    backs = [r.snapshot for r in cheated.records if isinstance(r, Jump) and r.what == "restore"]
    assert int(restored[-1], 2) == backs[-1]


@given(traces())
def test_any_trace_can_be_a_value_change_dump(trace: Trace) -> None:
    pytest.importorskip("vcd")
    text = b"".join(vcd(trace)).decode("ascii")
    times = [int(line[1:]) for line in text.splitlines() if line.startswith("#")]
    assert times == sorted(times)
    assert "$enddefinitions $end" in text


def test_interrupts_and_halts_are_signals(tmp_path: Path) -> None:
    records = (
        Event(0, "halt", guest_ns=10, then="interrupt 0x20"),
        ExitRecord(1, "port_read", 0x60, 1, 5, guest_ns=5, vmm_ns=3, then="interrupt 0x21, interrupt 0x22"),
    )
    trace = Trace(Header(guest="g g", backend="b", provenance="p", detailed=True), records, End(1, "halt"))
    dump = read_vcd(trace, tmp_path)
    assert [(t, int(v, 2)) for t, v in dump["vmmsim.cpu0.vector"].tv][1:] == [
        (10, 0x20),
        (18, 0x21),
        (18, 0x22),
    ]
    assert [(t, v) for t, v in dump["vmmsim.cpu0.halted"].tv] == [(0, "0"), (10, "1"), (15, "0")]


def test_without_pyvcd_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "vcd", None)
    with pytest.raises(UsageError) as caught:
        next(vcd(Trace(Header(guest="g", backend="b", provenance="p"), ())))
    assert "vmmsim[vcd]" in caught.value.hint


# -- which format


@pytest.mark.parametrize(
    ("path", "chosen", "format"),
    [
        ("a.html", None, "html"), ("A.HTM", None, "html"), ("x/a.jsonl", None, "jsonl"),
        ("a.json", None, "perfetto"), ("a.vcd", None, "vcd"), ("a.json", "jsonl", "jsonl"),
        ("a", "vcd", "vcd"),
    ],
)  # fmt: skip
def test_the_name_says_the_format(path: str, chosen: str | None, format: str) -> None:
    assert format_of(path, chosen) == format


@pytest.mark.parametrize("path", ["a", "a.txt", "jsonl", ".json.gz"])
def test_a_name_that_says_nothing_is_asked_about(path: str) -> None:
    with pytest.raises(UsageError, match="does not say in which format"):
        format_of(path, None)


def test_all_formats_can_be_written(cheated: Trace) -> None:
    file = io.BytesIO()
    for name in ("html", "jsonl", "perfetto", "vcd"):
        file.writelines(rendered(name, cheated))
    assert file.tell() > 100_000
