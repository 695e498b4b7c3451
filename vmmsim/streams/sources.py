"""Where the guest's input comes from. Sources keep to `devices.base.CharSource`.

A source's `wait()` looks up every `SLICE` seconds whether `interrupt()` was called, so a
guest that waits for a key can be stopped from another thread or a signal handler.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

from ..console.api import PROCESSED_INPUT, Console, console, is_cygwin_terminal
from ..console.keys import Translator
from .host import SLICE, open_file, readable

__all__ = ["BytesSource", "FdSource", "FileSource", "QueueSource", "Source", "ThreadSource", "open_stdin"]

_CHUNK = 4096
#: Chunks that a reader thread reads ahead, so that a huge input is not kept in memory.
_READ_AHEAD = 16


class Source:
    """A source over `_fill`, which gets more bytes, waiting at most so many seconds."""

    def __init__(self) -> None:
        self._bytes: deque[int] = deque()
        self._over = False
        self._interrupted = False
        #: How many bytes the guest has taken; those from `_recorded` on are in `_record`.
        self.position = 0
        self._recorded = 0
        self._record: bytearray | None = None

    def _fill(self, seconds: float) -> None:
        raise NotImplementedError

    def get(self) -> int | None:
        """The next byte if one is there now, else None. Never waits."""
        if not self._bytes and not self._over:
            self._fill(0.0)
        if not self._bytes:
            return None
        self.position += 1
        byte = self._bytes.popleft()
        if self._record is not None:
            self._record.append(byte)
        return byte

    def record(self) -> None:
        """Keep what the guest takes from now on, so that `seek` can give it again."""
        if self._record is None:
            self._record, self._recorded = bytearray(), self.position

    def seek(self, position: int) -> bool:
        """Give the bytes from `position` on once more. False where those are gone, as a terminal's
        are that nobody has recorded: the input then goes on where it is."""
        if self._record is not None and self._recorded <= position <= self.position:
            again = self._record[position - self._recorded :]
            del self._record[position - self._recorded :]
            self._bytes.extendleft(reversed(again))
            self.position = position
        return position == self.position

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
        self._data = data
        self._bytes.extend(data)
        self._over = True

    def seek(self, position: int) -> bool:
        if self._record is not None:
            return super().seek(position)
        self._bytes = deque(self._data[position:])
        self.position = position
        return True


class QueueSource(Source):
    """Bytes that the program sends while the guest runs: what `serial.send` feeds."""

    def __init__(self) -> None:
        super().__init__()
        # SimpleQueue, since its put() may be called from a signal handler. Its get() with a
        # timeout waits for ever if a signal comes and its handler ends after the deadline
        # (CPython 3.11, Modules/_queuemodule.c); so what is waited for is a lock, held while
        # nothing has been sent.
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._sent = bytearray()
        self._quiet = threading.Lock()
        self._quiet.acquire()

    def send(self, data: bytes) -> None:
        """Add to the input. From any thread."""
        self._put(bytes(data))

    def end(self) -> None:
        """Say that no more comes. From any thread."""
        self._put(None)

    def _put(self, data: bytes | None) -> None:
        self._queue.put(data)
        with contextlib.suppress(RuntimeError):  # it is not held: that was said already
            self._quiet.release()

    def _fill(self, seconds: float) -> None:
        # A guest that polls comes here for each look; an exception each would be slow.
        if self._queue.empty() and not (seconds and self._quiet.acquire(timeout=seconds)):
            return
        try:
            data = self._queue.get_nowait()
        except Empty:
            return
        if data is None:
            self._over = True
        else:
            self._bytes.extend(data)
            self._sent += data

    def seek(self, position: int) -> bool:
        while position > len(self._sent) and not self._queue.empty():  # sent, and not asked for yet
            self._fill(0.0)
        if self._record is not None or position > len(self._sent):
            return super().seek(position)
        self._bytes = deque(self._sent[position:])
        self.position = position
        return True


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
            self._start = os.lseek(fd, 0, os.SEEK_CUR) if self._regular else 0
        except OSError:
            self._over = True

    def _fill(self, seconds: float) -> None:
        try:
            if not self._regular and not readable(self._fd, seconds):
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

    def seek(self, position: int) -> bool:
        if not self._regular or self._record is not None:
            return super().seek(position)
        try:
            os.lseek(self._fd, self._start + position, os.SEEK_SET)
        except OSError:
            return False
        self._bytes.clear()
        self._over = False
        self.position = position
        return True


class ThreadSource(QueueSource):
    """A file descriptor that a daemon thread reads: what a terminal needs, and pipes on Windows.

    `filter` sees each piece of input as soon as it is typed, in that thread, also while
    the guest reads nothing, and returns what the guest is to have of it.
    """

    def __init__(self, fd: int, filter: Callable[[bytes], bytes] | None = None) -> None:
        super().__init__()
        self._fd = fd
        self._filter = filter
        self._closing = False
        #: Whether the thread looks now and then if it is to end; else a read may hold it for ever.
        self._looks = self._can_look()
        self._thread = threading.Thread(target=self._read, name="vmmsim-input", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._closing:
            if self._queue.qsize() > _READ_AHEAD and self._filter is None:
                time.sleep(SLICE)
                continue
            try:
                data = self._more()
            except BlockingIOError:
                continue
            except OSError:
                break
            if data is None:
                continue
            if not data:
                break
            if self._filter is not None:
                data = self._filter(data)
            if data:
                self.send(data)
        self.end()

    def _can_look(self) -> bool:
        return os.name == "posix"

    def _more(self) -> bytes | None:
        """What has come; b"" at the end, None when it was waited for in vain."""
        # Where it works, select keeps the thread from swallowing, after the
        # machine is gone, what was typed for the shell.
        if self._looks and not readable(self._fd, SLICE):
            return None
        return os.read(self._fd, _CHUNK)

    def close(self) -> None:
        self._closing = True
        if self._looks and threading.current_thread() is not self._thread:
            self._thread.join()
        super().close()


class ConsoleSource(ThreadSource):
    """The keys of a console of Windows, as a terminal sends them. `filter` as for ThreadSource.

    Keys come one by one whether the console gives lines to others or not, and without an echo.
    Enter is CR where Ctrl-c is a key, as on a raw terminal, else LF.
    """

    def __init__(self, fd: int, console: Console, filter: Callable[[bytes], bytes] | None = None) -> None:
        self._console = console
        self._translator = Translator()
        super().__init__(fd, filter)

    def _can_look(self) -> bool:
        return True

    def _more(self) -> bytes | None:
        keys = self._console.keys(self._fd, SLICE)
        if keys is None:
            return b""
        carriage_return = not (self._console.mode(self._fd) or 0) & PROCESSED_INPUT
        found = [self._translator.bytes_of(key, carriage_return=carriage_return) for key in keys]
        return b"".join(found) or None


class FileSource(FdSource):
    """A file (or FIFO) by its path. Raises UsageError or HostError when it cannot be opened."""

    def __init__(self, path: str) -> None:
        super().__init__(open_file(path, os.O_RDONLY, "read"))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._fd)
        super().close()

    _closed = False


def open_stdin(filter: Callable[[bytes], bytes] | None = None, windows: Console | None = None) -> Source:
    """Standard input; `filter` as for ThreadSource, used only where a person types: at a terminal, at
    a console of Windows, whose keys then come one by one, at a terminal of Cygwin.

    `windows` is this process's Console API by default.
    """
    # Without a stdin at the start, descriptor 0 is the first file that somebody opened.
    if sys.__stdin__ is None:
        return BytesSource()
    try:
        fd = sys.__stdin__.fileno()
        typed = os.isatty(fd)
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
    except (OSError, ValueError):
        return BytesSource()
    windows = windows or console()
    if windows is not None:
        # NUL is a terminal, too, for the C library of Windows.
        typed = windows.mode(fd) is not None
        if typed and filter is not None:
            return ConsoleSource(fd, windows, filter)
        typed = typed or is_cygwin_terminal(windows, fd)
    if typed:
        return ThreadSource(fd, filter)
    if os.name == "posix" or regular:
        return FdSource(fd)
    return ThreadSource(fd)
