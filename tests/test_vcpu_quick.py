"""`Vcpu.quick`: what it puts and gets is what `set_state` and `state` would, on each backend."""

from __future__ import annotations

import pytest

from vmmsim.backends import open_backend
from vmmsim.cpu.state import Registers
from vmmsim.diff.case import MODE_NAMES, Case, base_state
from vmmsim.diff.encodings import unit_of
from vmmsim.diff.generate import generate
from vmmsim.diff.lanes import Lane, Outcome

SEEDS = range(7000, 7030)


def outcome(lane: Lane, case: Case) -> Outcome:
    lane.enter(case)
    found = lane.run(case)
    lane.leave(case)
    return found


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", MODE_NAMES)
def test_the_shortcut_gives_what_the_whole_state_gives(backend_name: str, mode: str) -> None:
    backend, _ = open_backend(backend_name)
    quick, whole = Lane(backend), Lane(backend)
    # The portable engine counts from then on, as it does with the shortcut: flags that an instruction leaves
    # undefined (BT's OF) come out otherwise where each instruction is counted.
    whole.vcpu.quick()
    whole.vcpu.quick = lambda: None  # type: ignore[method-assign]
    try:
        for seed in SEEDS:
            case = generate(mode, seed)
            a, b = outcome(quick, case), outcome(whole, case)
            assert (a.end, a.regs, a.fpu) == (b.end, b.regs, b.fpu), seed
            assert b.state is not None
            base = case.state()
            others = [name for name, _, _ in base.diff(b.state) if name[:2] in ("cs", "ss", "ds", "es", "cr")]
            assert not others or a.state is not None, (seed, others)
    finally:
        quick.close()
        whole.close()


def test_what_one_program_changed_is_put_back_for_the_next(backend_name: str) -> None:
    """MOV to DS, and an instruction of x87 in 64-bit user code: neither reaches the next program."""
    lane = Lane(open_backend(backend_name)[0])

    def case(mode: str, code: str, **regs: int) -> Case:
        unit = unit_of(bytes.fromhex(code), mode)
        assert unit is not None
        fpu = base_state("64u").fpu if mode == "64u" else None
        return Case(
            mode=mode, units=(unit,), regs=Registers(**{"rsp": 0x7000, "rflags": 2, **regs}), fpu=fpu, seed=0
        )

    try:
        changed = outcome(lane, case("16", "8ed8", rax=0x1234))  # mov ds, ax
        assert changed.state is not None
        assert changed.state.ds.base == 0x12340
        after = outcome(lane, case("16", "8cd9", rcx=7))  # mov cx, ds
        assert after.state is None
        assert after.regs[2] == 0
        for _ in range(2):
            loaded = outcome(lane, case("64u", "d9e8"))  # fld1
            assert loaded.fpu is not None
            assert loaded.fpu.ftw == 0x80
    finally:
        lane.close()
