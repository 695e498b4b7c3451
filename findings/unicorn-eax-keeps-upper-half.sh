#!/usr/bin/env bash
# Question: what is in bits 32-63 after reg_write of EAX, of R8D and of EIP in 64-bit mode?
# Guess: zeros in all three, as after an instruction that writes the 32-bit register (SDM vol. 1, 3.4.1.1).
# Really: EAX and R8D keep the upper half, EIP clears that of RIP.
# Version: unicorn 2.1.4
# Date: 2026-12-01
# Meets: emulators of system calls and of CPUID results that set EAX to EDX in a hook
. "$(dirname "$0")/_lib.sh"
pip_get unicorn==2.1.4
py - <<'P' | see 'RAX 0xffffffff00000005
R8 0xffffffff00000005
RIP 0x5'
from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn import x86_const as x86
uc = Uc(UC_ARCH_X86, UC_MODE_64)
for whole, low in ("RAX", "EAX"), ("R8", "R8D"), ("RIP", "EIP"):
    whole_id, low_id = (getattr(x86, f"UC_X86_REG_{name}") for name in (whole, low))
    uc.reg_write(whole_id, 2**64 - 1)
    uc.reg_write(low_id, 5)
    print(whole, hex(uc.reg_read(whole_id)))
P
