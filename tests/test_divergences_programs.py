"""Each entry of divergences.toml that has a program shows what it says, here and now.

Undefined flags and results are the chip's. An entry is held to what was seen on a vendor's family; on
another CPU its program may come out as on Unicorn, but no difference of it goes without its entry. No test
can have two chips: here they are stand-ins, on which every program agrees (two engines of Unicorn), or
differs where the entry says that a CPU may.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from vmmsim.backends import open_backend
from vmmsim.backends.host_cpu import chip, chip_of
from vmmsim.diff import divergences
from vmmsim.diff.case import Case, disassemble
from vmmsim.diff.divergences import Divergence, case_of
from vmmsim.diff.explain import Scene
from vmmsim.diff.explain import explain as explain_run
from vmmsim.diff.runner import Field, Pair, Verdict

WITH_PROGRAM = [entry.id for entry in divergences().values() if entry.program is not None]
#: What an Intel Xeon with kvm_pvm has as Unicorn has it, and AMD's family 19h has not.
OF_THE_CHIP = [
    "flags-of-shifts", "flags-of-double-shifts", "flags-of-rotates", "flags-of-multiply", "flags-of-divide",
    "double-shift-of-16-bits", "x87-pointers", "flags-of-zero-counts",
]  # fmt: skip
CPUS = ("kvm/pvm", "unicorn-2.1.4/native")


def check_program(pair: Pair, id: str, cpu: str) -> None:
    """The program of `id` on a host whose CPU is `cpu`: it must show the entry where that was seen."""
    entry = divergences()[id]
    kvm = pair.provenances[0]
    if not entry.between(pair.provenances):
        pytest.skip(f"it is not about {kvm}")
    case = case_of(entry)
    whole = pair.run(case, masked=False)
    if not whole.fields and not entry.shown_on(kvm, cpu):
        how = whole.refused or "it comes out as on Unicorn"
        pytest.skip(f"seen on {', '.join(entry.seen)}; on {kvm} with {cpu or 'a CPU without a name'}: {how}")
    assert whole.fields, f"the CPUs agree, or refuse it: '{id}' is no longer true: {whole.ends}"
    verdict = pair.run(case)
    if entry.masked or entry.ignore:
        assert not verdict.fields, "what is masked does not come up in a comparison"
        return
    insns = disassemble(case.mode, case.units)
    fields = [(field.name, field.bits) for field in verdict.fields or whole.fields]
    assert entry.explains(insns, case.mode, fields, verdict.ends, pair.provenances), (insns, verdict)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair(open_backend("kvm")[0], open_backend("unicorn")[0]) as opened:
        yield opened


@pytest.mark.kvm
@pytest.mark.parametrize("id", WITH_PROGRAM)
def test_each_program_shows_its_divergence(pair: Pair, id: str) -> None:
    check_program(pair, id, chip())


# -- other chips


@pytest.fixture(scope="module")
def agreeing() -> Iterator[Pair]:
    """A KVM whose CPU does all as Unicorn does."""
    with Pair(open_backend("unicorn")[0], open_backend("unicorn")[0]) as opened:
        opened.provenances = CPUS
        yield opened


@pytest.mark.parametrize("cpu", ["Intel 6", "AMD 1Ah", "AMD 17h", "Hygon 18h", ""])
@pytest.mark.parametrize("id", OF_THE_CHIP)
def test_a_chip_that_does_as_unicorn_is_no_failure_where_nothing_was_seen(
    agreeing: Pair, id: str, cpu: str
) -> None:
    why = "seen on AMD 19h; on kvm/pvm with .* as on Unicorn"
    with pytest.raises(pytest.skip.Exception, match=why):
        check_program(agreeing, id, cpu)


@pytest.mark.parametrize("id", OF_THE_CHIP)
def test_it_is_one_where_the_difference_was_seen(agreeing: Pair, id: str) -> None:
    with pytest.raises(AssertionError, match=f"'{id}' is no longer true"):
        check_program(agreeing, id, "AMD 19h")


@pytest.mark.parametrize("cpu", ["Intel 6", "AMD 19h", ""])
def test_what_unicorn_does_wrong_must_show_on_every_chip(agreeing: Pair, cpu: str) -> None:
    ids = [id for id in WITH_PROGRAM if divergences()[id].right == "kvm"]
    assert len(ids) > 30
    for id in ids:
        with pytest.raises(AssertionError, match="no longer true"):
            check_program(agreeing, id, cpu)


class _Differs:
    """A KVM on which the program differs in `field` by `bits`, as an unknown chip may."""

    def __init__(self, field: str, bits: int) -> None:
        self.provenances = CPUS
        self._field = Field(field, bits, 0)

    def run(self, case: Case, *, masked: bool = True) -> Verdict:
        mask = case.undefined if masked and self._field.name == "rflags" else 0
        fields = (self._field,) if self._field.bits & ~mask else ()
        return Verdict(fields, ("end", "end"))


FLAGS = [id for id in OF_THE_CHIP if divergences()[id].masked]


@pytest.mark.parametrize("cpu", ["Intel 6", "AMD 1Ah"])
@pytest.mark.parametrize("id", FLAGS)
def test_an_unknown_chip_may_differ_in_what_is_undefined_and_in_nothing_else(id: str, cpu: str) -> None:
    undefined = divergences()[id].differs["rflags"]
    for bit in (0, 2, 4, 6, 7, 10, 11):
        stand_in: Pair = _Differs("rflags", 1 << bit)  # type: ignore[assignment]
        if undefined >> bit & 1:
            check_program(stand_in, id, cpu)
        else:
            with pytest.raises(AssertionError, match="what is masked does not come up"):
                check_program(stand_in, id, cpu)


def test_a_register_that_differs_is_explained_on_no_chip_by_an_entry_of_flags() -> None:
    for id in FLAGS:
        stand_in: Pair = _Differs("rax", 1)  # type: ignore[assignment]
        with pytest.raises(AssertionError):
            check_program(stand_in, id, "Intel 6")


def test_each_entry_that_the_chip_decides_names_the_family_where_it_was_seen() -> None:
    """By what it says: undefined is for each CPU to choose, and so are an approximation's bits."""
    for entry in divergences().values():
        if entry.program is None or entry.right != "both":
            continue
        assert entry.seen != ("any",), f"'{entry.id}' is left open: any CPU may agree with Unicorn"
        if "ndefined" in entry.architecture and entry.seen != ("pvm",):
            assert all(" " in host for host in entry.seen), entry.id
        assert not set(entry.seen) & set(entry.same), entry.id
    as_unicorn = {entry.id for entry in divergences().values() if "pvm Intel 6" in entry.same}
    assert as_unicorn == set(OF_THE_CHIP)


