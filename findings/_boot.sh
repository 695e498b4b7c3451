# Sourced after _lib.sh: boots 16-bit code, in NASM's syntax from stdin, from a floppy in QEMU and
# prints what it wrote to port E9h. `call byte_` prints AL and `call word_` AX in hex and a blank.
deb_here qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3
deb_get nasm nasm=2.16.01-1

boot() {
    {
        cat <<'S'
bits 16
org 0x7c00
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7000
    mov ax, 0x0208
    mov cx, 2
    xor dx, dx
    mov bx, 0x7e00
    int 0x13
    cli
    jmp body
word_:
    push ax
    mov al, ah
    call digits
    pop ax
byte_:
    call digits
    push ax
    mov al, ' '
    out 0xe9, al
    pop ax
    ret
digits:
    push ax
    shr al, 4
    call digit
    pop ax
    push ax
    and al, 15
    call digit
    pop ax
    ret
digit:
    cmp al, 10
    jb .decimal
    add al, 'A' - '0' - 10
.decimal:
    add al, '0'
    out 0xe9, al
    ret
    times 510 - ($ - $$) db 0
    dw 0xaa55
body:
S
        cat
        echo '    mov al, 0'
        echo '    out 0xf4, al'
        echo '    hlt'
    } >boot.asm
    nasm -f bin boot.asm -o boot.img
    truncate -s 1474560 boot.img
    timeout 100 qemu-system-x86_64 -accel tcg -display none -nodefaults -boot a -drive file=boot.img,format=raw,if=floppy \
        -debugcon file:out -device isa-debug-exit,iobase=0xf4,iosize=1 "$@" >qemu.log 2>&1 || [ $? -eq 1 ]
    sed 's/ *$//' out
}
