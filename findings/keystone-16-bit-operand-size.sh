#!/usr/bin/env bash
# Question: which operand size do IRET, PUSHF, LGDT and PUSH DS get from keystone in 32- and 64-bit code?
# Guess: the mode's, as from GNU as and NASM: no prefix.
# Really: each gets a 66: IRET and PUSHF work with 16-bit frames, and LGDT and LIDT load only 24 bits of the base (SDM
#   vol. 2, LGDT), which goes unseen while the table lies below 16 MiB. IRETD, PUSHFD and, in 64-bit code, LGDT are right.
# Version: keystone-engine 0.9.2
# Date: 2026-12-01
# Meets: writers of small kernels and of test guests
. "$(dirname "$0")/_lib.sh"
pip_get keystone-engine==0.9.2
py - <<'P' | see '32 lgdt [0x1000] 660f011500100000
32 lidt [eax] 660f0118
32 iret 66cf
32 iretd cf
32 pushf 669c
32 push ds 661e
64 iret 66cf
64 pushf 669c
64 lgdt [rax] 0f0110'
import keystone
modes = {32: keystone.KS_MODE_32, 64: keystone.KS_MODE_64}
for line in (
    "32 lgdt [0x1000]", "32 lidt [eax]", "32 iret", "32 iretd", "32 pushf", "32 push ds",
    "64 iret", "64 pushf", "64 lgdt [rax]",
):
    print(line, bytes(keystone.Ks(keystone.KS_ARCH_X86, modes[int(line[:2])]).asm(line[3:])[0]).hex())
P
