"""Panes: a titled box over lines of text, and the log, in which one can go to an exit."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Static

__all__ = ["LogPane", "Pane"]

#: What a pane shows for a width and a height.
Painter = Callable[[int, int], list[Text]]


class Pane(Static):
    """Shows what `paint` gives for its size. `whole`: all lines, to be scrolled through."""

    def __init__(self, name: str, title: str, paint: Painter, *, whole: bool = False) -> None:
        super().__init__(id=name, classes="pane")
        self.border_title = title
        self._paint = paint
        self._whole = whole

    def repaint(self) -> None:
        """The machine has moved."""
        width, height = self.size
        if self.display and width > 0 and height > 0:
            lines = self._paint(width, height)
            self.update(Text("\n").join(lines if self._whole else lines[:height]))

    def on_resize(self, event: events.Resize) -> None:
        self.repaint()


class LogPane(Pane, can_focus=True):
    """The exits so far. Up and down choose one, Enter goes back to it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("down,j", "move(1)", "down", show=False),
        Binding("pageup", "move(-10)", show=False),
        Binding("pagedown", "move(10)", show=False),
        Binding("home", "move(-1000000000)", show=False),
        Binding("enter", "choose", "go to", show=False),
    ]

    class Chosen(Message):
        """The person wants to be at this exit."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

    def __init__(
        self, paint: Callable[[int | None, int, int], list[Text]], span: Callable[[], range]
    ) -> None:
        super().__init__("log", "exits", lambda width, height: paint(self.cursor, width, height))
        self._span = span
        #: The exit that is chosen; None while the pane has not the focus.
        self.cursor: int | None = None

    def on_focus(self) -> None:
        span = self._span()
        self.cursor = span[-1] if span else None
        self.repaint()

    def on_blur(self) -> None:
        self.cursor = None
        self.repaint()

    def action_move(self, by: int) -> None:
        span = self._span()
        if span:
            at = self.cursor if self.cursor is not None else span[-1]
            self.cursor = min(max(at + by, span[0]), span[-1])
            self.repaint()

    def action_choose(self) -> None:
        if self.cursor is not None:
            self.post_message(self.Chosen(self.cursor))

    def on_click(self, event: events.Click) -> None:
        span = self._span()
        row = event.get_content_offset(self)
        if not span or row is None:
            return
        shown = min(len(span), self.size.height)
        end = span[-1] if self.cursor is None else max(
            self.cursor, min(span[-1], self.cursor + self.size.height // 2)
        )  # fmt: skip
        number = end - shown + 1 + row.y
        if number in span:
            if number == self.cursor and event.chain > 1:
                self.action_choose()
            self.cursor = number
            self.repaint()

    def on_mouse_scroll_up(self) -> None:
        self.action_move(-3)

    def on_mouse_scroll_down(self) -> None:
        self.action_move(3)
