#!/usr/bin/env bash
# Question: which segment does 64 2E 8B 00 (FS, then CS, MOV EAX,[RAX]) use in 64-bit code?
# Guess: FS, in every decoder: CS, DS, ES and SS overrides are null prefixes there (AMD APM vol. 3, 1.2.4).
# Really: iced and objdump say fs:, capstone, ndisasm and llvm-mc say cs:, whose base is 0.
# Version: capstone 5.0.9, iced-x86 1.21.0, nasm 2.16.01-1, binutils 2.40-2 (Debian)
# Date: 2026-12-01
# Meets: debuggers that compute the address of an access in thread-local storage from the decoded operand
. "$(dirname "$0")/_lib.sh"
pip_get capstone==5.0.9 iced-x86==1.21.0
gnu_get
deb_get ndisasm nasm=2.16.01-1
{
    py - <<'P'
import capstone, iced_x86
code = bytes.fromhex("642e8b00")
open("code.bin", "wb").write(code)
engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
engine.detail = True
insn = next(engine.disasm(code, 0))
print("capstone", insn.op_str, "segment", insn.reg_name(insn.operands[1].mem.segment))
insn = iced_x86.Decoder(64, code).decode()
print("iced", insn, "segment", "fs" if insn.memory_segment == iced_x86.Register.FS else "other")
P
    objdump -D -b binary -m i386:x86-64 -M intel code.bin | sed -n 's/^ *0:.*\t/objdump /p'
    ndisasm -b 64 code.bin | awk '{print "ndisasm", $4}'
} | see 'capstone eax, dword ptr cs:[rax] segment cs
iced mov eax,fs:[rax] segment fs
objdump fs mov eax,DWORD PTR fs:[rax]
ndisasm eax,[cs:rax]'
