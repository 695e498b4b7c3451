#!/usr/bin/env bash
# Question: which value does a UC_HOOK_MEM_WRITE callback in Python get for stores of all ones of 1, 2, 4 and 8 bytes?
# Guess: 0xff, 0xffff, 0xffffffff, 0xffffffffffffffff.
# Really: the first three are unsigned, the last is -1: the argument is an int64_t that only 8 bytes fill.
# Version: unicorn 2.1.4
# Date: 2026-12-01
# Meets: memory traces and MMIO models that format or index by the value; to_bytes(8) raises OverflowError
. "$(dirname "$0")/_lib.sh"
pip_get unicorn==2.1.4
py - <<'P' | see '1 255
2 65535
4 4294967295
8 -1'
from unicorn import UC_ARCH_X86, UC_HOOK_MEM_WRITE, UC_MODE_64, Uc
from unicorn.x86_const import UC_X86_REG_RAX, UC_X86_REG_RCX
uc = Uc(UC_ARCH_X86, UC_MODE_64)
uc.mem_map(0x1000, 0x2000)
uc.hook_add(UC_HOOK_MEM_WRITE, lambda uc, access, address, size, value, data: print(size, value))
code = bytes.fromhex("8808" "668908" "8908" "488908")  # MOV [RAX], CL / CX / ECX / RCX
uc.mem_write(0x1000, code)
uc.reg_write(UC_X86_REG_RAX, 0x2000)
uc.reg_write(UC_X86_REG_RCX, 2**64 - 1)
uc.emu_start(0x1000, 0x1000 + len(code))
P
