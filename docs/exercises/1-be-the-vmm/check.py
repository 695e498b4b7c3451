"""Checks of exercise 1: small guests, of which only the loop's answers can make the right output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from checking import wrong

from vmmsim.backends.base import Backend
from vmmsim.cpu.modes import setup
from vmmsim.errors import UsageError
from vmmsim.memory import Region

ENTRY = 0x7C00
#: More exits than any guest here makes.
MOST = 1000

Drive = Callable[[str, bytes], bytes]


class Watched:
    """The vCPU that the loop gets: it ends a loop that does not end."""

    def __init__(self, vcpu: Any) -> None:
        self._vcpu = vcpu
        self._runs = 0
        self._last: Any = None

    def run(self) -> Any:
        self._runs += 1
        if self._runs > MOST:
            wrong(
                f"your loop has called vcpu.run() {MOST} times and goes on. The last exit was "
                f"{self._last.describe()} ({self._last.kvm}): does the loop end there?"
            )
        try:
            self._last = self._vcpu.run()
        except UsageError as error:
            wrong(
                f"vcpu.run() was called while a read waits: {error}\n"
                "Each MmioRead and PortRead needs a reply(), also at addresses where nobody is."
            )
        return self._last

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vcpu, name)


@pytest.fixture
def drive(backend: Backend, answer: ModuleType) -> Iterator[Drive]:
    """`drive(code, keys)`: the student's loop over a real-mode guest at 0x7c00, with a hole at 0x1000."""
    vm = backend.create_vm()
    ram = [Region(0, 0x1000, readonly=False, name="RAM"), Region(0x2000, 0xE000, readonly=False, name="RAM")]
    for region in ram:
        vm.map_memory(region)
    vcpu = vm.create_vcpu()

    def run(code: str, keys: bytes = b"") -> bytes:
        image = bytes.fromhex(code)
        start = ENTRY - ram[1].gpa
        ram[1].buffer[start : start + len(image)] = image
        vcpu.set_state(setup("real", ENTRY).state)
        printed = answer.drive(Watched(vcpu), keys)
        if printed is None:
            wrong("drive() returned None: at the Halt, return the output")
        return bytes(printed)

    yield run
    vm.close()


def same(printed: bytes, wanted: bytes, hint: str) -> None:
    if printed != wanted:
        wrong(f"the guest should have printed {wanted!r}; your loop returned {printed!r}.\n{hint}")


def test_a_halt_ends_it(drive: Drive) -> None:
    same(drive("f4"), b"", "This guest is only a hlt.")


def test_output_by_mmio(drive: Drive) -> None:
    code = "b0 68  a2 20 10  b0 69  a2 20 10  f4"  # mov al, 'h'; mov [0x1020], al; the same with 'i'; hlt
    same(drive(code), b"hi", "Each MmioWrite at 0x1020 is a character.")


def test_output_by_a_port(drive: Drive) -> None:
    code = "b0 68  e6 e9  b0 69  a2 20 10  f4"  # 'h' by out 0xe9, al; 'i' by mov [0x1020], al
    same(drive(code), b"hi", "Each PortWrite at 0xe9 is a character, too, in the order in which they come.")


def test_input(drive: Drive) -> None:
    # again: mov al, [0x1000]; mov [0x1020], al; cmp al, 4; jne again; hlt
    code = "a0 00 10  a2 20 10  3c 04  75 f6  f4"
    same(
        drive(code, b"abc"),
        b"abc\x04",
        "A read at 0x1000 takes the next key; behind the last it is 4.",
    )


def test_writes_elsewhere_are_no_output(drive: Drive) -> None:
    # mov al, 'x'; mov [0x1800], al; out 0x80, al; hlt
    same(
        drive("b0 78  a2 00 18  e6 80  f4"),
        b"",
        "It wrote to 0x1800 and to port 0x80: nobody is there.",
    )


def test_a_write_of_two_bytes(drive: Drive) -> None:
    # mov ax, 0x1241; mov [0x1020], ax; hlt
    same(
        drive("b8 41 12  a3 20 10  f4"),
        b"A",
        "It wrote 0x1241 at once: the low byte is the character.",
    )


def test_reads_elsewhere_are_all_ones(drive: Drive) -> None:
    # mov ax, [0x1100]; mov [0x1020], al; mov [0x1020], ah; in ax, 0x80; the same two; hlt
    code = "a1 00 11  a2 20 10  88 26 20 10  e5 80  a2 20 10  88 26 20 10  f4"
    same(drive(code), b"\xff" * 4, "Reads of two bytes where nobody is are 0xffff, not 0 and not 0xff.")


def test_the_debug_port_answers(drive: Drive) -> None:
    same(drive("e4 e9  a2 20 10  f4"), b"\xe9", "in al, 0xe9 reads 0xe9.")


def test_an_exit_that_nobody_handles(drive: Drive) -> None:
    try:
        drive("ea 00 00 00 01")  # jmp 0x0100:0x0000: into the hole, where no code can be
    except RuntimeError as error:
        if "KVM_EXIT_INTERNAL_ERROR" not in str(error):
            wrong(f"the RuntimeError should name the exit (exit.kvm), but says: {error}")
    else:
        wrong(
            "the guest has jumped to where no memory is (an exit of kind fetch_unmapped), and your loop "
            "returned as if it had halted. Raise RuntimeError for what the table does not have."
        )
