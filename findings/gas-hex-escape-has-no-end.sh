#!/usr/bin/env bash
# Question: which bytes does GNU as make of .ascii "\x4142" and of .ascii "\8"?
# Guess: "A42" (41 34 32), as NASM and Python read it, and an error.
# Really: 42: all hex digits that follow belong to the escape and the low byte is kept, with no warning; \8 is taken as an
#   octal digit: 08. The manual shows \x without saying where it ends.
# Version: binutils 2.40-2, nasm 2.16.01-1 (Debian)
# Date: 2026-12-01
# Meets: signatures and messages in boot code, such as "\x7fELF"-like magics with a hex digit after the escape
. "$(dirname "$0")/_lib.sh"
gnu_get
deb_get nasm nasm=2.16.01-1
cat >t.s <<'S'
.ascii "\x4142"
.byte 0xff
.ascii "\8"
S
as --64 --fatal-warnings t.s -o t.o
printf 'db `\\x4142`\n' >t.asm
nasm -f bin t.asm -o t.bin
{
    echo gas $(objdump -s -j .text t.o | awk '/^ 0000/ {print $2}')
    echo nasm $(od -An -tx1 t.bin)
} | see 'gas 42ff08
nasm 41 34 32'
