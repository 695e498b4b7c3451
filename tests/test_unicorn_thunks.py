"""The machine code of the native engine is what its assembly says."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("unicorn")

from vmmsim.backends.unicorn_native.assembly import BLANKS, Assembly
from vmmsim.backends.unicorn_native.assembly_aarch64 import ASSEMBLY as AARCH64
from vmmsim.backends.unicorn_native.assembly_x86_64 import ASSEMBLY as X86_64
from vmmsim.backends.unicorn_native.thunks import Shared
from vmmsim.errors import NotSupported

SETS = {"x86_64": X86_64, "aarch64": AARCH64}
SHARED = {name: value for name, value in vars(Shared).items() if name.isupper()}
each_set = pytest.mark.parametrize("assembly", SETS.values(), ids=SETS)


@pytest.mark.parametrize("name", sorted(X86_64.sources))
@pytest.mark.parametrize("architecture", SETS)
def test_the_bytes_are_the_assembly(architecture: str, name: str) -> None:
    keystone = pytest.importorskip("keystone", reason="keystone-engine has no wheel for this platform")
    assembler = {
        "x86_64": lambda: keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64),
        "aarch64": lambda: keystone.Ks(keystone.KS_ARCH_ARM64, keystone.KS_MODE_LITTLE_ENDIAN),
    }[architecture]()

    encoding, _ = assembler.asm(SETS[architecture].numbered(SHARED)[name])

    assert bytes(encoding) == SETS[architecture].code[name]


@each_set
def test_every_source_has_its_bytes(assembly: Assembly) -> None:
    assert list(assembly.sources) == list(assembly.code) == list(X86_64.sources)


@each_set
def test_all_blanks_are_filled_and_nothing_else_changes(assembly: Assembly) -> None:
    assert assembly.blanks.keys() == BLANKS.keys()
    values = {word: 0x1000 + 8 * index for index, word in enumerate(BLANKS)}
    for name, code in assembly.code.items():
        words = re.findall(r"\b[A-Z][A-Z_0-9]+\b", assembly.sources[name])

        filled = assembly.filled(name, values)

        for word, blank in assembly.blanks.items():
            assert (blank in code) == (word in words), (name, word)
            code = code.replace(blank, values[word].to_bytes(len(blank), "little"))
        assert filled == code


def test_a_value_that_does_not_fit_is_named() -> None:
    values = dict.fromkeys(X86_64.blanks, 0) | {"RIP": 1 << 31}

    with pytest.raises(NotSupported, match="RIP is 0x80000000"):
        X86_64.filled("in", values)
