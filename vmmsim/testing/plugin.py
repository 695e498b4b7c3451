"""The pytest plugin: tests that run guests on one CPU, on each, or compare two.

    machine         makes machines on the test's backend, which are closed behind the test
    backend         an opened backend; backend_name its name for Machine(backend=)
    both_backends   ("kvm", "unicorn"), for assert_same_behaviour

A test with one of the first three runs once on each backend of `--vmm-backend`. Where a backend
cannot be used its tests are skipped with the reason that `vmmsim doctor` gives; `--vmm-require`
makes that a failure, so that a CI job cannot lose a backend unseen. Of a test that failed, the
traces and snapshots of its machines are kept as files. VMMSIM_SLOW=10 makes the plugin's time limits ten
times as long.

pytest loads this in every project of an environment in which vmmsim is installed: so it imports
nothing of vmmsim before a test needs it, and leaves tests alone that use none of it. A project with
the ini option `vmm_markers = true` may also mark tests with `kvm` and `unicorn`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..backends.base import Backend
    from ..machine import Machine
    from .artifacts import MachineRecord

_MARKERS = ("kvm", "unicorn")
_PORTABLE = "unicorn-portable"
#: Seconds (times VMMSIM_SLOW): a guest that livelocks in the host's kernel is ended by pytest-timeout's
#: signal.
_GUEST_TIMEOUT = 60

_records: pytest.StashKey[list[MachineRecord]] = pytest.StashKey()
_failed: pytest.StashKey[bool] = pytest.StashKey()
#: The test that is running; a test that runs pytest inside makes it two.
_running: list[pytest.Item] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vmmsim")
    group.addoption(
        "--vmm-backend",
        default="all",
        choices=("all", *_MARKERS),
        help="the CPUs that tests with the fixtures machine and backend run on (default: all)",
    )
    group.addoption(
        "--vmm-require",
        action="append",
        default=[],
        choices=_MARKERS,
        help="fail, instead of skipping, the tests of a backend that cannot be used here",
    )
    group.addoption(
        "--vmm-artifacts",
        metavar="DIR",
        help="where traces and snapshots of tests that failed are kept (default: the test's tmp_path)",
    )
    parser.addini("vmm_markers", "the markers kvm and unicorn are vmmsim's here", type="bool", default=False)
    parser.addini("vmm_portable", "run on unicorn-portable, too", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("VMMSIM_SLOW"):
        from ..errors import UsageError
        from .slow import slowness

        try:
            slowness()
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None
    if config.getini("vmm_markers"):
        config.addinivalue_line("markers", "kvm: runs a guest on real KVM")
        config.addinivalue_line("markers", "unicorn: runs a guest on Unicorn")


def _variants(config: pytest.Config) -> list[str]:
    """The backends that tests run on."""
    wanted = config.getoption("--vmm-backend")
    names = [*_MARKERS, *([_PORTABLE] if config.getini("vmm_portable") else [])]
    return [name for name in names if wanted in ("all", name.partition("-")[0])]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend_name" not in metafunc.fixturenames or not _ours(metafunc):
        return
    metafunc.parametrize("backend_name", _variants(metafunc.config), indirect=True)


def _ours(metafunc: pytest.Metafunc) -> bool:
    """Whether backend_name is this plugin's, and nobody has given its values."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs.get("argnames", "")
        if "backend_name" in (names.split(",") if isinstance(names, str) else names):
            return False
    return _own(metafunc.definition, "backend_name")


def _backends(item: pytest.Item) -> list[str]:
    """Which backends an item runs on: by its parameter, by both_backends, or by its markers."""
    callspec = getattr(item, "callspec", None)
    if callspec is not None and "backend_name" in callspec.params:
        if item.config.getini("vmm_markers") or _own(item, "backend_name"):
            return [str(callspec.params["backend_name"])]
    elif _own(item, "both_backends"):
        return list(_MARKERS)
    return _marked(item)[:1]


def _own(item: pytest.Item, name: str) -> bool:
    """Whether an item uses this plugin's fixture of that name, and not one of the project's."""
    info = getattr(item, "_fixtureinfo", None)
    found: Any = info.name2fixturedefs.get(name) if info is not None else None
    return bool(found) and found[-1].func.__module__ == __name__


def _marked(item: pytest.Item) -> list[str]:
    if not item.config.getini("vmm_markers"):
        return []
    return [name for name in _MARKERS if item.get_closest_marker(name)]


