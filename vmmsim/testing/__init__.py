"""Conformance suites, for vmmsim's own tests and for the backends and devices of others.

    from vmmsim.testing import run_backend_conformance, run_device_conformance

    def test_my_backend():
        run_backend_conformance(MyBackend)

    def test_my_device():
        run_device_conformance(lambda state=None: MyDevice(state=state))

Each check is a named function in `CHECKS` and `DEVICE_CHECKS`, so that a test suite can
also run them one by one.
"""

from __future__ import annotations

from .backend import CHECKS, run_backend_conformance
from .checks import Check, NotApplicable, Result
from .devices import DEVICE_CHECKS, DeviceCheck, run_device_conformance

__all__ = [
    "CHECKS",
    "DEVICE_CHECKS",
    "Check",
    "DeviceCheck",
    "NotApplicable",
    "Result",
    "run_backend_conformance",
    "run_device_conformance",
]
