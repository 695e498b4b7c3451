"""What the tests of `vmmsim step` share: a stepper over a guest, or over some machine code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from vmmsim import Machine
from vmmsim.guests import load
from vmmsim.loaders import LoadedImage
from vmmsim.loaders.flat import load_flat
from vmmsim.tui.keyboard import Console, Keyboard
from vmmsim.tui.stepper import Stepper

__all__ = ["READ_TWICE", "code", "guest", "image"]

#: or byte [0x1010], 1; hlt: a read and a write by one instruction.
READ_TWICE = bytes.fromhex("800e101001f4")


def image(data: bytes) -> LoadedImage:
    """Real-mode code at 0x7c00."""
    return load_flat(data, name="test", load_address=0x7C00, mode="real")


def _fields(backend: str, fields: dict[str, Any]) -> dict[str, Any]:
    counts = backend != "kvm"
    return {"clock": "insns" if counts else "exits", "count_insns": counts, "backend": backend, **fields}


@contextlib.contextmanager
def guest(name: str, backend: str, **fields: Any) -> Iterator[Stepper]:
    """A stepper over a built-in guest, as `vmmsim step` makes one."""
    console, keyboard = Console(), Keyboard()
    with Machine.for_guest(name, source=keyboard, sink=console, **_fields(backend, fields)) as machine:
        yield Stepper(machine, console, keyboard, load(name).image.symbols)


@contextlib.contextmanager
def code(
    data: bytes, backend: str, symbols: dict[str, int] | None = None, **fields: Any
) -> Iterator[Stepper]:
    """A stepper over real-mode code at 0x7c00 in a bare machine of 1 MiB."""
    console, keyboard = Console(), Keyboard()
    fields = {"memory": 1 << 20, **fields}
    with Machine(source=keyboard, sink=console, **_fields(backend, fields)) as machine:
        machine.load(image(data))
        yield Stepper(machine, console, keyboard, symbols)
