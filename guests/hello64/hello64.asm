; hello64: from real mode by way of protected mode into 64-bit mode, with page tables of its
; own; a text through the UART; then the debug-exit port with status 0.
; The steps are SDM vol. 3, 9.8.5 "Initializing IA-32e Mode".

DATA = 0x3f8
LINE_STATUS = 0x3fd
THR_EMPTY = 0x20
DEBUG_EXIT = 0xf4

PML4 = 0x2000
PDPT = 0x3000
DIRECTORY = 0x4000
EFER = 0xc0000080

.code16
start:
    cli
    xor ax, ax
    mov ds, ax
    lgdt [gdt_register]
    mov eax, cr0
    or eax, 1               ; PE
    mov cr0, eax
    ljmp 0x08:protected

.code32
protected:
    mov eax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, 0x7c00
    cld

    ; One 2 MiB page, the first, mapped onto itself: present, writable.
    mov edi, PML4
    xor eax, eax
    mov ecx, 0xc00          ; three tables of 4 KiB
    rep stosd
    mov dword ptr [PML4], 0x3003        ; PDPT + 3
    mov dword ptr [PDPT], 0x4003        ; DIRECTORY + 3
    mov dword ptr [DIRECTORY], 0x83     ; address 0, and bit 7: a big page

    mov eax, PML4
    mov cr3, eax
    mov eax, cr4
    or eax, 0x20            ; PAE
    mov cr4, eax
    mov ecx, EFER
    rdmsr
    or eax, 0x100           ; LME
    wrmsr
    mov eax, cr0
    or eax, 0x80000000      ; PG: from here on it is compatibility mode
    mov cr0, eax
    ljmp 0x18:long_mode

.code64
long_mode:
    mov rsi, text
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
    mov r8, 0x123456789abcdef0      ; a register that only 64-bit mode has
    xor eax, eax
    out DEBUG_EXIT, al
    hlt                     ; not reached where the machine ends at the write

text: .asciz "Hello from long mode\n"

.balign 8, 0
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    ; 0x08: code, 32-bit
    .quad 0x00cf93000000ffff    ; 0x10: data
    .quad 0x00af9b000000ffff    ; 0x18: code, 64-bit (L)
gdt_register:
    .word 31
    .long gdt
