; timer-long: ten ticks of the timer in 64-bit supervisor code. The interrupt controllers are
; given the vectors 0x20 to 0x2f, out of the way of the CPU's exceptions, and IRQ 0 comes
; through a 64-bit interrupt gate. Half of the ticks find the CPU halted, half spinning.

PIC = 0x20
PIC_DATA = 0x21
PIC2 = 0xa0
PIC2_DATA = 0xa1
COUNTER_0 = 0x40
TIMER_CONTROL = 0x43
POST_CODE = 0x80            ; read by the loop that spins
DEBUG_CONSOLE = 0xe9
DEBUG_EXIT = 0xf4

IDT = 0x6000
VECTOR = 0x20
GATE = 0x6200               ; 16 bytes a vector
CODE64 = 0x10
TICKS = 10

.code64
start:
    ; A gate: offset 15:0, selector, type 14 (interrupt gate) and present, offset 63:16.
    mov eax, tick
    mov [GATE], ax
    mov word ptr [GATE + 2], CODE64
    mov word ptr [GATE + 4], 0x8e00
    lidt [idt_register]

    mov al, 0x11                    ; ICW1: edge triggered, cascaded, ICW4 follows
    out PIC, al
    out PIC2, al
    mov al, VECTOR                  ; ICW2: the vector of the first line
    out PIC_DATA, al
    mov al, VECTOR + 8
    out PIC2_DATA, al
    mov al, 4                       ; ICW3: the second one is at line 2 of the first
    out PIC_DATA, al
    mov al, 2
    out PIC2_DATA, al
    mov al, 1                       ; ICW4: 8086 mode
    out PIC_DATA, al
    out PIC2_DATA, al
    mov al, 0xfe                    ; all masked but IRQ 0
    out PIC_DATA, al
    mov al, 0xff
    out PIC2_DATA, al

    mov al, 0x34                    ; counter 0, low byte then high byte, mode 2
    out TIMER_CONTROL, al
    mov al, 0x77                    ; 119 clocks, a tenth of a millisecond
    out COUNTER_0, al
    mov al, 0
    out COUNTER_0, al

halted:
    sti
    hlt
    cli
    cmp byte ptr [ticks], TICKS / 2
    jb halted

    sti
spins:
    in al, POST_CODE
    cmp byte ptr [ticks], TICKS
    jb spins
    cli

    mov al, 0x0a
    out DEBUG_CONSOLE, al
    mov al, 0
    out DEBUG_EXIT, al
    hlt

tick:
    push rax
    cmp byte ptr [ticks], TICKS     ; in real time one more can come before the CLI
    jae served
    inc byte ptr [ticks]
    mov al, 0x2e                    ; .
    out DEBUG_CONSOLE, al
served:
    mov al, 0x20                    ; end of interrupt
    out PIC, al
    pop rax
    iretq

ticks:
    .byte 0
idt_register:
    .word 0x2ff                     ; 48 gates
    .quad IDT
