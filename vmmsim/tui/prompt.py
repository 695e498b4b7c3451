"""The line in which a person types: an answer, an address, keys for the guest."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import Input, Label

from ..errors import UsageError

__all__ = ["Prompt", "answer_value", "keys"]

_ESCAPE = re.compile(r"\\(n|r|t|e|\\|x[0-9a-fA-F]{2})")
_ESCAPES = {"n": b"\n", "r": b"\r", "t": b"\t", "e": b"\x1b", "\\": b"\\"}


def keys(text: str) -> bytes:
    r"""What is typed for the guest: text, with \n, \r, \t, \e, \\ and \xHH."""
    found, at = b"", 0
    for match in _ESCAPE.finditer(text):
        found += text[at : match.start()].encode()
        word = match[1]
        found += bytes([int(word[1:], 16)]) if word[0] == "x" else _ESCAPES[word]
        at = match.end()
    return found + text[at:].encode()


def answer_value(text: str) -> int:
    """An answer to a read: 0x6b, 107, 'k', or a letter alone. Raises UsageError."""
    word = text.strip() or text
    if len(word) == 3 and word[0] == word[2] and word[0] in "'\"":
        return ord(word[1])
    if len(word) == 1 and not word.isdigit():
        return ord(word)
    try:
        return int(word, 0)
    except ValueError:
        raise UsageError(f"'{text}' is no value", hint="write 0x6b, 107 or 'k'") from None


class _Line(Input):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+d", "end_or_delete", show=False),
        Binding("enter", "submit", "take"),
    ]

    async def action_end_or_delete(self) -> None:
        """Ctrl-d in an empty line is the end of input, where that is asked for; else it deletes."""
        if self.value:
            self.action_delete_right()
        else:
            await self.app.run_action("end_input")


class Prompt(Horizontal):
    """Closed until `ask`; then `done` is given what was typed, at Enter."""

    def __init__(self) -> None:
        super().__init__(id="prompt")
        self._done: Callable[[str], None] | None = None
        #: What it asks for: a word.
        self.asks = ""

    def compose(self) -> ComposeResult:
        yield Label("", markup=False)
        yield _Line()

    def ask(self, what: str, label: str, done: Callable[[str], None], *, hint: str = "") -> None:
        """Open it."""
        self._done, self.asks = done, what
        self.query_one(Label).update(f"{label} ")
        line = self.query_one(Input)
        line.placeholder = hint
        line.value = ""
        self.display = True
        self.screen.set_focus(line)  # at once: what is typed next is for it
        self.app.refresh_bindings()

    def close(self) -> None:
        """Nothing is asked any more."""
        self._done, self.asks = None, ""
        self.display = False
        self.screen.set_focus(None)
        self.app.refresh_bindings()

    async def taken(self) -> None:
        """Wait until the line has taken the keys that were sent to it."""
        idle = asyncio.Event()
        if self.query_one(Input).call_later(idle.set):
            await idle.wait()

    def submit(self) -> None:
        """Enter."""
        done, text = self._done, self.query_one(Input).value
        self.close()
        if done is not None:
            done(text)
