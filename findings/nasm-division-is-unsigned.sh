#!/usr/bin/env bash
# Question: what are -7/2 and -7 % 3 in a NASM expression?
# Guess: -3 and -1, as in C and in GNU as.
# Really: / and % are unsigned on 64 bits: the low 32 bits of -7/2 are FFFFFFFCh (-4), and -7 % 3 is 0; // and %% are the
#   signed ones. YASM, made as NASM's drop-in, divides signed with /. Documented in NASM's manual.
# Version: nasm 2.16.01-1, yasm 1.3.0-4, binutils 2.40-2 (Debian)
# Date: 2026-12-01
# Meets: boot code that computes offsets below a label; ports between the three assemblers
. "$(dirname "$0")/_lib.sh"
gnu_get
deb_get nasm nasm=2.16.01-1
deb_get yasm yasm=1.3.0-4
printf 'bits 32\ndd -7/2\ndd -7 %% 3\ndd -7//2\n' >t.asm
printf '.long -7/2\n.long -7 %% 3\n' >t.s
for tool in nasm yasm; do
    $tool -f bin t.asm -o t.bin 2>/dev/null
    echo $tool "$(od -An -td4 t.bin | tr -s ' ')"
done >saw
as --32 t.s -o t.o
objcopy -O binary -j .text t.o t.bin
echo gas "$(od -An -td4 t.bin | tr -s ' ')" >>saw
see 'nasm  -4 0 -3
yasm  -3 -1 -3
gas  -3 -1' <saw
