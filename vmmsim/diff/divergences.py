"""divergences.toml, read into typed values: where KVM and Unicorn differ by nature.

The file is the only place where a difference is allowed. A conformance case, a trace
comparison and docs/divergences.md all cite its entries by id.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files

import msgspec

from ..errors import UsageError

__all__ = ["FILE", "Divergence", "divergence", "divergences", "ignored_bits", "parse"]

FILE = "divergences.toml"


class Divergence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry. `kvm` says what each provenance does (`pvm`, `vmx`, `svm`; `any` for all),
    `architecture` what the SDM asks for. `test` names what holds the entry to account: a check
    of vmmsim.testing, or a test as `tests/file.py::name`.

    `ignore` are the bits of CpuState fields that a comparison leaves out, by the names of
    `CpuState.fields` ("rflags", "fpu.fop"); a mask of -1 is the whole field.
    """

    id: str
    title: str
    kvm: dict[str, str]
    unicorn: str
    architecture: str
    source: str
    test: str
    ignore: dict[str, int] = msgspec.field(default_factory=dict)

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
        found[entry.id] = entry
    return found


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
