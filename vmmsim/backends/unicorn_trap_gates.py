"""One event through the guest's IVT or IDT, exactly as SDM vol. 2 (INT n) and vol. 3, chapter 6 say.

This is the complete way, for every mode and every check. The way that 64-bit guests take
nearly always is `TrapUnit`'s own and stands beside this one. What an event finds wrong is
raised as `GuestFault` before any register is changed and before anything is pushed.
"""

from __future__ import annotations

import contextlib

from .unicorn_trap_cpu import CS, DS, ES, FS, GS, LDT, SS, TR, CpuWords
from .unicorn_trap_memory import GuestFault, LinearMemory

__all__ = ["Gates", "base_of", "image", "limit_of"]

_TS, _NP, _SS, _GP = 10, 11, 12, 13
_TF, _IF, _NT, _RF, _VM, _AC = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17, 1 << 18
_LMA = 1 << 14
#: Of the attributes of a segment: accessed, no system segment, present.
_MARKED, _PLAIN, _PRESENT = 1 << 8, 1 << 12, 1 << 15
_ALL = (1 << 64) - 1
#: Debug exceptions, double faults and machine checks are no faults in the sense of RF.
_NO_RF = frozenset({1, 8, 18})

_Writes = list[tuple[list[tuple[int, int]], bytes]]


def image(vector: int, kind: str, rflags: int) -> int:
    """RFLAGS as pushed: with RF for a fault, so that the instruction is not stopped again by its
    breakpoint (SDM vol. 3, 17.3.1.1). Else without: at each other boundary an instruction has
    ended, which clears RF, but the engine keeps it for longer."""
    if kind == "fault" and vector not in _NO_RF:
        return rflags | _RF
    return rflags & ~_RF


