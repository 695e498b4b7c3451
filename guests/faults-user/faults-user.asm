; faults-user: the exceptions of 64-bit user code, one after the other. The handlers, at CPL 0,
; print the vector, and where there is one the error code; for #PF also the low 16 bits of CR2. A
; ! says that the saved RIP or CS is wrong. RBP holds what RIP must be, RBX where IRETQ goes
; on; 0 ends it.

DEBUG_CONSOLE = 0xe9
DEBUG_EXIT = 0xf4

PML4 = 0x10000
PDPT = 0x11000
DIRECTORY = 0x12000
TABLE = 0x13000             ; 512 entries of 4 KiB
TABLE_9 = 0x13048           ; of the user's code, at 0x9000
TABLE_10 = 0x13050          ; of the user's stack
TABLE_11 = 0x13058          ; of the page that the user may read
STACK_0 = 0x7000            ; the tops of the stacks
STACK_USER = 0xb000
TSS_RSP0 = 0x97004          ; in the TSS of the start in mode l64
IDT = 0x6000
READ_ONLY = 0xb800
FORBIDDEN = 0x5000
NOWHERE = 0x1ff123

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
    lea rbp, [rip + \name]
    lea rbx, [rip + after_\name]
.endm
; The instruction before `name` is a trap, and it goes on there.
.macro trap name
    lea rbp, [rip + \name]
    lea rbx, [rip + \name]
.endm

.code64
start:
    mov edi, TABLE
    mov eax, 3                              ; the supervisor's
    mov ecx, 512
    cld
fill:
    stosq
    add rax, 0x1000
    loop fill
    mov qword ptr [TABLE + 0xff8], 0        ; the last page is missing
    mov qword ptr [PML4], 0x11007
    mov qword ptr [PDPT], 0x12007
    mov qword ptr [DIRECTORY], 0x13007
    mov byte ptr [TABLE_9], 7               ; the user's, writable
    mov byte ptr [TABLE_10], 7
    mov byte ptr [TABLE_11], 5              ; the user's, to be read
    mov eax, PML4
    mov cr3, rax
    mov qword ptr [TSS_RSP0], STACK_0

    gate de, 0x6000, 0x8e00
    gate db, 0x6010, 0x8e00
    gate bp, 0x6030, 0xee00                 ; DPL 3: user code may use it
    gate ud, 0x6060, 0x8e00
    gate ss, 0x60c0, 0x8e00
    gate gp, 0x60d0, 0x8e00
    gate pf, 0x60e0, 0x8e00
    gate mf, 0x6100, 0x8e00
    lidt [idt_register]

    mov eax, 0x2b
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    push 0x2b
    push STACK_USER
    push 2
    push 0x33
    push user
    iretq

set_gate:
    mov [rdi], ax
    mov word ptr [rdi + 2], 0x10
    ret

    stub de, 0, 0
    stub db, 1, 0
    stub bp, 3, 0
    stub ud, 6, 0
    stub ss, 12, 1
    stub gp, 13, 1
    stub pf, 14, 1
    stub mf, 16, 0

; On the stack: vector, error code or 7Fh, RIP, CS, RFLAGS, RSP, SS.
common:
    mov r8, rax
    mov r9, rcx
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
    cmp byte ptr [rsp], 0x0e
    jne no_address
    mov al, 0x40                            ; @
    out DEBUG_CONSOLE, al
    mov rcx, cr2
    mov al, ch
    call byte_out
    mov al, cl
    call byte_out
no_address:
    cmp qword ptr [rsp + 24], 0x33
    jne wrong
    cmp [rsp + 16], rbp
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
    and qword ptr [rsp + 32], 0xcd7         ; without TF, RF and IF
    mov rax, r8
    mov rcx, r9
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
    .word 0x10f
    .quad IDT

.balign 4096, 0
user:
    xor ecx, ecx
    xor edx, edx
    fault divide
divide:
    div ecx                                 ; #DE
after_divide:

    trap stepped                            ; #DB, a trap: behind the instruction that follows
    pushfq                                  ; the one that set TF
    or dword ptr [rsp], 0x100
    popfq
    nop
stepped:

    trap breakpoint
    int3                                    ; #BP, a trap
breakpoint:

    fault undefined
undefined:
    ud2                                     ; #UD
after_undefined:

    fault canonical
    mov rax, 0x800000000000
canonical:
    mov rax, [rax]                          ; #GP(0)
after_canonical:

    fault privileged
privileged:
    hlt                                     ; #GP(0)
after_privileged:

    fault table
table:
    lidt [rsp]                              ; #GP(0)
after_table:

    fault flags_off
flags_off:
    cli                                     ; #GP(0): IOPL is 0
after_flags_off:

    fault closed
closed:
    out 0x80, al                            ; #GP(0): the TSS's bitmap closes it
after_closed:

    fault missing
missing:
    mov eax, [NOWHERE]           ; #PF: user: 4
after_missing:

    fault forbidden
forbidden:
    mov eax, [FORBIDDEN]                    ; #PF: present, user: 5
after_forbidden:

    fault store
store:
    mov [NOWHERE], al            ; #PF: write, user: 6
after_store:

    fault readonly
readonly:
    mov [READ_ONLY], al                     ; #PF: present, write, user: 7
after_readonly:

    ; An x87 error shows at the next instruction that waits: 1 / 0, with the exception unmasked.
    fninit
    push 0x37b
    fldcw [rsp]
    fld1
    fldz
    fdivp st(1), st
    fault coprocessor
coprocessor:
    fwait                                   ; #MF: CR0.NE is set
after_coprocessor:
    fninit
    pop rax
    ; Registers that have no error's operands left: Unicorn has stored the quotient there.
    .rept 8
    fldz
    .endr
    fninit

    xor ebx, ebx                            ; nowhere to go on: that ends it
    lea rbp, [rip + last]
last:
    ud2
