#!/usr/bin/env bash
# Question: which instructions does capstone put into CS_GRP_PRIVILEGE?
# Guess: those that raise #GP or #UD outside ring 0 (SDM vol. 3A, 5.9): HLT, RDMSR, WRMSR; not IRET or a MOV to DS.
# Really: RDMSR is not in it though WRMSR is; IRETQ, VMMCALL and MOV DS, which ring 3 may execute, are. IN, OUT, which
#   depend on IOPL, are not in it, while CLI and STI, which do too, are.
# Version: capstone 5.0.9
# Date: 2026-12-01
# Meets: writers of trap-and-emulate monitors and sandboxes who look for sensitive instructions by group
. "$(dirname "$0")/_lib.sh"
pip_get capstone==5.0.9
py - <<'P' | see 'hlt yes
rdmsr no
wrmsr yes
iretq yes
vmmcall yes
mov ds, eax yes
cli yes
out dx, al no'
import capstone
engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
engine.detail = True
for code in "f4", "0f32", "0f30", "48cf", "0f01d9", "8ed8", "fa", "ee":
    insn = next(engine.disasm(bytes.fromhex(code), 0))
    print(insn.mnemonic, insn.op_str, end="" if insn.op_str == "" else " ")
    print("yes" if insn.group(capstone.CS_GRP_PRIVILEGE) else "no")
P
