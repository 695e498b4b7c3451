#!/usr/bin/env bash
# Question: where does data lie in an Intel HEX file that has a linear base (type 04) and then a segment base (type 02)?
# Guess: at the segment base: the newer record replaces the older, and all readers agree.
# Really: intelhex replaces (20000h), bincopy and GNU objcopy add both (30000h).
# Version: intelhex 2.3.0, bincopy 20.1.1, binutils 2.40-2 (Debian)
# Date: 2026-12-01
# Meets: boot ROM images that are put together from parts of several tools
. "$(dirname "$0")/_lib.sh"
pip_get intelhex==2.3.0 bincopy==20.1.1
gnu_get
{
    py - <<'P'
import io
import bincopy, intelhex

def record(kind, address, data):
    line = bytes([len(data)]) + address.to_bytes(2, "big") + bytes([kind]) + data
    return ":" + (line + bytes([-sum(line) & 255])).hex().upper() + "\n"

text = record(4, 0, b"\0\1") + record(0, 0, b"A") + record(2, 0, b"\x20\0") + record(0, 0, b"B") + record(1, 0, b"")
open("two.hex", "w").write(text)
print("intelhex", *map(hex, intelhex.IntelHex(io.StringIO(text)).addresses()))
image = bincopy.BinFile()
image.add_ihex(text)
print("bincopy", *(hex(segment.address) for segment in image.segments))
P
    echo objcopy $(objdump -h two.hex | awk '/\.sec/ {print "0x" $4}' | sed 's/0x0*/0x/')
} | see 'intelhex 0x10000 0x20000
bincopy 0x10000 0x30000
objcopy 0x10000 0x30000'
