#!/usr/bin/env bash
# Question: which addresses does a kernel load at that is linked with ld -m elf_i386 -Ttext 0x100000?
# Guess: 100000h and up: all there is, is .text.
# Really: a first PT_LOAD holds the ELF headers at FF000h, a page below: in the BIOS's segment on a PC, where a loader may have
#   ROM. -N (or -n) leaves it out.
# Version: binutils 2.40-2 (Debian)
# Date: 2026-12-01
# Meets: small kernels for QEMU -kernel, Multiboot loaders and VMMs
. "$(dirname "$0")/_lib.sh"
gnu_get
deb_get ld binutils=2.40-2
printf '.globl _start\n_start: hlt\n' >t.s
as --32 t.s -o t.o
for flags in "" -n -N; do
    ld -m elf_i386 $flags -Ttext 0x100000 -o t.elf t.o 2>/dev/null
    echo ld $flags $(readelf -lW t.elf | awk '$1 == "LOAD" {print $4 "+" $6}')
done | see 'ld 0x000ff000+0x00074 0x00100000+0x00001
ld -n 0x00100000+0x00001
ld -N 0x00100000+0x00001'
