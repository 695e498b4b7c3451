"""The explorer's page in a real browser: what a person does with it."""

from __future__ import annotations

import random
import time
from collections import Counter

import msgspec
import pytest
from browser import Browser
from explore_tools import changed, chosen, game, matches, search
from explore_traces import detailed, header

from vmmsim.explore import page
from vmmsim.testing.slow import time_limit
from vmmsim.trace.records import Code, End, Event, ExitRecord, Jump, Trace

# One Chromium for the whole file.
pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(120)]

RUN = detailed(600)
EXITS = RUN.exits


@pytest.fixture(scope="module")
def run_page() -> bytes:
    return page(RUN)


# -- it loads --------------------------------------------------------------------------------------


def test_it_loads_alone(at: Browser, run_page: bytes) -> None:
    at.open(run_page)
    assert at.js("return performance.getEntriesByType('resource').length") == 0
    assert at.driver.title == "made-up"
    assert at.text("h1") == "made-up"
    assert at.js("return document.documentElement.lang") == "en"
    for landmark in (
        "header",
        "main",
        "section[aria-labelledby]",
        "[role=search]",
        "[role=grid][aria-rowcount]",
    ):
        assert at.js("return document.querySelectorAll(arguments[0]).length", landmark), landmark
    assert "600" in at.text("#facts")
    assert chosen(at) == "#1"


def test_nothing_can_be_fetched(at: Browser, run_page: bytes) -> None:
    """The policy holds even if a script should get in: none of these may leave the page."""
    at.open(run_page)
    refused = at.js(
        "const seen = [], note = (e) => seen.push(e.effectiveDirective);"
        "document.addEventListener('securitypolicyviolation', note);"
        "fetch('data:,x').catch(() => {}); const i = new Image(); i.src = 'file:///etc/hostname';"
        "const s = document.createElement('script'); s.textContent = 'window.pwned = 1';"
        "document.body.append(s);"
        "return new Promise((done) => setTimeout(() => done([seen, window.pwned ?? null]), 200))"
    )
    assert set(refused[0]) == {"connect-src", "img-src", "script-src-elem"}
    assert refused[1] is None
    at.log()  # the refusals


def test_without_scripts_it_says_what_is_needed(at: Browser, run_page: bytes) -> None:
    at.open(run_page, scripts=False)
    try:
        text = at.text("noscript") or at.driver.find_element("css selector", "body").text
    finally:
        at.cdp("Emulation.setScriptExecutionDisabled", value=False)
    assert "needs JavaScript" in text
    assert "600" in text
    assert "restores" in text


# -- moving ----------------------------------------------------------------------------------------


def test_keys_step_through_the_list(at: Browser, run_page: bytes) -> None:
    at.open(run_page)
    for keys, expected in (
        ("jjj", "#4"), ("k", "#3"), ("\ue015", "#4"), ("\ue013\ue013", "#2"), ("\ue010", ""),
        ("\ue011", "#1"),
    ):  # fmt: skip
        at.keys(*keys)
        assert chosen(at) == expected, keys
    at.keys("\ue00f")  # Page Down
    assert int(chosen(at)[1:]) > 5
    selected = at.js("return document.querySelectorAll('#rows [aria-selected=true]').length")
    assert selected == 1
    active = at.js("return document.getElementById('grid').getAttribute('aria-activedescendant')")
    assert (
        at.js("return document.getElementById(arguments[0])?.getAttribute('aria-selected')", active) == "true"
    )


def test_go_to_a_number(at: Browser, run_page: bytes) -> None:
    at.open(run_page)
    at.keys("g")
    at.keys(*"234", "\ue007")
    assert chosen(at) == "#234"
    at.wait("return document.activeElement.id === 'grid'")


def test_help_lists_the_keys(at: Browser, run_page: bytes) -> None:
    at.open(run_page)
    at.keys("?")
    assert at.js("return document.getElementById('help').open")
    assert "next, previous match" in at.text("#help-body")
    at.keys("\ue00c")
    assert not at.js("return document.getElementById('help').open")


def test_a_click_selects(at: Browser, run_page: bytes) -> None:
    at.open(run_page)
    at.js("document.querySelectorAll('#rows .row')[5].click()")
    assert chosen(at) == "#6"
    at.click("#details [aria-label='Next exit']")
    assert chosen(at) == "#7"
    at.keys("\ue007", "\ue007")  # the button that was pressed keeps the focus
    assert chosen(at) == "#9"


