"""What capstone writes otherwise than the SDM, put right."""

from __future__ import annotations

import pytest

from vmmsim.cpu.modes import setup
from vmmsim.disasm import CodeReader
from vmmsim.memory import GuestMemory


def listing(mode: str, code: str, count: int = 2) -> list[tuple[str, int]]:
    memory = GuestMemory()
    memory.add(0, 1 << 20)
    wanted = setup(mode, 0x8000, 1 << 20)
    for gpa, data in wanted.writes:
        memory.write(gpa, data)
    data = bytes.fromhex(code)
    memory.write(0x8000, data)
    found = CodeReader(memory).decode(wanted.state, 0x8000, size=len(data), count=count)
    return [(insn.text, len(insn.code)) for insn in found]


@pytest.mark.parametrize("mode", ["real", "p32", "l64"])
@pytest.mark.parametrize("code", ["f2a5", "66f2a5", "f266a5"])
def test_a_string_move_shows_its_repne(mode: str, code: str) -> None:
    (text, size), nop = listing(mode, code + "90")
    assert text.startswith("repne movs")
    assert (size, nop) == (len(code) // 2, ("nop", 1))


def test_sse2s_movsd_has_no_repne() -> None:
    assert listing("l64", "f20f10c190") == [("movsd xmm0, xmm1", 4), ("nop", 1)]
    (text, size), _ = listing("l64", "f20f10a5000000a590")  # its last byte is A5h, too
    assert (text.split()[0], size) == ("movsd", 8)


@pytest.mark.parametrize("low", range(16))
def test_a_near_jump_with_an_operand_size_prefix_is_7_bytes_long_in_64_bit_code(low: int) -> None:
    # SDM vol. 2, Jcc: near branches have 64-bit operands there, and the prefix is ignored.
    jump, nop = listing("l64", f"660f{0x80 | low:02x}1000000090")
    assert (jump[1], nop) == (7, ("nop", 1))
    assert jump[0].split()[1] == "0x8017"


def test_a_count_of_0_is_as_many_as_there_are() -> None:
    assert [size for _, size in listing("l64", "90660f801000000090f2a5f4", count=0)] == [1, 7, 1, 2, 1]
