"""The proof in a process of its own, on hosts whose hardware the thunks have not been seen on.

Where machine code is wrong for a host, the self-test does not fail: it crashes. So a forked child makes the
proof first, and dies of it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import time
import warnings
from collections.abc import Callable

__all__ = ["in_a_child"]

#: A proof takes some milliseconds; under an emulator a second.
_PATIENCE = 30.0
_DEADLY = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP)


def in_a_child(prove: Callable[[], tuple[bool, str]], *, seconds: float = _PATIENCE) -> tuple[bool, str]:
    """What `prove` answers in a child process; (False, why) where that dies, or takes over `seconds`."""
    read, write = os.pipe()
    try:
        with warnings.catch_warnings():
            # Of other threads the child needs nothing; should one hold a lock, it is killed after `seconds`.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
    except OSError as error:
        os.close(read)
        os.close(write)
        return False, f"the self-test got no process of its own: {error}"
    if not child:
        _be_child(prove, write)
    os.close(write)
    with open(read, "rb", buffering=0) as pipe:
        answer = _read(pipe.fileno(), time.monotonic() + seconds)
    if answer is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if answer is None:
        return False, f"the self-test, in a process of its own, did not end in {seconds:g} s"
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return False, f"the self-test, in a process of its own, ended with {name}"
    try:
        passed, reason = json.loads(answer)
    except ValueError:
        return (
            False,
            f"the self-test, in a process of its own, ended with {os.waitstatus_to_exitcode(status)}",
        )
    return bool(passed), str(reason)


def _read(pipe: int, deadline: float) -> bytes | None:
    """All that the child says until it ends; None if it does not."""
    said = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return None
        piece = os.read(pipe, 4096)
        if not piece:
            return said
        said += piece


def _be_child(prove: Callable[[], tuple[bool, str]], pipe: int) -> None:
    """Prove, tell, and end, without anything that the parent would do at its end. Never returns."""
    code = 1
    try:
        faulthandler.disable()
        for number in _DEADLY:
            signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(ImportError, OSError, ValueError):
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.write(pipe, json.dumps(prove()).encode())
        code = 0
    finally:
        os._exit(code)
