"""Flags before, in and behind an instruction that accesses MMIO, or faults there: on every CPU the SDM's.

An instruction sets flags, a second one uses and changes them at a place in MMIO, a third one reads them.
What must come of it is computed here, from the SDM's descriptions of the instructions (vol. 1, 3.4.3.1;
vol. 2), by plain arithmetic; flags that an instruction leaves undefined are not compared. Each program runs
in a VM of its own: an engine's first access outside RAM is one that it leaves and meets again.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vmmsim.backends.base import Backend
from vmmsim.cpu.state import Registers
from vmmsim.diff.case import Case, Unit
from vmmsim.diff.lanes import Lane
from vmmsim.exits import Access, Halt, ReadAccess
from vmmsim.testing.bench import HOLE, Bench, Script

CF, PF, AF, ZF, SF, OF = 1, 4, 0x10, 0x40, 0x80, 0x800
ALL = CF | PF | AF | ZF | SF | OF
M32 = (1 << 32) - 1
#: Count of the shifts by CL, and the bit that the bit tests look at.
COUNT, BIT = 3, 5

#: (a value or None if it stays, flags, flags now undefined), of two operands and the flags before.
Result = tuple[int | None, int, int]
Operation = Callable[[int, int, int], Result]


def of_result(value: int, bits: int = 32) -> int:
    """SF, ZF and PF."""
    even = bin(value & 0xFF).count("1") % 2 == 0
    return (SF if value >> bits - 1 & 1 else 0) | (ZF if value == 0 else 0) | (PF if even else 0)


def added(a: int, b: int, carry: int = 0, bits: int = 32) -> tuple[int, int]:
    total, mask = a + b + carry, (1 << bits) - 1
    value = total & mask
    flags = of_result(value, bits) | (CF if total > mask else 0)
    flags |= AF if (a & 15) + (b & 15) + carry > 15 else 0
    flags |= OF if ~(a ^ b) & (a ^ value) & 1 << bits - 1 else 0
    return value, flags


def subtracted(a: int, b: int, borrow: int = 0, bits: int = 32) -> tuple[int, int]:
    mask = (1 << bits) - 1
    value = a - b - borrow & mask
    flags = of_result(value, bits) | (CF if a < b + borrow else 0)
    flags |= AF if (a & 15) < (b & 15) + borrow else 0
    flags |= OF if (a ^ b) & (a ^ value) & 1 << bits - 1 else 0
    return value, flags


def logic(value: int) -> Result:
    return value, of_result(value), AF


def keep_carry(result: tuple[int, int], flags: int) -> Result:
    return result[0], result[1] & ~CF | flags & CF, 0


def rotated(value: int, carry: int, flags: int, *, left: bool) -> Result:
    """OF of a rotation by one: of the two highest bits, or of the highest and CF (vol. 2, RCL)."""
    top = value >> 31
    over = top ^ carry if left else top ^ (value >> 30 & 1)
    return value, flags & ~(CF | OF) | (CF if carry else 0) | (OF if over else 0), 0


def shifted_left(value: int, count: int) -> Result:
    wide = value << count
    return wide & M32, of_result(wide & M32) | (CF if wide >> 32 & 1 else 0), AF | OF


def rol(m: int, _: int, f: int) -> Result:
    return rotated((m << 1 | m >> 31) & M32, m >> 31, f, left=True)


def rcl(m: int, _: int, f: int) -> Result:
    return rotated((m << 1 | f & CF) & M32, m >> 31, f, left=True)


def rcr(m: int, _: int, f: int) -> Result:
    return rotated(m >> 1 | (f & CF) << 31, m & 1, f, left=False)


def shl(m: int, _: int, _f: int) -> Result:
    value, flags, _undefined = shifted_left(m, 1)
    assert value is not None
    return value, flags | (OF if value >> 31 != flags & CF else 0), AF


def sar(m: int, _: int, _f: int) -> Result:
    value = m >> 1 | m & 1 << 31
    return value, of_result(value) | m & CF, AF


def condition(number: int, flags: int) -> bool:
    """SDM vol. 1, appendix B: conditions 0 to 15."""
    cf, pf, zf, sf, of = (bool(flags & flag) for flag in (CF, PF, ZF, SF, OF))
    true = (of, cf, zf, cf or zf, sf, pf, sf != of, zf or sf != of)[number >> 1]
    return true != bool(number & 1)


READ_BY = (OF, CF, ZF, CF | ZF, SF, PF, SF | OF, ZF | SF | OF)

#: Sets flags from EAX and EBX; the value goes to EAX.
FIRST: dict[str, tuple[str, Operation]] = {
    "add": ("01 d8", lambda a, b, f: (*added(a, b), 0)),
    "adc": ("11 d8", lambda a, b, f: (*added(a, b, f & CF), 0)),
    "sub": ("29 d8", lambda a, b, f: (*subtracted(a, b), 0)),
    "sbb": ("19 d8", lambda a, b, f: (*subtracted(a, b, f & CF), 0)),
    "cmp": ("39 d8", lambda a, b, f: (None, subtracted(a, b)[1], 0)),
    "cmp8": ("38 d8", lambda a, b, f: (None, subtracted(a & 0xFF, b & 0xFF, 0, 8)[1], 0)),
    "and": ("21 d8", lambda a, b, f: logic(a & b)),
    "inc": ("40", lambda a, b, f: keep_carry(added(a, 1), f)),
    "neg": ("f7 d8", lambda a, b, f: (*subtracted(0, a), 0)),
    "shl cl": ("d3 e0", lambda a, b, f: shifted_left(a, COUNT)),
    "rol": ("d1 c0", rol),
    "stc": ("f9", lambda a, b, f: (None, f | CF, 0)),
    "nothing": ("", lambda a, b, f: (None, f, 0)),
}

#: At [ESI], with EAX; flags that it reads. None for a value: no write.
SECOND: dict[str, tuple[str, Operation, int]] = {
    "add": ("01 06", lambda m, a, f: (*added(m, a), 0), 0),
    "lock adc": ("f0 11 06", lambda m, a, f: (*added(m, a, f & CF), 0), CF),
    "adc": ("11 06", lambda m, a, f: (*added(m, a, f & CF), 0), CF),
    "sbb": ("19 06", lambda m, a, f: (*subtracted(m, a, f & CF), 0), CF),
    "inc": ("ff 06", lambda m, a, f: keep_carry(added(m, 1), f), 0),
    "dec": ("ff 0e", lambda m, a, f: keep_carry(subtracted(m, 1), f), 0),
    "neg": ("f7 1e", lambda m, a, f: (*subtracted(0, m), 0), 0),
    "not": ("f7 16", lambda m, a, f: (~m & M32, f, 0), 0),
    "bts": ("0f ba 2e 05", lambda m, a, f: (m | 1 << BIT, f & ZF | m >> BIT & 1, ALL & ~(CF | ZF)), 0),
    "rol": ("d1 06", rol, 0),
    "rcl": ("d1 16", rcl, CF),
    "rcr": ("d1 1e", rcr, CF),
    "shl": ("d1 26", shl, 0),
    "sar": ("d1 3e", sar, 0),
    "cmp": ("39 06", lambda m, a, f: (None, subtracted(m, a)[1], 0), 0),
    "mov": ("89 06", lambda m, a, f: (a, f, 0), 0),
    "xadd": ("0f c1 06", lambda m, a, f: (*added(m, a), 0), 0),
    **{
        f"set{number:x}": (
            f"0f {0x90 + number:02x} 06",
            lambda m, a, f, number=number: (int(condition(number, f)), f, 0),  # type: ignore[misc]
            READ_BY[number >> 1],
        )
        for number in range(16)
    },
}
WRITE_ONLY = ("mov", *(f"set{number:x}" for number in range(16)))
#: Changes what it does not read of EAX: what is behind it is not compared.
EXCHANGES = ("xadd",)

#: Sets EDX from the flags; flags that it reads.
THIRD: dict[str, tuple[str, Callable[[int], int], int]] = {
    "nothing": ("", lambda f: 0, 0),
    "adc": ("83 d2 00", lambda f: f & CF, CF),
    "sbb": ("83 da 00", lambda f: -(f & CF) & M32, CF),
    "setl": ("0f 9c c2", lambda f: int(condition(12, f)), SF | OF),
    "setbe": ("0f 96 c2", lambda f: int(condition(6, f)), CF | ZF),
    "cmovp": ("0f 4a d1", lambda f: COUNT if f & PF else 0, PF),
    "pushf": ("9c 5a 81 e2 d5 08 00 00", lambda f: f, ALL),
    "jmp": ("eb 00 9c 5a 81 e2 d5 08 00 00", lambda f: f, ALL),
}

NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 4, 5, 0x10, 0x44, 0x7F, 0x80, 0x84, 0xFF, 0x8D5, 0x7FFFFFFF, 1 << 31, M32]),
    st.integers(0, M32),
)
PROGRAMS = st.tuples(
    st.sampled_from(sorted(FIRST)), st.sampled_from(sorted(SECOND)), st.sampled_from(sorted(THIRD))
)
STYLES = pytest.mark.parametrize("one_at_a_time", [False, True], ids=["inline", "one-at-a-time"])
RUNS = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


def run(backend: Backend, one_at_a_time: bool, code: bytes, regs: dict[str, int], answer: int) -> tuple:
    """(values written outside RAM, registers at the end)."""
    with Bench(backend, "p32", code, regs=regs) as bench:
        if not one_at_a_time:
            script = Script([answer])
            assert isinstance(bench.run_inline(script), Halt)
            return [seen[3] for seen in script.seen if seen[0] == "mmio_write"], bench.vcpu.registers()
        written = []
        while isinstance(exit := bench.run(), Access):
            if isinstance(exit, ReadAccess):
                exit.reply(answer)
            else:
                written.append(exit.value)
        assert isinstance(exit, Halt)
        return written, bench.vcpu.registers()


@STYLES
@RUNS
@example(("nothing", "adc", "sbb"), 0x49E1, 0, 7, 0)
@example(("add", "setc", "nothing"), 0x7FFFFFFF, 0x7FFFFFFF, 0, 0)
@example(("sub", "set6", "pushf"), 0xFF, 1, 0, 0)
@example(("shl cl", "set4", "pushf"), 0x7FFFFFFF, 0, 0, 0)
@example(("add", "rcl", "pushf"), 4, M32, 0x80000000, 0)
@given(PROGRAMS, NUMBERS, NUMBERS, NUMBERS, st.sampled_from([0, CF, ALL, OF | ZF, SF | AF]))
def test_flags_are_the_sdms(
    backend: Backend, one_at_a_time: bool, program: tuple[str, str, str], a: int, b: int, m: int, flags: int
) -> None:
    first, second, third = program
    undefined = 0
    code, compute = FIRST[first]
    value, after, lost = compute(a, b, flags)
    undefined |= lost
    eax = a if value is None else value
    text, change, reads = SECOND[second]
    if reads & undefined:
        return
    stored, behind, lost = change(m, eax, after)
    if second not in (*WRITE_ONLY, "not"):
        kept = ZF if second == "bts" else CF if second in ("inc", "dec") else 0
        if second in ("rol", "rcl", "rcr"):
            kept = ALL & ~(CF | OF)
        undefined = undefined & kept | lost
    tail, look, reads = THIRD[third]
    seen = look(behind)
    regs = {"rax": a, "rbx": b, "rcx": COUNT, "rdx": 0, "rsi": HOLE, "rflags": 2 | flags}

    written, left = run(backend, one_at_a_time, bytes.fromhex(code + text + tail), regs, m)

    assert written == ([] if stored is None else [stored])
    if second not in EXCHANGES:
        assert left.rax == eax
    if not reads & undefined or third in ("pushf", "jmp"):
        mask = ~undefined if third in ("pushf", "jmp") else -1
        assert left.rdx & mask == seen & mask
    if third in ("nothing", "setl", "setbe", "cmovp"):
        assert left.rflags & ALL & ~undefined == behind & ~undefined


@RUNS
@example(("add", "setc"), 0x7FFFFFFF, 0x7FFFFFFF, 0)
@example(("sub", "set6"), 0xFF, 1, 0)
@given(st.tuples(st.sampled_from(sorted(FIRST)), st.sampled_from(sorted(SECOND))), NUMBERS, NUMBERS,
       st.sampled_from([0, CF, ALL, OF | ZF, SF | AF]))  # fmt: skip
def test_a_fault_pushes_the_flags_from_before(
    backend: Backend, program: tuple[str, str], a: int, b: int, flags: int
) -> None:
    """#PF at the second instruction: its RFLAGS in the frame of 64-bit code (SDM vol. 3, 6.14.2)."""
    first, second = program
    code, compute = FIRST[first]
    if first == "inc":
        code = "ff c0"  # 40h is a prefix there
    _, expected, undefined = compute(a, b, flags)
    regs = Registers(rax=a, rbx=b, rcx=COUNT, rsi=1 << 39, rsp=0x6F00, rip=0, rflags=2 | flags)
    units = tuple(Unit(bytes.fromhex(text)) for text in (code, SECOND[second][0]) if text)
    case = Case(mode="64", units=units, regs=regs)
    lane = Lane(backend)
    try:
        lane.enter(case)
        outcome = lane.run(case)
        # Above the error code: RIP, CS, RFLAGS.
        pushed = int.from_bytes(lane.ram[outcome.regs[6] + 24 : outcome.regs[6] + 32], "little")
    finally:
        lane.close()
    assert outcome.end == "#14"
    assert pushed & ALL & ~undefined == expected & ~undefined


