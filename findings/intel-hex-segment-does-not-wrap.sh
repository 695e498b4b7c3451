#!/usr/bin/env bash
# Question: where does the third byte of a record at FFFEh lie, after an extended segment address (type 02) of 1000h?
# Guess: at 10000h: offsets wrap within the 64 KiB of the segment (Intel's specification, rev. A, 1988: "modulo 64K").
# Really: at 20000h in intelhex, bincopy and GNU objcopy, which do not wrap; at 10000h in hexformat, which does.
# Version: intelhex 2.3.0, bincopy 20.1.1, hexformat 0.4.0, binutils 2.40-2 (Debian)
# Date: 2026-12-01
# Meets: writers of loaders who follow the specification and compare with the tools
. "$(dirname "$0")/_lib.sh"
pip_get intelhex==2.3.0 bincopy==20.1.1 hexformat==0.4.0
gnu_get
printf ':020000021000EC\n:04FFFE0041424344F5\n:00000001FF\n' >wrap.hex
{
    py - <<'P'
import bincopy, hexformat, intelhex
print("intelhex", *map(hex, intelhex.IntelHex("wrap.hex").addresses()))
image = bincopy.BinFile("wrap.hex")
print("hexformat", *(f"{at:#x}+{size}" for at, size in hexformat.IntelHex.fromihexfile("wrap.hex").parts()))
print("bincopy", *(f"{segment.address:#x}+{len(segment.data)}" for segment in image.segments))
P
    objdump -h wrap.hex | awk '/\.sec/ {print "objcopy 0x" $4 "+" $3}'
} | see 'intelhex 0x1fffe 0x1ffff 0x20000 0x20001
hexformat 0x10000+2 0x1fffe+2
bincopy 0x1fffe+4
objcopy 0x0001fffe+00000004'
