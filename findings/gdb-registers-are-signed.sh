#!/usr/bin/env bash
# Question: is "$al == 0xff" true in GDB when AL holds FFh, and what is "$rip & 0xfff"?
# Guess: true; the offset in the page. Registers are unsigned numbers of their width.
# Really: false: $al, $ax and $eax are signed (int8_t to int), so AL is -1; "p/x $eax >> 4" shifts signs in. $rip is a code
#   pointer, of which & is an error; it takes (long)$rip. A breakpoint's condition on AL at or above 80h never holds.
# Version: gdb 13.1-3 (Debian)
# Date: 2026-12-01
# Meets: whoever sets conditional breakpoints in a guest by its registers
. "$(dirname "$0")/_lib.sh"
deb_here gdb=13.1-3
timeout 60 gdb -nx -batch -ex starti -ex 'set $eax = 0xffffffff' \
    -ex 'printf "al %d, al == 0xff: %d, al == -1: %d\n", $al, $al == 0xff, $al == -1' \
    -ex 'printf "eax >> 4: %x\n", $eax >> 4' \
    -ex 'p $rip & 0xfff' /bin/true >out 2>&1 || true
grep -q '^al' out || skip "gdb cannot run a program here"
grep -E '^al|^eax|^Argument' out | see 'al -1, al == 0xff: 0, al == -1: 1
eax >> 4: ffffffff
Argument to arithmetic operation not a number or boolean.'
