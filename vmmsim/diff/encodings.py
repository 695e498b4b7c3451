"""The instructions that the fuzzer makes programs of, by their encodings (SDM vol. 2).

A row is an opcode with all its operand forms; `encode` picks one by chance. `ROWS` is
written as text, one row a line:

    modes  prefix opcode  operands  [features]

`modes` are letters: a all; e the emulated ones (16, 32, 64 at CPL 0); l all but 64-bit code; x 64-bit
code; u 64-bit user code only, which runs on the CPU itself on kvm_pvm. An operand is /r (ModRM
with any register), /0 to /7, +r (a register in the opcode), ib iw iz iv (immediates of 8, 16, 16 or 32,
and up to 64 bits), and m or r where ModRM must be memory or a register. Features: v (also with a 66
prefix and REX.W), w (REX.W only), k (LOCK is allowed with memory), p (memory only at a fixed place).

What livelocks in this KVM's kernel, what reads the time or the host (RDTSC, CPUID, RDRAND), and
what cannot be compared after it (IRET, far jumps, writes of control registers, FNINIT and FNCLEX, which
take away flags that explain a difference) is left out.
"""

from __future__ import annotations

import functools
import random
import re

import msgspec

from .case import CODE, DATA, DATA_SIZE, Unit
from .divergences import flag_masks

__all__ = ["POINTERS", "ROWS", "Row", "encode", "rows", "unit_of"]

_ALU = "\n".join(
    f"a {op + form:02x} {operand} {'v' if form & 1 else ''}{'k' if form < 2 and op != 0x38 else ''}"
    for op in range(0, 0x40, 8)
    for form, operand in enumerate(("/r", "/r", "/r", "/r", "ib", "iz"))
)
_GROUP1 = "\n".join(
    f"a {op} /{n} {imm} {size}{'k' if n != 7 else ''}"
    for n in range(8)
    for op, imm, size in (("80", "ib", ""), ("81", "iz", "v"), ("83", "ib", "v"))
)
_SHIFTS = "\n".join(
    f"a {op} /{n} {imm} {size}"
    for n in (0, 1, 2, 3, 4, 5, 7)
    for op, imm, size in (
        ("c0", "ib", ""), ("c1", "ib", "v"), ("d0", "", ""), ("d1", "", "v"), ("d2", "", ""), ("d3", "", "v")
    )
)  # fmt: skip
_CONDITIONS = "\n".join(
    f"a 0f{0x40 + c:02x} /r v\na 0f{0x90 + c:02x} /0\na {0x70 + c:02x} skip" for c in range(16)
)
#: MMX and SSE2 integer, with and without 66.
_INTEGER = re.findall(
    "..",
    "606162636465666768696a6b747576d1d2d3d4d5d8d9dadbdcdddedfe0e1e2e3e4e5e8e9eaebecedeeeff1f2f3f4"
    "f5f6f8f9fafbfcfdfe",
)
_SSE = "\n".join(f"u 0f{op} /r\nu 66 0f{op} /r" for op in _INTEGER)
_SSE += "\n" + "\n".join(
    f"u 0f{op} /r\nu 66 0f{op} /r\nu f3 0f{op} /r\nu f2 0f{op} /r"
    for op in ("51", "58", "59", "5c", "5d", "5e", "5f")
)
_SSSE3 = "\n".join(
    f"u 66 0f38{op} /r"
    for op in re.findall(
        "..",
        "000102030405060708090a0b101415171c1d1e20212223242528292b3031323334353738393a3b3c3d3e3f4041",
    )
)
_SSE4 = "\n".join(f"u 66 0f3a{op} /r ib" for op in re.findall("..", "08090a0b0c0d0e0f404142"))
_X87 = "\n".join(f"u {op} /{n} m" for op in ("d8", "da", "dc", "de") for n in range(8))
_X87 += "\n" + "\n".join(
    f"u d8{byte:02x}\nu dc{byte:02x}\nu de{byte:02x}" for byte in (0xC1, 0xCA, 0xE1, 0xE9, 0xF1, 0xF9)
)
_X87 += "\n" + "\n".join(f"u d9{byte:02x}" for byte in (
    0xC0, 0xC3, 0xC9, 0xD0, 0xE0, 0xE1, 0xE4, 0xE5, 0xE8, 0xE9, 0xEA, 0xEB, 0xEC, 0xED, 0xEE, 0xF4, 0xF6,
    0xF7, 0xFA, 0xFC, 0xFD,
))  # fmt: skip

