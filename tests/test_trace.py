"""Exit traces: what is written is read back, and what is broken is named by line and rule."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.errors import UsageError
from vmmsim.exits import ACCESS_EXITS, Access, Halt
from vmmsim.trace import End, ExitRecord, Header, TraceError, TraceWriter, read_trace

HEADER = Header(guest="g", backend="unicorn", provenance="unicorn-2.1.4/native")


@st.composite
def accesses(draw: st.DrawFn) -> tuple[type[Access], int, int, int]:
    cls = draw(st.sampled_from(ACCESS_EXITS))
    size = draw(st.integers(1, 8))
    address = draw(st.integers(0, (1 << (16 if cls.space == "port" else 52)) - 1))
    return cls, address, size, draw(st.integers(0, (1 << 8 * size) - 1))


def written(records: list[tuple[type[Access], int, int, int]], end: bool = True) -> bytes:
    file = io.BytesIO()
    with TraceWriter(file, HEADER) as writer:
        for record in records:
            writer(*record)
        if end:
            writer.end(Halt(), detail="halt", rip=7)
    return file.getvalue()


@given(st.lists(accesses(), max_size=30))
def test_what_is_written_is_read_back(records: list[tuple[type[Access], int, int, int]]) -> None:
    trace = read_trace(written(records).splitlines(keepends=True))

    assert trace.header == HEADER
    assert [(r.exit_class, r.address, r.size, r.value) for r in trace.exits] == records
    assert [r.n for r in trace.exits] == list(range(1, len(records) + 1))
    assert trace.end == End(len(records), "halt", "halt", 7)


def test_each_line_is_json_that_other_tools_can_read() -> None:
    lines = written([(ACCESS_EXITS[0], 0x3F8, 1, 65)]).splitlines()

    assert [json.loads(line)["type"] for line in lines] == ["header", "exit", "end"]
    assert json.loads(lines[1]) == {
        "type": "exit", "n": 1, "kind": "port_read", "address": 0x3F8, "size": 1, "value": 65,
    }  # fmt: skip


def test_a_trace_that_was_cut_short_has_no_end() -> None:
    assert read_trace(written([(ACCESS_EXITS[0], 0, 1, 0)], end=False).splitlines()).end is None


class Miserly(io.BytesIO):
    """An unbuffered file, which may take a part of what it is given."""

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]
        return super().write(data[:7])


def test_a_file_that_takes_a_part_at_a_time_gets_it_all() -> None:
    whole, slow = io.BytesIO(), Miserly()
    for file in (whole, slow):
        writer = TraceWriter(file, HEADER)
        writer(ACCESS_EXITS[0], 0x60, 1, 5)
        writer.end(Halt())
    assert slow.getvalue() == whole.getvalue()


def test_records_reach_the_file_in_pieces_so_memory_stays_bounded() -> None:
    file = io.BytesIO()
    writer = TraceWriter(file, HEADER)
    for _ in range(2000):
        writer(ACCESS_EXITS[3], 0x1020, 1, 65)

    assert len(file.getvalue()) > 1 << 16


GOOD = written([(ACCESS_EXITS[2], 0x1000, 1, 5)]).splitlines()


@pytest.mark.parametrize(
    ("lines", "line", "rule"),
    [
        ([], 1, "must begin with a header"),
        ([b"{"], 1, "not a trace record"),
        ([b"\xff\xfe"], 1, "not a trace record"),
        ([b'{"type":"start"}'], 1, "not a trace record"),
        (GOOD[1:], 1, "the first record must be the header"),
        ([GOOD[0].replace(b'"format":1', b'"format":2')], 1, "this version reads format 1"),
        ([GOOD[0], GOOD[0]], 2, "a second header"),
        ([GOOD[0], GOOD[1].replace(b'"n":1', b'"n":2')], 2, "exit 2 where exit 1 must be"),
        ([GOOD[0], GOOD[1].replace(b'"size":1', b'"size":9')], 2, "an access has 1 to 8"),
        ([GOOD[0], GOOD[1].replace(b'"size":1', b'"size":0')], 2, "an access has 1 to 8"),
        ([GOOD[0], GOOD[1].replace(b'"value":5', b'"value":256')], 2, "does not fit 1 bytes"),
        ([GOOD[0], GOOD[1].replace(b'"value":5', b'"value":-1')], 2, "does not fit 1 bytes"),
        ([GOOD[0], GOOD[1].replace(b"4096", b"4503599627370496")], 2, "beyond"),
        ([GOOD[0], GOOD[1].replace(b"mmio_read", b"dma")], 2, "$.kind"),
        ([GOOD[0], GOOD[1].replace(b'"n":1', b'"n":1,"x":1')], 2, "not a trace record"),
        ([GOOD[0], GOOD[2]], 2, "the end counts 1 exits, the file has 0"),
        ([*GOOD, GOOD[1]], 4, "behind the end record"),
        ([GOOD[0], GOOD[1][:20]], 2, "not a trace record"),
        ([GOOD[0], b""], 2, "not a trace record"),
    ],
)
def test_a_broken_trace_is_refused_with_line_and_rule(lines: list[bytes], line: int, rule: str) -> None:
    with pytest.raises(TraceError) as caught:
        read_trace(lines)

    assert f"line {line}: " in caught.value.message
    assert rule in caught.value.message


@given(st.binary(max_size=200), st.integers(0, 300))
def test_no_bytes_get_past_the_reader(noise: bytes, at: int) -> None:
    whole = b"\n".join(GOOD)
    try:
        trace = read_trace((whole[:at] + noise + whole[at:]).splitlines(keepends=True))
    except TraceError:
        return
    assert all(isinstance(record, ExitRecord) for record in trace.exits)


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_trace(tmp_path / "none")
