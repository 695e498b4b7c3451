"""Checks of exercise 2: register by register, then restored, then by a guest."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from checking import wrong

from vmmsim import Machine
from vmmsim.budget import exits
from vmmsim.exits import Halt
from vmmsim.testing import run_device_conformance

DATA, STATUS = 0, 1
READY, FULL, DROPPED = 0x01, 0x02, 0x80


def put(box: Any, data: bytes) -> None:
    for byte in data:
        box.write(DATA, 1, byte)


def reads(box: Any, offset: int, wanted: int, when: str) -> None:
    """A read must answer `wanted`."""
    name = ("DATA", "STATUS")[offset]
    try:
        got = box.read(offset, 1)
    except NotImplementedError:
        raise
    except Exception as error:
        wrong(f"{when}, a read of {name} raised {error!r}. A device answers whatever a guest does.")
    if got != wanted:
        shown = f"{got:#04x}" if isinstance(got, int) else repr(got)
        wrong(f"{when}, a read of {name} should answer {wanted:#04x}; yours answers {shown}")


def test_what_goes_in_comes_out_in_order(answer: ModuleType) -> None:
    box = answer.Mailbox()
    put(box, b"\x11\x22\x33")
    for number, byte in enumerate(b"\x11\x22\x33", 1):
        reads(box, DATA, byte, f"after 0x11, 0x22, 0x33 were put in, at read {number}")


def test_an_empty_mailbox(answer: ModuleType) -> None:
    box = answer.Mailbox()
    reads(box, DATA, 0, "when nothing is in")
    reads(box, STATUS, 0, "when nothing is in")


def test_status(answer: ModuleType) -> None:
    box = answer.Mailbox()
    put(box, b"\x01")
    reads(box, STATUS, READY, "with one byte in")
    put(box, b"\x02\x03\x04")
    reads(box, STATUS, READY | FULL, "with four bytes in")
    reads(box, DATA, 1, "with four bytes in")
    reads(box, STATUS, READY, "with three bytes left")


def test_a_byte_too_many(answer: ModuleType) -> None:
    box = answer.Mailbox()
    put(box, b"\x01\x02\x03\x04\x05")
    reads(box, STATUS, READY | FULL | DROPPED, "after a fifth byte")
    reads(box, STATUS, READY | FULL, "at the second read of STATUS after a fifth byte")
    for byte in range(1, 5):
        reads(box, DATA, byte, "after 1, 2, 3, 4 were put in and 5 was dropped")
    reads(box, DATA, 0, "when all four were taken")


def test_writes_to_status_do_nothing(answer: ModuleType) -> None:
    box = answer.Mailbox()
    box.write(STATUS, 1, 0xFF)
    reads(box, STATUS, 0, "after 0xff was written to STATUS")


def test_a_restored_mailbox_goes_on(answer: ModuleType) -> None:
    box = answer.Mailbox()
    put(box, b"\x01\x02\x03\x04\x05")
    reads(box, DATA, 1, "with four bytes in")
    other = answer.Mailbox(box.state())
    reads(other, STATUS, READY | DROPPED, "restored from a state with three bytes in and one dropped")
    for byte in (2, 3, 4):
        reads(other, DATA, byte, "restored from a state with 2, 3, 4 in")


def test_a_state_is_not_the_device(answer: ModuleType) -> None:
    box = answer.Mailbox()
    put(box, b"\x01\x02")
    state = box.state()
    put(box, b"\x03")
    box.read(DATA, 1)
    reads(answer.Mailbox(state), DATA, 1, "restored from a state that was taken before the device went on")


def test_the_device_suite(answer: ModuleType) -> None:
    """Whatever a guest does: vmmsim's own checks of any device."""
    try:
        run_device_conformance(lambda state=None: answer.Mailbox(state) if state else answer.Mailbox())
    except AssertionError as error:
        if "NotImplementedError" in str(error):
            raise NotImplementedError("Mailbox of exercise 2") from None
        wrong(str(error))


def test_a_guest_uses_it(answer: ModuleType, machine: Callable[..., Machine]) -> None:
    code = bytes.fromhex(
        "b0 68  a2 00 18"  # mov al, 'h'; mov [0x1800], al
        "b0 69  a2 00 18"  # the same with 'i'
        "a0 01 18  a8 01"  # again: mov al, [0x1801]; test al, 1
        "74 08"  #            jz end
        "a0 00 18  a2 20 10"  # mov al, [0x1800]; mov [0x1020], al
        "eb ef"  #            jmp again
        "f4"  #               end: hlt
    )
    made = machine(code)
    made.attach_mmio(0x1800, 2, answer.Mailbox(), "mailbox")
    end = made.run(budget=exits(100))
    if not isinstance(end, Halt):
        wrong("the guest takes bytes out as long as bit 0 of STATUS is set, and finds no end")
    if made.output.data != b"hi":
        wrong(f"the guest put in 'hi' and got {made.output.data!r} out")
