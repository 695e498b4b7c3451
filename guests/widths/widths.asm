; widths: every way in which an instruction can touch a device, against the 8 KiB of
; registers of the scratch device at 0xd0000 (two pages, so that an access can cross one).
; Results go to RAM from 0x20000 on, 8 bytes each, in the order of the numbers R0, R1, ...
; below; guest.toml has what they must be. At the end the bytes of the device that were used
; are copied behind them, to 0x21000 and 0x21800.
;
; Integer instructions only, so that an emulator of ring 0 code can run it. REP INS to a
; device is left out: KVM joins its elements into one write.

SCRATCH = 0xd0000
PAGE2 = 0xd1000
AFTER = 0xd2000             ; RAM again
RESULTS = 0x20000
BUFFER = 0x30000            ; RAM to copy from and to
CONSOLE = 0xe9              ; the debug console: prints, and answers 0xe9
NOBODY = 0x2000             ; a port without a device

.macro save reg
    mov [r15], \reg
    add r15, 8
.endm

.code64
start:
    cld
    mov r14d, SCRATCH
    mov r15d, RESULTS

    ; Writes of each width, then reads of each width.
    mov byte ptr [r14], 0x11
    mov word ptr [r14 + 2], 0x2233
    mov dword ptr [r14 + 4], 0x44556677
    mov rax, 0x8899aabbccddeeff
    mov [r14 + 8], rax
    movzx eax, byte ptr [r14]
    save rax                        ; R0
    movzx eax, word ptr [r14 + 2]
    save rax                        ; R1
    mov eax, [r14 + 4]
    save rax                        ; R2
    mov rax, [r14 + 8]
    save rax                        ; R3

    ; Extension of bytes, words and doublewords with the top bit set.
    movsx eax, byte ptr [r14 + 8]
    save rax                        ; R4
    movsx rax, word ptr [r14 + 8]
    save rax                        ; R5
    movsxd rax, dword ptr [r14 + 8]
    save rax                        ; R6
    movzx rax, byte ptr [r14 + 15]
    save rax                        ; R7
    mov rax, -1
    mov al, [r14 + 2]               ; the upper 56 bits stay
    save rax                        ; R8
    mov rax, -1
    mov ax, [r14 + 4]               ; the upper 48 bits stay
    save rax                        ; R9
    mov rax, -1
    mov eax, [r14 + 4]              ; the upper 32 bits become 0
    save rax                        ; R10

    ; Not aligned.
    mov word ptr [r14 + 0x11], 0xa1b2
    mov dword ptr [r14 + 0x15], 0xc3d4e5f6
    mov rax, 0x0102030405060708
    mov [r14 + 0x1b], rax
    movzx eax, word ptr [r14 + 0x11]
    save rax                        ; R11
    mov eax, [r14 + 0x15]
    save rax                        ; R12
    mov rax, [r14 + 0x1b]
    save rax                        ; R13
    mov eax, [r14 + 0x13]           ; two registers and the gap between them
    save rax                        ; R14

    ; Across the page inside the device: 5 + 3, 2 + 2 and 1 + 1 bytes.
    mov rax, 0x1112131415161718
    mov [r14 + 0xffb], rax
    mov rax, [r14 + 0xffb]
    save rax                        ; R15
    mov dword ptr [r14 + 0xffe], 0x21222324
    mov eax, [r14 + 0xffe]
    save rax                        ; R16
    mov word ptr [r14 + 0xfff], 0x3132
    movzx eax, word ptr [r14 + 0xfff]
    save rax                        ; R17

    ; Half in RAM, half in the device: below its start and behind its end.
    mov rax, 0x4142434445464748
    mov [r14 - 4], rax
    mov rax, [r14 - 4]
    save rax                        ; R18
    mov eax, [r14]
    save rax                        ; R19
    mov dword ptr [r14 + 0x1ffd], 0x51525354
    mov eax, [r14 + 0x1ffd]
    save rax                        ; R20
    movzx eax, byte ptr [AFTER]
    save rax                        ; R21

    ; PUSH from the device, POP to it.
    push qword ptr [r14 + 8]
    pop qword ptr [r14 + 0x30]
    mov rax, [r14 + 0x30]
    save rax                        ; R22
    push word ptr [r14 + 4]
    pop word ptr [r14 + 0x38]
    movzx eax, word ptr [r14 + 0x38]
    save rax                        ; R23

    ; A stack inside the device.
    mov rbx, rsp
    lea rsp, [r14 + 0x60]
    mov eax, 0x61626364
    push rax
    pop rcx
    mov rsp, rbx
    save rcx                        ; R24

    ; MOVS: RAM to device, device to RAM, device to device, and downwards.
    mov esi, text
    lea rdi, [r14 + 0x80]
    mov ecx, 3
    rep movsb
    save rcx                        ; R25
    mov esi, text
    lea rdi, [r14 + 0x90]
    mov ecx, 2
    rep movsq
    lea rsi, [r14 + 0x90]
    mov edi, BUFFER
    mov ecx, 4
    rep movsd dword ptr [rdi], dword ptr [rsi]  ; bare, keystone takes MOVSD for SSE's
    mov rax, [BUFFER + 8]
    save rax                        ; R26
    lea rsi, [r14 + 0x90]
    lea rdi, [r14 + 0xa0]
    mov ecx, 2
    rep movsw
    save rdi                        ; R27
    std
    mov esi, text + 2
    lea rdi, [r14 + 0xaa]
    mov ecx, 3
    rep movsb
    save rdi                        ; R28
    lea rsi, [r14 + 0x98]
    mov edi, BUFFER + 0x18
    mov ecx, 2
    rep movsq
    cld
    mov rax, [BUFFER + 0x10]
    save rax                        ; R29

    ; STOS and LODS.
    mov rax, 0x7172737475767778
    lea rdi, [r14 + 0xb0]
    stosb
    stosw
    stosd
    stosq
    save rdi                        ; R30
    lea rdi, [r14 + 0xc0]
    mov ecx, 3
    rep stosw
    lea rsi, [r14 + 0xb0]
    xor eax, eax
    lodsb
    save rax                        ; R31
    lodsw
    save rax                        ; R32
    lodsd
    save rax                        ; R33
    lodsq
    save rax                        ; R34
    lea rsi, [r14 + 0x80]
    mov ecx, 3
    rep lodsb
    save rax                        ; R35

    ; CMPS stops at the first difference, SCAS at the first equal byte.
    mov esi, text
    lea rdi, [r14 + 0x80]
    mov ecx, 8
    repe cmpsb                      ; three bytes are equal, the fourth is 0 in the device
    save rcx                        ; R36
    lea rdi, [r14 + 0x90]
    mov al, [text + 5]
    mov ecx, 16
    repne scasb
    save rcx                        ; R37

    ; OUT and IN of each width where nobody is, then strings of the debug console.
    mov dx, NOBODY
    mov eax, 0x81828384
    out dx, al
    out dx, ax
    out dx, eax
    xor eax, eax
    in al, dx
    save rax                        ; R38
    in ax, dx
    save rax                        ; R39
    xor eax, eax
    in eax, dx
    save rax                        ; R40
    mov dx, CONSOLE
    mov esi, text
    mov ecx, 7
    rep outsb
    sub rsi, text
    save rsi                        ; R41
    lea rsi, [r14 + 0x80]
    outsb                           ; from the device to the port
    mov edi, BUFFER + 0x20
    mov ecx, 3
    rep insb
    mov eax, [BUFFER + 0x20]
    save rax                        ; R42
    lea rdi, [r14 + 0xd0]
    insb                            ; from the port to the device
    movzx eax, byte ptr [r14 + 0xd0]
    save rax                        ; R43

    ; XCHG, which is locked without saying so.
    mov al, 0x91
    xchg [r14 + 0xd8], al
    mov rax, 0x9192939495969798
    xchg [r14 + 0xd8], rax
    save rax                        ; R44
    mov eax, 0xa1a2a3a4
    xchg [r14 + 0xd8], eax
    save rax                        ; R45
    mov ax, 0xb1b2
    xchg [r14 + 0xd8], ax
    save rax                        ; R46
    mov rax, [r14 + 0xd8]
    save rax                        ; R47

    ; Read-modify-write, without and with LOCK. Flags by SETcc.
    mov dword ptr [r14 + 0xe0], 0xfffffffe
    add dword ptr [r14 + 0xe0], 3
    setc bl
    movzx ebx, bl
    save rbx                        ; R48
    inc dword ptr [r14 + 0xe0]
    lock add dword ptr [r14 + 0xe0], 0x10
    lock inc dword ptr [r14 + 0xe0]
    mov eax, [r14 + 0xe0]
    save rax                        ; R49
    mov qword ptr [r14 + 0xe8], 5
    neg qword ptr [r14 + 0xe8]
    not word ptr [r14 + 0xe8]
    or byte ptr [r14 + 0xef], 1
    mov rax, [r14 + 0xe8]
    save rax                        ; R50

    ; Bits: by a number, by a register that reaches beyond the operand, and with LOCK.
    bts dword ptr [r14 + 0xf0], 3
    setc bl
    save rbx                        ; R51
    lock bts dword ptr [r14 + 0xf0], 3
    setc bl
    save rbx                        ; R52
    mov eax, 37
    bts dword ptr [r14 + 0xf0], eax ; bit 5 of the doubleword behind
    lock btr dword ptr [r14 + 0xf0], 3
    btc dword ptr [r14 + 0xf0], 31
    mov rax, [r14 + 0xf0]
    save rax                        ; R53

    ; XADD and CMPXCHG, that hit and that miss.
    mov dword ptr [r14 + 0xf8], 100
    mov eax, 11
    xadd [r14 + 0xf8], eax
    save rax                        ; R54
    lock xadd [r14 + 0xf8], eax
    save rax                        ; R55
    mov eax, 211
    mov ecx, 300
    cmpxchg [r14 + 0xf8], ecx       ; equal: stores 300
    setz bl
    save rbx                        ; R56
    mov eax, 1
    lock cmpxchg [r14 + 0xf8], ecx  ; not equal: loads 300
    setz bl
    save rbx                        ; R57
    save rax                        ; R58
    mov rax, 300
    mov rcx, 0xc1c2c3c4c5c6c7c8
    lock cmpxchg [r14 + 0xf8], rcx
    mov rax, [r14 + 0xf8]
    save rax                        ; R59
    mov eax, 0xc5c6c7c8
    mov edx, 0xc1c2c3c4
    mov ebx, 0xd5d6d7d8
    mov ecx, 0xd1d2d3d4
    lock cmpxchg8b [r14 + 0xf8]
    mov rax, [r14 + 0xf8]
    save rax                        ; R60

    ; What the device holds now: its first 256 bytes, and 16 about the page.
    mov esi, SCRATCH
    mov edi, RESULTS + 0x1000
    mov ecx, 32
    rep movsq
    mov esi, PAGE2 - 8
    mov edi, RESULTS + 0x1800
    mov ecx, 2
    rep movsq
    hlt

text: .asciz "widths\nabcdefghi"
