#!/usr/bin/env bash
# Question: what does keystone make of [rax+rsp] in 64-bit code, and of [eax*4] in 16-bit code?
# Guess: [rsp+rax], since the order of base and index is free where there is no scale; 67h and a SIB byte with EAX*4.
# Really: RSP becomes the index, whose number 4 means "none": the access is to [rax]. In 16-bit code EAX*4 is lost
#   altogether: [0]. No error in either case; GNU as has both right.
# Version: keystone-engine 0.9.2, iced-x86 1.21.0 to read the bytes
# Date: 2026-12-01
# Meets: whoever writes test guests, patches or shellcode with keystone
. "$(dirname "$0")/_lib.sh"
pip_get keystone-engine==0.9.2 iced-x86==1.21.0
py - <<'P' | see '64 mov rax, [rsp+rax] 488b0404 mov rax,[rsp+rax]
64 mov rax, [rax+rsp] 488b0420 mov rax,[rax]
64 mov [rbx+rsp], al 880423 mov [rbx],al
32 mov eax, [eax+esp] 8b0420 mov eax,[eax]
16 mov eax, [ebx+eax*4] 67668b0483 mov eax,[ebx+eax*4]
16 mov eax, [eax*4] 668b060000 mov eax,ds:[0]'
import iced_x86, keystone
modes = {16: keystone.KS_MODE_16, 32: keystone.KS_MODE_32, 64: keystone.KS_MODE_64}
for line in (
    "64 mov rax, [rsp+rax]", "64 mov rax, [rax+rsp]", "64 mov [rbx+rsp], al",
    "32 mov eax, [eax+esp]", "16 mov eax, [ebx+eax*4]", "16 mov eax, [eax*4]",
):
    bits, text = int(line[:2]), line[3:]
    code = bytes(keystone.Ks(keystone.KS_ARCH_X86, modes[bits]).asm(text)[0])
    print(line, code.hex(), iced_x86.Decoder(bits, code).decode())
P
