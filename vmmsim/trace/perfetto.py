"""A trace for ui.perfetto.dev and chrome://tracing: JSON in the Trace Event Format.

The format is Google's ("Trace Event Format", the JSON object form): events with a phase `ph`, microseconds
`ts`, a process `pid` and a thread `tid`. Here the processes are the guest, the VMM and the devices; threads
are vCPUs and devices. X events (slices) do not overlap within a thread; s and f events (flows) join a
snapshot with each restore of it, and C events are the exits a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from .records import Code, Event, ExitRecord, Jump, Trace
from .timeline import moments, timed

__all__ = ["perfetto"]

_GUEST, _VMM, _DEVICES = 1, 2, 3
#: The thread of snapshots and restores, among those of the VMM.
_JUMPS = 1000
#: Points of the counter at most; events that are encoded together.
_POINTS, _PIECE = 500, 2000

_encode = msgspec.json.Encoder().encode

Json = dict[str, Any]


def perfetto(trace: Trace) -> Iterator[bytes]:
    """The bytes of the file, some events at a time."""
    events = [*_names(trace), *sorted(_events(trace), key=lambda event: event["ts"])]
    yield b'{"displayTimeUnit":"ns","otherData":' + _encode(_about(trace)) + b',"traceEvents":[\n'
    for at in range(0, len(events), _PIECE):
        piece = b",\n".join(map(_encode, events[at : at + _PIECE]))
        yield piece + (b",\n" if at + _PIECE < len(events) else b"")
    yield b"\n]}\n"


def _about(trace: Trace) -> Json:
    header = trace.header
    about = {"guest": header.guest, "backend": header.provenance, "vmmsim": header.vmmsim}
    if trace.end is not None:
        about["end"] = f"{trace.end.kind} {trace.end.detail}"
    if not timed(trace):
        about["time"] = "the trace has no times: an exit takes a microsecond"
    return about


def _names(trace: Trace) -> Iterator[Json]:
    for pid, name in ((_GUEST, f"guest {trace.header.guest}"), (_VMM, "VMM"), (_DEVICES, "devices")):
        yield _meta("process_name", pid, 0, {"name": name})
        yield _meta("process_sort_index", pid, 0, {"sort_index": pid})
    for cpu in range(trace.header.cpus):
        yield _meta("thread_name", _GUEST, cpu + 1, {"name": f"vCPU {cpu}"})
        yield _meta("thread_name", _VMM, cpu + 1, {"name": f"for vCPU {cpu}"})
    yield _meta("thread_name", _VMM, _JUMPS, {"name": "snapshots"})
    for (device, cpu), tid in _device_threads(trace).items():
        name = device or "nobody"
        yield _meta("thread_name", _DEVICES, tid, {"name": f"{name}, vCPU {cpu}" if cpu else name})


def _meta(name: str, pid: int, tid: int, args: Json) -> Json:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "ts": 0, "args": args}


def _device_threads(trace: Trace) -> dict[tuple[str, int], int]:
    """One for each device and vCPU: what several vCPUs ask of a device can overlap in their times."""
    found: dict[tuple[str, int], int] = {}
    for record in trace.records:
        if isinstance(record, ExitRecord):
            found.setdefault((record.device, record.cpu), len(found) + 1)
    return found


def _events(trace: Trace) -> Iterator[Json]:
    threads = _device_threads(trace)
    codes = {record.id: record for record in trace.records if isinstance(record, Code)}
    taken: dict[int, int] = {}
    flows = 0
    times: list[int] = []
    for moment in moments(trace):
        record = moment.record
        if isinstance(record, Jump):
            flows += record.what == "restore"
            yield from _jump(record, moment.began, taken, flows)
            continue
        if moment.left > moment.began:
            yield _slice("guest", _GUEST, record.cpu + 1, moment.began, moment.left, {})
        args = _args(record, codes)
        if isinstance(record, Event):
            yield {
                "ph": "i", "s": "t", "name": record.kind, "cat": "event", "ts": moment.left / 1000,
                "pid": _GUEST, "tid": record.cpu + 1, "args": args,
            }  # fmt: skip
            continue
        times.append(moment.left)
        name = f"{record.kind} {record.device or hex(record.address)}"
        yield _slice(name, _VMM, record.cpu + 1, moment.left, moment.resumed, args)
        thread = threads[record.device, record.cpu]
        yield _slice(record.kind, _DEVICES, thread, moment.left, moment.resumed, {"n": record.n})
    yield from _rate(times)


def _slice(name: str, pid: int, tid: int, began: int, ended: int, args: Json) -> Json:
    return {
        "ph": "X", "name": name, "cat": "exit", "pid": pid, "tid": tid, "ts": began / 1000,
        "dur": (ended - began) / 1000, "args": args,
    }  # fmt: skip


def _args(record: ExitRecord | Event, codes: dict[int, Code]) -> Json:
    args: Json = {"n": record.n}
    if isinstance(record, ExitRecord):
        args |= {"address": hex(record.address), "size": record.size, "value": hex(record.value)}
    elif record.detail:
        args["detail"] = record.detail
    if record.rip is not None:
        args["rip"] = hex(record.rip)
    code = codes.get(record.code)
    if code is not None:
        args["instruction"] = next(line.text for line in code.lines if line.linear == code.here)
    for name in ("output", "then"):
        if text := getattr(record, name, ""):
            args[name] = text
    if record.regs:
        args["changed"] = {name: hex(value) for name, value in record.regs.items()}
    return args


def _jump(jump: Jump, at: int, taken: dict[int, int], flow: int) -> Iterator[Json]:
    place = {"pid": _VMM, "tid": _JUMPS, "ts": at / 1000}
    name = f"{jump.what} {jump.snapshot}" if jump.snapshot else jump.what
    args = {"n": jump.n, "to": jump.to, "label": jump.label}
    # A slice, since a flow begins and ends at slices; of a nanosecond, so that two never overlap for long.
    yield {"ph": "X", "name": name, "cat": "jump", "dur": 0.001, "args": args, **place}
    yield {"ph": "i", "s": "g", "name": name, "cat": "jump", "args": args, **place}
    if jump.what == "snapshot":
        taken[jump.snapshot] = at
    elif jump.snapshot in taken:
        flow_of = {"name": "back in time", "cat": "jump", "id": flow, "pid": _VMM, "tid": _JUMPS}
        yield {"ph": "s", **flow_of, "ts": taken[jump.snapshot] / 1000}
        yield {"ph": "f", "bp": "e", **flow_of, "ts": at / 1000}


def _rate(times: list[int]) -> Iterator[Json]:
    """Exits a second, in stretches of the same length."""
    if not times:
        return
    begin, end = min(times), max(times)
    step = max(1000, (end - begin) // _POINTS + 1)
    counts: dict[int, int] = {}
    for at in times:
        counts[(at - begin) // step] = counts.get((at - begin) // step, 0) + 1
    for point in range((end - begin) // step + 2):
        rate = counts.get(point, 0) * 1_000_000_000 / step
        yield {
            "ph": "C", "name": "exits/s", "pid": _VMM, "tid": 0, "ts": (begin + point * step) / 1000,
            "args": {"exits/s": round(rate, 3)},
        }  # fmt: skip
