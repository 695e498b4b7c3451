"""Guest code as text: what stands at an address, and which instruction made an exit.

An exit shows RIP as KVM does: at a read the instruction has not finished and RIP is at
it; at a write RIP is already behind it. x86 cannot be decoded backwards, so for a write the
instruction is found by decoding forward from a known boundary below: the entry, or where
RIP has been seen before. Where that does not lead to RIP, the bytes before RIP are tried,
and believed only if they store the exit's value at its address. Else there is no text:
better none than a guess.

Without capstone everything here answers None or nothing, and callers show bytes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Any

import msgspec

from .cpu.paging import linear_to_gpa
from .cpu.state import GPR_NAMES, CpuState
from .errors import UsageError
from .exits import Access
from .memory import PAGE_SIZE, GuestMemory

if TYPE_CHECKING:
    from .snapshot.pages import MemoryImage

__all__ = ["CodeReader", "ExitLocator", "Insn"]

#: The longest instruction (SDM vol. 2, 2.3.11).
_LONGEST = 15
#: How far, in bytes, and from how many boundaries an instruction is looked for.
_REACH = 2048
_TRIES = 4

#: capstone's CS_OP_REG, CS_OP_IMM and CS_OP_MEM, the same in all its versions 4 and 5.
_REG, _IMM, _MEM = 1, 2, 3
#: Legacy prefixes, and the opcodes of the string instructions, which REP repeats.
_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_STRING = frozenset(
    bytes([opcode]) for opcode in (*range(0x6C, 0x70), *range(0xA4, 0xA8), *range(0xAA, 0xB0))
)
_BITS = {"real": 16, "v86": 16, "p16": 16, "c16": 16, "p32": 32, "c32": 32, "l64": 64}
#: Instructions that reach memory through registers that capstone does not show as an operand.
_IMPLICIT = ("push", "pop", "call", "ret", "iret", "int", "enter", "leave", "lcall", "xlat")


class Insn(msgspec.Struct, frozen=True):
    """One instruction: `address` linear, `code` its bytes, `text` in Intel syntax."""

    address: int
    code: bytes
    text: str
    memory_operand: bool = False

    @property
    def end(self) -> int:
        return self.address + len(self.code)

    @property
    def repeats(self) -> bool:
        return self.text.startswith("rep")

    def may_make(self, exit: Access) -> bool:
        """Whether this is an instruction that can make an access of that kind."""
        words = self.text.removeprefix("rep ").removeprefix("repne ").removeprefix("lock ").split()
        name = words[0] if words else ""
        if exit.space == "port":
            return name.startswith("out" if exit.is_write else "in") and not name.startswith(("int", "inc"))
        if exit.space == "msr":
            return name == ("wrmsr" if exit.is_write else "rdmsr")
        return self.memory_operand or name.startswith(_IMPLICIT)


class CodeReader:
    """Reads and decodes code in memory, a machine's or a snapshot's, by linear address, in the
    mode of a CpuState."""

    def __init__(self, memory: GuestMemory | MemoryImage) -> None:
        self._memory = memory
        self._engines: dict[int, Any] = {}

    def read(self, state: CpuState, linear: int, size: int) -> bytes:
        """Up to `size` bytes at `linear`: fewer where the guest has no memory or no page."""
        data = b""
        while len(data) < size:
            at = linear + len(data)
            gpa = linear_to_gpa(state, at, self._memory.read)
            if gpa is None:
                break
            room = min(size - len(data), PAGE_SIZE - gpa % PAGE_SIZE)
            try:
                data += self._memory.read(gpa, room)
            except UsageError:
                break
        return data

    def decode(self, state: CpuState, linear: int, *, size: int = _LONGEST, count: int = 1) -> list[Insn]:
        """Up to `count` instructions from `linear` on, within `size` bytes."""
        engine = self._engine(_BITS[state.mode])
        if engine is None:
            return []
        bits = _BITS[state.mode]
        data = self.read(state, linear, size)
        found: list[Insn] = []
        at = 0
        while at < len(data) and (not count or len(found) < count):
            left = count - len(found) if count else 0
            for insn in engine.disasm(data[at:], linear + at, left):
                whole = _long_jump(data[at:], insn, bits)
                if whole is not None:
                    found.append(whole)
                    break
                code = bytes(insn.bytes)
                text = _with_prefixes(code, f"{insn.mnemonic} {insn.op_str}".strip())
                found.append(Insn(insn.address, code, text, "[" in insn.op_str))
                at += insn.size
            else:
                break
            at += len(whole.code)
        return found

    def store(self, state: CpuState, insn: Insn) -> tuple[int, int, int] | None:
        """(address, size, value) of what `insn`, a MOV or OUT, stores, or None for all others.

        The address is a port or guest-physical; `state` is the CPU's behind the instruction.
        """
        engine = self._engine(_BITS[state.mode])
        if engine is None:
            return None
        engine.detail = True
        try:
            decoded = next(engine.disasm(insn.code, insn.address, 1), None)
            operands = list(decoded.operands) if decoded is not None else []
        finally:
            engine.detail = False
        if decoded is None or decoded.mnemonic not in ("mov", "movabs", "out") or len(operands) != 2:
            return None
        target, source = operands
        value = source.imm if source.type == _IMM else _register(state, decoded.reg_name(source.reg))
        if value is None:
            return None
        if decoded.mnemonic == "out":
            port = state.rdx & 0xFFFF if target.type == _REG else target.imm & 0xFF
            return port, source.size, value
        if target.type != _MEM:
            return None
        linear = _effective(state, insn.end, target.mem, decoded.reg_name)
        gpa = linear_to_gpa(state, linear, self._memory.read)
        return None if gpa is None else (gpa, target.size, value & ((1 << 8 * target.size) - 1))

    def _engine(self, bits: int) -> Any:
        if bits not in self._engines:
            try:
                import capstone
            except ImportError:
                self._engines[bits] = None
            else:
                modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
                self._engines[bits] = capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
        return self._engines[bits]


def _with_prefixes(code: bytes, text: str) -> str:
    """`text` with the REP or LOCK that the CPU obeys: capstone 5 shows none for F2 with MOVSD, which
    repeats as with F3 (SDM vol. 2, REP), nor LOCK where F2 or F3 follows it
    (findings/capstone-prefix-not-in-text.sh)."""
    at = next((at for at, byte in enumerate(code) if byte not in _PREFIXES), len(code))
    rex = at + 1 < len(code) and code[at] & 0xF0 == 0x40
    opcode = code[at + 1 : at + 2] if rex else code[at : at + 1]
    repeats = [byte for byte in code[:at] if byte in (0xF2, 0xF3)]
    if repeats and opcode in _STRING and not text.startswith("rep"):
        return f"{'rep' if repeats[-1] == 0xF3 else 'repne'} {text}"
    if 0xF0 in code[:at] and "lock" not in text:
        return f"lock {text}"
    return text


def _long_jump(data: bytes, insn: Any, bits: int) -> Insn | None:
    """JO and JNO with an operand-size prefix in 64-bit mode: capstone 5.0 takes a displacement of 16 bits
    for these two of the sixteen. The prefix is ignored there (SDM vol. 2, Jcc). None for others."""
    code = bytes(insn.bytes)
    if bits != 64 or insn.mnemonic not in ("jo", "jno") or code[-4:-2] not in (b"\x0f\x80", b"\x0f\x81"):
        return None
    code = data[: len(code) + 2]
    if len(code) != insn.size + 2:
        return None
    target = insn.address + len(code) + int.from_bytes(code[-4:], "little", signed=True)
    return Insn(insn.address, code, f"{insn.mnemonic} {target & (1 << 64) - 1:#x}")


def _effective(state: CpuState, end: int, operand: Any, reg_name: Any) -> int:
    """The linear address of a memory operand (SDM vol. 1, 3.7.5)."""
    base = reg_name(operand.base) or ""
    index = reg_name(operand.index) or ""
    offset = operand.disp + (_register(state, index) or 0) * operand.scale
    offset += end if base.endswith("ip") else _register(state, base) or 0
    # The sum wraps at the width of the address's registers.
    name = base or index
    if name.startswith("e") or name.endswith("d"):
        offset &= 0xFFFFFFFF
    elif name and not name.startswith("r"):
        offset &= 0xFFFF
    segment = reg_name(operand.segment) or ("ss" if base.endswith(("bp", "sp")) else "ds")
    if state.mode == "l64":
        base_of = getattr(state, segment).base if segment in ("fs", "gs") else 0
        return (base_of + offset) & 0xFFFFFFFFFFFFFFFF
    return (getattr(state, segment).base + offset) & 0xFFFFFFFF


def _names(field: str) -> dict[str, tuple[str, int, int]]:
    """The names of a register's parts -> (field of CpuState, shift, mask)."""
    stem = field[1:]
    if stem.isdigit():
        wide, byte = (field + "d", field + "w"), field + "b"
    else:
        wide, byte = ("e" + stem, stem), (stem[0] if stem.endswith("x") else stem) + "l"
    names = {field: 0xFFFFFFFFFFFFFFFF, wide[0]: 0xFFFFFFFF, wide[1]: 0xFFFF, byte: 0xFF}
    found = {name: (field, 0, mask) for name, mask in names.items()}
    if stem.endswith("x"):
        found[stem[0] + "h"] = (field, 8, 0xFF)
    return found


