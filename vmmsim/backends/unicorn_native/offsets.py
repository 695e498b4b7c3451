"""Four words of Unicorn's structures that have no name in its API, found by what they do.

Each is looked for in a scratch engine, once a process, and proved by its effect; nothing
is used that did not prove itself. NotSupported where one is not found: the portable way is
taken then.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from unicorn import UC_ARCH_X86, UC_MODE_64, x86_const
from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.unicorn import Uc, uclib

from ...errors import NotSupported
from ..unicorn_buffer import buffer_size
from ..unicorn_context import ContextCodec

__all__ = ["Offsets", "engine_offsets"]


class Offsets(NamedTuple):
    """In bytes."""

    #: From the engine's handle: `size_recur_mem`, not 0 inside an access that Unicorn has cut.
    recursion: int
    #: From the engine's handle: `no_exit_request`. While it is set, code is translated without
    #: the check for a stop behind each load and store, and only stops between two blocks.
    no_exit: int
    #: From the CPU structure, negative: `halted`, 1 after HLT and 0 after another stop.
    halted: int
    #: From the engine's handle: the pointer to QEMU's CPUState, at a fixed distance before the
    #: CPU structure.
    cpu: int


#: Less than uc_struct has in 2.1.4.
_STRUCT_BYTES = 0x580
#: mov ebx, 0x2001; mov [rbx], rax; mov [rbx+8], eax; mov [rbx+16], ax
_UNALIGNED = bytes.fromhex("bb01200000488903894308668943106690")


def _recursion() -> int:
    """Where `size_recur_mem` is in `uc_struct`: found by unaligned stores of three sizes to MMIO,
    of which Unicorn shows first the whole and then each byte. NotSupported if it is not found.
    """
    seen: list[tuple[int, bytes]] = []
    uc = _scratch(_UNALIGNED)
    handle = _handle(uc)

    def on_write(_uc: int, _kind: int, _gpa: int, size: int) -> bool:
        seen.append((size, ctypes.string_at(handle, _STRUCT_BYTES)))
        return True

    callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int)(
        on_write
    )
    uclib.uc_mmio_map(uc._uch, 0x2000, 0x1000, None, None, None, None)
    _hook(uc, uc_const.UC_HOOK_MEM_WRITE_PROT, callback)
    uc.emu_start(0x1000, 0x1000 + len(_UNALIGNED))
    wanted = [size for whole in (8, 4, 2) for size in (whole, *(1,) * whole)]
    if [size for size, _ in seen] != wanted:
        raise NotSupported("Unicorn does not show an unaligned store as this version of vmmsim expects")
    inside = [0 if size > 1 else whole for whole in (8, 4, 2) for size in (whole, *(1,) * whole)]
    found = [
        at
        for at in range(0, _STRUCT_BYTES, 4)
        if all(
            int.from_bytes(data[at : at + 4], "little") == value
            for (_, data), value in zip(seen, inside, strict=True)
        )
    ]
    if len(found) != 1:
        raise NotSupported(f"size_recur_mem was found at {len(found)} places of uc_struct")
    return found[0]


#: Engines that are compared at the most.
_MOST_ENGINES = 8
#: out 0x10, al; mov [rbx], eax; inc ecx; jmp next; next: nop
_STOP_AND_STORE = bytes.fromhex("e6108903ffc1eb0090")


def _no_exit() -> int:
    """Found by what stands around it in uc_struct: the page size and its mask, the size of a
    context, then four flags. Proved by a stop in OUT, which then takes effect only at the
    next block, and not at the store that follows."""
    uc = _scratch(b"\x90")
    handle = _handle(uc)
    data = ctypes.string_at(handle, 2 * _STRUCT_BYTES)
    anchor = data.find(b"\x00\x10\x00\x00\xff\x0f\x00\x00")
    if anchor < 0 or data[anchor + 48 : anchor + 52] not in (b"\0\0\0\1", b"\0\1\0\1"):
        raise NotSupported("no_exit_request is not where this version of vmmsim looks for it")
    for flag, wanted in ((0, 0), (1, 1)):
        uc = _scratch(_STOP_AND_STORE)
        ctypes.c_uint8.from_address(_handle(uc) + anchor + 50).value = flag
        _stop_at_out(uc)
        uc.reg_write(x86_const.UC_X86_REG_RBX, 0x1800)
        uc.emu_start(_CODE, _CODE + len(_STOP_AND_STORE))
        if uc.reg_read(x86_const.UC_X86_REG_ECX) != wanted:
            raise NotSupported("no_exit_request does not do what this version of vmmsim expects")
    return anchor + 50


def _halted(find_cpu: Callable[[Uc], int]) -> int:
    """A word before the CPU structure that is 1 after HLT and 0 after a stop, twice."""
    halts: list[bytes] = []
    stops: list[bytes] = []
    for _ in range(2):
        for code, seen in ((b"\x90\xf4", halts), (b"\xe6\x10\x90\xeb\x00", stops)):
            uc = _scratch(code)
            cpu = find_cpu(uc)
            _stop_at_out(uc)
            uc.emu_start(_CODE, _CODE + 0x100)
            seen.append(ctypes.string_at(cpu - _BEFORE_CPU, _BEFORE_CPU))
    for at in range(_BEFORE_CPU - 4, -1, -4):
        if all(data[at : at + 4] == b"\1\0\0\0" for data in halts) and all(
            data[at : at + 4] == b"\0\0\0\0" for data in stops
        ):
            return at - _BEFORE_CPU
    raise NotSupported("CPUState.halted was not found before the CPU structure")


_CODE = 0x1000
#: How far before the CPU structure `halted` can be.
_BEFORE_CPU = 0x1000
#: More than CPUState has; the CPU structure follows it.
_CPU_BYTES = 0x10000
_alive: list[Any] = []


def _scratch(code: bytes) -> Uc:
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_set_tcg_buffer_size(buffer_size(1 << 20))
    uc.mem_map(_CODE, 0x1000)
    uc.mem_write(_CODE, code)
    return uc


def _handle(uc: Uc) -> int:
    return ctypes.cast(uc._uch, ctypes.c_void_p).value or 0


def _hook(uc: Uc, kind: int, callback: Any, *extra: Any) -> None:
    hook = ctypes.c_size_t()
    pointer = ctypes.cast(callback, ctypes.c_void_p)
    uclib.uc_hook_add(
        uc._uch, ctypes.byref(hook), kind, pointer, None, ctypes.c_uint64(1), ctypes.c_uint64(0), *extra
    )


def _stop_at_out(uc: Uc) -> None:
    callback = ctypes.CFUNCTYPE(None)(lambda: uclib.uc_emu_stop(uc._uch))
    _alive.append(callback)
    _hook(uc, uc_const.UC_HOOK_INSN, callback, ctypes.c_int(x86_const.UC_X86_INS_OUT))


def _find_cpu(uc: Uc) -> int:
    """The address of the CPU structure: what a block hook finds where TCG keeps it."""
    from .thunks import Shared, Thunks

    thunks = Thunks(_handle(uc), ContextCodec(uc).layout, 0)
    _alive.append(thunks)
    hook = ctypes.c_size_t()
    uclib.uc_hook_add(
        uc._uch, ctypes.byref(hook), uc_const.UC_HOOK_BLOCK, ctypes.c_void_p(thunks.at["block"]),
        ctypes.c_void_p(thunks.shared), ctypes.c_uint64(1), ctypes.c_uint64(0),
    )  # fmt: skip
    thunks.words[Shared.LIMIT] = thunks.words[Shared.END] = 0
    uc.emu_start(_CODE, _CODE + 0x100)
    thunks.words[Shared.LIMIT] = thunks.words[Shared.END] = 1 << 62
    return thunks.words[Shared.ENV]


def _cpu() -> int:
    """The place in uc_struct that in every engine has a pointer to somewhere before the CPU structure and
    near it. In one engine others may have one, too, to what malloc put there: so engines are looked
    at, which live meanwhile and so lie elsewhere, until one place is left; at least two."""
    places: set[int] = set()
    engines = []
    for number in range(_MOST_ENGINES):
        uc = _scratch(b"\x90")
        engines.append(uc)
        env, data = _find_cpu(uc), ctypes.string_at(_handle(uc), _STRUCT_BYTES)
        words = (int.from_bytes(data[at : at + 8], "little") for at in range(0, _STRUCT_BYTES, 8))
        found = {8 * n for n, word in enumerate(words) if 0 < env - word < _CPU_BYTES}
        places = places & found if number else found
        if number and len(places) <= 1:
            break
    if len(places) != 1:
        raise NotSupported(f"the pointer to CPUState was found at {sorted(places)} of uc_struct")
    return places.pop()


@functools.cache
def engine_offsets() -> Offsets:
    """All four; a few milliseconds, once a process."""
    try:
        return Offsets(_recursion(), _no_exit(), _halted(_find_cpu), _cpu())
    finally:
        _alive.clear()
