"""CpuState: every register that software can see or that changes what runs next.

Neutral: nothing here knows a backend. A state compares, prints and diffs on its own, and
is what snapshots keep. Native blobs (a Unicorn context, a KVM struct) are never stored.
Names and layouts are the SDM's (vol. 1 chapter 3 and 8, vol. 3 chapter 2 and 3).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from .msrs import STATE_MSRS

__all__ = [
    "GPR_NAMES",
    "SEGMENT_NAMES",
    "CpuState",
    "Events",
    "FpuState",
    "Registers",
    "Segment",
    "Table",
]

GPR_NAMES = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
SEGMENT_NAMES = ("cs", "ds", "es", "fs", "gs", "ss")


class Segment(msgspec.Struct, frozen=True):
    """A segment register with its hidden part.

    `base` in bytes (64 bits), `limit` the last valid offset in bytes (already scaled by
    G), `attr` the access rights in the layout of a VMCS (SDM vol. 3, table 24-2): bits
    0-3 type, 4 S, 5-6 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G, 16 unusable.
    """

    selector: int = 0
    base: int = 0
    limit: int = 0xFFFF
    attr: int = 0x93

    @property
    def type(self) -> int:
        """Type, bits 0 to 3 of `attr`: of a code or data segment SDM vol. 3, table 3-1, else table 3-2."""
        return self.attr & 15

    @property
    def s(self) -> int:
        """1: a code or data segment, 0: a system segment."""
        return self.attr >> 4 & 1

    @property
    def dpl(self) -> int:
        """Descriptor privilege level, 0 to 3."""
        return self.attr >> 5 & 3

    @property
    def present(self) -> int:
        """P: 0 and the segment cannot be used by a load."""
        return self.attr >> 7 & 1

    @property
    def avl(self) -> int:
        """Available to software; no meaning for the CPU."""
        return self.attr >> 12 & 1

    @property
    def l(self) -> int:  # noqa: E743 - the SDM's name of the bit
        """L: the code is 64-bit."""
        return self.attr >> 13 & 1

    @property
    def db(self) -> int:
        """D/B: 1 for 32-bit code, or a 32-bit stack pointer."""
        return self.attr >> 14 & 1

    @property
    def g(self) -> int:
        """G: 1 if the descriptor's limit counts in 4 KiB; `limit` is in bytes in any case."""
        return self.attr >> 15 & 1

    @property
    def unusable(self) -> int:
        """1: a null selector was loaded (KVM's and VMX's bit 16; SDM vol. 3, 24.4.1)."""
        return self.attr >> 16 & 1

    def __str__(self) -> str:
        return f"{self.selector:04x} base={self.base:x} limit={self.limit:x} attr={self.attr:05x}"


class Table(msgspec.Struct, frozen=True):
    """GDTR or IDTR: `base` a linear address, `limit` the last valid offset in bytes."""

    base: int = 0
    limit: int = 0xFFFF

    def __str__(self) -> str:
        return f"base={self.base:x} limit={self.limit:x}"


class FpuState(msgspec.Struct):
    """x87, SSE and AVX state as XSAVE holds it (SDM vol. 1, section 13.4).

    `ftw` is the abridged tag byte: bit i is 1 when physical register i is not empty. `st`
    are the stack registers ST0..ST7 as 80-bit integers, `xmm` and `ymmh` the low and the
    high 128 bits of YMM0..YMM15. `fip`, `fdp` are 64-bit; `fop` has 11 bits.
    """

    fcw: int = 0x37F
    fsw: int = 0
    ftw: int = 0
    fop: int = 0
    fip: int = 0
    fdp: int = 0
    mxcsr: int = 0x1F80
    st: list[int] = msgspec.field(default_factory=lambda: [0] * 8)
    xmm: list[int] = msgspec.field(default_factory=lambda: [0] * 16)
    ymmh: list[int] = msgspec.field(default_factory=lambda: [0] * 16)


class Events(msgspec.Struct):
    """What is pending at the boundary: at most one exception, an NMI, an interrupt, the shadows.

    `exception` is a vector or None, `error_code` its code or None. `interrupt` is the vector of
    an external interrupt that the controller has given up already (INTA) and that is delivered
    before the next instruction, whatever RFLAGS.IF says; None when there is none. `sti_shadow` and
    `mov_ss_shadow` hold interrupts off for one instruction (SDM vol. 3, 6.8.3).
    """

    exception: int | None = None
    error_code: int | None = None
    nmi_pending: bool = False
    nmi_masked: bool = False
    sti_shadow: bool = False
    mov_ss_shadow: bool = False
    interrupt: int | None = None


