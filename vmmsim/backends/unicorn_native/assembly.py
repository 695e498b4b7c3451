"""What the thunks' machine code is for each host architecture: assembly, its bytes, and blanks in them.

Each set (`assembly_x86_64`, `assembly_aarch64`) has the same thunks with the same contracts, which `thunks`
describes. Python has no assembler to rely on, so the bytes are kept beside their assembly, and a test
assembles it again. What is known only in a process stands in the bytes as a *blank*, a number that nothing
else in them is; in the assembly it is one of the words in capitals below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ...errors import NotSupported

__all__ = ["BLANKS", "Assembly"]

#: Each blank's word, and what takes its place: an address of 64 bits, or an offset.
BLANKS = {
    "UC_EMU_STOP": "the address of uc_emu_stop",
    "CHECK_EXIT": "helper_check_exit_request: leaves the engine if a stop was asked for",
    "DO_INTERRUPT": "x86_cpu_do_interrupt: delivers the exception of the CPU through the guest's tables",
    "CALLBACK": "the thunk's Python callback",
    "SHARED": "the words shared with Python, for thunks that are not told",
    # Offsets into QEMU's CPU structure.
    "RIP": "",
    "RDI": "",
    "ES_BASE": "",
    "CR0": "",
    "CR2": "",
    "EFLAGS": "",
    "CC_SOURCE": "of the lazy flags: the source operand",
    "CC_OP": "and the last operation, 4 bytes",
    "HFLAGS": "4 bytes",
    "CS_FLAGS": "4 bytes",
    "SS_FLAGS": "4 bytes",
    "EXCEPTION": "error_code, 4 bytes",
    "EXCEPTION_IS_INT": "4 bytes",
    # Into uc_struct.
    "RECURSION": "size_recur_mem, 4 bytes: not 0 inside an access that was cut into bytes",
}
_WORD = re.compile(r"\b[A-Z][A-Z_0-9]+\b")


class Assembly(NamedTuple):
    """The thunks of one architecture."""

    #: Name of the thunk -> assembly. Capitals that are no blank are offsets into the shared words.
    sources: Mapping[str, str]
    #: Name of the thunk -> what it assembles to. Position-independent, to be aligned to 16 bytes.
    code: Mapping[str, bytes]
    #: Word of a blank -> the bytes that stand for it, little-endian.
    blanks: Mapping[str, bytes]

    def numbered(self, shared: Mapping[str, int]) -> dict[str, str]:
        """What an assembler takes: name -> assembly with numbers for the capitals. `shared` has the
        indices of `thunks.Shared`."""
        numbers = {name: 8 * index for name, index in shared.items()}
        numbers |= {name: int.from_bytes(blank, "little") for name, blank in self.blanks.items()}
        return {
            name: _WORD.sub(lambda word: hex(numbers[word[0]]), source)
            for name, source in self.sources.items()
        }

    def filled(self, name: str, values: Mapping[str, int]) -> bytes:
        """The code of the thunk `name`, with `values` in its blanks. NotSupported where one does not fit."""
        words = {blank: word for word, blank in self.blanks.items()}

        def fill(blank: re.Match[bytes]) -> bytes:
            word, size = words[blank[0]], len(blank[0])
            if not 0 <= values[word] < 1 << 8 * size - 1:
                raise NotSupported(
                    f"{word} is {values[word]:#x}, too far for the thunks of this architecture"
                )
            return values[word].to_bytes(size, "little")

        return re.sub(b"|".join(map(re.escape, words)), fill, self.code[name])
