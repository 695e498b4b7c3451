"""A device script: accesses to make, as a guest that makes them."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UsageError
from ..exits import Access, MmioRead, MmioWrite, PortRead, PortWrite
from ..loaders import LoadedImage, load_flat

__all__ = ["script_image"]

#: Above what a PC has below 1 MiB.
_LOAD = 0x100000
_WIDE = b"\x66"

#: kind -> opcode of the byte form; the other sizes have the next one (SDM vol. 2: IN, OUT, MOV).
_OPCODES = {PortRead: 0xEC, PortWrite: 0xEE, MmioRead: 0xA0, MmioWrite: 0xA2}


def script_image(script: Sequence[Access], name: str = "script") -> LoadedImage:
    """32-bit code that makes the accesses of `script` in order, and halts.

    What a read answers is not checked here: it is in the trace. UsageError for an access that 32-bit
    code does not make in one piece: of 8 bytes, beyond 4 GiB, of an MSR.
    """
    code = bytearray()
    for number, access in enumerate(script):
        code += _access(access, number)
    return load_flat(bytes(code + b"\xf4"), name=name, load_address=_LOAD, mode="p32")


def _access(access: Access, number: int) -> bytes:
    opcode = _OPCODES.get(type(access))
    port = access.space == "port" if isinstance(access, Access) else False
    if (
        opcode is None
        or access.size not in (1, 2, 4)
        or not 0 <= access.address < (1 << 16 if port else 1 << 32)
    ):
        raise UsageError(
            f"step {number} of the script is {access!r}",
            hint="a step is a PortRead, PortWrite, MmioRead or MmioWrite of vmmsim.exits, of 1, 2 or 4 bytes",
        )
    code = b""
    if access.is_write:
        value: int = access.value  # type: ignore[attr-defined]
        if not 0 <= value < 1 << 8 * access.size:
            raise UsageError(
                f"step {number} of the script writes {value:#x}", hint=f"that has {access.size} bytes"
            )
        code += b"\xb8" + value.to_bytes(4, "little")  # mov eax, value
    if port:
        code += b"\xba" + access.address.to_bytes(4, "little")  # mov edx, port
    code += _WIDE * (access.size == 2) + bytes([opcode + (access.size > 1)])
    return code if port else code + access.address.to_bytes(4, "little")
