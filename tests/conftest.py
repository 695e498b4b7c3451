"""Settings of these tests. Fixtures, markers and options are those of `vmmsim.testing.plugin`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Browser, browser, why_not
from hypothesis import HealthCheck, settings

from vmmsim.errors import UsageError
from vmmsim.testing.slow import slowness, time_limit

settings.register_profile(
    "vmmsim", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("vmmsim")


# pytest-timeout's limits: that of pyproject.toml, unless --timeout says another, and those of markers. (The
# plugin's own is for tests without a marker, so it is not made longer twice.)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("timeout") and config.option.timeout is None:
        try:
            config.option.timeout = time_limit(float(config.getini("timeout")))
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if slowness() == 1:
        return
    for item in items:
        mark = item.get_closest_marker("timeout")
        if mark is not None:
            longer = pytest.mark.timeout(time_limit(mark.args[0]), *mark.args[1:], **mark.kwargs)
            item.add_marker(longer, append=False)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with browser() as found:
        yield found


@pytest.fixture
def at(chromium: Browser) -> Iterator[Browser]:
    """The browser as a person's: a wide window, light. What it has to complain of is a failure."""
    chromium.size(1440, 900)
    chromium.scheme("light")
    yield chromium
    assert chromium.log() == []
