; faults-64: the exceptions of 64-bit supervisor code, one after the other. Each handler prints
; the vector, and where there is one the error code; for #PF also CR2. A ! says that the saved
; RIP or RF is wrong: a fault saves its own address and RF, a trap the next one and no RF. RBP
; holds what RIP must be, RBX where to go on.

DEBUG_CONSOLE = 0xe9
DEBUG_EXIT = 0xf4
IDT = 0x6000
GATE_DE_TYPE = 0x6005
ABSENT = 0x60               ; selectors of the GDT below: data that is not present,
BEYOND = 0x68               ; and one behind its end

; `code` is 1 for an exception that pushes an error code; the others get 7Fh, which no code is.
.macro stub name, vector, code
stub_\name:
    .if \code == 0
    push 0x7f
    .endif
    push \vector
    jmp common
.endm
.macro gate name, at
    mov edi, \at
    mov eax, stub_\name
    call set_gate
.endm
; The instruction at `name` faults, and it goes on behind it.
.macro fault name
    mov ebp, \name
    mov ebx, after_\name
.endm

.code64
start:
    lgdt [gdt_register]
    gate de, 0x6000
    gate db, 0x6010
    gate ud, 0x6060
    gate nm, 0x6070
    gate df, 0x6080
    gate np, 0x60b0
    gate ss, 0x60c0
    gate gp, 0x60d0
    gate pf, 0x60e0
    lidt [idt_register]

    xor ecx, ecx
    xor edx, edx
    fault divide
divide:
    div ecx                                 ; #DE
after_divide:

    mov ebp, stepped                        ; #DB, a trap: behind the instruction that follows
    mov ebx, stepped                        ; the one that set TF
    pushfq
    or dword ptr [rsp], 0x100
    popfq
    nop
stepped:

    fault undefined
undefined:
    ud2                                     ; #UD
after_undefined:

    mov rax, cr0
    or eax, 8                               ; CR0.TS
    mov cr0, rax
    fault device
device:
    fninit                                  ; #NM
after_device:
    clts

    mov eax, ABSENT
    fault missing
missing:
    mov fs, eax                             ; #NP(60h)
after_missing:

    fault stack
stack:
    mov ss, eax                             ; #SS(60h)
after_stack:

    fault canonical
    mov rax, 0x800000000000
canonical:
    mov rax, [rax]                          ; #GP(0)
after_canonical:

    mov eax, BEYOND
    fault selector
selector:
    mov fs, eax                             ; #GP(68h): behind the end of the GDT
after_selector:

    mov ecx, 0xc0000080
    rdmsr
    or eax, 2                               ; EFER has no bit 1
    fault register
register:
    wrmsr                                   ; #GP(0)
after_register:

    mov rax, cr0
    and eax, 0x7fffffff                     ; to leave long mode takes 32-bit code
    fault leave
leave:
    mov cr0, rax                            ; #GP(0)
after_leave:

    mov rax, 0x123456789a8
    fault load
load:
    mov ecx, [rax]                          ; #PF(0)
after_load:

    fault store
store:
    mov [rax], ecx                          ; #PF(2): a write
after_store:

    fault fetched
    mov rbp, rax                            ; there it is where it goes
    call rax                                ; #PF(0)
after_fetched:
fetched:
    pop rcx                                 ; the CALL itself was done

    ; #DE through a gate that is not present: #NP while a contributory one is delivered is #DF.
    mov byte ptr [GATE_DE_TYPE], 0x0e
    xor ebp, ebp                            ; what a #DF saves as RIP is not said
    mov ebx, over
    xor ecx, ecx
    div ecx                                 ; #DF(0)

over:
    mov al, 0
    out DEBUG_EXIT, al
    hlt

set_gate:
    mov [rdi], ax
    mov word ptr [rdi + 2], 0x10
    mov word ptr [rdi + 4], 0x8e00
    ret

    stub de, 0, 0
    stub db, 1, 0
    stub ud, 6, 0
    stub nm, 7, 0
    stub df, 8, 1
    stub np, 11, 1
    stub ss, 12, 1
    stub gp, 13, 1
    stub pf, 14, 1

; On the stack: vector, error code or 7Fh, RIP, CS, RFLAGS, RSP, SS.
common:
    mov r8, rax
    mov r9, rcx
    mov r10, rdx
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
    mov rdx, cr2
    mov ecx, 8
digits:
    rol rdx, 8
    mov al, dl
    call byte_out
    dec ecx
    jnz digits
no_address:
    cmp byte ptr [rsp], 8
    je right
    mov rax, [rsp + 16]
    cmp rax, rbp
    jne wrong
    cmp byte ptr [rsp], 1
    setne cl
    bt qword ptr [rsp + 32], 16             ; RF is saved as 1 by a fault, as 0 by a trap
    setc dl
    cmp cl, dl
    je right
wrong:
    mov al, 0x21                            ; !
    out DEBUG_CONSOLE, al
right:
    mov al, 0x0a
    out DEBUG_CONSOLE, al
    mov [rsp + 16], rbx
    btr qword ptr [rsp + 32], 8             ; TF
    btr qword ptr [rsp + 32], 16            ; RF
    mov rax, r8
    mov rcx, r9
    mov rdx, r10
    add rsp, 16
    iretq

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
gdt:
    .quad 0
    .quad 0
    .quad 0x00af9b000000ffff                ; 0x10: 64-bit code
    .quad 0x00cf93000000ffff                ; 0x18: data
    .zero 64
    .quad 0x00cf13000000ffff                ; 0x60: data, not present
gdt_register:
    .word 0x67
    .quad gdt
idt_register:
    .word 0xef
    .quad IDT
