; serial-echo: the serial port by interrupt. Each character that comes pulls IRQ 4, whose
; handler sends it back; a 'q' ends it. Between two characters the CPU is halted.

PIC = 0x20
PIC_DATA = 0x21
COM1 = 0x3f8
COM1_INTERRUPTS = 0x3f9
COM1_LINE = 0x3fb
COM1_MODEM = 0x3fc
COM1_STATUS = 0x3fd
DEBUG_EXIT = 0xf4

VECTOR = 8                  ; of IRQ 0, as a PC's BIOS has it
ENTRY = 0x30                ; of IRQ 4 in the table: its offset, then its segment

start:
    mov word ptr [ENTRY], received
    mov word ptr [ENTRY + 2], 0

    mov al, 0x11                    ; ICW1: edge triggered, cascaded, ICW4 follows
    out PIC, al
    mov al, VECTOR                  ; ICW2: the vector of IRQ 0
    out PIC_DATA, al
    mov al, 4                       ; ICW3: the other 8259A is at IRQ 2
    out PIC_DATA, al
    mov al, 1                       ; ICW4: 8086 mode
    out PIC_DATA, al
    mov al, 0xef                    ; all masked but IRQ 4
    out PIC_DATA, al

    mov dx, COM1_LINE
    mov al, 3                       ; 8 bits, no parity, one stop bit
    out dx, al
    mov dx, COM1_MODEM
    mov al, 0x0b                    ; DTR, RTS, and OUT2, which lets the interrupt out
    out dx, al
    mov dx, COM1_INTERRUPTS
    mov al, 1                       ; received data
    out dx, al

wait:
    sti
    hlt
    cli
    cmp byte ptr [over], 0
    je wait
    mov al, 0
    out DEBUG_EXIT, al
    hlt

received:
    push ax
    push dx
    cmp byte ptr [over], 0          ; an edge that the controller kept from before the end
    jne served
another:                            ; the line is edge triggered: leave no character behind
    mov dx, COM1_STATUS
    in al, dx
    test al, 1
    jz served
    mov dx, COM1
    in al, dx
    out dx, al
    cmp al, 0x71                    ; q
    jne another
    mov byte ptr [over], 1
    mov dx, COM1_INTERRUPTS         ; nothing more is to be heard
    mov al, 0
    out dx, al
served:
    mov al, 0x20                    ; end of interrupt
    out PIC, al
    pop dx
    pop ax
    iret

over:
    .byte 0
