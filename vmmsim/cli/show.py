"""Tables: rich's on a terminal, plain columns where a program reads or NO_COLOR is set."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

__all__ = ["fancy", "table"]


def fancy() -> bool:
    """Whether stdout is a terminal of somebody who likes colours (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or sys.stdout is None:
        return False
    return sys.stdout.isatty()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print `rows` under `head` on stdout."""
    if fancy():
        _rich(head, rows)
        return
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())


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
