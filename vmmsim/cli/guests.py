"""`vmmsim guests`: the guests that come with vmmsim."""

from __future__ import annotations

import sys

import click

from .common import json_option
from .output import out, table

__all__ = ["command"]


@click.command("guests")
@click.option("--source", metavar="NAME", help="Print the assembler source of one guest.")
@json_option
def command(source: str | None, as_json: bool) -> None:
    """List the built-in guests: what `vmmsim run NAME` can run."""
    from .. import guests

    if source is not None:
        out(guests.load(source).source, newline=False)
        return
    found = [guests.load(name) for name in guests.names()]
    if as_json:
        import msgspec

        rows = [{"name": guest.name, **msgspec.to_builtins(guest.manifest)} for guest in found]
        out(msgspec.json.encode(rows))
        return
    table(
        ("guest", "mode", "bytes", "what it does"),
        [(g.name, g.manifest.mode, str(len(g.code)), g.manifest.title) for g in found],
    )
    if sys.stdout is not None and sys.stdout.isatty():
        out("\nRun one:  vmmsim run guess     See its exits:  vmmsim exits echo")
