#!/usr/bin/env bash
# Question: does ndisasm read back what nasm makes of a ZMM instruction with embedded rounding?
# Guess: yes, they share one table: vaddps zmm0,zmm0,zmm0,{rz-sae}.
# Really: it reads vaddps xmm0,xmm0,xmm0 with no rounding: with EVEX.b the L'L bits are the rounding mode and the length
#   is 512 bits (SDM vol. 2, EVEX embedded rounding), but ndisasm takes them as the length. What it prints assembles to another instruction.
# Version: nasm 2.16.01-1 (Debian)
# Date: 2026-12-01
# Meets: emulator authors who check AVX-512 encodings with the usual pair nasm and ndisasm
. "$(dirname "$0")/_lib.sh"
deb_get nasm nasm=2.16.01-1
printf 'bits 64\nvaddps zmm0, zmm0, zmm0, {rz-sae}\nvaddps zmm0, zmm0, zmm0\n' >t.asm
nasm -f bin t.asm -o t.bin
ndisasm -b 64 t.bin | tr -s ' ' | cut -d ' ' -f 2- | see '62F17C7858C0 vaddps xmm0,xmm0,xmm0
62F17C4858C0 vaddps zmm0,zmm0,zmm0'
