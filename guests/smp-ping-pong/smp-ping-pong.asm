; smp-ping-pong: two CPUs take turns. The first wakes the second through its local APIC, by INIT
; and STARTUP (SDM vol. 3, 8.4.4.1); then each waits for its turn, prints its letter, and gives
; the turn to the other. The second begins in real mode at the page that STARTUP names: this one.

DEBUG_CONSOLE = 0xe9
DEBUG_EXIT = 0xf4
APIC_SPURIOUS = 0xfee000f0  ; bit 8 switches the local APIC on
APIC_COMMAND = 0xfee00300
INIT = 0xc4500              ; to all others: INIT, and STARTUP at page 8
STARTUP = 0xc4608
TURN = 0x7e00               ; counts the letters: even is the first CPU's turn
ROUNDS = 40

.code16
second:
    xor ax, ax
    mov ds, ax
pong:
    pause
    test byte ptr [TURN], 1
    jz pong
    mov al, 0x42                            ; B
    out DEBUG_CONSOLE, al
    inc byte ptr [TURN]
    cmp byte ptr [TURN], ROUNDS
    jb pong
    cli
    hlt

.balign 256, 0
.code32
start:
    mov dword ptr [APIC_SPURIOUS], 0x1ff
    mov dword ptr [APIC_COMMAND], INIT
    mov dword ptr [APIC_COMMAND], STARTUP   ; a CPU of silicon wants 10 ms before this
ping:
    pause
    test byte ptr [TURN], 1
    jnz ping
    cmp byte ptr [TURN], ROUNDS
    je over
    mov al, 0x41                            ; A
    out DEBUG_CONSOLE, al
    inc byte ptr [TURN]
    jmp ping
over:
    mov al, 0x0a
    out DEBUG_CONSOLE, al
    mov al, 0
    out DEBUG_EXIT, al
    hlt
