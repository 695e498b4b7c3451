#!/usr/bin/env bash
# Question: what does llvm-mc make of "mov rax, [0x1122334455667788]" in Intel syntax?
# Guess: the form with a 64-bit offset (48 A1), as GNU as makes, or an error that the address does not fit.
# Really: a 32-bit displacement, the upper half lost, with no warning; its listing still shows the whole address.
# Version: llvm-14 1:14.0.6-12, binutils 2.40-2 (Debian)
# Date: 2026-12-01
# Meets: writers of 64-bit kernels and test guests that touch fixed high addresses
. "$(dirname "$0")/_lib.sh"
gnu_get
deb_get llvm-mc-14 llvm-14=1:14.0.6-12 libllvm14=1:14.0.6-12
printf '.intel_syntax noprefix\nmov rax, [0x1122334455667788]\n' >t.s
{
    llvm-mc-14 --triple=x86_64 --show-encoding t.s 2>&1 | sed -n 's/^\tmovq/movq/p' | tr -s ' \t' ' '
    as --64 t.s -o t.o
    echo "gas $(objdump -d -M intel t.o | sed -n 's/^ *0:\t//p' | tr -s ' \t' ' ')"
} | see 'movq 1234605616436508552, %rax # encoding: [0x48,0x8b,0x04,0x25,0x88,0x77,0x66,0x55]
gas 48 a1 88 77 66 55 44 movabs rax,ds:0x1122334455667788'
