"""Each entry of divergences.toml that has a program shows what it says, here and now."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vmmsim.backends import open_backend
from vmmsim.diff import divergences
from vmmsim.diff.case import disassemble
from vmmsim.diff.divergences import case_of
from vmmsim.diff.runner import Pair

WITH_PROGRAM = [entry.id for entry in divergences().values() if entry.program is not None]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair(open_backend("kvm")[0], open_backend("unicorn")[0]) as opened:
        yield opened


@pytest.mark.kvm
@pytest.mark.parametrize("id", WITH_PROGRAM)
def test_each_program_shows_its_divergence(pair: Pair, id: str) -> None:
    entry = divergences()[id]
    if not entry.between(pair.provenances):
        pytest.skip(f"it is not about {pair.provenances[0]}")
    case = case_of(entry)
    whole = pair.run(case, masked=False)
    assert whole.fields, f"the CPUs agree, or refuse it: '{id}' is no longer true: {whole.ends}"
    verdict = pair.run(case)
    if entry.masked or entry.ignore:
        assert not verdict.fields, "what is masked does not come up in a comparison"
        return
    insns = disassemble(case.mode, case.units)
    fields = [(field.name, field.bits) for field in verdict.fields or whole.fields]
    assert entry.explains(insns, case.mode, fields, verdict.ends, pair.provenances), (insns, verdict)
