"""docs/reference/api*.md: which modules are public, and what is in them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module

__all__ = ["GROUPS", "details", "names"]

#: The public modules: page -> (title, module -> what one finds there).
GROUPS: dict[str, tuple[str, dict[str, str]]] = {
    "machine": ("The machine", {
        "vmmsim": "What most programs need, under short names.",
        "vmmsim.machine": "`Machine`, with all that it can do: running, talking, snapshots, history.",
        "vmmsim.config": "The value that describes a machine.",
        "vmmsim.budget": "How long a run may last.",
        "vmmsim.expect": "Talking with a guest's console.",
        "vmmsim.clock": "The time that devices see.",
        "vmmsim.errors": "Every error, and the exit code of the process that it stands for.",
        "vmmsim.outcome": "How a run ended, and the exit code that follows.",
    }),
    "backends": ("The contract of a CPU", {
        "vmmsim.exits": "The closed set of exits.",
        "vmmsim.backends": "Backends by name.",
        "vmmsim.backends.base": "What a backend must offer.",
    }),
    "cpu": ("The CPU", {
        "vmmsim.cpu": "`CpuState`: every register.",
        "vmmsim.cpu.modes": "States to start in.",
        "vmmsim.cpu.paging": "Page tables, made and walked.",
        "vmmsim.cpu.descriptors": "Segment descriptors and gates, packed and unpacked.",
    }),
    "devices": ("Memory and devices", {
        "vmmsim.memory": "Guest-physical memory.",
        "vmmsim.bus": "Port and MMIO buses.",
        "vmmsim.devices.base": "What devices are given.",
        "vmmsim.wiring": "All that a device of a machine may ask for.",
        "vmmsim.streams": "The host's ends of the guest's characters.",
    }),
    "guests": ("Guests", {
        "vmmsim.loaders": "From a file to an image.",
        "vmmsim.guests": "The built-in guests.",
        "vmmsim.pc_tables": "What a kernel finds in a PC.",
        "vmmsim.asm": "The assembler (the extra `asm`).",
    }),
    "snapshots": ("Snapshots and migration", {
        "vmmsim.snapshot.values": "`Snapshot`: all that a machine is.",
        "vmmsim.snapshot.container": "Snapshot files.",
        "vmmsim.snapshot.pack": "Packed snapshot files.",
        "vmmsim.snapshot.compare": "What differs between two snapshots.",
        "vmmsim.snapshot.triggers": "When a snapshot of a run is taken.",
        "vmmsim.snapshot.history": "Going back.",
        "vmmsim.snapshot.cheat": "Going back when a game was lost.",
        "vmmsim.snapshot.clone": "Many machines of one snapshot.",
        "vmmsim.snapshot.executors": "Where they run.",
        "vmmsim.snapshot.migrate": "Moving a machine: the source.",
        "vmmsim.snapshot.receive": "Moving a machine: the destination.",
    }),
    "traces": ("Traces, recordings, comparisons", {
        "vmmsim.trace": "The exit trace.",
        "vmmsim.explore": "The exit explorer's page.",
        "vmmsim.record": "Record and replay.",
        "vmmsim.diff": "Traces, states and memories compared; the known divergences.",
        "vmmsim.diff.sides": "What `diff` compares.",
        "vmmsim.diff.session": "`diff` itself.",
        "vmmsim.diff.report": "What it reports.",
    }),
    "testing": ("Testing", {
        "vmmsim.testing": "Conformance suites, and comparing two sides.",
        "vmmsim.testing.backend": "The suite for backends.",
        "vmmsim.testing.devices": "The suite for devices.",
        "vmmsim.testing.checks": "What a check is, and what may become of it.",
        "vmmsim.testing.same": "Comparing two sides in a test.",
        "vmmsim.testing.slow_host": "A slow host, for tests.",
        "vmmsim.testing.bench": "A VM of a fixed shape, for checks of a backend.",
        "vmmsim.testing.strategies": "Strategies for hypothesis.",
        "vmmsim.testing.strategies.cpu": "CPU states.",
        "vmmsim.testing.strategies.code": "Instructions and programs.",
        "vmmsim.testing.strategies.devices": "Scripts for devices, schedules of interrupts.",
        "vmmsim.testing.strategies.pages": "Page tables.",
    }),
}  # fmt: skip

#: Modules whose classes are shown with what they inherit.
_WHOLE = ("vmmsim.machine",)
#: Modules that only give names of others: their page lists the names, which are documented elsewhere.
_NAMES_ONLY = ("vmmsim", "vmmsim.testing", "vmmsim.testing.strategies")


def names(module: str) -> Iterator[tuple[str, str]]:
    """Each public name of a module, with the first sentence of what it says of itself."""
    loaded = import_module(module)
    for name in loaded.__all__:
        yield name, _sentence(getattr(loaded, name))


def _sentence(value: object) -> str:
    """The first sentence of a class's or a function's docstring; the value of a small constant."""
    if inspect.isclass(value) or inspect.isroutine(value):
        text = " ".join((value.__doc__ or "").partition("\n\n")[0].split())
        return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", text)[0].rstrip(":")
    shown = f"`{value:#x}`" if type(value) is int and value > 255 else f"`{value!r}`"
    return shown if len(shown) < 60 else type(value).__name__


def details(module: str) -> str:
    """What autodoc is to write of a module, in the HTML."""
    lines = [f".. automodule:: {module}"]
    if module not in _NAMES_ONLY:
        lines += ["   :members:", "   :undoc-members:"]
    if module in _WHOLE:
        lines.append("   :inherited-members:")
    return "```{eval-rst}\n" + "\n".join(lines) + "\n```\n"
