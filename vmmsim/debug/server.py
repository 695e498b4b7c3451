"""The debugger's socket, and a machine that runs when the debugger lets it.

A thread waits at the socket; the machine runs in the caller's. While the guest runs the thread
sleeps in the kernel, and a guest that nobody stops runs as fast as without. What comes then
stops it between two instructions: 03h for good, anything else until it is dealt with.

One debugger at a time: another is told so, and hung up on. When the debugger detaches, or its
connection ends, breakpoints are gone and the guest runs on.
"""

from __future__ import annotations

import contextlib
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..errors import DeviceError
from ..exits import Cancelled, Exit
from .control import SIGINT, SIGTRAP, Controller, Stop
from .listen import listen
from .rsp import Codec, Signal, frame
from .stub import Resume, Stub
from .target import AMD64, RegisterFile

if TYPE_CHECKING:
    from ..machine import Machine
    from .reverse import Reverse

__all__ = ["GdbServer"]

_CHUNK = 4096
#: Chunks that wait while nobody reads them: a debugger that floods is made to wait.
_CHUNKS = 64
#: Seconds for which a debugger may not read what it is sent; and between looks while the guest stands.
_SEND_SECONDS, _LOOK_SECONDS = 10.0, 0.2
_BUSY = b"+" + frame(b"E.another debugger is attached")

#: What the thread has seen: a connection, bytes, or b"" for the end of the connection.
_Event = socket.socket | bytes


