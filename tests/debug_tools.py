"""What the debugger's tests share: a machine served in a thread, and a client that plays gdb."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

from vmmsim import Machine
from vmmsim.debug.rsp import expand
from vmmsim.debug.server import GdbServer
from vmmsim.testing.slow import time_limit

#: A whole test is over before this.
PATIENCE = time_limit(20)


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


def elf_with_symbols(code: bytes, at: int, symbols: dict[str, int]) -> bytes:
    """An x86-64 executable whose .text is `code` at `at`, with `symbols` in it, as gdb wants it: by
    the System V ABI's "Object Files"."""
    strings, table = b"\0", bytes(24)
    for name, value in symbols.items():
        table += struct.pack("<IBBHQQ", len(strings), 0x12, 0, 1, value, 0)
        strings += name.encode() + b"\0"
    names = b"\0.text\0.symtab\0.strtab\0.shstrtab\0"
    offset = 64 + 56
    bodies = (code, table, strings, names)
    offsets = [offset + sum(map(len, bodies[:n])) for n in range(5)]
    rows = (
        (1, 1, 6, at, 0, 0, 0),  # .text: PROGBITS, allocated and executable
        (7, 2, 0, 0, 3, 1, 24),  # .symtab, whose strings are in section 3
        (15, 3, 0, 0, 0, 0, 0),
        (23, 3, 0, 0, 0, 0, 0),
    )
    sections = bytes(64)
    for row, start, body in zip(rows, offsets, bodies, strict=False):
        name, kind, flags, address, link, info, size = row
        sections += struct.pack(
            "<IIQQQQIIQQ", name, kind, flags, address, start, len(body), link, info, 1, size
        )
    header = b"\x7fELF\2\1\1" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, at, 64, offsets[4], 0, 64, 56, 1, 64, 5, 4)
    header += struct.pack("<IIQQQQQQ", 1, 5, offset, at, at, len(code), len(code), 1)
    return header + b"".join(bodies) + sections
