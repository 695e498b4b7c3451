"""Every address, port and irq number of the machine models, in one place.

Addresses are guest-physical and in bytes. The PC's numbers are those of the IBM PC/AT
Technical Reference; the debug ports are QEMU's (docs/specs, isa-debug-exit) and Bochs'.
"""

from __future__ import annotations

__all__ = [
    "CHAR_IN",
    "CHAR_OUT",
    "COM1_IRQ",
    "COM1_PORT",
    "DEBUG_CONSOLE_PORT",
    "DEBUG_EXIT_PORT",
    "DEFAULT_MEMORY",
    "MAX_MEMORY",
    "RANDOM_LETTER",
    "SCRATCH",
    "SCRATCH_SIZE",
    "TALK_PAGE",
    "TALK_PAGE_SIZE",
]

DEFAULT_MEMORY = 64 << 20
#: `-m` beyond this is refused: a typing error more often than a wish.
MAX_MEMORY = 512 << 30

#: The talk's devices live in the page at 0x1000, which is a hole in the RAM.
TALK_PAGE = 0x1000
TALK_PAGE_SIZE = 0x1000
CHAR_IN = 0x1000
RANDOM_LETTER = 0x1010
CHAR_OUT = 0x1020

#: The scratch device of the `widths` guest and the conformance suite: two pages of
#: registers, so that an access can cross a page inside the device, in a hole below 1 MiB.
SCRATCH = 0xD0000
SCRATCH_SIZE = 0x2000

COM1_PORT = 0x3F8
COM1_IRQ = 4
#: A byte written here ends the machine; the value is the exit code.
DEBUG_EXIT_PORT = 0xF4
#: Bochs' and QEMU's debug console: a byte written is printed, a read answers 0xE9.
DEBUG_CONSOLE_PORT = 0xE9
