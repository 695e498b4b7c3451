"""The Console API of Windows: `api.Console` by kernel32."""

from __future__ import annotations

import ctypes
import struct
from ctypes import c_uint32, c_void_p
from typing import Any

from .keys import Key

__all__ = ["Kernel32"]

_KEY_EVENT = 1
#: INPUT_RECORD with a KEY_EVENT_RECORD: kind; down, repeat, virtual key, scan code, character, state.
_RECORD = struct.Struct("<H2xiHHHHI")
_MOST_EVENTS = 64
_FILE_NAME_INFO = 2


class Kernel32:
    """See `api.Console`. Only on Windows."""

    def __init__(self) -> None:
        windows: Any = ctypes  # WinDLL is not there elsewhere
        self._dll = windows.WinDLL("kernel32")
        self._dll.WaitForSingleObject.argtypes = (c_void_p, c_uint32)
        for name in ("GetConsoleMode", "GetNumberOfConsoleInputEvents"):
            getattr(self._dll, name).argtypes = (c_void_p, ctypes.POINTER(c_uint32))
        self._dll.SetConsoleMode.argtypes = (c_void_p, c_uint32)
        self._dll.ReadConsoleInputW.argtypes = (
            c_void_p, c_void_p, c_uint32, ctypes.POINTER(c_uint32),
        )  # fmt: skip
        self._dll.GetFileInformationByHandleEx.argtypes = (
            c_void_p, ctypes.c_int, c_void_p, c_uint32,
        )  # fmt: skip

    def _handle(self, fd: int) -> int:
        import msvcrt

        runtime: Any = msvcrt
        try:
            return int(runtime.get_osfhandle(fd))
        except OSError:
            return -1

    def mode(self, fd: int) -> int | None:
        mode = c_uint32()
        return mode.value if self._dll.GetConsoleMode(self._handle(fd), ctypes.byref(mode)) else None

    def set_mode(self, fd: int, mode: int) -> bool:
        return bool(self._dll.SetConsoleMode(self._handle(fd), mode))

    def code_page(self) -> int:
        return int(self._dll.GetConsoleOutputCP())

    def set_code_page(self, number: int) -> bool:
        return bool(self._dll.SetConsoleOutputCP(number))

    def keys(self, fd: int, seconds: float) -> list[Key] | None:
        handle, count = self._handle(fd), c_uint32()
        self._dll.WaitForSingleObject(handle, int(seconds * 1000))
        if not self._dll.GetNumberOfConsoleInputEvents(handle, ctypes.byref(count)):
            return None
        if not count.value:
            return []
        records = ctypes.create_string_buffer(_RECORD.size * _MOST_EVENTS)
        if not self._dll.ReadConsoleInputW(handle, records, _MOST_EVENTS, ctypes.byref(count)):
            return None
        found = _RECORD.iter_unpack(records.raw[: count.value * _RECORD.size])
        return [
            Key(bool(down), code, char, state, repeat)
            for kind, down, repeat, code, _, char, state in found
            if kind == _KEY_EVENT
        ]

    def pipe_name(self, fd: int) -> str:
        raw = ctypes.create_string_buffer(4 + 2 * 1024)
        if not self._dll.GetFileInformationByHandleEx(self._handle(fd), _FILE_NAME_INFO, raw, len(raw)):
            return ""
        size = int.from_bytes(raw.raw[:4], "little")
        return raw.raw[4 : 4 + size].decode("utf-16-le", "replace")
