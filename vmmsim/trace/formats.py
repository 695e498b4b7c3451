"""The formats that a trace is written in, by name and by the suffix of a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from ..errors import UsageError
from .jsonl import trace_lines
from .records import Trace

__all__ = ["FORMATS", "check_format", "format_of", "rendered"]

#: Suffixes of file names, by format.
FORMATS: dict[str, tuple[str, ...]] = {
    "html": (".html", ".htm"),
    "jsonl": (".jsonl",),
    "perfetto": (".json",),
    "vcd": (".vcd",),
}


def format_of(path: str, chosen: str | None) -> str:
    """The format of the file `path`: as chosen, else by its suffix. UsageError where that says nothing."""
    if chosen is not None:
        return chosen
    suffix = os.path.splitext(path)[1].lower()
    for name, suffixes in FORMATS.items():
        if suffix in suffixes:
            return name
    raise UsageError(
        f"the name '{path}' does not say in which format the trace is to be",
        hint="end it in .html, .jsonl, .json (Perfetto) or .vcd, or give --format",
    )


def check_format(name: str) -> None:
    """UsageError where what the format needs is not installed."""
    if name == "vcd":
        from .vcd import check_vcd

        check_vcd()


def rendered(name: str, trace: Trace, other: Trace | None = None) -> Iterator[bytes]:
    """The bytes of `trace` in the format `name`; a page can show two."""
    if name == "html":
        from ..explore import page

        yield page(trace, other)
        return
    yield from _writers()[name](trace)


def _writers() -> dict[str, Callable[[Trace], Iterator[bytes]]]:
    from .perfetto import perfetto
    from .vcd import vcd

    return {"jsonl": trace_lines, "perfetto": perfetto, "vcd": vcd}