ROWS = f"""
{_ALU}
{_GROUP1}
{_SHIFTS}
{_CONDITIONS}
a 84 /r\na 85 /r v\na 86 /r k\na 87 /r vk\na 88 /r\na 89 /r v\na 8a /r\na 8b /r v
a a8 ib\na a9 iz v\na 90 \na 91 +x v\na b0 +r ib\na b8 +r iv v\na c6 /0 ib\na c7 /0 iz v
a 8d /r m v\na 69 /r iz v\na 6b /r ib v\na 0faf /r v
a f6 /0 ib\na f7 /0 iz v\na f6 /2 k\na f7 /2 vk\na f6 /3 k\na f7 /3 vk
a f6 /4\na f7 /4 v\na f6 /5\na f7 /5 v\na f6 /6\na f7 /6 v\na f6 /7\na f7 /7 v
a fe /0 k\na ff /0 vk\na fe /1 k\na ff /1 vk
l 40 +r o\nl 48 +r o
a 50 +r o\na 58 +r o\na 68 iz o\na 6a ib o\na ff /6 o\na 8f /0 o
a 9c o\na 98 v\na 99 v\na 9e\na 9f\na f5\na f8\na f9
a fc\na fd\nl d6\nl 2f\nl 60 o\nl 61 o\nl d4 ib\nl d5 ib\na d7
a 0fa4 /r ib v\na 0fa5 /r v\na 0fac /r ib v\na 0fad /r v
a 0fa3 /r v\na 0fab /r vk\na 0fb3 /r vk\na 0fbb /r vk
a 0fba /4 ib v\na 0fba /5 ib vk\na 0fba /6 ib vk\na 0fba /7 ib vk
a 0fbc /r v\na 0fbd /r v\na 0fb6 /r v\na 0fb7 /r v\na 0fbe /r v\na 0fbf /r v\nx 63 /r v
a 0fb0 /r k\na 0fb1 /r vk\na 0fc0 /r k\na 0fc1 /r vk\na 0fc8 +r d\na 0fc7 /1 mk
a f3 0fbc /r v\na f3 0fbd /r v
a 0fc3 /r m d\na 0f0b\na 0f1f /0 v\na e8 call\na c9 o\na c8 frame\na e2 skip\na e1 skip\na e0 skip\na e3 skip
a a4\na a5 v\na aa\na ab v\na ac\na ad v\na a6\na a7 v\na ae\na af v
a a4 rep\na a5 rep v\na aa rep\na ab rep v\na ac rep\na a6 rep\na a7 rep v\na ae rep\na af rep v
e e4 ib\ne e5 ib\ne e6 port\ne e7 port\ne ec\ne ed\ne ee\ne ef
e 0f01 /4 d\ne 0f20 cr\ne 0f06\ne fa\ne 8c /0\ne 8c /3\ne 0fa0 o\ne 0fa8 o
l c4 /r m\nl c5 /r m\nl ce
u f3 0fb8 /r v\nu f2 0f38f0 /r d\nu f2 0f38f1 /r d\nu 0f38f0 /r m v\nu 0f38f1 /r m v
{_SSE}
{_SSSE3}
{_SSE4}
{_X87}
u 0f10 /r\nu 0f11 /r\nu 66 0f10 /r\nu 66 0f11 /r\nu f3 0f10 /r\nu f2 0f10 /r\nu f3 0f11 /r\nu f2 0f11 /r
u 0f28 /r\nu 0f29 /r\nu 66 0f6f /r\nu 66 0f7f /r\nu f3 0f6f /r\nu f3 0f7f /r\nu 0f6f /r\nu 0f7f /r
u 66 0f6e /r w\nu 66 0f7e /r w\nu f3 0f7e /r\nu 66 0fd6 /r\nu 0f12 /r\nu 0f16 /r\nu f2 0f12 /r\nu f3 0f12 /r
u 0f14 /r\nu 0f15 /r\nu 66 0f14 /r\nu 66 0f15 /r\nu 66 0f6c /r\nu 66 0f6d /r
u 0f54 /r\nu 0f55 /r\nu 0f56 /r\nu 0f57 /r\nu 0fc2 /r im\nu 66 0fc2 /r im\nu f3 0fc2 /r im\nu f2 0fc2 /r im
u 0fc6 /r ib\nu 66 0fc6 /r ib\nu 66 0f70 /r ib\nu f2 0f70 /r ib\nu f3 0f70 /r ib\nu 0f70 /r ib
u 66 0f71 /2 r ib\nu 66 0f71 /4 r ib\nu 66 0f71 /6 r ib
u 66 0f72 /2 r ib\nu 66 0f72 /4 r ib\nu 66 0f72 /6 r ib
u 66 0f73 /2 r ib\nu 66 0f73 /3 r ib\nu 66 0f73 /6 r ib\nu 66 0f73 /7 r ib
u 0f2e /r\nu 66 0f2e /r\nu 0f2f /r\nu 66 0f2f /r\nu 0f50 /r r\nu 66 0f50 /r r\nu 66 0fd7 /r r
u f3 0f2a /r d\nu f2 0f2a /r d\nu f3 0f2c /r\nu f3 0f2d /r\nu f2 0f2c /r\nu f2 0f2d /r
u 0f5a /r\nu 66 0f5a /r\nu f3 0f5a /r\nu f2 0f5a /r\nu 0f5b /r\nu 66 0f5b /r\nu f3 0f5b /r
u 66 0fe6 /r\nu f2 0fe6 /r\nu f3 0fe6 /r\nu f2 0f7c /r\nu 66 0f7d /r\nu f2 0fd0 /r
u 66 0fc4 /r r ib\nu 66 0fc5 /r r ib\nu 66 0f3a14 /r ib
u 66 0f3a16 /r ib\nu 66 0f3a20 /r ib\nu 66 0f3a22 /r ib
u 0f53 /r\nu f3 0f53 /r\nu 0f52 /r\nu f3 0f52 /r\nu 0fae /3 m\nu 0f77
u d9 /0 m\nu d9 /2 m\nu d9 /3 m\nu d9 /5 p\nu d9 /7 m\nu db /0 m\nu db /2 m\nu db /3 m\nu db /5 m\nu db /7 m
u dd /0 m\nu dd /2 m\nu dd /3 m\nu dd /7 m\nu df /0 m\nu df /3 m\nu df /5 m\nu df /7 m\nu dfe0
u dbe9\nu dbf1\nu dbc1\nu dac1\nu dac9\nu dae9\nu dde1\nu ddd9\nu ddc1\nu d9ff\nu d9fe
u vex1:f2 /r v\nu vex1:f5 /r v\nu vex1:f7 /r v\nu vex2:f5 /r v\nu vex3:f5 /r v\nu vex3:f6 /r v
u vex0:f3 /1 v\nu vex0:f3 /2 v\nu vex0:f3 /3 v\nu vex0:f5 /r v
"""

