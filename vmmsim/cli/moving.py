"""What `vmmsim migrate` and `vmmsim receive` share: keys, the progress bar, how it is told."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import UsageError

if TYPE_CHECKING:
    from ..snapshot.migrate import Progress

__all__ = ["moving_options", "progress_bar", "shared_key"]

F = TypeVar("F", bound=Callable[..., Any])

KEY_VARIABLE = "VMMSIM_MIGRATION_KEY"


def moving_options(function: F) -> F:
    """The options of both verbs."""
    for option in (
        click.option(
            "--key-file", metavar="FILE",
            help=f"The key that both sides share, in the first line of FILE; else {KEY_VARIABLE}. "
            "Needed for tcp.",
        ),
        click.option(
            "--patience", default="30s", show_default=True, metavar="TIME",
            help="Give up when the other side does nothing for this time.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def shared_key(key_file: str | None) -> bytes:
    """The shared key, empty without one. UsageError for a file that has none."""
    if key_file is not None:
        from ..snapshot.wire import read_key

        return read_key(key_file)
    try:
        return os.environ.get(KEY_VARIABLE, "").encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{KEY_VARIABLE} is not text", hint="use --key-file for such a key") from error


@contextlib.contextmanager
def progress_bar(wanted: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr, where that is a terminal; gives what is to be told of progress."""
    if not wanted or sys.stderr is None or not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("connecting", total=None, told="")

        def show(now: Any) -> None:
            phase = {"connect": "connecting", "round": f"round {now.round}", "stop": "the rest"}[now.phase]
            told = f"{now.pages} pages" + (f" of {now.total}" if now.total else "")
            bar.update(task, description=phase, total=now.total or None, completed=now.pages, told=told)

        yield show
