"""The thunks for x86-64 hosts of the System V ABI: Linux and macOS. See `thunks` and `assembly`.

TCG keeps the address of QEMU's CPU structure in RBP.
"""

from __future__ import annotations

from .assembly import Assembly

__all__ = ["ASSEMBLY"]

#: Addresses have 64 bits, offsets 32: they are displacements.
_BLANKS = {
    "UC_EMU_STOP": 0x1111111111111111,
    "CALLBACK": 0x2222222222222222,
    "CHECK_EXIT": 0x3333333333333333,
    "DO_INTERRUPT": 0x1919191919191919,
    "SHARED": 0x1A1A1A1A1A1A1A1A,
    "RIP": 0x44444444,
    "RDI": 0x66666666,
    "ES_BASE": 0x77777777,
    "CR0": 0x88888888,
    "CR2": 0x87878787,
    "EFLAGS": 0x21212121,
    "CC_SOURCE": 0x27272727,
    "CC_OP": 0x29292929,
    "HFLAGS": 0x23232323,
    "CS_FLAGS": 0x31313131,
    "SS_FLAGS": 0x35353535,
    "EXCEPTION": 0x25252500,
    "EXCEPTION_IS_INT": 0x25252504,
    "RECURSION": 0x55555555,
}

# uc is kept at [rsp+8], and RBX becomes the shared words.
_ENTER = """
    push rbx
    push rdi
    push r12
"""
_RETURN = """
    pop r12
    pop rdi
    pop rbx
    ret
"""

# EAX = the flags: how many accesses this execution of the instruction has made before, and
# FLAG_SPECIAL. Another execution is one with another RIP or another number of blocks entered.
_COUNT = """
    mov rax, [rbx+SPECIAL]
    mov r10, [rbx+ENV]
    mov r10, [r10+RIP]
    mov r11, [rbx+BLOCKS]
    cmp r10, [rbx+TOKEN_RIP]
    jne fresh
    cmp r11, [rbx+TOKEN_BLOCKS]
    jne fresh
    inc qword ptr [rbx+INDEX]
    add rax, [rbx+INDEX]
    jmp known
fresh:
    mov [rbx+TOKEN_RIP], r10
    mov [rbx+TOKEN_BLOCKS], r11
    mov qword ptr [rbx+INDEX], 0
known:
"""

# FLAG_USER in EAX, unless CPL is 0: the instruction may have no right to the port. Of what
# is unusual it comes first, and Python looks at CPL itself.
_USER = """
    mov r10, [rbx+ENV]
    test byte ptr [r10+HFLAGS], 3
    je kernel
    or eax, 0x100000
kernel:
"""

# Where each instruction has a hook: QEMU has just said that the last operation is that from before
# the instruction, but the source operand is the flags since its hook.
_HOOKED = """
    cmp qword ptr [rbx+DELIVERING], 2
    jne lazy
    mov r10, [rbx+ENV]
    mov dword ptr [r10+CC_OP], 1
lazy:
"""
# R12 = what Python answers; then leave the engine, if it asked for that.
_ASK = """
    movabs rax, CALLBACK
    call rax
    mov r12, rax
"""
_KEEP_ANSWER = """
    mov [rbx+ANSWER], rax
"""
_LEAVE_IF_ASKED = """
    mov rdi, [rsp+8]
    xor esi, esi
    movabs rax, CHECK_EXIT
    call rax
"""
# Behind an IN or OUT: forget that free code has made it, and stop at the next block if that was
# asked for.
_STAY = """
    cmp qword ptr [rbx+MADE], 0
    je stay
    xor eax, eax
    mov [rbx+MADE], rax
    xchg rax, [rbx+BEHIND]
    test rax, rax
    je stay
    mov rdi, [rsp+8]
    movabs rax, UC_EMU_STOP
    call rax
stay:
"""

