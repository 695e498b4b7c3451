"""The stepper in the terminal, with textual: panes over a Stepper, and its keys.

The machine runs in a thread of its own, one command at a time, while the screen stays alive; between
commands it stands, and the panes look at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual import events, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.driver import Driver
from textual.widgets import Footer, Static, Tab, Tabs

from ..cpu.state import CpuState
from ..errors import VmmsimError
from ..exits import ReadAccess
from . import views
from .asking import Asking
from .driver import lasting
from .help import HelpScreen
from .listing import Listing
from .panes import LogPane, Pane
from .prompt import Prompt
from .stepper import Stepper

__all__ = ["StepApp"]

#: Below so many columns one pane is shown at a time; from so many columns and lines on, all; below so
#: many lines there is none for the title.
_NARROW, _LARGE, _LOW = 60, (120, 34), 14
#: Seconds between two looks at a running machine.
_LOOK = 0.2
#: Keys that do not wait for a command, which waits so many seconds at most.
_AT_ONCE, _SOON = ("escape", "ctrl+c"), 0.5
#: Actions that there are in a prompt, too; the rest is textual's own.
_ALWAYS = ("stop", "interrupt", "suspend_process", "end_input")
_PANES = ("code", "registers", "exit", "log", "console", "memory", "devices")
_SIDE = ("console", "memory", "devices")


def _key(keys: str, action: str, label: str = "", *, shown: str = "") -> Binding:
    return Binding(
        keys, action, label, show=bool(label), key_display=shown or keys.partition(",")[0], priority=True
    )


class StepApp(Asking, App[int]):
    """`title` is what the head line says of the machine; `greeting` the first status line."""

    CSS_PATH = "step.tcss"
    ENABLE_COMMAND_PALETTE = False
    # All have priority: they are then dealt with in the order in which they are typed, however fast.
    BINDINGS: ClassVar[list[BindingType]] = [
        _key("s", "next", "next exit"),
        _key("i", "step", "instr"),
        _key("c", "go", "cont"),
        _key("u", "back_exit", "back"),
        _key("a", "answer", "answer"),
        _key("d", "let", "device"),
        _key("t", "type", "type"),
        _key("b", "point", "break"),
        _key("question_mark", "help", "help", shown="?"),
        _key("q", "leave", "quit"),
        _key("backspace", "back_exit"),
        _key("space", "next"),
        _key("n", "go_to"),
        _key("r", "run_out"),
        _key("U", "back_step"),
        _key("g", "back_to"),
        _key("B", "remove_point"),
        _key("e", "edit"),
        _key("m", "memory"),
        _key("v", "show('devices')"),
        _key("o", "show('console')"),
        _key("l", "list"),
        _key("T", "theme"),
        _key("tab", "turn(1)"),
        _key("shift+tab", "turn(-1)"),
        _key("pageup", "page(-1)"),
        _key("pagedown", "page(1)"),
        _key("escape", "stop"),
        _key("ctrl+c", "interrupt"),
        _key("ctrl+z", "suspend_process"),
    ]

    def __init__(self, stepper: Stepper, title: str, greeting: str = "") -> None:
        super().__init__()
        self.stepper = stepper
        self._head = title
        self._greeting = greeting or "s: to the first exit   ?: all keys"
        self._listing = Listing(stepper.machine.memory)
        self._listing.learn(stepper.state().linear_rip)
        #: The registers now, and those before the last command.
        self._now: CpuState = stepper.state()
        self._then: CpuState | None = None
        #: A command runs; and with which exit code the person wants to leave behind it.
        self.busy = False
        self._began = 0.0
        self._leaving: int | None = None
        self._room = self.size
        self._pane = "code"
        self._side = "console"
        self.memory_at = self._now.linear_rip & ~0xF
        #: What went wrong in a command that is no mistake of the person's.
        self.failed: BaseException | None = None
        if _light():
            self.theme = "textual-light"

    def get_driver_class(self) -> type[Driver]:
        return lasting(super().get_driver_class())

    # -- the screen

    def compose(self) -> ComposeResult:
        stepper = self.stepper
        yield Static(self._head, id="head", markup=False)
        yield Tabs(*(Tab(name, id=f"tab-{name}") for name in _PANES), id="tabs")
        with Horizontal(id="top"):
            yield Pane("code", "code", lambda w, h: views.code(stepper, self._listing, self._now, w, h))
            yield Pane("registers", "registers", lambda w, h: views.registers(self._now, self._then, w))
        yield Pane("exit", "exit", lambda w, h: views.exit_at_hand(stepper))
        with Horizontal(id="bottom"):
            yield LogPane(lambda at, w, h: views.log(stepper, at, w, h), stepper.records.span)
            yield Pane("console", "guest", lambda w, h: views.console(bytes(stepper.console.data), w, h))
            with Vertical(id="side"):
                yield Pane(
                    "memory", "memory", lambda w, h: views.memory(stepper.machine, self.memory_at, w, h)
                )
                yield Pane("devices", "devices", lambda w, h: views.devices(stepper.machine), whole=True)
        yield Prompt()
        yield Static(self._greeting, id="status", markup=False)
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self.set_interval(_LOOK, self._look)
        loop = asyncio.get_running_loop()
        for name, code in (("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)):
            with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(getattr(signal, name), self._leave, code)
        self._arrange()

    def on_resize(self, event: events.Resize) -> None:
        self._room = event.size  # that of the app is not changed yet
        self._arrange()

    @property
    def _narrow(self) -> bool:
        return self._room.width < _NARROW

    @property
    def _large(self) -> bool:
        return self._room.width >= _LARGE[0] and self._room.height >= _LARGE[1]

    @property
    def _wide(self) -> bool:
        """Whether registers have 64 bits."""
        return bool(self._now.efer & 1 << 10)

    def _arrange(self) -> None:
        """Which panes are there depends on the room."""
        narrow, large = self._narrow, self._large
        self.screen.set_class(narrow, "-narrow")
        self.screen.set_class(large, "-large")
        self.screen.set_class(self._room.height < _LOW, "-low")
        for name in _PANES:
            shown = name == self._pane if narrow else large or name not in _SIDE or name == self._side
            self.query_one(f"#{name}").display = shown
        self.query_one("#side").display = any(self.query_one(f"#{name}").display for name in _SIDE[1:])
        self.query_one("#top").display = not narrow or self._pane in ("code", "registers")
        self.query_one("#bottom").display = not narrow or self._pane in ("log", *_SIDE)
        self.query_one("#registers").set_class(self._wide, "-wide")
        self.call_after_refresh(self.repaint)

    def repaint(self) -> None:
        """All panes, unless the machine runs."""
        if self.busy:
            return
        self.query_one("#memory").border_title = f"memory gpa {self.memory_at:#x}"
        self.query_one("#registers").border_title = f"registers  {self._now.mode}, cpl {self._now.cpl}"
        for pane in self.query(Pane):
            pane.repaint()

    def say(self, text: str, *, error: bool = False) -> None:
        """In the status line."""
        status = self.query_one("#status", Static)
        status.set_class(error, "-error")
        status.update(Text(text))

    def show(self, name: str) -> None:
        """Have this pane on the screen."""
        self._pane = name
        if name in _SIDE:
            self._side = name
        if self._narrow:
            self.query_one(Tabs).active = f"tab-{name}"
        self._arrange()

    def on_tabs_tab_activated(self, event: Tabs.TabActivated) -> None:
        name = (event.tab.id or "").removeprefix("tab-")
        if name in _PANES and name != self._pane and self._narrow:
            self._pane = name
            self._arrange()

    # -- keys, in the order in which they are typed

    async def on_event(self, event: events.Event) -> None:
        """A key waits until what the one before has begun is done, if that is soon."""
        if isinstance(event, events.Key) and not event.is_forwarded and event.key not in _AT_ONCE:
            while self.busy and time.perf_counter() < self._began + _SOON:
                await asyncio.sleep(0.002)
            prompt = self.query(Prompt).first()
            if event.key == "enter" and prompt.asks:
                prompt.submit()
                return
            await super().on_event(event)
            if prompt.asks:
                await prompt.taken()
            return
        await super().on_event(event)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """None, not now: what is typed in a prompt, or on the help page, is no command."""
        if action in _ALWAYS:
            return True
        if len(self.screen_stack) > 1 or self.query(Prompt).first().asks:
            return None
        if action == "page" and isinstance(self.focused, LogPane):
            return None
        return True

    # -- commands

    def do(self, command: Callable[[], str], doing: str = "") -> None:
        """Have the machine do something, in its thread."""
        if self.busy:
            self.say("the guest runs: Escape stops it", error=True)
            return
        self.busy = True
        self._began = time.perf_counter()
        self._then = self._now
        if doing:
            self.say(doing)
        self._work(command)

    @work(thread=True, exit_on_error=False)
    def _work(self, command: Callable[[], str]) -> None:
        said, error = "", False
        try:
            said = command()
        except VmmsimError as problem:
            said = f"{problem.message} ({problem.hint})" if problem.hint else problem.message
            error = True
        except BaseException as failed:
            self.failed = failed
        with contextlib.suppress(RuntimeError):  # the screen is gone
            self.call_from_thread(self._done, said, error)

    def _done(self, said: str, error: bool) -> None:
        self.busy = False
        if self.failed is not None:
            self.exit(return_code=125)
            return
        if self._leaving is not None:
            self.exit(return_code=self._leaving)
            return
        try:
            self._now = self.stepper.state()
        except VmmsimError as problem:
            said, error = problem.message, True
        record = self.stepper.records.last
        if record is not None and record.insn is not None:
            self._listing.learn(record.insn.address)
        self.say(said, error=error)
        if self._wide == self.query_one("#registers").has_class("-wide"):
            self.repaint()
        else:
            self._arrange()

    def _look(self) -> None:
        """While a command runs: how far it is."""
        if self.busy:
            self.say(f"runs, exit {self.stepper.records.count}: Escape stops it")
            self.query_one("#console", Pane).repaint()
            self.query_one("#log", Pane).repaint()

    def _leave(self, code: int) -> None:
        if self.busy:
            self._leaving = code
            self.stepper.cancel()
        else:
            self.exit(return_code=code)

    # -- keys

    def action_next(self) -> None:
        self.do(self.stepper.next_exit)

    def action_step(self) -> None:
        self.do(self.stepper.step)

    def action_go(self) -> None:
        self.do(self.stepper.go)

    def action_run_out(self) -> None:
        self.do(self.stepper.run_out)

    def action_back_exit(self) -> None:
        self.do(self.stepper.back_exit)

    def action_back_step(self) -> None:
        self.do(self.stepper.back_step)

    def action_let(self) -> None:
        self.do(self.stepper.let)

    def action_answer(self) -> None:
        if isinstance(self.stepper.pending, ReadAccess) and not self.busy:
            self.ask_answer(self.stepper.pending)
        else:
            self.do(self.stepper.answer)

    def action_show(self, name: str) -> None:
        self.show(name)

    def action_list(self) -> None:
        self.show("log")
        self.screen.set_focus(self.query_one(LogPane))

    def action_turn(self, by: int) -> None:
        """Tab: the next pane of those that share a place."""
        row = _PANES if self._narrow else _SIDE
        at = row.index(self._pane if self._narrow else self._side)
        self.show(row[(at + by) % len(row)])

    def action_page(self, by: int) -> None:
        pane = self.query_one("#memory", Pane)
        if pane.display:
            row = 16 if pane.size.width >= 74 else 8
            self.memory_at = max(0, self.memory_at + by * row * max(1, pane.size.height))
            self.repaint()

    def action_help(self) -> None:
        self.push_screen(HelpScreen())

    def action_theme(self) -> None:
        self.theme = "textual-dark" if self.theme == "textual-light" else "textual-light"

    def action_stop(self) -> None:
        """Escape: what is there to be left is left."""
        prompt = self.query(Prompt).first()
        if len(self.screen_stack) > 1:
            self.pop_screen()
        elif prompt.asks:
            prompt.close()
        elif self.busy:
            self.stepper.cancel()
        else:
            self.screen.set_focus(None)

    def action_interrupt(self) -> None:
        """Ctrl-C stops a run; when nothing runs, the program."""
        if self.busy:
            self.stepper.cancel()
        else:
            self._leave(130)

    async def action_quit(self) -> None:
        """Ctrl-q, which is textual's own."""
        self._leave(0)

    def action_leave(self) -> None:
        self._leave(0)

    def on_log_pane_chosen(self, message: LogPane.Chosen) -> None:
        self.do(lambda: self.stepper.back_to(message.number))


def _light() -> bool:
    """Whether the terminal says that its background is light: by COLORFGBG, as rxvt and konsole do."""
    return os.environ.get("COLORFGBG", "").rpartition(";")[2] in ("7", "15")