class GdbServer:
    """Listens from the start. `address` is tcp:HOST:PORT (port 0: any free one) or unix:PATH; a host
    other than this one needs `remote`. UsageError for an address that is in use or is none."""

    def __init__(self, address: str, *, remote: bool = False) -> None:
        self._listener, self.address, self._path = listen(address, remote=remote)
        self._events: queue.Queue[_Event] = queue.Queue(_CHUNKS)
        self._closing = False
        self._waker, self._woken = socket.socketpair()
        #: What the thread stops when something has come, while the machine runs.
        self._running: Machine | None = None
        self._poked = False
        #: The connection that its session has ended: the thread is to tell so, and see to it no more.
        self._left: socket.socket | None = None
        self._thread = threading.Thread(target=self._watch, name="vmmsim-gdb", daemon=True)
        self._thread.start()

    # -- the thread

    def _watch(self) -> None:
        with selectors.DefaultSelector() as ready:
            for item in (self._listener, self._woken):
                ready.register(item, selectors.EVENT_READ)
            client: socket.socket | None = None
            while not self._closing:
                # First the end of a connection, then the next one.
                events = [key.fileobj for key, _ in ready.select()]
                if self._woken in events:
                    self._woken.recv(_CHUNK)
                if client is not None and (client in events or client is self._left):
                    data = b"" if client is self._left else _receive(client)
                    if not data:
                        ready.unregister(client)
                        client = None
                    self._tell(data)
                if self._listener in events:
                    with contextlib.suppress(OSError):
                        new = self._listener.accept()[0]
                        if client is not None:
                            _refuse(new)
                            continue
                        client = new
                        ready.register(client, selectors.EVENT_READ)
                        self._tell(client)
            if client is not None:
                client.close()

    def _tell(self, event: _Event) -> None:
        while not self._closing:
            with contextlib.suppress(queue.Full):
                self._events.put(event, timeout=_LOOK_SECONDS)
                break
        machine = self._running
        if machine is not None:
            self._poked = True
            machine.cancel()

    def poked(self) -> bool:
        """Whether the thread has cancelled a run since this was asked: else somebody else did."""
        poked, self._poked = self._poked, False
        return poked

    @contextlib.contextmanager
    def running(self, machine: Machine) -> Iterator[bool]:
        """Around a run: it is cancelled when something comes. False when something has come."""
        self._running = machine
        try:
            yield self._events.empty()
        finally:
            self._running = None

    def leave(self, client: socket.socket) -> None:
        """The session with `client` is over; the thread tells so. (select() of Windows does not report a
        connection of which this end was shut down.)"""
        self._left = client
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    # -- the machine

    def serve(
        self,
        machine: Machine,
        *,
        wait: bool = False,
        reverse: Callable[[Machine, Controller], Reverse] | None = None,
        asked: Callable[[], bool] = lambda: False,
        registers: RegisterFile = AMD64,
    ) -> Exit | DeviceError:
        """Run `machine` to its end, as `machine.run` does, with a debugger when one comes. `wait`: not
        before one has come and lets it. `asked`: whether the user wants to end it, which is looked at
        while the guest stands. `registers`: what gdb is told of the CPU (`target.AMD64`, `target.I386`).
        Raises KeyboardInterrupt for Ctrl-C.
        """
        control = Controller(machine, self._heed)
        back = reverse(machine, control) if reverse is not None else None
        while True:
            exit: Exit = Cancelled()
            if wait:
                if not self._pending(asked):
                    return exit
            else:
                with self.running(machine) as undisturbed:
                    if undisturbed:
                        exit = machine.run()
            wait = False
            poked = self.poked()  # perhaps late, for what has been dealt with
            if not isinstance(exit, Cancelled) or asked():
                return exit
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                if poked:
                    continue
                return exit
            if isinstance(event, socket.socket):
                end = _Session(self, event, machine, control, back, asked, registers).run()
                control.clear()
                if end is not None or control.ended is not None:
                    return end if end is not None else control.ended  # type: ignore[return-value]

    def _pending(self, asked: Callable[[], bool]) -> bool:
        """Wait until something has come; False when the user wants no more."""
        while self._events.empty():
            if asked():
                return False
            time.sleep(0.02)
        return True

    def _heed(self) -> bool:
        return not self._events.empty()

    def close(self) -> None:
        """End the thread and the socket. May be called twice."""
        if self._closing:
            return
        self._closing = True
        self._running = None
        self._wake()
        self._thread.join(5)
        for item in (self._listener, self._waker, self._woken):
            item.close()
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._events.get_nowait()
                if isinstance(event, socket.socket):
                    event.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> GdbServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Session:
    """One connection."""

    def __init__(
        self,
        server: GdbServer,
        client: socket.socket,
        machine: Machine,
        control: Controller,
        reverse: Reverse | None,
        asked: Callable[[], bool],
        registers: RegisterFile,
    ) -> None:
        self._server = server
        self._client = client
        self._machine = machine
        self._asked = asked
        self._control = control
        self._codec = Codec()
        self._stub = Stub(machine, control, reverse, registers)
        self._stub.attached(Stop(SIGTRAP))
        #: What has been read and not dealt with yet.
        self._read: list[bytes | Signal] = []
        #: No more is to be read, and the thread has told so.
        self._over = self._closed = False
        client.setblocking(True)
        client.settimeout(_SEND_SECONDS)
        with contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self) -> Exit | DeviceError | None:
        """To its end. What the machine ended with, or None: it runs on without a debugger."""
        end: Exit | DeviceError | None = None
        try:
            while not self._over:
                if not self._read:
                    self._wait()
                    continue
                item = self._read.pop(0)
                if item is Signal.BROKEN:
                    return None
                if isinstance(item, Signal):
                    continue  # the guest stands already
                order = self._answer(item)
                if order is None:
                    continue
                if order.how == "kill":
                    return Cancelled()
                if order.how == "detach":
                    self._send(b"OK")
                    return None
                end = self._resume(order)
                if end is not None:
                    return end
        finally:
            self._hang_up()
        return end

    def _wait(self) -> None:
        """Until something has come."""
        try:
            event = self._server._events.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            if self._asked():
                raise KeyboardInterrupt from None
            return
        self._take(event)

    def _take(self, event: _Event) -> None:
        if isinstance(event, socket.socket) or not event:
            self._over = self._closed = True
            return
        self._read += self._codec.feed(event)
        self._flush()

    def _answer(self, packet: bytes) -> Resume | None:
        answer = self._stub.handle(packet)
        if isinstance(answer, Resume):
            return answer
        self._send(answer)
        if self._stub.no_acks:
            self._codec.no_acks()
        return None

    def _resume(self, order: Resume) -> Exit | DeviceError | None:
        """Let the guest run until it stops for the debugger; the machine's end, if it is that."""
        stub = self._stub
        packets: list[bytes] = []
        while not self._over:
            if self._interrupted():
                packets = stub.stopped(Stop(SIGINT))
                break
            if order.how.startswith("back"):
                self._machine.processors.uncancel()  # one that came late would end the way back
                packets = stub.resume(order)
                break
            with self._server.running(self._machine) as undisturbed:
                if undisturbed:
                    packets = stub.resume(order)
            if undisturbed and (stub.finished is not None or stub.last.signal != SIGINT):
                break
            poked = self._server.poked()
            if self._asked():
                raise KeyboardInterrupt
            if undisturbed and not poked and self._server._events.empty():
                self._send(b"X02")  # somebody else ends the run
                return Cancelled()
        for packet in packets:
            self._send(packet)
        return stub.finished

    def _interrupted(self) -> bool:
        """Deal with what has come since the guest was told to run; whether that was an interrupt. A
        debugger in all-stop mode asks nothing now: all else is garbage."""
        with contextlib.suppress(queue.Empty):
            while not self._over:
                self._take(self._server._events.get_nowait())
        found, self._read = self._read, []
        self._over |= Signal.BROKEN in found
        if Signal.INTERRUPT in found:
            self._read = found[found.index(Signal.INTERRUPT) + 1 :]
            return True
        return False

    def _send(self, payload: bytes) -> None:
        self._codec.send(payload)
        self._flush()

    def _flush(self) -> None:
        data = self._codec.take()
        if data and not self._over:
            try:
                self._client.sendall(data)
            except OSError:
                self._over = True

    def _hang_up(self) -> None:
        """End the connection, and wait until the thread has told so: what follows is of another."""
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)
        self._server.leave(self._client)
        while not self._closed and not self._server._closing:
            with contextlib.suppress(queue.Empty):
                self._closed = not self._server._events.get(timeout=_LOOK_SECONDS)
        self._client.close()


def _receive(client: socket.socket) -> bytes:
    try:
        return client.recv(_CHUNK)
    except OSError:
        return b""


def _refuse(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        client.settimeout(0.2)
        client.sendall(_BUSY)
    client.close()
