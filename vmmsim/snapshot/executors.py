"""Where clones run: `serial`, `threads:N`, `processes:N`, or somebody's own Executor, by a text.

Worker processes are started anew (`spawn`): on every OS the same, and no lock or thread of this process
is copied. They end when this process does, however that is, and leave Ctrl-C to it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from importlib import import_module
from multiprocessing.connection import Connection

from ..errors import UsageError

__all__ = ["check", "opened"]

_HINT = "write serial, threads:N, processes:N, or module:factory"
_MOST = 1024
_STOPPED = 130


def _parse(text: str) -> tuple[str, int | str]:
    kind, colon, rest = text.partition(":")
    if kind == "serial" and not colon:
        return kind, 1
    if kind in ("threads", "processes"):
        if not colon:
            return kind, os.cpu_count() or 1
        if rest.isascii() and rest.isdigit() and 1 <= int(rest[:9]) <= _MOST:
            return kind, int(rest)
    elif kind != "serial" and colon and rest and kind:
        return kind, rest
    raise UsageError(f"'{text}' is no executor", hint=_HINT)


def check(text: str) -> str:
    """`text`, if it names an executor. Raises UsageError."""
    _parse(text)
    return text


@contextlib.contextmanager
def opened(text: str, stop: Callable[[], None] = lambda: None) -> Iterator[Executor | None]:
    """The executor; None for serial. Closed behind the block, where all work has ended.

    When the block is left by an exception, `stop` is called, what has not begun is called off, and
    worker processes end at once. Raises UsageError for what is no executor.
    """
    kind, size = _parse(text)
    if kind == "serial":
        yield None
        return
    with contextlib.ExitStack() as stack:
        if kind == "threads":
            executor: Executor = ThreadPoolExecutor(int(size), thread_name_prefix="vmmsim-clone")
        elif kind == "processes":
            context = multiprocessing.get_context("spawn")
            reader, writer = context.Pipe(duplex=False)
            stack.callback(reader.close)
            stack.callback(writer.close)
            executor = ProcessPoolExecutor(
                int(size), mp_context=context, initializer=_begin_worker, initargs=(reader,)
            )
        else:
            executor = _made(kind, str(size))
        try:
            yield executor
        except BaseException:
            stop()
            if kind == "processes":
                writer.close()
            executor.shutdown(wait=True, cancel_futures=True)
            raise
        executor.shutdown(wait=True)


def _made(module: str, name: str) -> Executor:
    try:
        factory = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"there is no executor '{module}:{name}': {error}", hint=_HINT) from error
    found = factory() if callable(factory) else factory
    if not hasattr(found, "submit") or not hasattr(found, "shutdown"):
        raise UsageError(
            f"{module}:{name} made a {type(found).__name__}",
            hint="it has to make a concurrent.futures.Executor",
        )
    executor: Executor = found
    return executor


def _begin_worker(reader: Connection) -> None:
    """In a worker process: Ctrl-C, which a terminal sends to all, is the first process's to take, and
    when that closes its end of the pipe, or is gone, the worker goes too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            reader.recv_bytes()
        os._exit(_STOPPED)

    threading.Thread(target=watch, name="vmmsim-parent", daemon=True).start()
