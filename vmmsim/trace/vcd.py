"""A trace as a value change dump (IEEE Std 1364-2005, clause 18), for GTKWave, Surfer and others.

Signals of each vCPU: whether the VMM runs for it, the access (kind, address, size, value, device), RIP, the
vector of the interrupt that it took, whether it halts. The time is in nanoseconds. Written by pyvcd.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from ..errors import UsageError
from .records import Event, Jump, Trace
from .timeline import Moment, moments

__all__ = ["check_vcd", "vcd"]

_BLANK = re.compile(r"[^!-~]")
_VECTOR = re.compile(r"interrupt 0x([0-9a-f]{1,2})\b")
#: Name, type and bits of a vCPU's signals.
_SIGNALS = (
    ("vmm", "wire", 1), ("n", "integer", 64), ("kind", "string", None), ("device", "string", None),
    ("address", "wire", 64), ("size", "wire", 8), ("value", "wire", 64), ("rip", "wire", 64),
    ("vector", "wire", 8), ("halted", "wire", 1),
)  # fmt: skip


def check_vcd() -> None:
    """UsageError where pyvcd is not installed."""
    try:
        import vcd as _  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "the format vcd is written by pyvcd, which is not installed", hint="pip install 'vmmsim[vcd]'"
        ) from error


def vcd(trace: Trace) -> Iterator[bytes]:
    """The bytes of the file. UsageError where pyvcd is not installed."""
    check_vcd()
    from vcd import VCDWriter

    file = io.StringIO()
    comment = f"{_word(trace.header.guest)} on {_word(trace.header.provenance)}"
    with VCDWriter(file, timescale="1 ns", comment=comment, date="", version="vmmsim") as writer:
        cpus = [
            {
                name: writer.register_var(f"vmmsim.cpu{cpu}", name, kind, size=bits, init=_init(kind))
                for name, kind, bits in _SIGNALS
            }
            for cpu in range(trace.header.cpus)
        ]
        snapshot = writer.register_var("vmmsim", "snapshot", "integer", size=64, init=0)
        restored = writer.register_var("vmmsim", "restored", "integer", size=64, init=0)
        last = 0
        for at, name, cpu, value in sorted(_changes(trace), key=lambda change: change[0]):
            signal = cpus[cpu][name] if cpu >= 0 else snapshot if name == "snapshot" else restored
            writer.change(signal, at, value)
            last = at
        writer.close(last)
    yield file.getvalue().encode()


def _init(kind: str) -> Any:
    return "-" if kind == "string" else 0


def _changes(trace: Trace) -> Iterator[tuple[int, str, int, Any]]:
    """(time, signal, vCPU or -1, value); those of the same time in their order."""
    for moment in moments(trace):
        record = moment.record
        if isinstance(record, Jump):
            yield moment.began, "snapshot" if record.what == "snapshot" else "restored", -1, record.snapshot
        else:
            yield from _of_cpu(moment)


def _of_cpu(moment: Moment) -> Iterator[tuple[int, str, int, Any]]:
    record = moment.record
    assert not isinstance(record, Jump)
    at, cpu = moment.left, record.cpu
    if record.rip is not None:
        yield at, "rip", cpu, record.rip
    yield at, "kind", cpu, _word(record.kind)
    if isinstance(record, Event):
        yield at, "halted", cpu, int(record.kind == "halt")
    else:
        yield at, "halted", cpu, 0
        yield at, "vmm", cpu, 1
        yield at, "n", cpu, record.n
        yield at, "device", cpu, _word(record.device) or "-"
        yield at, "address", cpu, record.address
        yield at, "size", cpu, record.size
        yield at, "value", cpu, record.value
    for found in _VECTOR.finditer(record.then):
        yield moment.resumed, "vector", cpu, int(found[1], 16)
    yield moment.resumed, "vmm", cpu, 0


def _word(text: str) -> str:
    """A string of the dump ends at white space."""
    return _BLANK.sub("_", text)[:100]
