"""How the hosts' scripts get what a host is made of: commands that fetch, and which wheels it wants."""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Sequence

from checks import CHECKOUT, Skipped

__all__ = ["call", "requirements"]

_SECONDS = 600


def call(
    *command: str, reason: str, error: type[Exception] = Skipped, env: dict[str, str] | None = None
) -> None:
    """Run a command that fetches or unpacks; `error` where it fails or does not end."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL, check=False,
            env=env,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise error(f"{reason} (not in {_SECONDS} s)") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "ERROR"))]
        raise error(f"{reason}: {lines[0] if lines else done.stderr.strip()[-200:]}")


def requirements(there: dict[str, str], extras: Sequence[str]) -> list[str]:
    """What vmmsim, with `extras`, wants on a host whose markers are `there` (pip looks at this machine
    for the markers). Also what these in turn want on Windows alone: click colorama, selenium's trio cffi."""
    from packaging.requirements import Requirement

    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    texts = [*project["dependencies"], *(line for extra in extras for line in optional[extra])]
    if there["sys_platform"] == "win32":
        texts += ["colorama", "cffi"]
    wanted = []
    for text in texts:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(there):
            requirement.marker = None
            wanted.append(str(requirement))
    return wanted
