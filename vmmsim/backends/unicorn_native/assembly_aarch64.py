"""The thunks for AArch64 hosts of the AAPCS64 convention: Linux. See `thunks` and `assembly`.

TCG keeps the address of QEMU's CPU structure in X19. X19 to X28 are the caller's, X18 is the platform's and
never used. X16 holds the address of what is called: a jump through it may enter any function where branch
targets are checked (BTI). Of an argument or answer of 32 bits the upper half is unknown.

`=WORD` loads a blank from the pool of literals after the code: of 64 bits, offsets too.

Memory is weakly ordered. Two words are a pair that another thread looks at while the engine runs: MADE and
BEHIND, see _STAY. Another thread sets END and LIMIT to 0, and `block` may see that in either order: with
LIMIT alone it takes the window for open, if IF is set, or goes on. Python looks at what it was stopped for
either way.
"""

from __future__ import annotations

import re

from .assembly import Assembly

__all__ = ["ASSEMBLY"]

_BLANKS = {
    "UC_EMU_STOP": 0x1111111111111111,
    "CALLBACK": 0x2222222222222222,
    "CHECK_EXIT": 0x3333333333333333,
    "DO_INTERRUPT": 0x1919191919191919,
    "SHARED": 0x1A1A1A1A1A1A1A1A,
    "RIP": 0x4444444444444444,
    "RDI": 0x6666666666666666,
    "ES_BASE": 0x7777777777777777,
    "CR0": 0x1818181818181818,
    "CR2": 0x1717171717171717,
    "EFLAGS": 0x2121212121212121,
    "CC_SOURCE": 0x2727272727272727,
    "CC_OP": 0x2929292929292929,
    "HFLAGS": 0x2323232323232323,
    "CS_FLAGS": 0x3131313131313131,
    "SS_FLAGS": 0x3535353535353535,
    "EXCEPTION": 0x2525252525252525,
    "EXCEPTION_IS_INT": 0x2626262626262626,
    "RECURSION": 0x5555555555555555,
}

# X19 becomes the shared words, X20 the answer, X21 is uc.
_ENTER = """
    stp x29, x30, [sp, #-0x30]!
    mov x29, sp
    stp x19, x20, [sp, #0x10]
    stp x21, x22, [sp, #0x20]
    mov x21, x0
"""
_RETURN = """
    ldp x21, x22, [sp, #0x20]
    ldp x19, x20, [sp, #0x10]
    ldp x29, x30, [sp], #0x30
    ret
"""
# The same with all registers of the caller on the stack: `flags` looks there for the place in translated
# code, which the store's slow way keeps in one of them.
_ENTER_ALL = """
    stp x29, x30, [sp, #-0x60]!
    mov x29, sp
    stp x19, x20, [sp, #0x10]
    stp x21, x22, [sp, #0x20]
    stp x23, x24, [sp, #0x30]
    stp x25, x26, [sp, #0x40]
    stp x27, x28, [sp, #0x50]
    mov x21, x0
"""
_RETURN_ALL = """
    ldp x27, x28, [sp, #0x50]
    ldp x25, x26, [sp, #0x40]
    ldp x23, x24, [sp, #0x30]
    ldp x21, x22, [sp, #0x20]
    ldp x19, x20, [sp, #0x10]
    ldp x29, x30, [sp], #0x60
    ret
"""

# W9 = the flags: how many accesses this execution of the instruction has made before, and FLAG_SPECIAL.
# Another execution is one with another RIP or another number of blocks entered. X10 = the CPU structure.
_COUNT = """
    ldr x9, [x19, #SPECIAL]
    ldr x10, [x19, #ENV]
    ldr x11, =RIP
    ldr x11, [x10, x11]
    ldr x12, [x19, #BLOCKS]
    ldr x13, [x19, #TOKEN_RIP]
    cmp x11, x13
    b.ne fresh
    ldr x13, [x19, #TOKEN_BLOCKS]
    cmp x12, x13
    b.ne fresh
    ldr x13, [x19, #INDEX]
    add x13, x13, #1
    str x13, [x19, #INDEX]
    add x9, x9, x13
    b known
fresh:
    str x11, [x19, #TOKEN_RIP]
    str x12, [x19, #TOKEN_BLOCKS]
    str xzr, [x19, #INDEX]
known:
"""