_MODES = {
    "a": ("16", "32", "64", "64u"),
    "e": ("16", "32", "64"),
    "l": ("16", "32"),
    "x": ("64", "64u"),
    "u": ("64u",),
}
_PREFIXES = {"66", "f2", "f3"}
_IMMEDIATES = {"ib": 1, "iw": 2, "im": 1}
#: VEX opcodes of BMI: map 0F38, W0 or W1, and the implied prefix by this number.
_VEX = re.compile("vex([0-3]):(..)")
#: VEX map and implied prefix of the general-register instructions, by what is written in ROWS.
_VEX_MAP = 2

#: Registers that hold addresses of data at the start, by their number in ModRM.
POINTERS = (3, 5, 6, 7, 13, 14)


class Row(msgspec.Struct, frozen=True):
    """One opcode. `modrm` None: it has no ModRM byte; -1: any register; else its reg field."""

    name: str
    modes: tuple[str, ...]
    prefix: bytes
    opcode: bytes
    modrm: int | None = None
    rm: str = "mr"
    imm: tuple[str, ...] = ()
    plus: str = ""
    special: str = ""
    features: str = ""
    vex: int | None = None
    #: RFLAGS by mode: left undefined, defined, read.
    undefined: dict[str, int] = {}
    defines: dict[str, int] = {}
    reads: dict[str, int] = {}


