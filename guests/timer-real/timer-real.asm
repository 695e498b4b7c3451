; timer-real: ten ticks of the timer in real mode. The 8254 counts 1193 of its clocks, about
; a millisecond, and pulls IRQ 0; the 8259A makes it vector 8, and the CPU finds the handler
; in the interrupt vector table at 0. Each tick prints a dot; in between the CPU is halted.

PIC = 0x20
PIC_DATA = 0x21
COUNTER_0 = 0x40
TIMER_CONTROL = 0x43
DEBUG_CONSOLE = 0xe9
DEBUG_EXIT = 0xf4

VECTOR = 8                  ; of IRQ 0, as a PC's BIOS has it
ENTRY = 0x20                ; in the table: its offset, then its segment
TICKS = 10

start:
    mov word ptr [ENTRY], tick
    mov word ptr [ENTRY + 2], 0

    mov al, 0x11                    ; ICW1: edge triggered, cascaded, ICW4 follows
    out PIC, al
    mov al, VECTOR                  ; ICW2: the vector of IRQ 0
    out PIC_DATA, al
    mov al, 4                       ; ICW3: the other 8259A is at IRQ 2
    out PIC_DATA, al
    mov al, 1                       ; ICW4: 8086 mode
    out PIC_DATA, al
    mov al, 0xfe                    ; all masked but IRQ 0
    out PIC_DATA, al

    mov al, 0x34                    ; counter 0, low byte then high byte, mode 2
    out TIMER_CONTROL, al
    mov al, 0xa9                    ; 1193 = 0x4a9
    out COUNTER_0, al
    mov al, 0x04
    out COUNTER_0, al

wait:
    sti                             ; holds the interrupt off for one instruction more: a tick
    hlt                             ; cannot come between the two and leave the CPU halted
    cli
    cmp byte ptr [ticks], TICKS
    jb wait

    mov al, 0x0a
    out DEBUG_CONSOLE, al
    mov al, 0
    out DEBUG_EXIT, al
    hlt

tick:
    push ax
    cmp byte ptr [ticks], TICKS     ; in real time one more can come before the CLI
    jae served
    inc byte ptr [ticks]
    mov al, 0x2e                    ; .
    out DEBUG_CONSOLE, al
served:
    mov al, 0x20                    ; end of interrupt
    out PIC, al
    pop ax
    iret

ticks:
    .byte 0
