"""The explorer's page as bytes: what is in it, what can never be in it, and how runs are compared."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import browser
import pytest
from explore_traces import HOSTILE, detailed, header, hostile, plain
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmsim import Machine
from vmmsim.explore import page
from vmmsim.explore.compare import compare
from vmmsim.explore.decode import register_name, state_lines
from vmmsim.trace.header import header_of
from vmmsim.trace.records import (
    DeviceInfo,
    End,
    Event,
    ExitRecord,
    Header,
    Jump,
    MemoryChange,
    Trace,
)


class Parts(HTMLParser):
    """A page's elements as a browser finds them: [(tag, attributes, text)]."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._inside = False
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))
        self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            tag, attributes, text = self.found[-1]
            self.found[-1] = (tag, attributes, text + data)

    def texts(self, tag: str) -> list[str]:
        return [text for name, _, text in self.found if name == tag]


def data_of(made: bytes) -> dict[str, Any]:
    packed = re.search(rb'<script type="application/octet-stream" id="data">([^<]*)</script>', made)
    assert packed is not None
    data: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed[1])))
    return data


# -- the page --------------------------------------------------------------------------------------


def test_it_needs_nothing_else() -> None:
    text = page(detailed(20)).decode("utf-8")
    assert text.startswith("<!doctype html>")
    assert not re.search(r"(src|href)=\"(?!data:,|#)", text)
    # No word of the scripts makes markup or code of data.
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "import(",
    ):
        assert word not in text, word
    assert not re.search(r"@[a-z]+@", re.sub(r"<script.*?</script>", "", text, flags=re.S))


