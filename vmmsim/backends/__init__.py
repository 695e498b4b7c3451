"""Backends by name, found lazily: an entry is an import path, loaded when it is opened."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import BackendUnavailable, UsageError

if TYPE_CHECKING:
    from .base import Availability, Backend

__all__ = ["REGISTRY", "availability", "backend_class", "open_backend"]

#: name -> "module:class". A third party may add its own. `auto` tries them in this order.
REGISTRY: dict[str, str] = {
    "kvm": "vmmsim.backends.kvm:KvmBackend",
    "unicorn": "vmmsim.backends.unicorn:UnicornBackend",
}


def backend_class(name: str) -> type[Backend]:
    """The class behind `name`. UsageError for a name that nobody registered."""
    if name not in REGISTRY:
        raise UsageError(
            f"there is no backend '{name}'",
            hint="backends are: auto, " + ", ".join(REGISTRY),
        )
    module, _, attribute = REGISTRY[name].partition(":")
    return getattr(import_module(module), attribute)


def availability(name: str) -> Availability:
    """Whether `name` can be opened here, with the reason."""
    try:
        return backend_class(name).availability()
    except ImportError as error:
        # A Python without ctypes, or a third party's backend with a library missing.
        from .base import Availability

        return Availability(
            usable=False, reason=f"it cannot be imported: {error}", fix="install what is missing"
        )


def open_backend(name: str) -> tuple[Backend, str]:
    """Open a backend by name; `auto` takes the first of `REGISTRY` that is usable.

    Returns it with the reason for the choice, a sentence for stderr. Raises
    BackendUnavailable with what is missing: a backend asked for by name is never replaced
    by another.
    """
    if name != "auto":
        found = availability(name)
        if not found.usable:
            raise BackendUnavailable(name, found.reason, hint=found.fix)
        return backend_class(name)(), f"{name} (asked for)"
    missing: list[str] = []
    for candidate in REGISTRY:
        found = availability(candidate)
        if found.usable:
            because = "; ".join(missing) if missing else found.reason
            return backend_class(candidate)(), f"{candidate} ({because})"
        missing.append(f"{candidate}: {found.reason}")
    raise BackendUnavailable("auto", "; ".join(missing), hint="see: vmmsim doctor")
