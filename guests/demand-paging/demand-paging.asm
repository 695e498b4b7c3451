; demand-paging: pages that are mapped when they are first touched. A handler of #PF gives each
; missing page of 2 to 4 MiB a frame, makes a page writable at the first write, and executable
; at the first fetch; then IRETQ executes the instruction again, once. It prints each error code
; and keeps CR2 and the error code in a log. Sums, copies and a stack in such pages show that no
; instruction was executed twice.

DEBUG_CONSOLE = 0xe9
DEBUG_EXIT = 0xf4

PML4 = 0x10000
PDPT = 0x11000
DIRECTORY = 0x12000
TABLE = 0x13000             ; of 2 to 4 MiB: all entries are 0 at the start
FRAMES = 0x40000            ; given out in order
LOG = 0x50000               ; 16 bytes a fault: CR2, error code
IST_TOP = 0x8000
IDT = 0x6000
GATE_PF = 0x60e0            ; vector 14
TSS_IST1 = 0x97024          ; in the TSS of the start in mode l64
PAGES = 0x200000            ; what follows is linear, a page each: P0 to P9
P0_COUNT = 0x200010
P1_END = 0x201ffc
P2_END = 0x202ffc
P3 = 0x203000
P4_MIDDLE = 0x204c00
P6_TOP = 0x207008
P8_CODE = 0x208000
P9 = 0x209000
LAST_COPIED = 0x8ff8

.code64
start:
    mov qword ptr [PML4], 0x11003
    mov qword ptr [PDPT], 0x12003
    mov qword ptr [DIRECTORY], 0x83         ; the first 2 MiB onto itself
    mov qword ptr [DIRECTORY + 8], 0x13003
    mov eax, PML4
    mov cr3, rax
    mov ecx, 0xc0000080                     ; EFER.NXE: bit 63 of an entry forbids fetches, and
    rdmsr                                   ; the error code tells them
    or eax, 0x800
    wrmsr

    ; The handler has a stack of its own: one of the missing pages is to be a stack.
    mov qword ptr [TSS_IST1], IST_TOP
    mov eax, page_fault
    mov [GATE_PF], ax
    mov word ptr [GATE_PF + 2], 0x10
    mov word ptr [GATE_PF + 4], 0x8e01
    lidt [idt_register]
    mov r14d, LOG
    mov r15d, FRAMES

    mov eax, [PAGES]                        ; a read: 0
    inc dword ptr [P0_COUNT]                ; a read and write of a read-only page: 3
    inc dword ptr [P0_COUNT]                ; and nothing more
    mov dword ptr [P1_END], 0x11111111      ; a write: 2
    mov rax, 0x3333333322222222
    mov [P2_END], rax                       ; over two missing pages: 2 for each
    mov [LAST_COPIED], rax
    mov esi, copied                         ; a copy that goes on in the next page: 2 for each
    mov edi, P4_MIDDLE
    mov ecx, 0x100
    cld
    rep movsq
    mov ebx, ecx                            ; 0: it was counted down once
    mov ebp, edi                            ; 0x205400

    mov edx, esp
    mov esp, P6_TOP                         ; pushes: 2 for each page
    push 0x44
    push 0x55
    pop rax                                 ; 0x55
    pop rcx                                 ; 0x44
    add rax, rcx
    mov r8, rax                             ; 0x99
    mov r9, rsp                             ; back at P6_TOP
    mov esp, edx

    mov byte ptr [P8_CODE], 0xc3            ; RET, written: 2
    mov eax, P8_CODE
    call rax                                ; fetched from a page that forbids it: 0x11
    mov eax, P9
    call rax                                ; fetched from a missing page: 0x10

    mov r10d, [P0_COUNT]
    mov al, 0x0a
    out DEBUG_CONSOLE, al
    mov eax, 0
    out DEBUG_EXIT, al
    hlt

page_fault:
    push rax
    push rbx
    push rdi
    push rcx
    mov rax, cr2
    mov [r14], rax
    mov rbx, [rsp + 32]                     ; the error code, above what was pushed here
    mov [r14 + 8], rbx
    add r14, 16
    shr rax, 12                             ; the entry of the page
    and eax, 0x1ff
    lea rdi, [rax * 8 + TABLE]
    test bl, 1                              ; is it there? Then rights were missing
    jnz rights
    mov rax, r15                            ; a frame
    add r15d, 0x1000
    test bl, 0x10
    jz data
    mov byte ptr [rax], 0xc3                ; for a fetch, one with a RET
    or eax, 1                               ; present, and may be executed
    jmp give
data:
    mov ecx, 1
    shl rcx, 63                             ; not to be executed
    or rax, rcx
    or rax, 1
    test bl, 2
    jz give
    or rax, 2                               ; writable
give:
    mov [rdi], rax
    jmp tell
rights:
    mov rax, [rdi]
    test bl, 0x10
    jz writable
    btr rax, 63                             ; may be executed from now on
    jmp change
writable:
    or rax, 2
change:
    mov [rdi], rax
    mov rax, cr2
    invlpg [rax]
tell:
    mov al, bl                              ; two hexadecimal digits, none above 9 here
    shr al, 4
    add al, 0x30
    out DEBUG_CONSOLE, al
    mov al, bl
    and al, 15
    add al, 0x30
    out DEBUG_CONSOLE, al
    mov al, 0x20
    out DEBUG_CONSOLE, al
    pop rcx
    pop rdi
    pop rbx
    pop rax
    add rsp, 8                              ; the error code
    iretq

idt_register:
    .word 0xef                              ; up to vector 14
    .quad IDT
.balign 2048, 0
copied:                                     ; 2 KiB, at 0x8800
    .quad 0x0123456789abcdef
