#!/usr/bin/env bash
# Question: what becomes of a start segment address (Intel HEX type 03, CS:IP F000:FFF0) in bincopy?
# Guess: execution_start_address is FFFF0h, and written again it is type 03 with F000:FFF0.
# Really: it is F000FFF0h, CS in the upper half, and is written as type 05, a linear EIP of F000FFF0h. intelhex keeps CS and
#   IP; GNU objdump computes FFFF0h.
# Version: bincopy 20.1.1, intelhex 2.3.0, binutils 2.40-2 (Debian)
# Date: 2026-12-01
# Meets: real-mode ROMs and boot code that pass through a merge or a crop
. "$(dirname "$0")/_lib.sh"
pip_get intelhex==2.3.0 bincopy==20.1.1
gnu_get
printf ':0101000041BD\n:04000003F000FFF01A\n:00000001FF\n' >start.hex
{
    py - <<'P'
import bincopy, intelhex
image = bincopy.BinFile("start.hex")
print("bincopy", hex(image.execution_start_address), image.as_ihex().split()[1])
print("intelhex", {name: hex(value) for name, value in intelhex.IntelHex("start.hex").start_addr.items()})
P
    objdump -f start.hex | sed -n 's/start address/objdump/p'
} | see "bincopy 0xf000fff0 :04000005F000FFF018
intelhex {'CS': '0xf000', 'IP': '0xfff0'}
objdump 0x000ffff0"
