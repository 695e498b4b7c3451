#!/usr/bin/env bash
# Question: what does python-zstandard's stream_reader say of a frame that is cut off?
# Guess: an error at the end, as gzip, bz2 and lzma files raise EOFError.
# Really: nothing: read() gives what there is and then b"" as at a proper end. zstandard.open() does the same;
#   only decompress() of the whole raises.
# Version: zstandard 0.25.0
# Date: 2026-12-01
# Meets: whoever streams a disk image or a snapshot from a broken download or a full disk
. "$(dirname "$0")/_lib.sh"
pip_get zstandard==0.25.0
py - <<'P' | see "stream_reader 200003 of 300000
open 200003 of 300000
decompress ZstdError
lzma EOFError"
import io, lzma, random
import zstandard
random.seed(1)
data = random.randbytes(300000)
cut = zstandard.ZstdCompressor().compress(data)[:-100000]
print("stream_reader", len(zstandard.ZstdDecompressor().stream_reader(io.BytesIO(cut)).read()), "of", len(data))
print("open", len(zstandard.open(io.BytesIO(cut)).read()), "of", len(data))
for name, read in (
    ("decompress", lambda: zstandard.ZstdDecompressor().decompress(cut)),
    ("lzma", lambda: lzma.open(io.BytesIO(lzma.compress(data)[:-9])).read()),
):
    try:
        print(name, len(read()))
    except Exception as error:
        print(name, type(error).__name__)
P
