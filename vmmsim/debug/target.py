"""The target descriptions: which registers gdb sees, and how their bytes are.

`AMD64` is one description for every mode of the CPU, so that a guest may go from real mode to long
mode under a debugger that learns the description once. `I386` is for a gdb that has loaded a 32-bit
ELF file, which takes no description of another architecture: the low halves of the registers.
Beside the registers of gdb's own features (i386.core, i386.sse, i386.segments: "Debugging with
GDB", appendix G.5.4) there is one of vmmsim's, with segment bases, control registers and tables.

`rip` is the linear address of the next instruction, CS.base and all: gdb compares it with the
addresses of symbols and breakpoints, which are linear. In 64-bit mode the two are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from ..cpu.state import CpuState, Segment
from ..errors import UsageError

__all__ = ["AMD64", "ARCHITECTURES", "I386", "RegisterFile"]

_GPRS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
_GPRS_32 = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
_FLAGS = (
    "CF", "", "PF", "", "AF", "", "ZF", "SF", "TF", "IF", "DF", "OF",
)  # fmt: skip
_KERNEL_GS_BASE = 0xC000_0102
_M64 = (1 << 64) - 1


class Register(NamedTuple):
    """`get` and `put` (of the value, into a copy of the state) make it a number of `size` bytes."""

    name: str
    size: int
    type: str
    feature: str
    get: Callable[[CpuState], int]
    put: Callable[[CpuState, int], None]
    group: str = ""


def _plain(name: str, size: int, type: str, feature: str, group: str = "") -> Register:
    return Register(
        name, size, type, feature, lambda s: getattr(s, name), lambda s, v: setattr(s, name, v), group
    )


def _rip(name: str, size: int) -> Register:
    mask = (1 << 8 * size) - 1

    def put(state: CpuState, value: int) -> None:
        state.rip = value if state.mode == "l64" else value - state.cs.base & 0xFFFF_FFFF

    return Register(name, size, "code_ptr", "core", lambda s: s.linear_rip & mask, put)


def _low(name: str) -> Register:
    """EAX and the like: the low half of a general register. Setting it zero-extends, as the CPU does."""

    def get(state: CpuState) -> int:
        return getattr(state, f"r{name}") & 0xFFFF_FFFF

    kind = "data_ptr" if name in ("sp", "bp") else "int32"
    return Register(f"e{name}", 4, kind, "core", get, lambda s, v: setattr(s, f"r{name}", v))


def _selector(name: str) -> Register:
    def put(state: CpuState, value: int) -> None:
        segment: Segment = getattr(state, name)
        value &= 0xFFFF
        if value != segment.selector and state.mode not in ("real", "v86"):
            raise UsageError(
                f"{name} cannot be set outside real mode", hint="set the base; or let the guest load it"
            )
        if value != segment.selector:
            setattr(state, name, msgspec.structs.replace(segment, selector=value, base=value << 4))

    return Register(name, 4, "int32", "core", lambda s: getattr(s, name).selector, put)


def _base(name: str, feature: str) -> Register:
    def put(state: CpuState, value: int) -> None:
        segment: Segment = getattr(state, name)
        setattr(state, name, msgspec.structs.replace(segment, base=value))

    group = "system" if feature == "vmmsim" else ""
    return Register(f"{name}_base", 8, "int64", feature, lambda s: getattr(s, name).base, put, group)


def _table(name: str, part: str) -> Register:
    def put(state: CpuState, value: int) -> None:
        setattr(state, name, msgspec.structs.replace(getattr(state, name), **{part: value}))

    label = f"{name}_{part}"
    return Register(label, 8, "int64", "vmmsim", lambda s: getattr(getattr(s, name), part), put, "system")


def _listed(label: str, field: str, at: int, size: int, type: str, feature: str) -> Register:
    def put(state: CpuState, value: int) -> None:
        getattr(state.fpu, field)[at] = value

    return Register(label, size, type, feature, lambda s: getattr(s.fpu, field)[at], put)


def _of_fpu(label: str, field: str, *, shift: int = 0, mask: int = 0xFFFF_FFFF) -> Register:
    def get(state: CpuState) -> int:
        return getattr(state.fpu, field) >> shift & mask

    def put(state: CpuState, value: int) -> None:
        old = getattr(state.fpu, field)
        setattr(state.fpu, field, old & ~(mask << shift) | (value & mask) << shift)

    return Register(label, 4, "int", "core", get, put, "float")


def _ftag() -> Register:
    """gdb has the 16-bit tag word; its tags other than "empty" follow from the values."""

    def get(state: CpuState) -> int:
        word = 0
        top = state.fpu.fsw >> 11 & 7
        for at in range(8):
            word |= _tag(state.fpu.st[at - top & 7], bool(state.fpu.ftw >> at & 1)) << 2 * at
        return word

    def put(state: CpuState, value: int) -> None:
        state.fpu.ftw = sum(1 << at for at in range(8) if value >> 2 * at & 3 != 3)

    return Register("ftag", 4, "int", "core", get, put, "float")


def _tag(value: int, used: bool) -> int:
    """Of one x87 register: valid, zero, special, empty (SDM vol. 1, 8.1.7)."""
    if not used:
        return 3
    exponent, mantissa = value >> 64 & 0x7FFF, value & _M64
    if exponent == 0 and mantissa == 0:
        return 1
    return 2 if exponent in (0, 0x7FFF) or not mantissa >> 63 else 0


def _registers(*, wide: bool) -> tuple[Register, ...]:
    """In the order of their numbers."""
    if wide:
        found = [_plain(name, 8, "data_ptr" if name in ("rbp", "rsp") else "int64", "core") for name in _GPRS]
        found.append(_rip("rip", 8))
    else:
        found = [_low(name) for name in _GPRS_32]
        found.append(_rip("eip", 4))
    found.append(
        Register(
            "eflags", 4, "vmmsim_eflags", "core", lambda s: s.rflags, lambda s, v: setattr(s, "rflags", v)
        )
    )
    found += [_selector(name) for name in _SEGMENTS]
    found += [_listed(f"st{at}", "st", at, 10, "i387_ext", "core") for at in range(8)]
    found += [_of_fpu("fctrl", "fcw", mask=0xFFFF), _of_fpu("fstat", "fsw", mask=0xFFFF), _ftag()]
    found += [_of_fpu("fiseg", "fip", shift=32, mask=0xFFFF), _of_fpu("fioff", "fip")]
    found += [_of_fpu("foseg", "fdp", shift=32, mask=0xFFFF), _of_fpu("fooff", "fdp")]
    found.append(_of_fpu("fop", "fop", mask=0x7FF))
    found += [_listed(f"xmm{at}", "xmm", at, 16, "vec128", "sse") for at in range(16 if wide else 8)]
    found.append(
        Register(
            "mxcsr", 4, "vmmsim_mxcsr", "sse", lambda s: s.fpu.mxcsr,
            lambda s, v: setattr(s.fpu, "mxcsr", v), "vector",
        )
    )  # fmt: skip
    # gdb 13 gives up on i386.segments in a 32-bit description.
    found += [_base(name, "segments" if wide else "vmmsim") for name in ("fs", "gs")]
    found += [_base(name, "vmmsim") for name in ("cs", "ss", "ds", "es")]
    found.append(
        Register(
            "k_gs_base", 8, "int64", "vmmsim", lambda s: s.msrs.get(_KERNEL_GS_BASE, 0),
            lambda s, v: s.msrs.__setitem__(_KERNEL_GS_BASE, v), "system",
        )
    )  # fmt: skip
    found += [_plain(name, 8, "int64", "vmmsim", "system") for name in _CONTROL]
    found += [_table(name, part) for name in ("gdt", "idt") for part in ("base", "limit")]
    return tuple(found)


_FEATURES = {
    "core": "org.gnu.gdb.i386.core",
    "sse": "org.gnu.gdb.i386.sse",
    "segments": "org.gnu.gdb.i386.segments",
    "vmmsim": "org.vmmsim.x86.system",
}
_TYPES = {
    "core": '<flags id="vmmsim_eflags" size="4">'
    + "".join(f'<field name="{n}" start="{i}" end="{i}"/>' for i, n in enumerate(_FLAGS) if n)
    + '<field name="NT" start="14" end="14"/><field name="RF" start="16" end="16"/>'
    + '<field name="VM" start="17" end="17"/><field name="AC" start="18" end="18"/>'
    + '<field name="ID" start="21" end="21"/></flags>',
    "sse": '<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>'
    '<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>'
    '<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>'
    '<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>'
    '<field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/>'
    '<field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/>'
    '<field name="uint128" type="uint128"/></union>'
    '<flags id="vmmsim_mxcsr" size="4">'
    + "".join(
        f'<field name="{n}" start="{i}" end="{i}"/>'
        for i, n in enumerate(["IE", "DE", "ZE", "OE", "UE", "PE", "DAZ", "IM", "DM", "ZM", "OM", "UM", "PM"])
    )
    + '<field name="FZ" start="15" end="15"/></flags>',
}


class RegisterFile:
    """One description: its architecture by gdb's name, and its registers, as values and as gdb's bytes."""

    def __init__(self, architecture: str, registers: tuple[Register, ...]) -> None:
        self.architecture = architecture
        self.registers = registers
        self.size = sum(register.size for register in registers)

    def description(self) -> bytes:
        """target.xml."""
        lines = [
            '<?xml version="1.0"?>',
            '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
            f"<target><architecture>{self.architecture}</architecture>",
        ]
        named = {register.feature for register in self.registers}
        for short, feature in _FEATURES.items():
            if short not in named:
                continue
            lines.append(f'<feature name="{feature}">{_TYPES.get(short, "")}')
            for number, register in enumerate(self.registers):
                if register.feature == short:
                    group = f' group="{register.group}"' if register.group else ""
                    lines.append(
                        f'<reg name="{register.name}" bitsize="{8 * register.size}" '
                        f'type="{register.type}" regnum="{number}"{group}/>'
                    )
            lines.append("</feature>")
        lines.append("</target>")
        return "\n".join(lines).encode()

    def read_all(self, state: CpuState) -> bytes:
        return b"".join(register.get(state).to_bytes(register.size, "little") for register in self.registers)

    def read(self, state: CpuState, number: int) -> bytes:
        """Raises UsageError for a number that no register has."""
        register = self._numbered(number)
        return register.get(state).to_bytes(register.size, "little")

    def write(self, state: CpuState, number: int, data: bytes) -> None:
        """Into `state`. UsageError for a wrong number or length, or a value that cannot be."""
        register = self._numbered(number)
        if len(data) != register.size:
            raise UsageError(f"{register.name} has {register.size} bytes", hint=f"not {len(data)}")
        register.put(state, int.from_bytes(data, "little"))

    def write_all(self, state: CpuState, data: bytes) -> None:
        """Those that differ, into `state`."""
        if len(data) != self.size:
            raise UsageError(f"all registers have {self.size} bytes", hint=f"not {len(data)}")
        at = 0
        before = state.copy()
        for register in self.registers:
            value = int.from_bytes(data[at : at + register.size], "little")
            if value != register.get(before):
                register.put(state, value)
            at += register.size

    def _numbered(self, number: int) -> Register:
        if not 0 <= number < len(self.registers):
            raise UsageError(
                f"there is no register {number}", hint=f"they are 0 to {len(self.registers) - 1}"
            )
        return self.registers[number]


AMD64 = RegisterFile("i386:x86-64", _registers(wide=True))
I386 = RegisterFile("i386", _registers(wide=False))
#: By what `--gdb-arch` takes.
ARCHITECTURES = {"x86-64": AMD64, "i386": I386}
