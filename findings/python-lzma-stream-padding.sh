#!/usr/bin/env bash
# Question: does Python's lzma take an .xz file with stream padding, zeros in multiples of 4 between or after streams?
# Guess: yes, as the .xz format (2.2) and xz do; or one error for all that follows the last stream.
# Really: zeros after the stream raise "ended before the end-of-stream marker"; stream, padding, stream gives the first
#   stream alone with no error, though two streams without padding give both. Other bytes after the end are ignored.
# Version: CPython 3.11.7 with liblzma 5.4.1, xz-utils 5.4.1-1 (Debian)
# Date: 2026-12-01
# Meets: readers of initramfs parts, firmware and images that were padded to a block
. "$(dirname "$0")/_lib.sh"
command -v xz >/dev/null || skip "no xz"
py - <<'P' | see "two streams: python 8 bytes, xz 8 bytes
two with padding: python 4 bytes, xz 8 bytes
padding at the end: python LZMAError, xz 4 bytes
other bytes at the end: python 4 bytes, xz error"
import lzma, subprocess
one = lzma.compress(b"1234")
for name, data in (
    ("two streams", one + one),
    ("two with padding", one + bytes(4) + one),
    ("padding at the end", one + bytes(4)),
    ("other bytes at the end", one + b"finished"),
):
    try:
        python = f"{len(lzma.decompress(data))} bytes"
    except lzma.LZMAError:
        python = "LZMAError"
    run = subprocess.run(["xz", "-dc"], input=data, capture_output=True)
    print(f"{name}: python {python}, xz", "error" if run.returncode else f"{len(run.stdout)} bytes")
P
