; echo: what CharIn gives goes to CharOut, up to and with the first newline.
; Both devices are bytes in the page at 0x1000, where there is no RAM: each MOV exits.

CHAR_IN = 0x1000
CHAR_OUT = 0x1020

next:
    mov al, [CHAR_IN]       ; an MMIO read: the VMM waits for a character
    test al, al             ; 0 says that the wait was given up: ask again
    jz next
    cmp al, 4               ; end of input
    je done
    mov [CHAR_OUT], al      ; an MMIO write
    cmp al, 13              ; Enter, from a terminal in raw mode
    je done
    cmp al, 10
    jne next
done:
    hlt
