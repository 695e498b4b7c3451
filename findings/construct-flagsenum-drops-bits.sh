#!/usr/bin/env bash
# Question: what does construct's FlagsEnum build again from a byte 87h, when only bits 0 and 1 have names?
# Guess: 87h: what was parsed and not changed is built the same; Enum keeps unknown numbers.
# Really: 03h: bits without a name are dropped at the parse, with no error.
# Version: construct 2.10.70
# Date: 2026-12-01
# Meets: tools that read, change one flag and write back headers, registers and tables with reserved bits
. "$(dirname "$0")/_lib.sh"
pip_get construct==2.10.70
py - <<'P' | see "FlagsEnum {'a': True, 'b': True} 03
Enum 135 87"
from construct import Byte, Enum, FlagsEnum
flags = FlagsEnum(Byte, a=1, b=2)
parsed = flags.parse(b"\x87")
print("FlagsEnum", {name: value for name, value in parsed.items() if name[0] != "_"}, flags.build(parsed).hex())
number = Enum(Byte, a=1)
print("Enum", int(number.parse(b"\x87")), number.build(number.parse(b"\x87")).hex())
P