def _needed(item: pytest.Item) -> list[str]:
    """The backends without which an item cannot run."""
    return list(dict.fromkeys(name.partition("-")[0] for name in (*_backends(item), *_marked(item))))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    markers = config.getini("vmm_markers")
    for item in items:
        backends = _backends(item)
        if markers:  # so that `-m kvm` finds what runs on KVM
            for name in {backend.partition("-")[0] for backend in backends}:
                item.add_marker(name)
        if backends and config.pluginmanager.hasplugin("timeout") and not item.get_closest_marker("timeout"):
            from .slow import time_limit

            item.add_marker(pytest.mark.timeout(time_limit(_GUEST_TIMEOUT)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in _backends(item):
        item.user_properties.append(("backend", name))
    for name in _needed(item):
        from ..backends import availability

        found = availability(name)
        if not found.usable:
            _lacks(item.config, name, found.reason)


def _lacks(config: pytest.Config, name: str, reason: str) -> None:
    if name in config.getoption("--vmm-require"):
        pytest.fail(f"backend '{name}' is required here, but {reason}", pytrace=False)
    pytest.skip(f"backend '{name}': {reason}")


# -- fixtures


@pytest.fixture
def backend_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend to open: `kvm` or `unicorn`."""
    name, _, engine = str(request.param).partition("-")
    if engine:
        monkeypatch.setenv("VMMSIM_UNICORN", engine)
    return name


@pytest.fixture
def backend(backend_name: str) -> Backend:
    """An opened backend."""
    from ..backends import open_backend

    return open_backend(backend_name)[0]


@pytest.fixture
def both_backends() -> tuple[str, str]:
    """The names of the two CPUs. The test is skipped where one of them is missing."""
    return _MARKERS


@pytest.fixture
def machine(
    request: pytest.FixtureRequest, backend_name: str, tmp_path: Path
) -> Iterator[Callable[..., Machine]]:
    """Makes a machine on the test's backend: `machine("guess", seed=1)` with a built-in guest,
    `machine(code)` with real-mode code or a LoadedImage, `machine()` with nothing loaded. Keywords
    are those of Machine. It is closed behind the test."""
    from ..loaders import load_flat
    from ..machine import Machine
    from .artifacts import MachineRecord

    records: list[MachineRecord] = []
    request.node.stash[_records] = records

    def make(guest: Any = None, **arguments: Any) -> Machine:
        arguments = {"backend": backend_name, **arguments}
        if isinstance(guest, str):
            made, name = Machine.for_guest(guest, **arguments), guest
        else:
            made, name = Machine(**arguments), "code"
        folder = _folder(request.node, tmp_path)
        records.append(MachineRecord(made, folder / f"machine{len(records) + 1}.jsonl", name))
        if isinstance(guest, (bytes, bytearray)):
            made.load(load_flat(bytes(guest), name=name))
        elif guest is not None and not isinstance(guest, str):
            made.load(guest)
        return made

    yield make
    for record in records:
        record.close(kept=request.node.stash.get(_failed, False))


def _folder(item: pytest.Item, tmp_path: Path | None) -> Path:
    """Where the files of a test go."""
    chosen = item.config.getoption("--vmm-artifacts")
    if chosen:
        folder = Path(chosen) / re.sub(r"[^\w.-]+", "-", item.nodeid)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    if tmp_path is not None:
        return tmp_path
    import tempfile

    return Path(tempfile.mkdtemp(prefix="vmmsim-"))


# -- what is kept, and what is said


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    _running.append(item)
    try:
        yield
    finally:
        _running.remove(item)


def running() -> bool:
    """For assert_same_behaviour: whether a test is running."""
    return bool(_running)


def folder() -> Path:
    """For assert_same_behaviour: where files of the test that is running go."""
    item = _running[-1]
    request = getattr(item, "_request", None)  # of a doctest there is none in old versions
    return _folder(item, request.getfixturevalue("tmp_path") if request is not None else None)


def lacks(backend: str, reason: str) -> None:
    """For assert_same_behaviour: the test that is running needs a backend that is not there."""
    _lacks(_running[-1].config, backend.partition("-")[0], reason)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    if call.when != "call" or not report.failed:
        return
    item.stash[_failed] = True
    kept = [str(path) for record in item.stash.get(_records, []) for path in record.keep()]
    if kept:
        report.sections.append(("vmmsim keeps", "\n".join(kept)))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    ran: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for outcome in ("passed", "failed", "xfailed", "xpassed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, variant in getattr(report, "user_properties", ()):
                if name != "backend":
                    continue
                if outcome == "skipped":
                    skipped[variant] += 1
                elif report.when == "call":
                    ran[variant] += 1
    if ran or skipped:
        names = list(dict.fromkeys((*_variants(config), *ran, *skipped)))
        text = ", ".join(f"on {name}: {ran[name]}" for name in names)
        missed = ", ".join(f"on {name}: {skipped[name]}" for name in names if skipped[name])
        terminalreporter.write_line(f"ran {text}; skipped {missed or 'none'}")
