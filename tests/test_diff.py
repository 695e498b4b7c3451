"""`vmmsim.diff.session.diff`: divergences that were put in are found, at the right exit and instruction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diff_seeds as seeds
import pytest
from cli_tools import no_kvm
from hypothesis import given
from hypothesis import strategies as st

from vmmsim import Machine, MachineConfig, UsageError, guests
from vmmsim.backends import REGISTRY
from vmmsim.cpu.state import CpuState
from vmmsim.diff.explain import Scene, explain
from vmmsim.diff.html import html
from vmmsim.diff.lockstep import WINDOW, TraceComparer
from vmmsim.diff.report import Report
from vmmsim.diff.session import diff
from vmmsim.diff.sides import Side, Workload, configured, usable
from vmmsim.errors import BackendUnavailable
from vmmsim.loaders import load_flat
from vmmsim.streams import BytesSource
from vmmsim.testing.same import workload

PAIRS = [
    pytest.param("kvm", "unicorn", marks=[pytest.mark.kvm, pytest.mark.unicorn], id="kvm-unicorn"),
    pytest.param("unicorn", "unicorn-portable", marks=[pytest.mark.unicorn], id="unicorn-portable"),
]
#: mov cx, 2000; again: in al, 0x10; dec cx; jnz again; hlt
READS = bytes.fromhex("b9d007 e410 49 75fb f4")
#: mov al, 1; mov bl, 2; nop; add al, bl; adc cl, 0; mov al, cl; out 0x10, al; hlt
CARRY = bytes.fromhex("b001 b302 90 00d8 80d100 88c8 e610 f4")
ADD_AT = 0x7C05


def code(data: bytes, **fields: object) -> Workload:
    return Workload(
        name="code", config=MachineConfig(**{"memory": 1 << 20, **fields}), image=load_flat(data, name="code")
    )


def with_device(cls: type, backend: str = "unicorn") -> Side:
    return Side(backend=backend, prepare=lambda machine: machine.attach_port(0x10, 1, cls(), "steady"))


def uart(cls: object) -> Side:
    return Side(backend="unicorn", devices={"serial": cls})  # type: ignore[dict-item]


@pytest.fixture
def flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "flipped", "diff_seeds:FlippedBackend")


@pytest.mark.parametrize("name", ["guess", "serial-echo", "timer-user", "hello64"])
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_guests_are_the_same(a: str, b: str, name: str) -> None:
    report = diff(workload(name), Side(backend=a), Side(backend=b))
    assert report.same, report.text()
    assert report.exits > 20
    # Where the native engine cannot be, "unicorn" is the portable one.
    assert report.a.provenance != report.b.provenance or report.a.provenance.endswith("/portable")


@pytest.mark.unicorn
def test_the_hash_of_a_trace_does_not_depend_on_who_makes_it_or_on_chunks() -> None:
    first = diff(workload("guess"), Side(), Side(backend="unicorn-portable"))
    again = diff(workload("guess"), Side(), Side())
    assert first.trace_hash == again.trace_hash


@pytest.mark.parametrize(("a", "b"), PAIRS)
@pytest.mark.parametrize("number", [1, 2, 256, 257, 1000])
def test_a_device_that_differs_at_one_access_is_found_there(number: int, a: str, b: str) -> None:
    report = diff(code(READS), with_device(seeds.Steady, a), with_device(seeds.wrong_at(number), b))
    assert (report.verdict, report.exit, report.exits) == ("diverged", number, number - 1)
    value = number & 0x7F
    assert report.a.event == f"port_read 0x10 size 1 = {value:#04x}"
    assert report.b.event == f"port_read 0x10 size 1 = {value | 0x80:#04x}"
    assert len(report.before) == min(number - 1, WINDOW)
    assert report.registers == ()
    assert [line.text for line in report.a.code if line.here] == ["in al, 0x10"]
    assert report.a.accesses[-1].endswith("steady")


@pytest.mark.unicorn
def test_a_uart_that_drops_a_bit_of_what_it_sends_differs_in_what_was_printed() -> None:
    report = diff(workload("serial-echo"), Side(), uart(seeds.DropsBit), step=True)
    assert (report.verdict, report.what, report.exit) == ("diverged", "output", None)
    # The exits are the same, so the first place where anything else differs is looked for.
    assert report.step is not None
    assert (report.step.exit, report.step.number) == (13, 1)
    assert report.step.a.endswith("out dx, al")
    assert report.output is not None
    assert report.output.at == 1  # the first letter is a capital already
    assert report.output.a.startswith("ello")
    assert report.output.b.startswith("ELLO")


@pytest.mark.unicorn
def test_a_uart_that_reads_otherwise_is_found_at_its_first_read_and_instruction() -> None:
    report = diff(workload("serial-echo"), Side(), uart(seeds.BusyUart), step=True)
    assert report.exit == 9
    assert report.b.event == "port_read 0x3fd size 1 = 0x21"
    assert report.step is not None
    assert report.step.a.endswith("in al, dx")
    assert [pair.name for pair in report.step.registers] == ["rax"]


@pytest.mark.unicorn
def test_a_device_that_raises_or_answers_too_much_is_that_sides_end() -> None:
    report = diff(workload("serial-echo"), Side(), uart(seeds.Raises))
    assert report.exit == 6
    assert "device 'uart' raised RuntimeError" in report.b.event
    report = diff(workload("serial-echo"), Side(), uart(seeds.TooWide))
    assert report.exit == 9
    assert "0x1ff does not answer a 1-byte read" in report.b.event
    assert report.b.end == report.b.event


@pytest.mark.unicorn
def test_a_machine_with_another_configuration_is_found_where_it_matters() -> None:
    report = diff(workload("guess"), Side(), Side(settings={"seed": "2"}))
    assert report.exit == 1
    assert "mmio_read 0x1010" in report.a.event
    # mov al, 3; out 0xf4, al: code 3, or 7 with QEMU's rule.
    report = diff(code(bytes.fromhex("b003e6f4")), Side(), Side(settings={"isa_debug_exit": "true"}))
    assert (report.what, report.exit, report.exits) == ("end", 2, 1)
    assert (report.a.event, report.b.event) == ("the guest ended with code 3", "the guest ended with code 7")


@pytest.mark.parametrize(
    "other", [pytest.param("kvm", marks=pytest.mark.kvm), pytest.param("unicorn", marks=pytest.mark.unicorn)]
)
@pytest.mark.usefixtures("flipped")
def test_a_cpu_whose_flag_differs_is_found_at_its_instruction(other: str) -> None:
    report = diff(code(CARRY), Side(backend=other), Side(backend="flipped"), step=True)
    assert report.exit == 1
    assert (report.a.event[-4:], report.b.event[-4:]) == ("0x00", "0x01")
    step = report.step
    assert step is not None
    assert (step.number, step.address) == (4, ADD_AT)
    assert step.a == step.b == "0x7c05  00 d8  add al, bl"
    assert [(p.name, p.a ^ p.b) for p in step.registers] == [("rflags", 1)]
    assert "0x7c05" in report.text()


@pytest.mark.unicorn
@pytest.mark.usefixtures("flipped")
@pytest.mark.parametrize("spins", [3_000, 100])
def test_a_long_way_is_halved_and_a_short_one_too(spins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # mov cx, spins; loop $; mov al, 1; add al, 1; adc bl, 0; mov al, bl; out 0x10, al; hlt
    way = (
        bytes.fromhex("b9") + spins.to_bytes(2, "little") + bytes.fromhex("e2feb001 0401 80d300 88d8 e610 f4")
    )
    monkeypatch.setattr(seeds.FlippedBackend, "AT", 0x7C07)
    report = diff(code(way), Side(), Side(backend="flipped"), step=True)
    assert report.step is not None
    assert report.step.number == 1 + spins + 2
    assert report.step.a.endswith("add al, 1")
    assert "halved" in report.step.how[0]


@pytest.mark.kvm
@pytest.mark.unicorn
@pytest.mark.usefixtures("flipped")
def test_flags_that_are_undefined_for_a_while_are_no_divergence() -> None:
    # mov al, 3; and al, 1 (AF is undefined); nop; add al, bl ... as CARRY, with a flag that stays.
    way = bytes.fromhex("b0 03 24 01 90 00d8 80d100 88c8 e610 f4")
    report = diff(code(way), Side(backend="kvm"), Side(backend="flipped"), step=True)
    assert report.step is not None
    assert report.step.address == ADD_AT


@pytest.mark.kvm
@pytest.mark.unicorn
@pytest.mark.usefixtures("flipped")
@pytest.mark.parametrize(("model", "said"), [("pc", True), ("bare", False)])
def test_steps_that_take_no_interrupts_are_said(model: str, said: bool) -> None:
    load = code(CARRY, model=model)
    report = diff(load, Side(backend="kvm"), Side(backend="flipped"), step=True)
    assert report.step is not None
    assert report.step.address == ADD_AT
    assert ("take no interrupts" in report.text()) is said
    # Two that count instructions take them as they come.
    report = diff(load, Side(), Side(backend="flipped"), step=True)
    assert report.step is not None
    assert "take no interrupts" not in report.text()


@pytest.mark.kvm
@pytest.mark.unicorn
def test_user_code_that_kvm_cannot_step_is_trapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "flipped", "diff_seeds:FlippedBackend")
    # 64-bit, CPL 3: mov ecx, 20; loop: dec ecx; jnz; mov al, 1; add al, 1; adc bl, 0; mov al, bl; out; ...
    way = bytes.fromhex("b914000000 ffc9 75fc b001 0401 80d300 88d8 e610 e6f4")
    monkeypatch.setattr(seeds.FlippedBackend, "AT", 0x8000 + 11)
    load = Workload(
        name="user",
        config=MachineConfig(memory=1 << 20),
        image=load_flat(way, name="user", load_address=0x8000, mode="l64u"),
    )
    report = diff(load, Side(backend="kvm"), Side(backend="flipped"), step=True)
    assert report.exit == 1
    assert report.step is not None
    assert report.step.a.endswith("add al, 1"), report.text()
    if report.a.provenance == "kvm/pvm":
        assert "trapped" in report.step.how[0]


@pytest.mark.unicorn
def test_a_snapshot_is_compared_from_where_it_was_taken() -> None:
    from vmmsim.budget import exits

    guest = guests.load("serial-echo")
    with Machine.for_guest(
        "serial-echo", backend="unicorn", source=BytesSource(guest.input), seed=1
    ) as machine:
        machine.run(budget=exits(20))
        snapshot = machine.snapshot()
    load = Workload(name="snapshot", config=snapshot.config, snapshot=snapshot, input=guest.input)
    whole = diff(workload("serial-echo"), Side(), Side())
    report = diff(load, Side(), Side(backend="unicorn-portable"))
    assert report.same, report.text()
    assert report.exits == whole.exits - 20
    assert diff(load, Side(), uart(seeds.BusyUart)).verdict == "diverged"


@pytest.mark.unicorn
def test_memory_and_registers_are_compared_at_the_end() -> None:
    def poke(machine: Machine) -> None:
        machine.memory.write(0x5000, b"\1\2\3")
        machine.memory.write(0x9FFF, b"\4")

    report = diff(code(b"\xf4"), Side(), Side(prepare=poke))
    assert report.what == "memory"
    assert [(r.gpa, r.length, r.a, r.b) for r in report.memory] == [
        (0x5000, 3, "000000", "010203"),
        (0x9FFF, 1, "00", "04"),
    ]
    # mov al, [0x5000]; hlt
    report = diff(code(bytes.fromhex("a00050f4")), Side(), Side(prepare=poke))
    assert report.what == "registers"
    assert [(p.name, p.a, p.b) for p in report.registers] == [("rax", 0, 1)]


@pytest.mark.unicorn
@pytest.mark.usefixtures("flipped")
@pytest.mark.parametrize("other", [pytest.param("kvm", marks=pytest.mark.kvm), "unicorn"])
def test_what_differs_between_exits_that_are_the_same_is_found(
    other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # mov al, 1; six times out 0x10, al; add al, 1 (and CF is another); setc [0x6000]; out 0x10, al; hlt
    way = bytes.fromhex("b001" + "e610" * 6 + "0401 0f92060060 e610 f4")
    monkeypatch.setattr(seeds.FlippedBackend, "AT", 0x7C0E)
    report = diff(code(way), Side(backend=other), Side(backend="flipped"), step=True)
    assert (report.verdict, report.exit, report.exits) == ("diverged", None, 7)
    assert [(r.gpa, r.a, r.b) for r in report.memory] == [(0x6000, "00", "01")]
    assert report.step is not None
    assert (report.step.exit, report.step.number, report.step.address) == (6, 1, 0x7C0E)
    assert "differ at exit 7" in report.step.note


@pytest.mark.unicorn
def test_a_side_that_ends_before_the_other_differs_there() -> None:
    # test byte [0x5000], 1; jz over; hlt; over: out 0x10, al; hlt
    way = bytes.fromhex("f606005001 7401 f4 e610 f4")

    def poke(machine: Machine) -> None:
        machine.memory.write(0x5000, b"\1")

    report = diff(code(way), Side(prepare=poke, label="poked"), Side())
    assert report.exit == 1
    assert (report.a.event, report.b.event) == ("halt", "port_write 0x10 size 1 = 0x00")


@pytest.mark.unicorn
def test_a_limit_ends_the_comparison() -> None:
    report = diff(code(READS), with_device(seeds.Steady), with_device(seeds.wrong_at(1000)), limit=500)
    assert report.verdict == "same"
    assert report.exits == 500
    assert "limit of 500 exits" in report.notes[0]


@pytest.mark.unicorn
def test_a_guest_that_spins_ends_when_the_time_is_over() -> None:
    report = diff(code(bytes.fromhex("ebfe")), Side(), Side(), timeout=0.3)
    assert report.verdict == "stopped"
    assert "time" in report.notes[0]


# -- bad input


@pytest.mark.parametrize(
    ("side", "message", "hint"),
    [
        (Side(backend="unicron"), "there is no backend 'unicron'", "did you mean 'unicorn'?"),
        (uart("diff_seeds"), "does not name a class", "module:Class"),
        (uart("no_such_module:X"), "cannot be imported", "current directory"),
        (uart("diff_seeds:DropBit"), "has no 'DropBit'", "DropsBit"),
        (uart(seeds.Unmade), "its constructor raised ValueError: no chip", "the device's class"),
        (uart(seeds.Asks), "asks for 'voltage'", "clock"),
        (uart(seeds.NoDevice), "it has no widths", "docs/devices.md"),
        (Side(devices={"urat": seeds.DropsBit}), "there is no device 'urat'", "did you mean 'uart'?"),
        (Side(devices={"pit": seeds.DropsBit}), "no device 'pit' in this machine", "uart"),
        (Side(settings={"memry": "1M"}), "no field 'memry'", "did you mean 'memory'?"),
        (Side(settings={"cpus": "two"}), "cpus=two", "MachineConfig"),
    ],
)
def test_a_side_that_cannot_be_is_refused(side: Side, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        diff(workload("echo"), Side(), side)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.unicorn
def test_without_kvm_its_side_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMMSIM_KVM_DEVICE", "/no/such/kvm")
    sides = Side(backend="kvm"), Side()
    assert not usable("kvm")[0]
    with pytest.raises(BackendUnavailable):
        diff(workload("echo"), *sides)
    report = diff(workload("echo"), *sides, only_available=True)
    assert report.verdict == "stopped"
    assert no_kvm("/no/such/kvm") in report.a.missing
    assert (report.b.exits, report.b.end) == (26, "halt")
    assert "kvm is missing" in report.text()
    assert any("to have kvm" in note for note in report.notes)


def test_fields_of_the_configuration_are_read_as_their_types() -> None:
    text = {"memory": "2M", "without": "pit,port61", "isa_debug_exit": "true", "watchdog_seconds": "none"}
    config = configured(MachineConfig(), Side(settings={**text, "cpus": "1", "clock": "insns"}))
    assert config.memory == 2 << 20
    assert config.without == ("pit", "port61")
    assert config.isa_debug_exit
    assert config.watchdog_seconds is None
    assert config.clock == "insns"
    assert configured(MachineConfig(), Side()).clock == "exits"


# -- the parts


STEPS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 0xFFFF), st.sampled_from([1, 2, 4]), st.integers(0, 255))
)


@given(STEPS, STEPS, st.integers(1, 5))
def test_a_comparison_in_chunks_finds_what_a_comparison_of_the_whole_does(
    a: list, b: list, chunk: int
) -> None:
    comparer, left, right = TraceComparer(), [], []
    same = True
    for at in range(0, max(len(a), len(b)) + 1, chunk):
        left += a[at : at + chunk]
        right += b[at : at + chunk]
        same = comparer.feed(left, right)
        if not same:
            break
    both = min(len(a), len(b))
    first = next((n for n in range(both) if a[n] != b[n]), both)
    assert comparer.count == first
    assert same == (first == both)
    assert list(comparer.window) == a[max(0, first - WINDOW) : first]
    again = TraceComparer()
    again.feed(a[:first], list(a[:first]))
    assert again.digest() == comparer.digest()


def test_an_entry_explains_by_its_instruction_its_situation_or_its_mask() -> None:
    cpus = ("kvm/pvm", "unicorn-2.1.4/native")
    found = explain(Scene(provenances=cpus, insns=("cmpsb byte ptr [si], byte ptr es:[di]",), exact=True))
    assert [(e.id, e.why.startswith("the instruction is")) for e in found] == [("cmps-order", True)]
    assert [e.id for e in explain(Scene(provenances=cpus, insns=("rdtsc",)))] == ["rdtsc"]
    short = CpuState()
    short.idt = short.idt.__class__(0, 0x10)
    short.cr0 = 0
    found = explain(Scene(provenances=cpus, events=("triple fault", "halt"), states=(short, short)))
    assert [e.id for e in found] == ["real-mode-idt-limit"]
    assert explain(Scene(provenances=("kvm/pvm", "kvm/pvm"), insns=("rdtsc",))) == ()


@pytest.mark.kvm
@pytest.mark.unicorn
def test_a_known_divergence_is_named() -> None:
    # rdtsc; shr eax, 7; out 0x10, eax; hlt
    report = diff(code(bytes.fromhex("0f31 66c1e807 66e710 f4")), Side(backend="kvm"), Side())
    assert report.verdict == "diverged"
    assert "rdtsc" in [entry.id for entry in report.explanations]


@pytest.mark.unicorn
def test_a_report_is_text_json_and_a_page(tmp_path: Path) -> None:
    import msgspec

    report = diff(workload("serial-echo"), Side(label="<b>one</b>"), uart(seeds.BusyUart), command="do it")
    read = msgspec.json.decode(report.json())
    assert read["exit"] == 9
    assert read["a"]["registers"]["rip"] == report.a.rip
    page = html(report)
    assert "<script" not in page
    assert "&lt;b&gt;one&lt;/b&gt;" in page
    assert "<b>one" not in page
    assert "do it" in report.text()
    assert isinstance(report, Report)


@pytest.mark.unicorn
def test_both_sides_are_closed_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    original: Callable[[Machine], None] = Machine.close
    monkeypatch.setattr(Machine, "close", lambda self: (closed.append("x"), original(self))[1])

    def interrupt(exits: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diff(code(READS), with_device(seeds.Steady), with_device(seeds.Steady), progress=interrupt)
    assert len(closed) == 2
