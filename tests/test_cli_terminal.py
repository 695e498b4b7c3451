"""On a terminal: the banner, the keys, and the terminal as it was after every way of ending."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_tools import EXIT_WITH, JUMP_INTO_NOTHING, SPIN, Terminal, start

from vmmsim.testing.slow import time_limit

pytestmark = pytest.mark.skipif(os.name != "posix", reason="terminals with termios are POSIX's")

BANNER = b"press Ctrl-a x to stop"


@pytest.fixture
def on_terminal() -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def begin(*arguments: str | Path, **extra: str) -> Terminal:
        started.append(Terminal(*arguments, **extra))
        return started[-1]

    yield begin
    for terminal in started:
        terminal.close()


def test_the_game_is_played_on_a_terminal(backend_name: str, on_terminal: Callable[..., Terminal]) -> None:
    terminal = on_terminal("run", "guess", "-b", backend_name, "--seed", "1")
    terminal.expect(BANNER)
    terminal.expect(b"Your guess: ")
    terminal.type(b"m")
    terminal.expect(b"m is too")
    terminal.type(b".")

    assert terminal.end() == 0
    assert b"Score: 0 won, 0 lost" in terminal.text
    assert terminal.settings() == terminal.before


def test_ctrl_a_x_stops_and_ctrl_a_h_helps(backend_name: str, on_terminal: Callable[..., Terminal]) -> None:
    terminal = on_terminal("run", "guess", "-b", backend_name)
    terminal.expect(b"Your guess: ")
    assert terminal.settings() != terminal.before
    terminal.type(b"\x01h")
    terminal.expect(b"Ctrl-a Ctrl-a")
    terminal.type(b"\x01x")

    assert terminal.end(5) == 130
    assert b"stopped by Ctrl-a x" in terminal.text
    assert b"post-mortem" not in terminal.text
    assert terminal.settings() == terminal.before


ENDS: dict[str, tuple[bytes, int]] = {
    "a halt": (bytes.fromhex("f4"), 0),
    "a code": (bytes.fromhex(EXIT_WITH.format(7)), 7),
    "a jump into nothing": (JUMP_INTO_NOTHING, 121),
    "a spent budget": (SPIN, 124),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_terminal_is_restored_after(
    name: str, tmp_path: Path, backend_name: str, on_terminal: Callable[..., Terminal]
) -> None:
    code, expected = ENDS[name]
    image = tmp_path / "image"
    image.write_bytes(code)
    terminal = on_terminal("run", image, "-b", backend_name, "--timeout", "0.5")

    assert terminal.end() == expected
    assert terminal.settings() == terminal.before


def test_the_terminal_is_restored_after_a_triple_fault(
    backend_name: str, on_terminal: Callable[..., Terminal]
) -> None:
    terminal = on_terminal("run", "fault", "-b", backend_name)

    assert terminal.end() == 120
    assert terminal.settings() == terminal.before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["/nonexistent"], 127),
        (["loop", "-m", "0"], 125),
        (["loop", "-b", "xen"], 125),
        (["loop", "-b", "kvm"], 126),
        (["loop", "--trace", "/nonexistent/t"], 125),
    ],
)
def test_the_terminal_is_restored_after_bad_input(
    arguments: list[str], code: int, on_terminal: Callable[..., Terminal]
) -> None:
    terminal = on_terminal("run", *arguments, VMMSIM_KVM_DEVICE="/nonexistent")

    assert terminal.end() == code
    assert terminal.settings() == terminal.before


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_the_terminal_is_restored_after_a_signal(
    name: str, code: int, tmp_path: Path, backend_name: str, on_terminal: Callable[..., Terminal]
) -> None:
    image = tmp_path / "spin"
    image.write_bytes(SPIN)
    terminal = on_terminal("run", image, "-b", backend_name)
    terminal.expect(BANNER)
    terminal.child.send_signal(getattr(signal, name))

    assert terminal.end(5) == code
    assert terminal.settings() == terminal.before


def test_ctrl_c_as_a_key_stops_a_spinning_guest(
    tmp_path: Path, backend_name: str, on_terminal: Callable[..., Terminal]
) -> None:
    image = tmp_path / "spin"
    image.write_bytes(SPIN)
    terminal = on_terminal("run", image, "-b", backend_name)
    terminal.expect(BANNER)
    terminal.type(b"\x03")

    assert terminal.end(5) == 130
    assert b"stopped by Ctrl-C" in terminal.text
    assert terminal.settings() == terminal.before


def test_no_raw_terminal_and_no_banner_when_the_input_is_elsewhere(
    on_terminal: Callable[..., Terminal],
) -> None:
    terminal = on_terminal("run", "echo", "-b", "unicorn", "--stdin", "example")

    assert terminal.end() == 0
    assert BANNER not in terminal.text


def test_exits_on_a_terminal_says_when_the_guest_waits(on_terminal: Callable[..., Terminal]) -> None:
    terminal = on_terminal("exits", "echo", "-b", "unicorn", COLUMNS="120")
    terminal.expect(b"exit 1 waits for a character")
    terminal.type(b"k\n")

    assert terminal.end() == 0
    assert b"0x6b 'k'" in terminal.text


def test_tables_on_a_terminal_are_richs_and_plain_with_no_color(on_terminal: Callable[..., Terminal]) -> None:
    coloured, plain = on_terminal("guests", TERM="xterm"), on_terminal("guests", TERM="xterm", NO_COLOR="1")

    assert (coloured.end(), plain.end()) == (0, 0)
    assert b"\x1b[" in coloured.text
    assert b"\x1b[" not in plain.text
    assert b"loop" in coloured.text


def test_a_pty_as_the_serial_port(backend_name: str) -> None:
    child = start(
        "run", "echo", "-b", backend_name, "-q", "--serial", "pty",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stderr is not None
    path = child.stderr.readline().decode().split()[-1]
    line = os.open(path, os.O_RDWR | os.O_NOCTTY)
    os.write(line, b"by pty")
    echoed = b""
    while len(echoed) < 6:
        echoed += os.read(line, 100)
    os.write(line, b"\n")  # ends the guest, and with it the pty
    os.close(line)
    stdout, _ = child.communicate(timeout=time_limit(20))

    assert (child.returncode, stdout, echoed) == (0, b"", b"by pty")
