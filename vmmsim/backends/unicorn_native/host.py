"""What of the native way depends on the host: which machine code, and how memory becomes executable.

The machine code is for the C calling convention of one architecture and system: x86-64 on Linux and macOS
(System V ABI). Unicorn's library for Windows exports its public API alone, so there is nothing to call.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys

from ...errors import NotSupported
from .assembly import Assembly

__all__ = ["CodePages", "assembly"]


def assembly() -> Assembly:
    """The thunks of this host. NotSupported where there are none."""
    if sys.platform == "linux" and sys.maxsize >= 1 << 32 and platform.machine() == "x86_64":
        from .assembly_x86_64 import ASSEMBLY

        return ASSEMBLY
    raise NotSupported("the thunks are for x86-64 Linux")


class CodePages:
    """Machine code in pages of its own, which nobody can write any more. `address` is where it begins."""

    def __init__(self, code: bytes) -> None:
        """NotSupported where the host gives no executable memory."""
        size = -(-len(code) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._pages = mmap.mmap(
            -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
        self._pages[: len(code)] = code
        anchor = ctypes.c_char.from_buffer(self._pages)
        self.address = ctypes.addressof(anchor)
        del anchor  # or the mapping could never be closed
        if error := protect(self.address, size, mmap.PROT_READ | mmap.PROT_EXEC):
            raise NotSupported(f"this host gives no executable memory: {os.strerror(error)}")

    def close(self) -> None:
        self._pages.close()


def protect(address: int, size: int, protection: int) -> int:
    """mprotect(2). Returns 0, or its errno."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return ctypes.get_errno() if library.mprotect(address, size, protection) else 0
