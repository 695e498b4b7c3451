"""Which CPU the host has: what KVM shows where the architecture leaves a thing open.

A family is what AMD and Intel call a generation by (CPUID leaf 1 EAX, extended family added): all
Zen 3 and Zen 4 are AMD's 19h, Zen 5 is 1Ah; Intel's Core and Xeon are family 6, with few exceptions.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = ["chip", "chip_of", "model_name"]

_VENDORS = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel", "HygonGenuine": "Hygon", "CentaurHauls": "VIA"}
_CPUINFO = Path("/proc/cpuinfo")


def chip_of(cpuinfo: str) -> str:
    """Vendor and family in the text of /proc/cpuinfo: `AMD 19h`, `Intel 6`. "" where it does not say."""
    lines = _lines(cpuinfo)
    vendor, family = lines.get("vendor_id", ""), lines.get("cpu family", "")
    if not vendor or not family.isdecimal():
        return ""
    number = int(family)
    return f"{_VENDORS.get(vendor, vendor)} {number if number < 10 else f'{number:X}h'}"


def _lines(cpuinfo: str) -> dict[str, str]:
    """The first processor's lines."""
    first = cpuinfo.strip().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _cpuinfo() -> str:
    try:
        return _CPUINFO.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


@cache
def chip() -> str:
    """Vendor and family of the host's CPU; "" where the host does not say."""
    return chip_of(_cpuinfo())


@cache
def model_name() -> str:
    """The name and model number, for a person: `AMD EPYC, model 1`. "" where the host does not say."""
    lines = _lines(_cpuinfo())
    number = f"model {lines['model']}" if "model" in lines else ""
    return ", ".join(filter(None, (lines.get("model name", ""), number)))
