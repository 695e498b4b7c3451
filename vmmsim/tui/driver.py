"""A terminal that may go away while the screen is drawn."""

from __future__ import annotations

import contextlib
from typing import IO, Any

from textual.driver import Driver

__all__ = ["lasting"]


class _Lasting:
    """`file`, in which a write that fails is dropped: nobody is there to see it. Textual's thread that writes
    would end at the error, and who waits for it would wait for ever."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            return self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def lasting(base: type[Driver]) -> type[Driver]:
    """Textual's driver for this host, which outlives its terminal."""

    class LastingDriver(base):  # type: ignore[misc,valid-type]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            file: Any = getattr(self, "_file", None)
            if file is not None:
                self._file: Any = _Lasting(file)

    return LastingDriver
