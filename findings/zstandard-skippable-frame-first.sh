#!/usr/bin/env bash
# Question: what does python-zstandard make of a skippable frame before the data (as pzstd writes)?
# Guess: all its ways skip it (RFC 8878, 3.1.2: a decoder skips them).
# Really: stream_reader skips it; ZstdDecompressor.decompress() raises, "expected 3", the size of the skippable frame taken
#   for that of the content; decompressobj() ends there with no data and the rest in unused_data.
# Version: zstandard 0.25.0
# Date: 2026-12-01
# Meets: readers of kernel modules, images and snapshots that other tools packed
. "$(dirname "$0")/_lib.sh"
pip_get zstandard==0.25.0
py - <<'P' | see "decompress ZstdError decompression error: decompressed 0 bytes; expected 3
decompressobj b'' eof True unused 13
stream_reader b'data'"
import io
import zstandard
skippable = (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"
packed = zstandard.ZstdCompressor().compress(b"data")
data = skippable + packed
try:
    print("decompress", zstandard.ZstdDecompressor().decompress(data))
except zstandard.ZstdError as error:
    print("decompress", type(error).__name__, error)
stream = zstandard.ZstdDecompressor().decompressobj()
print("decompressobj", stream.decompress(data), "eof", stream.eof, "unused", len(stream.unused_data))
print("stream_reader", zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read())
P