_SPECIAL = frozenset({"skip", "call", "frame", "rep", "port", "cr"})


def _parse(line: str) -> Row:
    words = line.split()
    modes = _MODES[words[0]]
    at = 1
    prefix = b""
    if words[at] in _PREFIXES and len(words) > 2 and re.fullmatch("0f.*", words[at + 1]):
        prefix = bytes.fromhex(words[at])
        at += 1
    vex = _VEX.fullmatch(words[at])
    opcode = bytes.fromhex(vex[2] if vex else words[at])
    modrm: int | None = None
    rm, plus, special, features = "mr", "", "", ""
    imm: list[str] = []
    for word in words[at + 1 :]:
        if word == "/r":
            modrm = -1
        elif word[0] == "/":
            modrm = int(word[1])
        elif word in ("m", "r"):
            rm = word
        elif word in ("+r", "+x"):
            plus = word[1]
        elif word in ("ib", "iw", "iz", "iv", "im"):
            imm.append(word)
        elif word in _SPECIAL:
            special = word
        else:
            if "m" in word:  # as in mk
                rm = "m"
            if word == "p":
                rm = "m"
            features += word
    return Row(
        name=" ".join(words[1:]), modes=modes, prefix=prefix, opcode=opcode, modrm=modrm, rm=rm,
        imm=tuple(imm), plus=plus, special=special, features=features, vex=int(vex[1]) if vex else None,
    )  # fmt: skip


@functools.cache
def _all() -> tuple[Row, ...]:
    found: dict[str, Row] = {}
    for line in ROWS.splitlines():
        if line.strip():
            row = _parse(line)
            found.setdefault(f"{row.modes} {row.name}", row)
    return tuple(found.values())


@functools.cache
def rows(mode: str) -> tuple[Row, ...]:
    """The rows of a mode, with what each does to RFLAGS in it, as capstone and divergences.toml have it."""
    decoder = _detailed(mode)
    chance = random.Random(0)
    found = []
    for row in _all():
        if mode not in row.modes:
            continue
        undefined = defines = reads = 0
        for _ in range(6):  # the form decides what is undefined: count 1 or more, 16 or 32 bits
            code = encode(row, mode, chance).code
            step = None
            for step in decoder.disasm(code, 0):
                u, d, r = _flags(step, mode)
                undefined, reads = undefined | u, reads | r
                defines = d if not defines else defines & d
        found.append(
            msgspec.structs.replace(
                row, undefined={mode: undefined}, defines={mode: defines & ~undefined}, reads={mode: reads}
            )
        )
    return tuple(found)


_READS_ALL = re.compile(
    "pushf.?|lahf|into|salc|adc|sbb|rc[lr]|j(?!e?cxz|rcxz|mp).*|set.*|cmov.*|loop.?e|loopn?[ez]|cmc|[ad]a[as]|fcmov.*|rep.*"
)
_CF, _PF, _AF, _ZF, _SF, _OF = 1, 4, 16, 64, 128, 2048


def _flags(step, mode: str) -> tuple[int, int, int]:  # type: ignore[no-untyped-def]
    """RFLAGS that an instruction leaves undefined, sets, and reads."""
    from capstone import x86_const as x86

    eflags = step.eflags
    defines = reads = 0
    for name, bit in (("CF", _CF), ("PF", _PF), ("AF", _AF), ("ZF", _ZF), ("SF", _SF), ("OF", _OF)):
        for how in ("MODIFY", "SET", "RESET"):
            if eflags & getattr(x86, f"X86_EFLAGS_{how}_{name}", 0):
                defines |= bit
    if re.match("sh|sa|ro|rc|cmpxchg|rep|cmps|cmp.*[ps][sd]|scas|f", step.mnemonic):
        defines = 0  # nothing, if the count is 0
    if _READS_ALL.fullmatch(step.mnemonic):
        reads = 0x8D5
    undefined = flag_masks(f"{step.mnemonic} {step.op_str}".strip(), mode, bytes(step.bytes))
    return undefined, defines, reads


@functools.cache
def _detailed(mode: str):  # type: ignore[no-untyped-def]
    import capstone

    bits = {"16": capstone.CS_MODE_16, "32": capstone.CS_MODE_32}.get(mode, capstone.CS_MODE_64)
    decoder = capstone.Cs(capstone.CS_ARCH_X86, bits)
    decoder.detail = True
    return decoder


