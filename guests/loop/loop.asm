; loop: count down from 2020 and halt. It touches nothing outside the CPU, so the only
; exit is the HLT: 4042 instructions (1 + 2 * 2020 + 1) go by without the VMM.

    mov ax, 2020
loop:
    dec ax
    jnz loop
    hlt
