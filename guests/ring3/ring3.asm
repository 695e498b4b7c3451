; ring3: from 64-bit supervisor code down to user code by IRETQ. The page tables let ring 3
; touch three pages only: its code, its stack and the devices' page at 0x1000. It prints
; through CharOut (MMIO), computes with SSE, and ends by the one port that the TSS's I/O
; permission bitmap opens: debug exit. The status is its privilege level, 3.

CHAR_OUT = 0x1020
DEBUG_EXIT = 0xf4

PML4 = 0x10000
PDPT = 0x11000
DIRECTORY = 0x12000
TABLE = 0x13000             ; 512 entries of 4 KiB: the first 2 MiB
STACK_PAGE = 0xa000
TSS = 0x7000                ; 104 bytes, the bitmap of ports 0 to 0xff, and a byte of ones
SUPERVISOR = 3              ; present, writable
USER = 7

.code64
start:
    ; All of the first 2 MiB onto itself, for the supervisor.
    cld
    mov edi, PML4
    xor eax, eax
    mov ecx, 0x600
    rep stosq
    mov qword ptr [PML4], 0x11007       ; the rights of all levels count: the user's are
    mov qword ptr [PDPT], 0x12007       ; taken away in the last table
    mov qword ptr [DIRECTORY], 0x13007
    mov edi, TABLE
    mov eax, SUPERVISOR
    mov ecx, 512
fill:
    stosq
    add rax, 0x1000
    loop fill
    mov byte ptr [TABLE + 8 * 1], USER          ; 0x1000: the devices
    mov byte ptr [TABLE + 8 * 9], USER          ; 0x9000: the user's code
    mov byte ptr [TABLE + 8 * 10], USER         ; 0xa000: the user's stack
    mov eax, PML4
    mov cr3, rax

    ; A task register, so that the CPU finds the I/O permission bitmap. The bitmap is all
    ; ones (closed) but for bit 0xf4.
    lgdt [gdt_register]
    mov word ptr [TSS + 0x66], 0x68             ; where the bitmap starts
    mov edi, TSS + 0x68
    mov eax, 0xff
    mov ecx, 33                                 ; 256 ports, and the closing byte
    rep stosb
    and byte ptr [TSS + 0x68 + 0x1e], 0xef        ; 0xf4 = 8 * 0x1e + 4
    mov eax, 0x40
    ltr ax

    ; IRETQ to ring 3 clears data segments that belong to the supervisor: load the user's.
    mov eax, 0x2b
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax

    ; What IRETQ pops: RIP, CS, RFLAGS, RSP, SS.
    push 0x2b
    push STACK_PAGE + 0x1000
    push 2
    push 0x33
    push 0x9000
    iretq

.balign 8, 0
gdt:
    .quad 0
    .quad 0
    .quad 0x00af9b000000ffff    ; 0x10: supervisor code, 64-bit
    .quad 0x00cf93000000ffff    ; 0x18: supervisor data
    .quad 0
    .quad 0x00cff3000000ffff    ; 0x28: user data (0x2b with RPL 3)
    .quad 0x00affb000000ffff    ; 0x30: user code, 64-bit (0x33)
    .quad 0
    .quad 0x0000890070000088    ; 0x40: TSS, limit 0x88
    .quad 0
gdt_register:
    .word 79
    .quad gdt

; The user's code has a page of its own.
.balign 0x1000, 0
user:
    mov rsi, text
next:
    lodsb
    test al, al
    jz printed
    mov [CHAR_OUT], al
    jmp next
printed:
    ; SSE2: four sums at once, the last one carries over its end.
    movdqu xmm0, xmmword ptr [numbers]
    movdqu xmm1, xmmword ptr [numbers + 16]
    paddd xmm0, xmm1
    movdqu xmmword ptr [STACK_PAGE], xmm0
    ; And two products in double precision, which are exact.
    movupd xmm2, xmmword ptr [factors]
    mulpd xmm2, xmm2
    movupd xmmword ptr [STACK_PAGE + 16], xmm2
    mov eax, cs
    and eax, 3
    out DEBUG_EXIT, al
    ud2                     ; HLT is not for ring 3: had the machine gone on, it would fault

text: .asciz "Hello from ring 3\n"
.balign 16, 0
numbers:
    .long 1, 2, 3, 0xffffffff
    .long 10, 20, 30, 2
factors:
    .quad 0x3ff8000000000000    ; 1.5
    .quad 0xc008000000000000    ; -3.0
