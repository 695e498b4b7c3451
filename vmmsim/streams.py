"""The host's ends of the guest's characters: where input comes from, where output goes.

Sources keep to `devices.base.CharSource`, sinks to `CharSink`. A source's `wait()` looks
up every `SLICE` seconds whether `interrupt()` was called, so a guest that waits for a key
can be stopped from another thread or a signal handler.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

import msgspec

from .devices.base import CharSink, CharSource
from .errors import HostError, NotSupported, UsageError

__all__ = [
    "BufferSink",
    "BytesSource",
    "FdSource",
    "FileSink",
    "FileSource",
    "NullSink",
    "OutputClosed",
    "Port",
    "PtyPort",
    "QueueSource",
    "Source",
    "StdoutSink",
    "TeeSink",
    "ThreadSource",
    "open_port",
    "open_source",
    "open_stdin",
]

#: Seconds that a wait lasts before it looks whether it was interrupted.
SLICE = 0.02
_CHUNK = 4096
#: select() takes no descriptor above 1023; macOS's poll() has not always taken terminals.
_HAS_POLL = hasattr(select, "poll") and sys.platform != "darwin"
#: Chunks that a reader thread reads ahead, so that a huge input is not kept in memory.
_READ_AHEAD = 16
#: Seconds for which output to a full pty waits for its reader.
_PTY_PATIENCE = 0.1


class OutputClosed(HostError):
    """Nobody takes the guest's output any more: a closed pipe, a full disk."""


# Sources.


class Source:
    """A source over `_fill`, which gets more bytes, waiting at most so many seconds."""

    def __init__(self) -> None:
        self._bytes: deque[int] = deque()
        self._over = False
        self._interrupted = False

    def _fill(self, seconds: float) -> None:
        raise NotImplementedError

    def get(self) -> int | None:
        """The next byte if one is there now, else None. Never waits."""
        if not self._bytes and not self._over:
            self._fill(0.0)
        return self._bytes.popleft() if self._bytes else None

    def wait(self) -> int | None:
        """The next byte; None at the end of input, or soon after `interrupt()`."""
        while (byte := self.get()) is None:
            if self._over:
                return None
            if self._interrupted:
                self._interrupted = False
                return None
            self._fill(SLICE)
        return byte

    def ready(self) -> bool:
        """Whether `get` would return a byte."""
        if not self._bytes and not self._over:
            self._fill(0.0)
        return bool(self._bytes)

    @property
    def ended(self) -> bool:
        """Whether the input is over and no byte is left."""
        return not self.ready() and self._over

    def interrupt(self) -> None:
        """From any thread or a signal handler: the current `wait()`, or the next one that
        finds no byte, returns None within 50 ms."""
        self._interrupted = True

    def rearm(self) -> None:
        """Forget an interrupt that found no `wait()` to end. For the start of a run."""
        self._interrupted = False

    def close(self) -> None:
        """Free what the source holds on the host; no input comes after it."""
        self._over = True


class BytesSource(Source):
    """The bytes given, then the end of input."""

    def __init__(self, data: bytes = b"") -> None:
        super().__init__()
        self._bytes.extend(data)
        self._over = True


class QueueSource(Source):
    """Bytes that the program sends while the guest runs: what `serial.send` feeds."""

    def __init__(self) -> None:
        super().__init__()
        # SimpleQueue, since its put() may be called from a signal handler.
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()

    def send(self, data: bytes) -> None:
        """Add to the input. From any thread."""
        self._queue.put(bytes(data))

    def end(self) -> None:
        """Say that no more comes. From any thread."""
        self._queue.put(None)

    def _fill(self, seconds: float) -> None:
        try:
            data = self._queue.get(timeout=seconds) if seconds else self._queue.get_nowait()
        except Empty:
            return
        if data is None:
            self._over = True
        else:
            self._bytes.extend(data)


