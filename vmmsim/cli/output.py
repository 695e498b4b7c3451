"""What goes where: `out` and tables to stdout, `note` and `say` to stderr.

stdout carries the guest's output, or what a verb was asked for, or JSON. It is missed when
it cannot be written; stderr is not, since there is nobody left to tell.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ..errors import HostError, reader_gone

if TYPE_CHECKING:
    from ..streams import BufferSink

__all__ = ["end_line", "fancy", "note", "out", "plain_streams", "say", "table"]


def plain_streams() -> None:
    """On Windows: what is printed is UTF-8 with lines that end with LF, as everywhere else, so that files and
    pipes have the bytes that are meant. A console shows both as they should be."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if stream.isatty():
                stream.reconfigure(newline="\n")
            else:
                stream.reconfigure(newline="\n", encoding="utf-8", errors=stream.errors)


def out(text: str | bytes, *, newline: bool = True) -> None:
    """Write `text` to stdout. BrokenPipeError is the caller's; HostError for other failures."""
    if sys.stdout is None:
        raise HostError(
            "there is no standard output to write to", hint="do not close it; >/dev/null drops it"
        )
    try:
        click.echo(text, nl=newline)
    except OSError as error:
        if reader_gone(error):
            raise BrokenPipeError(*error.args) from error
        raise HostError(
            f"standard output cannot be written: {error.strerror}", hint="check where it is redirected to"
        ) from error


def note(text: str) -> None:
    """Text for people, on stderr, as it is."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(text, err=True)


def say(text: str) -> None:
    """A line on stderr that says who speaks."""
    note(f"vmmsim: {text}")


def end_line(printed: BufferSink) -> None:
    """On a terminal, what vmmsim or the shell says behind a guest's output begins on a line of its own."""
    written = len(printed)
    if written and printed.since(written - 1) != b"\n" and sys.stderr is not None and sys.stderr.isatty():
        note("")


def fancy() -> bool:
    """Whether stdout is a terminal of somebody who likes colours (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or sys.stdout is None:
        return False
    return sys.stdout.isatty()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print `rows` under `head` on stdout: rich's table on a terminal, else plain columns."""
    if fancy():
        _rich(head, rows)
        return
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        out("  ".join(cells).rstrip())


def _rich(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    last = len(head) - 1
    for number, name in enumerate(head):
        shown.add_column(name, overflow="fold", no_wrap=number != last, style="cyan" if number == 0 else "")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    Console().print(shown)
