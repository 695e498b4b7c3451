"""A thunk of either architecture alone in an emulator, with all that it calls played by the test.

It is called as its C caller would call it, with whatever the calling convention leaves open set to noise: the
upper halves of 32-bit arguments and answers, and each register that a call may change.
"""

from __future__ import annotations

import functools
import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import unicorn
from unicorn import arm64_const as arm
from unicorn import x86_const as x86

from vmmsim.backends.unicorn_native.assembly import Assembly
from vmmsim.backends.unicorn_native.assembly_aarch64 import ASSEMBLY as AARCH64
from vmmsim.backends.unicorn_native.assembly_x86_64 import ASSEMBLY as X86_64
from vmmsim.backends.unicorn_native.thunks import Shared

CODE, SHARED, ENV, UC, CPU, TABLE, PAGES, HOLE, RETURN = range(0x100000, 0xA00000, 0x100000)
FUNCTIONS, STACK, SIZE = 0xA00000, 0xB00000, 0x2000
_MEMORY = (CODE, SHARED, ENV, UC, CPU, TABLE, PAGES, HOLE, RETURN, FUNCTIONS, STACK)
#: Where things are in the CPU structure and in uc_struct here.
OFFSETS = {
    "RDI": 0x38, "RIP": 0x80, "EFLAGS": 0x88, "CC_SOURCE": 0x98, "CC_OP": 0xA8, "HFLAGS": 0xB0,
    "ES_BASE": 0xC8, "CS_FLAGS": 0xF4, "SS_FLAGS": 0x10C, "CR0": 0x1A0, "CR2": 0x1B0,
    "EXCEPTION": 0x15C8, "EXCEPTION_IS_INT": 0x15CC, "RECURSION": 0x2E4,
}  # fmt: skip
#: What a thunk calls: the sizes of the arguments in bytes.
CALLS = {
    "UC_EMU_STOP": (8,), "CHECK_EXIT": (8, 4), "DO_INTERRUPT": (8,), "START": (8, 8, 8, 8, 8),
    "FILL": (8, 8, 4, 4, 4, 1, 8), "PROTECT": (8, 8, 8),
}  # fmt: skip
#: Thunk -> (sizes of its arguments, of its answer, of its callback's arguments, of the callback's answer).
CONTRACTS: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], int]] = {
    "block": ((8, 8, 4, 8), 0, (), 0),
    "trap": ((8, 4, 8), 4, (4,), 4),
    "insn": ((8, 8, 4, 8), 0, (), 0),
    "in": ((8, 4, 4, 8), 4, (4, 4, 4), 4),
    "out": ((8, 4, 4, 4, 8), 0, (4, 4, 4, 4), 0),
    "read": ((8, 4, 8, 4, 8, 8), 1, (8, 4, 4), 8),
    "write": ((8, 4, 8, 4, 8, 8), 1, (8, 4, 8, 4), 0),
    "piece": ((8, 8, 4, 8), 8, (8, 4), 8),
    "leave": ((8,), 0, (), 0),
    "fill": ((8, 8, 4, 4, 4, 1, 8), 1, (), 0),
    "start": ((), 4, (), 0),
    "stop": ((), 0, (), 0),
}
_NAMES = (*CALLS, "CALLBACK")


@dataclass
class Host:
    """An architecture and its calling convention; registers by Unicorn's numbers."""

    assembly: Assembly
    emulator: tuple[int, int]
    ret: bytes
    arguments: tuple[int, ...]
    answer: int
    #: What a call keeps; which of them TCG has the CPU structure in; what a call may change.
    kept: tuple[int, ...]
    env: int
    lost: tuple[int, ...]
    sp: int
    pc: int


def _x86(*names: str) -> tuple[int, ...]:
    return tuple(getattr(x86, f"UC_X86_REG_{name}") for name in names)


def _arm(*numbers: int) -> tuple[int, ...]:
    return tuple(getattr(arm, f"UC_ARM64_REG_X{number}") for number in numbers)


HOSTS = {
    "x86_64": Host(
        assembly=X86_64,
        emulator=(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64),
        ret=b"\xc3",
        arguments=_x86("RDI", "RSI", "RDX", "RCX", "R8", "R9"),
        answer=x86.UC_X86_REG_RAX,
        kept=_x86("RBX", "RBP", "R12", "R13", "R14", "R15"),
        env=x86.UC_X86_REG_RBP,
        lost=_x86("RAX", "RCX", "RDX", "RSI", "RDI", "R8", "R9", "R10", "R11"),
        sp=x86.UC_X86_REG_RSP,
        pc=x86.UC_X86_REG_RIP,
    ),
    "aarch64": Host(
        assembly=AARCH64,
        emulator=(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM),
        ret=bytes.fromhex("c0035fd6"),
        arguments=_arm(*range(8)),
        answer=arm.UC_ARM64_REG_X0,
        kept=_arm(*range(19, 30), 18),  # X18 is the platform's
        env=arm.UC_ARM64_REG_X19,
        lost=_arm(*range(18)),
        sp=arm.UC_ARM64_REG_SP,
        pc=arm.UC_ARM64_REG_PC,
    ),
}


@dataclass
class Scene:
    """What a thunk meets: memory by address, the answers of what it calls, and what each of these changes."""

    thunk: str
    arguments: tuple[int, ...]
    memory: Mapping[int, bytes]
    answers: tuple[int, ...] = ()
    changes: Mapping[str, Mapping[int, bytes]] = field(default_factory=dict)


