"""What tests use: conformance suites for backends and devices, and comparing two sides.

    from vmmsim.testing import assert_same_behaviour, run_backend_conformance, run_device_conformance

    def test_my_backend():
        run_backend_conformance(MyBackend)

    def test_my_device():
        run_device_conformance(lambda state=None: MyDevice(state=state))

    def test_my_guest(both_backends):
        assert_same_behaviour("guess", *both_backends)

Each check of the suites is a named function in `CHECKS` and `DEVICE_CHECKS`, so that a test suite
can also run them one by one. The fixtures are those of `vmmsim.testing.plugin`, which pytest loads
by itself; so importing this package is light, and its names are imported when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..diff.sides import Side
    from .backend import CHECKS, run_backend_conformance
    from .checks import Check, NotApplicable, Result
    from .devices import DEVICE_CHECKS, DeviceCheck, run_device_conformance
    from .same import assert_same_behaviour

_EXPORTS = {
    "CHECKS": ".backend",
    "DEVICE_CHECKS": ".devices",
    "Check": ".checks",
    "DeviceCheck": ".devices",
    "NotApplicable": ".checks",
    "Result": ".checks",
    "Side": "..diff.sides",
    "assert_same_behaviour": ".same",
    "run_backend_conformance": ".backend",
    "run_device_conformance": ".devices",
}

__all__ = [
    "CHECKS",
    "DEVICE_CHECKS",
    "Check",
    "DeviceCheck",
    "NotApplicable",
    "Result",
    "Side",
    "assert_same_behaviour",
    "run_backend_conformance",
    "run_device_conformance",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(import_module(_EXPORTS[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
