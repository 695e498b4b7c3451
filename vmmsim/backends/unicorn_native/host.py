"""What of the native way depends on the host: which machine code, and how memory becomes executable.

The machine code is for the C calling convention of an architecture: of x86-64 (System V ABI) and of AArch64
(AAPCS64). Unicorn's library for Windows exports its public API alone, so there is nothing to call.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys

from ...errors import NotSupported
from .assembly import Assembly

__all__ = ["CodePages", "assembly", "seen_on_hardware"]


def assembly() -> Assembly:
    """The thunks of this host. NotSupported where there are none."""
    host = sys.platform, platform.machine()
    if sys.maxsize >= 1 << 32:
        if host in (("linux", "x86_64"), ("darwin", "x86_64")):
            from .assembly_x86_64 import ASSEMBLY

            return ASSEMBLY
        if host == ("linux", "aarch64"):
            from .assembly_aarch64 import ASSEMBLY

            return ASSEMBLY
    raise NotSupported(f"there are no thunks for {host[1]} on {host[0]}")


def seen_on_hardware() -> bool:
    """Whether the thunks have run on processors and systems like this one; else only in an emulator, or not
    at all."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


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
        if platform.machine() == "aarch64":
            _synchronize(self.address, len(code))

    def close(self) -> None:
        self._pages.close()


def protect(address: int, size: int, protection: int) -> int:
    """mprotect(2). Returns 0, or its errno."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return ctypes.get_errno() if library.mprotect(address, size, protection) else 0


def _synchronize(address: int, size: int) -> None:
    """Have instruction fetches see what was stored, which AArch64's instruction caches do not by themselves:
    data is cleaned, and instructions invalidated, to the point of unification (Arm ARM DDI 0487, B2.7.4).
    GCC's runtime does it, in the function that compilers call for __builtin___clear_cache."""
    try:
        clear = getattr(ctypes.CDLL("libgcc_s.so.1"), "__clear_cache")
    except (OSError, AttributeError) as error:
        raise NotSupported(f"there is no __clear_cache, which new machine code needs: {error}") from error
    clear.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    clear.restype = None
    clear(address, address + size)
