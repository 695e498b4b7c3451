"""Consoles of Windows, on a console that is made up: keys, modes, and what is no console."""

from __future__ import annotations

import io
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.cli import output
from vmmsim.console.api import (
    ECHO_INPUT,
    LINE_INPUT,
    PROCESSED_INPUT,
    PROCESSED_OUTPUT,
    UTF_8,
    VT_INPUT,
    VT_OUTPUT,
    console,
    is_cygwin_terminal,
)
from vmmsim.console.keys import Key, Translator
from vmmsim.streams.sources import ConsoleSource, ThreadSource, open_stdin
from vmmsim.terminal import BANNER, LINES, ConsoleTerminal

LEFT_ALT, RIGHT_ALT, LEFT_CTRL, SHIFT = 0x02, 0x01, 0x08, 0x10
#: What a console has at first; 0x1F0 are modes of no concern.
COOKED = PROCESSED_INPUT | LINE_INPUT | ECHO_INPUT | 0x1F0
SCREEN = PROCESSED_OUTPUT | 2


class MadeUp:
    """A console with input at 0 and a screen at 1 and 2, unless `modes` says otherwise."""

    def __init__(self, modes: dict[int, int] | None = None, pipe: str = "") -> None:
        self.modes = {0: COOKED, 1: SCREEN, 2: SCREEN} if modes is None else modes
        self.page = 437
        self.typed: queue.Queue[Key | None] = queue.Queue()
        self.pipe = pipe
        self.refused = 0

    def mode(self, fd: int) -> int | None:
        return self.modes.get(fd)

    def set_mode(self, fd: int, mode: int) -> bool:
        if fd and mode & self.refused:
            return False
        self.modes[fd] = mode
        return True

    def code_page(self) -> int:
        return self.page

    def set_code_page(self, number: int) -> bool:
        self.page = number
        return True

    def keys(self, fd: int, seconds: float) -> list[Key] | None:
        try:
            key = self.typed.get(timeout=seconds)
        except queue.Empty:
            return []
        return None if key is None else [key]

    def pipe_name(self, fd: int) -> str:
        return self.pipe

    def type(self, text: str) -> None:
        for unit in text:
            self.typed.put(Key(True, ord(unit.upper()) & 0xFF, ord(unit), 0))
            self.typed.put(Key(False, ord(unit.upper()) & 0xFF, ord(unit), 0))


def sent(*keys: Key, carriage_return: bool = True) -> bytes:
    translator = Translator()
    return b"".join(translator.bytes_of(key, carriage_return=carriage_return) for key in keys)


# The bytes are those of xterm's ctlseqs, "PC-Style Function Keys" (normal cursor keys).
@pytest.mark.parametrize(
    ("code", "plain", "with_ctrl"),
    [
        (0x26, b"\x1b[A", b"\x1b[1;5A"),
        (0x28, b"\x1b[B", b"\x1b[1;5B"),
        (0x27, b"\x1b[C", b"\x1b[1;5C"),
        (0x25, b"\x1b[D", b"\x1b[1;5D"),
        (0x24, b"\x1b[H", b"\x1b[1;5H"),
        (0x23, b"\x1b[F", b"\x1b[1;5F"),
        (0x2D, b"\x1b[2~", b"\x1b[2;5~"),
        (0x2E, b"\x1b[3~", b"\x1b[3;5~"),
        (0x21, b"\x1b[5~", b"\x1b[5;5~"),
        (0x22, b"\x1b[6~", b"\x1b[6;5~"),
        (0x70, b"\x1bOP", b"\x1b[1;5P"),
        (0x73, b"\x1bOS", b"\x1b[1;5S"),
        (0x74, b"\x1b[15~", b"\x1b[15;5~"),
        (0x7B, b"\x1b[24~", b"\x1b[24;5~"),
    ],
)
def test_keys_without_a_character_are_escape_sequences(code: int, plain: bytes, with_ctrl: bytes) -> None:
    assert sent(Key(True, code, 0, 0)) == plain
    assert sent(Key(True, code, 0, LEFT_CTRL)) == with_ctrl
    assert sent(Key(False, code, 0, 0)) == b""


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (Key(True, 0x41, ord("a"), 0), b"a"),
        (Key(True, 0x41, 1, LEFT_CTRL), b"\x01"),
        (Key(True, 0x43, 3, LEFT_CTRL), b"\x03"),
        (Key(True, 0x51, ord("@"), RIGHT_ALT | LEFT_CTRL), b"@"),  # AltGr of a German keyboard
        (Key(True, 0x58, ord("x"), LEFT_ALT), b"\x1bx"),
        (Key(True, 0x08, 8, 0), b"\x7f"),
        (Key(True, 0x08, 0x7F, LEFT_CTRL), b"\x08"),
        (Key(True, 0x0D, 13, 0), b"\r"),
        (Key(True, 0x09, 9, 0), b"\t"),
        (Key(True, 0x09, 9, SHIFT), b"\x1b[Z"),
        (Key(True, 0x1B, 0x1B, 0), b"\x1b"),
        (Key(True, 0x20, 0, LEFT_CTRL), b"\0"),
        (Key(True, 0x10, 0, SHIFT), b""),
        (Key(True, 0x4B, ord("k"), 0, 3), b"kkk"),
        (Key(False, 0x12, 0xE4, 0), "ä".encode()),  # Alt with 0228
        (Key(True, 0, 0x20AC, 0), "€".encode()),  # pasted
    ],
)
def test_keys_with_a_character(key: Key, expected: bytes) -> None:
    assert sent(key) == expected


