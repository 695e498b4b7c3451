"""Run hardware-recorded CPU vectors (`vectors`) on a backend, and say what differs.

Everything a vector does not list is HLT (0xF4): a CPU that goes astray stops at once. After each vector all
of memory is compared, not only what the vector lists. A vector of the 80286 ends behind a HLT of its own; one
of the 8086 is a single instruction, and gets a HLT where it leads to.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec

from ..backends.base import Backend, VmOptions
from ..cpu.modes import setup
from ..cpu.state import CpuState, Segment
from ..exits import Cancelled, Exit, Halt
from ..memory import GuestMemory
from .vectors import SPACE, Vector

__all__ = ["Miss", "VectorRunner"]

_MEMORY = -(-SPACE // 4096) * 4096
_HLT = 0xF4
_GENERAL = ("ax", "bx", "cx", "dx", "sp", "bp", "si", "di")
_SEGMENTS = ("cs", "ss", "ds", "es")
#: FLAGS that a real-mode CPU of either kind has; 12 to 15 are its own (`Vector` has them as it reads them).
_FLAGS = 0x0FD5
#: Seconds for one vector. None takes a millisecond.
_PATIENCE = 0.5
_STALLS = 20


class Miss(msgspec.Struct, frozen=True):
    """A vector that came out otherwise. `registers` are (name, recorded, ours), `memory` (physical address,
    recorded, ours) of the bytes that differ; `end` is how the run ended, where it was not the HLT."""

    vector: Vector
    registers: tuple[tuple[str, int, int], ...] = ()
    memory: tuple[tuple[int, int, int], ...] = ()
    end: str = ""

    def __str__(self) -> str:
        parts = [f"{name} {theirs:04x} is {ours:04x}" for name, theirs, ours in self.registers]
        parts += [f"[{at:05x}] {theirs:02x} is {ours:02x}" for at, theirs, ours in self.memory[:8]]
        if self.end:
            parts.append(self.end)
        return f"{self.vector}: " + ", ".join(parts)


class _Ports:
    """The recorded boards had nothing at their ports: all ones."""

    def port_read(self, port: int, size: int, /) -> int:
        return (1 << 8 * size) - 1

    def port_write(self, port: int, size: int, value: int, /) -> None:
        pass

    def mmio_read(self, gpa: int, size: int, /) -> int:
        return (1 << 8 * size) - 1

    def mmio_write(self, gpa: int, size: int, value: int, /) -> None:
        pass

    def msr_read(self, index: int, /) -> int | None:
        return None

    def msr_write(self, index: int, value: int, /) -> bool:
        return False


class VectorRunner:
    """One VM of `backend` that runs vector after vector. A context manager.

    `cpu` is one of `vectors.CPUS`. `run(wrap=True)` has the first 64 KiB once more at 1 MiB, as a CPU with
    20 address lines has it, as far as the vector looks there. `counted`: count instructions, which Unicorn
    does by a hook before each.
    """

    def __init__(self, backend: Backend, cpu: str, *, counted: bool = False) -> None:
        self._cpu = cpu
        self._memory = GuestMemory()
        self._region = self._memory.add(0, _MEMORY)
        self._empty = bytes([_HLT]) * _MEMORY
        self._vm = backend.create_vm(VmOptions(watchdog_seconds=None, count_insns=counted))
        self._memory.attach(self._vm, lambda: None)
        self._memory.write(0, self._empty)
        self._vcpu = self._vm.create_vcpu()
        self._start = setup("real", 0, _MEMORY).state
        self._ports: Any = _Ports()
        self._since: float | None = None
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._watching, name="vmmsim-vectors", daemon=True)
        self._watch.start()

    def _watching(self) -> None:
        while not self._over.wait(_PATIENCE / 4):
            since = self._since
            if since is not None and time.perf_counter() - since > _PATIENCE:
                self._vcpu.cancel()

    def __enter__(self) -> VectorRunner:
        return self

    def __exit__(self, *ended: object) -> None:
        self._over.set()
        self._watch.join()
        self._vm.close()
        self._memory.close()

    def run(self, vector: Vector, *, wrap: bool = False) -> Miss | None:
        """Run it; None if all came out as recorded."""
        before = dict(vector.init.ram)
        after = before | dict(vector.final.ram)
        if self._cpu == "8086":
            regs = vector.init.regs | vector.final.regs
            at = (regs["cs"] * 16 + regs["ip"]) & 0xFFFFF
            # Where the instruction itself lies nothing can be put, and a jump to it ends by patience.
            if (at - vector.init.regs["cs"] * 16 - vector.init.regs["ip"]) & 0xFFFFF >= len(vector.code):
                before[at] = after[at] = _HLT
        if wrap:
            before |= {at + 0x100000: value for at, value in before.items() if at + 0x100000 < SPACE}
        self._store(before)
        self._vcpu.set_state(self._state(vector))
        exit = self._run_on()
        miss = self._judge(vector, before, after, exit, wrap)
        if miss is None:
            self._store(dict.fromkeys(before.keys() | after.keys(), _HLT))
        else:
            self._memory.write(0, self._empty)
        return miss

    def _run_on(self) -> Exit:
        """Run to the HLT. What is given up must have had the time, whatever else the host does."""
        began = time.thread_time()
        for _ in range(_STALLS):
            self._since = time.perf_counter()
            exit = self._vcpu.run_inline(self._ports)
            self._since = None
            self._vcpu.uncancel()
            if not isinstance(exit, Cancelled) or time.thread_time() - began > _PATIENCE / 2:
                break
        return exit

    def _store(self, ram: dict[int, int]) -> None:
        """Store bytes, stretches of neighbours at once."""
        piece = bytearray()
        start = 0
        for at in sorted(ram):
            if at != start + len(piece):
                if piece:
                    self._memory.write(start, piece)
                start, piece = at, bytearray()
            piece.append(ram[at])
        if piece:
            self._memory.write(start, piece)

    def _state(self, vector: Vector) -> CpuState:
        state = self._start.copy()
        regs = vector.init.regs
        for name in _GENERAL:
            setattr(state, "r" + name, regs[name])
        for name in _SEGMENTS:
            old = getattr(state, name)
            setattr(state, name, Segment(regs[name], regs[name] << 4, old.limit, old.attr))
        state.rip = regs["ip"]
        state.rflags = regs["flags"] & _FLAGS | 2
        return state

    def _judge(
        self, vector: Vector, before: dict[int, int], after: dict[int, int], exit: Exit, wrap: bool
    ) -> Miss | None:
        state = self._vcpu.state()
        wanted = vector.init.regs | vector.final.regs
        ours = {name: getattr(state, "r" + name) & 0xFFFFFFFF for name in _GENERAL}
        ours |= {name: getattr(state, name).selector for name in _SEGMENTS}
        behind = 1 if self._cpu == "8086" and isinstance(exit, Halt) else 0
        ours["ip"] = state.rip - behind & 0xFFFF
        ours["flags"] = state.rflags & 0xFFFF
        masks = dict.fromkeys(wanted, 0xFFFFFFFF) | vector.mask
        masks["flags"] = vector.flags_mask & _FLAGS
        registers = tuple(
            (name, wanted[name], ours[name]) for name in wanted if (wanted[name] ^ ours[name]) & masks[name]
        )
        memory = self._changed(vector, before, after, wrap)
        end = "" if isinstance(exit, Halt) else f"it ended with {exit.describe()}"
        if registers or memory or end:
            return Miss(vector, registers, memory, end)
        return None

    def _changed(
        self, vector: Vector, before: dict[int, int], after: dict[int, int], wrap: bool
    ) -> tuple[tuple[int, int, int], ...]:
        found = self._region.buffer[:]
        undefined = {}
        if vector.exception is not None:
            # Not `flags_address`, which is that of the bus: even.
            base, top = vector.init.regs["ss"] * 16, vector.init.regs["sp"]
            for offset, mask in ((2, vector.flags_mask & 0xFF), (1, vector.flags_mask >> 8)):
                undefined[base + (top - offset & 0xFFFF)] = mask
        if wrap:  # what is at 1 MiB is at 0
            low, high = bytearray(found), found[0x100000:SPACE]
            for at in after:
                if at < len(high) and high[at] != before.get(at + 0x100000, _HLT):
                    low[at] = high[at]
            low[0x100000:] = self._empty[0x100000:]
            found = bytes(low)
        wanted = bytearray(self._empty)
        for at, value in after.items():
            mask = undefined.get(at, 0xFF)
            wanted[at] = value & mask | found[at] & ~mask
        if found == wanted:
            return ()
        differ = [at for at in range(0, _MEMORY, 4096) if found[at : at + 4096] != wanted[at : at + 4096]]
        return tuple(
            (at, wanted[at], found[at])
            for page in differ
            for at in range(page, page + 4096)
            if found[at] != wanted[at]
        )
