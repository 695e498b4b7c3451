"""`vmmsim.asm`: what assemblers make otherwise than a line says is an error that names the line."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from vmmsim.asm import assemble, choose_tool
from vmmsim.asm.numbers import evaluate
from vmmsim.asm.tools import TOOLS, Keystone
from vmmsim.errors import ImageError, UsageError

needs_nasm = pytest.mark.skipif(shutil.which("nasm") is None, reason="NASM is not installed")
needs_as = pytest.mark.skipif(bool(TOOLS["as"].missing()), reason="GNU as is not installed")


@pytest.fixture(autouse=True)
def _needs_keystone(request: pytest.FixtureRequest) -> None:
    if "keystone" in request.node.name or "keystone" in request.fixturenames:
        pytest.importorskip("keystone", reason="keystone-engine has no wheel for this platform")


# Each of these assembles with keystone 0.9.2 and no error.
OTHERWISE = [
    (16, "nop\nmov al, byte [bx]", r"line 2: `mov al, byte \[bx\]`: the source became no code at all"),
    (16, "loop there\n.zero 200\nthere: nop", "line 1: .*the line branches to 0x7cca"),
    (16, "jcxz there\n.zero 200\nthere: nop", "line 1: .*the line branches to 0x7cca"),
    (64, "nop\nmov rcx, [0x2000]", "line 2: .*the line's 0x2000"),
    (32, "mov eax, [ebx+esp]", "line 1: .*registers are EBX, ESP"),
    (32, "push 0xffff", "line 1: .*`push -1`, and the line's number is 0xffff"),
    (32, "pushf", "line 1: .*an operand size of 16 bits"),
    (32, "iret", "line 1: .*an operand size of 16 bits"),
    (16, "mov al, 0x1234", "line 1: .*the line's number is 0x1234"),
    (16, "mov [0x12345], al", "line 1: .*the line's 0x12345"),
    (64, "nop\nmov rax, [rax + rsp]", "line 2: .*registers are RAX, RSP"),
    (64, "mov rax, [rsp*1]", "line 1: "),
    (16, "nop\n.code32\nmov eax, [eax+esp]", "line 3: .*registers are EAX, ESP"),
    (16, "mov ax, [eax*4]", "line 1: .*registers are EAX"),
    (16, "call bx\nret", "line 2: `ret` has an operand size of 32 bits"),
]


@pytest.mark.parametrize(("bits", "source", "says"), OTHERWISE, ids=[case[1] for case in OTHERWISE])
def test_keystone_other_code_than_the_line_says(bits: int, source: str, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        assemble(source, bits, 0x7C00)


def test_keystone_unchecked_code_can_be_had() -> None:
    assert assemble("mov al, 0x1234", 16, check=False) == b"\xb0\x34"


REAL = """
start: mov ax, ds:[bx]
    mov ax, es:[bx+4]
    xlatb
    fstsw ax
    fld st(1)
    rep movsb
    lock inc word ptr [bx]
    mov eax, cr0
    lgdt [0x7c00]
    jmp y
y:  test al, 1
    xchg ax, bx
    in al, dx
    setz al
    cbw
    cwd
    pushad
    enter 8, 0
    shl ax, 1
    movzx eax, byte ptr [bx]
    imul eax, ebx, 5
    int3
    mov word ptr [bx+si-2], -1
    mov byte ptr [bx], 255
    lea ax, [bx+di+8]
    cmp al, 'a'
"""
LONG = """
    mov rax, 0x1122334455667788
    mov rax, [rbx+rcx*4+8]
    mov rax, [rip+8]
    lea rax, [rip+z]
    syscall
    cqo
    iretq
    mov eax, gs:[0]
    movaps xmm0, [rax]
    jmp [rax]
    call rax
z:  movsx rax, al
    add rax, -1
    push 5
    mov cr8, rax
    cmpxchg16b [rdi]
    mov [rax*8], rbx
