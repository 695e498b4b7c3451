"""The backends as a fixture, and a summary of how many tests really ran on each.

`backend_name` runs a test on KVM, on Unicorn and on Unicorn with its portable engine only
(`VMMSIM_UNICORN=portable`). Its value is what `Machine(backend=...)` takes. A test that
needs one backend in particular is marked `kvm` or `unicorn` instead.

Where KVM cannot be used its tests are skipped with the reason that `vmmsim doctor` gives;
`--vmm-require=kvm` makes that a failure, so that a CI job cannot lose a backend unseen.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

from vmmsim.backends import availability, open_backend
from vmmsim.backends.base import Backend

VARIANTS = ("kvm", "unicorn", "unicorn-portable")
_MARKERS = ("kvm", "unicorn")
#: A guest that livelocks in the host's kernel is ended by the timeout's signal.
_GUEST_TIMEOUT = 60

settings.register_profile(
    "vmmsim", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("vmmsim")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--vmm-require",
        action="append",
        default=[],
        choices=_MARKERS,
        help="fail, instead of skipping, the tests of a backend that cannot be used here",
    )


def _variant(item: pytest.Item) -> str | None:
    """Which backend an item runs on: its parameter, or its marker."""
    callspec = getattr(item, "callspec", None)
    if callspec is not None and "backend_name" in callspec.params:
        return str(callspec.params["backend_name"])
    return next((name for name in _MARKERS if item.get_closest_marker(name)), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _variant(item) is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_GUEST_TIMEOUT))


def pytest_runtest_setup(item: pytest.Item) -> None:
    variant = _variant(item)
    if variant is not None:
        item.user_properties.append(("backend", variant))
    for name in _MARKERS:
        if item.get_closest_marker(name) is None:
            continue
        found = availability(name)
        if found.usable:
            continue
        if name in item.config.getoption("--vmm-require"):
            pytest.fail(f"backend '{name}' is required here, but {found.reason}", pytrace=False)
        pytest.skip(f"backend '{name}': {found.reason}")


def _param(variant: str) -> object:
    return pytest.param(variant, marks=getattr(pytest.mark, variant.partition("-")[0]), id=variant)


@pytest.fixture(params=[_param(variant) for variant in VARIANTS])
def backend_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend to open: `kvm` or `unicorn`."""
    name, _, engine = str(request.param).partition("-")
    if engine:
        monkeypatch.setenv("VMMSIM_UNICORN", engine)
    return name


@pytest.fixture
def backend(backend_name: str) -> Backend:
    """An opened backend."""
    return open_backend(backend_name)[0]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ran: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for outcome in ("passed", "failed", "xfailed", "xpassed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            variant = dict(getattr(report, "user_properties", ())).get("backend")
            if variant is None:
                continue
            if outcome == "skipped":
                skipped[variant] += 1
            elif report.when == "call":
                ran[variant] += 1
    if ran or skipped:
        text = ", ".join(f"on {name}: {ran[name]}" for name in VARIANTS)
        missed = ", ".join(f"on {name}: {skipped[name]}" for name in VARIANTS if skipped[name])
        terminalreporter.write_line(f"ran {text}; skipped {missed or 'none'}")
