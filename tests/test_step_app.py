"""`vmmsim step` on the screen, by textual's own pilot: keys, mouse, sizes from 20 columns on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from step_tools import code, guest

from vmmsim.exits import Halt, MmioRead
from vmmsim.tui.app import StepApp
from vmmsim.tui.help import HelpScreen
from vmmsim.tui.panes import LogPane, Pane
from vmmsim.tui.prompt import Prompt, answer_value, keys
from vmmsim.tui.stepper import Stepper

pytestmark = pytest.mark.timeout(60)

SIZES = [(20, 8), (20, 24), (59, 24), (80, 24), (200, 60)]
Act = Callable[["Screen"], Awaitable[None]]


class Screen:
    """A StepApp under its pilot."""

    def __init__(self, app: StepApp, pilot: Any) -> None:
        self.app = app
        self.pilot = pilot

    async def press(self, *names: str) -> None:
        """Keys, and then until the machine stands."""
        await self.pilot.press(*names)
        await self.stands()

    async def stands(self) -> None:
        taken = asyncio.Event()
        self.app.call_later(taken.set)  # behind the keys; a busy host makes pause() too short
        while not taken.is_set() and self.app.return_code is None:
            await asyncio.sleep(0.01)
        while self.app.busy:
            await asyncio.sleep(0.01)
        await self.pilot.pause()

    async def type(self, text: str) -> None:
        await self.pilot.press(*("space" if c == " " else c for c in text), "enter")
        await self.stands()

    def text(self, name: str) -> str:
        """What a pane shows."""
        return str(self.app.query_one(f"#{name}").render())

    def shown(self) -> set[str]:
        """The panes that are there."""
        return {str(pane.id) for pane in self.app.query(Pane) if pane.display and pane.size.area}


def play(stepper: Stepper, act: Act, size: tuple[int, int] = (80, 24)) -> StepApp:
    """Open the app and `act`."""
    app = StepApp(stepper, "test")

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await act(Screen(app, pilot))

    asyncio.run(run())
    assert app.failed is None
    return app


@pytest.mark.parametrize("size", SIZES)
def test_it_starts_and_ends_at_once(size: tuple[int, int]) -> None:
    async def act(screen: Screen) -> None:
        assert screen.shown()
        await screen.press("q")

    with guest("guess", "unicorn") as stepper:
        assert play(stepper, act, size).return_code == 0


@pytest.mark.parametrize("size", SIZES)
def test_the_lesson_by_keys(size: tuple[int, int], backend_name: str) -> None:
    async def act(screen: Screen) -> None:
        await screen.press("s", "a")
        await screen.type("k")
        await screen.press("c")
        assert "waits for a character" in screen.text("status")
        await screen.press("t")
        await screen.type("k")
        await screen.press("c", "o")
        assert "Your guess:" in screen.text("console")

    with guest("guess", backend_name, seed=1) as stepper:
        play(stepper, act, size)
        assert b"k - You won!" in stepper.console.data


def test_panes_at_80_by_24() -> None:
    async def act(screen: Screen) -> None:
        assert screen.shown() == {"code", "registers", "exit", "log", "console"}
        await screen.press("s")
        assert "=> 0x7c04" in screen.text("code")
        assert "*eip 00007c04" in screen.text("registers")
        assert "KVM_EXIT_MMIO" in screen.text("exit")
        assert "random-letter" in screen.text("exit")
        assert "you are the VMM" in screen.text("exit")
        assert "1 < m:0x1010 ?" in screen.text("log")
        await screen.press("v")
        assert "devices" in screen.shown()
        assert "console" not in screen.shown()
        assert "lcr=0x0" in screen.text("devices")
        await screen.press("m")
        await screen.type("0x7c00")
        assert "00007c00 31 ff" in screen.text("memory")
        await screen.press("pagedown")
        assert "00007c00" not in screen.text("memory")
        await screen.press("tab", "tab")
        assert "console" in screen.shown()

    with guest("guess", "unicorn") as stepper:
        play(stepper, act)


def test_a_large_terminal_shows_all_and_a_narrow_one_a_pane_at_a_time() -> None:
    every = {"code", "registers", "exit", "log", "console", "memory", "devices"}

    async def large(screen: Screen) -> None:
        assert screen.shown() == every

    async def narrow(screen: Screen) -> None:
        seen = []
        for _ in every:
            (pane,) = screen.shown()
            seen.append(pane)
            await screen.press("tab")
        assert set(seen) == every
        await screen.press("shift+tab")
        assert screen.shown() == {seen[-1]}
        await screen.pilot.resize_terminal(80, 24)
        await screen.pilot.pause()
        assert len(screen.shown()) == 5

    with guest("guess", "unicorn") as stepper:
        play(stepper, large, (200, 60))
        play(stepper, narrow, (20, 10))


def test_back_by_key_by_number_and_in_the_list(backend_name: str) -> None:
    async def act(screen: Screen) -> None:
        stepper = screen.app.stepper
        await screen.press("s", "s", "s", "u")
        assert stepper.records.count == 2
        await screen.press("s", "s", "s", "g")
        await screen.type("2")
        assert stepper.records.count == 2
        await screen.press("g")
        await screen.type("30")  # which lies ahead
        assert (stepper.records.count, bytes(stepper.console.data)[:8]) == (30, b"\nI think")
        await screen.press("l", "up", "up", "enter")
        assert stepper.records.count == 28
        await screen.press("escape", "g")
        await screen.type("0")
        assert (stepper.records.count, stepper.pending) == (0, None)
        assert "no exit yet" in screen.text("exit")

    with guest("guess", backend_name) as stepper:
        play(stepper, act)


def test_instructions_forward_and_back(backend_name: str) -> None:
    async def act(screen: Screen) -> None:
        await screen.press("i", "i")
        assert "=> 0x7c04" in screen.text("code")
        await screen.press("i")
        assert isinstance(screen.app.stepper.pending, MmioRead)
        await screen.press("i")
        assert "=> 0x7c08" in screen.text("code")
        await screen.press("U", "U")
        assert "=> 0x7c02" in screen.text("code")
        await screen.press("U", "U")
        assert "beginning" in screen.text("status")

    with guest("guess", backend_name) as stepper:
        play(stepper, act)


def test_points_are_set_met_and_removed(backend_name: str) -> None:
    async def act(screen: Screen) -> None:
        await screen.press("b")
        await screen.type("0x7c10")
        await screen.press("c")
        assert "breakpoint 0x7c10" in screen.text("status")
        assert "b=> 0x7c10" in screen.text("code")
        await screen.press("b")
        await screen.type("gpa:0x1000")
        await screen.press("c")
        assert "point gpa:0x1000" in screen.text("status")
        await screen.press("B")
        assert "1: 0x7c10  2: gpa:0x1000" in screen.text("status")
        await screen.type("2")
        await screen.press("B")
        await screen.type("7")
        assert "no point 7" in screen.text("status")
        assert len(screen.app.stepper.points) == 1

    with guest("guess", backend_name) as stepper:
        play(stepper, act)


MISTAKES = [
    ("a", "", "no value"),
    ("a", "0x100", "does not fit"),
    ("b", "nowhere", "no symbol"),
    ("b", "gpa:", "not an address"),
    ("m", "x", "not an address"),
    ("n", "0", "lies behind"),
    ("g", "x", "not an address"),
    ("e", "rax", "changes nothing"),
    ("e", "rax=1", "waits for its answer"),
    ("e", "gpa:0x500=zz", "no bytes"),
]


@pytest.mark.parametrize(("key", "typed", "said"), MISTAKES)
def test_a_mistake_is_told_in_the_status_line(key: str, typed: str, said: str) -> None:
    async def act(screen: Screen) -> None:
        await screen.press("s", key)
        await screen.type(typed)
        assert said in screen.text("status")
        assert screen.app.query_one("#status").has_class("-error")
        assert isinstance(screen.app.stepper.pending, MmioRead)

    with guest("guess", "unicorn") as stepper:
        play(stepper, act)


def test_what_is_typed_in_a_prompt_is_no_command() -> None:
    async def act(screen: Screen) -> None:
        await screen.press("t", "q", "s", "c", "tab")
        assert screen.app.query_one(Prompt).asks == "type"
        await screen.press("escape", "escape")
        assert screen.app.query_one(Prompt).asks == ""
        assert screen.app.stepper.keyboard.ahead() == b""  # type: ignore[union-attr]
        await screen.press("t", "ctrl+d", "s", "s")

    with guest("echo", "unicorn") as stepper:
        play(stepper, act)
        assert stepper.state().rax & 0xFF == 0x04  # the input was over


def test_a_guest_that_spins_leaves_the_screen_alive_and_can_be_stopped(backend_name: str) -> None:
    async def act(screen: Screen) -> None:
        # The pilot waits a second at each key for a host that is idle, which it is not here.
        for stop in ("escape", "ctrl+c") if backend_name == "unicorn" else ("escape",):
            await screen.pilot.press("c")
            await asyncio.sleep(0.3)
            await screen.pilot.press("s", "v")
            assert screen.app.busy
            assert "Escape stops it" in screen.text("status")
            await screen.press(stop)
            assert "stopped at 0x7c00" in screen.text("status")
        await screen.pilot.press("c")
        await asyncio.sleep(0.1)
        await screen.press("q")

    with code(bytes.fromhex("ebfe"), backend_name) as stepper:
        assert play(stepper, act).return_code == 0


def test_ctrl_c_where_nothing_runs_is_the_end_with_its_code() -> None:
    async def act(screen: Screen) -> None:
        await screen.press("ctrl+c")

    with guest("guess", "unicorn") as stepper:
        assert play(stepper, act).return_code == 130


def test_the_end_of_the_guest_is_told_and_can_be_gone_back_from(backend_name: str) -> None:
    async def act(screen: Screen) -> None:
        await screen.press("r")
        assert "exit code 0" in screen.text("status")
        assert isinstance(screen.app.stepper.ended, Halt)
        await screen.press("s")
        assert "go back with u" in screen.text("status")
        await screen.press("u", "d")
        assert "taken by uart" in screen.text("exit")

    with guest("lwn", backend_name) as stepper:
        play(stepper, act)


def test_the_mouse_chooses_an_exit_and_a_pane() -> None:
    async def act(screen: Screen) -> None:
        await screen.press("s", "s", "s", "s")
        await screen.pilot.click("#log", offset=(3, 2))  # below the title: the second exit
        assert screen.app.query_one(LogPane).cursor == 2
        await screen.pilot.click("#log", offset=(3, 2), times=2)
        await screen.stands()
        assert screen.app.stepper.records.count == 2

    async def narrow(screen: Screen) -> None:
        await screen.pilot.click("#tab-registers")
        await screen.pilot.pause()
        assert screen.shown() == {"registers"}

    with guest("guess", "unicorn") as stepper:
        play(stepper, act)
        play(stepper, narrow, (40, 20))


def test_help_and_themes() -> None:
    async def act(screen: Screen) -> None:
        await screen.press("question_mark")
        assert isinstance(screen.app.screen, HelpScreen)
        await screen.press("q")
        assert not isinstance(screen.app.screen, HelpScreen)
        dark = screen.app.current_theme.dark
        await screen.press("T")
        assert screen.app.current_theme.dark is not dark

    with guest("guess", "unicorn") as stepper:
        play(stepper, act)


def test_registers_and_memory_are_changed(backend_name: str) -> None:
    async def act(screen: Screen) -> None:
        await screen.press("e")
        await screen.type("rdi=7")
        assert "edi 00000007" in screen.text("registers")
        await screen.press("e")
        await screen.type("gpa:0x500=de ad")

    with guest("guess", backend_name) as stepper:
        play(stepper, act)
        assert stepper.machine.memory.read(0x500, 2) == b"\xde\xad"


@pytest.mark.parametrize(
    ("text", "value"), [("0x6b", 0x6B), ("107", 107), ("'k'", 0x6B), ("k", 0x6B), ("'7'", 0x37), ("7", 7)]
)
def test_an_answer_as_people_write_it(text: str, value: int) -> None:
    assert answer_value(text) == value


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("ab", b"ab"),
        (r"a\n", b"a\n"),
        (r"\x1b\\", b"\x1b\\"),
        (r"\q", rb"\q"),
        ("é", "é".encode()),
        ("", b""),
    ],
)
def test_keys_for_the_guest_as_people_write_them(text: str, data: bytes) -> None:
    assert keys(text) == data
