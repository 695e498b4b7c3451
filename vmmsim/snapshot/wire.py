"""Sockets for a migration: addresses, keys, connecting and listening, and bytes with a time limit."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import selectors
import socket
import stat
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from ..errors import HostError, MigrationError, NotSupported, UsageError
from ..streams.host import listen_alone, unix_path

__all__ = ["Address", "Listener", "Wire", "connect", "read_key"]

#: Seconds that a wait lasts before it looks whether it is still wanted.
SLICE = 0.05
_CHUNK = 1 << 18
_LEAST_KEY, _MOST_KEY = 16, 4096


class Address(msgspec.Struct, frozen=True):
    """`tcp://HOST:PORT` or `unix:PATH`."""

    kind: Literal["tcp", "unix"]
    host: str
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises UsageError."""
        if text.startswith("unix:") and (path := text.removeprefix("unix:").removeprefix("//")):
            return cls("unix", unix_path(path))
        body = text.removeprefix("tcp://")
        host, colon, port = body.rpartition(":")
        if body == text or not colon or not port.isascii() or not port.isdigit() or len(port) > 5:
            raise UsageError(f"'{text}' is no address", hint="write tcp://127.0.0.1:4444 or unix:PATH")
        if int(port) > 65535 or not host:
            raise UsageError(f"'{text}' is no address", hint="write tcp://127.0.0.1:4444 or unix:PATH")
        return cls("tcp", host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.host}"
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"

    def check_key(self, key: bytes) -> None:
        """A network is not trusted: UsageError without a key, or with a short one."""
        if self.kind == "tcp" and not key:
            raise UsageError(
                f"{self} needs a key that both sides know",
                hint="give --key-file FILE or VMMSIM_MIGRATION_KEY; or use unix:PATH",
            )
        if key and len(key) < _LEAST_KEY:
            raise UsageError(
                f"a key of {len(key)} bytes can be guessed",
                hint=f"use {_LEAST_KEY} bytes or more, for example: openssl rand -hex 32",
            )


def read_key(path: str) -> bytes:
    """The shared key in a file: its bytes, without the newline at the end. UsageError."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_KEY + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"the key file '{path}' cannot be read: {reason}", hint="see --key-file") from error
    key = data.rstrip(b"\r\n")
    if len(data) > _MOST_KEY or not key:
        raise UsageError(
            f"'{path}' is no key file", hint="a key is a line, for example of: openssl rand -hex 32"
        )
    return key


class Wire:
    """A connected socket. `patience` is how many seconds nothing may happen at all."""

    def __init__(self, sock: socket.socket, patience: float) -> None:
        self._sock = sock
        self.patience = patience
        #: Bytes of the last `send` that were not handed over.
        self.left = 0
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ready = selectors.DefaultSelector()
        self._ready.register(sock, selectors.EVENT_READ)

    def send(self, data: bytes, check: Callable[[], None], until: float | None = None) -> None:
        """Hand `data` over; `left` is then how much was not, since the connection is gone or this
        has raised. `check` is called now and then, and may raise. MigrationError when the other
        side takes nothing for `patience` seconds, or not all by the time.perf_counter() `until`."""
        view = memoryview(data)
        self.left = len(view)
        limit = time.perf_counter() + self.patience
        while view:
            try:
                count = self._sock.send(view[:_CHUNK])
                view = view[count:]
                self.left = len(view)
                limit = time.perf_counter() + self.patience
            except (BlockingIOError, InterruptedError):
                self._ready.modify(self._sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
                try:
                    ready = self._ready.select(SLICE)
                finally:
                    self._ready.modify(self._sock, selectors.EVENT_READ)
                if ready and not ready[0][1] & selectors.EVENT_WRITE:
                    check()  # something has come instead: perhaps the reason why
                    time.sleep(0.001)
            except OSError:
                break
            check()
            now = time.perf_counter()
            if view and (now > limit or (until is not None and now > until)):
                raise MigrationError(
                    "the other side takes nothing any more", hint="it is stopped, or too slow"
                )

    def receive(self, seconds: float) -> bytes | None:
        """Some bytes; b"" when none come any more, None when none came in `seconds`."""
        try:
            if seconds and not self._ready.select(seconds):
                return None
            return self._sock.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    def close(self, *, linger: float = 0.0) -> None:
        """Close it. For `linger` seconds what comes is read and dropped, so that what was
        said last arrives, and is not reset."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        end = time.perf_counter() + linger
        while (left := end - time.perf_counter()) > 0 and self.receive(min(left, SLICE)) != b"":
            pass
        self._ready.close()
        self._sock.close()


