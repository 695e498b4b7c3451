"""divergences.toml, read into typed values: where KVM and Unicorn differ by nature.

The file is the only place where a difference is allowed. A conformance case, a trace
comparison and docs/divergences.md all cite its entries by id.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal

import msgspec

from ..errors import UsageError

if TYPE_CHECKING:
    from .case import Case

__all__ = [
    "FILE",
    "Divergence",
    "Program",
    "case_of",
    "divergence",
    "divergences",
    "explain",
    "flag_masks",
    "ignored_bits",
    "parse",
]

FILE = "divergences.toml"

#: Names in `differs` that stand for several fields.
GROUPS = {
    "reg": re.compile("r[a-z0-9]+"),
    "xmm": re.compile(r"fpu\.xmm\d+"),
    "st": re.compile(r"fpu\.st\d"),
    "exponent": re.compile(r"fpu\.exponent\d"),
    "fpu": re.compile(r"fpu\..*"),
    "segment": re.compile("[c-gs]s"),
}


#: A host in `seen` and `same`.
_HOST = re.compile(r"any|((pvm|vmx|svm) )?[A-Z][A-Za-z]* ([0-9]|[1-9A-F][0-9A-F]+h)|pvm|vmx|svm")


class Program(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The least program that shows a divergence: a fuzz case of vmmsim.diff.case, written short.

    `code` is hex. `regs` and `fpu` are values by field name; the rest is 0 (RSP the bench's)."""

    mode: str
    code: str
    regs: dict[str, int] = msgspec.field(default_factory=dict)
    fpu: dict[str, int | list[int]] = msgspec.field(default_factory=dict)
    memory: dict[str, str] = msgspec.field(default_factory=dict)


