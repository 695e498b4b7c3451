; syscall-int: 64-bit user code that asks its kernel for things by INT 80h and by UD2. EAX is
; the number of the call: 1 prints the character in EDI, 2 adds EDI and ESI, 3 ends with EDI
; as the exit code. UD2 is a call, too: the handler of #UD looks at the instruction, and goes on
; behind it. There it also finds INT 80h on a CPU on which user code has no INT n (kvm_pvm).
; What user code must not do is a #GP, which prints its error code and goes on at RBX.

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
GATE_UD = 0x6060            ; vector 6
GATE_GP = 0x60d0            ; vector 13
GATE_PF = 0x60e0            ; vector 14
GATE_80 = 0x6800
READ_ONLY = 0xb800
FORBIDDEN = 0x5000

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
    mov qword ptr [PML4], 0x11007
    mov qword ptr [PDPT], 0x12007
    mov qword ptr [DIRECTORY], 0x13007
    mov byte ptr [TABLE_9], 7               ; the user's, writable
    mov byte ptr [TABLE_10], 7
    mov byte ptr [TABLE_11], 5              ; the user's, to be read
    mov eax, PML4
    mov cr3, rax
    mov qword ptr [TSS_RSP0], STACK_0

    mov eax, undefined
    mov [GATE_UD], ax
    mov word ptr [GATE_UD + 2], 0x10
    mov word ptr [GATE_UD + 4], 0x8e00
    mov eax, protection
    mov [GATE_GP], ax
    mov word ptr [GATE_GP + 2], 0x10
    mov word ptr [GATE_GP + 4], 0x8e00
    mov eax, page_fault
    mov [GATE_PF], ax
    mov word ptr [GATE_PF + 2], 0x10
    mov word ptr [GATE_PF + 4], 0x8e00
    mov eax, call
    mov [GATE_80], ax
    mov word ptr [GATE_80 + 2], 0x10
    mov word ptr [GATE_80 + 4], 0xee00      ; DPL 3: user code may call it
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

; What RIP points to decides what #UD was: UD2 is 0F 0B, INT 80h is CD 80.
undefined:
    push rax
    mov rax, [rsp + 8]
    mov ax, [rax]
    cmp ax, 0x0b0f
    je passed
    cmp ax, 0x80cd
    je passed
    mov al, 0x3f                            ; ?
    out DEBUG_CONSOLE, al
    mov al, 0xff
    out DEBUG_EXIT, al
    hlt
passed:
    add qword ptr [rsp + 8], 2
    btr qword ptr [rsp + 24], 16            ; RF, which a fault saves as 1
    pop rax
call:
    push rax                                ; so that both ways leave the same stack behind
    pop rax
    inc dword ptr [calls]
    cmp eax, 1
    je print
    cmp eax, 2
    je sum
    mov eax, edi
    out DEBUG_EXIT, al
    hlt
print:
    mov eax, edi
    out DEBUG_CONSOLE, al
    iretq
sum:
    lea eax, [rdi + rsi]
    iretq

protection:
    mov al, 0x47                            ; G
    jmp digit
page_fault:
    mov al, 0x50                            ; P
digit:
    out DEBUG_CONSOLE, al
    pop rax                                 ; the error code
    add al, 0x30
    out DEBUG_CONSOLE, al
    mov [rsp], rbx
    btr qword ptr [rsp + 16], 16
    iretq

.balign 8, 0
idt_register:
    .word 0x80f
    .quad IDT
calls:
    .long 0

.balign 4096, 0
user:
    mov ecx, 3
hello:
    mov eax, 1
    mov edi, 0x69                           ; i
    int 0x80
    mov eax, 1
    mov edi, 0x75                           ; u
    ud2
    loop hello

    mov eax, 2
    mov edi, 0x20
    mov esi, 1
    int 0x80                                ; 0x21, an exclamation mark
    mov edi, eax
    mov eax, 1
    ud2

    lea rbx, [rip + after_hlt]
    hlt                                     ; #GP(0)
after_hlt:
    lea rbx, [rip + after_cr]
    mov rax, cr0                            ; #GP(0)
after_cr:
    lea rbx, [rip + after_out]
    out 0x80, al                            ; #GP(0): the TSS's bitmap closes it
after_out:
    lea rbx, [rip + after_read]
    mov eax, [FORBIDDEN]                    ; #PF: present, user: 5
after_read:
    lea rbx, [rip + after_write]
    mov [READ_ONLY], eax                    ; #PF: present, write, user: 7
after_write:
    lea rbx, [rip + after_far]
    mov eax, [0x400000]                     ; #PF: user: 4
after_far:
    lea rbx, [rip + after_jump]
    mov eax, FORBIDDEN
    jmp rax                                 ; #PF: present, user: 5
after_jump:
    mov eax, 3
    mov edi, 42
    int 0x80