# -- what only one kind of KVM does


@pytest.mark.parametrize("kvm", ["kvm/vmx", "kvm/svm"])
def test_what_kvm_pvm_does_wrong_is_explained_on_no_other_kind(kvm: str) -> None:
    wrong = [entry for entry in divergences().values() if entry.only == ("pvm",)]
    assert {"lzcnt-and-tzcnt", "pushf-of-user-code", "movbe-where-kvm-emulates"} <= {e.id for e in wrong}
    for entry in wrong:
        assert entry.between(CPUS), entry.id
        assert not entry.between((kvm, CPUS[1])), entry.id
    scene = Scene(provenances=(kvm, CPUS[1]), insns=("lzcnt eax, ecx",), exact=True)
    assert "lzcnt-and-tzcnt" not in [e.id for e in explain_run(scene)]
    here = Scene(provenances=CPUS, insns=("lzcnt eax, ecx",), exact=True)
    assert "lzcnt-and-tzcnt" in [e.id for e in explain_run(here)]


# -- hosts


@pytest.mark.parametrize(
    ("vendor", "family", "named"),
    [
        ("AuthenticAMD", "25", "AMD 19h"),
        ("AuthenticAMD", "26", "AMD 1Ah"),
        ("GenuineIntel", "6", "Intel 6"),
        ("GenuineIntel", "19", "Intel 13h"),
        ("SomebodyElse", "7", "SomebodyElse 7"),
    ],
)
def test_the_name_of_a_cpu_s_family(vendor: str, family: str, named: str) -> None:
    one = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 1\n"
    other = "processor\t: 1\nvendor_id\t: Other\ncpu family\t: 1\n"
    assert chip_of(f"{one}\n{other}\n") == named


@pytest.mark.parametrize(
    "text", ["", "\n\n", "CPU implementer\t: 0x41\n", "vendor_id\t: X\ncpu family\t: y\n"]
)
def test_a_host_that_does_not_say_has_no_name(text: str) -> None:
    assert chip_of(text) == ""


def test_a_host_of_an_entry_is_a_kind_a_family_or_both() -> None:
    entry: Divergence = SimpleNamespace(seen=("pvm AMD 19h",))  # type: ignore[assignment]
    assert Divergence.shown_on(entry, "kvm/pvm", "AMD 19h")
    assert not Divergence.shown_on(entry, "kvm/svm", "AMD 19h")
    assert not Divergence.shown_on(entry, "kvm/pvm", "AMD 1Ah")
    entry = SimpleNamespace(seen=("AMD 19h", "vmx"))  # type: ignore[assignment]
    assert Divergence.shown_on(entry, "kvm/svm", "AMD 19h")
    assert Divergence.shown_on(entry, "kvm/vmx", "Intel 6")
    assert not Divergence.shown_on(entry, "kvm/pvm", "")
