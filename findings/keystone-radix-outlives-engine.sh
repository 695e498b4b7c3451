#!/usr/bin/env bash
# Question: what is the 10 of "mov eax, 10", after another keystone engine in the process was set to NASM's syntax and freed?
# Guess: ten, always: NASM reads plain digits as decimal, and an engine's options are its own.
# Really: an engine set to KS_OPT_SYNTAX_NASM reads 10 as 16, and so do engines made after it is freed, with Intel syntax set
#   again too: they get its memory, and the radix in it is not set. While it lives, others are right. 200 into AL becomes 0.
# Version: keystone-engine 0.9.2
# Date: 2026-12-01
# Meets: programs that let the user choose the syntax, and tests that share a process with them
. "$(dirname "$0")/_lib.sh"
pip_get keystone-engine==0.9.2
py - <<'P' | see 'first mov eax, 10 b80a000000
nasm mov eax, 10 b810000000
while it lives mov eax, 10 b80a000000
new engine mov eax, 10 b810000000
new engine, Intel set mov eax, 10 b810000000
new engine, Intel set mov al, 200 b000'
import keystone

def show(who, text, syntax=None):
    engine = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_32)
    if syntax is not None:
        engine.syntax = syntax
    print(who, text, bytes(engine.asm(text)[0]).hex())
    return engine

show("first", "mov eax, 10")
nasm = show("nasm", "mov eax, 10", keystone.KS_OPT_SYNTAX_NASM)
show("while it lives", "mov eax, 10")
del nasm
show("new engine", "mov eax, 10")
show("new engine, Intel set", "mov eax, 10", keystone.KS_OPT_SYNTAX_INTEL)
show("new engine, Intel set", "mov al, 200", keystone.KS_OPT_SYNTAX_INTEL)
P