# FLAG_USER, unless CPL is 0: the instruction may have no right to the port. Of what is unusual it comes
# first, and Python looks at CPL itself.
_USER = """
    ldr x11, =HFLAGS
    ldr w11, [x10, x11]
    tst w11, #3
    b.eq kernel
    orr w9, w9, #0x100000
kernel:
"""

# Where each instruction has a hook: QEMU has just said that the last operation is that from before
# the instruction, but the source operand is the flags since its hook.
_HOOKED = """
    ldr x11, [x19, #DELIVERING]
    cmp x11, #2
    b.ne lazy
    ldr x11, =CC_OP
    mov w12, #1
    str w12, [x10, x11]
lazy:
"""

# X20 = what Python answers; then leave the engine, if it asked for that.
_ASK = """
    ldr x16, =CALLBACK
    blr x16
    mov x20, x0
"""
_KEEP_ANSWER = """
    str x20, [x19, #ANSWER]
"""
_LEAVE_IF_ASKED = """
    mov x0, x21
    mov w1, wzr
    ldr x16, =CHECK_EXIT
    blr x16
"""

# After an IN or OUT: forget that free code has made it, and stop at the next block if that was asked for.
# Who asks looks at MADE, and then sets BEHIND or stops the engine itself: so MADE is cleared before BEHIND is
# taken.
_STAY = """
    ldr x9, [x19, #MADE]
    cbz x9, stay
    add x10, x19, #MADE
    stlr xzr, [x10]
    add x10, x19, #BEHIND
take:
    ldaxr x9, [x10]
    stlxr w11, xzr, [x10]
    cbnz w11, take
    cbz x9, stay
    mov x0, x21
    ldr x16, =UC_EMU_STOP
    blr x16
stay:
"""


def _counter(word: str) -> str:
    return f"""
    ldr x9, [x19, #{word}]
    add x9, x9, #1
    str x9, [x19, #{word}]
"""