def test_jumps_in_time_are_stations(at: Browser, run_page: bytes) -> None:
    at.open(run_page)
    places = [(record.n, record.what) for record in RUN.records if isinstance(record, Jump)]
    assert len(places) == 4
    for n, what in places:
        at.keys("]")
        assert ("snapshot" if what == "snapshot" else "back in time") in at.text("#details h2")
        assert "behind exit 60" in at.text("#details .sentence"), n
    at.keys("[")
    assert "behind exit 60" in at.text("#details .sentence")
    assert len(at.texts(".jump-button")) == 4


def test_a_link_leads_to_an_exit(at: Browser, run_page: bytes) -> None:
    at.open(run_page, "#exit=377&q=device%3Auart")
    assert chosen(at) == "#377"
    assert at.js("return document.getElementById('q').value") == "device:uart"
    at.keys("j")
    at.wait("return location.hash.includes('exit=378')")
    assert "q=device" in at.js("return location.hash")
    at.js("location.hash = '#exit=12'")
    at.wait("return document.querySelector('.exit-number').innerText === '#12'")
    assert at.js("return document.getElementById('q').value") == ""


def test_a_link_keeps_what_is_hidden(at: Browser, run_page: bytes) -> None:
    at.open(run_page)
    at.click(f"#devices .chip:nth-child({at.texts('#devices .chip-name').index('nobody') + 1})")
    at.click(f"#kinds .chip:nth-child({at.texts('#kinds .chip-name').index('mmio write') + 1})")
    shown = at.text("#count")
    at.wait("return location.hash.includes('without') && location.hash.includes('hide')")
    hash = at.js("return location.hash")
    at.open(run_page, hash)
    assert at.text("#count") == shown
    assert at.texts("#kinds [aria-pressed=false] .chip-name") == ["mmio write"]
    assert at.texts("#devices [aria-pressed=false] .chip-name") == ["nobody"]


@pytest.mark.parametrize(
    "hash", ["#exit=999999", "#exit=-1", "#row=0", "#exit=%00", "#q=%22", "#hide=%25zz", "#q=addr:x", "#%"]
)
def test_a_bad_link_is_no_error(at: Browser, run_page: bytes, hash: str) -> None:
    at.open(run_page, hash)
    assert at.js("return document.getElementById('failed').hidden")
    assert at.text("#details h2")


# -- searching -------------------------------------------------------------------------------------

QUERIES = {
    "kind:mmio_write": lambda e: e.kind == "mmio_write",
    "kind:write": lambda e: e.kind.endswith("write"),
    "device:uart": lambda e: e.device == "uart",
    "device:out": lambda e: e.device == "char-out",
    "addr:0x3f8": lambda e: e.address == 0x3F8,
    "addr:0x1000-0x1fff": lambda e: 0x1000 <= e.address <= 0x1FFF,
    "value:0x41-90": lambda e: 0x41 <= e.value <= 90,
    "size:4": lambda e: e.size == 4,
    "-device:uart kind:port": lambda e: e.device != "uart" and e.kind.startswith("port"),
    "THR": lambda e: e.kind == "port_write" and e.address == 0x3F8,
    '"in al"': lambda e: e.code == 2,
    "then:interrupt": lambda e: bool(e.then),
    "is:unclaimed": lambda e: not e.device,
    "is:changed": lambda e: bool(e.memory),
    "n:100-105": lambda e: 100 <= e.n <= 105,
}


def test_a_search_finds_what_it_says(at: Browser) -> None:
    trace = detailed(250)
    at.open(page(trace))
    for query, fits in QUERIES.items():
        expected = {exit.n for exit in trace.exits if fits(exit)}
        assert expected, query
        assert matches(at, query) == expected, query
        events = (
            sum(isinstance(record, Event) for record in trace.records) if query.startswith("then:") else 0
        )
        assert int(at.text("#matches").split()[0]) == len(expected) + events, query


def test_matches_are_stations(at: Browser, run_page: bytes) -> None:
    wanted = [exit.n for exit in EXITS if exit.device == "lapic"][:3]
    at.open(run_page)
    at.keys("/", *"device:lapic", "\ue007")  # Enter goes to the first
    assert chosen(at) == f"#{wanted[0]:,}"
    at.keys("\ue00c", "n")
    assert chosen(at) == f"#{wanted[1]:,}"
    at.keys("n", "N", "N")
    assert chosen(at) == f"#{wanted[0]:,}"


