"""The explorer's page in a real browser: traces that lack something, that are hostile, that are long."""

from __future__ import annotations

import pytest
from browser import Browser
from explore_tools import chosen, matches
from explore_traces import HOSTILE, detailed, header, hostile, plain

from vmmsim.explore import page
from vmmsim.trace.records import Code, CodeLine, End, Event, ExitRecord, Header, Jump, Trace

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(120)]


# -- what is missing, what is strange --------------------------------------------------------------


def test_a_plain_trace(at: Browser) -> None:
    at.open(page(plain(50)))
    assert "plain trace" in at.text("#details")
    assert "vmmsim trace" in at.text("#details")
    assert at.js("return document.getElementById('axis').disabled")
    assert matches(at, "addr:0x1000") == {e.n for e in plain(50).exits if e.address == 0x1000}


@pytest.mark.parametrize("end", [None, End(0, "halt", "halt", 0x7C01)])
def test_a_run_without_exits(at: Browser, end: End | None) -> None:
    at.open(page(Trace(header(), (), end)))
    assert at.text("#facts").split("exits")[1].split()[0] == "0"
    assert ("cut short" in at.text("#facts")) is (end is None)
    at.keys("j", "k", "]", "d", "n", "\ue010", "\ue00f")


def test_a_run_that_was_cut_short(at: Browser) -> None:
    trace = detailed(30, jumps=0)
    at.open(page(Trace(trace.header, trace.records, None)), "#exit=30")
    assert "cut short" in at.text("#facts")
    assert "the run was cut short" in at.text(".then")
    at.open(page(Trace(trace.header, trace.records, End(30, "halt", cut=True))))
    at.keys("\ue010")
    assert "limit" in at.text("#facts")
    assert "went on behind it" in at.text(".sentence")


def test_events_and_what_the_vmm_did_next(at: Browser) -> None:
    records = (
        Code(1, 0x7C00, (CodeLine(0x7C00, "f4", "hlt"),)),
        ExitRecord(1, "port_write", 0x80, 1, 1, then="interrupt 0x20"),
        Event(1, "halt", "waits", rip=0x7C01, code=1, then="interrupt 0x21"),
        ExitRecord(2, "msr_write", 0x1B, 8, 0xFEE00900),
    )
    at.open(page(Trace(header(), records, End(2, "error", "the device failed"))))
    assert "interrupt 0x20" in at.text(".then")
    assert "halt" in at.text(".then")
    at.keys("j")
    assert "halt" in at.text("#details h2")
    assert at.text("tr.here .text") == "hlt"
    assert "interrupt 0x21" in at.text(".then")
    at.keys("\ue010")
    assert "the device failed" in at.text("#details")


def test_references_to_what_is_not_there(at: Browser) -> None:
    """A trace that was cut at its beginning: the code and the snapshot that records name are missing."""
    records = (
        ExitRecord(5, "port_write", 0x80, 1, 1, code=99, device="unknown", looked=True),
        Jump(5, "restore", 7, 3),
        ExitRecord(6, "port_write", 0x80, 1, 1),
    )
    at.open(page(Trace(header(), records, None)))
    assert chosen(at) == "#5"
    at.keys("j", "j")
    assert chosen(at) == "#6"


def test_a_hostile_trace_is_text(at: Browser) -> None:
    at.open(page(hostile()))
    for step in range(6):
        assert at.js("return window.pwned ?? null") is None, step
        assert at.js("return document.querySelectorAll('img, svg, iframe').length") == 0
        assert at.js("return document.scripts.length") == 2
        at.keys("j")
    assert at.text("h1") == HOSTILE[0] + HOSTILE[1]
    at.keys("\ue011")
    details = at.js("return document.getElementById('details').textContent")
    for text in (HOSTILE[0], HOSTILE[1], HOSTILE[2]):
        assert text in details
    # What is invisible is made visible, and nothing turns the direction of the text around.
    console = at.js("return document.querySelector('.console').textContent")
    assert "\\u{202e}gnp.exe\\u{2066}\\u{200b}\\x00\\x1b[31m\\x07?" in console
    assert not any(character in console for character in "\u202e\u2066\u200b\x00\x1b")
    assert at.js("return document.documentElement.scrollWidth <= innerWidth")


def test_a_hostile_trace_without_scripts(at: Browser) -> None:
    at.open(page(hostile()), scripts=False)
    text = at.driver.find_element("css selector", "body").text
    at.cdp("Emulation.setScriptExecutionDisabled", value=False)
    assert HOSTILE[0] in text
    assert at.js("return document.querySelectorAll('img').length") == 0


# -- 100,000 exits ---------------------------------------------------------------------------------


def test_a_long_run_scrolls_without_a_stall(at: Browser) -> None:
    """Nothing is quadratic. How fast it is, `python benchmarks/run.py --only explore` says."""
    made = page(detailed(100_000, jumps=5))
    assert len(made) <= 15_000_000
    at.open(made)
    ready = at.js("return performance.getEntriesByName('vmmsim-interactive')[0].startTime")
    assert ready < 10_000
    longest, elements, last = at.js(
        """
        const tasks = [], grid = document.getElementById("grid");
        const seen = (list) => tasks.push(...list.getEntries().map((e) => e.duration));
        new PerformanceObserver(seen).observe({ type: "longtask" });
        const frame = () => new Promise(requestAnimationFrame);
        const end = grid.scrollHeight;
        for (let at = 0; at <= 60; at++) { grid.scrollTop = (end * at) / 60; await frame(); }
        await frame(); await frame();
        const rows = document.querySelectorAll("#rows .row");
        return [Math.max(0, ...tasks), rows.length, document.getElementById("rows").innerText];
        """
    )
    assert longest < 500  # a stall that a person would call one; the machine may be busy
    assert elements < 120
    assert "100,000" in last
    at.keys("\ue010", "[")
    assert "snapshot 1" in at.text(".sentence")


def test_more_rows_than_pixels(at: Browser) -> None:
    """Beyond what a browser can lay out the list still reaches its last row. Narrow: high rows."""
    at.size(320, 800)
    exits = tuple(ExitRecord(n, "port_write", 0x80, 1, n & 255) for n in range(1, 220_001))
    at.open(page(Trace(Header(guest="g", backend="b", provenance="p"), exits, None)))
    assert at.js("return document.getElementById('rows').offsetHeight") == 12_000_000
    at.keys("\ue010")
    assert chosen(at) == "#220,000"
    assert at.text("#rows .selected .number") == "220,000"
    at.keys("k")
    assert chosen(at) == "#219,999"
    at.js("const g = document.getElementById('grid'); g.scrollTop = 0")
    at.wait("return document.querySelector('#rows .row:not([hidden]) .number').textContent === '1'")
