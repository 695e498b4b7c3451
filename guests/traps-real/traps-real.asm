; traps-real: what real mode has beside `faults-real`, and some KVMs do not emulate: BOUND, and
; software interrupts from 80h on. It prints each vector.

DEBUG_CONSOLE = 0xe9
DEBUG_EXIT = 0xf4

start:
    mov word ptr [0x14], bound_range        ; vectors 5, 80h and FFh: offset, segment 0
    mov word ptr [0x200], int_80
    mov word ptr [0x3fc], int_ff

    mov ax, 5
    bound ax, [range]                       ; within: nothing happens
    mov ax, -6
    mov bx, outside
outside:
    bound ax, [range]                       ; #BR, a fault: the handler makes AX fit, and IRET
    int 0x80                                ; executes it again
    int 0xff
    mov al, 0
    out DEBUG_EXIT, al
    hlt

bound_range:
    mov bp, sp
    cmp [bp], bx                            ; the saved IP
    jne wrong
    mov al, 0x42                            ; B
    out DEBUG_CONSOLE, al
    mov ax, 7
    iret
int_80:
    mov al, 0x38                            ; 8
    out DEBUG_CONSOLE, al
    iret
int_ff:
    mov al, 0x66                            ; f
    out DEBUG_CONSOLE, al
    iret
wrong:
    mov al, 1
    out DEBUG_EXIT, al
    hlt

.balign 4, 0
range:
    .word -5, 7                             ; both ends are within
