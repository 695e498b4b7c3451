#!/usr/bin/env bash
# Question: is memoryview(b"\x01\x00").cast("H") equal to b"\x01\x00", whose bytes it shows, and to b"\x01"?
# Guess: to the first, not to the second: views of bytes compare bytes.
# Really: the other way round: items are compared as numbers (PEP 3118 semantics since 3.3), so a view of one 16-bit 1 equals
#   a view of one 8-bit 1 and differs from its own two bytes. An "is the page still the same" check goes wrong both ways.
# Version: CPython 3.11.7; documented ("memoryview.__eq__")
# Date: 2026-12-01
# Meets: code that compares guest memory with what was saved, after a cast for speed
. "$(dirname "$0")/_lib.sh"
py - <<'P' | see 'H view == its own bytes: False
H view == one byte: True
Q view == its own bytes: False'
view = memoryview(b"\x01\x00").cast("H")
print("H view == its own bytes:", view == b"\x01\x00")
print("H view == one byte:", view == b"\x01")
page = bytes(range(16))
print("Q view == its own bytes:", memoryview(page).cast("Q") == page)
P
