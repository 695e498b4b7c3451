#!/usr/bin/env bash
# Question: does llvm-mc in Intel syntax heed the size in "push dword ptr 5" (.code16) and "push word ptr 5" (.code64)?
# Guess: yes, with the prefix 66, as GNU as does (66 6a 05), or it says that it cannot.
# Really: the size is dropped without a word: 6a 05, which pushes 2 bytes in 16-bit code and 8 in 64-bit code. Yet in 16-bit
#   code a plain "ret" gets a 66 that nobody asked for and pops 4 bytes.
# Version: llvm-14 1:14.0.6-12, binutils 2.40-2 (Debian)
# Date: 2026-12-01
# Meets: writers of boot sectors and of BIOS code that builds frames for IRETD; keystone inherits it
. "$(dirname "$0")/_lib.sh"
gnu_get
deb_get llvm-mc-14 llvm-14=1:14.0.6-12 libllvm14=1:14.0.6-12
encode() {
    printf '.intel_syntax noprefix\n%s\n' "$2" >t.s
    echo "llvm-mc $1: $2: $(llvm-mc-14 --show-encoding --triple="$1" t.s | sed -n 's/.*encoding: //p')"
    printf '.code%s\n' "${3}" | cat - t.s >u.s
    as "$4" u.s -o u.o
    echo "gas: $(objdump -s -j .text u.o | awk '/^ 0000/ {print $2}')"
}
{
    encode i386-none-code16 'push dword ptr 5' 16 --32
    encode x86_64 'push word ptr 5' 64 --64
    encode i386-none-code16 ret 16 --32
} | see 'llvm-mc i386-none-code16: push dword ptr 5: [0x6a,0x05]
gas: 666a05
llvm-mc x86_64: push word ptr 5: [0x6a,0x05]
gas: 666a05
llvm-mc i386-none-code16: ret: [0x66,0xc3]
gas: c3'
