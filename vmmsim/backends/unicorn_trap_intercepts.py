"""Instructions that are not the engine's business: CPUID, the TSC, MSRs, CR8, HLT, and writes to
CR0 and CR4 that a CPU refuses and QEMU does not.

QEMU can run a guest of AMD's SVM, whose intercepts leave the guest before an instruction is
executed. Unicorn hands these exits to the INTR hook, as number 0x100 + SVM's exit code (AMD
APM vol. 2, appendix C), with RIP at the instruction. `arm` makes the guest one of SVM's;
nothing else changes for it. QEMU asks for CPL 0, and for CR4.TSD, before it leaves, so only
CPL 0 gets here with a privileged instruction; RDPMC alone comes from any CPL, and is #GP(0).

MSRs, in this order: those that the CPU itself has (`unicorn_trap_msrs`), those of `Platform`, and a few
that Linux reads without being ready for #GP (`_CONSTANT`). Any other is #GP(0).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from unicorn import x86_const

from ..cpu.prefixes import LEGACY_PREFIXES
from ..errors import NotSupported
from .unicorn_trap_cpu import TR
from .unicorn_trap_msrs import Msrs, Platform

if TYPE_CHECKING:
    from .unicorn_traps import TrapUnit

__all__ = ["ALL", "ARMING", "CPUID", "CR0_WRITE", "CR4_WRITE", "CR8_READ", "CR8_WRITE", "DR7_WRITE", "HALTED"]
__all__ += [
    "HLT",
    "MSR",
    "RDPMC",
    "RDTSC",
    "RDTSCP",
    "SHUTDOWN",
    "VMCB",
    "VMCB_SIZE",
    "Intercepts",
    "vmcb_bytes",
]

# SVM exit codes.
CR8_READ, CR0_WRITE, CR4_WRITE, CR8_WRITE, DR7_WRITE = 0x08, 0x10, 0x14, 0x18, 0x37
RDTSC, RDPMC, CPUID, HLT, MSR, SHUTDOWN, RDTSCP = 0x6E, 0x6F, 0x72, 0x78, 0x7C, 0x7F, 0x87
#: What `arm` takes unless told otherwise.
ALL = frozenset({CR8_READ, CR0_WRITE, CR4_WRITE, CR8_WRITE, RDTSC, RDPMC, CPUID, HLT, MSR, SHUTDOWN, RDTSCP})
#: What `Intercepts.handle` answers for HLT: RIP is behind it, and the rest is the caller's.
HALTED = "halted"
#: What it answers for a write to DR7 that arms breakpoints, or where some are armed: nothing is done,
#: since only QEMU itself can do it.
ARMING = "arming"

#: Where the control block of SVM lies, beyond the 2**48 of guest memory, with a bitmap behind it
#: that intercepts every MSR. QEMU reads it and nothing else.
VMCB = 0xF000000000000
VMCB_SIZE = 0x4000
_MSRPM_BASE = 0x48

_LENGTHS = {RDTSC: 2, RDPMC: 2, CPUID: 2, HLT: 1, MSR: 2, RDTSCP: 3}
_GP, _DB = 13, 1
_TF, _RF = 1 << 8, 1 << 16
_DR6_BS = 1 << 14
#: Of DR7: the bit that is always 1; the type of a breakpoint of I/O, which QEMU looks for at each IN and OUT.
_DR7_FIXED, _DR7_IO = 1 << 10, 2
_GUEST, _INHIBIT, _CODE64, _LMA = 1 << 21, 1 << 3, 1 << 15, 1 << 14
_LOW = 0xFFFFFFFF

_PE, _TS, _ET, _NW, _CD, _PG = 1, 1 << 3, 1 << 4, 1 << 29, 1 << 30, 1 << 31
_CR0_DEFINED = 0xE005003F
_PAE, _LA57, _PCIDE = 1 << 5, 1 << 12, 1 << 17
#: VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT: these need no leaf of CPUID.
_CR4_BASE = 0x7FF
_LME, _NXE = 1 << 8, 1 << 11
#: (bit of CR4, leaf, register EAX EBX ECX EDX, bit) of the features that it belongs to.
_CR4_FEATURES = (
    (11, 7, 2, 2), (12, 7, 2, 16), (16, 7, 1, 0), (17, 1, 2, 17),
    (18, 1, 2, 26), (20, 7, 1, 7), (21, 7, 1, 20), (22, 7, 2, 3),
)  # fmt: skip

#: Platform id, microcode revision, and DEBUGCTL: all 0, and 0 can be written.
_CONSTANT = {0x17: 0, 0x8B: 0, 0x1D9: 0}


def vmcb_bytes() -> bytes:
    """What must be in physical memory at VMCB, VMCB_SIZE bytes, before intercepts are armed."""
    block = bytearray(0x1000)
    block[_MSRPM_BASE : _MSRPM_BASE + 8] = (VMCB + 0x1000).to_bytes(8, "little")
    return bytes(block) + b"\xff" * 0x3000


class Intercepts:
    """Arms intercepts in the words of a `TrapUnit`, and emulates what they stop at."""

    def __init__(self, unit: TrapUnit, platform: Platform) -> None:
        self._unit = unit
        self.platform = platform
        cpu = self._cpu = unit.cpu
        layout = cpu.codec.layout
        #: Where the words of SVM begin.
        self.svm = cpu.debug + 13  # vm_vmcb, tsc_offset, intercept, then CR and DR by 16 bits each
        self.msrs = Msrs(unit, platform)
        self._tpr = layout.tpr
        self.armed: frozenset[int] = frozenset()
        #: The CR0 intercept is off for one instruction, which is a single step of ours unless the
        #: guest itself steps. DR6 as it was then.
        self.let_through = self._stepping = False
        self._dr6 = 0

    # -- arming

    def arm(self, codes: Iterable[int]) -> None:
        """Intercept exactly `codes` from now on, none to let the guest be as it was. Writing a
        state by `ContextCodec` leaves that alone."""
        self.armed = frozenset(codes)
        self._cpu.save()
        self.apply(self._cpu.words)
        self._cpu.restore()

    def apply(self, words: memoryview) -> None:
        """Put what is armed into the CPU structure of a context, as 64-bit words: where a context
        is restored that was saved before."""
        general = control = 0
        for code in self.armed:
            if code < 0x40:  # reads and writes of CR0 to CR15, then of DR0 to DR15
                control |= 1 << code
            else:
                general |= 1 << code - 0x60
        at, hidden = self.svm, self._cpu.hidden
        words[at], words[at + 1], words[at + 2] = VMCB, 0, general
        words[at + 3] = control
        words[hidden] = words[hidden] & ~_GUEST | (_GUEST if self.armed else 0)
        self.let_through = False

    def rearm(self, number: int | None) -> bool:
        """After `let_through`, at the event that follows: intercept again. `number` is that of the
        INTR hook. True when the event was only the single step that was asked for."""
        cpu, words = self._cpu, self._cpu.words
        self.let_through = False
        words[self.svm + 3] |= 1 << 16
        if not self._stepping:
            return False
        words[cpu.flags] &= ~_TF
        if number != _DB:
            return False
        words[cpu.debug + 6] = self._dr6
        cpu.restore()
        return True

    # -- the exits

    def handle(self, code: int) -> str | None:
        """Emulate the instruction at RIP, on words just saved. `HALTED` for HLT, a text for
        people at a shutdown, else None."""
        if code == CPUID:
            return self._cpuid()
        if code in (RDTSC, RDTSCP):
            return self._rdtsc()
        if code == MSR:
            return self._wrmsr() if self._cpu.words[self._cpu.error] & _LOW else self._rdmsr()
        if code == HLT:
            stepped = self._cpu.words[self._cpu.flags] & _TF
            return self._retire(self._length(HLT)) or (None if stepped else HALTED)
        if code in (CR8_READ, CR8_WRITE):
            return self._cr8(code == CR8_WRITE)
        if code == CR0_WRITE:
            return self._cr0()
        if code == CR4_WRITE:
            return self._cr4()
        if code == DR7_WRITE:
            return self._dr7()
        if code == SHUTDOWN:
            return "a fault while #DF was delivered"
        return self._fault()  # RDPMC of a counter that is not there, and what nobody armed

    def _fault(self) -> str | None:
        return self._unit.deliver_saved(_GP, 0, "fault")

    def _length(self, code: int) -> int:
        """The length of the instruction at RIP, with its prefixes."""
        start, _, data = self._opcode()
        if not data:  # not to be read: the tables have changed since it was fetched
            return _LENGTHS[code]
        return start + _length_of(data)

    def _opcode(self) -> tuple[int, int, bytes]:
        """The length of the prefixes, REX (0 for none), and the bytes behind them."""
        code = self._unit.code()
        at = rex = 0
        while at < len(code) and code[at] in LEGACY_PREFIXES:
            at += 1
        if self._cpu.words[self._cpu.hidden] & _CODE64 and at < len(code) and code[at] & 0xF0 == 0x40:
            rex = code[at]
            at += 1
        return at, rex, code[at:]

    def _retire(self, length: int) -> str | None:
        """The instruction is done: to the next, behind any interrupt shadow, and #DB where TF asks."""
        cpu, words = self._cpu, self._cpu.words
        rip = words[cpu.rip] + length
        hidden = words[cpu.hidden]
        if hidden & _CODE64:
            rip &= (1 << 64) - 1
        else:
            rip &= _LOW if hidden & 1 << 4 else 0xFFFF
        words[cpu.rip] = rip
        words[cpu.hidden] = hidden & ~_INHIBIT
        flags = words[cpu.flags] = words[cpu.flags] & ~_RF
        if flags & _TF:
            words[cpu.debug + 6] |= _DR6_BS
            return self._unit.deliver_saved(_DB, None, "trap")
        cpu.restore()
        return None

    def _cpuid(self) -> str | None:
        words, at = self._cpu.words, self._cpu.registers
        answer = self.platform.cpuid(words[at] & _LOW, words[at + 1] & _LOW)
        words[at], words[at + 3], words[at + 1], words[at + 2] = answer
        return self._retire(self._length(CPUID))

    def _rdtsc(self) -> str | None:
        words, at = self._cpu.words, self._cpu.registers
        start, _, data = self._opcode()
        length = start + _length_of(data)
        if length - start == 3:  # RDTSCP comes by the intercept of RDTSC
            words[at + 1] = words[self.msrs.tsc_aux] & _LOW
        tsc = self.platform.tsc()
        words[at], words[at + 2] = tsc & _LOW, tsc >> 32 & _LOW
        return self._retire(length)

    # -- MSRs

    def _rdmsr(self) -> str | None:
        words, at = self._cpu.words, self._cpu.registers
        index = words[at + 1] & _LOW
        value = self.msrs.read(index)
        if value is None:
            value = self.platform.read_msr(index)
        if value is None:
            value = _CONSTANT.get(index)
        if value is None:
            return self._fault()
        words[at], words[at + 2] = value & _LOW, value >> 32 & _LOW
        return self._retire(self._length(MSR))

    def _wrmsr(self) -> str | None:
        words, at = self._cpu.words, self._cpu.registers
        index, value = words[at + 1] & _LOW, words[at + 2] << 32 & _LOW << 32 | words[at] & _LOW
        efer = words[self._cpu.efer]
        done = self.msrs.write(index, value)
        if done is None:
            done = self.platform.write_msr(index, value) or _CONSTANT.get(index) == value
        if not done:
            return self._fault()
        result = self._retire(self._length(MSR))
        if (efer ^ words[self._cpu.efer]) & _NXE:
            self._cpu.codec.flush_tlb()
        return result

    # -- control registers

    def _operand(self) -> tuple[int, int]:
        """Of a MOV to or from a control register: the number of the general register, and the
        instruction's length. The `mod` field is not looked at, as on the CPU."""
        start, rex, data = self._opcode()
        if len(data) < 3:
            raise NotSupported(
                "the bytes of a MOV to or from a control register cannot be read",
                hint="the guest unmapped the page of the instruction and did not flush its TLB",
            )
        return data[2] & 7 | (rex & 1) << 3, start + 3

    def _cr8(self, write: bool) -> str | None:
        words, cpu, platform = self._cpu.words, self._cpu, self.platform
        number, length = self._operand()
        if write:
            value = words[cpu.registers + number]
            if value > 15:
                return self._fault()
            cpu.data[self._tpr] = value
            if platform.set_cr8 is not None:
                platform.set_cr8(value)
        else:
            words[cpu.registers + number] = cpu.data[self._tpr] if platform.cr8 is None else platform.cr8()
        return self._retire(length)

    def _cr0(self) -> str | None:
        words, cpu = self._cpu.words, self._cpu
        old = words[cpu.cr]
        start, _, data = self._opcode()
        if data[:2] == b"\x0f\x06":  # CLTS
            return self._set_control(x86_const.UC_X86_REG_CR0, old & ~_TS, start + 2)
        if data[:2] == b"\x0f\x01":  # LMSW, which can do nothing that is forbidden
            modrm = data[2]
            if modrm < 0xC0:
                words[self.svm + 3] &= ~(1 << 16)
                self.let_through = True
                self._stepping = not words[cpu.flags] & _TF
                self._dr6 = words[cpu.debug + 6]
                words[cpu.flags] |= _TF
                cpu.restore()
                return None
            _, rex, _ = self._opcode()
            source = words[cpu.registers + (modrm & 7 | (rex & 1) << 3)]
            value = old & ~0xE | source & 0xE | source & _PE
            return self._set_control(x86_const.UC_X86_REG_CR0, value, start + 3)
        number, length = self._operand()
        value = words[cpu.registers + number]
        if words[cpu.hidden] & _CODE64 and value >> 32:
            return self._fault()
        value = value & _CR0_DEFINED | _ET
        if not self._cr0_allowed(old, value):
            return self._fault()
        return self._set_control(x86_const.UC_X86_REG_CR0, value, length)

    def _cr0_allowed(self, old: int, value: int) -> bool:
        """SDM vol. 2, MOV to control registers: #GP(0)."""
        words, cpu = self._cpu.words, self._cpu
        cr4, code64 = words[cpu.cr + 4], words[cpu.hidden] & _CODE64
        if value & (_PG | _PE) == _PG or value & (_NW | _CD) == _NW:
            return False
        if not (old ^ value) & _PG:
            return True
        if old & _PG:
            return not code64 and not cr4 & _PCIDE
        if words[cpu.efer] & _LME:
            wide_tss = cpu.segment(TR)[3] >> 11 & 1
            cs_long = words[cpu.segments + 3 + 2] >> 53 & 1
            return bool(cr4 & _PAE and not cs_long and wide_tss)
        return not cr4 & _PAE or self._pdptes_valid()

    def _cr4(self) -> str | None:
        words, cpu = self._cpu.words, self._cpu
        number, length = self._operand()
        value, old = words[cpu.registers + number], words[cpu.cr + 4]
        if not words[cpu.hidden] & _CODE64:
            value &= _LOW
        if value & ~self._cr4_defined():
            return self._fault()
        long = words[cpu.hidden] & _LMA
        changed = old ^ value
        wrong = (long and (not value & _PAE or changed & _LA57)) or (
            changed & value & _PCIDE and (not long or words[cpu.cr + 3] & 0xFFF)
        )
        entering_pae = words[cpu.cr] & _PG and not long and value & _PAE and changed & (_PAE | 0x90)
        if wrong or (entering_pae and not self._pdptes_valid()):
            return self._fault()
        return self._set_control(x86_const.UC_X86_REG_CR4, value, length)

    def _dr7(self) -> str | None:
        words, cpu = self._cpu.words, self._cpu
        number, length = self._operand()
        value = words[cpu.registers + number] & _LOW | _DR7_FIXED
        armed = any(words[cpu.debug + 8 + n] for n in range(4))
        arming = any(value >> 2 * n & 3 and value >> 16 + 4 * n & 3 != _DR7_IO for n in range(4))
        if armed or arming:
            return ARMING
        words[cpu.debug + 7] = value
        return self._retire(length)

    def _cr4_defined(self) -> int:
        mask = _CR4_BASE
        highest = self.platform.cpuid(0, 0)[0]
        for bit, leaf, register, feature in _CR4_FEATURES:
            if leaf <= highest and self.platform.cpuid(leaf, 0)[register] >> feature & 1:
                mask |= 1 << bit
        return mask

    def _pdptes_valid(self) -> bool:
        """PAE's four top entries are loaded here, and a reserved bit in one is #GP(0)."""
        words, cpu = self._cpu.words, self._cpu
        try:
            data = self._unit.memory.ram.read(words[cpu.cr + 3] & 0xFFFFFFE0, 32)
        except LookupError:
            return True
        entries = (int.from_bytes(data[at : at + 8], "little") for at in range(0, 32, 8))
        return not any(entry & 1 and entry & (0x1E6 | 0xFFF << 52) for entry in entries)

    def _set_control(self, register: int, value: int, length: int) -> str | None:
        """By the engine's own function for it, which also sees to mode, TLB and hidden flags."""
        cpu, words = self._cpu, self._cpu.words
        stepped = words[cpu.flags] & _TF
        words[cpu.flags] &= ~_TF
        self._retire(length)
        cpu.codec.write(register, value)
        if not stepped:
            return None
        cpu.save()
        words[cpu.flags] |= _TF
        words[cpu.debug + 6] |= _DR6_BS
        return self._unit.deliver_saved(_DB, None, "trap")


def _length_of(data: bytes) -> int:
    """Of an instruction without prefixes: HLT, 0F 01 and its third byte, or 0F and another."""
    if data[:1] == b"\xf4":
        return 1
    return 3 if data[1:2] == b"\x01" else 2
