#!/usr/bin/env bash
# Question: are two construct Containers equal that differ in a field named _reserved?
# Guess: no: the field is parsed, kept and built like any other.
# Really: yes: names that begin with an underscore are left out of the comparison. Documented for Container.
# Version: construct 2.10.70
# Date: 2026-12-01
# Meets: round-trip tests and diffs of headers whose reserved fields are named _reserved or _pad
. "$(dirname "$0")/_lib.sh"
pip_get construct==2.10.70
py - <<'P' | see 'kept 1 2
equal True
bytes equal False'
from construct import Byte, Struct
form = Struct("_reserved" / Byte, "size" / Byte)
one, two = form.parse(b"\1\7"), form.parse(b"\2\7")
print("kept", one._reserved, two._reserved)
print("equal", one == two)
print("bytes equal", form.build(one) == form.build(two))
P