@pytest.mark.parametrize("query", ["addr:hello", "value:0x", "size:1-2-3", "is:nothing"])
def test_a_wrong_search_says_what_is_wrong(at: Browser, run_page: bytes, query: str) -> None:
    at.open(run_page)
    search(at, query)
    assert query.split(":")[0] + ": " in at.text("#matches")
    assert at.js("return document.getElementById('q').getAttribute('aria-invalid')") == "true"


def test_chips_filter(at: Browser, run_page: bytes) -> None:
    at.open(run_page)
    counts = Counter(exit.kind.replace("_", " ") for exit in EXITS)
    chips = dict(zip(at.texts("#kinds .chip-name"), at.texts("#kinds .chip-count"), strict=True))
    assert {name: int(chips[name].replace(",", "")) for name in counts} == counts
    devices = Counter(exit.device or "nobody" for exit in EXITS)
    assert set(at.texts("#devices .chip-name")) == set(devices)
    rows = sum(not isinstance(record, Code) for record in RUN.records) + 1  # and the end
    assert at.text("#count") == f"{rows:,} rows"
    at.click(f"#devices .chip:nth-child({at.texts('#devices .chip-name').index('uart') + 1})")
    assert at.text("#count") == f"{rows - devices['uart']:,} of {rows:,} rows"
    assert at.js("return document.activeElement.getAttribute('aria-pressed')") == "false"  # the focus is kept
    at.click("#devices .all")
    assert at.text("#count") == f"{rows:,} rows"


# -- what it shows ---------------------------------------------------------------------------------


def registers_by(trace: Trace, n: int, cpu: int) -> dict[str, int]:
    """All registers of a vCPU at access `n`, by the records' own words."""
    known = dict(trace.header.start) if cpu == 0 else {}
    last = 0
    for record in trace.records:
        if isinstance(record, Code):
            continue
        if record.n > n or (record.n == n and not isinstance(record, ExitRecord)):
            break
        last = last if isinstance(record, Jump) else record.cpu
        if last == cpu:
            known.update(record.regs)
    return known


def shown_registers(at: Browser) -> dict[str, int]:
    code = (
        "return [...document.querySelectorAll('.regs li')].map((e) => "
        "[e.querySelector('.name').textContent, e.querySelector('.digits').textContent])"
    )
    return {name: int(digits, 16) for name, digits in at.js(code)}


@pytest.mark.parametrize("cpus", [1, 2])
def test_registers_at_any_exit(at: Browser, cpus: int) -> None:
    trace = detailed(900, seed=cpus, cpus=cpus)
    at.open(page(trace))
    draw = random.Random(7)
    wrong = []
    for n in (1, 2, 255, 256, 257, 900, *(draw.randrange(1, 900) for _ in range(8))):
        # Set until it is shown: the page writes its own place there too, a moment after it has moved.
        at.wait(
            f"if (document.querySelector('.exit-number')?.innerText === '#{n}') return true;"
            f"if (location.hash !== '#exit={n}') location.hash = '#exit={n}'; return false"
        )
        expected = registers_by(trace, n, trace.exits[n - 1].cpu)
        patience = time.monotonic() + time_limit(3)  # the cards of an exit are drawn one after the other
        while (shown := shown_registers(at)) != expected and time.monotonic() < patience:
            time.sleep(0.02)
        if shown != expected:
            wrong.append((n, shown, expected))
    assert wrong == []


def test_values_of_64_bits_are_exact(at: Browser) -> None:
    value = 0xFEDC_BA98_7654_3211
    exits = (
        ExitRecord(
            1, "mmio_write", (1 << 52) - 8, 8, value, rip=value, regs={"rax": value, "efer": 0x500, "cr0": 1}
        ),
        ExitRecord(2, "msr_read", 0xC0000080, 8, value - 1, rip=value, regs={"rax": value - 1}),
    )
    at.open(page(Trace(header(), exits, End(2, "halt"))))
    assert at.text(".fact-list .big") == "0xfedcba9876543211"
    assert "0xffffffffffff8" in at.text(".fact-list")
    assert shown_registers(at)["rax"] == value
    at.keys("j")
    assert shown_registers(at)["rax"] == value - 1
    assert "was 0xfedcba9876543211" in at.text(".regs .changed")
    assert "KVM_EXIT_X86_RDMSR" in at.text(".fact-list")
    assert matches(at, f"value:{value}") == {1}


