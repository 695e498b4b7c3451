"""Talk to a guest's console in the manner of pexpect: send, expect, look at what came."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from .errors import GuestError, UsageError
from .streams import BufferSink, QueueSource

__all__ = ["ExpectMatch", "SerialConsole"]

#: Bytes of output that an error message shows.
_SHOWN = 300


class ExpectMatch:
    """What `expect` found.

    `before` is the output between the last match and this one, `match` the `re.Match`,
    `after` what had come behind it already, which the next `expect` looks at.
    """

    def __init__(self, before: bytes, match: re.Match[bytes], after: bytes) -> None:
        self.before = before
        self.match = match
        self.after = after

    def group(self, *groups: int | str) -> bytes:
        """As `re.Match.group`; `group()` is the text that matched."""
        found = self.match.group(*groups)
        if not isinstance(found, bytes):
            raise UsageError(
                f"group {groups} of {self.match.re.pattern!r} took no part in the match",
                hint="give one group that matched",
            )
        return found

    def __repr__(self) -> str:
        return f"<{self.group()!r} after {len(self.before)} bytes>"


class SerialConsole:
    """A guest's console. The guest runs while `expect` waits, and only then.

    `run_until(reached, seconds)` runs the machine until `reached()` is true, the time is
    over or the machine has ended; it may return or raise GuestError for the latter two.
    `output` gets what the guest prints, `input` is what it reads.
    """

    def __init__(
        self,
        run_until: Callable[[Callable[[], bool], float | None], None],
        output: BufferSink,
        input: QueueSource,
    ) -> None:
        self._run_until = run_until
        self._output = output
        self._input = input
        self._position = 0

    def send(self, data: bytes) -> None:
        """Type `data`. The guest reads it when it runs. UsageError for text: a console has bytes."""
        if isinstance(data, str):
            raise UsageError(f"send({data!r}): a console has bytes, not text", hint=f"send(b{data!r})")
        self._input.send(data)

    def sendline(self, data: bytes = b"") -> None:
        """Type `data` and a newline (0x0A)."""
        self.send(data if isinstance(data, str) else data + b"\n")

    def expect(self, pattern: bytes | re.Pattern[bytes], timeout: float | None = 10.0) -> ExpectMatch:
        """Run the guest until its output matches the regular expression `pattern`.

        Bytes are compiled with re.DOTALL, as pexpect does; the output that earlier calls
        have matched is not looked at again. Raises GuestError when `timeout` seconds (None:
        no limit) pass or the machine ends without a match, UsageError for a bad pattern.
        """
        if isinstance(pattern, bytes):
            try:
                pattern = re.compile(pattern, re.DOTALL)
            except re.error as error:
                raise UsageError(
                    f"{pattern!r} is no regular expression: {error}",
                    hint="use expect_exact() for plain bytes",
                ) from error
        if not isinstance(pattern, re.Pattern) or not isinstance(pattern.pattern, bytes):
            raise UsageError(f"cannot expect {pattern!r}", hint="give bytes, or a compiled bytes pattern")
        return self._expect(pattern, repr(pattern.pattern), timeout)

    def expect_exact(self, data: bytes, timeout: float | None = 10.0) -> ExpectMatch:
        """As `expect`, for these very bytes."""
        return self._expect(re.compile(re.escape(data)), repr(data), timeout, overlap=len(data))

    def _expect(
        self,
        pattern: re.Pattern[bytes],
        wanted: str,
        timeout: float | None,
        overlap: int | None = None,
    ) -> ExpectMatch:
        found: re.Match[bytes] | None = None
        seen = -1

        def reached() -> bool:
            nonlocal found, seen
            # Asked after every access; a search is only worth it when there is more output.
            if found is None and len(self._output) != seen:
                start = self._position
                if overlap is not None and seen - overlap > start:
                    # Plain bytes cannot begin further back than this in what was searched.
                    start = seen - overlap
                seen = len(self._output)
                if pattern.search(self._output.since(start)):
                    found = pattern.search(self._output.since(self._position))
            return found is not None

        began = time.perf_counter()
        if not reached():
            try:
                self._run_until(reached, timeout)
            except GuestError as error:
                if not reached():
                    raise GuestError(self._missing(wanted, error.message), hint=error.hint) from error
        if not reached():
            if timeout is not None and time.perf_counter() - began >= timeout:
                why = f"{timeout:g} s have passed"
            else:
                why = "the machine has stopped"
            raise GuestError(self._missing(wanted, why))
        assert found is not None
        text = found.string
        self._position += found.end()
        return ExpectMatch(text[: found.start()], found, text[found.end() :])

    def _missing(self, wanted: str, why: str) -> str:
        new = self._output.since(self._position)
        if not new:
            got = "no output since the last match"
        elif len(new) > _SHOWN:
            got = f"the last {_SHOWN} bytes of {len(new)}: {new[-_SHOWN:]!r}"
        else:
            got = f"the output: {new!r}"
        return f"the guest did not print {wanted}: {why}; {got}"