_SOURCES = {
    "block": """
    mov [rcx+ENV], rbp
    mov rax, [rcx+BYTES]
    cmp rax, [rcx+LIMIT]
    jge look
go:
    mov edx, edx
    add rax, rdx
    mov [rcx+BYTES], rax
    inc qword ptr [rcx+BLOCKS]
    ret
look:
    cmp rax, [rcx+END]
    jge stop
    test dword ptr [rbp+EFLAGS], 0x200
    je go
    test dword ptr [rbp+HFLAGS], 8
    jne go
    mov qword ptr [rcx+REASON], 3
    jmp leave
stop:
    mov qword ptr [rcx+REASON], 1
leave:
    movabs rax, UC_EMU_STOP
    jmp rax
""",
    # Unicorn forgets that it is in no access any more where one that crosses a page was left for a
    # fault, and would not call the hooks for loads until the run has ended.
    # A vector below 0x100 goes to QEMU's own delivery, unless that met a fault the last time
    # (DELIVERING is still set then). RF is set for faults; for
    # INT n and its like and for #DB it is cleared, as the engine keeps it for longer than an
    # instruction. A fault has not retired its instruction. Were
    # EXCEPTION_IS_INT left set, the next intercept would be taken for an INT, too. Faults of accesses
    # (#SS, #GP, #PF) whose lazy source operand could be the flags come to Python first, with 0x10000; and
    # before that, with 0x30000, a #PF of a fetch from a page's start, unless the block is of one
    # instruction (the shadow of STI): if the answer is not 0 it is forgotten. And Python is asked to
    # mark the descriptors of CS and SS as accessed, which QEMU does not.
    "trap": """
    mov dword ptr [rdi+RECURSION], 0
    cmp esi, 0x100
    jae slow
    cmp qword ptr [rdx+DELIVERING], 0
    jne slow
    mov r10, [rdx+ENV]
    cmp esi, 14
    jne due
    cmp qword ptr [rdx+WALKED], 0
    jne due
    test dword ptr [r10+CR2], 0xfff
    jne due
    test dword ptr [r10+HFLAGS], 8
    jne due
    push rsi
    push rdx
    mov edi, 0x30000
    movabs rax, CALLBACK
    sub rsp, 8
    call rax
    add rsp, 8
    pop rdx
    pop rsi
    test eax, eax
    jne again
    mov r10, [rdx+ENV]
due:
    lea eax, [rsi-12]
    cmp eax, 2
    ja mended
    cmp dword ptr [r10+CC_OP], 1
    je mended
    test dword ptr [r10+CC_SOURCE], 0xfffff72a
    jne mended
    push rsi
    push rdx
    lea edi, [rsi+0x10000]
    movabs rax, CALLBACK
    sub rsp, 8
    call rax
    add rsp, 8
    pop rdx
    pop rsi
    mov r10, [rdx+ENV]
mended:
    mov esi, esi
    mov [rdx+VECTOR], rsi
    mov eax, [r10+EXCEPTION]
    mov [rdx+ERROR], rax
    mov eax, [r10+EXCEPTION_IS_INT]
    mov [rdx+SOFT], rax
    and dword ptr [r10+HFLAGS], 0xfffffff7
    and dword ptr [r10+EFLAGS], 0xfffeffff
    test eax, eax
    jne deliver
    cmp esi, 1
    je deliver
    or dword ptr [r10+EFLAGS], 0x10000
    dec qword ptr [rdx+INSNS]
deliver:
    push rdx
    mov qword ptr [rdx+DELIVERING], 1
    mov rdi, [rdx+CPU]
    movabs rax, DO_INTERRUPT
    call rax
    pop rdx
    mov r10, [rdx+ENV]
    mov dword ptr [r10+EXCEPTION_IS_INT], 0
    mov qword ptr [rdx+DELIVERING], 0
    inc qword ptr [rdx+TRAPS]
    mov eax, [r10+CS_FLAGS]
    and eax, 0x1100
    cmp eax, 0x1000
    je loaded
    mov eax, [r10+SS_FLAGS]
    and eax, 0x1100
    cmp eax, 0x1000
    je loaded
again:
    mov eax, 1
    ret
loaded:
    mov esi, 0x20000
slow:
    mov edi, esi
    movabs rax, CALLBACK
    sub rsp, 8
    call rax
    add rsp, 8
    ret
""",
    "insn": """
    mov rax, [rcx+INSNS]
    cmp rax, [rcx+INSN_LIMIT]
    jge stop
    inc rax
    mov [rcx+INSNS], rax
    ret
stop:
    mov qword ptr [rcx+REASON], 2
    movabs rax, UC_EMU_STOP
    jmp rax
""",
    "in": f"""
    {_ENTER}
    mov rbx, rcx
    inc qword ptr [rbx+PORTS]
    {_COUNT}{_USER}
    mov edi, esi
    mov esi, edx
    mov edx, eax
    {_ASK}{_KEEP_ANSWER}{_LEAVE_IF_ASKED}{_STAY}
    mov rax, r12
    {_RETURN}
""",
    "out": f"""
    {_ENTER}
    mov rbx, r8
    inc qword ptr [rbx+PORTS]
    {_COUNT}{_USER}
    mov edi, esi
    mov esi, edx
    mov edx, ecx
    mov ecx, eax
    {_ASK}{_LEAVE_IF_ASKED}{_STAY}
    {_RETURN}
""",
    # FLAG_CROSSES; the window for the pieces, 8 bytes below the access; ARMED if the first
    # piece, which is aligned, is at the start of a page.
    "read": f"""
    {_ENTER}
    mov rbx, r9
    inc qword ptr [rbx+MMIO]
    {_COUNT}{_HOOKED}
    mov r10d, edx
    and r10d, 0xfff
    lea r11d, [r10+rcx]
    cmp r11d, 0x1000
    jbe whole
    or eax, 0x10000
whole:
    lea r11, [rdx-8]
    mov [rbx+WINDOW], r11
    xor r11d, r11d
    cmp r10d, ecx
    setb r11b
    mov [rbx+ARMED], r11
    mov rdi, rdx
    mov esi, ecx
    mov edx, eax
    {_ASK}{_KEEP_ANSWER}{_LEAVE_IF_ASKED}
    mov [rbx+DATA+8], r12
    mov eax, 1
    {_RETURN}
""",
    # Bytes of a store that was shown whole are passed over. R12 = the value, cut to its size.
    # FLAG_ZERO: a 0 that could be the probe of an INS, which stores to ES:RDI (compared in 12
    # bits with paging, in 16 without). FLAG_TAIL: one byte, at the start of a page, of a
    # larger store. FLAG_CROSSES. The bytes of an unaligned store will follow.
    "write": f"""
    {_ENTER}
    mov rbx, r9
    cmp qword ptr [rbx+SKIP], 0
    je shown
    dec qword ptr [rbx+SKIP]
    jmp done
shown:
    inc qword ptr [rbx+MMIO]
    {_COUNT}{_HOOKED}
    mov r12, r8
    mov r10d, ecx
    neg ecx
    lea ecx, [rcx*8+64]
    shl r12, cl
    shr r12, cl
    mov ecx, r10d
    test r12, r12
    jne value
    mov r10, [rbx+ENV]
    mov r11, [r10+RDI]
    add r11, [r10+ES_BASE]
    sub r11, rdx
    test r11d, 0xfff
    jne value
    bt dword ptr [r10+CR0], 31
    jc paged
    test r11w, r11w
    jne value
paged:
    or eax, 0x20000
value:
    mov r11d, edx
    and r11d, 0xfff
    jne inside
    cmp ecx, 1
    jne inside
    cmp dword ptr [rdi+RECURSION], 0
    je inside
    or eax, 0x40000
inside:
    add r11d, ecx
    cmp r11d, 0x1000
    jbe whole
    or eax, 0x10000
whole:
    lea r10d, [rcx-1]
    test r10d, edx
    je aligned
    mov [rbx+SKIP], rcx
aligned:
    mov [rbx+STACK], rsp
    mov rdi, rdx
    mov esi, ecx
    mov rdx, r12
    mov ecx, eax
    {_ASK}{_LEAVE_IF_ASKED}
done:
    mov eax, 1
    {_RETURN}
""",
    # At the start of a page only when ARMED; elsewhere if it is in the window.
    "piece": f"""
    add rsi, [rcx]
    mov r8, [rcx+8]
    test esi, 0xfff
    jne inside
    xor eax, eax
    xchg rax, [r8+ARMED]
    test rax, rax
    je slow
inside:
    mov rax, rsi
    sub rax, [r8+WINDOW]
    cmp rax, 24
    jae slow
    mov rax, [r8+rax+DATA]
    ret
slow:
    {_ENTER}
    mov rbx, r8
    mov rdi, rsi
    mov esi, edx
    movabs rax, CALLBACK
    call rax
    {_RETURN}
""",
    "leave": """
    push rbx
    mov rbx, rdi
    movabs rax, UC_EMU_STOP
    call rax
    mov rdi, rbx
    xor esi, esi
    movabs rax, CHECK_EXIT
    call rax
    pop rbx
    ret
""",
    # R9 = the TLB's entry: addr_read, addr_write, addr_code, paddr, addend. R11 = the page's byte.
    # Bit 0x800 of an address makes it one that no access hits, bit 0x400 (of addr_write) is a
    # store's slow way, which looks for code. An access of kind 2 is a fetch; CR2 from before it is kept.
    "fill": """
    push rbx
    push rdi
    push rsi
    push rcx
    push r8
    sub rsp, 8
    mov rax, [rsp+0x38]
    push rax
    movabs rbx, SHARED
    mov [rbx+WALKED], rax
    cmp ecx, 2
    jne walk
    mov rax, [rbx+ENV]
    mov rax, [rax+CR2]
    mov [rbx+OLD_CR2], rax
walk:
    call qword ptr [rbx+FILL]
    add rsp, 16
    pop r8
    pop rcx
    pop rsi
    pop rdi
    test al, al
    je done
    mov r8d, r8d
    shl r8, 4
    add r8, [rbx+TLB]
    add r8, rdi
    mov r9, rsi
    shr r9, 6
    and r9, [r8]
    add r9, [r8+8]
    mov r10, rsi
    and r10, -0x1000
    mov r11, [r9+24]
    shr r11, 12
    cmp r11, [rbx+PAGE_COUNT]
    jae done
    add r11, [rbx+PAGES]
    cmp ecx, 2
    je fetch
    lea rcx, [r10+0x800]
    cmp byte ptr [r11], 0
    jne guarded
    mov [r9+16], rcx
    lea rcx, [r10+0x400]
    cmp [r9+8], rcx
    jne done
    mov [r9+8], r10
done:
    pop rbx
    ret
guarded:
    cmp qword ptr [r9+16], -1
    jne done
    mov [r9+16], rcx
    jmp done
fetch:
    cmp byte ptr [r11], 0
    jne done
    mov byte ptr [r11], 1
    mov rsi, r10
    add rsi, [r9+32]
    mov edx, 0x1000
    call qword ptr [rbx+PROTECT]
    mov eax, 1
    jmp done
""",
    "start": """
    movabs rax, SHARED
    mov rdi, [rax+ENGINE]
    mov rsi, [rax+ENV]
    mov rsi, [rsi+RIP]
    xor edx, edx
    xor ecx, ecx
    xor r8d, r8d
    mov [rax+REASON], rdx
    mov [rax+ARMED], rdx
    mov [rax+SKIP], rdx
    jmp qword ptr [rax+START]
""",
    "stop": """
    movabs rax, SHARED
    mov rdi, [rax+ENGINE]
    movabs rax, UC_EMU_STOP
    jmp rax
""",
}


