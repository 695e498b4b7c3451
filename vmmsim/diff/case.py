"""A fuzz case: a short program in one mode, and the state it starts from.

A case is a value: it compares, is saved as JSON, and says all that a run depends on. Where
things lie is the same for every case (the *bench*):

    0x00000  real mode's vectors; 0x02000 a HLT for each vector; 0x03000 the IDT
    0x04000  data, two pages that hold the same noise in each case but for `memory`
    0x06000  the stack, growing down from 0x7000; the stack of CPL 0 for user code at 0x7C00
    0x10000  code: 512 places of 128 bytes, taken in turn so that little is translated anew
    0x20000  GDT, page tables, TSS. RAM ends at 0x30000; what lies behind it is MMIO

A program ends in HLT, user code in `out 0xf4, al`. An exception goes by the guest's own IVT
or IDT to the HLT of its vector, so what both CPUs push is a part of what is compared.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import msgspec

from ..cpu.descriptors import Gate, encode_gate
from ..cpu.modes import CODE32, CODE64, MODES, ModeSetup
from ..cpu.state import CpuState, FpuState, Registers, Table
from ..errors import UsageError

__all__ = [
    "CODE",
    "CODE_END",
    "DATA",
    "DATA_SIZE",
    "END_PORT",
    "HANDLERS",
    "MODE_NAMES",
    "PRESETS",
    "RAM",
    "SLOT",
    "SLOTS",
    "STACK",
    "Case",
    "Unit",
    "base_image",
    "base_state",
    "decode_case",
    "disassemble",
    "encode_case",
]

IDT, HANDLERS, HANDLERS_END = 0x3000, 0x2000, 0x2200
#: Nothing lies here: a hole in the smallest machine that vmmsim has.
_HOLE, _HOLE_END = 0x1000, 0x2000
DATA, DATA_SIZE = 0x4000, 0x2000
STACK = 0x7000
CODE, SLOT, SLOTS = 0x10000, 128, 512
CODE_END = CODE + SLOT * SLOTS
TABLES = 0x20000
RAM = 0x30000
END_PORT = 0xF4

#: --mode of `vmmsim fuzz` -> preset of vmmsim.cpu.modes.
PRESETS = {"16": "real", "32": "p32", "64": "l64", "64u": "l64u"}
MODE_NAMES = tuple(PRESETS)

_HLT = b"\xf4"
_OUT = bytes((0xE6, END_PORT))
#: The bases of FS and GS in 64-bit code, which nothing else there can make differ from 0.
_FS_BASE, _GS_BASE = 0x140, 0x280
_ACCESSED_DIRTY = 0x60


class Unit(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of a program, mostly an instruction; a jump is one with what it skips.

    `undefined` are the RFLAGS that it leaves as they may be on either CPU, `defines` those
    that it sets: masks, from the divergences that name the instruction."""

    code: bytes
    undefined: int = 0
    defines: int = 0


