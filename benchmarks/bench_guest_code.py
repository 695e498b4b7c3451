"""Guest code under Machine, against bare `uc.emu_start` of the same bytes.

Both sides: 64-bit code in an engine of UC_MODE_64, a translation buffer of 16 MiB, memory
given by mem_map_ptr with all rights. The bare side ends at the address of the HLT. `*_portable` is
the portable engine. Both engines run such code free, without hooks.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from functools import partial

from common import CODE, CPU, Benchmark, Result, compare, engine, machine_with, unusable

#: mov ecx, N; again: add rax, rcx; xor rdx, rax; lea rsi, [rsi + rdx*2]; rol rax, 7; sub rbx, rsi;
#: and rdi, rax; or r8, rbx; dec ecx; jnz again; hlt: 9 instructions a turn, one block.
ALU = bytes.fromhex("b9785634124801c84831c2488d345648c1c0074829f34821c74909d8ffc975e5f4"), 9
#: mov ecx, N; mov ebx, 0x9000; again: mov rax, [rbx]; add rax, rcx; mov [rbx + 8], rax; call f;
#: dec ecx; jnz again; hlt; f: push rdx; movzx edx, byte ptr [rbx + 9]; pop rdx; ret: 10
#: instructions a turn, three blocks. The stack is below 0x7C00.
MIX = bytes.fromhex("b978563412bb00900000488b034801c848894308e805000000ffc975edf4520fb653095ac3"), 10
#: mov ecx, N; again: dec ecx; jnz again; hlt: the shortest block there is.
DEC = bytes.fromhex("b978563412ffc975fcf4"), 2

_SIZE = 1 << 20


def count_in(code: bytes, turns: int) -> bytes:
    """`code` with its number of turns."""
    return code.replace(bytes.fromhex("78563412"), turns.to_bytes(4, "little"))


def _machine(code: bytes, insns: int, way: str) -> float:
    with engine(way), machine_with(code, "unicorn", mode="l64") as machine:
        began = time.thread_time()
        exit = machine.run()
        seconds = time.thread_time() - began
    assert exit.kind == "halt", exit
    return insns / seconds


def bare(code: bytes, insns: int) -> float:
    """Instructions a second of code that ends with HLT and leaves 0 in RCX, under emu_start."""
    from unicorn import UC_ARCH_X86, UC_MODE_64, UC_PROT_ALL
    from unicorn.unicorn_py3.unicorn import Uc
    from unicorn.x86_const import UC_X86_REG_RCX, UC_X86_REG_RSP

    memory = mmap.mmap(-1, _SIZE)
    anchor = ctypes.c_char.from_buffer(memory)
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_set_tcg_buffer_size(16 << 20)
    uc.mem_map_ptr(0, _SIZE, UC_PROT_ALL, ctypes.addressof(anchor))
    del anchor
    memory[CODE : CODE + len(code)] = code
    uc.reg_write(UC_X86_REG_RSP, 0x7C00)
    began = time.thread_time()
    uc.emu_start(CODE, CODE + code.index(b"\xf4"))
    seconds = time.thread_time() - began
    assert uc.reg_read(UC_X86_REG_RCX) == 0
    del uc
    memory.close()
    return insns / seconds


def _run(
    name: str, guest: tuple[bytes, int], turns: int, way: str, goal: float | None, quick: bool
) -> list[Result]:
    if why := unusable("unicorn"):
        return [Result(name=name, unit="instructions/s", backend="unicorn", skipped=why)]
    turns = 10_000 if quick else turns
    code, insns = count_in(guest[0], turns), 1 + guest[1] * turns
    result = compare(
        name,
        lambda: _machine(code, insns, way),
        lambda: bare(code, insns),
        unit="instructions/s",
        goal=goal,
        backend=f"unicorn/{way}",
        clock=CPU,
        rounds=1 if quick else 7,
    )
    return [result]


BENCHMARKS: dict[str, Benchmark] = {
    "guest_code_alu": partial(_run, "guest_code_alu", ALU, 30_000_000, "native", 0.97),
    "guest_code_mix": partial(_run, "guest_code_mix", MIX, 3_000_000, "native", 0.97),
    "guest_code_dec_portable": partial(_run, "guest_code_dec_portable", DEC, 60_000_000, "portable", 0.9),
    "guest_code_alu_portable": partial(_run, "guest_code_alu_portable", ALU, 30_000_000, "portable", 0.9),
    "guest_code_mix_portable": partial(_run, "guest_code_mix_portable", MIX, 2_000_000, "portable", 0.8),
}
