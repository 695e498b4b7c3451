"""What tests look at, and change, in a context of Unicorn's beyond what `ContextCodec` has."""

from __future__ import annotations

import struct

from vmmsim.backends.unicorn_context import ContextCodec
from vmmsim.backends.unicorn_probe import ContextBytes

_INT = struct.Struct("<i")


def error_code(codec: ContextCodec) -> int:
    """The error code of the exception just raised; 0 for one that has none."""
    return int(_INT.unpack_from(ContextBytes(codec.uc).save(), codec.layout.error_code)[0]) & 0xFFFFFFFF


def clear_old_exception(codec: ContextCodec) -> None:
    """Forget the last exception. Unicorn itself never does, and makes the next page fault a double fault."""
    context = ContextBytes(codec.uc)
    _INT.pack_into(context.save(), codec.layout.old_exception, -1)
    context.restore()