_SOURCES = {
    "block": """
    str x19, [x3, #ENV]
    ldr x9, [x3, #BYTES]
    ldr x10, [x3, #LIMIT]
    cmp x9, x10
    b.ge look
go:
    add x9, x9, w2, uxtw
    str x9, [x3, #BYTES]
    ldr x9, [x3, #BLOCKS]
    add x9, x9, #1
    str x9, [x3, #BLOCKS]
    ret
look:
    ldr x10, [x3, #END]
    cmp x9, x10
    b.ge stop
    ldr x11, =EFLAGS
    ldr w11, [x19, x11]
    tbz w11, #9, go
    ldr x11, =HFLAGS
    ldr w11, [x19, x11]
    tbnz w11, #3, go
    mov x9, #3
    b leave
stop:
    mov x9, #1
leave:
    str x9, [x3, #REASON]
    ldr x16, =UC_EMU_STOP
    br x16
""",
    # See the set for x86-64 for what it does and why.
    "trap": """
    ldr x9, =RECURSION
    str wzr, [x0, x9]
    stp x29, x30, [sp, #-0x20]!
    mov x29, sp
    stp x19, x20, [sp, #0x10]
    mov x19, x2
    mov w20, w1
    cmp w20, #0x100
    b.hs slow
    ldr x9, [x19, #DELIVERING]
    cbnz x9, slow
    ldr x10, [x19, #ENV]
    cmp w20, #14
    b.ne due
    ldr x9, [x19, #WALKED]
    cbnz x9, due
    ldr x11, =CR2
    ldr w11, [x10, x11]
    tst w11, #0xfff
    b.ne due
    ldr x11, =HFLAGS
    ldr w11, [x10, x11]
    tbnz w11, #3, due
    mov w0, #0x30000
    ldr x16, =CALLBACK
    blr x16
    cbnz w0, again
    ldr x10, [x19, #ENV]
due:
    sub w9, w20, #12
    cmp w9, #2
    b.hi mended
    ldr x11, =CC_OP
    ldr w11, [x10, x11]
    cmp w11, #1
    b.eq mended
    ldr x11, =CC_SOURCE
    ldr w11, [x10, x11]
    movn w12, #0x8d5
    tst w11, w12
    b.ne mended
    add w0, w20, #0x10, lsl #12
    ldr x16, =CALLBACK
    blr x16
    ldr x10, [x19, #ENV]
mended:
    str x20, [x19, #VECTOR]
    ldr x11, =EXCEPTION
    ldr w9, [x10, x11]
    str x9, [x19, #ERROR]
    ldr x11, =EXCEPTION_IS_INT
    ldr w9, [x10, x11]
    str x9, [x19, #SOFT]
    ldr x11, =HFLAGS
    ldr w12, [x10, x11]
    and w12, w12, #0xfffffff7
    str w12, [x10, x11]
    ldr x11, =EFLAGS
    ldr w12, [x10, x11]
    and w12, w12, #0xfffeffff
    str w12, [x10, x11]
    cbnz w9, deliver
    cmp w20, #1
    b.eq deliver
    orr w12, w12, #0x10000
    str w12, [x10, x11]
    ldr x9, [x19, #INSNS]
    sub x9, x9, #1
    str x9, [x19, #INSNS]
deliver:
    mov x9, #1
    str x9, [x19, #DELIVERING]
    ldr x0, [x19, #CPU]
    ldr x16, =DO_INTERRUPT
    blr x16
    ldr x10, [x19, #ENV]
    ldr x11, =EXCEPTION_IS_INT
    str wzr, [x10, x11]
    str xzr, [x19, #DELIVERING]
    ldr x9, [x19, #TRAPS]
    add x9, x9, #1
    str x9, [x19, #TRAPS]
    mov w12, #0x1100
    ldr x11, =CS_FLAGS
    ldr w9, [x10, x11]
    and w9, w9, w12
    cmp w9, #1, lsl #12
    b.eq loaded
    ldr x11, =SS_FLAGS
    ldr w9, [x10, x11]
    and w9, w9, w12
    cmp w9, #1, lsl #12
    b.eq loaded
again:
    mov w0, #1
    b done
loaded:
    mov w20, #0x20000
slow:
    mov w0, w20
    ldr x16, =CALLBACK
    blr x16
done:
    ldp x19, x20, [sp, #0x10]
    ldp x29, x30, [sp], #0x20
    ret
""",
    "insn": """
    ldr x9, [x3, #INSNS]
    ldr x10, [x3, #INSN_LIMIT]
    cmp x9, x10
    b.ge stop
    add x9, x9, #1
    str x9, [x3, #INSNS]
    ret
stop:
    mov x9, #2
    str x9, [x3, #REASON]
    ldr x16, =UC_EMU_STOP
    br x16
""",
    "in": f"""
    {_ENTER}
    mov x19, x3
    {_counter("PORTS")}{_COUNT}{_USER}
    mov w0, w1
    mov w1, w2
    mov w2, w9
    {_ASK}
    mov w20, w20
    {_KEEP_ANSWER}{_LEAVE_IF_ASKED}{_STAY}
    mov x0, x20
    {_RETURN}
""",
    "out": f"""
    {_ENTER}
    mov x19, x4
    {_counter("PORTS")}{_COUNT}{_USER}
    mov w0, w1
    mov w1, w2
    mov w2, w3
    mov w3, w9
    {_ASK}{_LEAVE_IF_ASKED}{_STAY}
    {_RETURN}
""",
    # FLAG_CROSSES; the window for the pieces, 8 bytes below the access; ARMED if the first
    # piece, which is aligned, is at the start of a page.
    "read": f"""
    {_ENTER}
    mov x19, x5
    {_counter("MMIO")}{_COUNT}{_HOOKED}
    and w10, w2, #0xfff
    add w11, w10, w3
    cmp w11, #1, lsl #12
    b.ls whole
    orr w9, w9, #0x10000
whole:
    sub x11, x2, #8
    str x11, [x19, #WINDOW]
    cmp w10, w3
    cset x11, lo
    str x11, [x19, #ARMED]
    mov x0, x2
    mov w1, w3
    mov w2, w9
    {_ASK}{_KEEP_ANSWER}{_LEAVE_IF_ASKED}
    str x20, [x19, #DATA+8]
    mov w0, #1
    {_RETURN}
""",
    # Bytes of a store that was shown whole are passed over. X20 = the value, cut to its size.
    # FLAG_ZERO: a 0 that could be the probe of an INS, which stores to ES:RDI (compared in 12
    # bits with paging, in 16 without). FLAG_TAIL: one byte, at the start of a page, of a
    # larger store. FLAG_CROSSES. The bytes of an unaligned store will follow.
    "write": f"""
    {_ENTER_ALL}
    mov x19, x5
    ldr x9, [x19, #SKIP]
    cbz x9, shown
    sub x9, x9, #1
    str x9, [x19, #SKIP]
    b done
shown:
    {_counter("MMIO")}{_COUNT}{_HOOKED}
    neg w11, w3, lsl #3
    lsl x20, x4, x11
    lsr x20, x20, x11
    cbnz x20, value
    ldr x11, =RDI
    ldr x11, [x10, x11]
    ldr x12, =ES_BASE
    ldr x12, [x10, x12]
    add x11, x11, x12
    sub x11, x11, x2
    tst w11, #0xfff
    b.ne value
    ldr x12, =CR0
    ldr w12, [x10, x12]
    tbnz w12, #31, paged
    tst w11, #0xffff
    b.ne value
paged:
    orr w9, w9, #0x20000
value:
    ands w11, w2, #0xfff
    b.ne inside
    cmp w3, #1
    b.ne inside
    ldr x12, =RECURSION
    ldr w12, [x21, x12]
    cbz w12, inside
    orr w9, w9, #0x40000
inside:
    add w11, w11, w3
    cmp w11, #1, lsl #12
    b.ls whole
    orr w9, w9, #0x10000
whole:
    sub w11, w3, #1
    tst w11, w2
    b.eq aligned
    mov w11, w3
    str x11, [x19, #SKIP]
aligned:
    mov x11, sp
    str x11, [x19, #STACK]
    mov x0, x2
    mov w1, w3
    mov x2, x20
    mov w3, w9
    {_ASK}{_LEAVE_IF_ASKED}
done:
    mov w0, #1
    {_RETURN_ALL}
""",
    # At the start of a page only when ARMED; elsewhere if it is in the window.
    "piece": """
    ldr x9, [x3]
    add x1, x1, x9
    ldr x4, [x3, #8]
    tst w1, #0xfff
    b.ne inside
    ldr x9, [x4, #ARMED]
    str xzr, [x4, #ARMED]
    cbz x9, slow
inside:
    ldr x9, [x4, #WINDOW]
    sub x9, x1, x9
    cmp x9, #24
    b.hs slow
    add x9, x9, #DATA
    ldr x0, [x4, x9]
    ret
slow:
    stp x29, x30, [sp, #-0x10]!
    mov x29, sp
    mov x0, x1
    mov w1, w2
    ldr x16, =CALLBACK
    blr x16
    ldp x29, x30, [sp], #0x10
    ret
""",
    "leave": """
    stp x29, x30, [sp, #-0x20]!
    mov x29, sp
    str x19, [sp, #0x10]
    mov x19, x0
    ldr x16, =UC_EMU_STOP
    blr x16
    mov x0, x19
    mov w1, wzr
    ldr x16, =CHECK_EXIT
    blr x16
    ldr x19, [sp, #0x10]
    ldp x29, x30, [sp], #0x20
    ret
""",
    # X9 = the TLB's entry: addr_read, addr_write, addr_code, paddr, addend. X11 = the page's byte.
    # Bit 0x800 of an address makes it one that no access hits, bit 0x400 (of addr_write) is a
    # store's slow way, which looks for code. An access of kind 2 is a fetch; CR2 from before it is kept.
    "fill": """
    stp x29, x30, [sp, #-0x40]!
    mov x29, sp
    stp x19, x20, [sp, #0x10]
    stp x21, x22, [sp, #0x20]
    str x23, [sp, #0x30]
    ldr x19, =SHARED
    mov x20, x0
    mov x21, x1
    mov w22, w3
    mov w23, w4
    str x6, [x19, #WALKED]
    cmp w3, #2
    b.ne walk
    ldr x9, [x19, #ENV]
    ldr x10, =CR2
    ldr x9, [x9, x10]
    str x9, [x19, #OLD_CR2]
walk:
    ldr x16, [x19, #FILL]
    blr x16
    tst w0, #0xff
    b.eq done
    ldr x9, [x19, #TLB]
    add x9, x9, x20
    add x9, x9, w23, uxtw #4
    ldp x10, x11, [x9]
    and x10, x10, x21, lsr #6
    add x9, x11, x10
    and x10, x21, #0xfffffffffffff000
    ldr x11, [x9, #24]
    lsr x11, x11, #12
    ldr x12, [x19, #PAGE_COUNT]
    cmp x11, x12
    b.hs done
    ldr x12, [x19, #PAGES]
    add x11, x11, x12
    ldrb w12, [x11]
    cmp w22, #2
    b.eq fetch
    add x13, x10, #0x800
    cbnz w12, guarded
    str x13, [x9, #16]
    add x13, x10, #0x400
    ldr x12, [x9, #8]
    cmp x12, x13
    b.ne done
    str x10, [x9, #8]
done:
    ldr x23, [sp, #0x30]
    ldp x21, x22, [sp, #0x20]
    ldp x19, x20, [sp, #0x10]
    ldp x29, x30, [sp], #0x40
    ret
guarded:
    ldr x12, [x9, #16]
    cmn x12, #1
    b.ne done
    str x13, [x9, #16]
    b done
fetch:
    cbnz w12, done
    mov w12, #1
    strb w12, [x11]
    mov x0, x20
    ldr x1, [x9, #32]
    add x1, x1, x10
    mov x2, #0x1000
    ldr x16, [x19, #PROTECT]
    blr x16
    mov w0, #1
    b done
""",
    "start": """
    ldr x9, =SHARED
    ldr x0, [x9, #ENGINE]
    ldr x1, [x9, #ENV]
    ldr x10, =RIP
    ldr x1, [x1, x10]
    mov x2, xzr
    mov x3, xzr
    mov x4, xzr
    str xzr, [x9, #REASON]
    str xzr, [x9, #ARMED]
    str xzr, [x9, #SKIP]
    ldr x16, [x9, #START]
    br x16
""",
    "stop": """
    ldr x9, =SHARED
    ldr x0, [x9, #ENGINE]
    ldr x16, =UC_EMU_STOP
    br x16
""",
}


