"""The pages of this process on Windows: what they are, and committed ones (VirtualQuery, VirtualAlloc)."""

from __future__ import annotations

import ctypes
from ctypes import c_size_t, c_uint16, c_uint32, c_void_p
from typing import Any

from .unicorn_buffer import Area

__all__ = ["ProcessMemory"]

_COMMIT = 0x1000
_EXECUTE_READWRITE = 0x40


class _Information(ctypes.Structure):
    """MEMORY_BASIC_INFORMATION of 64-bit Windows (winnt.h)."""

    _fields_ = (
        ("base", c_void_p),
        ("allocation", c_void_p),
        ("protection", c_uint32),
        ("partition", c_uint16),
        ("size", c_size_t),
        ("state", c_uint32),
        ("protect", c_uint32),
        ("type", c_uint32),
    )


class ProcessMemory:
    """See `unicorn_buffer.Memory`. Only on Windows."""

    def __init__(self) -> None:
        windows: Any = ctypes  # WinDLL is not there elsewhere
        kernel = windows.WinDLL("kernel32")
        self._query, self._alloc = kernel.VirtualQuery, kernel.VirtualAlloc
        self._query.argtypes = (c_void_p, c_void_p, c_size_t)
        self._query.restype = c_size_t
        self._alloc.argtypes = (c_void_p, c_size_t, c_uint32, c_uint32)
        self._alloc.restype = c_void_p

    def query(self, address: int) -> Area | None:
        found = _Information()
        if not self._query(address, ctypes.byref(found), ctypes.sizeof(found)):
            return None
        return Area(found.base or 0, found.size, found.allocation or 0, found.protection, found.state)

    def commit(self, address: int, size: int) -> bool:
        return bool(self._alloc(address, size, _COMMIT, _EXECUTE_READWRITE))
