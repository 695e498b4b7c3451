"""On which hosts and Pythons this version was run by those who made it; `vmmsim doctor` says so.

Whoever tries another one (tools/hosts has scripts for it) adds it here, with how.
"""

from __future__ import annotations

import mmap
import platform
import sys

__all__ = ["HOSTS", "PAGES", "PYTHONS", "tried_host", "tried_pages", "tried_python"]

#: (operating system, CPU), as Python's `platform` names them -> what was run there.
HOSTS = {
    ("Linux", "x86_64"): "the whole test suite, with KVM and without",
    (
        "Linux",
        "aarch64",
    ): "demo, guests, conformance and snapshots, emulated by qemu-user (tools/hosts/arm64)",
    ("Windows", "AMD64"): "demo, guests, conformance and snapshots, under Wine (tools/hosts/windows)",
}
#: Versions of CPython; the first with the whole suite, the others by tools/hosts/pythons.
PYTHONS = ("3.11", "3.13", "3.14", "3.15")
#: Page sizes in bytes; the first is that of the hosts above, the others are a shim's (tools/hosts/pages).
PAGES = (4096, 16384, 65536)


def tried_host() -> str:
    """What was run on hosts like this one, or that nothing was."""
    found = HOSTS.get((platform.system(), platform.machine()))
    return found or "no, only " + ", ".join(" ".join(host) for host in HOSTS)


def tried_pages() -> str:
    """Whether a page size like this host's was tried."""
    usual, *shimmed = PAGES
    if usual == mmap.PAGESIZE:
        return "yes"
    return "by a shim (tools/hosts/pages)" if mmap.PAGESIZE in shimmed else f"no, only {PAGES} bytes"


def tried_python() -> str:
    """Whether this Python was tried."""
    version = ".".join(map(str, sys.version_info[:2]))
    if platform.python_implementation() != "CPython":
        return f"no, it is {platform.python_implementation()}; only CPython {', '.join(PYTHONS)}"
    return "yes" if version in PYTHONS else f"no, only {', '.join(PYTHONS)}"