"""


@pytest.mark.parametrize("tool", ["keystone", pytest.param("as", marks=needs_as)])
@pytest.mark.parametrize(("bits", "source"), [(16, REAL), (64, LONG)], ids=["16", "64"])
def test_what_is_right_is_let_through(tool: str, bits: int, source: str) -> None:
    if tool == "keystone":
        pytest.importorskip("keystone", reason="keystone-engine has no wheel for this platform")
    assert len(assemble(source, bits, 0x7C00, tool=tool)) > 50


BOOT_SECTOR = """
        bits 16
        org 0x7c00
start:  mov ax, [es:bx+4]
.loop:  dec cx
        jnz .loop
        mov al, byte [bx]
        mov word [bx], 5
x       equ 5
        mov al, x
        o32 iret
        call f
        ret
f:      ret
        jmp 8:p
        bits 32
p:      mov eax, [ebx+esp]
        push dword 0xffff
        pushfd
        bits 64
        mov rax, [rel p]
        mov rax, [abs 0x2000]
        mov rax, qword 5
        bits 16
gdt:    dq 0
        times 510-($-$$) db 0
        dw 0xaa55
"""


@needs_nasm
def test_nasm_a_boot_sector() -> None:
    code = assemble(BOOT_SECTOR, 16, 0x7C00, tool="auto")
    assert (len(code), code[-2:]) == (512, b"\x55\xaa")


@needs_nasm
@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("bits 16\nnop\nmov al, 0x1234", "line 3: .*the line's number is 0x1234"),
        ("bits 16\nnop\nmovv al, 1", "at line 3: movv al, 1"),
    ],
)
def test_nasm_names_the_line(source: str, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        assemble(source, 16, tool="nasm")


@needs_as
def test_as_reads_a_label_from_memory() -> None:
    with pytest.raises(ImageError, match=r"line 2: .*the number is read from memory"):
        assemble("nop\nmov si, x\nx: nop", 16, 0x7C00, tool="as")
    assert assemble("mov si, offset x\nx: nop", 16, 0x7C00, tool="as") == bytes.fromhex("be037c90")
    with pytest.raises(ImageError, match="at line 2: movv al, 1"):
        assemble("nop\nmovv al, 1", 16, tool="as")


def test_the_assembler_is_chosen_by_the_source() -> None:
    pytest.importorskip("keystone", reason="keystone-engine has no wheel for this platform")
    assert choose_tool("start:\n  mov ax, 1\nNAME = 5\n.byte 3").name == "keystone"
    with pytest.raises(UsageError, match="no assembler 'masm'"):
        choose_tool("nop", "masm")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("import sys; sys.stdin.readline()", "ended in the middle"),
        ("import time; time.sleep(60)", "was not done"),
    ],
)
def test_an_assembler_that_ends_or_hangs_is_an_error(
    script: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for keystone: the inputs that do this to it are nobody's business."""
    from vmmsim.asm import tools

    real = tools.subprocess.Popen
    monkeypatch.setattr(tools, "_PATIENCE", 1.0)
    monkeypatch.setattr(
        tools.subprocess, "Popen", lambda words, **options: real([sys.executable, "-c", script], **options)
    )
    keystone = Keystone()
    with pytest.raises(ImageError, match=says):
        assemble("nop", 16, tool=keystone)
    assert keystone._child is None  # and the next source gets a new one


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0x10", 16), ("10h", 16), ("0b101", 5), ("10", 10), ("'a'", 97), ("A + 2*(B - 1)", 9), ("-1", -1),
        ("1 << 4 | 1", 17), ("~0", -1), ("unknown", None), ("eax", None), ("", None), ("1 +", None),
        ("1/0", None), ("1 << 99", None),
    ],
)  # fmt: skip
def test_numbers(text: str, value: int | None) -> None:
    assert evaluate(text, {"A": 3, "B": 4}) == value


def test_a_source_that_is_too_long_is_refused() -> None:
    with pytest.raises(ImageError, match="at most 1048576"):
        assemble("nop\n" * 300_000, 16)


def test_the_child_of_keystone_ends_with_its_parent(tmp_path: Path) -> None:
    pytest.importorskip("keystone", reason="keystone-engine has no wheel for this platform")
    import subprocess

    script = (
        "from vmmsim.asm import assemble; from vmmsim.asm.tools import TOOLS; assemble('nop', 16); "
        "print(TOOLS['keystone']._child.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    pid = int(done.stdout)
    assert not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
