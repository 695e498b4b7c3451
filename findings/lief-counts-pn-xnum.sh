#!/usr/bin/env bash
# Question: how many segments has an ELF file with e_phnum = PN_XNUM (ffffh) and 3 in section 0's sh_info?
# Guess: 3 in every library (System V gABI, chapter 5; core files of large processes are so).
# Really: pyelftools and readelf say 3; LIEF says that the header has 65535 and makes a fourth segment of the section header
#   that follows the table.
# Version: lief 1.0.0, pyelftools 0.33, binutils 2.40-2 (Debian)
# Date: 2026-12-01
# Meets: readers of core dumps of processes and guests with very many mappings
. "$(dirname "$0")/_lib.sh"
pip_get lief==1.0.0 pyelftools==0.33
gnu_get
{
    py - "$HERE" 2>/dev/null <<'P'
import io, struct, sys
sys.path.insert(0, sys.argv[1])
from _elf import elf64, program_header
import lief
from elftools.elf.elffile import ELFFile
section0 = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 3, 0, 0)
data = elf64([program_header(1, 0, 64, 4096)] * 3, count=0xFFFF, sections=section0)
open("many", "wb").write(data)
print("pyelftools", ELFFile(io.BytesIO(data)).num_segments())
binary = lief.parse(list(data))
print("lief", binary.header.numberof_segments, len(binary.segments))
P
    readelf -lW many 2>/dev/null | sed -n 's/There are \(.*\) program headers.*/readelf \1/p'
} | see 'pyelftools 3
lief 65535 4
readelf 3'
