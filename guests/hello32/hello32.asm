; hello32: from real mode into flat 32-bit protected mode, then a text through the UART.
; The steps are SDM vol. 3, 9.9.1 "Switching to Protected Mode".

DATA = 0x3f8
LINE_STATUS = 0x3fd
THR_EMPTY = 0x20

.code16
start:
    cli
    xor ax, ax
    mov ds, ax
    lgdt [gdt_register]
    mov eax, cr0
    or eax, 1               ; PE
    mov cr0, eax
    ljmp 0x08:protected     ; loads CS, so the next instruction is 32-bit

.code32
protected:
    mov eax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, 0x7c00
    cld
    mov esi, text
next:
    lodsb
    test al, al
    jz done
    mov ah, al
    mov dx, LINE_STATUS
wait_empty:
    in al, dx
    test al, THR_EMPTY
    jz wait_empty
    mov dx, DATA
    mov al, ah
    out dx, al
    jmp next
done:
    hlt

text: .asciz "Hello from protected mode\n"

.balign 8, 0
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    ; 0x08: code, base 0, limit 4 GiB, 32-bit
    .quad 0x00cf93000000ffff    ; 0x10: data, base 0, limit 4 GiB
gdt_register:
    .word 23                ; the table's size less one
    .long gdt
