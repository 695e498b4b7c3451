"""The machine code of the native engine is what its assembly says."""

from __future__ import annotations

import pytest

pytest.importorskip("unicorn")

from vmmsim.backends.unicorn_native.assembly import CODE, sources
from vmmsim.backends.unicorn_native.thunks import Shared

SOURCES = sources({name: value for name, value in vars(Shared).items() if name.isupper()})


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_the_bytes_are_the_assembly(name: str) -> None:
    keystone = pytest.importorskip("keystone", reason="keystone-engine has no wheel for this platform")
    assembler = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)

    encoding, _ = assembler.asm(SOURCES[name])

    assert bytes(encoding) == CODE[name]


def test_every_source_has_its_bytes() -> None:
    assert set(SOURCES) == set(CODE)
