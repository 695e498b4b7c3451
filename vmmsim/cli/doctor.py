"""`vmmsim doctor`: what this host can run, what it cannot, and the one thing that mends it."""

from __future__ import annotations

import platform
import textwrap
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from .. import __version__
from .common import json_option
from .output import out, table

__all__ = ["command", "examine"]

_LIBRARIES = ("unicorn", "capstone", "msgspec", "click", "pyelftools", "rich", "keystone-engine")
_NEEDED_FOR = {
    "keystone-engine": 'vmmsim asm; pip install "vmmsim[asm]"',
    "capstone": 'disassembly; pip install "capstone>=5.0.1,<6"',
}
_NO_WHEEL = "vmmsim asm; this host has no wheel of it: pip builds it with cmake and a C++ compiler"


def examine() -> dict[str, Any]:
    """Everything that doctor says, as plain values."""
    from .. import hosts
    from ..backends import REGISTRY, availability

    report: dict[str, Any] = {
        "vmmsim": __version__,
        "python": platform.python_version(),
        "host": f"{platform.system()} {platform.release()} {platform.machine()}",
        "pages": _pages(),
        "tried": {
            "host": hosts.tried_host(),
            "pages": hosts.tried_pages(),
            "python": hosts.tried_python(),
        },
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "backends": {},
    }
    usable = []
    for name in REGISTRY:
        found = availability(name)
        entry: dict[str, Any] = {"usable": found.usable, "reason": found.reason, "fix": found.fix}
        if found.usable:
            entry.update(_open(name))
        if entry["usable"]:
            usable.append(name)
        report["backends"][name] = entry
    report["auto"] = usable[0] if usable else None
    return report


def _pages() -> dict[str, Any]:
    """The host's pages: bytes, and whether a snapshot's are mapped or why they are copied."""
    from ..snapshot.host_pages import host_page, why_copied

    reason = why_copied()
    return {"size": host_page(), "mapped": not reason, "reason": reason}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _open(name: str) -> dict[str, Any]:
    import msgspec

    from ..backends import backend_class
    from ..errors import BackendUnavailable, UsageError, VmmsimError

    try:
        backend = backend_class(name)()
        return {
            "provenance": backend.provenance,
            "capabilities": msgspec.to_builtins(backend.capabilities),
            "findings": [{"what": what, "finding": finding} for what, finding in backend.doctor()],
        }
    except UsageError:  # a wrong setting is the caller's to mend, as for the other commands
        raise
    except BackendUnavailable as error:
        return {"usable": False, "reason": error.reason, "fix": error.hint}
    except VmmsimError as error:
        # It looked usable and is not: busy, or refused by the kernel when it was tried.
        return {"usable": False, "reason": error.message, "fix": error.hint}


@click.command("doctor")
@json_option
def command(as_json: bool) -> int:
    """Say which backends work here and why, what they can do, and what is missing.

    Ends with 126 when no backend is usable, with 125 for a wrong setting.
    """
    report = examine()
    if as_json:
        import msgspec

        out(msgspec.json.encode(report))
    else:
        _show(report)
    return 0 if report["auto"] else 126


def _show(report: dict[str, Any]) -> None:
    size = report["pages"]["size"]
    pages = f"pages of {size >> 10} KiB" if size % 1024 == 0 else f"pages of {size} bytes"
    out(f"vmmsim {report['vmmsim']}, Python {report['python']}, {report['host']}, {pages}")
    tried = report["tried"]
    out(_filled(f"tried on such a host: {tried['host']}"))
    out(_filled(f"tried with its pages: {tried['pages']}; with this Python: {tried['python']}"))
    for name, number in report["libraries"].items():
        need = _needed_for(name)
        note = f"missing (for {need})" if number is None and need else number or "missing"
        out(f"  {name:<16} {note}")
    how = "mapped" if report["pages"]["mapped"] else f"copied: {report['pages']['reason']}"
    out(_filled(f"a snapshot's pages are {how}"))
    for name, entry in report["backends"].items():
        out("")
        out(f"{name}: {'usable' if entry['usable'] else 'not usable'}: {entry['reason']}")
        if not entry["usable"]:
            if entry["fix"]:
                out(f"  to mend it: {entry['fix']}")
            continue
        out(f"  runs as {entry['provenance']}")
        for line in entry["findings"]:
            out(_filled(f"{line['what']}: {line['finding']}"))
    out("")
    usable = {name: entry for name, entry in report["backends"].items() if entry["usable"]}
    if not usable:
        out("No backend is usable: mend one of the above.")
        return
    _show_capabilities(usable)
    out(f"\n--backend auto takes {report['auto']}.")


def _filled(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="    ")


def _needed_for(library: str) -> str | None:
    """What the library is for, and how one gets it, where it may be missing."""
    if library == "keystone-engine" and platform.machine() not in ("x86_64", "AMD64"):
        return _NO_WHEEL
    return _NEEDED_FOR.get(library)


def _show_capabilities(usable: dict[str, Any]) -> None:
    from ..backends.base import CAPABILITY_TABLE

    rows = [
        (field, *(_word(entry["capabilities"][field]) for entry in usable.values()), unit)
        for field, (unit, _) in CAPABILITY_TABLE.items()
        if field != "refuses"
    ]
    table(("capability", *usable, "unit"), rows)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
