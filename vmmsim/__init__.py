"""vmmsim: one VMM core, two CPUs (real KVM and Unicorn), the same exits.

    >>> import vmmsim
    >>> with vmmsim.Machine(backend="unicorn") as machine:
    ...     machine.load_guest("loop")
    ...     machine.run()
    ...     machine.cpu.rax
    Halt()
    0

Importing this package loads no backend and no CPU library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .budget import Budget, insns, seconds
    from .config import MachineConfig
    from .errors import (
        BackendUnavailable,
        DeviceError,
        GuestError,
        HostError,
        ImageError,
        ImageNotFound,
        NotSupported,
        SnapshotError,
        UsageError,
        VmmsimError,
    )
    from .machine import Machine

__version__ = "0.1.0"

# Not `exits` of budget.py: `vmmsim.exits` is the module of that name.
_EXPORTS = {
    "BackendUnavailable": ".errors",
    "Budget": ".budget",
    "DeviceError": ".errors",
    "GuestError": ".errors",
    "HostError": ".errors",
    "ImageError": ".errors",
    "ImageNotFound": ".errors",
    "Machine": ".machine",
    "MachineConfig": ".config",
    "NotSupported": ".errors",
    "SnapshotError": ".errors",
    "UsageError": ".errors",
    "VmmsimError": ".errors",
    "insns": ".budget",
    "seconds": ".budget",
}

__all__ = [
    "BackendUnavailable",
    "Budget",
    "DeviceError",
    "GuestError",
    "HostError",
    "ImageError",
    "ImageNotFound",
    "Machine",
    "MachineConfig",
    "NotSupported",
    "SnapshotError",
    "UsageError",
    "VmmsimError",
    "__version__",
    "insns",
    "seconds",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(import_module(_EXPORTS[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
