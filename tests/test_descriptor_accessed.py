"""The accessed bit of a descriptor is set when the CPU loads a segment register from it.

SDM vol. 3, 3.4.5.1. It is bit 0 of the type, in the sixth byte of the descriptor.
"""

from __future__ import annotations

import pytest

from vmmsim.backends.base import Backend
from vmmsim.cpu.descriptors import Gate, encode_gate
from vmmsim.cpu.modes import CODE32, CODE64, DATA
from vmmsim.cpu.state import CpuState, Table
from vmmsim.diff import divergence
from vmmsim.exits import Halt, Refused
from vmmsim.testing.bench import Bench, Script

IDT, HANDLER, VECTOR = 0x6000, 0x7000, 0x40
STACK = 0x7800


def bench(backend: Backend, mode: str, code: str, unmarked: int) -> Bench:
    """With a gate for each of the first vectors to a HLT, and the descriptor of the selector `unmarked`
    without its accessed bit."""

    def adjust(state: CpuState) -> None:
        state.idt = Table(IDT, 0x7FF)

    long = mode != "p32"
    gate = encode_gate(Gate(CODE64 if long else CODE32, HANDLER, 14, dpl=3), long=long)
    memory = {HANDLER: b"\xf4"} | {IDT + number * len(gate): gate for number in (0, 6, 13, 14, VECTOR)}
    made = Bench(backend, mode, bytes.fromhex(code), regs={"rsp": STACK}, memory=memory, adjust=adjust)
    place = made.vcpu.state().gdt.base + (unmarked & ~7) + 5
    marked = made.memory.read(place, 1)[0]
    assert marked & 0x11 == 0x11  # a segment, and accessed
    made.memory.write(place, bytes([marked & ~1]))
    return made


def is_marked(made: Bench, selector: int) -> bool:
    return bool(made.memory.read(made.vcpu.state().gdt.base + (selector & ~7) + 5, 1)[0] & 1)


@pytest.mark.parametrize("code", ["cd 40", "0f 0b", "31 c9 f7 f1"], ids=["int", "ud2", "div"])
@pytest.mark.parametrize(("mode", "selector"), [("p32", CODE32), ("l64", CODE64)])
def test_by_an_exception(backend: Backend, mode: str, selector: int, code: str) -> None:
    """kvm_pvm does not: the divergence `exception-accessed`."""
    with bench(backend, mode, code, selector) as made:
        end = made.run_inline(Script())
        if isinstance(end, Refused):
            pytest.skip(end.reason)
        assert isinstance(end, Halt)
        differs = divergence("exception-accessed").applies_to(backend.provenance, "pvm")
        assert is_marked(made, selector) != differs
        assert made.vcpu.state().cs.attr & 1 or differs


@pytest.mark.parametrize("mode", ["p32", "l64"])
def test_by_mov_to_a_segment_register(backend: Backend, mode: str) -> None:
    code = f"66 b8 {DATA.to_bytes(2, 'little').hex()} 8e e0"  # mov ax, DATA; mov fs, ax
    with bench(backend, mode, code, DATA) as made:
        assert isinstance(made.run_inline(Script()), Halt)
        assert is_marked(made, DATA)


@pytest.mark.parametrize(
    ("mode", "selector", "code"),
    [
        ("p32", CODE32, "6a {0:02x} 68 08 10 00 00 cb"),  # push CS; push behind; retf
        ("p32", CODE32, "ea 07 10 00 00 {0:02x} 00"),  # jmp CS:behind
        ("l64", CODE64, "6a {0:02x} 68 09 10 00 00 48 cb"),
    ],
    ids=["retf", "jmp", "retfq"],
)
def test_by_a_far_transfer(backend: Backend, mode: str, selector: int, code: str) -> None:
    """Unicorn does not: the divergence `far-transfer-accessed`."""
    with bench(backend, mode, code.format(selector), selector) as made:
        assert isinstance(made.run_inline(Script()), Halt)
        differs = divergence("far-transfer-accessed").applies_to(backend.provenance, "unicorn")
        assert is_marked(made, selector) != differs
