"""The host bridge of Intel's 82441FX (440FX): PCI configuration space, and the PAM registers.

Sources: Intel 440FX PCIset, 82441FX data sheet (order number 290549), sections 3.1 (CONFADD,
CONFDATA) and 3.2 (registers, with their addresses in PCI configuration space); PCI Local
Bus Specification 2.1, 3.2.2.3.2 (configuration mechanism #1) and 6.1. Subsystem IDs
1AF4h:1100h are QEMU's (docs/specs/pci-ids.rst): by them firmware knows that it may ask
`vmmsim.devices.fw_cfg`.

What is here is what firmware needs to find: bus 0 with one device, this bridge, whose PAM
registers keep what is written. The bytes from C0000h to FFFFFh are RAM in any case, so
PAM opens and closes nothing: firmware that copies itself into its shadow finds RAM there.
DRAM rows, SMRAM, the aperture and error registers are read-only here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import msgspec

from ..bus import Device
from ..errors import UsageError

__all__ = ["I440fx", "I440fxState"]

CONFADD, CONFDATA = 0, 4
#: Where port CF9h lies in the range.
RESET_CONTROL = 1
#: CONFADD: enable, bus, device and function, register; bits 30-24 and 1-0 are reserved.
ADDRESS_MASK = 0x80FFFFFC
ENABLE = 0x80000000

PAM, PAMS = 0x59, 7
#: Each nibble has a read and a write enable; the lower one of PAM0 is reserved.
PAM_MASK = bytes((0x30, *[0x33] * (PAMS - 1)))

#: Vendor and device, command (memory and bus master, fixed) and status (DEVSEL# medium, fast
#: back-to-back), revision 2, class 06h/00h: a host bridge. Then the subsystem, SMRAM at 72h.
_SPACE = bytearray(256)
_SPACE[0x00:0x0C] = bytes.fromhex("8680 3712 0600 8002 02 00 00 06")
_SPACE[0x2C:0x30] = bytes.fromhex("f41a 0011")
_SPACE[0x72] = 0x02


class I440fxState(msgspec.Struct, frozen=True):
    """`address` is CONFADD, `pam` the registers PAM0 to PAM6."""

    address: int = 0
    pam: bytes = bytes(PAMS)


class I440fx:
    """Ports CF8h to CFFh: CONFADD, 4 bytes wide only, and CONFDATA, 1, 2 or 4 wide.

    Narrower accesses to CONFADD's ports are none of the bridge's ("pass through"): a byte at
    CF9h goes to what `reset_control` returns (None: nobody), the rest reads all ones. So do
    the configuration spaces of all devices but 00:00.0.
    """

    widths: frozenset[int] = frozenset({1, 2, 4})
    #: Ports that the device takes.
    length: ClassVar[int] = 8

    def __init__(
        self, reset_control: Callable[[], Device | None] = lambda: None, *, state: I440fxState | None = None
    ) -> None:
        """Raises UsageError for a `state` with bits that the registers do not have."""
        state = state or I440fxState()
        if state.address & ~ADDRESS_MASK:
            raise UsageError(
                f"i440fx: CONFADD {state.address:#x} in the state",
                hint=f"only the bits {ADDRESS_MASK:#x} exist",
            )
        if len(state.pam) != PAMS or any(
            value & ~mask for value, mask in zip(state.pam, PAM_MASK, strict=True)
        ):
            raise UsageError(
                f"i440fx: PAM {state.pam.hex()} in the state", hint=f"7 bytes, of {PAM_MASK.hex()} only"
            )
        self._reset_control = reset_control
        self._address = state.address
        self._space = bytearray(_SPACE)
        self._space[PAM : PAM + PAMS] = state.pam

    @classmethod
    def from_state(
        cls, state: I440fxState, *, reset_control: Callable[[], Device | None] = lambda: None
    ) -> I440fx:
        """Raises UsageError for a state that the chip cannot be in."""
        return cls(reset_control, state=state)

    def state(self) -> I440fxState:
        return I440fxState(self._address, bytes(self._space[PAM : PAM + PAMS]))

    def read(self, offset: int, size: int, /) -> int:
        ones = (1 << 8 * size) - 1
        if offset == CONFADD and size == 4:
            return self._address
        if CONFDATA <= offset < self.length:
            at = self._register(offset)
            return ones if at is None else int.from_bytes(self._space[at : at + size], "little")
        device = self._reset_control() if (offset, size) == (RESET_CONTROL, 1) else None
        return ones if device is None else device.read(0, 1)

    def write(self, offset: int, size: int, value: int, /) -> None:
        if offset == CONFADD and size == 4:
            self._address = value & ADDRESS_MASK
        elif CONFDATA <= offset < self.length:
            at = self._register(offset)
            if at is None:
                return
            for number in range(size):
                pam = at + number - PAM
                if 0 <= pam < PAMS:
                    self._space[PAM + pam] = value >> 8 * number & PAM_MASK[pam]
        elif (offset, size) == (RESET_CONTROL, 1):
            device = self._reset_control()
            if device is not None:
                device.write(0, 1, value)

    def _register(self, offset: int) -> int | None:
        """The byte of this bridge's configuration space behind a port of CONFDATA, or None."""
        if self._address & 0xFFFFFF00 != ENABLE:
            return None
        return (self._address & 0xFC) + offset - CONFDATA
