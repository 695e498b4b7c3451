"""The stepper's questions, and what is made of what the person types."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from textual.app import App

from ..cpu.paging import linear_to_gpa
from ..errors import UsageError, VmmsimError
from ..exits import ReadAccess
from .points import number, parse_point
from .prompt import Prompt, answer_value, keys

if TYPE_CHECKING:
    from .stepper import Stepper

    _Base = App[int]
else:
    _Base = object

__all__ = ["Asking"]


class Asking(_Base):
    """The part of StepApp that asks."""

    stepper: Stepper
    busy: bool
    memory_at: int

    if TYPE_CHECKING:

        def do(self, command: Callable[[], str], doing: str = "") -> None: ...
        def say(self, text: str, *, error: bool = False) -> None: ...
        def show(self, name: str) -> None: ...
        def repaint(self) -> None: ...

    def _ask(self, what: str, label: str, done: Callable[[str], str | None], hint: str = "") -> None:
        """Ask; `done` says what came of it, and its mistakes go to the status line."""

        def typed(text: str) -> None:
            try:
                said = done(text)
            except VmmsimError as problem:
                self.say(
                    f"{problem.message} ({problem.hint})" if problem.hint else problem.message, error=True
                )
            else:
                if said is not None:
                    self.say(said)
            self.repaint()

        self.query_one(Prompt).ask(what, label, typed, hint=hint)

    def ask_answer(self, exit: ReadAccess) -> None:
        """For a read's answer. What is wrong with it is said when it is given."""

        def done(text: str) -> None:
            value = answer_value(text)
            if not 0 <= value < 1 << 8 * exit.size:
                raise UsageError(f"{text} does not fit in {exit.size} bytes", hint="the read waits still")
            self.do(lambda: self.stepper.answer(value))

        plural = "s" if exit.size > 1 else ""
        self._ask("answer", f"answer, {exit.size} byte{plural}:", done, "0x6b, 107 or 'k'")

    def action_type(self) -> None:
        """Keys for the guest."""
        keyboard = self.stepper.keyboard
        if keyboard is None:
            self.say("the guest's input comes from --stdin", error=True)
            return
        ends = b"\n" if self.stepper.machine.config.model == "pc" else b""

        def done(text: str) -> str:
            keyboard.send(keys(text) + ends)
            return f"typed ahead: {keyboard.ahead().decode('latin-1')!r}; s or c goes on"

        hint = r"with Enter; \e \xHH" if ends else r"as it is; \n is Enter"
        self._ask("type", "for the guest:", done, hint)

    def action_end_input(self) -> None:
        """Ctrl-d in the line for the guest."""
        prompt = self.query_one(Prompt)
        if prompt.asks == "type" and self.stepper.keyboard is not None:
            prompt.close()
            self.stepper.keyboard.end()
            self.say("the input is over; s or c goes on")

    def action_point(self) -> None:
        def done(text: str) -> str:
            point = parse_point(text, self.stepper.symbols, self.stepper.machine.memory)
            return self.stepper.add_point(point)

        if self._stands():
            self._ask("point", "stop at:", done, "0x7c20, a symbol, gpa:0x1000, port:0x3f8")

    def action_remove_point(self) -> None:
        points = self.stepper.points
        if not self._stands():
            return
        if not points:
            self.say("there are no points; b sets one")
            return

        def done(text: str) -> str:
            at = number(text, "point") if text.strip() else len(points) if len(points) == 1 else 0
            if not 1 <= at <= len(points):
                raise UsageError(f"there is no point {text}", hint=f"they are 1 to {len(points)}")
            return self.stepper.remove_point(points[at - 1])

        listed = "  ".join(f"{at}: {point}" for at, point in enumerate(points, 1))
        self.say(listed)
        self._ask("remove", "remove number:", done, "1" if len(points) == 1 else f"1 to {len(points)}")

    def action_go_to(self) -> None:
        def done(text: str) -> None:
            wanted = number(text, "exit")
            self.do(lambda: self.stepper.go(wanted))

        self._ask("go", "on to exit number:", done)

    def action_back_to(self) -> None:
        def done(text: str) -> None:
            wanted = number(text, "exit")
            back = wanted <= self.stepper.records.count
            self.do(lambda: self.stepper.back_to(wanted) if back else self.stepper.go(wanted))

        self._ask("back", "to exit number:", done, "0 is the beginning")

    def action_memory(self) -> None:
        def done(text: str) -> None:
            word = text.strip()
            physical = word.startswith("gpa:")
            at = self.stepper.symbols.get(word)
            if at is None:
                at = number(word.removeprefix("gpa:"), "memory")
            gpa = (
                at if physical else linear_to_gpa(self.stepper.state(), at, self.stepper.machine.memory.read)
            )
            if gpa is None:
                raise UsageError(f"{at:#x} is not mapped", hint="gpa:ADDRESS is guest-physical")
            self.memory_at = gpa
            self.show("memory")

        if self._stands():
            self._ask("memory", "memory at:", done, "0x7c00 linear, gpa:0x7c00, a symbol")

    def action_edit(self) -> None:
        def done(text: str) -> None:
            name, equals, what = (part.strip() for part in text.partition("="))
            if not equals:
                raise UsageError(f"'{text}' changes nothing", hint="rax=5, or gpa:0x500=de ad")
            if name.startswith("gpa:"):
                gpa = number(name.removeprefix("gpa:"), "memory")
                try:
                    data = bytes.fromhex(what)
                except ValueError:
                    raise UsageError(f"'{what}' are no bytes", hint="two hexadecimal digits each") from None
                self.do(lambda: self.stepper.set_memory(gpa, data))
            else:
                value = number(what, name)
                self.do(lambda: self.stepper.set_register(name.lower(), value))

        self._ask("edit", "change:", done, "rax=5, or gpa:0x500=de ad")

    def _stands(self) -> bool:
        if self.busy:
            self.say("the guest runs: Escape stops it", error=True)
        return not self.busy