def test_the_policy_names_what_is_in_the_page() -> None:
    parts = Parts(page(detailed(5)).decode("utf-8"))
    policy = next(a["content"] for tag, a, _ in parts.found if tag == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    scripts = [text for tag, a, text in parts.found if tag == "script" and "type" not in a]
    for text, directive in ((scripts, "script-src"), (parts.texts("style"), "style-src")):
        assert len(text) == 1
        digest = base64.b64encode(hashlib.sha256(text[0].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("title", ["", *HOSTILE])
def test_no_text_becomes_markup(title: str) -> None:
    harmless, made = Parts(page(detailed(1)).decode("utf-8")), page(hostile(), hostile(), title=title)
    parts = Parts(made.decode("utf-8"))
    tags = {tag for tag, _, _ in harmless.found}
    assert {tag for tag, _, _ in parts.found} == tags
    assert len(parts.texts("script")) == 2
    assert not [a for _, a, _ in parts.found if any(name.startswith("on") for name in a)]
    name = HOSTILE[0] + HOSTILE[1]
    shown = title.encode("utf-8", "replace").decode() or f"{name}: {name} and {name}"
    for unseen in "\u202e\u2066\x00\x1b\x07":
        shown = shown.replace(unseen, f"\\u{{{ord(unseen):x}}}")
    assert parts.texts("title") == [shown]


def test_the_title() -> None:
    def title(made: bytes) -> str:
        return Parts(made.decode()).texts("title")[0]

    assert title(page(detailed(2))) == "made-up"
    assert title(page(detailed(2), title="Lesson 3")) == "Lesson 3"
    assert title(page(plain(2), detailed(2))) == "old and made-up"
    kvm = Trace(header(provenance="kvm/vmx"), (), None)
    assert title(page(detailed(2), kvm)) == "made-up: unicorn/2.1.4 native and kvm/vmx"


def test_the_summary_for_who_has_no_scripts() -> None:
    trace = detailed(200)
    text = re.sub(r"<[^>]+>", " ", page(trace).decode().split("<noscript>")[1].split("</noscript>")[0])
    words = " ".join(text.split())
    assert "Accesses 200" in words
    assert "restores 3" in words
    assert "snapshots 1" in words
    assert f"answered by uart {sum(e.device == 'uart' for e in trace.exits)}" in words
    assert "End halt" in words
    assert "the run was cut short" in page(Trace(header(), (), None)).decode()


def test_assets_are_where_a_wheel_has_them() -> None:
    names = {file.name for file in (files("vmmsim.explore") / "assets").iterdir()}
    from vmmsim.explore.document import SCRIPTS, STYLES

    assert names == {"shell.html", *SCRIPTS, *STYLES}


def test_without_a_browser_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(browser, "DRIVER", tmp_path / "chromedriver")
    assert "apt install chromium chromium-driver" in browser.why_not()


# -- the data --------------------------------------------------------------------------------------

_words = st.text(max_size=8)
_u64 = st.integers(0, (1 << 64) - 1)
_registers = st.dictionaries(
    st.sampled_from(("rax", "rip", "cr0", "fpu.st0")), _u64 | st.integers(0, (1 << 80) - 1)
)
_changes = st.lists(
    st.builds(MemoryChange, _u64, st.integers(1, 9), st.just("00"), st.just("ff")), max_size=2
).map(tuple)
_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | _words | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    records: list[Any] = []
    kinds = ("port_read", "port_write", "mmio_read", "mmio_write", "msr_read", "msr_write")
    for n in range(1, draw(st.integers(0, 6)) + 1):
        size = draw(st.integers(1, 8))
        looked = draw(st.booleans())
        records.append(
            ExitRecord(
                n, draw(st.sampled_from(kinds)), draw(st.integers(0, (1 << 52) - 1)), size,  # type: ignore[arg-type]
                draw(st.integers(0, (1 << 8 * size) - 1)), cpu=draw(st.integers(0, 3)),
                rip=draw(st.none() | _u64), device=draw(_words), guest_ns=draw(st.integers(0, 1 << 40)),
                vmm_ns=draw(st.integers(0, 1 << 40)), regs=draw(_registers), code=draw(st.integers(0, 3)),
                output=draw(_words), then=draw(_words), looked=looked,
                state=draw(st.dictionaries(_words, _plain, max_size=2)) if looked else {},
                memory=draw(_changes) if looked else (),
            )
        )  # fmt: skip
        if draw(st.booleans()):
            records.append(
                Event(
                    n, draw(_words), draw(_words), regs=draw(_registers), memory=draw(_changes), looked=True
                )
            )
        if draw(st.booleans()):
            what = draw(st.sampled_from(("snapshot", "restore")))
            records.append(
                Jump(
                    n, what, draw(st.integers(1, 3)), draw(st.integers(0, n)), draw(_words), draw(_registers)
                )
            )  # type: ignore[arg-type]
    end = draw(
        st.none() | st.builds(End, st.just(len(records)), _words, _words, st.none() | _u64, st.booleans())
    )
    return Trace(header(guest=draw(_words), start=draw(_registers)), tuple(records), end)


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


@settings(max_examples=60)
@given(traces())
def test_the_columns_hold_the_trace(trace: Trace) -> None:
    run = data_of(page(trace))["runs"][0]
    rows, strings, values = run["rows"], run["strings"], run["values"]
    count = len(rows["type"])
    assert count == len(trace.records) + (trace.end is not None)
    assert {len(column) for column in rows.values()} <= {count}
    assert run["header"]["guest"] == _utf8(trace.header.guest)
    assert {name: int(value, 16) for name, value in run["start"]} == trace.header.start
    changes = list(zip(run["regs"]["name"], run["regs"]["value"], strict=True))
    for at, record in enumerate(trace.records):
        first, last = run["regs"]["at"][at : at + 2]
        regs = {run["names"][name]: int(values[value], 16) for name, value in changes[first:last]}
        assert regs == record.regs  # type: ignore[union-attr]
        assert rows["n"][at] == record.n  # type: ignore[union-attr]
        if isinstance(record, ExitRecord):
            assert strings[rows["kind"][at]] == record.kind
            assert (rows["address"][at], rows["size"][at]) == (record.address, record.size)
            assert int(values[rows["value"][at]], 16) == record.value
            assert (None if rows["rip"][at] < 0 else int(values[rows["rip"][at]], 16)) == record.rip
            assert strings[rows["device"][at]] == _utf8(record.device)
            assert strings[rows["output"][at]] == _utf8(record.output)
            assert strings[rows["then"][at]] == _utf8(record.then)
            assert (rows["guest"][at], rows["vmm"][at]) == (record.guest_ns, record.vmm_ns)
        if isinstance(record, Jump) and record.what == "restore":
            snapshots = [
                i
                for i, r in enumerate(trace.records[:at])
                if isinstance(r, Jump) and r.what == "snapshot" and r.snapshot == record.snapshot
            ]
            assert not snapshots or rows["target"][at] == snapshots[-1]
            assert rows["target"][at] < at
        if isinstance(record, (ExitRecord, Event)) and record.looked:
            state, memory = run["looks"][rows["look"][at] - 1]
            assert [[int(gpa, 16), *rest] for gpa, *rest in memory] == [
                [c.gpa, c.size, c.old, c.new] for c in record.memory
            ]
            if isinstance(record, ExitRecord):
                assert [name for name, _ in state] == [_utf8(name) for name in record.state]


# -- what devices' numbers mean --------------------------------------------------------------------


def test_a_uart_as_its_data_sheet_names_it() -> None:
    """PC16550D, tables II and III."""
    uart = DeviceInfo("com1", "port", 0x3F8, 8, "uart16550")
    assert [register_name(uart, 0x3F8 + at, "port_read") for at in range(8)] == [
        "RBR",
        "IER",
        "IIR",
        "LCR",
        "MCR",
        "LSR",
        "MSR",
        "SCR",
    ]
    assert [register_name(uart, 0x3F8 + at, "port_write") for at in (0, 2)] == ["THR", "FCR"]
    assert state_lines(uart, "lsr", 0x61) == [["", "0x61 (97)", "DR THRE TEMT"]]
    assert state_lines(uart, "lcr", 0x83) == [["", "0x83 (131)", "WLS0 WLS1 DLAB"]]
    assert state_lines(uart, "ier", 0) == [["", "0", "no bit set"]]


def test_an_interrupt_controller_by_its_inputs() -> None:
    pic = DeviceInfo("pic", "port", 0x20, 2, "i8259")
    assert state_lines(pic, "master", {"imr": 0x05, "ready": True}) == [
        [".imr", "5", "IR0 IR2"],
        [".ready", "yes", ""],
    ]


def test_the_devices_of_a_pc_are_known(backend_name: str) -> None:
    """By the recorder's names and classes. Ports: IBM PC/AT; ELCR: 82371SB; the APICs: SDM, 82093AA."""
    with Machine(backend=backend_name, model="pc") as machine:
        devices = header_of(machine, "", machine.vcpu.state()).devices
    expected = {
        0x3FD: "LSR", 0x21: "IMR", 0xA1: "IMR", 0x4D0: "ELCR1", 0x43: "control word",
        0x70: "index", 0x64: "command", 0xFEE000B0: "EOI", 0xFEC00010: "IOWIN",
    }  # fmt: skip
    reads = (0x3FD, 0x21, 0xA1)
    found = {}
    for address in expected:
        kind = "port_write" if address < 0x10000 else "mmio_write"
        place = [d for d in devices if d.space == kind[:4] and d.start <= address < d.start + d.size]
        assert len(place) == 1, hex(address)
        found[address] = register_name(place[0], address, "port_read" if address in reads else kind)
    assert found == expected


def test_a_device_of_ones_own_is_shown_as_it_is() -> None:
    own = DeviceInfo("mine", "mmio", 0x5000, 4)
    assert register_name(own, 0x5000, "mmio_read") == ""
    assert state_lines(own, "bytes", [1, 2, 255, 0, 9]) == [["", "01 02 ff 00 09", ""]]
    assert state_lines(own, "queue", []) == [["", "empty", ""]]
    assert state_lines(own, "deep", [{"a": None}, {"a": -300}]) == [
        ["[0].a", "none", ""],
        ["[1].a", "-0x12c (-300)", ""],
    ]
    assert len(state_lines(own, "many", [{"n": n} for n in range(1000)])) <= 64
    assert len(state_lines(own, "long", "x" * 100_000)[0][1]) < 2000


# -- two runs --------------------------------------------------------------------------------------


def accesses(values: list[int], end: End | None) -> Trace:
    exits = tuple(ExitRecord(n, "port_write", 0x80, 1, value) for n, value in enumerate(values, 1))
    return Trace(Header(guest="g", backend="b", provenance="p"), exits, end)


_values = st.lists(st.integers(0, 3), max_size=12)


@given(_values, _values)
def test_the_first_difference(left: list[int], right: list[int]) -> None:
    found = compare(accesses(left, End(len(left), "halt")), accesses(right, End(len(right), "halt")))
    both = list(zip(left, right, strict=False))
    differ = {n for n, (a, b) in enumerate(both, 1) if a != b}
    spans = list(zip(found["differ"][::2], found["differ"][1::2], strict=True))
    assert {n for first, length in spans for n in range(first, first + length)} == differ
    assert all(one[0] + one[1] < two[0] for one, two in pairwise(spans))
    if differ:
        assert found["first"] == min(differ)
        assert found["same"] == min(differ) - 1
    else:
        assert found["same"] == len(both)
        assert found["first"] == (None if len(left) == len(right) else len(both) + 1)


@pytest.mark.parametrize(
    ("left", "right", "first", "words"),
    [
        (End(2, "halt"), End(2, "halt"), None, "both runs are the same: 2 accesses, then halt"),
        (End(2, "halt"), End(2, "shutdown"), 3, "A ended with halt, B with shutdown"),
        (End(2, "halt"), None, None, "not both runs were recorded to their end"),
        (End(2, "halt", cut=True), End(2, "shutdown"), None, "not both runs were recorded to their end"),
        (End(2, "budget"), End(2, "budget"), None, "not both runs were recorded to their end"),
        (End(2, "cancelled"), End(2, "halt"), None, "not both runs were recorded to their end"),
    ],
)
def test_how_runs_ended(left: End | None, right: End | None, first: int | None, words: str) -> None:
    found = compare(accesses([1, 2], left), accesses([1, 2], right))
    assert found["first"] == first
    assert words in found["why"]


def test_a_trace_that_stops_is_no_difference() -> None:
    found = compare(accesses([1, 2, 3], End(3, "halt")), accesses([1, 2], None))
    assert found["first"] is None
    assert "B's stops there" in found["why"]
    found = compare(accesses([1], End(1, "shutdown")), accesses([1, 2], None))
    assert found["first"] == 2
    assert "A ended after 1 accesses (shutdown), B went on" in found["why"]


# -- colours ---------------------------------------------------------------------------------------


def _luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    high, low = sorted((_luminance(one), _luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _colours() -> dict[str, tuple[str, str]]:
    style = (files("vmmsim.explore") / "assets" / "theme.css").read_text()
    pairs = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", style)
    return {name: (light, dark) for name, light, dark in pairs}


def test_contrast_is_wcags() -> None:
    """The ends of the scale, and the example of WCAG's technique G18: #777 on white misses by a hair."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert 4.4 < contrast("#777777", "#ffffff") < 4.5


_SURFACES = (
    "page",
    "surface",
    "raised",
    "lane",
    "odd",
    "select-soft",
    "match-back",
    "diff-back",
    "changed-back",
    "jump-back",
)
_TEXTS = {
    "ink": _SURFACES,
    "muted": ("page", "surface", "raised", "lane", "odd", "match-back", "diff-back", "changed-back"),
    "accent": ("surface",),
    "jump": ("surface", "jump-back"),
    "diff": ("surface", "diff-back"),
    "changed": ("surface", "changed-back"),
    "good": ("raised",),
}
_MARKS = (
    "select",
    "jump",
    "diff",
    "match",
    "guest",
    "vmm",
    "edge",
    "port-read",
    "port-write",
    "mmio-read",
    "mmio-write",
    "msr-read",
    "msr-write",
    "event",
)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_colour_stands_out(scheme: int) -> None:
    colours = {name: pair[scheme] for name, pair in _colours().items()}
    for text, surfaces in _TEXTS.items():
        for surface in surfaces:
            assert contrast(colours[text], colours[surface]) >= 4.5, (text, surface)
    for mark in _MARKS:
        for surface in ("surface", "lane"):
            assert contrast(colours[mark], colours[surface]) >= 3, (mark, surface)
    # Who reads and who writes is not told by colour alone, yet they should not look alike.
    for bus in ("port", "mmio", "msr"):
        assert contrast(colours[f"{bus}-read"], colours[f"{bus}-write"]) > 1.5, bus
    assert contrast(colours["guest"], colours["vmm"]) > 1 or colours["guest"] != colours["vmm"]
