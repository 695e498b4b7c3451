#!/usr/bin/env bash
# Question: what is n_type of a note that is not GNU's: Xen's type 1 (the entry), SystemTap's type 3?
# Guess: the number, or a name that belongs to the owner; the names NT_GNU_* are for notes of the owner "GNU".
# Really: the name goes by the number alone: NT_GNU_ABI_TAG for Xen's entry, NT_GNU_BUILD_ID for stapsdt. Who looks for the
#   build-id by n_type gets the first SystemTap probe. readelf prints both right.
# Version: pyelftools 0.33
# Date: 2026-12-01
# Meets: symbol servers, crash reporters and loaders of PV kernels
. "$(dirname "$0")/_lib.sh"
pip_get pyelftools==0.33
py - "$HERE" <<'P' | see 'Xen NT_GNU_ABI_TAG
stapsdt NT_GNU_BUILD_ID
GNU NT_GNU_BUILD_ID'
import io, sys
sys.path.insert(0, sys.argv[1])
from _elf import elf64, note, program_header
from elftools.elf.elffile import ELFFile
notes = note(b"Xen\0", 1, bytes(8)) + note(b"stapsdt\0", 3, b"probe\0") + note(b"GNU\0", 3, bytes(20))
data = elf64([program_header(4, 120, len(notes), 4)], notes)
for item in ELFFile(io.BytesIO(data)).get_segment(0).iter_notes():
    print(item["n_name"], item["n_type"])
P
