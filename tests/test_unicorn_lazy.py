"""Flags survive what leaves an instruction in its middle, also where each instruction is counted.

Unicorn 2.1.4 computes the lazy flags twice there (vmmsim.backends.unicorn_lazy); 0xDE + 0x23 is 0x01 with CF
and AF, and 0xDE - 0x23 is 0xBB with SF and PF (SDM vol. 1, 3.4.3.1).
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmsim import Machine
from vmmsim.backends.unicorn_lazy import settled_already
from vmmsim.exits import Access, ReadAccess
from vmmsim.loaders import load_bytes

pytest.importorskip("keystone", reason="keystone-engine has no wheel for this platform")

ENGINES = pytest.mark.parametrize("engine", ["native", "portable"])
COUNTS = pytest.mark.parametrize("counted", [False, True], ids=["free", "counted"])
SUMS = {"add al, cl": 0x13, "sub al, cl": 0x86, "adc al, cl": 0x13, "shl al, 2": 0x05}
#: What leaves the instruction behind the sum; DS is FFFF, where there is no memory.
LEAVERS = [
    "out 0x80, al",
    "in al, 0x80",
    "mov [0x10], al",
    "mov dl, [0x10]",
    "cpuid",
    "rdtsc",
    "ud2",
    "div bh",
]
#: Flags that the instruction behind leaves alone; AF is undefined behind a shift.
SEEN = 0x8D5


@pytest.fixture(autouse=True)
def _engine(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMSIM_UNICORN", engine)


def machine(code: str, counted: bool) -> Machine:
    """With AL DEh and CL 23h. Exceptions go behind the instruction, to a HLT with SI the flags pushed."""
    from vmmsim.asm import assemble

    made = Machine(backend="unicorn", count_insns=counted, memory=1 << 20)
    text = "push -1\npop ds\n" + code + "\npushf\npop si\nhlt\n"
    made.load(load_bytes(assemble(text, 16, 0x7C00), name="t", load_address=0x7C00, mode="real"))
    for vector in (0, 6):
        made.memory.write(4 * vector, bytes.fromhex("00060000"))
    made.memory.write(0x600, bytes.fromhex("585a5ef4"))  # pop ax; pop dx; pop si; hlt
    registers = made.vcpu.registers()
    registers.rax, registers.rcx, registers.rbx, registers.rsp = 0xDE, 0x23, 0, 0x7000
    made.vcpu.set_registers(registers)
    return made


@pytest.mark.unicorn
@ENGINES
@COUNTS
@pytest.mark.parametrize("leaver", LEAVERS)
def test_what_leaves_an_instruction_keeps_the_flags(engine: str, counted: bool, leaver: str) -> None:
    for code, flags in SUMS.items():
        mask = SEEN & ~0x810 if code.startswith("shl") else SEEN
        with machine(f"{code}\n{leaver}", counted) as made:
            made.run()
            assert (code, made.vcpu.registers().rsi & mask) == (code, flags & mask)


@pytest.mark.unicorn
@ENGINES
@COUNTS
@pytest.mark.parametrize("leaver", LEAVERS[:4])
def test_stopping_at_an_access_keeps_the_flags(engine: str, counted: bool, leaver: str) -> None:
    for code, flags in SUMS.items():
        mask = SEEN & ~0x810 if code.startswith("shl") else SEEN
        with machine(f"{code}\n{leaver}", counted) as made:
            made.run(until=Access)
            assert (code, made.vcpu.registers().rflags & mask) == (code, flags & mask)
            made.run()
            assert (code, made.vcpu.registers().rsi & mask) == (code, flags & mask)
        with machine(f"{code}\n{leaver}", counted) as made:
            for exit in made.exits():
                if isinstance(exit, ReadAccess):
                    assert (code, made.vcpu.registers().rflags & mask) == (code, flags & mask)
            assert (code, made.vcpu.registers().rsi & mask) == (code, flags & mask)


@pytest.mark.unicorn
@ENGINES
@pytest.mark.parametrize("between", ["", "jmp next\nnext:"], ids=["known", "unknown"])
def test_a_store_of_a_byte_that_may_have_asked_keeps_the_flags(engine: str, between: str) -> None:
    # SETZ asks for the flags if QEMU's translator does not know which operation was the last, as in a block
    # of its own: which of the two it was, the place in the translated code tells.
    code = f"mov ax, 0x2265\nmov bx, 0x91b7\ncmp ax, bx\n{between}\nsetz [0x10]"
    with machine(code, False) as made:
        made.run(until=Access)
        assert made.vcpu.registers().rflags & SEEN == 0x891  # CF AF SF OF
        made.run()
        assert made.vcpu.registers().rsi & SEEN == 0x891


@pytest.mark.parametrize("engine", ["native"])
@settings(max_examples=200)
@given(st.integers(0, 1 << 32), st.integers(0, 0xFFF), st.integers(0, (1 << 64) - 1))
def test_only_the_flags_of_the_result_count_as_settled(
    engine: str, operation: int, source: int, result: int
) -> None:
    if settled_already(operation, source, result):
        size = 8 << ((operation - 2) & 3)
        assert bool(source & 0x40) == (not result % (1 << size))
        assert bool(source & 0x80) == bool(result >> size - 1 & 1)
        assert bool(source & 4) == (bin(result & 0xFF).count("1") % 2 == 0)
