#!/usr/bin/env bash
# Question: what is bit 6 (null count) of the 8254's status in QEMU after a control word, before any count is written?
# Guess: 1, and 0 when the count has been loaded (data sheet, "Null Count Operation").
# Really: always 0, also when half of the count is written; the other bits are right.
# Version: qemu-system-x86 1:7.2+dfsg-7+deb12u18+b3 (Debian)
# Date: 2026-12-01
# Meets: drivers that wait for the count to be loaded, and tests of timer models that compare with QEMU
. "$(dirname "$0")/_lib.sh"
. "$HERE/_boot.sh"
boot <<'S' | see 'B0 B0 30'
%macro status 0
    mov al, 0xe8        ; read back: status of counter 2
    out 0x43, al
    in al, 0x42
    call byte_
%endmacro
    mov al, 0xb0        ; counter 2, low then high byte, mode 0
    out 0x43, al
    status
    mov al, 0x34
    out 0x42, al
    status
    mov al, 0x12
    out 0x42, al
    status
S
