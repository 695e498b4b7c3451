; timer-user: ten ticks of the timer find user code at CPL 3, which spins. The first five are
; taken on the stack that the TSS has for CPL 0 (RSP0), the others on one of its interrupt
; stacks (IST1). Each prints the privilege level that it interrupted.

PIC = 0x20
PIC_DATA = 0x21
COUNTER_0 = 0x40
TIMER_CONTROL = 0x43
POST_CODE = 0x80            ; the one port that user code may read
DEBUG_CONSOLE = 0xe9
DEBUG_EXIT = 0xf4

PML4 = 0x10000
PDPT = 0x11000
DIRECTORY = 0x12000
STACK_0 = 0xa000            ; the tops of the stacks
STACK_IST = 0xb000
STACK_USER = 0xc000
IDT = 0x6000
TSS = 0x97000               ; where the start in mode l64 has it: RSP0 at 4, IST1 at 0x24, then
BITMAP = 0x97068            ; the I/O permission bitmap, all ones
VECTOR = 0x20
GATE = 0x6200               ; 16 bytes a vector
CODE64 = 0x10
USER_DATA = 0x2b
USER_CODE = 0x33
TICKS = 10

.code64
start:
    mov qword ptr [PML4], 0x11007           ; present, writable, the user's: the first 2 MiB
    mov qword ptr [PDPT], 0x12007
    mov qword ptr [DIRECTORY], 0x87
    mov eax, PML4
    mov cr3, rax

    mov qword ptr [TSS + 4], STACK_0
    mov qword ptr [TSS + 0x24], STACK_IST
    and byte ptr [BITMAP + 0x10], 0xfe     ; 0x80 = 8 * 0x10

    mov eax, tick
    mov [GATE], ax
    mov word ptr [GATE + 2], CODE64
    mov word ptr [GATE + 4], 0x8e00
    lidt [idt_register]

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
    mov al, 0x77                    ; 119 clocks, a tenth of a millisecond
    out COUNTER_0, al
    mov al, 0
    out COUNTER_0, al

    ; IRETQ to CPL 3 clears data segments that belong to the supervisor: load the user's.
    mov eax, USER_DATA
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    push USER_DATA
    push STACK_USER
    push 0x202                      ; interrupts on
    push USER_CODE
    push user
    iretq

user:
    in al, POST_CODE
    jmp user

tick:
    push rax
    mov rax, [rsp + 16]             ; CS of whom it interrupted
    and al, 3
    add al, 0x30
    out DEBUG_CONSOLE, al
    mov al, 0x20                    ; end of interrupt
    out PIC, al
    inc byte ptr [ticks]
    cmp byte ptr [ticks], TICKS / 2
    jne same_stack
    mov byte ptr [GATE + 4], 1     ; IST1 from now on
same_stack:
    cmp byte ptr [ticks], TICKS
    je over
    pop rax
    iretq
over:
    mov al, 0x0a
    out DEBUG_CONSOLE, al
    mov al, 0
    out DEBUG_EXIT, al
    hlt

ticks:
    .byte 0
idt_register:
    .word 0x20f                     ; up to vector 0x20
    .quad IDT
