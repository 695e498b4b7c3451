"""Exit traces: what is written is read back, and what is broken is named by line and rule."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_tools import accesses, traces

from vmmsim.cpu.state import GPR_NAMES
from vmmsim.errors import UsageError
from vmmsim.exits import ACCESS_EXITS, Access, Halt
from vmmsim.trace import (
    Code,
    End,
    Event,
    ExitRecord,
    Header,
    Jump,
    Trace,
    TraceError,
    TraceWriter,
    is_trace,
    read_trace,
    trace_lines,
)
from vmmsim.trace.records import REGISTERS

HEADER = Header(guest="g", backend="unicorn", provenance="unicorn-2.1.4/native")


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
        ([GOOD[0].replace(b'"format":2', b'"format":3')], 1, "format 3 of vmmsim"),
        ([GOOD[0].replace(b'"format":2', b'"format":3,"new":1')], 1, "this version reads format 1 and 2"),
        ([GOOD[0].replace(b'"format":2,', b"")], 1, "without its format"),
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
        ([GOOD[0], GOOD[1][:20] + b"\n"], 2, "not a trace record"),
        ([GOOD[0], GOOD[1][:20], GOOD[2]], 2, "not whole"),
        ([GOOD[0][:20]], 1, "not a trace record"),
        ([GOOD[0], GOOD[1].replace(b'"n":1', b'"n":1,"rip":5')], 2, "accesses only"),
        ([GOOD[0], b'{"type":"event","n":0,"kind":"halt"}'], 2, "accesses only"),
        ([GOOD[0], b" " * (4 << 20) + GOOD[1]], 2, "longer than 4 MiB"),
        ([GOOD[0], b""], 2, "not a trace record"),
    ],
)
def test_a_broken_trace_is_refused_with_line_and_rule(lines: list[bytes], line: int, rule: str) -> None:
    with pytest.raises(TraceError) as caught:
        read_trace(lines)

    assert f"line {line}: " in caught.value.message
    assert rule in caught.value.message


def detailed(*lines: str) -> list[bytes]:
    """The header of a detailed trace, a code, a snapshot and an exit, and `lines` behind them."""
    return [
        b'{"type":"header","format":2,"guest":"g","backend":"b","provenance":"p","detailed":true}',
        b'{"type":"code","id":1,"here":16,"lines":[[16,"90","nop"]]}',
        b'{"type":"jump","n":0,"what":"snapshot","snapshot":1,"to":0}',
        b'{"type":"exit","n":1,"kind":"msr_read","address":27,"size":8,"value":1,"code":1,"looked":true}',
        *(line.encode("utf-8", "surrogatepass") for line in lines),
    ]


def test_a_detailed_trace_of_these_lines_is_good() -> None:
    assert len(read_trace(detailed()).records) == 3


DEEP = '{"a":' * 9 + "1" + "}" * 9


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ('{"type":"exit","n":2,"kind":"msr_read","address":27,"size":4,"value":1}', "an MSR has 8"),
        ('{"type":"exit","n":2,"kind":"port_read","address":65536,"size":1,"value":1}', "beyond"),
        ('{"type":"exit","n":2,"kind":"port_read","address":1,"size":1,"value":1,"cpu":1}', "vCPU 1 of 1"),
        (
            '{"type":"exit","n":2,"kind":"port_read","address":1,"size":1,"value":1,"code":2}',
            "code 2 where 1",
        ),
        ('{"type":"event","n":1,"kind":"halt","guest_ns":-1}', "a time below 0"),
        ('{"type":"event","n":0,"kind":"halt"}', "event behind exit 0 where 1 exits were"),
        ('{"type":"event","n":1,"kind":"<b>"}', "a word of small letters"),
        ('{"type":"event","n":1,"kind":"halt","rip":-1}', "64 bits"),
        ('{"type":"event","n":1,"kind":"halt","regs":{"eax":1}}', "no register 'eax'"),
        ('{"type":"event","n":1,"kind":"halt","regs":{"rax":-1}}', "rax has more than 64 bits"),
        ('{"type":"event","n":1,"kind":"halt","memory":[[0,1,"00","01"]]}', "without a look"),
        ('{"type":"event","n":1,"kind":"halt","looked":true,"memory":[[0,1,"0","0"]]}', "no row of bytes"),
        ('{"type":"event","n":1,"kind":"halt","looked":true,"memory":[[0,1,"0G","00"]]}', "no row of bytes"),
        (
            '{"type":"event","n":1,"kind":"halt","looked":true,"memory":[[0,1,"0000","0000"]]}',
            "a change of 1",
        ),
        (
            '{"type":"event","n":1,"kind":"halt","looked":true,"memory":[[0,2,"00","0000"]]}',
            "as many of them",
        ),
        ('{"type":"event","n":1,"kind":"halt","looked":true,"memory":[[-1,1,"00","01"]]}', "beyond"),
        ('{"type":"event","n":1,"kind":"halt","detail":"' + "x" * 4097 + '"}', "4097 characters"),
        ('{"type":"code","id":1,"here":16,"lines":[[16,"90","nop"]]}', "code 1 where code 2 must be"),
        ('{"type":"code","id":2,"here":17,"lines":[[16,"90","nop"]]}', "not among its lines"),
        ('{"type":"code","id":2,"here":16,"lines":[[16,"","nop"]]}', "1 to 15 bytes"),
        ('{"type":"code","id":2,"here":16,"lines":[]}', "code of 0 instructions"),
        ('{"type":"jump","n":1,"what":"snapshot","snapshot":1,"to":1}', "where snapshot 2 of exit 1 must be"),
        ('{"type":"jump","n":1,"what":"restore","snapshot":2,"to":0}', "where 1 are known"),
        ('{"type":"jump","n":1,"what":"restore","snapshot":1,"to":1}', "is not of exit 1"),
        ('{"type":"end","n":1,"kind":"halt","rip":-1}', "64 bits"),
        (
            '{"type":"exit","n":2,"kind":"port_read","address":1,"size":1,"value":1,"state":{"a":1}}',
            "without a look",
        ),
        (
            '{"type":"exit","n":2,"kind":"port_read","address":1,"size":1,"value":1,"looked":true,"state":'
            + DEEP
            + "}",
            "nested deeper than 8",
        ),
        (
            '{"type":"exit","n":2,"kind":"port_read","address":1,"size":1,"value":1,"looked":true,"state":'
            + '{"a":' * 100_000
            + "1"
            + "}" * 100_001,
            "not a trace record",
        ),
    ],
)
def test_a_broken_detail_is_refused_with_line_and_rule(line: str, rule: str) -> None:
    with pytest.raises(TraceError) as caught:
        read_trace(detailed(line))

    assert "line 5: " in caught.value.message
    assert rule in caught.value.message


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ('"cpus":0', "a machine has 1 to 255"),
        ('"devices":[{"name":"d","space":"port","start":65535,"size":2}]', "beyond its bus"),
        ('"devices":[{"name":"d","space":"usb","start":0,"size":2}]', "not a trace record"),
        ('"regions":[{"gpa":0,"size":0}]', "beyond the guest's addresses"),
        ('"start":{"st0":1}', "no register 'st0'"),
        ('"cpus":1e99', "not a trace record"),
    ],
)
def test_a_broken_header_is_refused(change: str, rule: str) -> None:
    header = detailed()[0].replace(b'"detailed"', change.encode() + b',"detailed"')
    with pytest.raises(TraceError) as caught:
        read_trace([header])

    assert "line 1: " in caught.value.message
    assert rule in caught.value.message


def test_a_trace_of_format_1_is_read() -> None:
    """As version 0.1.0 wrote it (the example of its docs/cli.md)."""
    trace = read_trace(
        [
            b'{"type":"header","format":1,"vmmsim":"0.1.0","guest":"echo","backend":"kvm","provenance":"kvm/pvm"}',
            b'{"type":"exit","n":1,"kind":"mmio_read","address":4096,"size":1,"value":109}',
            b'{"type":"end","n":1,"kind":"halt","detail":"halt","rip":31790}',
        ]
    )

    assert (trace.header.format, trace.header.detailed) == (1, False)
    assert trace.exits == (ExitRecord(1, "mmio_read", 4096, 1, 109),)
    assert trace.end == End(1, "halt", "halt", 31790)


def test_a_file_that_was_cut_is_read_up_to_there(tmp_path: Path) -> None:
    whole = b"\n".join(GOOD) + b"\n"
    file = tmp_path / "t"
    head = len(GOOD[0]) + 1
    for at in range(head, len(whole)):
        file.write_bytes(whole[:at])
        trace = read_trace(file)
        assert len(trace.exits) == (at >= head + len(GOOD[1]))
        assert (trace.end is not None) == (at == len(whole) - 1)


# -- any trace, any damage


@given(traces())
def test_any_trace_is_read_back_as_it_was(trace: Trace) -> None:
    assert read_trace(b"".join(trace_lines(trace)).splitlines(keepends=True)) == trace


@given(traces(), st.data())
def test_no_damage_gets_past_the_reader(trace: Trace, data: st.DataObject) -> None:
    """Bytes put in, taken away, or swapped for those of another place: an error of the reader's, or a
    trace that keeps to the rules."""
    raw = b"".join(trace_lines(trace))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        gone = data.draw(st.integers(0, 20))
        begin = data.draw(st.integers(0, len(raw)))
        noise = data.draw(st.binary(max_size=6) | st.just(raw[begin : begin + 20]))
        raw = raw[:at] + noise + raw[at + gone :]
    try:
        found = read_trace(raw.splitlines(keepends=True))
    except TraceError:
        return
    again = b"".join(trace_lines(found))
    assert read_trace(again.splitlines(keepends=True)) == found


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


def test_a_trace_is_known_by_its_beginning(tmp_path: Path) -> None:
    file = tmp_path / "t"
    file.write_bytes(written([]))
    other = tmp_path / "o"
    other.write_bytes(b'{"type":"recording"}')
    assert is_trace(file)
    assert not is_trace(other)
    assert not is_trace(tmp_path / "none")
    assert not is_trace(tmp_path)


# -- the page of the format

PAGE = Path(__file__).parent.parent / "docs" / "tracing.md"


@pytest.mark.parametrize("record", [Header, ExitRecord, Event, Code, Jump, End], ids=lambda r: r.__name__)
def test_the_page_has_each_field_of_each_record(record: type) -> None:
    tag = record.__struct_config__.tag  # type: ignore[attr-defined]
    part = PAGE.read_text(encoding="utf-8").split(f"### `{tag}`\n")[1].split("\n### ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)
    assert rows == list(record.__struct_fields__)  # type: ignore[attr-defined]


def test_the_page_has_each_register() -> None:
    text = PAGE.read_text(encoding="utf-8")
    ranged = {"cs", "ss", "ds", "es", "fs", "gs", *GPR_NAMES}  # told by the first and the last
    assert [r for r in REGISTERS if r.removesuffix("_base") not in ranged and f"`{r}`" not in text] == []