def connect(address: Address, patience: float = 30.0) -> Wire:
    """Raises MigrationError when nobody answers there, NotSupported for no Unix sockets."""
    try:
        if address.kind == "tcp":
            return Wire(socket.create_connection((address.host, address.port), timeout=patience), patience)
        sock = _unix_socket(address.host)
        try:
            sock.settimeout(patience)
            sock.connect(address.host)
        except BaseException:
            sock.close()
            raise
        return Wire(sock, patience)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MigrationError(
            f"nobody answers at {address}: {reason}", hint="start vmmsim receive there first"
        ) from error


class Listener:
    """Waits at `address` for a source. `address` is then what it really is (for port 0).

    Raises UsageError for an address that is not loopback without `allow_remote`, HostError
    when it cannot be had.
    """

    def __init__(self, address: Address, *, allow_remote: bool = False) -> None:
        self._path: str | None = None
        if address.kind == "unix":
            self._sock = self._listen_unix(address.host)
            self.address = address
        else:
            self._sock = self._listen_tcp(address, allow_remote)
            self.address = Address("tcp", address.host, self._sock.getsockname()[1])
        self._sock.setblocking(False)

    def _listen_tcp(self, address: Address, allow_remote: bool) -> socket.socket:
        try:
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as error:
            raise UsageError(f"there is no host '{address.host}'", hint="use 127.0.0.1") from error
        where = found[4]
        if not allow_remote and not ipaddress.ip_address(str(where[0]).partition("%")[0]).is_loopback:
            raise UsageError(
                f"{address} can be reached from other hosts",
                hint="use tcp://127.0.0.1:PORT, and ssh -L to reach it; or give --allow-remote",
            )
        sock = socket.socket(found[0], socket.SOCK_STREAM)
        try:
            listen_alone(sock)
            sock.bind(where)
            sock.listen(4)
        except OSError as error:
            sock.close()
            raise HostError(
                f"cannot listen at {address}: {error.strerror}", hint="use another port"
            ) from error
        return sock

    def _listen_unix(self, path: str) -> socket.socket:
        sock = _unix_socket(path)
        try:
            _remove_dead(path)
            before = os.umask(0o177)  # nobody but this user may connect
            try:
                sock.bind(path)
            finally:
                os.umask(before)
            sock.listen(4)
        except OSError as error:
            sock.close()
            raise HostError(
                f"cannot listen at unix:{path}: {error.strerror or error}", hint="use another path"
            ) from error
        self._path = path
        return sock

    def accept(self, patience: float, seconds: float) -> Wire | None:
        """A connection; None when none came in `seconds`."""
        with selectors.DefaultSelector() as ready:
            ready.register(self._sock, selectors.EVENT_READ)
            if not ready.select(seconds):
                return None
        try:
            return Wire(self._sock.accept()[0], patience)
        except OSError:  # it is gone already
            return None

    def close(self) -> None:
        self._sock.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            self._path = None


def _unix_socket(path: str) -> socket.socket:
    """A socket that can be bound or connected to `path`. NotSupported, UsageError."""
    if not hasattr(socket, "AF_UNIX"):
        raise NotSupported("this system has no Unix sockets", hint="use tcp://127.0.0.1:PORT")
    unix_path(path)
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def _remove_dead(path: str) -> None:
    """Take away a socket that a listener, now gone, has left behind; nothing else."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with _unix_socket(path) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "somebody listens there")
