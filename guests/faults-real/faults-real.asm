; faults-real: the exceptions and software interrupts of real mode. Each handler prints its vector;
; a ! says that the saved IP is wrong: it must be the instruction for a fault, the next one for a
; trap. BP holds what IP must be, BX where IRET is to go on. There are no error codes here.

DEBUG_CONSOLE = 0xe9
DEBUG_EXIT = 0xf4

.macro stub vector
stub_\vector:
    .byte 0x6a, \vector                    ; PUSH; keystone would make it 32 bits wide
    jmp common
.endm
; The instruction at `name` faults, and it goes on behind it.
.macro fault name
    mov bp, \name
    mov bx, after_\name
.endm
; The instruction before `name` is a trap, and it goes on there.
.macro trap name
    mov bp, \name
    mov bx, \name
.endm

start:
    mov word ptr [0], stub_0
    mov word ptr [4], stub_1
    mov word ptr [12], stub_3
    mov word ptr [16], stub_4
    mov word ptr [24], stub_6
    mov word ptr [28], stub_7
    mov word ptr [52], stub_13
    mov word ptr [256], stub_64

    xor cx, cx
    fault divide
divide:
    div cl                                  ; #DE
after_divide:

    trap stepped                            ; #DB: behind the instruction that follows the one
    pushf                                   ; that set TF
    mov di, sp
    or byte ptr [di + 1], 1
    popf
    nop
stepped:

    trap breakpoint
    int3                                    ; #BP
breakpoint:

    trap overflow
    mov al, 0x7f
    add al, 1
    into                                    ; #OF
overflow:

    fault undefined
undefined:
    ud2                                     ; #UD
after_undefined:

    mov eax, cr0
    or al, 8                                ; CR0.TS
    mov cr0, eax
    fault device
device:
    fninit                                  ; #NM
after_device:
    clts

    mov eax, cr0
    or eax, 0x80000000                      ; PG without PE
    fault control
control:
    mov cr0, eax                            ; #GP
after_control:

    trap interrupt
    int 0x40
interrupt:

    sti                                     ; INT clears IF and IRET gives it back
    trap restored
    int 0x40
restored:
    pushf
    pop ax
    test ah, 2
    jz lost
    cli
    mov al, 0
    out DEBUG_EXIT, al
    hlt
lost:
    mov al, 1
    out DEBUG_EXIT, al
    hlt

    stub 0
    stub 1
    stub 3
    stub 4
    stub 6
    stub 7
    stub 13
    stub 64

; On the stack: vector, IP, CS, FLAGS.
common:
    mov si, ax
    mov di, sp
    pushf
    pop ax
    test ah, 3                              ; IF and TF are clear in a handler
    jnz wrong
    cmp [di + 2], bp
    je right
wrong:
    mov al, 0x21                            ; !
    out DEBUG_CONSOLE, al
right:
    mov al, [di]
    shr al, 4
    call digit_out
    mov al, [di]
    and al, 15
    call digit_out
    mov al, 0x0a
    out DEBUG_CONSOLE, al
    mov [di + 2], bx
    and byte ptr [di + 7], 0xfe             ; TF
    mov ax, si
    add sp, 2
    iret

digit_out:
    add al, 0x30
    cmp al, 0x3a
    jb decimal
    add al, 0x27
decimal:
    out DEBUG_CONSOLE, al
    ret
