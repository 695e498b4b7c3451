"""KvmVcpu.step_insns: one instruction at a time, where this KVM can make an exit behind each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vmmsim import Machine, NotSupported, insns
from vmmsim.exits import BudgetSpent, Halt, Refused
from vmmsim.loaders import load_flat

pytestmark = pytest.mark.kvm


class Answers41:
    widths = frozenset({1, 2, 4})

    def read(self, offset: int, size: int, /) -> int:
        return 0x41

    def write(self, offset: int, size: int, value: int, /) -> None: ...


def machine(code: str, mode: str = "real") -> Machine:
    made = Machine(backend="kvm", memory=1 << 20, clock="exits")
    made.attach_port(0x10, 4, Answers41(), "port")
    data = bytes.fromhex(code)
    made.load(load_flat(data, name="steps", load_address=0x8000, mode=mode))
    made.vcpu.step_insns(True)  # type: ignore[attr-defined]
    return made


@pytest.fixture
def stepped() -> Iterator[Machine]:
    # mov al, 1; in al, 0x10; out 0x10, al; mov al, [0x1800] (no memory); mov [0x1801], al; nop; hlt
    with machine("b001 e410 e610 a00018 a20118 90 f4") as made:
        yield made


def test_each_step_is_one_instruction_with_or_without_an_access(stepped: Machine) -> None:
    places = []
    while isinstance(stepped.run(budget=insns(1)), BudgetSpent):
        places.append(stepped.vcpu.registers().rip)
    assert places == [0x8002, 0x8004, 0x8006, 0x8009, 0x800C, 0x800D]
    assert isinstance(stepped.last_exit, Halt)
    assert stepped.vcpu.registers().rflags & 0x100 == 0  # TF is nobody's but the step's


def test_without_it_kvm_counts_no_instructions(stepped: Machine) -> None:
    stepped.vcpu.step_insns(False)  # type: ignore[attr-defined]
    assert stepped.vcpu.insns is None
    with pytest.raises(NotSupported):
        stepped.run(budget=insns(1))
    assert isinstance(stepped.run(), Halt)


def test_a_stop_of_a_device_wins_over_the_steps() -> None:
    with machine("b007 e6f4 f4") as made:  # mov al, 7; out 0xf4, al
        assert isinstance(made.run(budget=insns(1)), BudgetSpent)
        assert made.run(budget=insns(1)).describe() == "the guest ended with code 7"


def test_a_run_behind_a_step_is_whole_again(stepped: Machine) -> None:
    stepped.run(budget=insns(1))
    assert isinstance(stepped.run(), Halt)
    assert stepped.counts()["port_read"] == 1


def test_what_cannot_be_stepped_is_refused_and_has_not_run() -> None:
    with machine("b001 0401 e6f4", "l64u") as made:
        if made.backend.provenance != "kvm/pvm":
            pytest.skip("this KVM steps user code, too")
        end = made.run(budget=insns(1))
        assert isinstance(end, Refused)
        assert "does not single-step" in end.reason
        assert made.vcpu.registers().rip == 0x8000
        made.vcpu.step_insns(False)  # type: ignore[attr-defined]
        assert made.run().describe() == "the guest ended with code 2"
