"""A conformance check, and what may become of one: passed, failed, not applicable."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..backends.base import Backend

__all__ = ["Check", "NotApplicable", "Result", "per_mode", "raises", "registry"]


class NotApplicable(Exception):
    """A backend need not do this: its capabilities, or a named divergence, say so."""


class Check(msgspec.Struct, frozen=True):
    """One named check. `run` raises AssertionError, or NotApplicable with the reason."""

    name: str
    about: str
    run: Callable[[Backend], None]


class Result(msgspec.Struct, frozen=True):
    """What became of a check: `outcome` is passed, failed or not applicable; `note` says why."""

    name: str
    outcome: str
    note: str = ""


def registry() -> tuple[list[Check], Callable[[Callable[[Backend], None]], Callable[[Backend], None]]]:
    """A module's list of checks, and the decorator that enters a function into it under its
    name, with its docstring's first line."""
    checks: list[Check] = []

    def check(function: Callable[[Backend], None]) -> Callable[[Backend], None]:
        checks.append(Check(function.__name__, _about(function), function))
        return function

    return checks, check


def per_mode(
    checks: list[Check], *modes: str
) -> Callable[[Callable[[Backend, str], None]], Callable[[Backend, str], None]]:
    """Enter a function of (backend, mode) once for each mode, as `name[mode]`."""

    def enter(function: Callable[[Backend, str], None]) -> Callable[[Backend, str], None]:
        for mode in modes:
            checks.append(
                Check(
                    f"{function.__name__}[{mode}]",
                    _about(function),
                    lambda backend, mode=mode: function(backend, mode),  # type: ignore[misc]
                )
            )
        return function

    return enter


def _about(function: Callable[..., None]) -> str:
    return (function.__doc__ or "").strip().split("\n")[0]


def raises(kind: type[Exception], action: Callable[[], object], what: str) -> Exception:
    """`action` must raise `kind`; the error is returned."""
    try:
        action()
    except kind as error:
        return error
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__} ({error}), expected {kind.__name__}") from error
    raise AssertionError(f"{what}: no error, expected {kind.__name__}")