@pytest.mark.unicorn
@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("counted", [False, True], ids=["free", "counted"])
@pytest.mark.parametrize("code", ["2c 03 2c 03", "f3 a4", "04 ff 04 ff 04 ff", "f3 a6"])
def test_equal_operations_in_a_row_and_repeated_ones(
    engine: str, counted: bool, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Unicorn's own copy of the flags is an old one: it is made when another kind of operation follows.
    REP MOVS goes on in a block of its own, behind the CMP that has set the flags."""
    from vmmsim.backends import open_backend
    from vmmsim.backends.base import VmOptions

    monkeypatch.setenv("VMMSIM_UNICORN", engine)
    text = bytes.fromhex(code)
    options = VmOptions(count_insns=counted)
    before = bytes.fromhex("3c 10") if text[0] == 0xF3 else b""  # cmp al, 0x10
    regs = {"rax": 0xE1, "rcx": 3, "rsi": HOLE, "rdi": 0x5000, "rflags": 2}
    with Bench(open_backend("unicorn")[0], "p32", before + text, regs=regs, options=options) as bench:
        script = Script([7] * 3)
        assert isinstance(bench.run_inline(script), Halt)
        rflags = bench.vcpu.registers().rflags & ALL
    al = 0xE1
    if text[0] == 0xF3:
        _, expected = subtracted(al, 0x10, 0, 8)
        if text[1] == 0xA6:  # one comparison: 7 with 0, in RAM
            _, expected = subtracted(7, 0, 0, 8)
    else:
        for number in text[1::2]:
            al, expected = (subtracted if text[0] == 0x2C else added)(al, number, 0, 8)
    assert rflags == expected