_CODE = {
    "block": bytes.fromhex(
        "48896920488b01483b41087d0d89d24801d048890148ff4110c3483b81a00000007d22f7852121212100020000"
        "74def785232323230800000075d248c7411803000000eb0848c741180100000048b81111111111111111ffe0"
    ),
    "trap": bytes.fromhex(
        "c787555555550000000081fe000100000f83670100004883bab0000000000f85590100004c8b522083fe0e754d"
        "4883ba2001000000754341f78287878787ff0f0000753641f782232323230800000075295652bf0000030048b8"
        "22222222222222224883ec08ffd04883c4085a5e85c00f85fc0000004c8b52208d46f483f80277394183ba2929"
        "292901742f41f782272727272af7ffff752256528dbe0000010048b822222222222222224883ec08ffd04883c4"
        "085a5e4c8b522089f64889b2b8000000418b8200252525488982c0000000418b8204252525488982c800000041"
        "83a223232323f74181a221212121fffffeff85c0751483fe01740f41818a212121210000010048ff4a285248c7"
        "82b000000001000000488bbaa800000048b81919191919191919ffd05a4c8b522041c782042525250000000048"
        "c782b00000000000000048ff82d0000000418b823131313125001100003d001000007419418b82353535352500"
        "1100003d001000007406b801000000c3be0000020089f748b822222222222222224883ec08ffd04883c408c3"
    ),
    "insn": bytes.fromhex("488b4128483b41307d0848ffc048894128c348c741180200000048b81111111111111111ffe0"),
    "in": bytes.fromhex(
        "535741544889cb48ff8310010000488b43604c8b53204d8b92444444444c8b5b104c3b536875104c3b5b70750a"
        "48ff437848034378eb104c8953684c895b7048c74378000000004c8b532041f682232323230374050d00001000"
        "89f789d689c248b82222222222222222ffd04989c448898398000000488b7c240831f648b83333333333333333"
        "ffd04883bb0001000000742631c048898300010000488783080100004885c07411488b7c240848b81111111111"
        "111111ffd04c89e0415c5f5bc3"
    ),
    "out": bytes.fromhex(
        "535741544c89c348ff8310010000488b43604c8b53204d8b92444444444c8b5b104c3b536875104c3b5b70750a"
        "48ff437848034378eb104c8953684c895b7048c74378000000004c8b532041f682232323230374050d00001000"
        "89f789d689ca89c148b82222222222222222ffd04989c4488b7c240831f648b83333333333333333ffd04883bb"
        "0001000000742631c048898300010000488783080100004885c07411488b7c240848b81111111111111111ffd0"
        "415c5f5bc3"
    ),
    "read": bytes.fromhex(
        "535741544c89cb48ff8318010000488b43604c8b53204d8b92444444444c8b5b104c3b536875104c3b5b70750a"
        "48ff437848034378eb104c8953684c895b7048c74378000000004883bbb000000002750f4c8b532041c7822929"
        "2929010000004189d24181e2ff0f0000458d1c0a4181fb0010000076050d000001004c8d5af84c895b384531db"
        "4139ca410f92c34c895b584889d789ce89c248b82222222222222222ffd04989c448898398000000488b7c2408"
        "31f648b83333333333333333ffd04c896348b801000000415c5f5bc3"
    ),
    "write": bytes.fromhex(
        "535741544c89cb4883bb8000000000740c48ff8b80000000e91d01000048ff8318010000488b43604c8b53204d"
        "8b92444444444c8b5b104c3b536875104c3b5b70750a48ff437848034378eb104c8953684c895b7048c7437800"
        "0000004883bbb000000002750f4c8b532041c78229292929010000004d89c44189caf7d98d0ccd4000000049d3"
        "e449d3ec4489d14d85e475344c8b53204d8b9a666666664d039a777777774929d341f7c3ff0f00007516410fba"
        "a2888888881f7206664585db75050d000002004189d34181e3ff0f0000751383f901750e83bf55555555007405"
        "0d000004004101cb4181fb0010000076050d00000100448d51ff4185d2740748898b800000004889a328010000"
        "4889d789ce4c89e289c148b82222222222222222ffd04989c4488b7c240831f648b83333333333333333ffd0b8"
        "01000000415c5f5bc3"
    ),
    "piece": bytes.fromhex(
        "4803314c8b4108f7c6ff0f0000750b31c0498740584885c074134889f0492b40384883f8187306498b440040c3"
        "535741544c89c34889f789d648b82222222222222222ffd0415c5f5bc3"
    ),
    "leave": bytes.fromhex("534889fb48b81111111111111111ffd04889df31f648b83333333333333333ffd05bc3"),
    "fill": bytes.fromhex(
        "5357565141504883ec08488b4424385048bb1a1a1a1a1a1a1a1a4889832001000083f9027512488b4320488b80"
        "8787878748898330010000ff93d80000004883c4104158595e5f84c074684589c049c1e0044c0383e800000049"
        "01f84989f149c1e9064d23084d0348084989f24981e200f0ffff4d8b591849c1eb0c4c3b9bf8000000732e4c03"
        "9bf000000083f9027431498d8a0008000041803b00751749894910498d8a000400004939490875044d8951085b"
        "c349837910ff75f749894910ebf141803b0075eb41c603014c89d649037120ba00100000ff93e0000000b80100"
        "0000ebce"
    ),
    "start": bytes.fromhex(
        "48b81a1a1a1a1a1a1a1a488bb888000000488b7020488bb64444444431d231c94531c048895018488950584889"
        "9080000000ffa090000000"
    ),
    "stop": bytes.fromhex("48b81a1a1a1a1a1a1a1a488bb88800000048b81111111111111111ffe0"),
}

ASSEMBLY = Assembly(
    sources=_SOURCES,
    code=_CODE,
    blanks={word: blank.to_bytes(8 if blank >> 32 else 4, "little") for word, blank in _BLANKS.items()},
)
