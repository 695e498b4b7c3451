"""The page behind `?`."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

__all__ = ["HelpScreen"]

_TEXT = """\
YOU ARE THE VMM. The guest runs on the CPU until it does what the
CPU cannot finish alone: it accesses a device, or halts. That is an
exit. At a read it waits for its answer.

  s  space     to the next exit; the device answers this one
  i            one instruction, or the rest of the one at hand
  c            continue to a point, the end, or a wait for input
  n            continue to exit number N
  r            run to the end (points are passed)
  a            answer by hand; a write is kept from its device
  d            let the device answer, finish the instruction
  u backspace  back to the exit before, which waits again
  U            back by one instruction
  g            go back to exit number N (0: the beginning)
  b  B         set a point, remove one:
                 0x7c20, main     stops at an instruction
                 gpa:0x1000       at MMIO, or when RAM changes
                 port:0x3f8       at an access to a port
  t            type for the guest: text, \\n \\r \\e \\xHH;
               Ctrl-d in the empty line: no more input
  e            edit: rax=5, or gpa:0x500=de ad be ef
  m  v  o      memory at an address; devices; the guest's console
  PgUp PgDn    through memory
  l            the list of exits: up, down, Enter goes back there
  Tab          the next pane
  Escape       stop a run, leave a prompt; ^C stops a run, too
  T            light or dark
  ?            this page        q  quit

Marks: => is next, > made the exit at hand, b has a breakpoint,
* has changed, < is a read, > a write, h was answered by hand.
"""


class HelpScreen(ModalScreen[None]):
    """Any of its keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("question_mark,q,enter,space", "dismiss", "close")]

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help"):
            yield Static(_TEXT, markup=False)

    def on_click(self) -> None:
        self.dismiss()
