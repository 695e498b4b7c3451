"""Ctrl-a escapes, and the terminal as it was after every way of ending, under a real pty."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmsim.terminal import EscapeFilter, RawTerminal
from vmmsim.testing.slow import time_limit

posix = pytest.mark.skipif(os.name != "posix", reason="terminals with termios are POSIX's")

# Escapes.


@pytest.mark.parametrize(
    ("typed", "kept", "commands"),
    [
        (b"plain\n", b"plain\n", []),
        (b"\x01x", b"", ["quit"]),
        (b"a\x01hb", b"ab", ["help"]),
        (b"\x01\x01", b"\x01", []),
        (b"\x01\x01x", b"\x01x", []),
        (b"\x01qz", b"z", []),
        (b"\x01x\x01h", b"", ["quit", "help"]),
        (b"\x03\x04", b"\x03\x04", []),
    ],
)
def test_escapes(typed: bytes, kept: bytes, commands: list[str]) -> None:
    assert EscapeFilter().feed(typed) == (kept, commands)


def test_an_escape_may_come_in_two_pieces() -> None:
    escapes = EscapeFilter()

    assert escapes.feed(b"a\x01") == (b"a", [])
    assert escapes.feed(b"xb") == (b"b", ["quit"])


TYPED = st.lists(st.sampled_from([b"\x01", b"x", b"h", b"a", b"\n"]), max_size=20).map(b"".join)


@given(TYPED, st.integers(0, 20))
def test_where_the_input_is_cut_makes_no_difference(typed: bytes, at: int) -> None:
    whole = EscapeFilter().feed(typed)
    cut = EscapeFilter()
    first, second = cut.feed(typed[:at]), cut.feed(typed[at:])

    assert (first[0] + second[0], first[1] + second[1]) == whole


@given(st.binary(max_size=50))
def test_any_bytes_reach_the_guest_when_ctrl_a_is_doubled(data: bytes) -> None:
    assert EscapeFilter().feed(data.replace(b"\x01", b"\x01\x01")) == (data, [])


# The terminal. The child has the pty as its controlling terminal, as from a shell.

CHILD = """
import os, sys, time
from vmmsim.terminal import RawTerminal
with RawTerminal() as terminal:
    print("active" if terminal.active else "plain", flush=True)
    {body}
"""


class Session:
    """A Python child on a pty of its own, and the pty's settings before it began."""

    def __init__(self, code: str, leader: str = "", pass_fds: tuple[int, ...] = ()) -> None:
        import termios

        self.master, slave = os.openpty()
        self.slave = slave
        self.before = termios.tcgetattr(slave)
        launch = "import fcntl, os, signal, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n" + leader + code
        self.child = subprocess.Popen(
            [sys.executable, "-c", launch],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        self.text = b""

    def expect(self, text: bytes) -> None:
        end = time.monotonic() + time_limit(20)
        while text not in self.text:
            if not select.select([self.master], [], [], max(0, end - time.monotonic()))[0]:
                raise AssertionError(f"no {text!r} in {self.text!r}")
            self.text += os.read(self.master, 4096)

    @property
    def settings(self) -> list[object]:
        import termios

        return termios.tcgetattr(self.slave)

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait(time_limit(20))
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def sessions() -> Iterator[list[Session]]:
    started: list[Session] = []
    yield started
    for session in started:
        session.close()


@posix
@pytest.mark.parametrize(
    ("body", "number", "status"),
    [
        ("pass", None, 0),
        ("raise ValueError('boom')", None, 1),
        ("sys.exit(7)", None, 7),
        ("time.sleep(30)", signal.SIGINT, -signal.SIGINT),
        ("time.sleep(30)", signal.SIGTERM, -signal.SIGTERM),
        ("time.sleep(30)", getattr(signal, "SIGHUP", None), -getattr(signal, "SIGHUP", 1)),
    ],
    ids=["normal", "exception", "exit", "SIGINT", "SIGTERM", "SIGHUP"],
)
def test_settings_come_back(
    sessions: list[Session], body: str, number: signal.Signals | None, status: int
) -> None:
    session = Session(CHILD.format(body=body))
    sessions.append(session)
    session.expect(b"active")
    if number is not None:
        assert session.settings != session.before
        session.child.send_signal(number)

    assert session.child.wait(time_limit(20)) == status
    assert session.settings == session.before


@posix
def test_settings_come_back_when_the_block_is_never_left(sessions: list[Session]) -> None:
    code = (
        "from vmmsim.terminal import RawTerminal\nt = RawTerminal()\nt.__enter__()\nprint('active', t.active)"
    )
    session = Session(code)
    sessions.append(session)
    session.expect(b"active True")

    assert session.child.wait(time_limit(20)) == 0
    assert session.settings == session.before


@posix
def test_keys_arrive_one_by_one_without_echo_and_ctrl_c_is_a_signal(sessions: list[Session]) -> None:
    body = "print('got', os.read(0, 10), flush=True); time.sleep(30)"
    session = Session(CHILD.format(body=body))
    sessions.append(session)
    session.expect(b"active")
    os.write(session.master, b"k")
    session.expect(b"got b'k'")

    assert b"k" not in session.text.replace(b"b'k'", b"")
    os.write(session.master, b"\x03")
    assert session.child.wait(time_limit(20)) == -signal.SIGINT
    assert session.settings == session.before


@posix
def test_suspending_gives_the_terminal_back_and_continuing_takes_it_again(sessions: list[Session]) -> None:
    gate, go = os.pipe()
    # The session's leader does what a shell does: it waits for its job to be suspended, and
    # on a sign from here continues it.
    leader = (
        "pid = os.fork()\n"
        "if pid:\n"
        "    os.waitpid(pid, os.WUNTRACED)\n"
        "    print('suspended', flush=True)\n"
        f"    os.read({gate}, 1)\n"
        "    os.kill(pid, signal.SIGCONT)\n"
        "    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "os.setpgid(0, 0)\n"
        "signal.signal(signal.SIGTTOU, signal.SIG_IGN)\n"
        "os.tcsetpgrp(0, os.getpid())\n"
        "signal.signal(signal.SIGTTOU, signal.SIG_DFL)\n"
    )
    body = "time.sleep(1); print('again', terminal.active, flush=True)"
    session = Session(CHILD.format(body=body), leader, pass_fds=(gate,))
    sessions.append(session)
    session.expect(b"active")
    os.write(session.master, b"\x1a")
    session.expect(b"suspended")
    assert session.settings == session.before
    os.write(go, b"c")
    session.expect(b"again True")

    assert session.child.wait(time_limit(20)) == 0
    assert session.settings == session.before
    os.close(gate)
    os.close(go)


@posix
def test_a_pipe_is_left_alone() -> None:
    ends = os.pipe()
    handler = signal.getsignal(signal.SIGTERM)
    with RawTerminal(ends[0]) as terminal:
        assert not terminal.active
        assert signal.getsignal(signal.SIGTERM) is handler
    os.close(ends[0])
    os.close(ends[1])


def test_no_terminal_at_all_is_no_error() -> None:
    with RawTerminal(-1) as terminal:
        assert not terminal.active


def test_windows_has_no_termios_and_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "name", "nt")
    monkeypatch.setitem(sys.modules, "termios", None)
    with RawTerminal(0) as terminal:
        assert not terminal.active
