#!/usr/bin/env bash
# Question: what is in a c_char * 4 field after b"abcd" and then b"x" were assigned?
# Guess: "x" and three zeros, as struct's 4s pads.
# Really: "x", one zero, and the old "cd": only a terminating NUL is added. .value reads b"x", the bytes that go to the guest
#   or the file hold the rest.
# Version: CPython 3.11.7
# Date: 2026-12-01
# Meets: packets, virtio configuration, ACPI and SMBIOS fields that are built in a structure used again
. "$(dirname "$0")/_lib.sh"
py - <<'P' | see "ctypes b'x' 78006364
struct 78000000"
import ctypes, struct

class Field(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char * 4)]

field = Field(b"abcd")
field.name = b"x"
print("ctypes", field.name, bytes(field).hex())
print("struct", struct.pack("4s", b"x").hex())
P
