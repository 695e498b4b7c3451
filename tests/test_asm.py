"""`vmmsim.asm.assemble` makes what the text says, or an error: where keystone 0.9.2 would make another
instruction in silence (findings/keystone-*.sh), the source is refused with its line."""

from __future__ import annotations

import subprocess
import sys

import capstone
import pytest

from vmmsim.asm import assemble
from vmmsim.errors import ImageError

pytest.importorskip("keystone")

_MODES = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}


@pytest.mark.parametrize(
    ("bits", "text", "what"),
    [
        (64, "nop\nmov rax, [rax + rsp]", "stack pointer out of the address at line 2"),
        (64, "mov [r13+rsp], al", "stack pointer"),
        (64, "mov rax, [rsp*1]", "stack pointer"),
        (32, "mov eax, [EAX+ESP]", "stack pointer"),
        (16, "nop\n.code32\nmov eax, [eax+esp]", "line 3"),
        (16, "mov ax, [eax*4]", "EAX out of the address at line 1"),
        (64, ".code16\nmov ax, [8+ecx*2]", "ECX"),
    ],
)
def test_an_address_that_would_lose_a_register_is_refused(bits: int, text: str, what: str) -> None:
    with pytest.raises(ImageError, match=what):
        assemble(text, bits)


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        (64, "mov rax, qword ptr [rsp + rax]"),
        (64, "mov rax, qword ptr [rsp + rbx*2]"),
        (64, "lidt [rsp]"),
        (32, "mov eax, dword ptr [eax*4]"),
        (16, "mov ax, word ptr [ebx + eax*4]"),
        (16, "mov ax, word ptr [bx + si]"),
    ],
)
def test_other_addresses_assemble_to_what_they_say(bits: int, text: str) -> None:
    decoded = next(capstone.Cs(capstone.CS_ARCH_X86, _MODES[bits]).disasm(assemble(text, bits), 0))
    assert f"{decoded.mnemonic} {decoded.op_str}" == text


def test_an_address_in_a_quoted_text_is_no_address() -> None:
    assert assemble('.ascii "[rax+rsp]"', 64) == b"[rax+rsp]"


def test_numbers_that_another_engine_has_made_hexadecimal_are_refused() -> None:
    """In a process of its own: what follows would read numbers so too."""
    program = (
        "import keystone\n"
        "from vmmsim.asm import assemble\n"
        "from vmmsim.errors import UsageError\n"
        "print(assemble('mov al, 10', 32).hex())\n"
        "engine = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_32)\n"
        "engine.syntax = keystone.KS_OPT_SYNTAX_NASM\n"
        "engine.asm('mov al, 10')\n"
        "del engine  # a new engine gets its memory, and the radix in it\n"
        "try:\n"
        "    print(assemble('mov al, 10', 32).hex())\n"
        "except UsageError as error:\n"
        "    print('refused' if 'hexadecimal' in str(error) else error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["b00a", "refused"], run.stderr
