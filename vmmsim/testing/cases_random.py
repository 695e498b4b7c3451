"""Cases made by chance: loads, stores, ADD and XCHG of any width around every edge of the bench.

What must follow is worked out from the contract alone: `split_access`, and for each piece
whether RAM, ROM or nothing is there. The programs are the same in every run.
"""

from __future__ import annotations

import random

from ..bus import split_access
from .bench import HIGH_RAM, HOLE, HOLE_END, ROM, Seen
from .cases import Case, mr, mw

__all__ = ["CASES"]

_PROGRAMS = 8
_INSTRUCTIONS = 40
_RESULTS = HIGH_RAM + 0x1000
_EDGES = (HOLE, HOLE + 0x1000, HOLE_END, ROM, HIGH_RAM)
#: Bytes on both sides of an edge that the programs touch.
_REACH = 16

#: Opcode with the operands [esi], ebx (rbx) by size; 16 bits take a 66 prefix, 64 a REX.W.
_OPCODES = {"load": (0x8A, 0x8B), "store": (0x88, 0x89), "add": (0x00, 0x01), "xchg": (0x86, 0x87)}


class _Model:
    """The bench's memory, byte by byte, and what the bus must see."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.exits: list[Seen] = []
        self.memory: dict[int, int] = {}
        for edge in _EDGES:
            for at in range(edge - _REACH, edge + _REACH):
                if ROM <= at < HIGH_RAM:
                    self.memory[at] = at & 0xFF
                elif not HOLE <= at < HOLE_END:
                    self.memory[at] = chance.getrandbits(8)

    def read(self, address: int, size: int) -> int:
        data = b""
        for at, count in split_access(address, size):
            if HOLE <= at < HOLE_END:
                value = self._chance.getrandbits(8 * count)
                self.exits.append(mr(at, count, value))
                data += value.to_bytes(count, "little")
            else:
                data += bytes(self.memory[i] for i in range(at, at + count))
        return int.from_bytes(data, "little")

    def write(self, address: int, size: int, value: int) -> None:
        for at, count in split_access(address, size):
            part = value >> 8 * (at - address) & ((1 << 8 * count) - 1)
            if HOLE <= at < HOLE_END or ROM <= at < HIGH_RAM:
                self.exits.append(mw(at, count, part))
            else:
                self.memory.update(enumerate(part.to_bytes(count, "little"), at))

    def stored(self) -> dict[int, bytes]:
        """The bytes of RAM and ROM around each edge."""
        return {at: bytes([byte]) for at, byte in self.memory.items()}


def _program(seed: int, wide: bool) -> Case:
    chance = random.Random(seed)
    model = _Model(chance)
    before = model.stored()
    sizes = (1, 2, 4, 8) if wide else (1, 2, 4)
    word = 8 if wide else 4
    lines: list[str] = []
    results = b""
    for _ in range(_INSTRUCTIONS):
        name, size = chance.choice(list(_OPCODES)), chance.choice(sizes)
        address = chance.choice(_EDGES) + chance.randrange(-9, 5)
        if name in ("add", "xchg") and address < ROM < address + size:
            address = ROM  # from RAM into ROM: a case of its own, `rmw_from_ram_into_rom`
        data = chance.getrandbits(8 * word)
        mask = (1 << 8 * size) - 1
        if name == "load":
            value = model.read(address, size)
        elif name == "store":
            value = data
            model.write(address, size, data & mask)
        else:
            value = model.read(address, size)
            model.write(address, size, (value + data if name == "add" else data) & mask)
        # EBX after the instruction: what was loaded or exchanged, in its low bytes; a result of
        # 32 bits clears the upper half of RBX (SDM vol. 1, 3.4.1.1).
        result = data
        if name in ("load", "xchg"):
            result = value if size == 4 else data & ~mask | value
        results += result.to_bytes(word, "little")
        rex = "48 " if wide else ""
        prefix = {2: "66 ", 8: "48 "}.get(size, "")
        opcode = _OPCODES[name][size > 1]
        lines += [
            f"be {address.to_bytes(4, 'little').hex(' ')}  mov esi, {address:#x}",
            f"{rex}bb {data.to_bytes(word, 'little').hex(' ')}  mov ebx, {data:#x}",
            f"{prefix}{opcode:02x} 1e  {name} [esi], {8 * size} bits of ebx",
            f"{rex}89 1f  mov [edi], ebx",
            f"{rex}83 c7 {word:02x}  add edi, {word}",
        ]
    return Case(
        name=f"chance_{seed}_{'64' if wide else '32'}bit",
        modes=("l64", "l64u") if wide else ("p32",),
        code="\n".join(lines),
        regs={"rdi": _RESULTS},
        memory={at: data for at, data in before.items() if not ROM <= at < HIGH_RAM},
        expect=tuple(model.exits),
        stored={_RESULTS: results, **model.stored()},
    )


CASES = tuple(_program(seed, wide) for wide in (True, False) for seed in range(_PROGRAMS))