def unit_of(code: bytes, mode: str) -> Unit | None:
    """The unit of some instructions, None if capstone cannot read all of them."""
    undefined = defined = at = 0
    for step in _detailed(mode).disasm(code, 0):
        u, d, _ = _flags(step, mode)
        undefined = undefined & ~d | u
        defined |= d & ~u
        at += step.size
    return Unit(code, undefined, defined & ~undefined) if at == len(code) else None


# -- encoding


def _memory(chance: random.Random, mode: str, row: Row, reg: int, wide: bool) -> tuple[bytes, bytes, int]:
    """A memory operand: (prefixes, ModRM and what follows, REX bits)."""
    prefixes = b""
    where = chance.random()
    if where < 0.06 and not row.vex:
        prefixes += bytes((chance.choice((0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65)),))
    # Most operands of SSE must be aligned, and what comes of one that is not is known.
    align = 16 if row.modes == ("64u",) and chance.random() < 0.97 else 1
    address = DATA + chance.randrange(0, DATA_SIZE - 64) & -align
    if row.features.find("p") >= 0:
        if mode == "16":
            return b"", bytes((reg & 7) << 3 | 6 for _ in (0,)) + address.to_bytes(2, "little"), 0
        if mode == "32":
            return b"", bytes((reg & 7) << 3 | 5 for _ in (0,)) + address.to_bytes(4, "little"), 0
        return b"", bytes(((reg & 7) << 3 | 4, 0x25)) + address.to_bytes(4, "little"), 0
    size16 = mode == "16"
    if mode in ("16", "32") and chance.random() < 0.06:
        prefixes += b"\x67"
        size16 = not size16
    mod = chance.choice((0, 1, 1, 2)) if where < 0.9 else 0
    if size16:
        rm = chance.choice((4, 5, 7, 6)) if where < 0.85 else chance.randrange(8)
        if mod == 0 and rm == 6:
            return prefixes, bytes(((reg & 7) << 3 | 6,)) + address.to_bytes(2, "little"), 0
        tail = _displacement(chance, mod, 2)
        return prefixes, bytes((mod << 6 | (reg & 7) << 3 | rm,)) + tail, 0
    long = mode in ("64", "64u")
    base = chance.choice(POINTERS if long else POINTERS[:4])
    if where >= 0.97:
        base = chance.randrange(16 if long else 8)
    rex = base >> 3
    if base & 7 == 4 or where < 0.15:  # SIB
        if chance.random() < 0.25:
            sib, tail, mod, rex = 0x25, address.to_bytes(4, "little"), 0, 0
        else:
            index = chance.choice((1, 4, 4, 2)) if where < 0.12 else chance.randrange(8)
            if align > 1:
                index = 4
            if base & 7 == 5 and mod == 0:
                mod = 1
            sib, tail = chance.randrange(4) << 6 | index << 3 | base & 7, _displacement(chance, mod, 4, align)
        return prefixes, bytes((mod << 6 | (reg & 7) << 3 | 4, sib)) + tail, rex
    if base & 7 == 5 and mod == 0:
        if chance.random() < 0.5:
            mod = 1
        elif long:  # relative to RIP, somewhere in data
            offset = address - CODE - 0x8000
            return prefixes, bytes(((reg & 7) << 3 | 5,)) + offset.to_bytes(4, "little", signed=True), 0
        else:
            return prefixes, bytes(((reg & 7) << 3 | 5,)) + address.to_bytes(4, "little"), 0
    return (
        prefixes,
        bytes((mod << 6 | (reg & 7) << 3 | base & 7,)) + _displacement(chance, mod, 4, align),
        rex,
    )


def _displacement(chance: random.Random, mod: int, size: int, align: int = 1) -> bytes:
    if mod == 1:
        return bytes((chance.getrandbits(8) & -align & 0xFF,))
    return (
        (chance.randrange(-0x200, 0x200) & -align).to_bytes(size, "little", signed=True) if mod == 2 else b""
    )