@dataclass
class Outcome:
    calls: list[tuple[Any, ...]]
    answer: int
    #: SHARED, ENV, UC, CPU, TABLE and PAGES.
    memory: dict[int, bytes]
    #: From the stack pointer that the write thunk has noted, up to the caller's.
    stack: bytes
    #: The registers that a call keeps, as they were.
    kept: list[int]


@functools.cache
def _emulator(name: str) -> unicorn.Uc:
    uc = unicorn.Uc(*HOSTS[name].emulator)
    uc.ctl_set_tcg_buffer_size(4 << 20)
    for at in _MEMORY:
        uc.mem_map(at, SIZE)
    return uc


def _masked(value: int, size: int) -> int:
    return value & (1 << 8 * size) - 1


def play(name: str, scene: Scene) -> Outcome:
    """Run the scene with the thunk of that architecture; AssertionError where it breaks the convention."""
    host, noise = HOSTS[name], random.Random(scene.thunk)
    sizes, answer_size, callback_sizes, callback_answer = CONTRACTS[scene.thunk]
    uc = _emulator(name)
    for at in _MEMORY:
        uc.mem_write(at, bytes(SIZE))
    uc.ctl_flush_tb()
    values = OFFSETS | {call: FUNCTIONS + 16 * n for n, call in enumerate(_NAMES)} | {"SHARED": SHARED}
    uc.mem_write(
        CODE, host.assembly.filled(scene.thunk, {word: values[word] for word in host.assembly.blanks})
    )
    for n in range(len(_NAMES)):
        uc.mem_write(FUNCTIONS + 16 * n, host.ret)
    for index, value in (
        (Shared.ENV, ENV), (Shared.ENGINE, UC), (Shared.CPU, CPU), (Shared.PAGES, PAGES),
        (Shared.START, values["START"]), (Shared.FILL, values["FILL"]), (Shared.PROTECT, values["PROTECT"]),
    ):  # fmt: skip
        uc.mem_write(SHARED + 8 * index, struct.pack("<Q", value))
    for at, data in scene.memory.items():
        uc.mem_write(at, data)
    for register in (*host.lost, *host.kept):
        uc.reg_write(register, noise.getrandbits(64))
    uc.reg_write(host.env, ENV)

    def loose(value: int, size: int) -> int:
        return value | (noise.getrandbits(64) << 8 * size & (1 << 64) - 1)

    passed = [loose(value, max(size, 4)) for value, size in zip(scene.arguments, sizes, strict=True)]
    sp = STACK + SIZE - 0x800
    on_stack = passed[len(host.arguments) :]
    if name == "x86_64":
        sp -= 8
        uc.mem_write(sp, struct.pack(f"<{1 + len(on_stack)}Q", RETURN, *on_stack))
    else:
        assert not on_stack
        uc.reg_write(arm.UC_ARM64_REG_LR, RETURN)
    uc.reg_write(host.sp, sp)
    for register, value in zip(host.arguments, passed, strict=False):
        uc.reg_write(register, value)
    kept = [uc.reg_read(register) for register in host.kept]
    calls: list[tuple[Any, ...]] = []
    answers = list(scene.answers)

    def called(_uc: unicorn.Uc, address: int, _size: int, _user: object) -> None:
        call = _NAMES[(address - FUNCTIONS) // 16]
        wanted = callback_sizes if call == "CALLBACK" else CALLS[call]
        at = uc.reg_read(host.sp)
        assert at % 16 == (8 if name == "x86_64" else 0), f"{call} is called with the stack pointer {at:#x}"
        given = [uc.reg_read(register) for register in host.arguments]
        if name == "x86_64":
            given += struct.unpack("<2Q", uc.mem_read(at + 8, 16))
        calls.append((call, *map(_masked, given, wanted)))
        for register in host.lost:
            uc.reg_write(register, noise.getrandbits(64))
        answer = answers.pop(0) if answers else 0
        size = {"CALLBACK": callback_answer or 8, "FILL": 1, "START": 4}.get(call, 8)
        # What is 4 bytes, libffi extends on x86-64; a bool's other bits are open.
        uc.reg_write(
            host.answer, answer if size == 4 and name == "x86_64" else loose(_masked(answer, size), size)
        )
        for where, data in scene.changes.get(call, {}).items():
            uc.mem_write(where, data)

    hook = uc.hook_add(unicorn.UC_HOOK_CODE, called, begin=FUNCTIONS, end=FUNCTIONS + SIZE - 1)
    uc.emu_start(CODE, RETURN, count=10_000)
    uc.hook_del(hook)

    assert uc.reg_read(host.pc) == RETURN
    assert uc.reg_read(host.sp) == sp + (8 if name == "x86_64" else 0)
    assert [uc.reg_read(register) for register in host.kept] == kept
    memory = {at: bytes(uc.mem_read(at, SIZE)) for at in (SHARED, ENV, UC, CPU, TABLE, PAGES)}
    noted = SHARED + 8 * Shared.STACK
    low = int.from_bytes(uc.mem_read(noted, 8), "little")
    uc.mem_write(noted, bytes(8))
    memory[SHARED] = bytes(uc.mem_read(SHARED, SIZE))
    stack = bytes(uc.mem_read(low, sp - low)) if STACK <= low < sp else b""
    return Outcome(calls, _masked(uc.reg_read(host.answer), answer_size), memory, stack, kept)
