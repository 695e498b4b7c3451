"""Settings of these tests. Fixtures, markers and options are those of `vmmsim.testing.plugin`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "vmmsim", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("vmmsim")