def test_an_exit_in_full(at: Browser, run_page: bytes) -> None:
    exit = next(e for e in EXITS if e.kind == "port_read" and e.memory and e.state and e.n > 200)
    at.open(run_page, f"#exit={exit.n}")
    facts = at.text(".fact-list")
    assert f"{exit.value:#04x}" in facts
    assert "uart" in facts
    assert "LSR" in facts
    assert "KVM_EXIT_IO" in facts
    assert at.text("tr.here .text") == "in al, dx"
    assert "lsr" in at.text("table.state")
    assert ("THRE TEMT" if exit.state["lsr"] == 0x60 else "DR THRE TEMT") in at.text("table.state")
    change = exit.memory[0]
    assert at.texts("table.memory .new .hex")[0] == change.new
    marked = at.js(
        "return [...document.querySelectorAll('table.memory .new .changed')].map((e) => e.textContent)"
    )
    old, new = bytes.fromhex(change.old), bytes.fromhex(change.new)
    assert marked == [f"{b:02x}" for a, b in zip(old, new, strict=True) if a != b]
    printed = "".join(e.output for e in EXITS if e.n <= exit.n)
    assert at.js("return document.querySelector('.console').textContent").endswith(printed[-500:])
    assert "resumed the guest" in at.text(".then")


def test_what_time_travel_undid(at: Browser, run_page: bytes) -> None:
    """The guest forgot 61 to 480: all restores go back to behind 60."""
    at.open(run_page)
    for n, undone in ((60, False), (61, True), (241, True), (480, True), (481, False), (600, False)):
        at.js("location.hash = `#exit=${arguments[0]}`", n)
        at.wait(f"return document.querySelector('.exit-number')?.innerText === '#{n:,}'")
        assert bool(at.text(".undone-note")) is undone, n
        classes = at.js("return document.querySelector('#rows .selected').className")
        assert ("undone" in classes.split()) is undone, n
    assert matches(at, "is:undone") == set(range(61, 481))


def test_a_way_back_to_what_was_undone(at: Browser) -> None:
    """Snapshot 1 behind 1, 2 behind 2; back to 1 behind 3; back to 2 behind 4: 3, 4 are undone."""
    exits = [ExitRecord(n, "port_write", 0x80, 1, n) for n in range(1, 6)]
    records = (
        exits[0], Jump(1, "snapshot", 1, 1), exits[1], Jump(2, "snapshot", 2, 2), exits[2],
        Jump(3, "restore", 1, 1), exits[3], Jump(4, "restore", 2, 2), exits[4],
    )  # fmt: skip
    at.open(page(Trace(header(), records, End(5, "halt"))))
    assert matches(at, "is:undone") == {3, 4}


def arcs(at: Browser, share: float) -> int:
    """Pixels of the jumps' colour above the lanes, in a narrow column at that share of the width."""
    found = at.js(
        "const c = document.getElementById('canvas');"
        "const d = c.getContext('2d').getImageData(arguments[0] * c.width, 2, 4, 50).data; let n = 0;"
        "for (let i = 0; i < d.length; i += 4)"
        "  if (Math.abs(d[i] - 0xb3) + Math.abs(d[i + 1] - 0x47) + Math.abs(d[i + 2]) < 60) n++;"
        "return n",
        share,
    )
    at.log()  # Chromium's advice for who reads a canvas often
    return int(found)


def test_the_timeline_draws_the_way_back(at: Browser, run_page: bytes) -> None:
    """There are arcs up to the last restore, and none behind it."""
    at.open(run_page)
    assert arcs(at, 0.5) > 4
    assert arcs(at, 0.97) == 0


@pytest.mark.timeout(60)
def test_the_cheat_at_a_glance(at: Browser, backend_name: str) -> None:
    """`guess --cheat` on every CPU: an arc for each game that was lost, and the player never loses."""
    trace = game(backend_name)
    back = [record for record in trace.records if isinstance(record, Jump) and record.what == "restore"]
    assert len(back) > 2
    at.open(page(trace), "#exit=999999")
    assert f"{len(back)} × back" in at.text("#facts")
    labels = at.texts(".jump-button")
    assert [text for text in labels if text.startswith("↶")] == [f"↶ {j.n:,} → {j.to:,}" for j in back]
    middle = (back[0].n + back[0].to) / 2 / len(trace.exits)
    assert arcs(at, 0.08 + 0.92 * middle) > 4
    assert "0 lost" in at.text(".console")
    at.js("location.hash = `#exit=${arguments[0]}`", back[0].n)
    at.wait("return document.querySelector('.undone-note') !== null")
    assert f"back in time to behind exit {back[0].to:,}" in at.text(".then")