def test_enter_is_lf_where_ctrl_c_is_a_signal() -> None:
    assert sent(Key(True, 0x0D, 13, 0), carriage_return=False) == b"\n"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\t"), max_size=20))
def test_text_that_is_pasted_is_its_utf_8(text: str) -> None:
    raw = text.encode("utf-16-le")
    units = [int.from_bytes(raw[at : at + 2], "little") for at in range(0, len(raw), 2)]
    assert sent(*(Key(True, 0, unit, 0) for unit in units)) == text.encode()


@given(
    st.lists(
        st.builds(
            Key,
            st.booleans(),
            st.integers(0, 0xFFFF),
            st.integers(0, 0xFFFF),
            st.integers(0, 0x1FF),
            st.integers(0, 3),
        )
    )
)
def test_any_key_events_give_utf_8(keys: list[Key]) -> None:
    sent(*keys).decode()


@pytest.mark.parametrize("signals", [True, False])
def test_the_modes_while_open_and_as_before_at_the_end(signals: bool) -> None:
    made = MadeUp()
    before = dict(made.modes)
    with ConsoleTerminal(made, signals=signals) as terminal:
        assert terminal.active
        assert terminal.banner == BANNER
        assert made.modes[0] & (LINE_INPUT | ECHO_INPUT | VT_INPUT) == 0
        assert bool(made.modes[0] & PROCESSED_INPUT) == signals
        assert made.modes[0] & 0x1F0 == COOKED & 0x1F0
        assert all(made.modes[fd] & VT_OUTPUT and made.modes[fd] & PROCESSED_OUTPUT for fd in (1, 2))
        assert made.page == UTF_8
    assert made.modes == before
    assert made.page == 437
    assert not terminal.active


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_the_modes_come_back_after_an_error(error: type[BaseException]) -> None:
    made = MadeUp()
    before = dict(made.modes)
    with pytest.raises(error), ConsoleTerminal(made):
        raise error
    assert (made.modes, made.page) == (before, 437)


def test_the_modes_come_back_at_exit_when_the_block_is_never_left() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_console import MadeUp\n"
        "from vmmsim.terminal import ConsoleTerminal\n"
        "class Told(MadeUp):\n"
        "    def set_mode(self, fd, mode):\n"
        "        print('set', fd, mode, flush=True)\n"
        "        return super().set_mode(fd, mode)\n"
        "ConsoleTerminal(Told()).__enter__()\n"
        "print('end', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True
    )
    said = done.stdout.splitlines()
    assert said[said.index("end") + 1 :] == [f"set 2 {SCREEN}", f"set 1 {SCREEN}", f"set 0 {COOKED}"]


def test_ctrl_break_puts_the_modes_back_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGBREAK is Windows's; another number stands for it, and what would end the process is noted."""
    number = signal.SIGTERM
    monkeypatch.setattr(signal, "SIGBREAK", number, raising=False)
    made, ended = MadeUp(), []
    before = dict(made.modes)
    with ConsoleTerminal(made) as terminal:
        handler = signal.getsignal(number)
        assert callable(handler)
        monkeypatch.setattr(signal, "raise_signal", lambda n: ended.append((n, signal.getsignal(n))))
        handler(number, None)
        assert ended == [(number, signal.SIG_DFL)]
        assert made.modes == before
        assert not terminal.active
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_console_that_knows_no_escape_sequences_still_gives_keys() -> None:
    made = MadeUp()
    made.refused = VT_OUTPUT
    with ConsoleTerminal(made) as terminal:
        assert terminal.active
        assert made.modes[1] == SCREEN
        assert made.page == 437
    assert made.modes == {0: COOKED, 1: SCREEN, 2: SCREEN}


