; fault: a triple fault. The interrupt table has a limit of 0, so the undefined instruction
; finds no gate for #UD, nor the #GP that follows, nor the double fault after that; then the
; CPU gives up and shuts down.

    lidt [no_table]
    mov eax, 0xdead
    ud2
    hlt                     ; never reached

.balign 8, 0
no_table:
    .word 0
    .long 0