class Gates:
    """Delivers through gates. `deliver` works on `cpu`'s words and leaves the restore to its caller."""

    def __init__(self, cpu: CpuWords, memory: LinearMemory) -> None:
        self._cpu = cpu
        self._memory = memory
        self._ext = 0

    def deliver(self, vector: int, error: int | None, kind: str, rip: int, rflags: int) -> int | None:
        """`rip` and `rflags` are what the event finds and pushes. None, or the selector of the TSS
        that a task gate names. Raises GuestFault."""
        words, cpu = self._cpu.words, self._cpu
        self._ext = 0 if kind == "soft" else 1
        flags = image(vector, kind, rflags)
        hidden = words[cpu.hidden]
        if not words[cpu.cr] & 1:
            self._real(vector, rip, flags)
            return None
        entry = self._gate(vector, kind, hidden)
        if hidden & _LMA:
            self._long(entry, error, rip, flags)
            return None
        if entry >> 40 & 31 == 5:
            return entry >> 16 & 0xFFFF
        self._legacy(entry, error, rip, flags)
        return None

    def _gate(self, vector: int, kind: str, hidden: int) -> int:
        """The vector's gate of the IDT, checked as far as it goes without its code segment."""
        words, cpu = self._cpu.words, self._cpu
        long = hidden & _LMA
        size = 16 if long else 8
        limit = words[cpu.idt + 1] & 0xFFFFFFFF
        code = vector * 8 | 2 | self._ext
        if vector * size + size - 1 > limit:
            raise GuestFault(_GP, code)
        entry = self._memory.read_int(words[cpu.idt] + vector * size, size)
        if entry >> 40 & 31 not in ((14, 15) if long else (5, 6, 7, 14, 15)):
            raise GuestFault(_GP, code)
        if kind == "soft" and (entry >> 45 & 3) < (hidden & 3):
            raise GuestFault(_GP, code)
        if not entry >> 47 & 1:
            raise GuestFault(_NP, code)
        return entry

    # -- real mode

    def _real(self, vector: int, rip: int, flags: int) -> None:
        words, cpu = self._cpu.words, self._cpu
        if vector * 4 + 3 > words[cpu.idt + 1] & 0xFFFFFFFF:
            raise GuestFault(_GP, 0)
        entry = self._memory.read_int(words[cpu.idt] + vector * 4, 4)
        cs = cpu.segment(CS)[0]
        writes, rsp = self._push((flags & 0xFFFF, cs, rip & 0xFFFF), 2, cpu.segment(SS), words[cpu.rsp], 0, 0)
        self._commit(writes)
        words[cpu.rsp] = rsp
        words[cpu.rip] = entry & 0xFFFF
        # The limit and the rights stay, as in unreal mode.
        at = cpu.segments + 3 * CS
        words[at] = entry >> 16
        words[at + 1] = entry >> 16 << 4
        words[cpu.flags] &= ~(_IF | _TF | _RF | _AC)
        cpu.settle(0)

    # -- 16- and 32-bit gates

    def _legacy(self, entry: int, error: int | None, rip: int, flags: int) -> None:
        words, cpu = self._cpu.words, self._cpu
        wide = entry >> 43 & 1
        offset = entry & 0xFFFF | (entry >> 32 & 0xFFFF0000 if wide else 0)
        cpl = words[cpu.hidden] & 3
        selector, at, descriptor, new_cpl = self._target(entry >> 16 & 0xFFFF, cpl)
        v86 = flags & _VM
        limit = limit_of(descriptor)
        old_ss, rsp = cpu.segment(SS), words[cpu.rsp]
        width = 4 if wide else 2
        frame = [flags, cpu.segment(CS)[0], rip]
        if error is not None:
            frame.append(error)
        if v86 and (new_cpl or descriptor >> 42 & 1):
            raise GuestFault(_GP, selector & 0xFFFC | self._ext)
        stack = None
        if new_cpl < cpl:
            ss, esp = self._inner_stack(new_cpl)
            ss_at, ss_descriptor = self._stack_segment(ss, new_cpl)
            stack = (ss, base_of(ss_descriptor), limit_of(ss_descriptor), ss_descriptor >> 32)
            frame = [old_ss[0], rsp, *frame]
            if v86:
                frame = [cpu.segment(number)[0] for number in (GS, FS, DS, ES)] + frame
            writes, esp = self._push(frame, width, stack, esp, new_cpl, ss & 0xFFFC)
            writes += self._accessed(ss_at, ss_descriptor)
        else:
            writes, esp = self._push(frame, width, old_ss, rsp, new_cpl, 0)
        writes += self._accessed(at, descriptor)
        if offset > limit:
            raise GuestFault(_GP, self._ext)
        self._commit(writes)
        if stack is not None:
            cpu.set_segment(SS, stack[0] & 0xFFFC | new_cpl, stack[1], stack[2], stack[3] | _MARKED)
        attributes = descriptor >> 32 | _MARKED
        cpu.set_segment(CS, selector & 0xFFFC | new_cpl, base_of(descriptor), limit, attributes)
        if v86:
            for number in (GS, FS, DS, ES):
                cpu.set_segment(number, 0, 0, 0, 0)
        words[cpu.rsp] = esp
        words[cpu.rip] = offset
        self._clear_flags(entry)
        cpu.settle(new_cpl)

    def _target(self, selector: int, cpl: int) -> tuple[int, int, int, int]:
        """The gate's code segment: selector, where its descriptor is, the descriptor, the new CPL."""
        if not selector & 0xFFFC:
            raise GuestFault(_GP, self._ext)
        code = selector & 0xFFFC | self._ext
        at, descriptor = self.descriptor(selector, _GP)
        kind, dpl = descriptor >> 40 & 31, descriptor >> 45 & 3
        if kind & 0x18 != 0x18 or dpl > cpl:
            raise GuestFault(_GP, code)
        if not descriptor >> 47 & 1:
            raise GuestFault(_NP, code)
        return selector, at, descriptor, cpl if kind & 4 else dpl

    def descriptor(self, selector: int, vector: int) -> tuple[int, int]:
        """Where the descriptor is, and its 8 bytes. GuestFault `vector` beyond the table."""
        words, cpu = self._cpu.words, self._cpu
        if selector & 4:
            chosen, base, limit, attributes = cpu.segment(LDT)
            there = chosen & 0xFFFC and attributes & _PRESENT
        else:
            base, limit, there = words[cpu.gdt], words[cpu.gdt + 1] & 0xFFFFFFFF, 1
        if not there or selector | 7 > limit:
            raise GuestFault(vector, selector & 0xFFFC | self._ext)
        at = base + (selector & 0xFFF8)
        return at, self._memory.read_int(at, 8)

    def _inner_stack(self, cpl: int) -> tuple[int, int]:
        """SS and ESP for `cpl` from a 16- or 32-bit TSS."""
        selector, base, limit, attributes = self._cpu.segment(TR)
        wide = attributes >> 11 & 1
        at, size = (8 * cpl + 4, 6) if wide else (4 * cpl + 2, 4)
        if at + size - 1 > limit:
            raise GuestFault(_TS, selector & 0xFFFC | self._ext)
        stack = self._memory.read_int(base + at, size)
        return (stack >> 32, stack & 0xFFFFFFFF) if wide else (stack >> 16, stack & 0xFFFF)

    def _stack_segment(self, selector: int, cpl: int) -> tuple[int, int]:
        if not selector & 0xFFFC:
            raise GuestFault(_TS, self._ext)
        code = selector & 0xFFFC | self._ext
        at, descriptor = self.descriptor(selector, _TS)
        writable_data = descriptor >> 40 & 0x1A == 0x12
        if selector & 3 != cpl or descriptor >> 45 & 3 != cpl or not writable_data:
            raise GuestFault(_TS, code)
        if not descriptor >> 47 & 1:
            raise GuestFault(_SS, code)
        return at, descriptor

    def _push(
        self,
        values: tuple | list,
        width: int,
        stack: tuple[int, int, int, int],
        rsp: int,
        cpl: int,
        code: int,
    ) -> tuple[_Writes, int]:
        """What pushing `values` one after the other will store, and RSP behind it; #SS(`code`)."""
        _, base, limit, attributes = stack
        big = attributes >> 22 & 1
        mask = 0xFFFFFFFF if big else 0xFFFF
        down = attributes >> 8 & 0x1C == 0x14  # a data segment that expands down
        protected = self._cpu.words[self._cpu.cr] & 1
        sp = rsp & mask
        writes: _Writes = []
        for value in values:
            sp = sp - width & mask
            last = sp + width - 1
            outside = (sp <= limit or last > mask) if protected and down else last > limit
            if outside:
                raise GuestFault(_SS, code | self._ext)
            pieces = self._memory.prepare(base + sp & 0xFFFFFFFF, width, user=cpl == 3)
            writes.append((pieces, (value & (1 << 8 * width) - 1).to_bytes(width, "little")))
        return writes, rsp & ~mask & 0xFFFFFFFF | sp

    def _accessed(self, at: int, descriptor: int) -> _Writes:
        """The store that marks a loaded descriptor as accessed, where it is not."""
        if descriptor >> 40 & 1:
            return []
        return [(self._memory.prepare(at + 5, 1, implicit=True), bytes([descriptor >> 40 & 0xFF | 1]))]

    def mark_loaded(self) -> None:
        """Behind a delivery that was not `deliver`'s and marks nothing: CS and SS (SDM vol. 3, 3.4.5.1).
        Where the store would fault none is made."""
        cpu = self._cpu
        for number in (CS, SS):
            selector, base, limit, attributes = cpu.segment(number)
            if attributes & (_MARKED | _PLAIN) != _PLAIN:
                continue
            cpu.set_segment(number, selector, base, limit, attributes | _MARKED)
            if cpu.words[cpu.cr] & 1 and not cpu.words[cpu.flags] & _VM:
                with contextlib.suppress(GuestFault):
                    self._commit(self._accessed(*self.descriptor(selector, _GP)))

    def _commit(self, writes: _Writes) -> None:
        for pieces, data in writes:
            self._memory.commit(pieces, data)

    def _clear_flags(self, entry: int) -> None:
        gone = _TF | _NT | _RF | _VM | (0 if entry >> 40 & 1 else _IF)
        self._cpu.words[self._cpu.flags] &= ~gone

    def push_error(self, error: int, wide: bool) -> None:
        """Push the error code on the stack of the task that was just switched to."""
        words, cpu = self._cpu.words, self._cpu
        width = 4 if wide else 2
        cpl = words[cpu.hidden] & 3
        self._ext = 1
        writes, rsp = self._push((error,), width, cpu.segment(SS), words[cpu.rsp], cpl, 0)
        self._commit(writes)
        words[cpu.rsp] = rsp

    # -- 64-bit gates

    def _long(self, entry: int, error: int | None, rip: int, flags: int) -> None:
        words, cpu, memory = self._cpu.words, self._cpu, self._memory
        offset = entry & 0xFFFF | (entry >> 48 & 0xFFFF) << 16 | (entry >> 64 & 0xFFFFFFFF) << 32
        ist = entry >> 32 & 7
        cpl = words[cpu.hidden] & 3
        selector, at, descriptor, new_cpl = self._target(entry >> 16 & 0xFFFF, cpl)
        if descriptor >> 53 & 3 != 1:  # L without D
            raise GuestFault(_GP, selector & 0xFFFC | self._ext)
        old_rsp = words[cpu.rsp]
        rsp = old_rsp
        if ist or new_cpl < cpl:
            rsp = self._long_stack(0x1C + 8 * ist if ist else 4 + 8 * new_cpl)
        frame = [cpu.segment(SS)[0], old_rsp, flags, cpu.segment(CS)[0], rip]
        if error is not None:
            frame.append(error)
        rsp &= ~15
        top, rsp = rsp, rsp - 8 * len(frame) & _ALL
        if not (_canonical(rsp) and _canonical(top - 1 & _ALL)):
            raise GuestFault(_SS, self._ext)
        data = b"".join((value & _ALL).to_bytes(8, "little") for value in reversed(frame))
        writes: _Writes = [(memory.prepare(rsp, len(data), user=new_cpl == 3), data)]
        writes += self._accessed(at, descriptor)
        if not _canonical(offset):
            raise GuestFault(_GP, self._ext)
        self._commit(writes)
        if new_cpl < cpl:
            cpu.set_segment(SS, new_cpl, 0, 0, new_cpl << 13)
        attributes = descriptor >> 32 | _MARKED
        cpu.set_segment(CS, selector & 0xFFFC | new_cpl, 0, limit_of(descriptor), attributes)
        words[cpu.rsp] = rsp
        words[cpu.rip] = offset
        self._clear_flags(entry)
        cpu.settle(new_cpl)

    def _long_stack(self, at: int) -> int:
        selector, base, limit, _ = self._cpu.segment(TR)
        if at + 7 > limit:
            raise GuestFault(_TS, selector & 0xFFFC | self._ext)
        rsp = self._memory.read_int(base + at, 8)
        if not _canonical(rsp):
            raise GuestFault(_SS, self._ext)
        return rsp


def _canonical(address: int) -> bool:
    return address >> 47 in (0, 0x1FFFF)


def base_of(descriptor: int) -> int:
    return descriptor >> 16 & 0xFFFFFF | (descriptor >> 56 & 0xFF) << 24


def limit_of(descriptor: int) -> int:
    limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
    return limit << 12 | 0xFFF if descriptor >> 55 & 1 else limit
