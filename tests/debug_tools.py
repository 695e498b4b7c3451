"""What the debugger's tests share: a machine served in a thread, and a client that plays gdb."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

from vmmsim import Machine
from vmmsim.debug.rsp import expand
from vmmsim.debug.server import GdbServer

#: A whole test is over before this.
PATIENCE = 20


class Client:
    """A debugger's end of the connection, without acknowledgements after `start`."""

    def __init__(self, server: GdbServer) -> None:
        kind, _, where = server.address.partition(":")
        if kind == "unix":
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(where)
        else:
            host, _, port = where.rpartition(":")
            self.socket = socket.create_connection((host.strip("[]"), int(port)))
        self.socket.settimeout(PATIENCE)
        self._had = b""

    def start(self) -> Client:
        assert self.ask(b"QStartNoAckMode") == b"OK"
        self.socket.sendall(b"+")
        return self

    def send(self, body: bytes) -> None:
        self.socket.sendall(b"$%s#%02x" % (body, sum(body) & 0xFF))

    def reply(self) -> bytes:
        """The next packet that is no text for the console; b"" at the end of the connection."""
        while True:
            while b"#" not in self._had or len(self._had) < self._had.index(b"#") + 3:
                data = self.socket.recv(4096)
                if not data:
                    return b""
                self._had += data
            body, _, rest = self._had.partition(b"#")
            self._had = rest[2:]
            body = expand(body.partition(b"$")[2])
            if not (body[:1] == b"O" and body != b"OK"):
                return body

    def ask(self, body: bytes) -> bytes:
        self.send(body)
        return self.reply()

    def close(self) -> None:
        self.socket.close()


class Served:
    """`server.serve(machine)` in a thread; `end` is what it returned."""

    def __init__(self, machine: Machine, server: GdbServer, **options: Any) -> None:
        self.machine = machine
        self.server = server
        self.end: object = None
        self._clients: list[Client] = []
        self._thread = threading.Thread(target=self._work, kwargs=options, daemon=True)
        self._thread.start()

    def client(self) -> Client:
        """A new connection, which is closed at the end."""
        self._clients.append(Client(self.server))
        return self._clients[-1]

    def _work(self, **options: Any) -> None:
        try:
            self.end = self.server.serve(self.machine, **options)
        except BaseException as error:
            self.end = error

    def join(self) -> object:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the machine still runs"
        return self.end

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        while self._thread.is_alive():
            self.machine.cancel()
            self._thread.join(0.05)


@contextlib.contextmanager
def served(machine: Machine, address: str = "tcp:127.0.0.1:0", **options: Any) -> Iterator[Served]:
    with machine, GdbServer(address) as server:
        running = Served(machine, server, **options)
        try:
            yield running
        finally:
            running.stop()


