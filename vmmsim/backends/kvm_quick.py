"""A short way in and out of a KVM vCPU, for thousands of small programs a second.

`KvmVcpu.set_state` and `state` make some fifteen ioctls, of 6 to 8 microseconds each. A program
that only changes general registers needs one of them in and one out: KVM_SET_REGS, and
KVM_GET_SREGS to see that nothing else has changed. The x87 and SSE state costs one more each way.
"""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING

from ..cpu.state import FpuState
from . import kvm_abi as abi
from . import kvm_state
from .kvm_fd import VcpuFd

if TYPE_CHECKING:
    from .kvm_vcpu import KvmVcpu

__all__ = ["KvmQuick"]

_REGS_AT = abi.Run.s.offset
_REGS_END = _REGS_AT + kvm_state.REGS.size
#: struct kvm_sregs without the interrupt bitmap at its end.
_SREGS = abi.Sregs.interrupt_bitmap.offset


class KvmQuick:
    """The `Quick` of `vcpu`, which is settled, and whose descriptor `cpu` is."""

    def __init__(self, vcpu: KvmVcpu, cpu: VcpuFd) -> None:
        self._vcpu = vcpu
        self._cpu = cpu
        self._sregs = bytes(cpu.sregs())
        self._now = bytearray(len(self._sregs))
        self._image = bytearray(kvm_state.XSAVE_SIZE)
        self._fpu = False
        self._changed = False
        self._base = vcpu.state()

    def put(self, registers: tuple[int, ...], fpu: FpuState | None) -> None:
        vcpu, cpu = self._vcpu, self._cpu
        if not vcpu.whole:
            vcpu.abandon()
        if self._changed:
            fcntl.ioctl(cpu.fd, abi.SET_SREGS, self._sregs)
            events = kvm_state.events_to(self._base.events)
            fcntl.ioctl(cpu.fd, abi.SET_VCPU_EVENTS, events)
            self._changed = False
        data = kvm_state.REGS.pack(*registers)
        fcntl.ioctl(cpu.fd, abi.SET_REGS, data)
        cpu.u8[_REGS_AT:_REGS_END] = data
        if fpu is not None or self._fpu:
            image = kvm_state.fpu_to(fpu or self._base.fpu, 0)
            fcntl.ioctl(cpu.fd, abi.SET_XSAVE, image)
        self._fpu = fpu is not None

    def get(self) -> tuple[tuple[int, ...], bool, FpuState | None]:
        cpu, now = self._cpu, self._now
        regs = kvm_state.REGS.unpack_from(cpu.u8, _REGS_AT)
        fcntl.ioctl(cpu.fd, abi.GET_SREGS, now)
        self._changed = now[:_SREGS] != self._sregs[:_SREGS]
        if not self._fpu:
            return regs, self._changed, None
        fcntl.ioctl(cpu.fd, abi.GET_XSAVE, self._image)
        return regs, self._changed, kvm_state.fpu_from(self._image, 0)
