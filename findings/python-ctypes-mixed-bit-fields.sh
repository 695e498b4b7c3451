#!/usr/bin/env bash
# Question: where does ctypes put a c_uint8:4 between a c_uint32:4 and a c_uint32:24?
# Guess: in bits 4-7, as GCC does for the System V ABI.
# Really: CPython 3.11 puts it into bits 28-31, over the field that follows: setting one changes the other. sizeof agrees with
#   GCC's, so nothing tells. (3.14 has a new layout: gh-97588.)
# Version: CPython 3.11.7, x86-64 Linux
# Date: 2026-12-01
# Meets: descriptors and registers modelled as ctypes structures with fields of different base types
. "$(dirname "$0")/_lib.sh"
python_is 3.11
py - <<'P' | see 'sizeof 4
b=15: bytes 000000f0, c 0xf00000
c=0: b 0'
import ctypes

class Fields(ctypes.Structure):
    _fields_ = [("a", ctypes.c_uint32, 4), ("b", ctypes.c_uint8, 4), ("c", ctypes.c_uint32, 24)]

fields = Fields()
print("sizeof", ctypes.sizeof(fields))
fields.b = 15
print(f"b=15: bytes {bytes(fields).hex()}, c {fields.c:#x}")
fields.c = 0
print("c=0: b", fields.b)
P
