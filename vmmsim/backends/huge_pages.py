"""Engines without huge pages: where there are many, each would have 2 MiB for some bytes of code.

Unicorn asks for huge pages for the buffer of translated code (MADV_HUGEPAGE), and writes to its
begin at once. Linux can refuse them for a whole process (prctl(2), PR_SET_THP_DISABLE), here for as long
as an engine is made; what the buffer gets later, beyond its first 2 MiB, may be huge again.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

__all__ = ["small_pages"]

_SET_THP_DISABLE, _GET_THP_DISABLE = 41, 42
_lock = threading.Lock()


@cache
def _prctl() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None


@contextlib.contextmanager
def small_pages() -> Iterator[None]:
    """No huge page is begun in this process meanwhile. Nothing happens where that cannot be had."""
    prctl = _prctl()
    if prctl is None:
        yield
        return
    with _lock:
        changed = prctl(_GET_THP_DISABLE, 0, 0, 0, 0) == 0 and prctl(_SET_THP_DISABLE, 1, 0, 0, 0) == 0
        try:
            yield
        finally:
            if changed:
                prctl(_SET_THP_DISABLE, 0, 0, 0, 0)
