"""Draws docs/images/step.svg: `vmmsim step guess` at an exit that a student is answering by hand.

    python tools/step_screenshot.py

Textual's own export, on Unicorn with a seed, so that it comes out the same; review the diff.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from vmmsim import Machine
from vmmsim.guests import load
from vmmsim.tui.app import StepApp
from vmmsim.tui.keyboard import Console, Keyboard
from vmmsim.tui.stepper import Stepper

TARGET = Path(__file__).resolve().parent.parent / "docs" / "images" / "step.svg"


async def _draw(app: StepApp) -> str:
    async with app.run_test(size=(80, 24)) as pilot:
        for key in ("s", "a", "k", "enter", "c", "a", *"'m'"):
            await pilot.press(key)
            while app.busy:
                await pilot.pause(0.05)
        app.screen.set_focus(None)  # a cursor blinks
        await pilot.pause(0.2)
        return app.export_screenshot(title="vmmsim step guess")


def main() -> None:
    console, keyboard = Console(), Keyboard()
    with Machine.for_guest(
        "guess", backend="unicorn", seed=1, clock="insns", count_insns=True, source=keyboard, sink=console
    ) as machine:
        stepper = Stepper(machine, console, keyboard, load("guess").image.symbols)
        svg = asyncio.run(_draw(StepApp(stepper, "vmmsim step guess  unicorn  bare, clock insns")))
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(svg, encoding="utf-8")
    print(f"{TARGET}: {len(svg)} bytes")


if __name__ == "__main__":
    main()
