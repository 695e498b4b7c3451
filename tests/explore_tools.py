"""What tests of the explorer's page do again and again."""

from __future__ import annotations

from typing import Any

import msgspec
from browser import Browser

from vmmsim import Machine, guests
from vmmsim.snapshot.cheat import TimeMachine
from vmmsim.streams.sources import BytesSource
from vmmsim.trace.recorder import TraceRecorder
from vmmsim.trace.records import ExitRecord, Trace

#: What is played: the alphabet, twice, and the full stop that ends the game.
_LETTERS = b"abcdefghijklmnopqrstuvwxyz" * 2 + b"."


def chosen(at: Browser) -> str:
    """The number of the selected access, as it is shown: `#1,234`; "" for what is none."""
    return at.text(".exit-number")


def search(at: Browser, query: str) -> None:
    """Type a query and press Enter."""
    at.js("const q = document.getElementById('q'); q.value = arguments[0]; q.form.requestSubmit()", query)


def matches(at: Browser, query: str) -> set[int]:
    """The accesses that a query finds: what the list shows of them, scrolled through."""
    at.size(1440, 5000)
    search(at, query)
    at.js("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    if not at.js("return document.getElementById('only').checked"):
        at.click("#only")
    found: set[int] = set()
    for _ in range(200):
        shown = at.js(
            "return [...document.querySelectorAll('#rows .row:not([hidden]) .number')]"
            ".map((e) => e.textContent)"
        )
        found |= {int(text.replace(",", "")) for text in shown if text}
        if at.js(
            "const g = document.getElementById('grid'), before = g.scrollTop;"
            "g.scrollTop += g.clientHeight * 0.9; return g.scrollTop === before"
        ):
            break
        at.js("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return found


def changed(trace: Trace, n: int, **fields: Any) -> Trace:
    """The trace with other fields in the record of access `n`."""
    records = tuple(
        msgspec.structs.replace(record, **fields)
        if isinstance(record, ExitRecord) and record.n == n
        else record
        for record in trace.records
    )
    return msgspec.structs.replace(trace, records=records)


def game(backend: str, *, seed: int = 7) -> Trace:
    """The detailed trace of a game in which time goes back whenever it was lost."""
    cheat = guests.load("guess").manifest.cheat
    assert cheat is not None
    with Machine.for_guest("guess", backend=backend, seed=seed, source=BytesSource(_LETTERS)) as machine:
        recorder = TraceRecorder(machine, guest="guess")
        TimeMachine(machine, begin=cheat.begin, lost=cheat.lost)
        recorder.begin()
        return recorder.finish(machine.run())
