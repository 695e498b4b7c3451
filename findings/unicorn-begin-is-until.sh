#!/usr/bin/env bash
# Question: what does emu_start(begin, until) run when both are the head of a loop?
# Guess: one turn: until is tested when control comes there again, as a debugger's breakpoint is.
# Really: nothing, also with a count; it returns with no error, so "run to the next turn" never advances. The block
#   that stops there is kept: a later run from there with another until and a count does nothing either.
# Version: unicorn 2.1.4
# Date: 2026-12-01
# Meets: debuggers and fuzz harnesses that continue from a breakpoint which is also the next stop
. "$(dirname "$0")/_lib.sh"
pip_get unicorn==2.1.4
py - <<'P' | see 'until=0, count=4: RAX 2
until=begin: RAX 0
until=begin, count=4: RAX 0
the same engine, until=0, count=4: RAX 0'
from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn.x86_const import UC_X86_REG_RAX

def loop():
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.mem_map(0x1000, 0x1000)
    uc.mem_write(0x1000, bytes.fromhex("48ffc0" "ebfb"))  # INC RAX; JMP to it
    return uc

def run(uc, name, until, count):
    uc.emu_start(0x1000, until, count=count)
    print(f"{name}: RAX", uc.reg_read(UC_X86_REG_RAX))

run(loop(), "until=0, count=4", 0, 4)
uc = loop()
run(uc, "until=begin", 0x1000, 0)
run(uc, "until=begin, count=4", 0x1000, 4)
run(uc, "the same engine, until=0, count=4", 0, 4)
P
