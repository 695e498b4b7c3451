"""Cases: ports of every width, INS and OUTS with and without REP, both directions."""

from __future__ import annotations

from .bench import DATA, HOLE
from .cases import Case, mr, mw, pr, pw

__all__ = ["CASES"]

_BYTES = bytes(range(1, 33))
#: More elements than KVM hands over at once (its buffer is a page of 1024 elements at most).
_MANY = 1030

CASES = (
    Case(
        name="port_widths",
        modes=("p32",),
        code="""
            ec                             in al, dx
            ee                             out dx, al
            66 ed                          in ax, dx
            66 ef                          out dx, ax
            ed                             in eax, dx
            ef                             out dx, eax
            e4 60                          in al, 0x60
            66 e7 61                       out 0x61, ax
            66 e5 62                       in ax, 0x62
            e7 63                          out 0x63, eax
            e5 64                          in eax, 0x64
            e6 65                          out 0x65, al
        """,
        regs={"rax": 0x11223344, "rdx": 0x1233},
        expect=(
            pr(0x1233, 1, 0xA1),
            pw(0x1233, 1, 0xA1),
            pr(0x1233, 2, 0xB2B1),
            pw(0x1233, 2, 0xB2B1),
            pr(0x1233, 4, 0xC4C3C2C1),
            pw(0x1233, 4, 0xC4C3C2C1),
            pr(0x60, 1, 0x7F),
            pw(0x61, 2, 0xC27F),
            pr(0x62, 2, 0x8081),
            pw(0x63, 4, 0xC4C38081),
            pr(0x64, 4, 0xFFFFFFF0),
            pw(0x65, 1, 0xF0),
        ),
        after={"rax": 0xFFFFFFF0, "rdx": 0x1233},
    ),
    Case(
        name="port_widths_16bit",
        modes=("real", "p16"),
        code="""
            ec                             in al, dx
            ee                             out dx, al
            ed                             in ax, dx
            ef                             out dx, ax
            66 ed                          in eax, dx
            66 ef                          out dx, eax
            e4 60                          in al, 0x60
            66 e7 61                       out 0x61, eax
        """,
        regs={"rax": 0x11223344, "rdx": 0xFFF0},
        expect=(
            pr(0xFFF0, 1, 0xA1),
            pw(0xFFF0, 1, 0xA1),
            pr(0xFFF0, 2, 0xB2B1),
            pw(0xFFF0, 2, 0xB2B1),
            pr(0xFFF0, 4, 0xC4C3C2C1),
            pw(0xFFF0, 4, 0xC4C3C2C1),
            pr(0x60, 1, 0x7F),
            pw(0x61, 4, 0xC4C3C27F),
        ),
        after={"rax": 0xC4C3C27F},
    ),
    Case(
        # SDM vol. 1, 3.4.1.1: 8- and 16-bit results keep the rest of RAX, 32-bit ones clear it.
        name="port_widths_64bit",
        modes=("l64", "l64u"),
        code="""
            ec                             in al, dx
            48 89 c3                       mov rbx, rax
            66 ed                          in ax, dx
            48 89 c1                       mov rcx, rax
            ed                             in eax, dx
            66 ef                          out dx, ax
            ef                             out dx, eax
        """,
        regs={"rax": 0x1122334455667788, "rdx": 0xFFFF_FFFF_0000_0300},
        expect=(
            pr(0x300, 1, 0xA1),
            pr(0x300, 2, 0xB2B1),
            pr(0x300, 4, 0x84C3C2C1),
            pw(0x300, 2, 0xC2C1),
            pw(0x300, 4, 0x84C3C2C1),
        ),
        after={"rax": 0x84C3C2C1, "rbx": 0x11223344556677A1, "rcx": 0x112233445566B2B1},
    ),
    Case(
        name="the_last_port",
        modes=("real", "p32", "l64"),
        # The bytes mean the same in every mode: DX is already loaded.
        code="""
            ec                             in al, dx
            ee                             out dx, al
        """,
        regs={"rdx": 0xFFFF},
        expect=(pr(0xFFFF, 1, 0x5A), pw(0xFFFF, 1, 0x5A)),
        after={"rax": 0x5A},
    ),
    Case(
        name="ins_each_width",
        modes=("p32",),
        code="""
            6c                             insb
            66 6d                          insw
            6d                             insd
        """,
        regs={"rdi": DATA, "rdx": 0x300},
        expect=(pr(0x300, 1, 0x11), pr(0x300, 2, 0x3322), pr(0x300, 4, 0x77665544)),
        after={"rdi": DATA + 7},
        stored={DATA: bytes.fromhex("1122334455667700")},
    ),
    Case(
        name="outs_each_width",
        modes=("p32",),
        code="""
            6e                             outsb
            66 6f                          outsw
            6f                             outsd
        """,
        regs={"rsi": DATA, "rdx": 0x300},
        data=_BYTES,
        expect=(pw(0x300, 1, 1), pw(0x300, 2, 0x0302), pw(0x300, 4, 0x07060504)),
        after={"rsi": DATA + 7},
    ),
    Case(
        name="rep_insb",
        modes=("p32",),
        code="""
            f3 6c                          rep insb
        """,
        regs={"rcx": 5, "rdi": DATA, "rdx": 0x300},
        expect=tuple(pr(0x300, 1, 0xA0 + i) for i in range(5)),
        after={"rcx": 0, "rdi": DATA + 5},
        stored={DATA: bytes.fromhex("a0a1a2a3a400")},
    ),
    Case(
        name="rep_insw_backwards",
        modes=("p32",),
        code="""
            fd                             std
            f3 66 6d                       rep insw
        """,
        regs={"rcx": 3, "rdi": DATA + 8, "rdx": 0x300},
        expect=(pr(0x300, 2, 0x1111), pr(0x300, 2, 0x2222), pr(0x300, 2, 0x3333)),
        after={"rcx": 0, "rdi": DATA + 2},
        stored={DATA + 2: bytes.fromhex("0000333322221111")},
    ),
    Case(
        name="rep_insd_over_a_page",
        modes=("p32", "l64", "l64u"),
        code="""
            f3 6d                          rep insd
        """,
        regs={"rcx": 3, "rdi": DATA + 0xFFA, "rdx": 0x300},
        expect=(pr(0x300, 4, 0x04030201), pr(0x300, 4, 0x08070605), pr(0x300, 4, 0x0C0B0A09)),
        after={"rcx": 0, "rdi": DATA + 0xFFA + 12},
        stored={DATA + 0xFFA: bytes(range(1, 13))},
    ),
    Case(
        name="rep_outsb",
        modes=("p32", "l64", "l64u"),
        code="""
            f3 6e                          rep outsb
        """,
        regs={"rcx": 4, "rsi": DATA, "rdx": 0x300},
        data=_BYTES,
        expect=tuple(pw(0x300, 1, i) for i in (1, 2, 3, 4)),
        after={"rcx": 0, "rsi": DATA + 4},
    ),
    Case(
        name="rep_outsd_backwards",
        modes=("p32",),
        code="""
            fd                             std
            f3 6f                          rep outsd
        """,
        regs={"rcx": 3, "rsi": DATA + 8, "rdx": 0x300},
        data=_BYTES,
        expect=(pw(0x300, 4, 0x0C0B0A09), pw(0x300, 4, 0x08070605), pw(0x300, 4, 0x04030201)),
        after={"rcx": 0, "rsi": DATA - 4},
    ),
    Case(
        name="rep_ins_outs_by_segments",
        modes=("real",),
        code="""
            b8 00 05                       mov ax, 0x500
            8e c0                          mov es, ax
            8e d8                          mov ds, ax
            b9 03 00                       mov cx, 3
            f3 6c                          rep insb
            b9 02 00                       mov cx, 2
            f3 6f                          rep outsw
        """,
        regs={"rdx": 0x300, "rdi": 0x10, "rcx": 0xFFFF0000},
        data=_BYTES,
        expect=(
            pr(0x300, 1, 0x61),
            pr(0x300, 1, 0x62),
            pr(0x300, 1, 0x63),
            pw(0x300, 2, 0x0201),
            pw(0x300, 2, 0x0403),
        ),
        # 16-bit address size: only CX counts, the upper half of ECX stays.
        after={"rcx": 0xFFFF0000, "rdi": 0x13, "rsi": 4},
        stored={DATA + 0x10: b"abc"},
    ),
    Case(
        name="rep_with_a_count_of_zero",
        modes=("p32", "l64", "l64u"),
        code="""
            f3 6c                          rep insb
            f3 6e                          rep outsb
            f3 a4                          rep movsb
            f3 aa                          rep stosb
        """,
        regs={"rcx": 0, "rsi": HOLE, "rdi": HOLE + 0x100, "rdx": 0x300},
        after={"rcx": 0, "rsi": HOLE, "rdi": HOLE + 0x100},
    ),
    Case(
        name="rep_insb_many",
        modes=("p32",),
        code="""
            f3 6c                          rep insb
        """,
        regs={"rcx": _MANY, "rdi": DATA, "rdx": 0x300},
        expect=tuple(pr(0x300, 1, i & 0xFF) for i in range(_MANY)),
        after={"rcx": 0, "rdi": DATA + _MANY},
        stored={DATA: bytes(i & 0xFF for i in range(_MANY)) + b"\0"},
    ),
    Case(
        name="rep_outsb_many",
        modes=("p32",),
        code="""
            f3 6e                          rep outsb
        """,
        regs={"rcx": _MANY, "rsi": DATA, "rdx": 0x300},
        data=bytes(i & 0xFF for i in range(_MANY)),
        expect=tuple(pw(0x300, 1, i & 0xFF) for i in range(_MANY)),
        after={"rcx": 0, "rsi": DATA + _MANY},
    ),
    Case(
        name="ins_to_mmio",
        modes=("p32",),
        code="""
            6c                             insb
            6d                             insd
        """,
        regs={"rdi": HOLE + 0x10, "rdx": 0x300},
        expect=(
            pr(0x300, 1, 0x42),
            mw(HOLE + 0x10, 1, 0x42),
            pr(0x300, 4, 0x04030201),
            mw(HOLE + 0x11, 4, 0x04030201),
        ),
        after={"rdi": HOLE + 0x15},
    ),
    Case(
        name="rep_ins_to_mmio",
        modes=("p32",),
        code="""
            f3 6c                          rep insb
        """,
        regs={"rcx": 3, "rdi": HOLE + 0x10, "rdx": 0x300},
        expect=(
            pr(0x300, 1, 0x41),
            mw(HOLE + 0x10, 1, 0x41),
            pr(0x300, 1, 0x42),
            mw(HOLE + 0x11, 1, 0x42),
            pr(0x300, 1, 0x43),
            mw(HOLE + 0x12, 1, 0x43),
        ),
        after={"rcx": 0, "rdi": HOLE + 0x13},
        divergence="rep-ins-to-mmio",
        instead={
            "kvm/*": (
                pr(0x300, 1, 0x41),
                pr(0x300, 1, 0x42),
                pr(0x300, 1, 0x43),
                mw(HOLE + 0x10, 1, 0x41),
                mw(HOLE + 0x11, 1, 0x42),
                mw(HOLE + 0x12, 1, 0x43),
            )
        },
    ),
    Case(
        name="rep_outs_from_mmio",
        modes=("p32",),
        code="""
            f3 66 6f                       rep outsw
        """,
        regs={"rcx": 2, "rsi": HOLE + 0x10, "rdx": 0x300},
        expect=(
            mr(HOLE + 0x10, 2, 0x1234),
            pw(0x300, 2, 0x1234),
            mr(HOLE + 0x12, 2, 0x5678),
            pw(0x300, 2, 0x5678),
        ),
        after={"rcx": 0, "rsi": HOLE + 0x14},
    ),
)