class Case(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`regs` has RIP 0: the program lies where the bench puts it. `fpu` None: the x87 and SSE
    state is that of the mode, and is not looked at. `memory`: (gpa, bytes) stored before."""

    mode: str
    units: tuple[Unit, ...]
    regs: Registers
    fpu: FpuState | None = None
    memory: tuple[tuple[int, bytes], ...] = ()
    seed: int | None = None

    @property
    def code(self) -> bytes:
        """The program without its end."""
        return b"".join(unit.code for unit in self.units)

    @property
    def image(self) -> bytes:
        """The bytes of its place."""
        body = self.code + (_OUT if self.mode == "64u" else b"") + _HLT
        return body.ljust(SLOT, _HLT)

    @property
    def place(self) -> int:
        """The guest-linear address of its first byte."""
        return CODE + SLOT * ((self.seed or 0) % SLOTS)

    @property
    def undefined(self) -> int:
        """RFLAGS that may differ behind the last unit."""
        mask = 0
        for unit in self.units:
            mask = mask & ~unit.defines | unit.undefined
        return mask

    @property
    def ever_undefined(self) -> int:
        """RFLAGS that may differ behind some unit."""
        mask = 0
        for unit in self.units:
            mask |= unit.undefined
        return mask

    def state(self) -> CpuState:
        """The whole state that the case starts from."""
        state = base_state(self.mode).copy()
        for name in Registers.__struct_fields__:
            setattr(state, name, getattr(self.regs, name))
        state.rip = start_rip(self)
        if self.fpu is not None:
            state.fpu = msgspec.convert(msgspec.to_builtins(self.fpu), FpuState)
        return state

    def writes(self) -> list[tuple[int, bytes]]:
        """(gpa, bytes) of guest memory that is not zero, code and tables too."""
        image = base_image(self.mode)
        return [
            (0, image[:_HOLE]), (_HOLE_END, image[_HOLE_END:]), (self.place, self.image), *self.memory
        ]  # fmt: skip


def start_rip(case: Case) -> int:
    """RIP (an offset in CS) of the first instruction."""
    return case.place - CODE if case.mode == "16" else case.place


@functools.cache
def _setup(mode: str) -> ModeSetup:
    if mode not in PRESETS:
        raise UsageError(f"there is no mode '{mode}'", hint=f"choose from {', '.join(PRESETS)}")
    setup = MODES[PRESETS[mode]](CODE, stack=0x7C00, tables=TABLES)
    state = setup.state
    if mode != "16":
        state.idt = Table(IDT, 32 * (8 if mode == "32" else 16) - 1)
    if mode in ("64", "64u"):
        state.fs = msgspec.structs.replace(state.fs, base=_FS_BASE)
        state.gs = msgspec.structs.replace(state.gs, base=_GS_BASE)
    return setup


def base_state(mode: str) -> CpuState:
    """The state of all of a mode's cases but for the general and the x87 and SSE registers. Shared:
    copy it. UsageError for a mode that is not one of `MODE_NAMES`."""
    return _setup(mode).state


@functools.cache
def base_image(mode: str) -> bytes:
    """All of RAM without code."""
    image = bytearray(RAM)
    setup = _setup(mode)
    for gpa, data in setup.writes:
        image[gpa : gpa + len(data)] = data
    if setup.state.cr3:
        # Nothing is left to be marked: when the CPU marks a page is its own affair.
        for at in range(setup.state.cr3, setup.state.cr3 + 0x6000, 8):
            if image[at] & 1:
                image[at] |= _ACCESSED_DIRTY
    for vector in range(32):
        handler = HANDLERS + 16 * vector
        image[handler] = _HLT[0]
        if mode == "16":
            image[4 * vector : 4 * vector + 4] = handler.to_bytes(4, "little")
            continue
        long = mode != "32"
        gate = encode_gate(Gate(CODE64 if long else CODE32, handler, 14, dpl=3), long=long)
        at = IDT + vector * len(gate)
        image[at : at + len(gate)] = gate
    image[DATA : DATA + DATA_SIZE] = random.Random(0).randbytes(DATA_SIZE)
    return bytes(image)


def encode_case(case: Case) -> bytes:
    """The case as JSON."""
    return msgspec.json.format(msgspec.json.encode(case), indent=1) + b"\n"


def decode_case(data: bytes, name: str = "the file") -> Case:
    """The case of `encode_case`. UsageError, naming `name`, when it is none."""
    try:
        case = msgspec.json.decode(data, type=Case)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{name} is no fuzz case: {error}", hint="give a .json file that fuzz wrote"
        ) from error
    check_case(case, name)
    return case


def check_case(case: Case, name: str = "the case") -> None:
    """UsageError for a case that the bench has no place for."""
    if case.mode not in PRESETS:
        raise UsageError(f"{name}: there is no mode '{case.mode}'", hint=f"choose from {', '.join(PRESETS)}")
    if len(case.code) > SLOT - 4:
        raise UsageError(f"{name}: a program of {len(case.code)} bytes", hint=f"{SLOT - 4} at most")
    for gpa, data in case.memory:
        if not 0 <= gpa <= gpa + len(data) <= RAM:
            raise UsageError(f"{name}: memory at {gpa:#x}", hint=f"RAM ends at {RAM:#x}")
    from ..cpu.validate import validate

    validate(case.state())


def disassemble(case_mode: str, units: Sequence[Unit], place: int = CODE) -> list[tuple[bytes, str]]:
    """(bytes, assembly) of each instruction, by capstone; what it cannot read is `(bad)`."""
    found: list[tuple[bytes, str]] = []
    decoder = _decoder({"16": 16, "32": 32}.get(case_mode, 64))
    for unit in units:
        at = 0
        while at < len(unit.code):
            step = next(decoder.disasm_lite(unit.code[at:], place + at, 1), None)
            if step is None:
                found.append((unit.code[at:], "(bad)"))
                break
            _, size, mnemonic, operands = step
            found.append((unit.code[at : at + size], f"{mnemonic} {operands}".strip()))
            at += size
        place += len(unit.code)
    return found


@functools.cache
def _decoder(bits: int):  # type: ignore[no-untyped-def]
    import capstone

    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    return capstone.Cs(capstone.CS_ARCH_X86, mode)
