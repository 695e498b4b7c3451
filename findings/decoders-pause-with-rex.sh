#!/usr/bin/env bash
# Question: what is F3 41 90 in 64-bit code: PAUSE, or XCHG of R8D and EAX?
# Guess: all decoders agree on PAUSE, since F3 90 is PAUSE.
# Really: iced, objdump and ndisasm say PAUSE; capstone (as LLVM) says xchg r8d, eax, and so do QEMU's translator and the
#   AMD EPYC that this was tried on: REX.B wins over F3.
# Version: capstone 5.0.9, iced-x86 1.21.0, nasm 2.16.01-1, binutils 2.40-2 (Debian)
# Date: 2026-12-01
# Meets: instruction fuzzers and decoders that are checked against one another and not against a CPU
. "$(dirname "$0")/_lib.sh"
pip_get capstone==5.0.9 iced-x86==1.21.0
gnu_get
deb_get ndisasm nasm=2.16.01-1
{
    py - <<'P'
import capstone, iced_x86
code = bytes.fromhex("f34190")
open("code.bin", "wb").write(code)
insn = next(capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm(code, 0))
print("capstone", insn.mnemonic, insn.op_str)
print("iced", iced_x86.Decoder(64, code).decode())
P
    objdump -D -b binary -m i386:x86-64 -M intel code.bin | sed -n 's/^ *0:.*\t/objdump /p' | sed 's/ *$//'
    ndisasm -b 64 code.bin | awk '{print "ndisasm", $3}'
} | see 'capstone xchg r8d, eax
iced pause
objdump rex.B pause
ndisasm pause'
