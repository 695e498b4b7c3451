#!/usr/bin/env bash
# Question: how long are UD1 (0F B9 C0) and UD0 (0F FF C0)?
# Guess: 3 bytes everywhere: the SDM gives both a ModRM byte (vol. 2, UD).
# Really: capstone says 2 for both, so ModRM is decoded as the next instruction; ndisasm says 3 for UD1 and 2 for UD0;
#   iced and objdump say 3.
# Version: capstone 5.0.9, iced-x86 1.21.0, nasm 2.16.01-1, binutils 2.40-2 (Debian)
# Date: 2026-12-01
# Meets: kernels mark WARN and BUG with UD1 and UD2; a post-mortem listing is out of step after the first of them
. "$(dirname "$0")/_lib.sh"
pip_get capstone==5.0.9 iced-x86==1.21.0
gnu_get
deb_get ndisasm nasm=2.16.01-1
for code in 0fb9c0 0fffc0; do
    py - $code <<'P'
import capstone, iced_x86, sys
code = bytes.fromhex(sys.argv[1])
open("code.bin", "wb").write(code + b"\x90")
insn = next(capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm(code, 0))
print("capstone", insn.mnemonic, insn.size)
print("iced", iced_x86.Decoder(64, code).decode().len)
P
    objdump -D -b binary -m i386:x86-64 code.bin | awk -F'\t' '/^ +0:/ {print "objdump", split($2, a, " ")}'
    ndisasm -b 64 code.bin | awk 'NR == 1 {print "ndisasm", length($2) / 2}'
done | see 'capstone ud1 2
iced 3
objdump 3
ndisasm 3
capstone ud0 2
iced 3
objdump 3
ndisasm 2'
