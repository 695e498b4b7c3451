#!/usr/bin/env bash
# Question: does capstone's mnemonic show each REP and LOCK that the CPU obeys?
# Guess: yes: a string instruction that repeats reads "rep" or "repne", a locked one "lock".
# Really: F2 A5 (MOVSD, which repeats: SDM vol. 2, REP) reads "movsd" with no prefix, though F2 A4 reads "repne movsb";
#   with F2 after F0 the LOCK of CMPXCHG is not shown, with F2 before F0 it is. insn.prefix[0] is 0 there too: only
#   the bytes tell.
# Version: capstone 5.0.9
# Date: 2026-12-01
# Meets: a monitor or a debugger that tells from the text whether RIP stays for the next element, or what is atomic
. "$(dirname "$0")/_lib.sh"
pip_get capstone==5.0.9
py - <<'P' | see 'f2a4 prefix f2: repne movsb byte ptr [rdi], byte ptr [rsi]
f2a5 prefix 0: movsd dword ptr [rdi], dword ptr [rsi]
f3a5 prefix f3: rep movsd dword ptr [rdi], dword ptr [rsi]
f2f00fb10b prefix f0: xacquire lock cmpxchg dword ptr [rbx], ecx
f0f20fb10b prefix 0: cmpxchg dword ptr [rbx], ecx'
import capstone
engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
engine.detail = True
for code in "f2a4", "f2a5", "f3a5", "f2f00fb10b", "f0f20fb10b":
    insn = next(engine.disasm(bytes.fromhex(code), 0))
    print(f"{code} prefix {insn.prefix[0]:x}: {insn.mnemonic} {insn.op_str}")
P
