"""Every guest is the same on every CPU: exits, registers, memory.

A difference is a failure unless divergences.toml names it; what is left out of the
comparison of registers is the `ignore` of its entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import pytest

from vmmsim import Machine, guests
from vmmsim.budget import seconds
from vmmsim.diff import (
    TraceStep,
    compare_memory,
    compare_states,
    compare_traces,
    divergence,
    divergences,
    ignored_bits,
)
from vmmsim.diff.divergences import parse
from vmmsim.errors import UsageError
from vmmsim.exits import ACCESS_EXITS, Access
from vmmsim.memory import GuestMemory
from vmmsim.streams import BytesSource
from vmmsim.testing import CHECKS
from vmmsim.testing.slow import time_limit

PAIRS = [
    pytest.param("kvm", "unicorn", marks=[pytest.mark.kvm, pytest.mark.unicorn], id="kvm-unicorn"),
    pytest.param("unicorn", "unicorn-portable", marks=[pytest.mark.unicorn], id="unicorn-unicorn-portable"),
]
#: The random letters of `guess` come from here.
SEED = 7


def open_machine(name: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> Machine:
    backend, _, engine = variant.partition("-")
    with monkeypatch.context() as patch:
        if engine:
            patch.setenv("VMMSIM_UNICORN", engine)
        return Machine.for_guest(
            name, backend=backend, source=BytesSource(guests.load(name).input), seed=SEED, clock="exits"
        )


def run_inline(machine: Machine) -> list[TraceStep]:
    trace: list[TraceStep] = []
    forget = machine.observe(lambda *access: trace.append(TraceStep.of_access(*access)))
    end = machine.run(budget=seconds(time_limit(30)))
    forget()
    return [*trace, TraceStep.of(end, machine.cpu.rip)]


def run_one_at_a_time(machine: Machine) -> list[TraceStep]:
    trace: list[TraceStep] = []
    for exit in machine.exits():
        rip = machine.processors.items[machine.processors.current].vcpu.registers().rip
        if isinstance(exit, Access):
            machine.answer(exit)
        trace.append(TraceStep.of(exit, rip))
    return trace


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.mark.timeout(120)
@pytest.mark.parametrize("style", [run_inline, run_one_at_a_time], ids=["inline", "one-at-a-time"])
@pytest.mark.parametrize("name", guests.names())
@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_same(
    left: str, right: str, name: str, style: object, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (left, right)
    one, two = (stack.enter_context(open_machine(name, variant, monkeypatch)) for variant in names)
    refused = guests.load(name).manifest.refused
    if {one.backend.provenance, two.backend.provenance} & set(refused):
        pytest.skip(f"refused: {refused}; tests/test_guests_run.py checks that it is")
    traces = [style(machine) for machine in (one, two)]  # type: ignore[operator]
    found = compare_traces(*traces, names=names)
    assert found is None, str(found)
    found = compare_states(one.cpu.state(), two.cpu.state(), names=names)
    assert found is None, str(found)
    found = compare_memory(one.memory, two.memory, names=names)
    assert found is None, str(found)
    assert one.output.data == two.output.data


# -- the comparison finds what differs, and says where


def test_the_first_difference_of_two_traces_is_shown_with_what_led_to_it() -> None:
    left = [TraceStep("port_write", 0x3F8, 1, 65 + i, 0x100 + i) for i in range(8)]
    right = [*left[:6], TraceStep("port_write", 0x3F8, 1, 0, 0x106), left[7]]
    found = compare_traces(left, right, names=("kvm", "unicorn"))
    assert found is not None
    assert found.at == 6
    assert "kvm #6: port_write 0x3f8 size 1 = 0x47 (rip 0x106)" in found.text
    assert "unicorn #6: port_write 0x3f8 size 1 = 0x0 (rip 0x106)" in found.text
    assert "both #5:" in found.text
    assert "#0" not in found.text


def test_a_trace_that_ends_early_differs() -> None:
    steps = [TraceStep("halt", rip=1), TraceStep("halt", rip=2)]
    found = compare_traces(steps, steps[:1])
    assert found is not None
    assert found.at == 1
    assert "(the run has ended)" in found.text
    assert compare_traces(steps, list(steps)) is None


def test_rips_count_only_where_both_runs_looked() -> None:
    looked, inline = [TraceStep("halt", rip=1)], [TraceStep("halt")]
    assert compare_traces(looked, inline) is None
    assert compare_traces(looked, [TraceStep("halt", rip=2)]) is not None


def test_registers_that_differ_are_listed_and_masks_are_obeyed() -> None:
    from vmmsim.cpu.state import CpuState

    one, two = CpuState(rax=1, rflags=2), CpuState(rax=3, rflags=0x12)
    found = compare_states(one, two, ignore={})
    assert found is not None
    assert found.text.splitlines()[1].split() == ["rax:", "left", "0x1,", "right", "0x3"]
    assert "rflags" in found.text
    assert compare_states(one, two, ignore={"rax": -1, "rflags": 0x10}) is None
    assert compare_states(one, two, ignore={"rax": 2, "rflags": 0x10}) is None
    assert compare_states(one, two, ignore={"rax": 1, "rflags": 0x10}) is not None


def test_the_first_bytes_that_differ_are_shown() -> None:
    one, two = GuestMemory(), GuestMemory()
    for memory in (one, two):
        memory.add(0x10000, 0x4000)
    assert compare_memory(one, two) is None
    two.write(0x12345, b"\xaa\xbb")
    found = compare_memory(one, two, names=("kvm", "unicorn"))
    assert found is not None
    assert found.at == 0x12345
    assert "unicorn: aa bb 00" in found.text
    two.add(0x20000, 0x1000)
    found = compare_memory(one, two)
    assert found is not None
    assert "regions differ" in found.text
    for memory in (one, two):
        memory.close()


def test_a_step_of_an_access_is_the_same_by_both_ways() -> None:
    for cls in ACCESS_EXITS:
        exit: Access = cls(0x60, 1, 5) if cls.is_write else cls(0x60, 1)  # type: ignore[call-arg]
        exit.reply(*(() if cls.is_write else (5,)))  # type: ignore[attr-defined]
        assert TraceStep.of(exit) == TraceStep.of_access(cls, 0x60, 1, 5)


# -- the divergences


def test_every_divergence_is_held_to_account_by_a_test_that_exists() -> None:
    checks = {check.name for check in CHECKS}
    for entry in divergences().values():
        if entry.test.startswith("tests/"):
            path, _, function = entry.test.partition("::")
            with open(path, encoding="utf-8") as source:
                assert f"def {function}(" in source.read(), entry.id
        else:
            assert entry.test in checks, entry.id


def test_what_is_ignored_are_registers_that_exist() -> None:
    from vmmsim.cpu.state import CpuState

    names = {name for name, _ in CpuState().fields()}
    assert set(ignored_bits()) <= names


def test_a_divergence_says_what_each_provenance_does() -> None:
    entry = divergence("rep-ins-to-mmio")
    assert entry.on("kvm/pvm") == entry.kvm["any"]
    assert entry.on("unicorn-2.1.4/native") == entry.unicorn
    assert entry.applies_to("kvm/pvm", "pvm")
    assert not entry.applies_to("kvm/vmx", "pvm", "unicorn")
    assert entry.applies_to("unicorn-2.1.4/portable", "unicorn")
    with pytest.raises(UsageError, match="no divergence 'made-up'"):
        divergence("made-up")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t + t, "two entries 'rep-ins-to-mmio'"),
        (lambda t: t.replace("kvm.any", "kvm.qemu"), "provenances"),
        (lambda t: t.replace("title", "titel"), "not well-formed"),
        (lambda t: t.replace('"', "", 1), "not well-formed"),
    ],
)
def test_a_file_that_breaks_the_rules_is_refused(change: object, message: str) -> None:
    entry = msgspec.to_builtins(divergence("rep-ins-to-mmio"))
    lines = [f'{key} = "{value}"' for key, value in entry.items() if isinstance(value, str)]
    text = "\n".join(["[[divergence]]", *lines, 'kvm.any = "x"', ""])
    assert list(parse(text)) == ["rep-ins-to-mmio"]
    with pytest.raises(UsageError, match=message):
        parse(change(text))  # type: ignore[operator]
