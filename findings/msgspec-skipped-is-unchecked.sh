#!/usr/bin/env bash
# Question: does msgspec refuse bytes that are no UTF-8, or the number 1e999, in a field that the type does not have?
# Guess: yes, with DecodeError, as in a field that it has: the document is not valid JSON text.
# Really: strings and numbers that are skipped, or kept as msgspec.Raw, are looked at for their end only: accepted. What is
#   passed on as Raw is refused by the next reader. Wrong escapes (\ud800) and numbers like 01 are refused all the same.
# Version: msgspec 0.23.0
# Date: 2026-12-01
# Meets: services that validate an envelope and store or forward the rest
. "$(dirname "$0")/_lib.sh"
pip_get msgspec==0.23.0
py - <<'P' | see "known, not UTF-8: DecodeError
skipped, not UTF-8: Only(a=5)
skipped, 1e999: Only(a=5)
Raw, not UTF-8: 3 bytes
skipped, 01: DecodeError"
import msgspec

class Only(msgspec.Struct):
    a: int

def show(name, data, type):
    try:
        print(f"{name}:", msgspec.json.decode(data, type=type) if type is not msgspec.Raw
              else f"{len(bytes(msgspec.json.decode(data, type=type)))} bytes")
    except msgspec.DecodeError as error:
        print(f"{name}:", type_name(error))

type_name = lambda error: error.__class__.__name__
show("known, not UTF-8", b'"\xff"', str)
show("skipped, not UTF-8", b'{"b": "\xff", "a": 5}', Only)
show("skipped, 1e999", b'{"b": 1e999, "a": 5}', Only)
show("Raw, not UTF-8", b'"\xff"', msgspec.Raw)
show("skipped, 01", b'{"b": 01, "a": 5}', Only)
P
