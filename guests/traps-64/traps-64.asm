; traps-64: software interrupts of 64-bit code, at CPL 0 and from CPL 3. Each handler
; prints its vector, then an error code if there is one, then the CPL that it interrupted. A ! says
; that the saved RIP is wrong, or a frame of user code without its stack. RBP holds what RIP must
; be, RBX where IRETQ goes on.

DEBUG_CONSOLE = 0xe9
DEBUG_EXIT = 0xf4
IDT = 0x6000
PML4 = 0x10000
PDPT = 0x11000
DIRECTORY = 0x12000
STACK_0 = 0x7000
STACK_USER = 0x7800
TSS_RSP0 = 0x97004          ; in the TSS of the start in mode l64

; `code` is 1 for an exception that pushes an error code; the others get 7Fh, which no code is.
.macro stub name, vector, code
stub_\name:
    .if \code == 0
    push 0x7f
    .endif
    push \vector
    jmp common
.endm
.macro gate name, at, rights
    mov edi, \at
    mov eax, stub_\name
    mov word ptr [rdi + 4], \rights
    call set_gate
.endm
; The instruction at `name` faults, and it goes on behind it.
.macro fault name
    mov ebp, \name
    mov ebx, after_\name
.endm
; The instruction before `name` is a trap, and it goes on there.
.macro trap name
    mov ebp, \name
    mov ebx, \name
.endm

.code64
start:
    mov qword ptr [PML4], 0x11007           ; present, writable, the user's: the first 2 MiB
    mov qword ptr [PDPT], 0x12007
    mov qword ptr [DIRECTORY], 0x87
    mov eax, PML4
    mov cr3, rax

    gate bp, 0x6030, 0xee00                 ; DPL 3: user code may use it
    gate np, 0x60b0, 0x8e00
    gate gp, 0x60d0, 0x8e00
    gate user, 0x6200, 0xef00               ; vector 20h, a trap gate, DPL 3
    gate mine, 0x6210, 0x8e00               ; vector 21h, the supervisor's
    gate gone, 0x6220, 0x0e00               ; vector 22h, not present
    lidt [idt_register]
    mov qword ptr [TSS_RSP0], STACK_0

    trap breakpoint
    int3                                    ; #BP
breakpoint:

    trap interrupt
    int 0x20
interrupt:

    fault absent
absent:
    int 0x22                                ; #NP(22h * 8 + 2): an entry of the IDT
after_absent:

    fault beyond
beyond:
    int 0x80                                ; #GP(80h * 8 + 2): behind the end of the IDT
after_beyond:

    mov eax, 0x2b
    mov ds, eax
    mov es, eax
    push 0x2b
    push STACK_USER
    push 2
    push 0x33
    push user
    iretq

user:
    trap user_breakpoint
    int3                                    ; #BP: its gate is the user's
user_breakpoint:

    trap user_interrupt
    int 0x20
user_interrupt:

    fault forbidden
forbidden:
    int 0x21                                ; #GP(21h * 8 + 2): its gate is not
after_forbidden:

    fault user_hlt
user_hlt:
    hlt                                     ; #GP(0)
after_user_hlt:

    trap last
    xor ebx, ebx                            ; that ends it
    int 0x20
last:

set_gate:
    mov [rdi], ax
    mov word ptr [rdi + 2], 0x10
    ret

    stub bp, 3, 0
    stub np, 11, 1
    stub gp, 13, 1
    stub user, 32, 0
    stub mine, 33, 0
    stub gone, 34, 0

; On the stack: vector, error code or 7Fh, RIP, CS, RFLAGS, RSP, SS.
common:
    mov al, [rsp]
    call byte_out
    cmp qword ptr [rsp + 8], 0x7f
    je no_code
    mov al, 0x3a                            ; :
    out DEBUG_CONSOLE, al
    mov al, [rsp + 9]
    call byte_out
    mov al, [rsp + 8]
    call byte_out
no_code:
    mov al, 0x2f                            ; /
    out DEBUG_CONSOLE, al
    mov al, [rsp + 24]
    and al, 3
    call digit_out
    cmp [rsp + 16], rbp
    jne wrong
    test byte ptr [rsp + 24], 3
    jz right
    cmp qword ptr [rsp + 40], STACK_USER
    jne wrong
    cmp qword ptr [rsp + 48], 0x2b
    je right
wrong:
    mov al, 0x21                            ; !
    out DEBUG_CONSOLE, al
right:
    mov al, 0x0a
    out DEBUG_CONSOLE, al
    test rbx, rbx
    jz over
    mov [rsp + 16], rbx
    add rsp, 16
    iretq
over:
    mov al, 0
    out DEBUG_EXIT, al
    hlt

byte_out:
    push rax
    shr al, 4
    call digit_out
    pop rax
digit_out:
    and al, 15
    add al, 0x30
    cmp al, 0x3a
    jb decimal
    add al, 0x27
decimal:
    out DEBUG_CONSOLE, al
    ret

.balign 8, 0
idt_register:
    .word 0x22f                             ; up to vector 22h
    .quad IDT
