"""Cases: loads and stores of every width, unaligned, over pages, and half in RAM."""

from __future__ import annotations

from .bench import HOLE, HOLE_END
from .cases import Case, mr, mw

__all__ = ["CASES"]

#: MMIO far above RAM: below 4 GiB, since the presets' page tables map that much.
_FAR = 0xF0000000
_EDGE = bytes.fromhex("a0a1a2a3a4a5a6a7")

CASES = (
    Case(
        name="mmio_load_widths",
        modes=("p32",),
        code="""
            a0 00 80 00 00                 mov al, [0x8000]
            66 8b 1d 02 80 00 00           mov bx, [0x8002]
            8b 0d 04 80 00 00              mov ecx, [0x8004]
            0f b6 15 08 80 00 00           movzx edx, byte ptr [0x8008]
            0f bf 35 0a 80 00 00           movsx esi, word ptr [0x800a]
            8b 3d fc 9f 00 00              mov edi, [0x9ffc]
        """,
        regs={"rax": 0xFFFFFFFF, "rbx": 0xFFFFFFFF},
        expect=(
            mr(HOLE, 1, 0x11),
            mr(HOLE + 2, 2, 0x3322),
            mr(HOLE + 4, 4, 0x88776655),
            mr(HOLE + 8, 1, 0x80),
            mr(HOLE + 10, 2, 0x8001),
            mr(HOLE_END - 4, 4, 0xDEADBEEF),
        ),
        after={
            "rax": 0xFFFFFF11,
            "rbx": 0xFFFF3322,
            "rcx": 0x88776655,
            "rdx": 0x80,
            "rsi": 0xFFFF8001,
            "rdi": 0xDEADBEEF,
        },
    ),
    Case(
        name="mmio_store_widths",
        modes=("p32",),
        code="""
            a2 00 80 00 00                 mov [0x8000], al
            66 89 1d 02 80 00 00           mov [0x8002], bx
            89 0d 04 80 00 00              mov [0x8004], ecx
            c6 05 08 80 00 00 7f           mov byte ptr [0x8008], 0x7f
            66 c7 05 0a 80 00 00 01 80     mov word ptr [0x800a], 0x8001
            c7 05 fc 9f 00 00 ef be ad de  mov dword ptr [0x9ffc], 0xdeadbeef
        """,
        regs={"rax": 0x11223344, "rbx": 0x55667788, "rcx": 0x99AABBCC},
        expect=(
            mw(HOLE, 1, 0x44),
            mw(HOLE + 2, 2, 0x7788),
            mw(HOLE + 4, 4, 0x99AABBCC),
            mw(HOLE + 8, 1, 0x7F),
            mw(HOLE + 10, 2, 0x8001),
            mw(HOLE_END - 4, 4, 0xDEADBEEF),
        ),
    ),
    Case(
        name="mmio_16bit",
        modes=("real", "p16"),
        code="""
            a0 00 80                       mov al, [0x8000]
            8b 0e 02 80                    mov cx, [0x8002]
            66 8b 16 05 80                 mov edx, [0x8005]
            a2 09 80                       mov [0x8009], al
            89 0e 0b 80                    mov [0x800b], cx
            66 89 16 0d 80                 mov [0x800d], edx
        """,
        expect=(
            mr(HOLE, 1, 0x11),
            mr(HOLE + 2, 2, 0x3322),
            mr(HOLE + 5, 4, 0x77665544),
            mw(HOLE + 9, 1, 0x11),
            mw(HOLE + 11, 2, 0x3322),
            mw(HOLE + 13, 4, 0x77665544),
        ),
        after={"rax": 0x11, "rcx": 0x3322, "rdx": 0x77665544},
    ),
    Case(
        name="mmio_by_segments",
        modes=("real",),
        code="""
            b8 ff 07                       mov ax, 0x7ff
            8e c0                          mov es, ax
            26 8b 1e 12 00                 mov bx, es:[0x12]
            8e d8                          mov ds, ax
            88 1e 13 10                    mov [0x1013], bl
        """,
        expect=(mr(HOLE + 2, 2, 0x1234), mw(0x9003, 1, 0x34)),
        after={"rbx": 0x1234},
    ),
    Case(
        name="mmio_widths_64bit",
        modes=("l64", "l64u"),
        code="""
            8a 06                          mov al, [rsi]
            66 8b 5e 02                    mov bx, [rsi+2]
            8b 4e 04                       mov ecx, [rsi+4]
            48 8b 56 08                    mov rdx, [rsi+8]
            48 63 7e 10                    movsxd rdi, dword ptr [rsi+0x10]
            88 46 20                       mov [rsi+0x20], al
            66 89 5e 22                    mov [rsi+0x22], bx
            89 4e 24                       mov [rsi+0x24], ecx
            48 89 56 28                    mov [rsi+0x28], rdx
            48 c7 46 30 fe ff ff ff        mov qword ptr [rsi+0x30], -2
        """,
        regs={"rsi": HOLE, "rax": 2**64 - 1, "rbx": 2**64 - 1, "rcx": 2**64 - 1},
        expect=(
            mr(HOLE, 1, 0x11),
            mr(HOLE + 2, 2, 0x3322),
            mr(HOLE + 4, 4, 0x88776655),
            mr(HOLE + 8, 8, 0x8877665544332211),
            mr(HOLE + 0x10, 4, 0x80000001),
            mw(HOLE + 0x20, 1, 0x11),
            mw(HOLE + 0x22, 2, 0x3322),
            mw(HOLE + 0x24, 4, 0x88776655),
            mw(HOLE + 0x28, 8, 0x8877665544332211),
            mw(HOLE + 0x30, 8, 0xFFFFFFFFFFFFFFFE),
        ),
        after={
            "rax": 0xFFFFFFFFFFFFFF11,
            "rbx": 0xFFFFFFFFFFFF3322,
            "rcx": 0x88776655,
            "rdx": 0x8877665544332211,
            "rdi": 0xFFFFFFFF80000001,
        },
    ),
    Case(
        name="mmio_unaligned",
        modes=("l64", "l64u"),
        code="""
            66 8b 46 01                    mov ax, [rsi+1]
            8b 5e 03                       mov ebx, [rsi+3]
            48 8b 4e 05                    mov rcx, [rsi+5]
            66 89 46 11                    mov [rsi+0x11], ax
            89 5e 13                       mov [rsi+0x13], ebx
            48 89 4e 15                    mov [rsi+0x15], rcx
        """,
        regs={"rsi": HOLE},
        expect=(
            mr(HOLE + 1, 2, 0x0201),
            mr(HOLE + 3, 4, 0x06050403),
            mr(HOLE + 5, 8, 0x0E0D0C0B0A090807),
            mw(HOLE + 0x11, 2, 0x0201),
            mw(HOLE + 0x13, 4, 0x06050403),
            mw(HOLE + 0x15, 8, 0x0E0D0C0B0A090807),
        ),
        after={"rax": 0x0201, "rbx": 0x06050403, "rcx": 0x0E0D0C0B0A090807},
    ),
    Case(
        name="mmio_over_a_page",
        modes=("l64", "l64u"),
        code="""
            48 8b 46 fd                    mov rax, [rsi-3]
            48 8b 5e fb                    mov rbx, [rsi-5]
            8b 4e ff                       mov ecx, [rsi-1]
            66 8b 56 ff                    mov dx, [rsi-1]
            48 89 46 fd                    mov [rsi-3], rax
            48 89 5e fb                    mov [rsi-5], rbx
            89 4e ff                       mov [rsi-1], ecx
            66 89 56 ff                    mov [rsi-1], dx
        """,
        regs={"rsi": 0x9000},
        expect=(
            mr(0x8FFD, 3, 0x030201),
            mr(0x9000, 5, 0x0807060504),
            mr(0x8FFB, 5, 0x1514131211),
            mr(0x9000, 3, 0x181716),
            mr(0x8FFF, 1, 0x21),
            mr(0x9000, 3, 0x242322),
            mr(0x8FFF, 1, 0x31),
            mr(0x9000, 1, 0x32),
            mw(0x8FFD, 3, 0x030201),
            mw(0x9000, 5, 0x0807060504),
            mw(0x8FFB, 5, 0x1514131211),
            mw(0x9000, 3, 0x181716),
            mw(0x8FFF, 1, 0x21),
            mw(0x9000, 3, 0x242322),
            mw(0x8FFF, 1, 0x31),
            mw(0x9000, 1, 0x32),
        ),
        after={
            "rax": 0x0807060504030201,
            "rbx": 0x1817161514131211,
            "rcx": 0x24232221,
            "rdx": 0x3231,
        },
    ),
    Case(
        name="mmio_over_a_page_32bit",
        modes=("p32",),
        code="""
            8b 46 ff                       mov eax, [esi-1]
            8b 5e fd                       mov ebx, [esi-3]
            89 46 fe                       mov [esi-2], eax
            66 89 5e ff                    mov [esi-1], bx
        """,
        regs={"rsi": 0x9000},
        expect=(
            mr(0x8FFF, 1, 0x01),
            mr(0x9000, 3, 0x040302),
            mr(0x8FFD, 3, 0x131211),
            mr(0x9000, 1, 0x14),
            mw(0x8FFE, 2, 0x0201),
            mw(0x9000, 2, 0x0403),
            mw(0x8FFF, 1, 0x11),
            mw(0x9000, 1, 0x12),
        ),
        after={"rax": 0x04030201, "rbx": 0x14131211},
    ),
    Case(
        name="ram_then_mmio",
        modes=("l64", "l64u"),
        code="""
            48 8b 46 fd                    mov rax, [rsi-3]
            48 8b 5e fb                    mov rbx, [rsi-5]
            66 8b 4e ff                    mov cx, [rsi-1]
            48 89 56 fd                    mov [rsi-3], rdx
            66 89 56 ff                    mov [rsi-1], dx
        """,
        regs={"rsi": HOLE, "rdx": 0x0807060504030201},
        memory={HOLE - 8: _EDGE},
        expect=(
            mr(HOLE, 5, 0x1514131211),
            mr(HOLE, 3, 0x232221),
            mr(HOLE, 1, 0x31),
            mw(HOLE, 5, 0x0807060504),
            mw(HOLE, 1, 0x02),
        ),
        after={"rax": 0x1514131211A7A6A5, "rbx": 0x232221A7A6A5A4A3, "rcx": 0x31A7},
        stored={HOLE - 8: bytes.fromhex("a0a1a2a3a4010201")},
    ),
    Case(
        name="mmio_then_ram",
        modes=("l64", "l64u"),
        code="""
            48 8b 46 fd                    mov rax, [rsi-3]
            48 8b 5e fb                    mov rbx, [rsi-5]
            66 8b 4e ff                    mov cx, [rsi-1]
            48 89 56 fd                    mov [rsi-3], rdx
            66 89 56 ff                    mov [rsi-1], dx
        """,
        regs={"rsi": HOLE_END, "rdx": 0x0807060504030201},
        memory={HOLE_END: _EDGE},
        expect=(
            mr(HOLE_END - 3, 3, 0x131211),
            mr(HOLE_END - 5, 5, 0x2524232221),
            mr(HOLE_END - 1, 1, 0x31),
            mw(HOLE_END - 3, 3, 0x030201),
            mw(HOLE_END - 1, 1, 0x01),
        ),
        after={"rax": 0xA4A3A2A1A0131211, "rbx": 0xA2A1A02524232221, "rcx": 0xA031},
        stored={HOLE_END: bytes.fromhex("0205060708a5a6a7")},
    ),
    Case(
        name="ram_edges_32bit",
        modes=("p32",),
        code="""
            a1 fe 7f 00 00                 mov eax, [0x7ffe]
            8b 1d fd 9f 00 00              mov ebx, [0x9ffd]
            89 0d ff 7f 00 00              mov [0x7fff], ecx
            89 0d ff 9f 00 00              mov [0x9fff], ecx
        """,
        regs={"rcx": 0x04030201},
        memory={HOLE - 8: _EDGE, HOLE_END: _EDGE},
        expect=(
            mr(HOLE, 2, 0x1211),
            mr(HOLE_END - 3, 3, 0x232221),
            mw(HOLE, 3, 0x040302),
            mw(HOLE_END - 1, 1, 0x01),
        ),
        after={"rax": 0x1211A7A6, "rbx": 0xA0232221},
        stored={HOLE - 8: bytes.fromhex("a0a1a2a3a4a5a601"), HOLE_END: bytes.fromhex("020304a3")},
    ),
    Case(
        name="mmio_of_16_bytes",
        modes=("l64", "l64u"),
        code="""
            0f 10 06                       movups xmm0, [rsi]
            0f 11 46 20                    movups [rsi+0x20], xmm0
            0f 10 4e 03                    movups xmm1, [rsi+3]
            0f 11 0f                       movups [rdi], xmm1
        """,
        regs={"rsi": HOLE, "rdi": 0x5000},
        expect=(
            mr(HOLE, 8, 0x0807060504030201),
            mr(HOLE + 8, 8, 0x100F0E0D0C0B0A09),
            mw(HOLE + 0x20, 8, 0x0807060504030201),
            mw(HOLE + 0x28, 8, 0x100F0E0D0C0B0A09),
            mr(HOLE + 3, 8, 0x1817161514131211),
            mr(HOLE + 11, 8, 0x201F1E1D1C1B1A19),
        ),
        stored={0x5000: bytes(range(0x11, 0x21))},
    ),
    Case(
        name="mmio_of_8_bytes_in_32bit_code",
        modes=("p32",),
        code="""
            0f 6f 06                       movq mm0, qword ptr [esi]
            0f 7f 46 08                    movq qword ptr [esi+8], mm0
        """,
        regs={"rsi": HOLE},
        expect=(mr(HOLE, 8, 0x0807060504030201), mw(HOLE + 8, 8, 0x0807060504030201)),
    ),
    Case(
        name="mmio_far_above_ram",
        modes=("p32", "l64", "l64u"),
        code="""
            8b 06                          mov eax, [esi]
            66 89 46 04                    mov [esi+4], ax
        """,
        regs={"rsi": _FAR},
        expect=(mr(_FAR, 4, 0xCAFEF00D), mw(_FAR + 4, 2, 0xF00D)),
        after={"rax": 0xCAFEF00D},
    ),
    Case(
        # Without an interrupt controller on board its address is like any other.
        name="mmio_at_the_local_apic",
        modes=("p32", "l64"),
        code="""
            8b 46 20                       mov eax, [esi+0x20]
            c7 86 b0 00 00 00 00 00 00 00  mov dword ptr [esi+0xb0], 0
        """,
        regs={"rsi": 0xFEE00000},
        expect=(mr(0xFEE00020, 4, 0), mw(0xFEE000B0, 4, 0)),
    ),
)
