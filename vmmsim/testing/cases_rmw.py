"""Cases: read-modify-write, string moves and ROM. A read, then a write, in this order."""

from __future__ import annotations

from .bench import DATA, HIGH_RAM, HOLE, ROM
from .cases import Case, mr, mw

__all__ = ["CASES"]

_BYTES = bytes(range(1, 33))

CASES = (
    Case(
        name="read_modify_write",
        modes=("p32",),
        code="""
            83 06 05                       add dword ptr [esi], 5
            fe 46 04                       inc byte ptr [esi+4]
            66 f7 56 06                    not word ptr [esi+6]
            87 46 08                       xchg [esi+8], eax
            f0 0f c1 5e 0c                 lock xadd [esi+0xc], ebx
            f0 ff 46 10                    lock inc dword ptr [esi+0x10]
            c1 66 14 04                    shl dword ptr [esi+0x14], 4
            0f ba 6e 18 03                 bts dword ptr [esi+0x18], 3
            0f ab 4e 1c                    bts [esi+0x1c], ecx
        """,
        regs={"rsi": HOLE, "rax": 0xAABBCCDD, "rbx": 3, "rcx": 35},
        expect=(
            mr(HOLE, 4, 0x10),
            mw(HOLE, 4, 0x15),
            mr(HOLE + 4, 1, 0xFF),
            mw(HOLE + 4, 1, 0x00),
            mr(HOLE + 6, 2, 0x00FF),
            mw(HOLE + 6, 2, 0xFF00),
            mr(HOLE + 8, 4, 0x01020304),
            mw(HOLE + 8, 4, 0xAABBCCDD),
            mr(HOLE + 12, 4, 0x10),
            mw(HOLE + 12, 4, 0x13),
            mr(HOLE + 16, 4, 0xFFFFFFFF),
            mw(HOLE + 16, 4, 0),
            mr(HOLE + 20, 4, 0x0F0F0F0F),
            mw(HOLE + 20, 4, 0xF0F0F0F0),
            mr(HOLE + 24, 4, 0x1),
            mw(HOLE + 24, 4, 0x9),
            # Bit 35 from 0x801C is bit 3 of the next dword.
            mr(HOLE + 32, 4, 0x2),
            mw(HOLE + 32, 4, 0xA),
        ),
        after={"rax": 0x01020304, "rbx": 0x10},
    ),
    Case(
        name="reads_that_modify_nothing",
        modes=("p32",),
        code="""
            83 3e 07                       cmp dword ptr [esi], 7
            0f 94 c0                       sete al
            f6 46 04 01                    test byte ptr [esi+4], 1
            0f 94 c3                       sete bl
            0f ba 66 08 01                 bt dword ptr [esi+8], 1
            0f 92 c1                       setc cl
        """,
        regs={"rsi": HOLE},
        expect=(mr(HOLE, 4, 7), mr(HOLE + 4, 1, 0xFE), mr(HOLE + 8, 4, 2)),
        after={"rax": 1, "rbx": 1, "rcx": 1},
    ),
    Case(
        # SDM vol. 2, CMPXCHG: the destination is written in both cases.
        name="cmpxchg",
        modes=("p32",),
        code="""
            0f b1 0e                       cmpxchg [esi], ecx
            0f 94 c3                       sete bl
            0f b1 4e 04                    cmpxchg [esi+4], ecx
            0f 94 c7                       sete bh
            b8 07 00 00 00                 mov eax, 7
            f0 0f b1 4e 08                 lock cmpxchg [esi+8], ecx
            0f 94 c2                       sete dl
            f0 0f b1 4e 0c                 lock cmpxchg [esi+0xc], ecx
            0f 94 c6                       sete dh
        """,
        regs={"rsi": HOLE, "rax": 7, "rcx": 9},
        expect=(
            mr(HOLE, 4, 7),
            mw(HOLE, 4, 9),
            mr(HOLE + 4, 4, 0x55),
            mw(HOLE + 4, 4, 0x55),
            mr(HOLE + 8, 4, 7),
            mw(HOLE + 8, 4, 9),
            mr(HOLE + 12, 4, 0x66),
            mw(HOLE + 12, 4, 0x66),
        ),
        after={"rax": 0x66, "rbx": 1, "rdx": 1},
    ),
    Case(
        name="cmpxchg8b",
        modes=("p32",),
        code="""
            0f c7 0e                       cmpxchg8b qword ptr [esi]
            0f 94 05 00 50 00 00           sete [0x5000]
            f0 0f c7 4e 08                 lock cmpxchg8b qword ptr [esi+8]
            0f 94 05 01 50 00 00           sete [0x5001]
        """,
        regs={"rsi": HOLE, "rax": 1, "rdx": 2, "rbx": 3, "rcx": 4},
        data=b"\xcc\xcc",
        expect=(
            mr(HOLE, 8, 0x0000000200000001),
            mw(HOLE, 8, 0x0000000400000003),
            mr(HOLE + 8, 8, 0x0000000600000005),
            mw(HOLE + 8, 8, 0x0000000600000005),
        ),
        after={"rax": 5, "rdx": 6},
        stored={DATA: b"\x01\x00"},
    ),
    Case(
        name="read_modify_write_64bit",
        modes=("l64", "l64u"),
        code="""
            48 83 06 05                    add qword ptr [rsi], 5
            48 87 46 08                    xchg [rsi+8], rax
            f0 48 0f c1 5e 10              lock xadd [rsi+0x10], rbx
            f0 ff 46 18                    lock inc dword ptr [rsi+0x18]
            48 0f b1 4e 20                 cmpxchg [rsi+0x20], rcx
            f0 48 0f b1 4e 28              lock cmpxchg [rsi+0x28], rcx
        """,
        regs={"rsi": HOLE, "rax": 0x8877665544332211, "rbx": 1 << 40, "rcx": 9},
        expect=(
            mr(HOLE, 8, 0xFFFFFFFFFFFFFFFE),
            mw(HOLE, 8, 3),
            mr(HOLE + 8, 8, 7),
            mw(HOLE + 8, 8, 0x8877665544332211),
            mr(HOLE + 16, 8, 1),
            mw(HOLE + 16, 8, (1 << 40) + 1),
            mr(HOLE + 24, 4, 0x7FFFFFFF),
            mw(HOLE + 24, 4, 0x80000000),
            mr(HOLE + 32, 8, 7),
            mw(HOLE + 32, 8, 9),
            mr(HOLE + 40, 8, 0x1_0000_0007),
            mw(HOLE + 40, 8, 0x1_0000_0007),
        ),
        after={"rax": 0x1_0000_0007, "rbx": 1},
    ),
    Case(
        name="read_modify_write_over_edges",
        modes=("l64", "l64u"),
        code="""
            48 83 86 fd 0f 00 00 01        add qword ptr [rsi+0xffd], 1
            83 46 fe 01                    add dword ptr [rsi-2], 1
            66 ff 46 03                    inc word ptr [rsi+3]
        """,
        regs={"rsi": HOLE},
        memory={HOLE - 2: b"\xff\xff"},
        expect=(
            mr(0x8FFD, 3, 0xFFFFFF),
            mr(0x9000, 5, 0x0102030405),
            mw(0x8FFD, 3, 0),
            mw(0x9000, 5, 0x0102030406),
            mr(HOLE, 2, 0x1234),
            mw(HOLE, 2, 0x1235),
            mr(HOLE + 3, 2, 0x00FF),
            mw(HOLE + 3, 2, 0x0100),
        ),
        stored={HOLE - 2: b"\x00\x00"},
    ),
    Case(
        name="push_and_pop_mmio",
        modes=("p32",),
        code="""
            ff 36                          push dword ptr [esi]
            8f 46 04                       pop dword ptr [esi+4]
            ff 56 08                       call dword ptr [esi+8]
        """,
        regs={"rsi": HOLE},
        # The call goes to the instruction behind it, which ends the guest.
        expect=(mr(HOLE, 4, 0x12345678), mw(HOLE + 4, 4, 0x12345678), mr(HOLE + 8, 4, 0x1008)),
        after={"rsp": 0x7BFC},
    ),
    Case(
        name="rep_movs_ram_to_mmio",
        modes=("p32", "l64", "l64u"),
        code="""
            f3 a4                          rep movsb
        """,
        regs={"rsi": DATA, "rdi": HOLE, "rcx": 3},
        data=_BYTES,
        expect=(mw(HOLE, 1, 1), mw(HOLE + 1, 1, 2), mw(HOLE + 2, 1, 3)),
        after={"rsi": DATA + 3, "rdi": HOLE + 3, "rcx": 0},
    ),
    Case(
        name="rep_movs_mmio_to_ram",
        modes=("p32", "l64", "l64u"),
        code="""
            f3 a5                          rep movsd
        """,
        regs={"rsi": HOLE, "rdi": DATA, "rcx": 2},
        expect=(mr(HOLE, 4, 0x04030201), mr(HOLE + 4, 4, 0x08070605)),
        after={"rsi": HOLE + 8, "rdi": DATA + 8, "rcx": 0},
        stored={DATA: bytes(range(1, 9))},
    ),
    Case(
        name="rep_movs_mmio_to_mmio",
        modes=("p32", "l64"),
        code="""
            f3 66 a5                       rep movsw
        """,
        regs={"rsi": HOLE, "rdi": HOLE + 0x100, "rcx": 2},
        expect=(
            mr(HOLE, 2, 0x1111),
            mw(HOLE + 0x100, 2, 0x1111),
            mr(HOLE + 2, 2, 0x2222),
            mw(HOLE + 0x102, 2, 0x2222),
        ),
        after={"rsi": HOLE + 4, "rdi": HOLE + 0x104, "rcx": 0},
    ),
    Case(
        name="rep_movs_backwards",
        modes=("p32",),
        code="""
            fd                             std
            f3 a4                          rep movsb
            a5                             movsd
        """,
        regs={"rsi": HOLE + 0x10, "rdi": DATA + 0x10, "rcx": 2},
        expect=(mr(HOLE + 0x10, 1, 0xAA), mr(HOLE + 0xF, 1, 0xBB), mr(HOLE + 0xE, 4, 0x44332211)),
        after={"rsi": HOLE + 0xA, "rdi": DATA + 0xA, "rcx": 0},
        stored={DATA + 0xE: bytes.fromhex("112233 44".replace(" ", ""))},
    ),
    Case(
        name="movsq_over_a_page",
        modes=("l64", "l64u"),
        code="""
            48 a5                          movsq
        """,
        regs={"rsi": 0x8FFD, "rdi": DATA},
        expect=(mr(0x8FFD, 3, 0x030201), mr(0x9000, 5, 0x0807060504)),
        after={"rsi": 0x9005, "rdi": DATA + 8},
        stored={DATA: bytes(range(1, 9))},
    ),
    Case(
        name="rep_stos",
        modes=("p32", "l64", "l64u"),
        code="""
            f3 ab                          rep stosd
            b1 02                          mov cl, 2
            fd                             std
            f3 66 ab                       rep stosw
        """,
        regs={"rdi": HOLE, "rcx": 2, "rax": 0x12345678},
        expect=(
            mw(HOLE, 4, 0x12345678),
            mw(HOLE + 4, 4, 0x12345678),
            mw(HOLE + 8, 2, 0x5678),
            mw(HOLE + 6, 2, 0x5678),
        ),
        after={"rdi": HOLE + 4, "rcx": 0},
    ),
    Case(
        name="rep_lods",
        modes=("p32", "l64", "l64u"),
        code="""
            f3 ac                          rep lodsb
        """,
        regs={"rsi": HOLE, "rcx": 3, "rax": 0x11223344},
        expect=(mr(HOLE, 1, 0xA1), mr(HOLE + 1, 1, 0xA2), mr(HOLE + 2, 1, 0xA3)),
        after={"rsi": HOLE + 3, "rcx": 0, "rax": 0x112233A3},
    ),
    Case(
        name="repe_cmps_with_ram",
        modes=("p32", "l64u"),
        code="""
            f3 a6                          repe cmpsb
        """,
        regs={"rsi": HOLE, "rdi": DATA, "rcx": 5},
        data=_BYTES,
        # Equal, equal, different: the third comparison ends it.
        expect=(mr(HOLE, 1, 1), mr(HOLE + 1, 1, 2), mr(HOLE + 2, 1, 0x33)),
        after={"rsi": HOLE + 3, "rdi": DATA + 3, "rcx": 2},
    ),
    Case(
        name="cmps_reads_the_source_first",
        modes=("p32",),
        code="""
            f3 66 a7                       repe cmpsw
            0f 94 c0                       sete al
        """,
        regs={"rsi": HOLE, "rdi": HOLE + 0x100, "rcx": 2},
        expect=(
            mr(HOLE, 2, 0x1111),
            mr(HOLE + 0x100, 2, 0x1111),
            mr(HOLE + 2, 2, 0x2222),
            mr(HOLE + 0x102, 2, 0x2222),
        ),
        after={"rsi": HOLE + 4, "rdi": HOLE + 0x104, "rcx": 0, "rax": 1},
        divergence="cmps-order",
        instead={
            "unicorn-*": (
                mr(HOLE + 0x100, 2, 0x1111),
                mr(HOLE, 2, 0x1111),
                mr(HOLE + 0x102, 2, 0x2222),
                mr(HOLE + 2, 2, 0x2222),
            )
        },
    ),
    Case(
        name="repne_scas",
        modes=("p32", "l64u"),
        code="""
            f2 ae                          repne scasb
        """,
        regs={"rdi": HOLE, "rcx": 9, "rax": 0x41},
        expect=(mr(HOLE, 1, 0x40), mr(HOLE + 1, 1, 0x42), mr(HOLE + 2, 1, 0x41)),
        after={"rdi": HOLE + 3, "rcx": 6},
    ),
    Case(
        name="rom_is_read_without_exits",
        modes=("p32", "l64", "l64u"),
        code="""
            8b 06                          mov eax, [esi]
            66 8b 8e 01 01 00 00           mov cx, [esi+0x101]
        """,
        regs={"rsi": ROM},
        after={"rax": 0x03020100, "rcx": 0x0201},
    ),
    Case(
        name="rom_write",
        modes=("p32", "l64", "l64u"),
        code="""
            88 06                          mov [esi], al
            66 89 46 02                    mov [esi+2], ax
            89 46 04                       mov [esi+4], eax
            8b 5e 04                       mov ebx, [esi+4]
        """,
        regs={"rsi": ROM, "rax": 0x11223344},
        expect=(mw(ROM, 1, 0x44), mw(ROM + 2, 2, 0x3344), mw(ROM + 4, 4, 0x11223344)),
        after={"rbx": 0x07060504},
        stored={ROM: bytes(range(8))},
    ),
    Case(
        # The read is from memory; only the write leaves the CPU.
        name="rom_read_modify_write",
        modes=("p32", "l64", "l64u"),
        code="""
            83 06 01                       add dword ptr [esi], 1
            86 46 04                       xchg [esi+4], al
            f0 66 ff 46 08                 lock inc word ptr [esi+8]
        """,
        regs={"rsi": ROM, "rax": 0x99},
        expect=(mw(ROM, 4, 0x03020101), mw(ROM + 4, 1, 0x99), mw(ROM + 8, 2, 0x0909)),
        after={"rax": 4},
        stored={ROM: bytes(range(16))},
    ),
    Case(
        name="rom_edges",
        modes=("p32", "l64", "l64u"),
        code="""
            89 46 fe                       mov [esi-2], eax
            89 47 ff                       mov [edi-1], eax
        """,
        regs={"rsi": ROM, "rdi": HIGH_RAM, "rax": 0x04030201},
        expect=(mw(ROM, 2, 0x0403), mw(HIGH_RAM - 1, 1, 0x01)),
        stored={ROM - 2: bytes.fromhex("01020001"), HIGH_RAM - 1: bytes.fromhex("ff020304")},
    ),
    Case(
        name="rmw_from_ram_into_rom",
        modes=("p32", "l64", "l64u"),
        code="""
            01 46 fe                       add dword ptr [esi-2], eax
        """,
        regs={"rsi": ROM, "rax": 0x00010001},
        memory={ROM - 2: b"\xff\xff"},
        # 0x0100ffff + 0x00010001: the carry goes from RAM into ROM.
        expect=(mw(ROM, 2, 0x0102),),
        divergence="rmw-from-ram-into-rom",
        instead={"unicorn-*/native": (mw(ROM, 2, 0x0101),)},
    ),
    Case(
        name="rom_strings_and_stack",
        modes=("p32",),
        code="""
            f3 aa                          rep stosb
            bc 20 c0 00 00                 mov esp, 0xc020
            50                             push eax
            5b                             pop ebx
        """,
        regs={"rdi": ROM + 0x10, "rcx": 2, "rax": 0x55667788},
        expect=(mw(ROM + 0x10, 1, 0x88), mw(ROM + 0x11, 1, 0x88), mw(ROM + 0x1C, 4, 0x55667788)),
        after={"rsp": 0xC020, "rbx": 0x1F1E1D1C},
        stored={ROM + 0x10: bytes(range(0x10, 0x20))},
    ),
)