def _with_pool(source: str) -> str:
    """The source with its literals behind it, one for each word."""
    words = dict.fromkeys(re.findall(r"=([A-Z_0-9]+)", source))
    pool = "".join(f"literal_{word.lower()}:\n    .quad {word}\n" for word in words)
    return re.sub(r"=([A-Z_0-9]+)", lambda word: f"literal_{word[1].lower()}", source) + (
        f"    .p2align 3\n{pool}" if pool else ""
    )


_CODE = {
    "block": bytes.fromhex(
        "731000f9690040f96a0440f93f010aebea0000542941228b690000f9690840f929050091690800f9c0035fd66a5040f9"
        "3f010aeb2a0100548b0100586b6a6bb8abfe4f366b0100586b6a6bb84bfe1f37690080d202000014290080d2690c00f9"
        "d000005800021fd6212121212121212123232323232323231111111111111111"
    ),
    "trap": bytes.fromhex(
        "890c00581f6829b8fd7bbea9fd030091f35301a9f30302aaf403012a9f020471a20a0054695a40f9690a00b56a1240f9"
        "9f3a0071e1010054699240f9a90100b5cb0a00584b696bb87f2d0072210100548b0a00584b696bb8cb0018376000a052"
        "500a005800023fd6000800356a1240f9893200513f090071c8010054ab0900584b696bb87f050071400100546b090058"
        "4b696bb8ac1a81127f010c6aa1000054804240113008005800023fd66a1240f9745e00f96b08005849696bb8696200f9"
        "4b08005849696bb8696600f9ab0600584c696bb88c791c124c692bb8ab0700584c696bb88c790f124c692bb809010035"
        "9f060071c00000548c0110324c692bb8691640f9290500d1691600f9290080d2695a00f9605640f91006005800023fd6"
        "6a1240f92b0500585f692bb87f5a00f9696a40f929050091696a00f90c2082520b05005849696bb829010c0a3f054071"
        "00010054ab04005849696bb829010c0a3f0540716000005420008052050000145400a052e003142a9001005800023fd6"
        "f35341a9fd7bc2a8c0035fd61f2003d55555555555555555171717171717171723232323232323232222222222222222"
        "292929292929292927272727272727272525252525252525262626262626262621212121212121211919191919191919"
        "31313131313131313535353535353535"
    ),
    "insn": bytes.fromhex(
        "691440f96a1840f93f010aeb8a00005429050091691400f9c0035fd6490080d2690c00f97000005800021fd61f2003d5"
        "1111111111111111"
    ),
    "in": bytes.fromhex(
        "fd7bbda9fd030091f35301a9f55b02a9f50300aaf30303aa698a40f929050091698a00f9693240f96a1240f96b060058"
        "4b696bf86c0a40f96d3640f97f010deb210100546d3a40f99f010debc10000546d3e40f9ad0500916d3e00f929010d8b"
        "040000146b3600f96c3a00f97f3e00f98b0400584b696bb87f0500724000005429010c32e003012ae103022ae203092a"
        "d003005800023fd6f40300aaf403142a744e00f9e00315aae1031f2a3003005800023fd6698240f9690100b46a020491"
        "5ffd9fc86a22049149fd5fc85ffd0bc8cbffff35890000b4e00315aaf001005800023fd6e00314aaf55b42a9f35341a9"
        "fd7bc3a8c0035fd644444444444444442323232323232323222222222222222233333333333333331111111111111111"
    ),
    "out": bytes.fromhex(
        "fd7bbda9fd030091f35301a9f55b02a9f50300aaf30304aa698a40f929050091698a00f9693240f96a1240f92b060058"
        "4b696bf86c0a40f96d3640f97f010deb210100546d3a40f99f010debc10000546d3e40f9ad0500916d3e00f929010d8b"
        "040000146b3600f96c3a00f97f3e00f94b0400584b696bb87f0500724000005429010c32e003012ae103022ae203032a"
        "e303092a7003005800023fd6f40300aae00315aae1031f2a1003005800023fd6698240f9690100b46a0204915ffd9fc8"
        "6a22049149fd5fc85ffd0bc8cbffff35890000b4e00315aad001005800023fd6f55b42a9f35341a9fd7bc3a8c0035fd6"
        "44444444444444442323232323232323222222222222222233333333333333331111111111111111"
    ),
    "read": bytes.fromhex(
        "fd7bbda9fd030091f35301a9f55b02a9f50300aaf30305aa698e40f929050091698e00f9693240f96a1240f96b060058"
        "4b696bf86c0a40f96d3640f97f010deb210100546d3a40f99f010debc10000546d3e40f9ad0500916d3e00f929010d8b"
        "040000146b3600f96c3a00f97f3e00f96b5a40f97f0900f1810000542b0400582c0080524c692bb84a2c00124b01030b"
        "7f05407149000054290110324b2000d16b1e00f95f01036beb279f9a6b2e00f9e00302aae103032ae203092a70020058"
        "00023fd6f40300aa744e00f9e00315aae1031f2af001005800023fd6742600f920008052f55b42a9f35341a9fd7bc3a8"
        "c0035fd61f2003d54444444444444444292929292929292922222222222222223333333333333333"
    ),
    "write": bytes.fromhex(
        "fd7bbaa9fd030091f35301a9f55b02a9f76303a9f96b04a9fb7305a9f50300aaf30305aa694240f9890000b4290500d1"
        "694200f94d000014698e40f929050091698e00f9693240f96a1240f9eb0900584b696bf86c0a40f96d3640f97f010deb"
        "210100546d3a40f99f010debc10000546d3e40f9ad0500916d3e00f929010d8b040000146b3600f96c3a00f97f3e00f9"
        "6b5a40f97f0900f181000054ab0700582c0080524c692bb8eb0f034b9420cb9a9426cb9af40100b50b0700584b696bf8"
        "0c0700584c696cf86b010c8b6b0102cb7f2d0072e10000548c0600584c696cb86c00f8377f3d00724100005429010f32"
        "4b2c0072e10000547f040071a10000548c050058ac6a6cb84c00003429010e326b01030b7f0540714900005429011032"
        "6b0400517f01026a60000054eb03032a6b4200f9eb0300916b9600f9e00302aae103032ae20314aae303092a70030058"
        "00023fd6f40300aae00315aae1031f2a1003005800023fd620008052fb7345a9f96b44a9f76343a9f55b42a9f35341a9"
        "fd7bc6a8c0035fd644444444444444442929292929292929666666666666666677777777777777771818181818181818"
        "555555555555555522222222222222223333333333333333"
    ),
    "piece": bytes.fromhex(
        "690040f92100098b640440f93f2c007281000054892c40f99f2c00f9090100b4891c40f9290009cb3f6100f182000054"
        "29010191806869f8c0035fd6fd7bbfa9fd030091e00301aae103022ab000005800023fd6fd7bc1a8c0035fd61f2003d5"
        "2222222222222222"
    ),
    "leave": bytes.fromhex(
        "fd7bbea9fd030091f30b00f9f30300aa5001005800023fd6e00313aae1031f2a1001005800023fd6f30b40f9fd7bc2a8"
        "c0035fd61f2003d511111111111111113333333333333333"
    ),
    "fill": bytes.fromhex(
        "fd7bbca9fd030091f35301a9f55b02a9f71b00f9f3070058f40300aaf50301aaf603032af703042a669200f97f080071"
        "a1000054691240f90a07005829696af8699a00f9706e40f900023fd61f1c007240030054697640f92901148b2951378b"
        "2a2d40a94a19558a69010a8baace74922b0d40f96bfd4cd36c7e40f97f010cebc20100546c7a40f96b010c8b6c014039"
        "df0a0071600200544d0120918c0100352d0900f94d0110912c0540f99f010deb410000542a0500f9f71b40f9f55b42a9"
        "f35341a9fd7bc4a8c0035fd62c0940f99f0500b121ffff542d0900f9f7ffff17ccfeff352c0080526c010039e00314aa"
        "211140f921000a8b020082d2707240f900023fd620008052ecffff171f2003d51a1a1a1a1a1a1a1a1717171717171717"
    ),
    "start": bytes.fromhex(
        "c9010058204540f9211140f9aa01005821686af8e2031faae3031faae4031faa3f0d00f93f2d00f93f4100f9304940f9"
        "00021fd61f2003d51a1a1a1a1a1a1a1a4444444444444444"
    ),
    "stop": bytes.fromhex("89000058204540f99000005800021fd61a1a1a1a1a1a1a1a1111111111111111"),
}

ASSEMBLY = Assembly(
    sources={name: _with_pool(source) for name, source in _SOURCES.items()},
    code=_CODE,
    blanks={word: blank.to_bytes(8, "little") for word, blank in _BLANKS.items()},
)
