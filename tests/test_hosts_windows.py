"""What Windows does in its own way, apart from its console: clocks, ports, wakeups, open files."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import vmmsim
from vmmsim.debug.listen import listen
from vmmsim.errors import reader_gone
from vmmsim.signals import _pass_on
from vmmsim.snapshot.pages import MappedFile
from vmmsim.snapshot.wire import Address, Listener
from vmmsim.streams.host import listen_alone

SOURCE = Path(vmmsim.__file__).parent


def test_no_clock_is_time_monotonic() -> None:
    """It moves in steps of 15.6 ms on Windows before Python 3.13 (time.get_clock_info says
    GetTickCount64); perf_counter is the same clock elsewhere, and the fine one there. What runs on Linux
    alone may have either."""
    for file in SOURCE.rglob("*.py"):
        if not file.name.startswith("kvm") and "unicorn_native" not in file.parts:
            assert "time.monotonic" not in file.read_text("utf-8"), file


class Options:
    """A socket of which only the options are of interest."""

    def __init__(self) -> None:
        self.set: list[tuple[int, int, int]] = []

    def setsockopt(self, *option: int) -> None:
        self.set.append(option)  # type: ignore[arg-type]


def test_a_port_is_had_alone_on_each_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", -5, raising=False)  # winsock2.h: ~SO_REUSEADDR
    windows, posix = Options(), Options()
    listen_alone(windows, "nt")  # type: ignore[arg-type]
    listen_alone(posix, "posix")  # type: ignore[arg-type]
    assert windows.set == [(socket.SOL_SOCKET, -5, 1)]
    assert posix.set == [(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)]


def test_nobody_else_says_how_a_port_is_had() -> None:
    for file in SOURCE.rglob("*.py"):
        if file.name != "host.py":
            assert not re.search("SO_REUSE|SO_EXCL|create_server", file.read_text("utf-8")), file


def _debugger() -> tuple[int, Callable[[], None]]:
    listener, address, _ = listen("tcp:127.0.0.1:0", remote=False)
    return int(address.rpartition(":")[2]), listener.close


def _receiver() -> tuple[int, Callable[[], None]]:
    listener = Listener(Address("tcp", "127.0.0.1", 0))
    return listener.address.port, listener.close


@pytest.mark.parametrize("listening", [_debugger, _receiver])
def test_another_socket_cannot_take_the_port(listening: Callable[[], tuple[int, Callable[[], None]]]) -> None:
    port, close = listening()
    try:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError):
                other.bind(("127.0.0.1", port))
    finally:
        close()


@pytest.mark.parametrize("platform", ["nt", "posix"])
def test_signals_are_passed_on_to_a_pipe(platform: str) -> None:
    inner, outer = os.pipe()
    _pass_on(outer, b"\x02", platform)
    assert os.read(inner, 8) == b"\x02"
    _pass_on(outer, b"\x0f", platform)  # and it is still open
    assert os.read(inner, 8) == b"\x0f"
    os.close(inner)
    os.close(outer)


def test_signals_are_passed_on_to_a_socket_as_windows_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a socket's fileno() is a handle, which os.write() does not know."""

    def write(fd: int, data: bytes) -> int:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(os, "write", write)
    one, other = socket.socketpair()
    with one, other:
        for number in (signal.SIGINT, signal.SIGTERM):
            _pass_on(one.fileno(), bytes([number]), "nt")
            other.settimeout(10)
            assert other.recv(8) == bytes([number])


def test_a_file_that_is_copied_is_free_at_once(tmp_path: Path) -> None:
    path, data = tmp_path / "file", bytes(range(256)) * 1000
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    os.read(fd, 10)  # wherever the descriptor stands
    found = MappedFile(fd, str(path), copied=True)
    with pytest.raises(OSError):
        os.fstat(fd)
    path.write_bytes(b"another")
    assert found.view.readonly
    assert bytes(found.view) == data
    assert found.size == len(data)


def test_a_file_that_is_not_whole_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    truth = os.fstat(fd)
    monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result((*truth[:6], 20, *truth[7:])))
    with pytest.raises(OSError, match="10 bytes"):
        MappedFile(fd, str(path), copied=True)
    monkeypatch.undo()
    os.close(fd)  # it is the caller's still


@pytest.mark.parametrize(
    ("error", "posix", "windows"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), True, True),
        (OSError(errno.EINVAL, "Invalid argument"), False, True),
        (OSError(errno.ENOSPC, "No space left on device"), False, False),
        (None, False, False),
    ],
)
def test_a_reader_that_is_gone_is_known_on_each_system(
    error: OSError | None, posix: bool, windows: bool
) -> None:
    assert reader_gone(error, "posix") == posix
    assert reader_gone(error, "nt") == windows
