#!/usr/bin/env bash
# Question: can a field be declared as an unsigned 64-bit integer, Meta(ge=0, le=2**64 - 1), in msgspec?
# Guess: yes: MessagePack has uint 64, and msgspec carries 2**64 - 1 both ways.
# Really: a bound that does not fit int64 is a ValueError as soon as a decoder for the type is made; and Meta(ge=0) alone
#   lets 2**70 through JSON, so that the check of a u64 stays with the program.
# Version: msgspec 0.23.0
# Date: 2026-12-01
# Meets: codecs of CPU state, whose registers and MSRs are u64
. "$(dirname "$0")/_lib.sh"
pip_get msgspec==0.23.0
py - <<'P' | see 'msgpack True
le=2**64-1 ValueError
le=2**63-1 5
ge=0 True'
from typing import Annotated
import msgspec
top = 2**64 - 1
print("msgpack", msgspec.msgpack.decode(msgspec.msgpack.encode(top)) == top)
for name, bound in ("le=2**64-1", top), ("le=2**63-1", 2**63 - 1):
    try:
        print(name, msgspec.json.decode(b"5", type=Annotated[int, msgspec.Meta(ge=0, le=bound)]))
    except ValueError as error:
        print(name, type(error).__name__)
print("ge=0", msgspec.json.decode(str(2**70), type=Annotated[int, msgspec.Meta(ge=0)]) == 2**70)
P