def test_the_timeline_by_mouse(at: Browser, run_page: bytes) -> None:
    from selenium.webdriver import ActionChains

    at.open(run_page)
    canvas = at.driver.find_element("id", "canvas")
    ActionChains(at.driver).move_to_element_with_offset(canvas, 200, 40).click().perform()
    first = chosen(at)
    assert first not in ("", "#1")
    assert at.js(
        "return !document.getElementById('tip').hidden && document.getElementById('tip').innerText !== ''"
    )
    ActionChains(at.driver).move_to_element_with_offset(canvas, 100, 60).click_and_hold().move_by_offset(
        200, 0
    ).release().perform()
    at.wait("return !document.getElementById('range').hidden")  # a part is shown now
    at.click("#zoom-fit")
    at.wait("return document.getElementById('range').hidden")


def test_the_timeline_by_keys_and_in_words(at: Browser, run_page: bytes) -> None:
    at.open(run_page)
    at.js("document.getElementById('canvas').focus()")
    at.keys("\ue014", "\ue014")
    assert chosen(at) == "#3"
    slider = at.js("const c = document.getElementById('canvas'); return [c.ariaValueNow, c.ariaValueText]")
    assert slider[0] == "3"
    assert slider[1].startswith("exit 3: ")
    assert "behind exit 240 time went back to behind exit 60" in at.js(
        "return document.getElementById('time-text').textContent"
    )
    at.js("const a = document.getElementById('axis'); a.value = 'time'; a.dispatchEvent(new Event('change'))")
    at.wait("return location.hash.includes('axis=time')")


# -- two runs --------------------------------------------------------------------------------------


def test_two_runs_side_by_side(at: Browser) -> None:
    left = detailed(400, seed=3)
    was = left.exits[249]
    right = changed(left, 250, value=was.value ^ 1, regs={**was.regs, "rax": was.value ^ 1})
    at.open(page(left, right))
    assert "access 250 differs" in at.text(".verdict")
    assert at.texts(".details .exit-number") == ["#250", "#250"]  # it begins there
    values = at.texts(".fact-list .big")
    assert [int(value.split()[0], 16) for value in values] == [was.value, was.value ^ 1]
    assert (
        at.texts(".fact-list .unlike dt")
        == ["value written" if was.kind.endswith("write") else "value answered"] * 2
    )
    assert {name[:3] for name in at.texts(".regs .differs .name")} == {"rax"}
    at.keys("\ue011")
    assert at.texts(".details .exit-number") == ["#1", "#1"]
    at.keys("d")
    assert at.texts(".details .exit-number") == ["#250", "#250"]
    assert matches(at, "is:different") == {250}
    assert (
        at.js("return document.querySelector('#rows .first .same').getAttribute('aria-label')")
        == "first difference"
    )


def test_two_runs_that_are_the_same(at: Browser) -> None:
    at.open(page(detailed(50), detailed(50)))
    assert "both runs are the same: 50 accesses, then halt" in at.text(".verdict")
    at.keys("d")
    assert "no first difference" in at.text("#said")
    assert set(at.texts("#rows .row:not([hidden]) .same")) == {"="}


def test_a_run_that_ends_early(at: Browser) -> None:
    long = detailed(60, jumps=0)
    kept = tuple(record for record in long.records if isinstance(record, Code) or record.n <= 40)
    short = Trace(long.header, kept, End(40, "shutdown"))
    at.open(page(long, short))
    assert "B ended after 40 accesses (shutdown), A went on" in at.text(".verdict")
    assert at.texts(".details .exit-number") == ["#41"]
    assert "no such exit" in at.text(".details")


def test_runs_that_end_differently(at: Browser) -> None:
    left = detailed(30)
    at.open(page(left, msgspec.structs.replace(left, end=End(30, "shutdown", "triple fault"))))
    assert "all 30 accesses are the same, but A ended with halt, B with shutdown" in at.text(".verdict")
    assert ["halt" in text for text in at.texts(".fact-list")] == [True, False]
    assert "shutdown: triple fault" in at.texts(".fact-list")[1]
    assert at.js("return document.querySelectorAll('#rows .different').length") == 1
