#!/usr/bin/env bash
# Question: what are name and description of a Xen note (PVH entry, guest OS) in LIEF?
# Guess: "Xen", and the n_descsz bytes of the description, as pyelftools and readelf say.
# Really: the name is "Xen\0" with its NUL (those of owners that LIEF knows, "GNU", have none), so a search for "Xen" finds
#   nothing; the description has its padding too: "linux\0" (6 bytes) comes as 8.
# Version: lief 1.0.0, pyelftools 0.33
# Date: 2026-12-01
# Meets: loaders that look for XEN_ELFNOTE_PHYS32_ENTRY, and whatever reads notes of an owner of its own
. "$(dirname "$0")/_lib.sh"
pip_get lief==1.0.0 pyelftools==0.33
py - "$HERE" <<'P' 2>/dev/null | see "lief 'Xen\\x00' 6 b'linux\\x00\\x00\\x00'
lief 'Xen\\x00' 18 b'\\x00\\x02\\x00\\x01'
lief 'GNU' 3 b'abcd'
pyelftools 'Xen' 6
pyelftools 'Xen' 18
pyelftools 'GNU' 4"
import io, struct, sys
sys.path.insert(0, sys.argv[1])
from _elf import elf64, note, program_header
import lief
from elftools.elf.elffile import ELFFile
notes = note(b"Xen\0", 6, b"linux\0") + note(b"Xen\0", 18, struct.pack("<I", 0x1000200)) + note(b"GNU\0", 3, b"abcd")
data = elf64([program_header(4, 120, len(notes), 4)], notes)
binary = lief.parse(list(data))
for item in binary.notes:
    print("lief", repr(item.name), item.original_type, bytes(item.description))
for item in ELFFile(io.BytesIO(data)).get_segment(0).iter_notes():
    size = item["n_descsz"]
    print("pyelftools", repr(item["n_name"]), item["n_type"] if item["n_name"] == "Xen" else size)
P
