#!/usr/bin/env bash
# Question: does pyvcd's reader give back the text that its writer was told, "a b"?
# Guess: yes: they are of one package.
# Really: the writer escapes the blank as \x20 (a string of a dump ends at white space) and the reader leaves it: a\x20b.
# Version: pyvcd 0.5.1
# Date: 2026-12-01
# Meets: tests that read back a dump with the library that wrote it
. "$(dirname "$0")/_lib.sh"
pip_get pyvcd==0.5.1
py - <<'P' | see 'file: sa\x20b !
reader: a\x20b'
import io
from vcd import VCDWriter
from vcd.reader import TokenKind, tokenize
out = io.StringIO()
with VCDWriter(out, timescale="1 ns", date="now") as writer:
    writer.change(writer.register_var("cpu", "why", "string"), 1, "a b")
print("file:", next(line for line in out.getvalue().splitlines() if line.startswith("sa")))
for token in tokenize(io.BytesIO(out.getvalue().encode())):
    if token.kind is TokenKind.CHANGE_STRING and token.data.value:
        print("reader:", token.data.value)
P
