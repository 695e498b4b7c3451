"""Where a debugger may come: an address as the user writes it, and the socket that listens there."""

from __future__ import annotations

import contextlib
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import UsageError
from ..streams.host import listen_alone, unix_path

__all__ = ["DEFAULT_ADDRESS", "listen"]

#: What gdb's own `target remote :1234`, and QEMU's -s, mean.
DEFAULT_ADDRESS = "tcp:127.0.0.1:1234"


def listen(address: str, *, remote: bool) -> tuple[socket.socket, str, Path | None]:
    """The socket, the address with its true port, and the file to remove at the end: see GdbServer."""
    kind, _, rest = address.partition(":")
    if kind == "tcp":
        listener = _listen_tcp(address, rest, remote)
        host, port = listener.getsockname()[:2]
        return listener, f"tcp:{f'[{host}]' if ':' in host else host}:{port}", None
    if kind == "unix" and rest:
        return _listen_unix(Path(unix_path(rest))), address, Path(rest)
    raise UsageError(
        f"'{address}' is no address for a debugger", hint=f"write {DEFAULT_ADDRESS} or unix:PATH"
    )


def _listen_tcp(address: str, rest: str, remote: bool) -> socket.socket:
    host, _, port = rest.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdecimal() or not 0 <= int(port) < 65536:
        raise UsageError(f"'{address}' has no port", hint=f"write {DEFAULT_ADDRESS}")
    try:
        family, _, _, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(f"'{host}' is no host: {error.strerror}", hint=f"write {DEFAULT_ADDRESS}") from error
    ip = str(where[0])
    if not (ip.startswith("127.") or ip == "::1") and not remote:
        raise UsageError(
            f"whoever reaches {host} could read and change the guest",
            hint="use 127.0.0.1, and a tunnel; or say --gdb-remote",
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    with _listening(listener, address):
        listen_alone(listener)
        listener.bind(where)
        listener.listen(4)
    return listener


def _listen_unix(path: Path) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise UsageError("this host has no unix sockets", hint=f"use {DEFAULT_ADDRESS}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _listening(listener, f"unix:{path}"):
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _alive(path):
            path.unlink()  # left over from a process that is gone
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(4)
    return listener


def _alive(path: Path) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _listening(listener: socket.socket, address: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        listener.close()
        raise UsageError(
            f"a debugger cannot be waited for at {address}: {error.strerror or error}",
            hint="another process has it; choose another with --gdb",
        ) from error