class Divergence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry. `kvm` says what each provenance does (`pvm`, `vmx`, `svm`; `any` for all),
    `architecture` what the SDM asks for and `right` who does it: `both` where it is left open or
    undefined, and of KVMs that are not the same the one where it was measured, kvm_pvm. `test` names what
    holds the entry to account: a check of vmmsim.testing, or a test as `tests/file.py::name`.

    `only` are the kinds of KVM that differ, where others do as the architecture says: on those nothing is
    explained. `seen` are the hosts where the program has shown the difference: a kind of KVM (`pvm`),
    vendor and family of a CPU (`AMD 19h`), both (`pvm AMD 19h`), or `any`, where each KVM must. There it
    is asserted. `same` are those where it came out as on Unicorn. Elsewhere it may do either, for what is
    left open or undefined is so on each CPU: a difference is explained there as well, and by no wider rule.

    `ignore` are the bits of CpuState fields that a comparison leaves out, by the names of
    `CpuState.fields` ("rflags", "fpu.fop"); a mask of -1 is the whole field.

    What follows is for the fuzzer. `program` shows the divergence. `insn` matches an instruction
    that differs, as capstone writes it (`shl eax, cl`), in one of `modes` (none: all), and `code` its
    bytes in hex with all prefixes, where the text says too little; `then` is an instruction that must come
    after it, where it takes another to see the difference. `differs` has the fields in which they may
    differ, with masks: a field of `vmmsim.diff.runner`, or a group of `GROUPS`. An entry with
    `rflags` and nothing else (but `end`) there is masked in each comparison; the others explain a
    finding, if some of the bits of each field in `needs` differ, and if the program ended on both CPUs as
    the pattern `ended` says. `ends` explains a program that ends otherwise on the CPUs: patterns for
    `kvm` and `unicorn`; so does `end` in `differs`, whatever the ends.
    """

    id: str
    title: str
    kvm: dict[str, str]
    unicorn: str
    architecture: str
    right: Literal["kvm", "unicorn", "both", "neither"]
    source: str
    test: str
    only: tuple[str, ...] = ()
    seen: tuple[str, ...] = ("any",)
    same: tuple[str, ...] = ()
    ignore: dict[str, int] = msgspec.field(default_factory=dict)
    program: Program | None = None
    insn: str = ""
    code: str = ""
    then: str = ""
    modes: tuple[str, ...] = ()
    ended: str = ""
    differs: dict[str, int] = msgspec.field(default_factory=dict)
    needs: dict[str, int] = msgspec.field(default_factory=dict)
    ends: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def masked(self) -> bool:
        """Whether a comparison leaves out what differs, so that nothing has to be explained."""
        return "rflags" in self.differs and set(self.differs) <= {"rflags", "end"}

    def between(self, provenances: Sequence[str]) -> bool:
        """Whether it is about these two: a KVM of a kind that `kvm`, or `only`, has, and Unicorn."""
        kinds = {family: kind for family, _, kind in (p.partition("/") for p in provenances)}
        if "kvm" not in kinds or not any(f.startswith("unicorn") for f in kinds):
            return False
        return kinds["kvm"] in self.only if self.only else bool({"any", kinds["kvm"]} & set(self.kvm))

    def shown_on(self, provenance: str, chip: str) -> bool:
        """Whether the program must show it on the KVM `provenance` (`kvm/pvm`) of a host with the CPU
        `chip` (`AMD 19h`; see backends.host_cpu)."""
        kind = provenance.partition("/")[2]
        return bool({"any", kind, chip, f"{kind} {chip}"} & set(self.seen))

    def names(self, insn: str, mode: str, code: bytes) -> bool:
        """Whether `insn` (capstone's text of `code`) in `mode` is one that it is about."""
        return (
            bool(self.insn)
            and (not self.modes or mode in self.modes)
            and _matches(self.insn, insn)
            and (not self.code or _matches(self.code, code.hex()))
        )

    def concerns(
        self,
        insns: Sequence[tuple[bytes, str]],
        mode: str,
        provenances: tuple[str, str],
    ) -> bool:
        """Whether it is about these CPUs and one of `insns` (bytes and text)."""
        if not self.between(provenances):
            return False
        at = next((i for i, (code, text) in enumerate(insns) if self.names(text, mode, code)), None)
        if at is None:
            return False
        return not self.then or any(_matches(self.then, text) for _, text in insns[at + 1 :])

    def needed(self, fields: Sequence[tuple[str, int]], ends: tuple[str, str]) -> bool:
        """Whether the fields that it needs are there, and programs that ended as it says."""
        return (not self.ended or all(_matches(self.ended, end) for end in ends)) and all(
            any(n == name and bits & mask for n, bits in fields) for name, mask in self.needs.items()
        )

    def allows(self, field: str, bits: int) -> bool:
        """Whether `bits` of `field` (-1: it is no number) may differ here."""
        for name, mask in self.differs.items():
            if (name == field or (name in GROUPS and GROUPS[name].fullmatch(field))) and (
                mask == -1 or (bits != -1 and not bits & ~mask)
            ):
                return True
        return False

    def applies_to(self, provenance: str, *kinds: str) -> bool:
        """Whether `provenance` (`kvm/pvm`, `unicorn-2.1.4/native`) is one of `kinds`, the CPUs
        that differ here: `pvm`, `vmx`, `svm`, `native`, `portable`, or `unicorn` for both engines."""
        family, _, kind = provenance.partition("/")
        return kind in kinds or family.partition("-")[0] in kinds

    def on(self, provenance: str) -> str:
        """What a backend of this provenance (`kvm/pvm`, `unicorn-2.1.4/native`) does."""
        family, _, kind = provenance.partition("/")
        if family == "kvm":
            return self.kvm.get(kind, self.kvm.get("any", self.architecture))
        return self.unicorn

    def explains(
        self,
        insns: Sequence[tuple[bytes, str]],
        mode: str,
        fields: Sequence[tuple[str, int]],
        ends: tuple[str, str],
        provenances: tuple[str, str],
    ) -> bool:
        """Whether it explains a difference; see `explain`."""
        if not self.concerns(insns, mode, provenances):
            return False
        if ends[0] != ends[1]:
            kvm = 0 if provenances[0].startswith("kvm") else 1
            return "end" in self.differs or bool(
                self.ends
                and _matches(self.ends.get("kvm", ".*"), ends[kvm])
                and _matches(self.ends.get("unicorn", ".*"), ends[1 - kvm])
            )
        return (
            bool(self.differs)
            and all(self.allows(name, bits) for name, bits in fields)
            and self.needed(fields, ends)
        )


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def _matches(pattern: str, text: str) -> bool:
    return _pattern(pattern).fullmatch(text) is not None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    divergence: list[Divergence]


def parse(text: str) -> dict[str, Divergence]:
    """The entries of a divergences file, by id. UsageError names the entry and the rule."""
    try:
        entries = msgspec.convert(tomllib.loads(text), _File).divergence
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(
            f"{FILE} is not well-formed: {error}", hint="see vmmsim/diff/divergences.py"
        ) from error
    found: dict[str, Divergence] = {}
    for entry in entries:
        if entry.id in found:
            raise UsageError(f"{FILE} has two entries '{entry.id}'", hint="an id names one divergence")
        if not entry.kvm or not set(entry.kvm) <= {"any", "pvm", "vmx", "svm"}:
            raise UsageError(
                f"{FILE}: '{entry.id}' is told for the provenances {sorted(entry.kvm)}",
                hint="kvm has some of any, pvm, vmx and svm",
            )
        _check_hosts(entry)
        try:
            for text in (entry.insn, entry.code, entry.then, entry.ended, *entry.ends.values()):
                re.compile(text)
        except re.error as error:
            raise UsageError(
                f"{FILE}: '{entry.id}' has a pattern that is none: {error}", hint="it is a Python regex"
            ) from error
        found[entry.id] = entry
    return found


def _check_hosts(entry: Divergence) -> None:
    for host in (*entry.seen, *entry.same):
        if not _HOST.fullmatch(host):
            raise UsageError(
                f"{FILE}: '{entry.id}' names the host '{host}'",
                hint="a host is any, a kind of KVM, vendor and family as AMD 19h, or both: pvm AMD 19h",
            )
    if not set(entry.only) <= set(entry.kvm) - {"any"}:
        raise UsageError(
            f"{FILE}: '{entry.id}' is only about {', '.join(entry.only)}, and kvm does not tell of each",
            hint="only has kinds of KVM that kvm has a text for",
        )


@cache
def divergences() -> dict[str, Divergence]:
    """All entries by id, in the order of the file."""
    return parse(files(__package__).joinpath(FILE).read_text(encoding="utf-8"))


def divergence(id: str) -> Divergence:
    """The entry `id`. UsageError when the file has none: a difference must be written down."""
    try:
        return divergences()[id]
    except KeyError:
        raise UsageError(f"there is no divergence '{id}'", hint=f"write it into vmmsim/diff/{FILE}") from None


def ignored_bits(ids: tuple[str, ...] | None = None) -> dict[str, int]:
    """field -> mask of the bits that the given entries (None: all) leave out of a comparison."""
    masks: dict[str, int] = {}
    for entry in divergences().values() if ids is None else map(divergence, ids):
        for name, mask in entry.ignore.items():
            masks[name] = masks.get(name, 0) | mask
    return masks


@cache
def flag_masks(insn: str, mode: str, code: bytes) -> int:
    """RFLAGS that `insn` (as capstone writes `code`) leaves so that a comparison leaves them out."""
    mask = 0
    for entry in divergences().values():
        if entry.masked and entry.names(insn, mode, code):
            mask |= entry.differs["rflags"]
    return mask


def explain(
    insns: Iterable[tuple[bytes, str]],
    mode: str,
    fields: Iterable[tuple[str, int]],
    ends: tuple[str, str],
    provenances: tuple[str, str],
) -> str | None:
    """The id of the entry that explains a difference, or of several joined by `+`; None if none does.

    `insns` are the instructions of the program (bytes and text), shrunk as far as it goes; `fields` what
    differs with the bits (-1: no number); `ends` how it ended on each of `provenances`.
    """
    program, wanted = list(insns), list(fields)
    for entry in divergences().values():
        if entry.explains(program, mode, wanted, ends, provenances):
            return entry.id
    return _together(program, mode, wanted, ends, provenances)


def _together(
    insns: Sequence[tuple[bytes, str]],
    mode: str,
    fields: Sequence[tuple[str, int]],
    ends: tuple[str, str],
    provenances: tuple[str, str],
) -> str | None:
    """The ids of the entries that explain a difference together, field by field, joined by `+`."""
    if ends[0] != ends[1]:
        return None
    able = [
        entry
        for entry in divergences().values()
        if entry.differs and entry.concerns(insns, mode, provenances) and entry.needed(fields, ends)
    ]
    used: list[str] = []
    for name, bits in fields:
        entry = next((entry for entry in able if entry.allows(name, bits)), None)
        if entry is None:
            return None
        if entry.id not in used:
            used.append(entry.id)
    return "+".join(used)


def case_of(entry: Divergence) -> Case:
    """The program of an entry as a case of the fuzzer. UsageError for an entry without one."""
    from ..cpu.state import Registers
    from .case import STACK, Case, Unit, base_state, check_case
    from .encodings import unit_of

    program = entry.program
    if program is None:
        raise UsageError(f"'{entry.id}' has no program", hint="give it one in divergences.toml")
    code = bytes.fromhex(program.code)
    unit = unit_of(code, program.mode) or Unit(code)
    fpu = None
    if program.mode == "64u":
        values = {
            name: [*value, *[0] * (len(getattr(base_state("64u").fpu, name)) - len(value))]
            if isinstance(value, list)
            else value
            for name, value in program.fpu.items()
        }
        fpu = msgspec.structs.replace(base_state("64u").fpu, **values)
    case = Case(
        mode=program.mode,
        units=(unit,),
        regs=Registers(**{"rsp": STACK, **program.regs}),
        fpu=fpu,
        memory=tuple((int(at, 0), bytes.fromhex(data)) for at, data in program.memory.items()),
        seed=0,
    )
    check_case(case, entry.id)
    return case
