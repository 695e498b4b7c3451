"""`vmmsim step` as a person starts it: by real keys in tmux; how it ends, and what it refuses."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import SPIN, Terminal, environment, vmmsim

from vmmsim.testing.slow import time_limit

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="terminals with termios are POSIX's"),
    pytest.mark.timeout(90),
]
needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Tmux:
    """A tmux server of its own with one window, in which `vmmsim step` runs."""

    def __init__(self, socket: Path, width: int, height: int, *arguments: str | Path, **extra: str) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", os.devnull]
        self._env = environment(**extra)
        line = " ".join([sys.executable, "-m", "vmmsim", "step", *map(str, arguments)])
        self._do("new-session", "-d", "-x", str(width), "-y", str(height), f"{line}; echo code $?; sleep 60")

    def _do(self, *words: str) -> str:
        done = subprocess.run(
            [*self._tmux, *words], env=self._env, capture_output=True, timeout=time_limit(20), check=True
        )
        return done.stdout.decode()

    def keys(self, *names: str) -> None:
        self._do("send-keys", *names)

    def text(self, *options: str) -> str:
        return self._do("capture-pane", "-p", *options)

    def expect(self, text: str, seconds: float = 30) -> str:
        """The screen, once `text` is on it."""
        end = time.monotonic() + time_limit(seconds)
        while text not in (screen := self.text()):
            assert time.monotonic() < end, f"no {text!r} on:\n{screen}"
            time.sleep(0.05)
        return screen

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, timeout=time_limit(20), check=False)


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[list[Tmux]]:
    started: list[Tmux] = []
    yield started
    for session in started:
        session.close()


@needs_tmux
def test_the_lesson_in_tmux_at_80_by_24(tmp_path: Path, backend_name: str, sessions: list[Tmux]) -> None:
    screen = Tmux(tmp_path / "s", 80, 24, "guess", "-b", backend_name, "--seed", "1")
    sessions.append(screen)
    screen.expect("no exit yet")
    screen.keys("s")
    screen.expect("read of 1 byte at gpa 0x00001010 (random-letter)")
    screen.keys("a")
    screen.expect("answer, 1 byte:")
    screen.keys("k", "Enter")
    screen.expect("answered 0x6b 'k' by hand")
    screen.keys("c")
    screen.expect("waits for a character")
    screen.keys("t", "k", "Enter")
    screen.expect("typed ahead: 'k'")
    screen.keys("c")
    shown = screen.expect("Score: 1 won, 0 lost")
    assert len(shown.splitlines()) <= 24
    screen.keys("BSpace")
    screen.expect("d gives it, a keeps it away")
    screen.keys("q")
    screen.expect("code 0")


@needs_tmux
def test_a_terminal_of_20_columns(tmp_path: Path, sessions: list[Tmux]) -> None:
    screen = Tmux(tmp_path / "s", 20, 12, "lwn", "-b", "unicorn")
    sessions.append(screen)
    screen.expect("=> 0x7c00")
    screen.keys("s")
    screen.expect("=> 0x7c0c")
    screen.keys("Tab", "Tab")
    assert "Traceback" not in screen.expect("KVM_EXIT_IO")
    screen.keys("q")
    screen.expect("code 0")


@needs_tmux
def test_no_color_is_no_colour_and_marks_are_characters(tmp_path: Path, sessions: list[Tmux]) -> None:
    screen = Tmux(tmp_path / "s", 80, 24, "lwn", "-b", "unicorn", NO_COLOR="1")
    sessions.append(screen)
    screen.expect("no exit yet")
    screen.keys("s")
    assert "*eip" in screen.expect("=> 0x7c0c")
    colours = {
        part.split("m")[0]
        for part in screen.text("-e").split("\x1b[")[1:]
        if part.startswith(("38;2", "48;2"))
    }
    for colour in colours:  # textual has turned all to greys
        red, green, blue = colour.split(";")[2:5]
        assert red == green == blue, colour


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_the_terminal_is_as_it_was_after_a_signal(
    number: int, code: int, tmp_path: Path, backend_name: str
) -> None:
    image = tmp_path / "spin"
    image.write_bytes(SPIN)
    terminal = Terminal("step", image, "-b", backend_name, TERM="xterm-256color")
    try:
        terminal.expect(b"no exit yet")
        assert terminal.settings() != terminal.before
        terminal.type(b"c")
        terminal.expect(b"Escape stops it")
        terminal.child.send_signal(number)
        assert terminal.end() == code
        assert terminal.settings() == terminal.before
        assert b"Traceback" not in terminal.text
        assert b"\x1b[?1049l" in terminal.text  # the screen from before is back
    finally:
        terminal.close()


@pytest.mark.parametrize(("key", "code"), [(b"q", 0), (b"\x03", 130)])
def test_the_terminal_is_as_it_was_after_a_key(key: bytes, code: int, backend_name: str) -> None:
    terminal = Terminal("step", "lwn", "-b", backend_name, TERM="xterm-256color")
    try:
        terminal.expect(b"no exit yet")
        terminal.type(key)
        assert terminal.end() == code
        assert terminal.settings() == terminal.before
    finally:
        terminal.close()


def test_a_terminal_that_goes_away_ends_it(tmp_path: Path, backend_name: str) -> None:
    image = tmp_path / "spin"
    image.write_bytes(SPIN)
    terminal = Terminal("step", image, "-b", backend_name, TERM="xterm-256color")
    try:
        terminal.expect(b"no exit yet")
        terminal.type(b"c")
        terminal.expect(b"Escape stops it")
        os.close(terminal.master)
        terminal.master = os.dup(terminal.slave)  # for close()
        assert terminal.child.wait(time_limit(30)) == 129
    finally:
        terminal.close()


# -- refusals


def _error(stderr: bytes) -> str:
    assert b"Traceback" not in stderr
    return stderr.decode()


def test_without_a_terminal_it_names_the_verb_that_needs_none() -> None:
    result = vmmsim("step", "guess")
    assert result.returncode == 125
    assert "needs a terminal" in _error(result.stderr)
    assert "vmmsim exits" in _error(result.stderr)


def test_without_textual_it_says_how_to_get_it() -> None:
    program = (
        "import sys; sys.modules['textual'] = None; from vmmsim.cli.main import main; main(['step', 'guess'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        timeout=time_limit(50),
        env=environment(),
        check=False,
    )
    assert result.returncode == 125
    assert "pip install 'vmmsim[tui]'" in _error(result.stderr)


@pytest.mark.parametrize(
    ("arguments", "extra", "code", "said"),
    [
        (["nowhere"], {}, 127, b"there is no image"),
        (["guess", "--timeout", "3"], {}, 125, b"--timeout"),
        (["guess", "-b", "xen"], {}, 125, b"no backend"),
        (["guess"], {"TERM": "dumb"}, 125, b"TERM=dumb"),
        ([], {}, 125, b"nothing to run"),
    ],
)
def test_what_cannot_be_stepped_is_told_before_the_screen_is_taken(
    arguments: list[str], extra: dict[str, str], code: int, said: bytes
) -> None:
    terminal = Terminal("step", *arguments, **{"TERM": "xterm-256color", **extra})
    try:
        assert terminal.end() == code
        assert said in terminal.text
        assert b"\x1b[?1049h" not in terminal.text
        assert b"Traceback" not in terminal.text
    finally:
        terminal.close()


def test_a_snapshot_goes_on_where_it_was(tmp_path: Path, backend_name: str) -> None:
    from vmmsim import Machine
    from vmmsim.budget import exits
    from vmmsim.snapshot.container import save

    path = tmp_path / "snap"
    with Machine.for_guest("lwn", backend=backend_name) as machine:
        machine.run(budget=exits(1))
        save(machine.snapshot(), path)
    terminal = Terminal("step", path, "-b", backend_name, TERM="xterm-256color")
    try:
        terminal.expect(b"no exit yet")
        terminal.type(b"s")
        terminal.expect(b"write of 1 byte at port 0x03f8 (uart) = 0x0a")
        terminal.type(b"q")
        assert terminal.end() == 0
    finally:
        terminal.close()
