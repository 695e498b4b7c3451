"""docs/reference/cli.md: every verb with its arguments and options, from the click commands."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module

import click

from vmmsim.cli.main import VERBS

__all__ = ["verbs"]

_HEAD = ("option", "default", "what it does")
#: A default that click does not know stands at the end of the help, as in `Size of RAM. [64M]`.
_DEFAULT = re.compile(r"\s*\[([^][]*)\]$")


def verbs() -> Iterator[tuple[str, str, list[tuple[str, ...]]]]:
    """For each verb: its usage, what it does, and a table of its options, with the header."""
    for verb, (module, _about) in VERBS.items():
        yield from _command(f"vmmsim {verb}", import_module(f"vmmsim.cli.{module}").command)


def _command(name: str, command: click.Command) -> Iterator[tuple[str, str, list[tuple[str, ...]]]]:
    arguments = [
        p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)
    ]
    group = isinstance(command, click.Group)
    usage = " ".join([name, *arguments, "VERB" if group else "[OPTIONS]"])
    yield usage, _help(command), [_HEAD, *(_row(p) for p in command.params if isinstance(p, click.Option))]
    if isinstance(command, click.Group):
        for verb in command.commands:
            yield from _command(f"{name} {verb}", command.commands[verb])


def _help(command: click.Command) -> str:
    """The help as Markdown: what click shows as it stands (behind a backspace) is a code block."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(
        f"```text\n{text.removeprefix(chr(8)).strip(chr(10))}\n```" if text.startswith("\b") else text
        for text in paragraphs
    )


def _row(option: click.Option) -> tuple[str, str, str]:
    value = ""
    if not option.is_flag:
        value = option.metavar or option.type.get_metavar(option, click.Context(click.Command(""))) or "VALUE"
        value = " " + value.strip("[]")
    names = ", ".join(f"`{name}`" for name in option.opts[:-1])
    last = f"`{option.opts[-1]}{value}`"
    text = option.help or ""
    found = _DEFAULT.search(text)
    default = found[1] if found else ""
    if (
        not found
        and isinstance(option.default, (str, int, float))
        and not option.is_flag
        and option.default != ""
    ):
        default = str(option.default)
    text = _DEFAULT.sub("", text)
    notes = []
    if isinstance(option.type, click.IntRange) and option.type.max is not None:
        notes.append(f"{option.type.min} to {option.type.max}.")
    if option.multiple:
        notes.append("May be repeated.")
    if option.required:
        default = "required"
    if option.envvar:
        notes.append(f"Environment: `{option.envvar}`.")
    return (f"{names}, {last}" if names else last, default, " ".join([text, *notes]).strip())
