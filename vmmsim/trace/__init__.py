"""The exit trace: what a guest did, one record an exit, as a file that outlives the run."""

from __future__ import annotations

from .jsonl import TraceError, TraceWriter, is_trace, read_trace, trace_lines
from .records import (
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
)

__all__ = [
    "Code",
    "CodeLine",
    "DeviceInfo",
    "End",
    "Event",
    "ExitRecord",
    "Header",
    "Jump",
    "MemoryChange",
    "RegionInfo",
    "Trace",
    "TraceError",
    "TraceWriter",
    "is_trace",
    "read_trace",
    "trace_lines",
]
