#!/usr/bin/env bash
# Question: what does GNU as make of "mov eax, dword [rax]" and "jmp far [rax]" (no "ptr") in .intel_syntax noprefix?
# Guess: it takes a missing "ptr" as NASM does, or refuses the line.
# Really: without a warning it adds the operator's number to the displacement: mov eax,[rax+4], byte adds 1, qword 8;
#   "jmp far [rax]" is the near jump jmp [rax+0xff06]. With "ptr" all is as expected.
# Version: binutils 2.40-2 (Debian)
# Date: 2026-12-01
# Meets: whoever carries boot code or test programs from NASM to gas
. "$(dirname "$0")/_lib.sh"
gnu_get
cat >t.s <<'S'
.intel_syntax noprefix
mov eax, dword [rax]
mov eax, dword ptr [rax]
mov al, byte [rax]
mov rax, qword [rax]
jmp far [rax]
S
as --fatal-warnings --64 t.s -o t.o
objdump -d -M intel t.o | sed -n 's/^ *[0-9a-f]*:\t[^\t]*\t//p' | tr -s ' ' | see 'mov eax,DWORD PTR [rax+0x4]
mov eax,DWORD PTR [rax]
mov al,BYTE PTR [rax+0x1]
mov rax,QWORD PTR [rax+0x8]
jmp QWORD PTR [rax+0xff06]'
