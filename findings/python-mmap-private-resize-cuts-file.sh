#!/usr/bin/env bash
# Question: what does resize() of a MAP_PRIVATE mapping do to the file in Python?
# Guess: nothing: private changes stay private. Or it is refused, as for ACCESS_COPY.
# Really: the file is cut or grown to the new size: mapped with flags=MAP_PRIVATE the mapping counts as writable, and
#   resize() truncates the file first. With access=ACCESS_COPY it raises TypeError.
# Version: CPython 3.11.7, Linux
# Date: 2026-12-01
# Meets: VMMs that map a disk or RAM image copy-on-write
. "$(dirname "$0")/_lib.sh"
python_is 3.11
py - <<'P' | see 'MAP_PRIVATE: file 4096 of 20000
ACCESS_COPY: TypeError, file 20000 of 20000'
import mmap, os
for name, options in ("MAP_PRIVATE", {"flags": mmap.MAP_PRIVATE}), ("ACCESS_COPY", {"access": mmap.ACCESS_COPY}):
    with open("image", "wb") as out:
        out.write(bytes(20000))
    error = ""
    with open("image", "r+b") as image:
        mapped = mmap.mmap(image.fileno(), 8192, **options)
        try:
            mapped.resize(4096)
        except TypeError:
            error = "TypeError, "
    print(f"{name}: {error}file {os.path.getsize('image')} of 20000")
P
