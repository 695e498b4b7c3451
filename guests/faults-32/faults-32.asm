; faults-32: the exceptions of 32-bit supervisor code without paging, one after the other. Each
; handler prints the vector, and where there is one the error code. A ! says that the saved EIP
; or RF is wrong: a fault saves its own address and RF, a trap the next one and no RF. EBP holds what EIP
; must be, EBX where to go on: there is no IRET, which kvm_pvm does not emulate in this mode
; (`traps-32` has it).

DEBUG_CONSOLE = 0xe9
DEBUG_EXIT = 0xf4
STACK = 0x7c00
IDT = 0x6000
GATE_DE_TYPE = 0x6005
ABSENT = 0x20               ; selectors of the GDT below: data that is not present,
ABSENT_CODE = 0x28          ; code that is not present,
CODE_SELECTOR = 0x08        ; code, which is no stack,
BEYOND = 0x38               ; and one behind its end

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

.code32
start:
    lgdt [gdt_register]
    gate de, 0x6000
    gate db, 0x6008
    gate ud, 0x6030
    gate nm, 0x6038
    gate df, 0x6040
    gate np, 0x6058
    gate ss, 0x6060
    gate gp, 0x6068
    lidt [idt_register]

    xor ecx, ecx
    xor edx, edx
    fault divide
divide:
    div ecx                                 ; #DE
after_divide:

    mov eax, 0x80000000
    mov ecx, -1
    cdq
    fault overflow
overflow:
    idiv ecx                                ; #DE: the quotient does not fit
after_overflow:

    mov ebp, stepped                        ; #DB, a trap: behind the instruction that follows
    mov ebx, stepped                        ; the one that set TF
    pushfd
    or dword ptr [esp], 0x100
    popfd
    nop
stepped:

    fault undefined
undefined:
    ud2                                     ; #UD
after_undefined:

    mov eax, cr0
    or eax, 8                               ; CR0.TS
    mov cr0, eax
    fault device
device:
    fninit                                  ; #NM
after_device:
    clts

    mov eax, ABSENT
    fault missing
missing:
    mov fs, eax                             ; #NP(20h)
after_missing:

    fault stack
stack:
    mov ss, eax                             ; #SS(20h)
after_stack:

    xor eax, eax
    fault null
null:
    mov ss, eax                             ; #GP(0): a null selector for the stack
after_null:

    mov eax, CODE_SELECTOR
    fault type
type:
    mov ss, eax                             ; #GP(8): no stack is code
after_type:

    mov eax, BEYOND
    fault selector
selector:
    mov fs, eax                             ; #GP(38h): behind the end of the GDT
after_selector:

    fault jump
jump:
    ljmp 0x18:start                         ; #GP(18h): data
after_jump:

    fault far
far:
    ljmp ABSENT_CODE:start                  ; #NP(28h)
after_far:

    mov eax, cr0
    and eax, 0xfffffffe                     ; PG without PE
    or eax, 0x80000000
    fault control
control:
    mov cr0, eax                            ; #GP(0)
after_control:

    ; #DE through a gate that is not present: #NP while a contributory one is delivered is #DF.
    mov byte ptr [GATE_DE_TYPE], 0x0e
    xor ebp, ebp                            ; what a #DF saves as EIP is not said
    mov ebx, over
    xor ecx, ecx
    div ecx                                 ; #DF(0)

over:
    mov al, 0
    out DEBUG_EXIT, al
    hlt

set_gate:
    mov [edi], ax
    mov word ptr [edi + 2], CODE_SELECTOR
    mov word ptr [edi + 4], 0x8e00
    ret

    stub de, 0, 0
    stub db, 1, 0
    stub ud, 6, 0
    stub nm, 7, 0
    stub df, 8, 1
    stub np, 11, 1
    stub ss, 12, 1
    stub gp, 13, 1

; On the stack: vector, error code or 7Fh, EIP, CS, EFLAGS.
common:
    mov esi, eax
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
    cmp byte ptr [esp], 8
    je right
    cmp [esp + 8], ebp
    jne wrong
    cmp byte ptr [esp], 1
    setne cl
    bt dword ptr [esp + 16], 16             ; RF is saved as 1 by a fault, as 0 by a trap
    setc ch
    cmp cl, ch
    je right
wrong:
    mov al, 0x21                            ; !
    out DEBUG_CONSOLE, al
right:
    mov al, 0x0a
    out DEBUG_CONSOLE, al
    and byte ptr [esp + 18], 0xfe           ; RF: what a #DF saves is not said
    mov eax, esi
    mov esp, STACK
    jmp ebx

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
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff                ; 0x08: code, read and executed
    .quad 0
    .quad 0x00cf93000000ffff                ; 0x18: data
    .quad 0x00cf13000000ffff                ; 0x20: data, not present
    .quad 0x00cf1b000000ffff                ; 0x28: code, not present
    .quad 0
gdt_register:
    .word 0x37
    .long gdt
idt_register:
    .word 0x77
    .long IDT
