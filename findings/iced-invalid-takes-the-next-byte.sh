#!/usr/bin/env bash
# Question: where does an iced-x86 Decoder go on after a byte that is no instruction (06, PUSH ES, in 64-bit code)?
# Guess: one byte on, so that the RET after it is seen.
# Really: two bytes on: a ModRM byte is read for every invalid one-byte opcode, and the RET is swallowed. GNU objdump says
#   (bad), ret; capstone with skipdata .byte 6, ret.
# Version: iced-x86 1.21.0, capstone 5.0.9, binutils 2.40-2 (Debian)
# Date: 2026-12-01
# Meets: linear sweeps over code with data in it; set decoder.position yourself
. "$(dirname "$0")/_lib.sh"
pip_get iced-x86==1.21.0 capstone==5.0.9
gnu_get
{
    py - <<'P'
import capstone, iced_x86
code = bytes.fromhex("06c39090")
open("code.bin", "wb").write(code)
print("iced", *(f"{insn.len}:{insn}" for insn in iced_x86.Decoder(64, code)))
engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
engine.skipdata = True
print("capstone", *(f"{insn.size}:{insn.mnemonic}" for insn in engine.disasm(code, 0)))
P
    echo objdump $(objdump -D -b binary -m i386:x86-64 code.bin | awk -F'\t' '/^ +[0-9]:/ {print split($2, a, " ") ":" $3}')
} | see 'iced 2:(bad) 1:nop 1:nop
capstone 1:.byte 1:ret 1:nop 1:nop
objdump 1:(bad) 1:ret 1:nop 1:nop'
