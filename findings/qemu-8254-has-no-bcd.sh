#!/usr/bin/env bash
# Question: which values does an 8254 counter in BCD mode (control word bit 0) take in QEMU, loaded with 9999h?
# Guess: BCD digits alone (data sheet: "Binary Coded Decimal Counter (4 Decades)").
# Really: it counts in binary: digits A to F are read. The bit is kept for the status byte and has no other effect.
# Version: qemu-system-x86 1:7.2+dfsg-7+deb12u18+b3 (Debian)
# Date: 2026-12-01
# Meets: old software with BCD timers, and who takes QEMU for the reference of a timer model
. "$(dirname "$0")/_lib.sh"
. "$HERE/_boot.sh"
# First the status (31h: BCD, mode 0), then 01 when one of 2000 readings had a units digit of A to F.
boot <<'S' | see '31 01'
    in al, 0x61         ; gate of counter 2 on
    or al, 1
    out 0x61, al
    mov al, 0xb1        ; counter 2, low then high byte, mode 0, BCD
    out 0x43, al
    mov al, 0x99
    out 0x42, al
    out 0x42, al
    mov al, 0xe8        ; read back: status
    out 0x43, al
    in al, 0x42
    and al, 0x3f
    call byte_
    xor bl, bl
    mov cx, 2000
.next:
    mov al, 0x80        ; latch
    out 0x43, al
    in al, 0x42
    and al, 15
    cmp al, 10
    jb .decimal
    mov bl, 1
.decimal:
    in al, 0x42
    loop .next
    mov al, bl
    call byte_
S
