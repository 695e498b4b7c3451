"""Writes the pictures of docs/explorer.md: `guess --cheat` in the exit explorer, in headless Chromium.

Run it where chromium and selenium are: `python tools/screenshots.py [FOLDER]`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browser import Browser, browser, why_not
from explore_tools import game

from vmmsim.explore import page
from vmmsim.trace.records import ExitRecord, Jump

_WIDTH, _HEIGHT = 1280, 960
#: A canvas is painted in the next frame; what is chosen scrolls into sight in the one after.
_FRAMES = "return new Promise((done) => setTimeout(done, 400))"


def take(at: Browser, made: bytes, hash: str, scheme: str, file: Path) -> None:
    at.size(_WIDTH, _HEIGHT)
    at.scheme(scheme)
    at.open(made, hash)
    at.js(_FRAMES)
    at.picture(file)
    print(f"{file}: {file.stat().st_size:,} bytes")


def main() -> int:
    reason = why_not()
    if reason:
        print(f"screenshots: {reason}", file=sys.stderr)
        return 1
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    trace = game("unicorn")
    back = next(record for record in trace.records if isinstance(record, Jump) and record.what == "restore")
    # A letter that the player typed in a game that was lost, with the registers that it changed.
    typed = next(
        record.n
        for record in trace.records
        if isinstance(record, ExitRecord) and record.device == "char-in" and back.to < record.n < back.n
    )
    made = page(trace)
    with browser() as at:
        take(at, made, f"#exit={back.n}", "light", folder / "explorer-time-travel.png")
        take(at, made, f"#exit={typed}&q=device:char-in&lanes=device", "dark", folder / "explorer-exit.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
