"""What is checked on another host, whatever makes it: doctor, demo, guests, snapshots, conformance.

A host is a command that is its Python. `Checks` runs vmmsim of this checkout with it, says a line for each
check, and knows the exit code at the end. "Here" is the Python that runs the script.
"""

from __future__ import annotations

import filecmp
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
INSIDE = "tools/hosts/inside.py"
#: For quick checks: each mode, each sort of exit, interrupts, exceptions, two vCPUs.
TEN_GUESTS = (
    "demand-paging", "echo", "faults-64", "guess", "hello32", "lwn", "smp-ping-pong", "timer-real",
    "traps-32", "widths",
)  # fmt: skip


class Skipped(Exception):
    """What this host is made of cannot be had here; the text is the reason."""


class Failed(Exception):
    """A check failed; the text says how."""


@dataclass(frozen=True)
class Host:
    """`python` is the command; `path` makes of a path of this machine the one that the host has for it."""

    name: str
    python: tuple[str, ...]
    path: Callable[[Path], str] = str
    env: dict[str, str] = field(default_factory=dict)


HERE = Host("here", (sys.executable,))


def end_cleanly() -> None:
    """Let SIGTERM and SIGHUP end the script as Ctrl-C does, so that what it has started ends, too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))


def run(
    host: Host, *arguments: str, seconds: float, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the host's Python on this checkout. Whatever it has started is gone at the end."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VMMSIM_", "PYTEST"))}
    kept.update(host.env, PYTHONPATH=host.path(CHECKOUT), PYTHONDONTWRITEBYTECODE="1", **(env or {}))
    process = subprocess.Popen(
        [*host.python, *arguments],
        cwd=CHECKOUT,
        env=kept,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    with process:
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"not at its end after {seconds:g} s: {' '.join(arguments)}") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, said)


class Checks:
    """The checks of one host. `slow` is VMMSIM_SLOW there; `folder` is for files."""

    def __init__(self, host: Host, folder: Path, slow: float) -> None:
        self.host, self.folder, self.slow = host, folder, slow
        self.bad = 0
        #: The engines that Unicorn has there; doctor's check says.
        self.engines = ["portable"]
        self._begun = time.monotonic()

    def check(self, name: str, action: Callable[[], str]) -> None:
        """Say `ok` with what `action` returns, or `FAILED` with why."""
        began = time.monotonic()
        try:
            verdict = f"ok      {name}: {action()}"
        except Failed as error:
            self.bad += 1
            verdict = f"FAILED  {name}: {error}"
        print(f"{verdict} ({time.monotonic() - began:.0f} s)", flush=True)

    def end(self) -> int:
        """The last line, and the exit code: 0 where all checks passed."""
        verdict = f"{self.bad} of the checks FAILED" if self.bad else "all checks passed"
        print(f"{self.host.name}: {verdict} ({time.monotonic() - self._begun:.0f} s)")
        return 1 if self.bad else 0

    def there(self, *arguments: str, seconds: float, **env: str) -> str:
        """Run something on the host, which must end with 0; what it has printed."""
        return _output(self.host, arguments, seconds * self.slow, {"VMMSIM_SLOW": f"{self.slow:g}", **env})

    def here(self, *arguments: str, seconds: float, **env: str) -> str:
        return _output(HERE, arguments, seconds, env)

    # -- the checks

    def doctor(self) -> str:
        report = json.loads(self.there("-m", "vmmsim", "doctor", "--json", seconds=60))
        unicorn = report["backends"]["unicorn"]
        if not unicorn["usable"]:
            raise Failed(f"unicorn is not usable: {unicorn['reason']}")
        engine = {line["what"]: line["finding"] for line in unicorn["findings"]}["engine"]
        if unicorn["provenance"].endswith("/native"):
            self.engines.append("native")
        return f"{report['host']}, Python {report['python']}, {unicorn['provenance']}, {engine}"

    def demo(self) -> str:
        said = self.there("-m", "vmmsim", "demo", seconds=120)
        last = [line for line in said.splitlines() if line and line[0].isdigit()][-1]
        if not last.startswith("7.") or "Go on:" not in said:
            raise Failed(f"it ended early, after '{last}'")
        return f"to its end, '{last}'"

    def guests(self, names: Sequence[str] = ()) -> str:
        """Exit traces, registers and memory at the end: the bytes of the portable engine here."""
        wanted = self.folder / "traces-here"
        self.here(INSIDE, "traces", str(wanted), *names, seconds=300, VMMSIM_UNICORN="portable")
        said = []
        for engine in self.engines:
            found = self.folder / f"traces-{engine}"
            found.mkdir(exist_ok=True)
            arguments = (INSIDE, "traces", self.host.path(found), *names)
            self.there(*arguments, seconds=120, VMMSIM_UNICORN=engine)
            files = sorted(path.name for path in wanted.iterdir())
            same, other, missing = filecmp.cmpfiles(wanted, found, files, shallow=False)
            if other or missing or not same:
                raise Failed(f"{engine}: other bytes: {other}; missing: {missing}; look into {self.folder}")
            said.append(f"{engine}: {len(same)} of {len(files)} guests make the same bytes as here")
        return "; ".join(said)

    def snapshots(self) -> str:
        """Taken there and gone on here, on every CPU that is here, and back."""
        cpus = [("unicorn", "portable"), ("unicorn", "native")]
        if json.loads(self.here("-m", "vmmsim", "doctor", "--json", seconds=100))["backends"]["kvm"][
            "usable"
        ]:
            cpus.append(("kvm", ""))
        said = []
        for engine in self.engines:
            taken = self.folder / f"snapshots-{engine}"
            taken.mkdir(exist_ok=True)
            self.there(INSIDE, "snapshots", self.host.path(taken), seconds=120, VMMSIM_UNICORN=engine)
            for backend, here in cpus:
                choice = {"VMMSIM_BACKEND": backend, **({"VMMSIM_UNICORN": here} if here else {})}
                said.append(_last(self.here(INSIDE, "restore", str(taken), seconds=300, **choice)))
        for backend, here in cpus:
            taken = self.folder / f"snapshots-here-{backend}{here}"
            taken.mkdir(exist_ok=True)
            choice = {"VMMSIM_BACKEND": backend, **({"VMMSIM_UNICORN": here} if here else {})}
            self.here(INSIDE, "snapshots", str(taken), seconds=300, **choice)
            for engine in self.engines:
                arguments = (INSIDE, "restore", self.host.path(taken))
                said.append(_last(self.there(*arguments, seconds=120, VMMSIM_UNICORN=engine)))
        return "; ".join(said)

    def tests(self, *arguments: str, seconds: float = 600) -> str:
        """pytest on the host."""
        said = self.there("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, seconds=seconds)
        return _last(said)

    def conformance(self) -> str:
        """All checks of the contract, on each engine there is."""
        named = {"portable": "unicorn-portable", "native": "unicorn and not portable"}
        return "; ".join(
            f"{engine}: {self.tests('tests/test_conformance.py', '-k', f'test_backend and {named[engine]}')}"
            for engine in self.engines
        )


def _output(host: Host, arguments: Sequence[str], seconds: float, env: dict[str, str]) -> str:
    done = run(host, *arguments, seconds=seconds, env=env)
    if done.returncode:
        text = "\n".join(done.stdout.splitlines()[-40:])
        raise Failed(f"`{' '.join(arguments)}` ended with {done.returncode}:\n{text}\n")
    return done.stdout


def _last(said: str) -> str:
    lines = said.strip().splitlines()
    return lines[-1] if lines else ""