def test_input_from_elsewhere_leaves_the_input_alone_and_a_pipe_everything() -> None:
    made = MadeUp()
    with ConsoleTerminal(made, keys=False) as terminal:
        assert (terminal.active, terminal.banner) == (False, "")
        assert made.modes[0] == COOKED
        assert made.modes[1] & VT_OUTPUT
    pipes = MadeUp(modes={}, pipe="\\some-pipe")
    with ConsoleTerminal(pipes) as terminal:
        assert (terminal.active, terminal.banner) == (False, "")
        assert (pipes.modes, pipes.page) == ({}, 437)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("\\msys-dd50a72ab4668b33-pty0-from-master", True),
        ("\\cygwin-e022582115c10879-pty12-to-master", True),
        ("\\msys-dd50a72ab4668b33-8192-pipe", False),
        ("\\Device\\NamedPipe\\other", False),
        ("", False),
    ],
)
def test_a_cygwin_terminal_is_known_by_the_name_of_its_pipe(name: str, found: bool) -> None:
    made = MadeUp(modes={}, pipe=name)
    assert is_cygwin_terminal(made, 0) == found
    assert ConsoleTerminal(made).banner == (LINES if found else "")


def source(made: MadeUp, filter: Callable[[bytes], bytes] | None = None) -> ConsoleSource:
    return ConsoleSource(0, made, filter)


def test_keys_reach_the_guest_one_by_one_and_the_filter_sees_each() -> None:
    made, seen = MadeUp(), []

    def keys(data: bytes) -> bytes:
        seen.append(data)
        return data.replace(b"x", b"")

    with ConsoleTerminal(made, signals=False):
        found = source(made, keys)
        made.type("axb")
        made.typed.put(Key(True, 0x26, 0, 0))
        made.type("\r")
        assert bytes(found.wait() or 0 for _ in range(6)) == b"ab\x1b[A\r"
        assert seen == [b"a", b"x", b"b", b"\x1b[A", b"\r"]
        found.close()
        assert found.ended
    with ConsoleTerminal(made, signals=True):
        found = source(made)
        made.type("\r")
        assert found.wait() == ord("\n")
        found.close()


def test_a_console_that_goes_away_is_the_end_of_the_input() -> None:
    made = MadeUp()
    found = source(made)
    made.type("k")
    made.typed.put(None)
    assert found.wait() == ord("k")
    assert found.wait() is None
    found.close()


def test_a_source_that_is_closed_takes_no_more_keys() -> None:
    made = MadeUp()
    found = source(made)
    found.close()
    made.type("k")
    assert made.typed.qsize() == 2
    assert not any(thread is found._thread for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("made", "filtered", "expected"),
    [
        (MadeUp(), True, ConsoleSource),
        (MadeUp(), False, ThreadSource),  # lines, for who has no raw terminal
        (MadeUp(modes={}, pipe="\\msys-dd50a72ab4668b33-pty0-from-master"), True, ThreadSource),
    ],
    ids=["console", "lines", "cygwin"],
)
def test_what_stdin_is_read_by(
    made: MadeUp, filtered: bool, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, outer = os.pipe()
    with open(inner, "rb") as stdin:
        monkeypatch.setattr(sys, "__stdin__", stdin)
        if 0 in made.modes:
            made.modes[inner] = COOKED
        found = open_stdin((lambda data: data.upper()) if filtered else None, made)
        assert type(found) is expected
        if expected is ThreadSource:
            os.write(outer, b"line\n")
            want = b"LINE\n" if filtered else b"line\n"
            assert bytes(found.wait() or 0 for _ in range(5)) == want
        os.close(outer)
        found.close()


def test_what_is_printed_has_lf_and_is_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a pipe on Windows is at first: CR LF, and a code page that has no arrows."""
    raw, errors = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252", newline="\r\n"))
    monkeypatch.setattr(
        sys, "stderr", io.TextIOWrapper(errors, encoding="cp1252", errors="backslashreplace", newline="\r\n")
    )
    output.plain_streams()
    output.out('{"µs": "→"}')
    output.note("→")
    sys.stdout.flush()
    sys.stderr.flush()
    assert raw.getvalue() == '{"µs": "→"}\n'.encode()
    assert errors.getvalue() == "→\n".encode()
    assert sys.stderr.errors == "backslashreplace"


def test_only_windows_has_that_api() -> None:
    assert (console() is not None) == (os.name == "nt")
