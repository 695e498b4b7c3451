#!/usr/bin/env bash
# Question: do capstone's regs_access() lists of CMPXCHG and CMPXCHG16B name the implicit registers, in 5 and in 6?
# Guess: both do: CMPXCHG writes EAX and flags, CMPXCHG16B reads RAX, RBX, RCX, RDX; the newer release is no worse.
# Really: 5.0.9 lists nothing that CMPXCHG writes; 6.0.0 alpha 11 mends that, and says that CMPXCHG16B reads and
#   writes AL alone, which 5.0.9 had right.
# Version: capstone 5.0.9 and 6.0.0a11
# Date: 2026-12-01
# Meets: taint trackers, lifters and "what changed here" views of debuggers
. "$(dirname "$0")/_lib.sh"
cat >show.py <<'P'
import capstone, sys
engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
engine.detail = True
for code in "0fb10b", "480fc70b":
    insn = next(engine.disasm(bytes.fromhex(code), 0))
    read, written = ([insn.reg_name(r) for r in regs] for regs in insn.regs_access())
    print(sys.argv[1], insn.mnemonic, "reads", *sorted(read), "writes", *sorted(written))
P
pip_get capstone==5.0.9
one=$(py show.py 5.0.9)
rm -rf "$SITE/py"
pip_get capstone==6.0.0a11
printf '%s\n' "$one" "$(py show.py 6.0.0a11)" | see '5.0.9 cmpxchg reads eax ecx rbx writes
5.0.9 cmpxchg16b reads rax rbx rcx rdx writes rax rdx rflags
6.0.0a11 cmpxchg reads eax ecx rbx writes eax rflags
6.0.0a11 cmpxchg16b reads al rbx writes al rflags'
