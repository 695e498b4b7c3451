#!/usr/bin/env bash
# Question: does QEMU's -kernel load a Multiboot kernel whose header asks for a feature that no version defines (flags bit 3)?
# Guess: no: of bits 0-15 a loader must refuse what it does not know (Multiboot 0.6.96, section 3.1.2).
# Really: it is loaded and run with no word; with bit 2 (video mode) QEMU says that it has none and runs it all the same.
# Version: qemu-system-x86 1:7.2+dfsg-7+deb12u18+b3, nasm 2.16.01-1 (Debian)
# Date: 2026-12-01
# Meets: kernels that rely on a mandatory flag, and loaders that are tested against QEMU
. "$(dirname "$0")/_lib.sh"
deb_here qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3
deb_get nasm nasm=2.16.01-1
cat >kernel.asm <<'S'
bits 32
org 0x100000
header:
    dd 0x1BADB002, FLAGS, -(0x1BADB002 + FLAGS)
    dd header, 0x100000, 0, 0, start
start:
    mov al, 'R'
    out 0xe9, al
    mov al, 0
    out 0xf4, al
    hlt
S
for flags in 0x10000 0x10008 0x10004; do
    nasm -f bin -DFLAGS=$flags kernel.asm -o kernel
    rm -f out
    timeout 100 qemu-system-x86_64 -accel tcg -display none -nodefaults -kernel kernel -debugcon file:out \
        -device isa-debug-exit,iobase=0xf4,iosize=1 2>said || true
    echo "$flags ran: $(cat out) said: $(cut -d: -f2- said)"
done | see "0x10000 ran: R said: 
0x10008 ran: R said: 
0x10004 ran: R said:  multiboot knows VBE. we don't"
