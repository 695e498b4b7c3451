"""The explorer's page for everybody: contrast, 400 % zoom, the keyboard's focus, names, themes."""

from __future__ import annotations

import pytest
from browser import Browser
from explore_tools import changed
from explore_traces import detailed, plain

from vmmsim.explore import page

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(120)]

RUN = detailed(600)
EXITS = RUN.exits


@pytest.fixture(scope="module")
def run_page() -> bytes:
    return page(RUN)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_all_text(at: Browser, run_page: bytes, scheme: str) -> None:
    at.scheme(scheme)
    changing = next(e for e in EXITS if e.kind == "port_read" and e.memory and e.state and 240 < e.n < 480)
    right = changed(RUN, changing.n, value=changing.value ^ 1, regs={**changing.regs, "rax": 1})
    for made, hash in (
        (run_page, f"#exit={changing.n}&q=kind%3Aread"), (page(RUN, right), ""), (page(plain(5)), ""),
        (run_page, "#row=62"), (page(detailed(20)), "#q=addr%3Ax"), (page(detailed(20), detailed(20)), ""),
    ):  # fmt: skip
        at.open(made, hash)
        at.js("[...document.querySelectorAll('details')].forEach((e) => { e.open = true; })")
        at.js("document.querySelector('#kinds .chip').click()")
        count, bad = at.run("browser_contrast.js")
        assert count > 40
        assert bad == []
    at.keys("?")
    assert at.run("browser_contrast.js")[1] == []


def test_the_theme_can_be_chosen(at: Browser, run_page: bytes) -> None:
    at.open(run_page)
    back = "return getComputedStyle(document.body).backgroundColor"
    light = at.js(back)
    at.click("#theme")
    at.click("#theme")
    assert at.text("#theme") == "Theme: dark"
    assert at.js(back) != light
    at.click("#theme")
    assert at.js(back) == light
    at.scheme("dark")
    assert at.js(back) != light
    at.scheme("light", still=True)
    assert at.js("return getComputedStyle(document.querySelector('.chip')).transitionDuration") == "0s"


@pytest.mark.parametrize("two", [False, True])
def test_at_400_percent(at: Browser, run_page: bytes, two: bool) -> None:
    """1280 x 1024 at 400 %: 320 x 256 CSS pixels (WCAG 2.2, 1.4.10). One column; nothing is lost."""
    at.size(320, 256, 4)
    widest = next(exit.n for exit in EXITS if exit.device == "lapic")  # the longest address and value
    at.open(page(RUN, changed(RUN, widest, value=1)) if two else run_page, f"#exit={widest}")
    at.js("return new Promise((done) => setTimeout(done, 200))")
    assert at.run("browser_cut_off.js") == []
    assert at.js("return document.querySelector('.work').clientWidth") <= 320
    assert at.js("return [...document.querySelectorAll('#rows .row:not([hidden])')].length") > 2
    at.js("document.getElementById('help-open').click()")
    assert at.run("browser_cut_off.js") == []


def test_focus_is_always_seen_and_reaches_everything(at: Browser, run_page: bytes) -> None:
    at.open(run_page)
    seen: list[str] = []
    for _ in range(60):
        at.keys("\ue004")
        here, outline, style = at.js(
            "const e = document.activeElement, s = getComputedStyle(e);"
            "const name = e === document.body ? '' : e.id || e.textContent;"
            "return [name, parseFloat(s.outlineWidth), s.outlineStyle]"
        )
        if not here or here in seen:
            break
        seen.append(here)
        assert outline >= 2, here
        assert style != "none", here
    for wanted in ("skip", "theme", "help-open", "lanes", "axis", "canvas", "q", "next", "only", "grid"):
        assert wanted in seen, wanted


def test_buttons_and_fields_have_names(at: Browser, run_page: bytes) -> None:
    at.open(run_page)
    nameless = at.js(
        "const named = (e) => e.ariaLabel || e.getAttribute('aria-labelledby')"
        " || e.labels?.length || e.textContent.trim();"
        "return [...document.querySelectorAll('button, input, select, canvas, [role=grid], dialog')]"
        ".filter((e) => !named(e)).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    ids = at.js("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


def test_the_selection_is_seen_in_colours_of_ones_own(at: Browser, run_page: bytes) -> None:
    """Where the reader's system forces its colours, backgrounds are gone."""
    at.open(run_page)
    at.cdp("Emulation.setEmulatedMedia", features=[{"name": "forced-colors", "value": "active"}])
    assert at.js("return matchMedia('(forced-colors: active)').matches")
    assert at.js("return getComputedStyle(document.querySelector('#rows .selected')).outlineStyle") == "solid"


def test_a_long_run_prints_what_is_in_sight(at: Browser, run_page: bytes) -> None:
    at.open(run_page, "#exit=300")
    at.cdp("Emulation.setEmulatedMedia", media="print")
    at.js("return new Promise((done) => setTimeout(done, 300))")
    rows = at.js("return document.querySelectorAll('#rows .row:not([hidden])').length")
    at.cdp("Emulation.setEmulatedMedia", media="")
    assert 5 < rows < 60
