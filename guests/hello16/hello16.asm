; hello16: real mode, a text through the UART as a driver sends it: wait until the
; transmitter holding register is empty, then store the next byte.

DATA = 0x3f8
LINE_STATUS = 0x3fd
THR_EMPTY = 0x20

start:
    xor ax, ax
    mov ds, ax
    cld
    mov si, text
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

text: .asciz "Hello from real mode\n"