class FdSource(Source):
    """An open file descriptor: a file, a pipe, a terminal. POSIX, or a regular file.

    A descriptor that is closed or hung up is an input that is over, not an error: a guest
    that needs no input runs without one.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._regular = True
        try:
            self._regular = stat.S_ISREG(os.fstat(fd).st_mode)
        except OSError:
            self._over = True

    def _fill(self, seconds: float) -> None:
        try:
            if not self._regular and not _readable(self._fd, seconds):
                return
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._bytes.extend(data)
        else:
            self._over = True


class ThreadSource(QueueSource):
    """A file descriptor that a daemon thread reads: what a terminal needs, and Windows.

    `filter` sees each piece of input as soon as it is typed, in that thread, also while
    the guest reads nothing, and returns what the guest is to have of it.
    """

    def __init__(self, fd: int, filter: Callable[[bytes], bytes] | None = None) -> None:
        super().__init__()
        self._fd = fd
        self._filter = filter
        self._closing = False
        self._thread = threading.Thread(target=self._read, name="vmmsim-input", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._closing:
            if self._queue.qsize() > _READ_AHEAD and self._filter is None:
                time.sleep(SLICE)
                continue
            try:
                # Where it works, select keeps the thread from swallowing, after the
                # machine is gone, what was typed for the shell.
                if os.name == "posix" and not _readable(self._fd, SLICE):
                    continue
                data = os.read(self._fd, _CHUNK)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                break
            if self._filter is not None:
                data = self._filter(data)
            if data:
                self.send(data)
        self.end()

    def close(self) -> None:
        self._closing = True
        if os.name == "posix" and threading.current_thread() is not self._thread:
            self._thread.join()
        super().close()


class FileSource(FdSource):
    """A file (or FIFO) by its path. Raises UsageError or HostError when it cannot be opened."""

    def __init__(self, path: str) -> None:
        super().__init__(_open(path, os.O_RDONLY, "read"))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._fd)
        super().close()

    _closed = False


def open_stdin(filter: Callable[[bytes], bytes] | None = None) -> Source:
    """Standard input; `filter` as for ThreadSource, used only where a person types."""
    # Without a stdin at the start, descriptor 0 is the first file that somebody opened.
    if sys.__stdin__ is None:
        return BytesSource()
    try:
        fd = sys.__stdin__.fileno()
        typed = os.isatty(fd)
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
    except (OSError, ValueError):
        return BytesSource()
    if typed:
        return ThreadSource(fd, filter)
    if os.name == "posix" or regular:
        return FdSource(fd)
    return ThreadSource(fd)


# Sinks.


class NullSink:
    """Drops everything."""

    def put(self, data: bytes, /) -> None:
        pass


class BufferSink:
    """Keeps everything; `data` is all of it so far, `len()` its size in bytes."""

    def __init__(self) -> None:
        self._data = bytearray()

    def put(self, data: bytes, /) -> None:
        self._data += data

    @property
    def data(self) -> bytes:
        return bytes(self._data)

    def since(self, position: int) -> bytes:
        """What came after the first `position` bytes."""
        return bytes(self._data[position:])

    def __len__(self) -> int:
        return len(self._data)


class TeeSink:
    """Puts everything into each of its sinks, also when one of them raises."""

    def __init__(self, *sinks: CharSink) -> None:
        self.sinks = sinks

    def put(self, data: bytes, /) -> None:
        failed: HostError | None = None
        for sink in self.sinks:
            try:
                sink.put(data)
            except HostError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def interrupt(self) -> None:
        """Pass an interrupt on to the sinks that can be waiting."""
        for sink in self.sinks:
            interrupt = getattr(sink, "interrupt", None)
            if interrupt is not None:
                interrupt()

    def rearm(self) -> None:
        """Forget an interrupt that ended nothing, in each of the sinks."""
        for sink in self.sinks:
            rearm = getattr(sink, "rearm", None)
            if rearm is not None:
                rearm()


class FdSink:
    """An open file descriptor, unbuffered, called `name` in messages.

    The first write that fails raises OutputClosed; after it everything is dropped, so that
    the guest's run can be ended in order.
    """

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self._dead = False
        self._interrupted = False
        try:
            # A pipe with no room blocks its writer, who could not be interrupted then:
            # Python goes back to a write() that a signal has ended (PEP 475).
            self._may_block = os.name == "posix" and not stat.S_ISREG(os.fstat(fd).st_mode)
        except OSError:
            self._may_block = False

    def put(self, data: bytes, /) -> None:
        """Write it all. Raises OutputClosed, once."""
        while data and not self._dead:
            try:
                if self._may_block and not _writable(self._fd, SLICE):
                    if self._interrupted:
                        self._interrupted = False
                        return
                    continue
                # A pipe that is ready takes this much without waiting (POSIX, PIPE_BUF).
                data = data[os.write(self._fd, data[:512]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                self._fail(error)

    def interrupt(self) -> None:
        """From any thread or a signal handler: a `put` that waits for its reader gives up."""
        self._interrupted = True

    def rearm(self) -> None:
        """Forget an interrupt that found no `put` to end. For the start of a run."""
        self._interrupted = False

    def _fail(self, error: OSError) -> None:
        self._dead = True
        if isinstance(error, BrokenPipeError):
            raise OutputClosed(
                f"{self._name} was closed by its reader; the guest's output is lost from here on",
                hint="keep the reading end of the pipe open",
            ) from error
        raise OutputClosed(
            f"{self._name} cannot be written: {os.strerror(error.errno or 0)}; "
            "the guest's output is lost from here on",
            hint="check where the output is redirected to",
        ) from error


class StdoutSink(FdSink):
    """Standard output, unbuffered."""

    def __init__(self) -> None:
        # As with stdin: without a stdout, descriptor 1 belongs to somebody else.
        self._absent = sys.__stdout__ is None
        super().__init__(-1 if self._absent else 1, "standard output")

    def put(self, data: bytes, /) -> None:
        if self._absent:
            if not self._dead:
                self._dead = True
                raise OutputClosed(
                    "there is no standard output for the guest's characters",
                    hint="do not close it; >/dev/null drops what is printed",
                )
            return
        super().put(data)

    def _fail(self, error: OSError) -> None:
        # What Python has buffered for stdout would fail once more while the interpreter
        # ends, with a message of its own; it goes nowhere instead.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._fd)
        os.close(null)
        super()._fail(error)


class FileSink(FdSink):
    """A file by its path, emptied first. Raises UsageError or HostError when it cannot be opened."""

    def __init__(self, path: str) -> None:
        super().__init__(_open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "write"), f"'{path}'")

    def close(self) -> None:
        """Close the file; output after it is dropped."""
        if not self._closed:
            self._closed = self._dead = True
            os.close(self._fd)

    _closed = False


# Both.


class PtyPort(FdSource):
    """A pseudo-terminal, source and sink in one: `path` is what to attach to. POSIX only.

    Raises NotSupported where there are none, HostError when none is free. With nobody
    attached the kernel keeps some KiB of output; what comes after is dropped and counted
    in `dropped`.
    """

    def __init__(self) -> None:
        if os.name != "posix":
            raise NotSupported("this system has no pseudo-terminals", hint="use stdio or file:PATH")
        import tty

        try:
            master, self._slave = os.openpty()
        except OSError as error:
            raise HostError(
                f"no pseudo-terminal: {error.strerror}", hint="close some terminals, or use stdio"
            ) from error
        # Raw and kept open: with echo on, the guest's output would come back as its input,
        # and a terminal without any opener forgets the setting.
        tty.setraw(self._slave)
        os.set_blocking(master, False)
        self.path = os.ttyname(self._slave)
        self.dropped = 0
        self._stalled = False
        self._closed = False
        super().__init__(master)

    def put(self, data: bytes, /) -> None:
        """Write what finds room within 0.1 s; drop the rest."""
        while data and not self._closed:
            try:
                data = data[os.write(self._fd, data) :]
                self._stalled = False
            except BlockingIOError:
                # Once its reader has let us wait in vain it is not waited for again.
                if self._stalled or not _writable(self._fd, _PTY_PATIENCE):
                    self._stalled = True
                    break
        self.dropped += len(data)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._fd)
            os.close(self._slave)
        super().close()


class Port(msgspec.Struct):
    """Both ends of a serial line; `path` is where to attach, for a pty."""

    source: CharSource
    sink: CharSink
    path: str | None = None

    def close(self) -> None:
        """Close what the port has opened."""
        for end in (self.source, self.sink):
            close = getattr(end, "close", None)
            if close is not None:
                close()


def open_source(spec: str, filter: Callable[[bytes], bytes] | None = None) -> Source:
    """`--stdin`: `-` is standard input, `none` no input, else a file's path (`./none`).

    `filter` as for `open_stdin`. Raises UsageError or HostError.
    """
    if spec == "-":
        return open_stdin(filter)
    if spec == "none":
        return BytesSource()
    return FileSource(spec)


def open_port(
    spec: str, *, source: CharSource | None = None, filter: Callable[[bytes], bytes] | None = None
) -> Port:
    """`--serial`: `stdio`, `none`, `file:PATH` or `pty`.

    Input comes from `source` when it is given (`--stdin`); else `stdio` reads standard
    input, `pty` the pty, and the others have none. Raises UsageError or HostError.
    """
    if spec == "stdio":
        return Port(source or open_stdin(filter), StdoutSink())
    if spec == "none":
        return Port(source or BytesSource(), NullSink())
    if spec.startswith("file:"):
        return Port(source or BytesSource(), FileSink(spec.removeprefix("file:")))
    if spec == "pty":
        pty = PtyPort()
        return Port(source or pty, pty, pty.path)
    raise UsageError(f"there is no serial port '{spec}'", hint="use stdio, none, file:PATH or pty")


def _readable(fd: int, seconds: float) -> bool:
    """Whether a read would not wait (there is something, or an end, or an error)."""
    if not _HAS_POLL:
        return bool(select.select([fd], [], [], seconds)[0])
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _writable(fd: int, seconds: float) -> bool:
    if not _HAS_POLL:
        return bool(select.select([], [fd], [], seconds)[1])
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


def _open(path: str, flags: int, verb: str) -> int:
    if not path:
        raise UsageError(f"no file name to {verb}", hint="give a path")
    if os.path.isdir(path):
        # open() itself lets a directory be read, on POSIX.
        raise UsageError(f"'{path}' is a directory", hint="give a file")
    try:
        return os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0), 0o666)
    except FileNotFoundError as error:
        what = "directory for" if flags & os.O_CREAT else "file"
        raise UsageError(f"there is no {what} '{path}'", hint="check the path") from error
    except PermissionError as error:
        raise HostError(f"no permission to {verb} '{path}'", hint="check its owner and mode") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HostError(f"cannot {verb} '{path}': {reason}", hint="check the path") from error
