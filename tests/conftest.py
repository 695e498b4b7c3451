"""Settings of these tests. Fixtures, markers and options are those of `vmmsim.testing.plugin`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Browser, browser, why_not
from hypothesis import HealthCheck, settings

settings.register_profile(
    "vmmsim", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("vmmsim")


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
