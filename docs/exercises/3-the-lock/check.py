"""Checks of exercise 3: locks with several PINs, which count the letters that they take."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
from checking import wrong

from vmmsim import Machine, layout
from vmmsim.errors import GuestError
from vmmsim.exits import Halt

LOCK = bytes.fromhex(
    "be 00 7d"  # 7c00: mov si, 0x7d00
    "8a 24  84 e4  74 0f"  # 7c03: next: mov ah, [si]; test ah, ah; je open
    "a0 00 10  38 e0  75 0e"  # 7c09: mov al, [0x1000]; cmp al, ah; jne wrong
    "b0 2e  a2 20 10  46  eb eb"  # 7c10: mov al, '.'; mov [0x1020], al; inc si; jmp next
    "b0 21  a2 20 10  f4"  # 7c18: open: mov al, '!'; mov [0x1020], al; hlt
    "b0 3f  a2 20 10  f4"  # 7c1e: wrong: mov al, '?'; mov [0x1020], al; hlt
)
PIN_AT = 0x100
MOST = 32


@pytest.mark.parametrize("pin", ["cafe", "aaaa", "hhhh", "bead"])
def test_the_lock_opens(answer: ModuleType, machine: Callable[..., Machine], pin: str) -> None:
    lock = machine(LOCK.ljust(PIN_AT, b"\0") + pin.encode() + b"\0")
    taken = 0

    def watch(kind: str, address: int, size: int, value: int) -> None:
        nonlocal taken
        if kind == "mmio_read" and address == layout.CHAR_IN:
            taken += 1
            if taken > MOST:
                wrong(
                    f"the lock has taken {MOST} letters and is not open. Keep a snapshot behind each "
                    "right letter, and go back to that one; with rewind=False, or what you typed is "
                    "typed again."
                )

    lock.observe(watch)
    try:
        found = answer.unlock(lock)
    except GuestError as error:
        wrong(
            f"{error}\nAfter a wrong letter the lock halts for ever. Go back to before it, with rewind=False "
            "(else the wrong letter is typed again), and type on."
        )
    printed = lock.output.data
    if found != pin:
        wrong(f"the PIN is {pin!r}; unlock() returned {found!r}")
    if not printed.endswith(b"!"):
        wrong(f"the PIN is right, but the lock is not open: its last word was {printed[-1:]!r}")
    if not isinstance(lock.run(), Halt) or lock.output.data != printed:
        wrong("the lock has said '!', but the machine was then put back to before that")
