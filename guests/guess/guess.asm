; guess: RandomLetter thinks of a letter, the player has five tries by CharIn. Each wrong
; guess is told which way to go, so a careful player always wins (26 < 2^5).
; A full stop or the end of input (0x04) ends the game. Newlines and blanks are skipped,
; upper case is as good as lower.

CHAR_IN = 0x1000
RANDOM_LETTER = 0x1010
CHAR_OUT = 0x1020
TRIES = 5

; BL the letter, BH the tries left, DI games won, BP games lost.
start:
    xor di, di
    xor bp, bp
round:
    mov bl, [RANDOM_LETTER]
    or bl, 0x20             ; lower case
    mov bh, TRIES
    mov si, welcome
    call print
ask:
    mov si, prompt
    call print
read:
    mov al, [CHAR_IN]
    cmp al, 4
    je finish
    cmp al, '.'
    je finish
    cmp al, ' '
    jbe read                ; newlines, blanks and other control characters
    call putc               ; say what was understood, whatever the terminal shows
    or al, 0x20
    cmp al, 'a'
    jb unknown
    cmp al, 'z'
    ja unknown
    cmp al, bl
    je won
    mov si, higher
    jb wrong
    mov si, lower
wrong:
    dec bh
    jz lost
    call print
    mov al, bh
    add al, '0'
    call putc
    mov si, left
    call print
    jmp ask
unknown:
    mov si, letters_only
    call print
    jmp ask
won:
    inc di
    mov si, you_won
    call print
    call score
    jmp round
lost:
    inc bp
    mov si, you_lost
    call print
    mov al, bl
    call putc
    mov si, newline
    call print
    call score
    jmp round
finish:
    mov si, newline
    call print
    call score
    hlt

; "Score: DI won, BP lost".
score:
    mov si, score_1
    call print
    mov ax, di
    call number
    mov si, score_2
    call print
    mov ax, bp
    call number
    mov si, score_3
    jmp print

; AX in decimal. Digits come out last first, so they wait on the stack.
number:
    xor cx, cx
    mov si, 10
divide:
    xor dx, dx
    div si
    push dx
    inc cx
    test ax, ax
    jnz divide
digit:
    pop ax
    add al, '0'
    call putc
    loop digit
    ret

; The text at SI, up to a zero byte.
print:
    lodsb
    test al, al
    jz printed
    call putc
    jmp print
printed:
    ret

putc:
    mov [CHAR_OUT], al
    ret

welcome: .asciz "\nI think of a letter from a to z. You have 5 tries; a full stop ends.\n"
prompt: .asciz "Your guess: "
higher: .asciz " is too low, "
lower: .asciz " is too high, "
left: .asciz " left\n"
letters_only: .asciz " is no letter\n"
you_won: .asciz " - You won!\n"
you_lost: .asciz " - You lost, it was "
newline: .asciz "\n"
score_1: .asciz "Score: "
score_2: .asciz " won, "
score_3: .asciz " lost\n"
