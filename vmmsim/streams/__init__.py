"""The host's ends of the guest's characters: where input comes from, where output goes."""

from __future__ import annotations

from .ports import Port, PtyPort, open_port, open_source
from .sinks import BufferSink, FdSink, FileSink, NullSink, OutputClosed, StdoutSink, TeeSink
from .sources import BytesSource, FdSource, FileSource, QueueSource, Source, ThreadSource, open_stdin

__all__ = [
    "BufferSink",
    "BytesSource",
    "FdSink",
    "FdSource",
    "FileSink",
    "FileSource",
    "NullSink",
    "OutputClosed",
    "Port",
    "PtyPort",
    "QueueSource",
    "Source",
    "StdoutSink",
    "TeeSink",
    "ThreadSource",
    "open_port",
    "open_source",
    "open_stdin",
]
