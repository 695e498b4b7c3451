"""The exit trace: what a guest did, one record an exit, as a file that outlives the run."""

from __future__ import annotations

from .jsonl import End, ExitRecord, Header, Trace, TraceError, TraceWriter, read_trace

__all__ = ["End", "ExitRecord", "Header", "Trace", "TraceError", "TraceWriter", "read_trace"]
