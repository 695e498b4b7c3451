; traps-32: software interrupts of 32-bit code, and IRET, at CPL 0 and from CPL 3. Each handler
; prints its vector, then an error code if there is one, then the CPL that it interrupted. A ! says
; that the saved EIP is wrong, or a frame of user code without its stack. EBP holds what EIP must
; be, EBX where IRET goes on.

DEBUG_CONSOLE = 0xe9
DEBUG_EXIT = 0xf4
IDT = 0x6000
STACK_0 = 0x7000
STACK_USER = 0x7800
TSS_ESP0 = 0x97004          ; in the TSS of the start in mode p32

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
    mov word ptr [edi + 4], \rights
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

.code32
start:
    gate bp, 0x6018, 0xee00                 ; DPL 3: user code may use it
    gate of, 0x6020, 0x8e00
    gate br, 0x6028, 0x8e00
    gate np, 0x6058, 0x8e00
    gate gp, 0x6068, 0x8e00
    gate user, 0x6100, 0xef00               ; vector 20h, a trap gate, DPL 3
    gate mine, 0x6108, 0x8e00               ; vector 21h, the supervisor's
    gate gone, 0x6110, 0x0e00               ; vector 22h, not present
    lidt [idt_register]
    mov dword ptr [TSS_ESP0], STACK_0

    trap breakpoint
    int3                                    ; #BP
breakpoint:

    trap overflow
    mov al, 0x7f
    add al, 1
    into                                    ; #OF
overflow:

    mov eax, 8
    fault outside
outside:
    bound eax, [range]                      ; #BR, a fault
after_outside:

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
    push 0x23
    mov ecx, user                           ; keystone makes PUSH of a label 16 bits wide
    push ecx
    iretd

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
    mov [edi], ax
    mov word ptr [edi + 2], 0x08
    ret

    stub bp, 3, 0
    stub of, 4, 0
    stub br, 5, 0
    stub np, 11, 1
    stub gp, 13, 1
    stub user, 32, 0
    stub mine, 33, 0
    stub gone, 34, 0

; On the stack: vector, error code or 7Fh, EIP, CS, EFLAGS, and of user code ESP, SS.
common:
    mov al, [esp]
    call byte_out
    cmp dword ptr [esp + 4], 0x7f
    je no_code
    mov al, 0x3a                            ; :
    out DEBUG_CONSOLE, al
    mov al, [esp + 5]
    call byte_out
    mov al, [esp + 4]
    call byte_out
no_code:
    mov al, 0x2f                            ; /
    out DEBUG_CONSOLE, al
    mov al, [esp + 12]
    and al, 3
    call digit_out
    cmp [esp + 8], ebp
    jne wrong
    test byte ptr [esp + 12], 3
    jz right
    cmp dword ptr [esp + 20], STACK_USER
    jne wrong
    cmp dword ptr [esp + 24], 0x2b
    je right
wrong:
    mov al, 0x21                            ; !
    out DEBUG_CONSOLE, al
right:
    mov al, 0x0a
    out DEBUG_CONSOLE, al
    test ebx, ebx
    jz over
    mov [esp + 8], ebx
    add esp, 8
    iretd
over:
    mov al, 0
    out DEBUG_EXIT, al
    hlt

byte_out:
    push eax
    shr al, 4
    call digit_out
    pop eax
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
range:
    .long -5, 7
idt_register:
    .word 0x117                             ; up to vector 22h
    .long IDT
