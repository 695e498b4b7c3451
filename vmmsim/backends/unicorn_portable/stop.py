"""A flag of Unicorn's that makes a stop from another thread exact, found by what it does.

`uc_emu_stop` asks translated code to leave. Code looks at the start of each block, and after
each load and store as well; a stop that is seen there has the instruction executed twice. While
`no_exit_request` is set, code is translated without the second kind: see docs/unicorn.md. The
flag has no name in the API. It is looked for, and proved, in scratch engines, once a process.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from unicorn import UC_ARCH_X86, UC_MODE_64, UcError, x86_const
from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.unicorn import Uc, uclib

from ...errors import NotSupported
from ..unicorn_buffer import buffer_size

__all__ = ["no_exit_offset"]

#: Less than uc_struct has in 2.1.4.
_STRUCT_BYTES = 0xB00
_CODE_BUFFER = 1 << 20
_CODE = 0x1000
#: out 0x10, al; mov [rbx], eax; inc ecx; jmp next; next: nop
_STOP_AND_STORE = bytes.fromhex("e6108903ffc1eb0090")


@functools.cache
def no_exit_offset() -> int:
    """Where `no_exit_request` is, from an engine's handle. NotSupported where it is not found."""
    try:
        places = _places() & _places()
        for place in places:
            if _stopped_after(place, 0) == 0 and _stopped_after(place, 1) == 1:
                return place
    except UcError as error:
        raise NotSupported(f"Unicorn's flag no_exit_request cannot be looked for: {error}") from error
    raise NotSupported("Unicorn's flag no_exit_request was not found")


def _places() -> set[int]:
    """Bytes of uc_struct that are always 0 and stand between one that is set when a run has begun
    (`first_tb`), and one that is set when the engine is built (`init_done`)."""
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    handle = _handle(uc)
    seen = [ctypes.string_at(handle, _STRUCT_BYTES)]
    uc.ctl_set_tcg_buffer_size(buffer_size(_CODE_BUFFER))
    uc.reg_read(x86_const.UC_X86_REG_RIP)
    seen.append(ctypes.string_at(handle, _STRUCT_BYTES))
    uc.mem_map(_CODE, 0x1000)
    uc.emu_start(_CODE, _CODE)
    seen.append(ctypes.string_at(handle, _STRUCT_BYTES))
    return {
        at
        for at in range(1, _STRUCT_BYTES - 1)
        if [(s[at - 1], s[at], s[at + 1]) for s in seen] == [(0, 0, 0), (0, 0, 1), (1, 0, 1)]
    }


def _stopped_after(place: int, flag: int) -> int:
    """How many of the instructions between a store and the next block are executed after a stop
    that came before the store."""
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_set_tcg_buffer_size(buffer_size(_CODE_BUFFER))
    uc.mem_map(_CODE, 0x1000)
    uc.mem_write(_CODE, _STOP_AND_STORE)
    ctypes.c_uint8.from_address(_handle(uc) + place).value = flag
    callback = ctypes.CFUNCTYPE(None)(lambda: uclib.uc_emu_stop(uc._uch))
    hook = ctypes.c_size_t()
    uclib.uc_hook_add(
        uc._uch, ctypes.byref(hook), uc_const.UC_HOOK_INSN, ctypes.cast(callback, ctypes.c_void_p), None,
        ctypes.c_uint64(1), ctypes.c_uint64(0), ctypes.c_int(x86_const.UC_X86_INS_OUT),
    )  # fmt: skip
    uc.reg_write(x86_const.UC_X86_REG_RBX, _CODE + 0x800)
    uc.emu_start(_CODE, _CODE + len(_STOP_AND_STORE))
    return int(uc.reg_read(x86_const.UC_X86_REG_ECX))


def _handle(uc: Any) -> int:
    return ctypes.cast(uc._uch, ctypes.c_void_p).value or 0