_REGISTERS = {name: part for field in GPR_NAMES for name, part in _names(field).items()}


def _register(state: CpuState, name: str | None) -> int | None:
    """A general register, or a part of one, by its name: rax, ah, r8d. None for others."""
    if name not in _REGISTERS:
        return None
    field, shift, mask = _REGISTERS[name]
    value: int = getattr(state, field)
    return value >> shift & mask


class ExitLocator:
    """Finds the instruction behind each exit of a run, as it learns where instructions begin."""

    def __init__(self, memory: GuestMemory) -> None:
        self.code = CodeReader(memory)
        self._known: list[int] = []
        self._last: int | None = None

    def learn(self, linear: int) -> None:
        """An instruction begins at `linear`."""
        at = bisect_left(self._known, linear)
        if at == len(self._known) or self._known[at] != linear:
            insort(self._known, linear)

    def instruction(self, state: CpuState, exit: Access) -> Insn | None:
        """The instruction that made `exit`; `state` is the vCPU's as the exit shows it."""
        here = state.linear_rip
        self.learn(here)
        current = next(iter(self.code.decode(state, here)), None)
        if not exit.is_write:
            return current if current is not None and current.may_make(exit) else None
        # In the middle of a REP, RIP stays at the instruction also for writes; on some hosts
        # it does so behind the last element too, when RCX is 0 already.
        in_rep = current is not None and current.repeats and current.may_make(exit)
        if in_rep and (state.rcx or self._last == here):
            found = current
        else:
            before = self._before(state, here)
            if before is None or not before.may_make(exit):
                before = self._by_operand(state, here, exit)
            found = before or (current if in_rep else None)
        self._last = found.address if found is not None else None
        return found

    def halted(self, state: CpuState) -> Insn | None:
        """The HLT behind which RIP stands."""
        self.learn(state.linear_rip)
        code = self.code.read(state, state.linear_rip - 1, 1)
        return Insn(state.linear_rip - 1, code, "hlt") if code == b"\xf4" else None

    def lead(self, state: CpuState, end: int, count: int) -> list[Insn]:
        """The `count` instructions before `end`, or fewer: none where no known boundary leads there."""
        at = bisect_left(self._known, end)
        best: list[Insn] = []
        for start in reversed(self._known[max(0, at - _TRIES) : at]):
            if end - start > count * _LONGEST or len(best) >= count:
                break
            found = self.code.decode(state, start, size=end - start, count=0)
            if found and found[-1].end == end:
                best = found
        return best[-count:]

    def _before(self, state: CpuState, end: int) -> Insn | None:
        """The instruction that ends at `end`."""
        at = bisect_left(self._known, end)
        for start in reversed(self._known[max(0, at - _TRIES) : at]):
            if end - start > _REACH:
                break
            for insn in self.code.decode(state, start, size=end - start, count=0):
                if insn.end == end:
                    self.learn(insn.address)
                    return insn
        return None

    def _by_operand(self, state: CpuState, end: int, exit: Access) -> Insn | None:
        """The MOV or OUT that ends at `end` and stores just what `exit` shows, where it does."""
        for length in range(_LONGEST, 0, -1):
            insn = next(iter(self.code.decode(state, end - length, size=length)), None)
            if insn is None or insn.end != end or not insn.may_make(exit):
                continue
            value: int = exit.value  # type: ignore[attr-defined]
            if self.code.store(state, insn) == (exit.address, exit.size, value):
                self.learn(insn.address)
                return insn
        return None
