"""Both ends of a serial line, and the command line's names for them."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from ..devices.base import CharSink, CharSource
from ..errors import HostError, NotSupported, UsageError
from .host import writable
from .sinks import FileSink, NullSink, StdoutSink
from .sources import BytesSource, FdSource, FileSource, Source, open_stdin

__all__ = ["Port", "PtyPort", "open_port", "open_source"]

#: Seconds for which output to a full pty waits for its reader.
_PTY_PATIENCE = 0.1


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
                if self._stalled or not writable(self._fd, _PTY_PATIENCE):
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
