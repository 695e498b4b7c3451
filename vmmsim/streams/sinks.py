"""Where the guest's output goes. Sinks keep to `devices.base.CharSink`."""

from __future__ import annotations

import os
import stat
import sys

from ..devices.base import CharSink
from ..errors import HostError, reader_gone
from .host import SLICE, open_file, writable

__all__ = ["BufferSink", "FdSink", "FileSink", "NullSink", "OutputClosed", "StdoutSink", "TeeSink"]


class OutputClosed(HostError):
    """Nobody takes the guest's output any more: a closed pipe, a full disk."""


class NullSink:
    """Drops everything."""

    def put(self, data: bytes, /) -> None:
        pass


class BufferSink:
    """Keeps what is put into it; `len()` is how many bytes came so far.

    With a `limit`, at least the last `limit` bytes are kept and `dropped` counts those that
    are not, so that a guest that prints for ever does not fill the host's memory.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.dropped = 0
        self._data = bytearray()

    def put(self, data: bytes, /) -> None:
        self._data += data
        if self.limit is not None and len(self._data) > 2 * self.limit:
            excess = len(self._data) - self.limit
            del self._data[:excess]
            self.dropped += excess

    @property
    def data(self) -> bytes:
        """All that is kept."""
        return bytes(self._data)

    def since(self, position: int) -> bytes:
        """What came after the first `position` bytes, as far as it is kept."""
        return bytes(self._data[max(0, position - self.dropped) :])

    def __len__(self) -> int:
        return self.dropped + len(self._data)


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
                if self._may_block and not writable(self._fd, SLICE):
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
        if reader_gone(error):
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
        super().__init__(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "write"), f"'{path}'")

    def close(self) -> None:
        """Close the file; output after it is dropped."""
        if not self._closed:
            self._closed = self._dead = True
            os.close(self._fd)

    _closed = False
