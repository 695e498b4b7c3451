"""What divergences.toml says of exceptions, time and modes, on each CPU.

A test fails when a CPU no longer differs as its entry says, and also when another one begins to. A
handler of each exception ends the machine with the vector as its code.
"""

from __future__ import annotations

import pytest

from vmmsim import Machine
from vmmsim.budget import seconds
from vmmsim.cpu.descriptors import Gate, encode_gate
from vmmsim.cpu.modes import CODE32, CODE64
from vmmsim.cpu.state import Table
from vmmsim.diff import divergence
from vmmsim.errors import NotSupported
from vmmsim.exits import Exit, GuestExit, Refused
from vmmsim.loaders import load_bytes
from vmmsim.testing.slow import time_limit

pytest.importorskip("keystone", reason="keystone-engine has no wheel for this platform")

CODE, HANDLERS, IDT = 0x10000, 0x8000, 0x6000
#: Of INT 40h in `run`: not an exception.
SOFT = 0x40
EXIT = "mov al, 0\nout 0xf4, al\nhlt\n"


def differs(id: str, machine: Machine, *kinds: str) -> bool:
    return divergence(id).applies_to(machine.backend.provenance, *kinds)


def prepare(backend: str, mode: str, code: str, *, absent: int | None = None) -> Machine:
    """A machine in `mode`, with gates for all vectors but `absent`, whose gate is not present."""
    from vmmsim.asm import assemble

    bits = {"real": 16, "p32": 32}.get(mode, 64)
    machine = Machine(backend=backend, model="pc", memory=2 << 20, clock="exits")
    machine.load(
        load_bytes(assemble(code + EXIT, bits, CODE), name="test", load_address=CODE, mode=mode, entry=CODE)
    )
    for vector in (*range(32), SOFT):
        handler = HANDLERS + 16 * vector
        machine.memory.write(handler, bytes([0xB0, vector, 0xE6, 0xF4, 0xF4]))  # MOV AL, vector; OUT; HLT
        if mode == "real":
            machine.memory.write(4 * vector, handler.to_bytes(4, "little"))
            continue
        long = bits == 64
        gate = Gate(CODE64 if long else CODE32, handler, 14, dpl=3, present=vector != absent)
        machine.memory.write(IDT + vector * (16 if long else 8), encode_gate(gate, long=long))
    if mode != "real":
        state = machine.cpu.state()
        state.idt = Table(IDT, 0xFFF)
        machine.vcpu.set_state(state)
    return machine


def run(machine: Machine) -> Exit:
    return machine.run(budget=seconds(time_limit(10)))


def test_what_rdtsc_counts(backend_name: str) -> None:
    with prepare(backend_name, "real", "rdtsc\nmov ebx, eax\nmov ecx, edx\nrdtsc\n") as machine:
        assert run(machine) == GuestExit(0)
        registers = machine.vcpu.registers()
        first = registers.rcx << 32 | registers.rbx
        if differs("rdtsc", machine, "unicorn"):
            assert first == 1000  # an exit is a microsecond, and RDTSC counts as one: at 1 GHz
        else:
            assert first > 10_000_000  # the host has run for longer than that


def test_the_limit_of_a_segment(backend_name: str) -> None:
    with prepare(backend_name, "real", "mov bx, 0xffff\nmov ax, [bx]\n") as machine:  # one byte too far
        unchecked = differs("segment-limits", machine, "unicorn")
        assert run(machine) == GuestExit(0 if unchecked else 13)


@pytest.mark.parametrize(
    ("id", "vector", "code"),
    [
        (
            "alignment-check",
            17,
            "pushfq\nor dword ptr [rsp], 0x40000\npopfq\nmov eax, [0x6001]\n",
        ),
        (
            "simd-exception",
            19,
            "push 0x1d80\nldmxcsr [rsp]\nxorps xmm0, xmm0\n"
            "push 0x3f800000\nmovss xmm1, [rsp]\ndivss xmm1, xmm0\n",
        ),
    ],
)
def test_an_exception_that_unicorn_never_raises(backend_name: str, id: str, vector: int, code: str) -> None:
    with prepare(backend_name, "l64u", code) as machine:
        machine.cpu.cr0 |= 1 << 18  # AM
        assert run(machine) == GuestExit(0 if differs(id, machine, "unicorn") else vector)


def test_int_n_of_64_bit_user_code(backend_name: str) -> None:
    with prepare(backend_name, "l64u", "int 0x40\n") as machine:
        assert run(machine) == GuestExit(6 if differs("int-n-in-user-code", machine, "pvm") else SOFT)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("vector", [0x7F, 0x80, 0xFF])
def test_int_80h_of_real_mode(backend_name: str, vector: int) -> None:
    with prepare(backend_name, "real", f"int {vector}\n") as machine:
        machine.memory.write(4 * vector, (HANDLERS + 16 * SOFT).to_bytes(4, "little"))
        ended = run(machine)
        if vector >= 0x80 and differs("int-n-hang", machine, "pvm"):
            assert isinstance(ended, Refused)
            assert ended.insn[:2] == bytes((0xCD, vector))
        else:
            assert ended == GuestExit(SOFT)


@pytest.mark.parametrize("mode", ["p32", "l64"])
def test_a_gate_that_is_not_present(backend_name: str, mode: str) -> None:
    with prepare(backend_name, mode, "ud2\n", absent=6) as machine:
        assert run(machine) == GuestExit(8 if differs("gate-not-present", machine, "pvm") else 11)


def test_a_stack_access_that_is_not_canonical(backend_name: str) -> None:
    with prepare(backend_name, "l64", "mov rbp, 0x800000000000\nmov rax, [rbp]\n") as machine:
        assert run(machine) == GuestExit(13 if differs("non-canonical-stack", machine, "unicorn") else 12)


def test_what_an_x87_exception_leaves_in_the_registers(backend_name: str) -> None:
    """1 / 0 with the exception unmasked: the operands stay, nothing is popped (SDM vol. 1, 8.5.3)."""
    code = "fninit\npush 0x37b\nfldcw [rsp]\nfld1\nfldz\nfdivp st(1), st\nfwait\n"
    with prepare(backend_name, "l64u", code) as machine:
        assert run(machine) == GuestExit(16)
        top = machine.cpu.state().fpu.fsw >> 11 & 7
        assert top == (7 if differs("x87-unmasked", machine, "unicorn") else 6)


def test_there_is_no_a20_gate(backend_name: str) -> None:
    """FFFF:0010 is 100000h, though port 92h says that the line is held low."""
    code = "mov al, 0\nout 0x92, al\nmov ax, 0xffff\nmov ds, ax\nmov byte ptr [0x10], 0x5a\n"
    with prepare(backend_name, "real", code) as machine:
        assert divergence("a20").on(machine.backend.provenance).startswith("There is no")
        assert run(machine) == GuestExit(0)
        assert machine.memory.read(0x100000, 1) == b"\x5a"


def test_virtual_8086_mode_cannot_be_set(backend_name: str) -> None:
    with prepare(backend_name, "p32", "") as machine:
        state = machine.cpu.state()
        state.rflags |= 1 << 17
        if not differs("virtual-8086-mode", machine, "unicorn", "pvm"):
            machine.vcpu.set_state(state)
            return
        with pytest.raises(NotSupported, match="virtual-8086 mode"):
            machine.vcpu.set_state(state)
