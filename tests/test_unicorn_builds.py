"""Another Unicorn than PyPI's 2.1.4: it falls back, or is refused with what mends it; never half used."""

from __future__ import annotations

import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from vmmsim import BackendUnavailable, Machine
from vmmsim.backends import availability, open_backend
from vmmsim.cli import doctor
from vmmsim.exits import Halt
from vmmsim.streams import BytesSource

INSTALL = 'pip install "unicorn>=2.1.4,<3"'


@pytest.fixture(autouse=True)
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VMMSIM_UNICORN", "LIBUNICORN_PATH"):
        monkeypatch.delenv(name, raising=False)


def said_of_unicorn(capsys: pytest.CaptureFixture[str]) -> str:
    """What `vmmsim doctor` prints of it, as one line."""
    report = doctor.examine()
    doctor._show(report)
    text = " ".join(capsys.readouterr().out.split())
    return text[text.index(" unicorn: ") :].partition(" capability ")[0]


# -- the version


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the version that the library says it has."""
    unicorn = pytest.importorskip("unicorn")

    def set_version(major: int, minor: int, patch: int) -> None:
        number = major << 24 | minor << 16 | patch << 8 | 0xFF
        monkeypatch.setattr(unicorn, "uc_version", lambda: (major, minor, number))

    return set_version


@pytest.mark.parametrize("version", [(1, 0, 3), (2, 0, 1), (2, 1, 2), (2, 1, 3), (3, 0, 0)])
def test_a_version_that_is_not_known_is_refused_with_the_one_that_is(
    library: Any, version: tuple[int, int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    library(*version)
    dotted = ".".join(map(str, version))
    with pytest.raises(BackendUnavailable) as caught:
        open_backend("unicorn")
    assert caught.value.reason == f"this is unicorn {dotted}, and vmmsim needs 2.1.4 or newer (below 3)"
    assert caught.value.hint == INSTALL
    said = said_of_unicorn(capsys)
    assert f"not usable: this is unicorn {dotted}," in said
    assert f"to mend it: {INSTALL}" in said


@pytest.mark.parametrize("version", [(2, 1, 4), (2, 1, 5), (2, 2, 0)])
def test_newer_versions_are_tried_and_the_library_speaks_for_itself(
    library: Any, version: tuple[int, int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    library(*version)
    assert availability("unicorn").usable
    said = said_of_unicorn(capsys)
    dotted = ".".join(map(str, version))
    assert f"version: {dotted}" in said
    if version != (2, 1, 4):
        assert f"version: {dotted}, called by the Python package's 2.1.4" in said


def test_an_old_library_by_environment_is_named(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    library(2, 1, 3)
    monkeypatch.setenv("LIBUNICORN_PATH", "/opt/old")
    assert availability("unicorn").fix == "unset LIBUNICORN_PATH, by which the library is that in /opt/old"


# -- no package


class Missing:
    """An importer that has no package of some names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


@pytest.fixture
def no_unicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "unicorn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing("unicorn"), *sys.meta_path])


@pytest.mark.usefixtures("no_unicorn")
def test_without_the_package_one_is_told_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"not usable: the unicorn package is missing to mend it: {INSTALL}" in said_of_unicorn(capsys)


@pytest.mark.usefixtures("no_unicorn")
def test_on_windows_on_arm_the_remedy_is_another_python(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sysconfig, "get_platform", lambda: "win-arm64")
    said = said_of_unicorn(capsys)
    assert "it has no wheel for Windows on ARM to mend it: install Python for Windows on x86-64" in said
    with pytest.raises(BackendUnavailable, match="no wheel for Windows on ARM"):
        open_backend("unicorn")


def test_a_library_that_cannot_be_loaded_is_no_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is there and says that its library is not, as where a C library is too old."""

    class Broken(Missing):
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name.partition(".")[0] in self.names:
                raise ImportError("ERROR: fail to load the dynamic library.")

    for name in [name for name in sys.modules if name.partition(".")[0] == "unicorn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken("unicorn"), *sys.meta_path])
    found = availability("unicorn")
    assert found.reason == "the unicorn package cannot be loaded: ERROR: fail to load the dynamic library."
    assert found.fix == INSTALL


@pytest.mark.parametrize(
    ("system", "machine", "there"),
    [
        ("win32", "AMD64", True),
        ("win32", "ARM64", False),
        ("linux", "x86_64", True),
        ("linux", "aarch64", True),
        ("darwin", "arm64", True),
    ],
)
def test_pip_is_asked_for_what_has_a_wheel(system: str, machine: str, there: bool) -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    wanted = [Requirement(line) for line in tomllib.loads(text)["project"]["dependencies"]]
    host = {"sys_platform": system, "platform_machine": machine}
    names = {r.name for r in wanted if r.marker is None or r.marker.evaluate(host)}
    assert {"unicorn", "capstone"} <= names if there else not {"unicorn", "capstone"} & names
    assert {"msgspec", "click", "rich", "pyelftools"} <= names


# -- a layout that cannot be proved


@pytest.mark.unicorn
def test_without_proof_of_the_context_it_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vmmsim.backends import unicorn_context

    reason = "the layout of the CPU structure is not the known one: EFER is not there exactly once"
    monkeypatch.setattr(unicorn_context, "context_usable", lambda: (False, reason))
    with pytest.raises(BackendUnavailable) as caught:
        open_backend("unicorn")
    assert caught.value.reason == reason
    assert caught.value.hint == "pip install --force-reinstall unicorn==2.1.4, or use backend kvm"
    said = said_of_unicorn(capsys)
    assert f"not usable: {reason} to mend it: pip install --force-reinstall unicorn==2.1.4" in said


@pytest.mark.unicorn
@pytest.mark.parametrize(
    "error", [LookupError, AttributeError, OSError, ValueError], ids=lambda e: e.__name__
)
def test_a_search_that_fails_in_any_way_is_no_proof(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """A symbol that is not there is an AttributeError, a bad access on Windows an OSError."""
    from vmmsim.backends import unicorn_context as context

    def find_layout(uc: Any) -> Any:
        raise error("what was met")

    monkeypatch.setattr(context, "find_layout", find_layout)
    context._layout.cache_clear()
    context.context_usable.cache_clear()
    try:
        usable, reason = context.context_usable()
        assert not usable
        assert "what was met" in reason
    finally:
        context._layout.cache_clear()
        context.context_usable.cache_clear()


@pytest.mark.unicorn
def test_without_proof_of_the_native_engine_guests_run_on_the_portable_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vmmsim.backends.unicorn_native import vcpu

    reason = "the self-test saw nothing"
    monkeypatch.setattr(vcpu, "native_usable", lambda: (False, reason))
    said = said_of_unicorn(capsys)
    assert "runs as unicorn-2.1.4/portable" in said
    assert f"engine: portable: {reason}" in said
    with Machine.for_guest("lwn", backend="unicorn", source=BytesSource(b"")) as machine:
        assert machine.backend.provenance.endswith("/portable")
        assert machine.run() == Halt()
        assert machine.output.data == b"4\n"
    monkeypatch.setenv("VMMSIM_UNICORN", "native")
    with pytest.raises(BackendUnavailable, match=f"the native engine cannot be used: {reason}"):
        open_backend("unicorn")