class Registers(msgspec.Struct):
    """The general registers, RIP and RFLAGS: what changes at every instruction."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2


class CpuState(Registers):
    """The whole vCPU at an instruction boundary. Mutable; `copy()` makes another.

    `msrs` maps an MSR's number to its value and has those of `vmmsim.cpu.msrs.STATE_MSRS`;
    EFER and the FS and GS bases are fields of their own, since modes need them.
    """

    cs: Segment = Segment(0xF000, 0xFFFF0000, 0xFFFF, 0x9B)
    ds: Segment = Segment()
    es: Segment = Segment()
    fs: Segment = Segment()
    gs: Segment = Segment()
    ss: Segment = Segment()
    ldt: Segment = Segment(0, 0, 0xFFFF, 0x82)
    tr: Segment = Segment(0, 0, 0xFFFF, 0x8B)
    gdt: Table = Table()
    idt: Table = Table()
    cr0: int = 0x60000010
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    xcr0: int = 1
    dr: list[int] = msgspec.field(default_factory=lambda: [0, 0, 0, 0])
    dr6: int = 0xFFFF0FF0
    dr7: int = 0x400
    msrs: dict[int, int] = msgspec.field(default_factory=lambda: dict(STATE_MSRS))
    fpu: FpuState = msgspec.field(default_factory=FpuState)
    events: Events = msgspec.field(default_factory=Events)
    halted: bool = False

    @property
    def cpl(self) -> int:
        """Current privilege level: the DPL of SS (SDM vol. 3, 24.4.1); 0 in real mode."""
        return self.ss.dpl if self.cr0 & 1 else 0

    @property
    def mode(self) -> str:
        """real, p16, p32, c16, c32 (compatibility) or l64; v86 when EFLAGS.VM is set."""
        if not self.cr0 & 1:
            return "real"
        if self.rflags & 1 << 17:
            return "v86"
        if self.efer & 1 << 10:
            return "l64" if self.cs.l else ("c32" if self.cs.db else "c16")
        return "p32" if self.cs.db else "p16"

    @property
    def linear_rip(self) -> int:
        """The linear address of the next instruction (CS.base + RIP)."""
        if self.mode == "l64":
            return self.rip
        return (self.cs.base + self.rip) & 0xFFFFFFFF

    def copy(self) -> CpuState:
        """A deep copy: nothing mutable is shared."""
        return msgspec.convert(msgspec.to_builtins(self), CpuState, str_keys=False)

    def fields(self) -> Iterator[tuple[str, object]]:
        """Every register as (name, value), nested names with dots: `fpu.xmm3`, `msr.0x10`."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name == "dr":
                yield from ((f"dr{i}", v) for i, v in enumerate(value))
            elif name == "msrs":
                yield from ((f"msr.{k:#x}", v) for k, v in sorted(value.items()))
            elif name in ("fpu", "events"):
                for sub in value.__struct_fields__:
                    inner = getattr(value, sub)
                    if isinstance(inner, list):
                        yield from ((f"{name}.{sub}{i}", v) for i, v in enumerate(inner))
                    else:
                        yield f"{name}.{sub}", inner
            else:
                yield name, value

    def diff(self, other: CpuState) -> list[tuple[str, object, object]]:
        """The registers that differ, as (name, mine, theirs); None where one side lacks it."""
        mine, theirs = dict(self.fields()), dict(other.fields())
        names = list(mine) + [n for n in theirs if n not in mine]
        return [(n, mine.get(n), theirs.get(n)) for n in names if mine.get(n) != theirs.get(n)]

    def __str__(self) -> str:
        wide = self.efer & 1 << 10
        digits = 16 if wide else 8
        names = GPR_NAMES if wide else GPR_NAMES[:8]
        lines = []
        for at in range(0, len(names), 4):
            lines.append(" ".join(f"{n:>3}={getattr(self, n):0{digits}x}" for n in names[at : at + 4]))
        lines.append(f"rip={self.rip:0{digits}x} rflags={self.rflags:08x} mode={self.mode} cpl={self.cpl}")
        lines += [f" {n}={getattr(self, n)}" for n in (*SEGMENT_NAMES, "ldt", "tr")]
        lines.append(f"gdt {self.gdt}  idt {self.idt}")
        control = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
        lines.append(" ".join(f"{name}={getattr(self, name):x}" for name in control))
        return "\n".join(lines)