_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _immediate(chance: random.Random, size: int) -> bytes:
    value = chance.choice(_EDGES) if chance.random() < 0.4 else chance.getrandbits(8 * size)
    return (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def encode(row: Row, mode: str, chance: random.Random) -> Unit:
    """A form of `row` by chance, valid in `mode`."""
    code = _encode(row, mode, chance)
    return Unit(code, row.undefined.get(mode, 0), row.defines.get(mode, 0))


def _encode(row: Row, mode: str, chance: random.Random) -> bytes:
    long = mode in ("64", "64u")
    features = row.features
    wide = small = False
    if "v" in features:
        pick = chance.random()
        wide = long and pick < 0.4
        small = not wide and pick > 0.75
    elif "w" in features:
        wide = long and chance.random() < 0.5
    elif "o" in features:
        small = chance.random() < 0.15
    # 66 means the other size: in 16-bit code 32 bits.
    operand = 8 if wide else 2 if small != (mode == "16") else 4
    rex = 8 if wide else 0
    prefixes = b"\x66" if small else b""
    special = row.special
    if special == "skip":  # over an instruction that can be seen
        return row.opcode + b"\x02\xb0" + bytes((chance.getrandbits(8),))
    if special == "call":
        return row.opcode + bytes(2 if mode == "16" else 4)
    if special == "frame":
        return row.opcode + bytes((chance.randrange(0, 64), 0, 0))
    if special == "rep":
        rep = chance.choice((b"\xf3", b"\xf2"))
        count = (b"\x48" if long else b"") + b"\x83\xe1\x07"  # AND RCX, 7: no element is asked for twice
        return count + prefixes + rep + (b"\x48" if wide else b"") + row.opcode
    if special == "port":
        return row.opcode + bytes((chance.choice((0x60, 0x70, 0x80)),))
    if special == "cr":
        return row.opcode + bytes((0xC0 | chance.choice((0, 2, 4)) << 3 | chance.randrange(8),))
    tail = b""
    opcode = row.opcode
    if row.plus:
        reg = chance.randrange(16 if long else 8)
        if row.plus == "x" and reg == 4:
            reg = 0
        opcode = opcode[:-1] + bytes((opcode[-1] & 0xF8 | reg & 7,))
        rex |= reg >> 3
    if row.modrm is not None:
        reg = chance.randrange(16 if long and row.opcode[0] != 0x0F else 8) if row.modrm < 0 else row.modrm
        if row.modrm < 0 and reg == 4 and chance.random() < 0.8:
            reg = 0  # RSP is rarely what a program counts with
        memory = row.rm == "m" or (row.rm == "mr" and chance.random() < 0.45)
        if memory:
            before, tail, bits = _memory(chance, mode, row, reg, wide)
            prefixes += before
            rex |= bits
            if "k" in features and chance.random() < 0.15:
                prefixes = b"\xf0" + prefixes
        else:
            other = chance.randrange(16 if long and row.opcode[0] != 0x0F else 8)
            if other == 4 and chance.random() < 0.8:
                other = 1
            tail = bytes((0xC0 | (reg & 7) << 3 | other & 7,))
            rex |= other >> 3
        if row.modrm < 0:
            rex |= (reg >> 3) << 2
    for kind in row.imm:
        size = {"ib": 1, "im": 1, "iw": 2}.get(kind, 0) or (operand if kind == "iv" else min(operand, 4))
        tail += bytes((chance.randrange(8),)) if kind == "im" else _immediate(chance, size)
    if row.vex is not None:
        r, x, b = rex >> 2 & 1, rex >> 1 & 1, rex & 1
        vvvv = chance.randrange(8)
        head = bytes((
            0xC4,
            (r ^ 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | _VEX_MAP,
            wide << 7 | (~vvvv & 15) << 3 | _PP[row.vex],
        ))  # fmt: skip
        return prefixes.replace(b"\x66", b"") + head + opcode + tail
    if long and not rex and not row.prefix and row.opcode[0] < 0xD0 and chance.random() < 0.1:
        rex = 0x40  # SPL to DIL instead of AH to BH
    return prefixes + row.prefix + (bytes((0x40 | rex,)) if rex else b"") + opcode + tail


#: 0: none, 1: none (BMI1 and BZHI), 2: F3 (PEXT), 3: F2 (PDEP, MULX).
_PP = (0, 0, 2, 3)
