#!/usr/bin/env bash
# Question: how long is 66 0F 84 (JZ near with an operand-size prefix) in 64-bit code?
# Guess: every disassembler says 7 bytes, or every one 5.
# Really: capstone and iced say 7 (Intel: the prefix is ignored), GNU objdump and llvm-mc say 5 (AMD: a 16-bit
#   displacement and RIP cut to 16 bits). capstone is made from LLVM and differs from it. objdump has -M intel64 for it.
# Version: capstone 5.0.9, iced-x86 1.21.0, binutils 2.40-2, llvm-14 (Debian)
# Date: 2026-12-01
# Meets: whoever disassembles a trace of one vendor's CPU with the other's rule: all that follows is out of step
. "$(dirname "$0")/_lib.sh"
pip_get capstone==5.0.9 iced-x86==1.21.0
gnu_get
deb_get llvm-mc-14 llvm-14=1:14.0.6-12 libllvm14=1:14.0.6-12
{
    py - <<'P'
import capstone, iced_x86
code = bytes.fromhex("660f8400000000909090")
print("capstone", next(capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm(code, 0)).size)
print("iced", iced_x86.Decoder(64, code).decode().len)
open("code.bin", "wb").write(code)
P
    for isa in amd64 intel64; do
        echo "objdump $isa" "$(objdump -D -b binary -m i386:x86-64 -M $isa --insn-width=10 code.bin |
            awk -F'\t' '/^ +0:/ {print split($2, a, " ")}')"
    done
    echo llvm-mc "$(echo 0x66 0x0f 0x84 0 0 0 0 0x90 0x90 0x90 | llvm-mc-14 --disassemble --triple=x86_64 --show-encoding |
        sed -n 's/.*encoding: \[\(.*\)\].*/\1/p' | head -1 | tr , '\n' | wc -l)"
} | see 'capstone 7
iced 7
objdump amd64 5
objdump intel64 7
llvm-mc 5'
