"""The machine code of the native engine is what its assembly says, and finds its offsets."""

from __future__ import annotations

import pytest

pytest.importorskip("unicorn")

from vmmsim.backends.unicorn_native import thunks


@pytest.mark.parametrize("name", sorted(thunks.SOURCES))
def test_the_bytes_are_the_assembly(name: str) -> None:
    keystone = pytest.importorskip("keystone", reason="keystone-engine has no wheel for this platform")
    assembler = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64)

    encoding, _ = assembler.asm(thunks.SOURCES[name])

    assert bytes(encoding) == thunks.CODE[name]


def test_every_source_has_its_bytes() -> None:
    assert set(thunks.SOURCES) == set(thunks.CODE)
