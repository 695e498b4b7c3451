#!/usr/bin/env bash
# Question: what does IN AX from fw_cfg's data port 511h read, with the signature "QEMU" selected, in QEMU?
# Guess: two bytes, "QE", as an 8-bit ISA device answers a 16-bit access: as two of 8 bits. Or one byte and FFh.
# Really: 0, and nothing is consumed: the next IN AL reads "Q". The port takes 8-bit reads alone; REP INSB works.
# Version: qemu-system-x86 1:7.2+dfsg-7+deb12u18+b3 (Debian)
# Date: 2026-12-01
# Meets: firmware and kernels that read fw_cfg without the DMA interface, and VMMs that offer the device
. "$(dirname "$0")/_lib.sh"
. "$HERE/_boot.sh"
boot <<'S' | see '0000 51 45 4D 55'
    mov dx, 0x510
    xor ax, ax
    out dx, ax
    inc dx
    in ax, dx
    call word_
    mov cx, 4
.next:
    in al, dx
    call byte_
    loop .next
S
