"""What an entry of divergences.toml explains, and what it does not: no CPU is needed to know."""

from __future__ import annotations

import pytest

from vmmsim.diff.divergences import Divergence, divergences, explain, parse
from vmmsim.errors import UsageError

CPUS = ("kvm/pvm", "unicorn-2.1.4/native")
HEAD = """
[[divergence]]
id = "x"
title = "x"
kvm.any = "this"
unicorn = "that"
architecture = "this"
right = "kvm"
source = "a test"
test = "none"
"""


def entry(text: str) -> Divergence:
    return parse(HEAD + text)["x"]


def explains(
    text: str,
    insns: list[tuple[str, str]],
    fields: list[tuple[str, int]],
    ends: tuple[str, str] = ("end", "end"),
    mode: str = "32",
) -> bool:
    return entry(text).explains([(bytes.fromhex(c), t) for c, t in insns], mode, fields, ends, CPUS)


def test_an_entry_asks_for_the_bytes_where_the_text_says_too_little() -> None:
    text = 'insn = "test .*"\ncode = "f6c[89a-f].*"\ndiffers = { reg = -1 }'
    fields = [("rax", 1)]
    assert explains(text, [("f6c813", "test al, 0x13")], fields)
    assert not explains(text, [("f6c013", "test al, 0x13")], fields)
    # Text and bytes are of one instruction.
    assert not explains(text, [("f6c013", "test al, 0x13"), ("f6c813", "(bad)")], fields)


def test_an_entry_asks_how_the_program_ended() -> None:
    text = 'insn = ".*"\nended = "#\\\\d+"\ndiffers = { rsp = 0xFFFF0000 }'
    insns = [("f7f1", "div cx")]
    assert explains(text, insns, [("rsp", 0x12340000)], ("#0", "#0"))
    assert not explains(text, insns, [("rsp", 0x12340000)])
    assert not explains(text, insns, [("rsp", 0x12340001)], ("#0", "#0"))
    assert not explains(text, insns, [("rsp", 0x12340000), ("rax", 1)], ("#0", "#0"))
    assert not explains(text, insns, [("rsp", 0x12340000)], ("#0", "#13"))


def test_an_entry_asks_for_an_instruction_behind_its_own() -> None:
    text = 'insn = "p.* mm.*"\nthen = "f.*"\ndiffers = { "fpu.fsw" = 1 }'
    mmx, x87 = ("0fefc0", "pxor mm0, mm0"), ("d9e1", "fabs")
    fields = [("fpu.fsw", 1)]
    assert explains(text, [mmx, x87], fields)
    assert not explains(text, [x87, mmx], fields)
    assert not explains(text, [mmx], fields)


@pytest.mark.parametrize("name", ["insn", "code", "then", "ended"])
def test_a_pattern_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="'x' has a pattern that is none"):
        entry(f'{name} = "("')


def test_entries_explain_a_difference_together_only_by_their_own_conditions() -> None:
    one = [(bytes.fromhex("d92f"), "fldcw word ptr [rdi]")]
    ends = ("end", "end")
    assert explain(one, "64u", [("fpu.fsw", 0x8080)], ends, CPUS) == "exception-that-fldcw-unmasks"
    assert explain(one, "64u", [("fpu.fsw", 0x0001)], ends, CPUS) != "exception-that-fldcw-unmasks"
    assert explain(one, "64u", [("fpu.fsw", 0x8080)], ("#6", "#6"), CPUS) is None
    assert explain(one, "64u", [("fpu.fsw", 0x8080), ("rbx", 1)], ends, CPUS) is None


def test_no_entry_but_the_masked_ones_explains_registers_of_a_plain_addition() -> None:
    """The instructions that all programs are made of: a wrong sum is never a known difference."""
    for mode in ("16", "32", "64", "64u"):
        for code, text in (("01c8", "add eax, ecx"), ("89c8", "mov eax, ecx"), ("29c8", "sub eax, ecx")):
            for fields in ([("rax", 1)], [("rax", 1), ("rflags", 0x44)], [("rflags", 1)]):
                known = explain([(bytes.fromhex(code), text)], mode, fields, ("end", "end"), CPUS)
                assert known is None, (mode, text, fields)


def test_each_entry_with_a_pattern_has_a_program_and_what_may_differ() -> None:
    for id, one in divergences().items():
        if one.insn:
            assert one.program is not None, id
            assert one.differs or one.ends or one.ignore, id
            assert not one.modes or one.program.mode in one.modes, id


@pytest.mark.parametrize("host", ["amd 19h", "AMD", "AMD 25h x", "kvm", "AMD 19", "pvm  AMD 19h", ""])
@pytest.mark.parametrize("name", ["seen", "same"])
def test_a_host_that_is_none_is_refused(name: str, host: str) -> None:
    with pytest.raises(UsageError, match=f"'x' names the host '{host}'"):
        entry(f'{name} = ["{host}"]')


def test_an_entry_is_only_about_kinds_that_it_tells_of() -> None:
    with pytest.raises(UsageError, match="'x' is only about pvm"):
        entry('only = ["pvm"]')
